import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxmeta.runs import checkpoints
from jaxmeta.runs.checkpoints import CheckpointError


class Carried(NamedTuple):
    key: jax.Array
    weights: dict
    count: jax.Array


# A failed read leaves orbax's coroutines unawaited.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DESCRIPTION = {"algorithm": "maml", "config": {"num_streams": 4, "sizes": [8]}, "steps": 10}


def carried(seed=0):
    key = jax.random.key(seed)
    weights = {
        "w": jax.random.normal(key, (40, 30)),
        "half": jnp.array([-0.0, jnp.nan], jnp.bfloat16),
    }
    return Carried(key, weights, jnp.array(seed, jnp.int32))


def target():
    return jax.eval_shape(carried)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "checkpoints"
    with checkpoints.open_manager(folder) as manager:
        for step in (1, 2):
            checkpoints.save(manager, step, carried(step), DESCRIPTION)
    return folder


def test_what_a_killed_process_left_is_not_spoken_of(folder, caplog):
    """It was deleting the first checkpoint and writing the third."""
    (folder / "1" / "_CHECKPOINT_METADATA").unlink()
    (folder / "3.orbax-checkpoint-tmp").mkdir()
    with checkpoints.open_manager(folder) as manager:
        assert manager.latest_step() == 2
        checkpoints.save(manager, 3, carried(3), DESCRIPTION)
        logging.getLogger("absl").warning("something else")
    assert [x.getMessage() for x in caplog.records] == ["something else"]
    assert checkpoints.restore(folder, target(), DESCRIPTION)[0] == 3


def test_what_is_restored_is_bit_equal_and_the_newest(folder):
    step, restored = checkpoints.restore(folder, target(), DESCRIPTION)
    assert step == 2
    assert isinstance(restored, Carried)
    assert checkpoints.digest(restored) == checkpoints.digest(carried(2))
    assert jnp.signbit(restored.weights["half"][0])
    assert jnp.array_equal(jax.random.key_data(restored.key), jax.random.key_data(carried(2).key))


def test_only_the_last_few_are_kept(tmp_path):
    with checkpoints.open_manager(tmp_path, keep=2) as manager:
        for step in range(4):
            checkpoints.save(manager, step, carried(step), DESCRIPTION)
        assert list(manager.all_steps()) == [2, 3]


def test_a_step_is_never_overwritten(folder):
    with checkpoints.open_manager(folder) as manager:
        checkpoints.save(manager, 2, carried(7), DESCRIPTION)
    _, restored = checkpoints.restore(folder, target(), DESCRIPTION)
    assert restored.count == 2


@pytest.mark.parametrize(
    "name",
    ["sizes=[64,64]", "a\\b", "gs:", "?*{x}", "new\nline", "~", "ünï→", "-a ", "x" * 250, "\udcff"],
)
def test_any_name_of_a_folder(name, tmp_path):
    """Also of one above it; nothing is left elsewhere."""
    folder = tmp_path / name / "run" / "checkpoints"
    with checkpoints.open_manager(folder) as manager:
        checkpoints.save(manager, 1, carried(1), DESCRIPTION)
        link = Path(manager.directory)
    assert sorted(x.name for x in folder.iterdir()) == ["1"]
    assert link == folder or not link.parent.exists()
    step, restored = checkpoints.restore(folder, target(), DESCRIPTION)
    assert step == 1
    assert checkpoints.digest(restored) == checkpoints.digest(carried(1))
    with pytest.raises(CheckpointError) as error:
        checkpoints.restore(folder, target(), {})
    assert str(folder / "1") in str(error.value)


def test_a_name_that_no_link_can_stand_for(tmp_path, monkeypatch):
    def refuse(*told, **more):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with (
        pytest.raises(CheckpointError, match=r"holds ',', '\[', .* no link .* \(no links here\)"),
        checkpoints.open_manager(tmp_path / "[4,4]"),
    ):
        pass


def test_what_cannot_be_read_back_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(
        checkpoints, "PLAIN_PATH", re.compile(".*")
    )  # orbax is given the name itself
    with (
        checkpoints.open_manager(tmp_path / "[4]") as manager,
        pytest.raises(CheckpointError, match=r"\[4\]/1 was written and cannot be read back"),
    ):
        checkpoints.save(manager, 1, carried(1), DESCRIPTION)


