import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import checkpoints, tasks, training
from jaxmeta.algorithms.maml import Config, maml
from jaxmeta.checkpoints import CheckpointError

DESCRIPTION = {"algorithm": "maml", "config": {"hidden_sizes": (4,)}}
QUIET = dict(description=DESCRIPTION)


@pytest.fixture(scope="module")
def family():
    return tasks.make("navigation", horizon=4)


@pytest.fixture(scope="module")
def algorithm(family):
    return maml(family, Config(num_streams=2, hidden_sizes=(4,)))


def config(**changes):
    settings = dict(meta_updates=12, num_tasks=2, checkpoint_every=5, report_seconds=0.02)
    return training.Config(**(settings | changes))


def lines(folder):
    text = (folder / training.METRICS_FILE).read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_bit_equal(x, y):
    assert checkpoints.digest(x) == checkpoints.digest(y)


@pytest.fixture(scope="module")
def whole(family, algorithm, tmp_path_factory):
    """An uninterrupted run and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, training.train(algorithm, family, config(), folder=folder, **QUIET)


def test_a_run_leaves_its_record(whole):
    folder, run = whole
    assert run.num_updates == 12
    rows = lines(folder)
    assert [row["update"] for row in rows] == list(range(1, 13))
    for row in rows:
        assert {"return/before", "return/after", "meta_grad_norm", "seconds"} <= set(row)
        assert row["env_steps"] == 2 * 2 * 4 * 2
        assert row["skipped_tasks"] == 0
    assert len({row["return/after"] for row in rows}) == 12
    record = json.loads((folder / training.CONFIG_FILE).read_text())
    assert record["training"]["meta_updates"] == 12
    assert record["config"]["hidden_sizes"] == [4]
    assert sorted(p.name for p in (folder / training.CHECKPOINT_FOLDER).iterdir()) == [
        "10",
        "12",
        "5",
    ]


def test_resuming_is_bit_exact(whole, family, algorithm, tmp_path):
    """12 updates are 7 + resume + 5, whatever the host looked at in between."""
    folder, run = whole
    training.train(
        algorithm, family, config(meta_updates=7, report_seconds=0.0), folder=tmp_path, **QUIET
    )
    resumed = training.train(
        algorithm, family, config(report_seconds=9.0), folder=tmp_path, resume=True, **QUIET
    )
    assert_bit_equal(resumed, run)
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in lines(tmp_path)]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in lines(folder)]


def test_a_finished_run_resumes_to_itself(whole, family, algorithm):
    folder, run = whole
    again = training.train(algorithm, family, config(), folder=folder, resume=True, **QUIET)
    assert_bit_equal(again, run)
    assert len(lines(folder)) == 12


def test_without_a_folder_nothing_is_written_and_numbers_are_the_same(
    whole, family, algorithm, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert_bit_equal(training.train(algorithm, family, config()), whole[1])
    assert list(tmp_path.iterdir()) == []


def test_another_seed_is_another_run(whole, family, algorithm):
    other = training.train(algorithm, family, config(seed=1))
    assert checkpoints.digest(other) != checkpoints.digest(whole[1])


def test_a_non_empty_folder_is_refused(family, algorithm, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty: name another folder, or resume"):
        training.train(algorithm, family, config(), folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_resuming_another_run_is_refused_and_changes_nothing(whole, family, algorithm):
    folder, _ = whole
    before = (folder / training.CONFIG_FILE).read_text()
    with pytest.raises(CheckpointError, match="training.seed is 5 and was 0"):
        training.train(algorithm, family, config(seed=5), folder=folder, resume=True, **QUIET)
    wider = maml(family, Config(num_streams=2, hidden_sizes=(5,)))
    description = {"algorithm": "maml", "config": {"hidden_sizes": (5,)}}
    with pytest.raises(CheckpointError, match=r"config.hidden_sizes is \[5\] and was \[4\]"):
        training.train(wider, family, config(), folder=folder, resume=True, description=description)
    assert (folder / training.CONFIG_FILE).read_text() == before
    assert len(lines(folder)) == 12


def test_resuming_nothing_is_refused(family, algorithm, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        training.train(algorithm, family, config(), folder=tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="needs the folder"):
        training.train(algorithm, family, config(), resume=True)


def test_an_interrupt_leaves_a_checkpoint_to_resume_from(whole, family, algorithm, tmp_path):
    def interrupt():
        while not (tmp_path / training.METRICS_FILE).exists() or not lines(tmp_path):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    endless = config(meta_updates=10**9, checkpoint_every=10**9, report_seconds=0.2)
    with pytest.raises(KeyboardInterrupt, match="stopped after"):
        training.train(algorithm, family, endless, folder=tmp_path, **QUIET)
    done = len(lines(tmp_path))
    assert [p.name for p in (tmp_path / training.CHECKPOINT_FOLDER).iterdir()] == [str(done)]
    resumed = training.train(
        algorithm, family, config(meta_updates=done + 3), folder=tmp_path, resume=True, **QUIET
    )
    assert resumed.num_updates == done + 3
    assert_bit_equal(resumed, training.train(algorithm, family, config(meta_updates=done + 3)))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_lines_after_the_checkpoint_are_computed_again(family, algorithm, tmp_path):
    """As after a kill: metrics went on past the checkpoint, the last line was cut."""
    training.train(algorithm, family, config(meta_updates=5), folder=tmp_path, **QUIET)
    with open(tmp_path / training.METRICS_FILE, "a") as file:
        file.write('{"update": 6}\n{"upda')
    training.train(algorithm, family, config(meta_updates=8), folder=tmp_path, resume=True, **QUIET)
    rows = lines(tmp_path)
    assert [row["update"] for row in rows] == list(range(1, 9))
    assert "return/after" in rows[5]


def test_one_compilation_however_often_the_host_looks(family, algorithm):
    chex.clear_trace_counter()
    counted = algorithm._replace(step=chex.assert_max_traces(algorithm.step, n=2))
    # Traced once for the shapes of the metrics and once for the program.
    training.train(counted, family, config(report_seconds=0.0))


def test_advance_can_be_mapped_over_seeds(family, algorithm):
    runs = jax.vmap(lambda key: training.begin(key, algorithm=algorithm))(
        jax.vmap(jax.random.key)(jnp.arange(2))
    )

    def advance(run):
        return training.advance(
            run, 3, algorithm=algorithm, family=family, num_tasks=2, max_updates=4
        )

    runs, rows = jax.jit(jax.vmap(advance))(runs)
    assert rows["return/after"].shape == (2, 4)
    assert jnp.all(rows["return/after"][:, 3] == 0)
    alone = training.train(algorithm, family, config(meta_updates=3, seed=1))
    for x, y in zip(jax.tree.leaves(runs.state), jax.tree.leaves(alone.state), strict=True):
        np.testing.assert_allclose(x[1], y, rtol=1e-3, atol=1e-5)


def test_non_finite_metrics_are_null(family, algorithm, tmp_path):
    broken = dataclasses.replace(
        family, train=lambda key: jax.tree.map(lambda x: x * jnp.nan, family.train(key))
    )
    training.train(algorithm, broken, config(meta_updates=2), folder=tmp_path)
    rows = lines(tmp_path)
    assert [row["return/after"] for row in rows] == [None, None]
    assert [row["skipped_updates"] for row in rows] == [1, 1]


@pytest.mark.parametrize("name", ["meta_updates", "num_tasks", "checkpoint_every"])
def test_bad_settings_are_named(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        training.Config(**{name: 0})


def test_devices_share_the_tasks_and_change_no_result(tmp_path):
    """Four simulated devices against one: the same tasks and keys, results equal to rounding."""
    script = textwrap.dedent(
        """
        import sys, jax, numpy as np
        from jaxmeta import tasks, training
        from jaxmeta.algorithms.maml import Config, maml
        family = tasks.make("navigation", horizon=4)
        algorithm = maml(family, Config(num_streams=2, hidden_sizes=(4,)))
        assert jax.device_count() == int(sys.argv[1])
        run = training.train(algorithm, family, training.Config(meta_updates=3, num_tasks=4))
        np.save(sys.argv[2], np.concatenate([np.ravel(x) for x in jax.tree.leaves(run.state)]))
        try:
            training.train(algorithm, family, training.Config(meta_updates=1, num_tasks=6))
        except ValueError as error:
            assert "num_tasks=6 must be a multiple of the 4 devices" in str(error), error
        else:
            assert jax.device_count() == 1
        """
    )
    results = []
    for devices in (1, 4):
        path = tmp_path / f"{devices}.npy"
        flags = f"--xla_force_host_platform_device_count={devices}"
        subprocess.run(
            [sys.executable, "-c", script, str(devices), str(path)],
            check=True,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        )
        results.append(np.load(path))
    np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-5)
    assert results[0].size > 20


def test_compilation_cache_folder(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "a"))
        training.enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a")
        training.enable_compilation_cache(tmp_path / "b")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "b")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