def test_digest_sees_every_change():
    base = carried()
    others = [
        base._replace(count=base.count + 1),
        base._replace(count=base.count.astype(jnp.int16)),
        base._replace(key=jax.random.key(1)),
        base._replace(weights=base.weights | {"w": base.weights["w"].reshape(30, 40)}),
        base._replace(weights=base.weights | {"half": jnp.array([0.0, jnp.nan], jnp.bfloat16)}),
    ]
    digests = {checkpoints.digest(x) for x in [base, *others]}
    assert len(digests) == 1 + len(others)
    assert checkpoints.digest(base) == checkpoints.digest(carried())


def test_nothing_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist: there is nothing to resume"):
        checkpoints.restore(tmp_path / "nowhere", target(), DESCRIPTION)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        checkpoints.restore(tmp_path / "empty", target(), DESCRIPTION)


def test_another_run_s_checkpoint_is_named_by_what_differs(folder):
    other = DESCRIPTION | {"config": {"num_streams": 5, "sizes": [8]}, "steps": 20}
    with pytest.raises(
        CheckpointError, match="another run: config.num_streams is 5 and was 4; steps is 20"
    ):
        checkpoints.restore(folder, target(), other)
    with pytest.raises(CheckpointError, match="config.num_streams is 5 and was 4. Resume"):
        checkpoints.restore(folder, target(), other, ignore=("steps",))
    allowed = DESCRIPTION | {"steps": 20}
    assert checkpoints.restore(folder, target(), allowed, ignore=("steps",))[0] == 2


def test_a_checkpoint_of_other_shapes_or_types_is_refused(folder):
    shapes = target()
    wrong_shape = shapes._replace(count=jax.ShapeDtypeStruct((3,), jnp.int32))
    wrong_type = shapes._replace(count=jax.ShapeDtypeStruct((), jnp.float32))
    for wrong in (wrong_shape, wrong_type):
        with pytest.raises(
            CheckpointError, match="2 is a checkpoint of another program: .count is"
        ):
            checkpoints.restore(folder, wrong, DESCRIPTION)


def data_files(folder):
    files = [p for p in (folder / "2" / "run").rglob("*") if p.is_file() and "d" in p.parent.name]
    return sorted(files, key=lambda p: -p.stat().st_size)


@pytest.mark.parametrize("damage", ["cut", "bit", "missing"])
def test_a_damaged_checkpoint_is_refused_by_name(folder, damage):
    path = data_files(folder)[0]
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.unlink()
    with pytest.raises(
        CheckpointError, match=r"checkpoints/2 is damaged .*remove .*checkpoints/2 to resume"
    ):
        checkpoints.restore(folder, target(), DESCRIPTION)


def test_following_the_advice_works(folder):
    shutil.rmtree(folder / "2")
    assert checkpoints.restore(folder, target(), DESCRIPTION)[0] == 1


def test_a_foreign_folder_is_refused(tmp_path):
    with ocp.CheckpointManager(tmp_path.absolute()) as manager:
        manager.save(3, args=ocp.args.StandardSave({"x": np.zeros(3)}))
    with pytest.raises(CheckpointError, match="3 is not a checkpoint of this library"):
        checkpoints.restore(tmp_path, target(), DESCRIPTION)


HOSTILE = """
import os, pickle, sys
class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {sys.argv[1]}",)
sys.stdout.buffer.write(pickle.dumps(Hostile()))
"""


def test_a_hostile_file_is_refused_and_not_executed(folder, tmp_path):
    """Every file of a checkpoint in turn is a pickle that would leave a trace where it is loaded."""
    trace = tmp_path / "executed"
    payload = subprocess.check_output([sys.executable, "-c", HOSTILE, str(trace)])
    subprocess.run(
        [sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"],
        input=payload,
        check=True,
    )
    assert trace.exists()  # it would
    trace.unlink()
    files = [path for path in (folder / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        (copy / file.relative_to(folder)).write_bytes(payload)
        refused = None
        try:
            step, run = checkpoints.restore(copy, target(), DESCRIPTION)
        except CheckpointError as error:
            refused = str(error)
        if refused is None:  # a file that nothing is read from, or an older checkpoint
            assert checkpoints.digest(run) == checkpoints.digest(carried(step))
        else:
            assert str(copy) in refused
        assert not trace.exists()


def test_nothing_here_unpickles():
    root = Path(checkpoints.__file__).parent
    for path in [*root.rglob("*.py"), *(root.parent / "benchmarks").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"\bpickle\b|allow_pickle=True|(?<![\w.])eval\(|(?<![\w.])exec\(", text
        ), path
