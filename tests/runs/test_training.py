import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

from jaxmeta import curricula, tasks
from jaxmeta.algorithms.maml import Config, maml
from jaxmeta.algorithms.maml import Hyper as MamlHyper
from jaxmeta.runs import checkpoints, claims, experiments, metric_lines, run_folder, sinks, training
from jaxmeta.runs.checkpoints import CheckpointError
from jaxmeta.types import MetaAlgorithm, TaskResults
from tests.probes import FAIL_AT_ONCE, exit_codes

DESCRIPTION = {"algorithm": "maml", "config": {"hidden_sizes": (4,)}}
QUIET = dict(description=DESCRIPTION)


@pytest.fixture(scope="module")
def family():
    return tasks.make("navigation", horizon=4)


class Hyper(NamedTuple):
    step_size: float = 0.1


class State(NamedTuple):
    hyper: Hyper
    params: dict
    optimizer: tuple
    num_updates: jax.Array

    @property
    def meta(self):
        return self.params


def seeking(size=4, hyper=Hyper()):
    """What training needs of an algorithm, soon compiled: weights that Adam moves to where tasks have their goals.

    Every number of the state depends on those before it, on keys and on tasks. (Algorithms that adapt are
    trained, saved and loaded in `test_experiments`.)
    """

    def adam(hyper):
        return optax.adam(hyper.step_size)

    def init(key, hyper=hyper):
        hyper = jax.tree.map(lambda x: jnp.asarray(x, float), hyper)
        params = {"w": jax.random.normal(key, (2, size))}
        return State(hyper, params, adam(hyper).init(params), jnp.zeros((), jnp.int32))

    def step(key, state, tasks):
        goals = tasks.goal + 0.1 * jax.random.normal(key, tasks.goal.shape)
        good = jnp.all(jnp.isfinite(tasks.goal))

        def loss(params):
            return jnp.mean((params["w"].sum(1)[None, :] - jnp.where(good, goals, 0.0)) ** 2)

        before, gradient = jax.value_and_grad(loss)(state.params)
        moves, optimizer = adam(state.hyper).update(gradient, state.optimizer)
        params = optax.apply_updates(state.params, moves)
        after = State(state.hyper, params, optimizer, state.num_updates + 1)
        after = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state)
        return after, {
            "return/before": jnp.where(good, -before, jnp.nan),
            "return/after": jnp.where(good, -loss(params), jnp.nan),
            "meta_grad_norm": optax.tree.norm(gradient),
            "skipped_tasks": jnp.sum(~jnp.isfinite(tasks.goal).all(1)),
            "skipped_updates": jnp.asarray(~good, jnp.int32),
            "env_steps": jnp.asarray(2 * 2 * 4 * 2, jnp.int32),
        }

    return MetaAlgorithm(init, step, None)


@pytest.fixture(scope="module")
def algorithm():
    return seeking()


def config(**changes):
    settings = dict(meta_updates=12, num_tasks=2, checkpoint_every=5, report_seconds=0.02)
    return training.Config(**(settings | changes))


def lines(folder):
    text = (folder / run_folder.METRICS_FILE).read_text()
    return [json.loads(line) for line in text.splitlines()]


def steps(folder):
    return sorted(int(p.name) for p in (folder / run_folder.CHECKPOINT_FOLDER).iterdir())


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
    record = json.loads((folder / run_folder.CONFIG_FILE).read_text())
    assert record["training"]["meta_updates"] == 12
    assert record["config"]["hidden_sizes"] == [4]
    assert steps(folder) == [5, 10, 12]  # the last three


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
        training.train(algorithm, family, config(), folder=tmp_path, **QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_resuming_another_run_is_refused_and_changes_nothing(whole, family, algorithm):
    folder, _ = whole
    before = (folder / run_folder.CONFIG_FILE).read_text()
    with pytest.raises(CheckpointError, match="training.seed is 5 and was 0"):
        training.train(algorithm, family, config(seed=5), folder=folder, resume=True, **QUIET)
    wider = seeking(size=5)
    description = {"algorithm": "maml", "config": {"hidden_sizes": (5,)}}
    with pytest.raises(CheckpointError, match=r"config.hidden_sizes is \[5\] and was \[4\]"):
        training.train(wider, family, config(), folder=folder, resume=True, description=description)
    assert (folder / run_folder.CONFIG_FILE).read_text() == before
    assert len(lines(folder)) == 12


def test_resuming_nothing_is_refused(family, algorithm, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        training.train(algorithm, family, config(), folder=tmp_path / "none", resume=True, **QUIET)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="needs the folder"):
        training.train(algorithm, family, config(), resume=True)


def test_fewer_updates_than_done_are_refused(whole, family, algorithm):
    folder, _ = whole
    with pytest.raises(CheckpointError, match="meta_updates=3, but the run in .* has done 12"):
        training.train(
            algorithm, family, config(meta_updates=3), folder=folder, resume=True, **QUIET
        )
    assert (
        json.loads((folder / run_folder.CONFIG_FILE).read_text())["training"]["meta_updates"] == 12
    )


def test_a_run_that_died_at_once_can_be_resumed(whole, family, algorithm, tmp_path):
    """Killed before its first regular checkpoint: the one from before the first update is there."""

    class Died(Exception):
        pass

    def die(*arguments):
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric_lines, "_number", die)
        with pytest.raises(Died):
            training.train(algorithm, family, config(), folder=tmp_path, **QUIET)
    assert steps(tmp_path) == [0]
    resumed = training.train(algorithm, family, config(), folder=tmp_path, resume=True, **QUIET)
    assert_bit_equal(resumed, whole[1])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, training.START_AGAIN)]
)
def test_an_interrupt_leaves_a_checkpoint_to_resume_from(
    whole, family, algorithm, tmp_path, number, code
):
    before = signal.getsignal(number)
    assert not training.can_resume(tmp_path)

    def interrupt():
        file = tmp_path / run_folder.METRICS_FILE
        while not file.exists() or "\n" not in file.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    endless = config(meta_updates=10**9, checkpoint_every=10**9, report_seconds=0.2)
    with pytest.raises(KeyboardInterrupt, match="stopped after") as stopped:
        training.train(algorithm, family, endless, folder=tmp_path, **QUIET)
    assert stopped.value.exit_code == code
    assert training.can_resume(tmp_path)
    done = len(lines(tmp_path))
    assert steps(tmp_path) == [0, done]
    resumed = training.train(
        algorithm, family, config(meta_updates=done + 3), folder=tmp_path, resume=True, **QUIET
    )
    assert resumed.num_updates == done + 3
    assert_bit_equal(resumed, training.train(algorithm, family, config(meta_updates=done + 3)))
    assert signal.getsignal(number) is before


def test_lines_after_the_checkpoint_are_computed_again(family, algorithm, tmp_path):
    """As after a kill: metrics went on past the checkpoint, the last line was cut."""
    training.train(algorithm, family, config(meta_updates=5), folder=tmp_path, **QUIET)
    with open(tmp_path / run_folder.METRICS_FILE, "a") as file:
        file.write('{"update": 6}\n{"upda')
    training.train(algorithm, family, config(meta_updates=8), folder=tmp_path, resume=True, **QUIET)
    rows = lines(tmp_path)
    assert [row["update"] for row in rows] == list(range(1, 9))
    assert "return/after" in rows[5]


FULL_DISK = """
import resource, signal, sys
from rich.console import Console
from jaxmeta import tasks
from jaxmeta.runs import training
from jaxmeta.algorithms.maml import Config, maml
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, most, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "resume"
if most:  # no file may grow beyond this: what a full disk looks like to who writes
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
family = tasks.make("navigation", horizon=4)
algorithm = maml(family, Config(num_streams=2, hidden_sizes=(64, 64)))
settings = training.Config(meta_updates=6, num_tasks=2, checkpoint_every=2, report_seconds=0.0)
training.train(
    algorithm, family, settings, folder=folder, resume=resume, description={}, console=Console(quiet=True)
)
"""


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_saved(tmp_path):
    """Not even room for a checkpoint: said by name; with room again, the run goes on to the end."""

    def attempt(folder, most, resume=False):
        return subprocess.run(
            [sys.executable, "-c", FULL_DISK, str(folder), str(most), "resume" if resume else ""],
            capture_output=True,
            text=True,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": ""},
        )

    first = attempt(tmp_path / "none", 500)
    assert first.returncode != 0
    assert re.search(r"CheckpointError: .*checkpoints/0 could not be written", first.stderr)
    later = attempt(tmp_path / "some", 20_000)
    assert later.returncode != 0
    assert re.search(
        r"checkpoints/\d could not be written .*; make room, then resume", later.stderr
    )
    kept = steps_of(tmp_path / "some")
    assert kept
    assert attempt(tmp_path / "some", 0, resume=True).returncode == 0
    whole = attempt(tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    records = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in lines(tmp_path / name)]
        for name in ("some", "whole")
    ]
    assert records[0] == records[1]


def steps_of(folder):
    """Finished checkpoints, whatever else is there."""
    names = [path.name for path in (folder / run_folder.CHECKPOINT_FOLDER).iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def test_a_sink_is_given_every_line_once_and_in_order(family, algorithm, tmp_path):
    seen = []
    training.train(algorithm, family, config(), folder=tmp_path / "run", sink=seen.append, **QUIET)
    assert [line["update"] for line in seen] == list(range(1, 13))
    assert seen == lines(tmp_path / "run")


def test_a_sink_that_fails_loses_nothing(whole, family, algorithm, tmp_path):
    """It fails on another update than those that are checkpointed in any case."""

    def sink(line):
        if line["update"] == 3:
            raise OSError("no network")

    folder = tmp_path / "run"
    with pytest.raises(OSError, match="no network"):
        training.train(
            algorithm, family, config(report_seconds=0.0), folder=folder, sink=sink, **QUIET
        )
    assert max(steps(folder)) == 3
    resumed = training.train(algorithm, family, config(), folder=folder, resume=True, **QUIET)
    assert_bit_equal(resumed, whole[1])


def test_one_compilation_however_often_the_host_looks(family, algorithm):
    chex.clear_trace_counter()
    counted = algorithm._replace(step=chex.assert_max_traces(algorithm.step, n=2))
    # Traced once for the shapes of the metrics and once for the program.
    training.train(counted, family, config(report_seconds=0.0))


def test_every_update_draws_tasks_and_keys_of_its_own(family):
    def step(key, state, tasks):
        goals = {f"goal {i}": x for i, x in enumerate(jnp.ravel(tasks.goal))}
        return state, goals | {"uniform": jax.random.uniform(key)}

    recorder = MetaAlgorithm(lambda key: jnp.zeros(()), step, None)
    run = training.begin(jax.random.key(0), algorithm=recorder)
    seen = []
    for _ in range(2):
        run, rows = training.advance(
            run, 3, algorithm=recorder, family=family, num_tasks=2, max_updates=3
        )
        seen.append(rows)
    goals = [np.stack([rows[f"goal {i}"] for i in range(4)], axis=1) for rows in seen]
    assert len(np.unique(np.reshape(goals, (12, 2)), axis=0)) == 12
    assert len(np.unique(np.concatenate([rows["uniform"] for rows in seen]))) == 6


@pytest.mark.slow
def test_advance_can_be_mapped_over_seeds(x64):
    """In float64: three updates of Adam make of float32's rounding a difference of 0.3 %."""
    family = tasks.make("navigation", horizon=4)
    algorithm = maml(family, Config(num_streams=2, hidden_sizes=(4,)))

    def advance(run):
        return training.advance(
            run, 3, algorithm=algorithm, family=family, num_tasks=2, max_updates=4
        )

    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    runs = jax.vmap(lambda key: training.begin(key, algorithm=algorithm))(keys)
    runs, rows = jax.jit(jax.vmap(advance))(runs)
    assert rows["return/after"].shape == (2, 4)
    assert jnp.all(rows["return/after"][:, 3] == 0)
    alone, _ = jax.jit(advance)(training.begin(keys[1], algorithm=algorithm))
    for x, y in zip(jax.tree.leaves(runs.state), jax.tree.leaves(alone.state), strict=True):
        np.testing.assert_allclose(x[1], y, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def population(family, algorithm, tmp_path_factory):
    """Two step sizes, two seeds; and its folder."""
    folder = tmp_path_factory.mktemp("population")
    hypers = [Hyper(step_size=0.05), Hyper(step_size=0.2)]
    members = dict(num_seeds=2, hypers=hypers, folder=folder, **QUIET)
    return members, training.train_population(algorithm, family, config(seed=3), **members)


def test_a_member_of_a_population_is_the_run_it_would_be_alone(population, family, algorithm):
    members, runs = population
    assert runs.num_updates.shape == (2, 2)
    here = {**members, "folder": None}
    short = training.train_population(algorithm, family, config(seed=3, meta_updates=3), **here)
    for setting, seed in ((0, 4), (1, 3)):
        own = seeking(hyper=members["hypers"][setting])
        alone = training.train(own, family, config(seed=seed, meta_updates=3))
        for x, y in zip(jax.tree.leaves(short.state), jax.tree.leaves(alone.state), strict=True):
            # Adam makes the rounding of a small gradient as large as 1/50 of a step, which is 5e-3.
            np.testing.assert_allclose(x[setting, seed - 3], y, rtol=1e-3, atol=1e-4)


def test_a_population_records_every_member(population):
    members, _ = population
    rows = lines(members["folder"])
    told = [(row["update"], row["setting"], row["seed"]) for row in rows]
    assert sorted(told) == [(u, h, s) for u in range(1, 13) for h in (0, 1) for s in (3, 4)]
    assert len({row["return/before"] for row in rows if row["update"] == 1}) == 2  # seeds
    assert len({row["return/after"] for row in rows if row["update"] == 1}) == 4
    record = json.loads((members["folder"] / run_folder.CONFIG_FILE).read_text())
    assert [x["step_size"] for x in record["population"]["hypers"]] == [0.05, 0.2]


def test_a_population_is_resumed_bit_exactly_and_not_as_another(
    population, family, algorithm, tmp_path
):
    members, runs = population
    here = {**members, "folder": tmp_path}
    training.train_population(algorithm, family, config(seed=3, meta_updates=7), **here)
    again = training.train_population(algorithm, family, config(seed=3), resume=True, **here)
    assert_bit_equal(runs, again)
    other = {**here, "num_seeds": 1}
    with pytest.raises(CheckpointError, match="population.num_seeds is 1 and was 2"):
        training.train_population(algorithm, family, config(seed=3), resume=True, **other)


def test_an_empty_population_is_refused(family, algorithm):
    with pytest.raises(ValueError, match="num_seeds=0 must be at least 1"):
        training.train_population(algorithm, family, config(), num_seeds=0)
    with pytest.raises(ValueError, match=r"hypers=\[\] must hold at least one setting"):
        training.train_population(algorithm, family, config(), hypers=[])


@pytest.mark.slow
def test_a_population_of_the_algorithms_own_settings(family, algorithm):
    runs = training.train_population(algorithm, family, config(meta_updates=3), num_seeds=2)
    alone = training.train(algorithm, family, config(meta_updates=3, seed=1))
    for x, y in zip(jax.tree.leaves(runs.state), jax.tree.leaves(alone.state), strict=True):
        assert x.shape == (1, 2, *y.shape)
        np.testing.assert_allclose(x[0, 1], y, rtol=1e-3, atol=1e-4)


def test_non_finite_metrics_are_null(family, algorithm, tmp_path):
    broken = dataclasses.replace(
        family, train=lambda key: jax.tree.map(lambda x: x * jnp.nan, family.train(key))
    )
    training.train(algorithm, broken, config(meta_updates=2), folder=tmp_path, **QUIET)
    rows = lines(tmp_path)
    assert [row["return/after"] for row in rows] == [None, None]
    assert [row["skipped_updates"] for row in rows] == [1, 1]


def returning(metrics=None, state=lambda state: state):
    """An algorithm whose meta-update returns that, and whose state begins as a number that yields to other types."""
    return MetaAlgorithm(
        lambda key: {"w": jnp.zeros(3), "n": 0.0},
        lambda key, before, tasks: (
            state(before),
            {"loss": before["n"]} if metrics is None else metrics,
        ),
        None,
    )


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"each": jnp.zeros(3)}, r"the metric 'each' has shape \(3,\) and type float32"),
        ({"one": jnp.zeros(1)}, r"the metric 'one' has shape \(1,\)"),
        ({"z": 1j * jnp.ones(())}, "the metric 'z' has shape .* and type complex64"),
        ({"key": jax.random.key(0)}, "the metric 'key' has shape .* and type key<fry>"),
        ({"deep": {"x": 1.0}}, "the metric 'deep' is {'x': 1.0}; it must be a scalar"),
        ({"none": None}, "the metric 'none' is None; it must be a scalar"),
        ({"update": 1.0}, "the metric 'update' needs another name"),
        ({3: 1.0}, "the metric 3 must have a string as its name"),
        ((1.0, 2.0), "must be a dictionary of scalars by name"),
    ],
)
@pytest.mark.parametrize("train", [training.train, training.train_population])
def test_metrics_are_scalars(train, metrics, message, family, tmp_path):
    """Said before anything compiles, and the folder is as it was."""
    with pytest.raises((TypeError, ValueError), match=message):
        train(returning(metrics), family, config(), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda x: x | {"w": jnp.zeros(4)}, r"\['w'\] is float32\[4\], and was given float32\[3\]"),
        (
            lambda x: x | {"n": jnp.zeros((), int)},
            r"\['n'\] is int32\[\], and was given float32\[\]",
        ),
        (lambda x: {"w": x["w"]}, r"\['n'\] is missing, and was given float32"),
        (lambda x: x | {"v": 0.0}, r"\['v'\] is float32\[\], and was given no such leaf"),
        (lambda x: x | {"none": None}, "it is dict.*none: None.*, and was given"),
    ],
)
def test_a_state_keeps_its_shapes_and_types(state, message, family):
    with pytest.raises(TypeError, match="algorithm.step returns another state: " + message):
        training.train(returning(state=state), family, config())


def test_numbers_that_yield_to_other_types_are_numbers(family, tmp_path):
    """A Python number in the state, and as a metric; resumed, it still is one."""
    counting = returning(
        {"int": 3, "bool": True, "half": jnp.bfloat16(0.5)},
        lambda x: x | {"n": x["n"] + jnp.ones(())},
    )
    run = training.train(counting, family, config(meta_updates=2), folder=tmp_path)
    assert run.state["n"] == 2
    run = training.train(counting, family, config(meta_updates=3), folder=tmp_path, resume=True)
    assert run.state["n"] == 3
    assert [(x["int"], x["bool"], x["half"]) for x in lines(tmp_path)] == [(3, True, 0.5)] * 3
    assert json.loads((tmp_path / "config.json").read_text())["family"] == "navigation"


def test_a_mean_of_no_episodes_is_null(family):
    seen = []
    metrics = {"return/before": 0.0, "episodes/before": 0, "return/after": 2.5, "episodes/after": 4}
    training.train(returning(metrics), family, config(meta_updates=1), sink=seen.append)
    assert seen[0]["return/before"] is None
    assert seen[0]["return/after"] == 2.5
    assert seen[0]["episodes/before"] == 0


def test_beginning_from_what_was_learned(whole, family, algorithm, tmp_path):
    """The state is the given one, the keys are the seed's; the given arrays live on, and resuming is as ever."""

    def step(key, state, tasks):
        return state | {"w": state["w"] + jax.random.uniform(key, 3)}, {}

    adding = returning()._replace(step=step)
    folder, plan = tmp_path / "run", config(meta_updates=2, seed=9)
    run = training.train(adding, family, config(meta_updates=3))
    begun = training.train(adding, family, plan, initial=run, folder=folder)
    newborn = training.train(adding, family, plan)
    assert begun.num_updates == 2
    np.testing.assert_allclose(begun.state["w"] - run.state["w"], newborn.state["w"], rtol=1e-5)
    assert_bit_equal(begun, training.train(adding, family, plan, initial=jax.device_get(run.state)))
    record = json.loads((folder / run_folder.CONFIG_FILE).read_text())
    assert record["initial"] == checkpoints.digest(run.state)
    longer = dataclasses.replace(plan, meta_updates=4)
    resumed = training.train(adding, family, longer, folder=folder, resume=True)
    assert_bit_equal(resumed, training.train(adding, family, longer, initial=run))
    assert json.loads((folder / run_folder.CONFIG_FILE).read_text())["initial"] == record["initial"]
    with pytest.raises(ValueError, match="initial must be None where resume=True"):
        training.train(adding, family, longer, initial=run, folder=folder, resume=True)
    wider = seeking(size=5)
    with pytest.raises(
        TypeError, match=r"is float32\[2, 4\], and algorithm.init makes float32\[2, 5\]"
    ):
        training.train(wider, family, longer, initial=whole[1])
    with pytest.raises(TypeError, match="initial is another state: .*, and algorithm.init makes"):
        training.train(algorithm, family, longer, initial=whole[1].state.params)


def test_infinite_settings_survive_a_folder(family, tmp_path):
    """And in a record of an earlier version, which wrote them as JSON's tolerated extension."""
    told = dict(
        description={"hyper": {"anneal": np.float32("inf"), "low": -np.inf}, "at": tmp_path}
    )
    training.train(returning(), family, config(meta_updates=1), folder=tmp_path / "run", **told)
    for path in [*(tmp_path / "run").glob("*.json*"), *(tmp_path / "run").rglob("record/metadata")]:
        for line in (
            path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        ):
            json.loads(line, parse_constant=pytest.fail)
    record = json.loads((tmp_path / "run" / run_folder.CONFIG_FILE).read_text())
    assert record["hyper"] == {"anneal": "Infinity", "low": "-Infinity"}
    assert record["at"] == str(tmp_path)
    path = next((tmp_path / "run").rglob("1/record/metadata"))
    path.write_text(path.read_text().replace('"Infinity"', "Infinity"))
    training.train(
        returning(), family, config(meta_updates=2), folder=tmp_path / "run", resume=True, **told
    )


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"a": {"b": object()}}, "a.b=.* is a object, which JSON does not hold"),
        ({"a": [1.0, float("nan")]}, r"a\[1\]=nan must be a number"),
        ({"a": {1: 2}}, "a.1: the key 1 must be a string"),
        ({"a": "Infinity"}, "a='Infinity' would be read as a number"),
    ],
)
def test_what_json_cannot_hold_is_named(description, message, family, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        training.train(
            returning(), family, config(), folder=tmp_path / "run", description=description
        )
    assert not (tmp_path / "run").exists()


def test_two_runs_in_one_folder(family, tmp_path):
    """The second is refused while the first is there, and where it is done."""
    refused = []

    def second(line):
        for resume in (False, True):
            with pytest.raises(
                FileExistsError, match=f"is held by another run .process {os.getpid()} on"
            ) as error:
                training.train(
                    returning(), family, config(), folder=tmp_path / "run", resume=resume
                )
            refused.append(error)

    training.train(
        returning(), family, config(meta_updates=1), folder=tmp_path / "run", sink=second
    )
    assert len(refused) == 2
    assert sorted(x.name for x in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
    ]
    with pytest.raises(FileExistsError, match="is not empty"):
        training.train(returning(), family, config(), folder=tmp_path / "run")


def test_a_run_killed_before_its_first_checkpoint_is_begun_again(family, tmp_path):
    """Whatever it had written by then: nothing, or all that comes before the checkpoint is whole."""
    claim = claims._mine() | {"process": 2**22 + 1}
    for name in ("claimed", "writing"):
        folder = tmp_path / name
        (folder / "checkpoints" / "0.orbax-checkpoint-tmp" / "run").mkdir(parents=True)
        (folder / claims.CLAIM_FILE).write_text(json.dumps(claim))
        (folder / "config.json").write_text("{}")
        if name == "claimed":
            shutil.rmtree(folder / "checkpoints")
        with pytest.warns(UserWarning, match="was held by process 4194305 on .*, which has ended"):
            training.train(returning(), family, config(meta_updates=1), folder=folder)
        assert steps(folder) == [0, 1]
        (folder / claims.CLAIM_FILE).write_text(
            json.dumps(claim)
        )  # with a checkpoint, it is resumed
        with (
            pytest.warns(UserWarning, match="which has ended"),
            pytest.raises(FileExistsError, match="is not empty"),
        ):
            training.train(returning(), family, config(), folder=folder)
        assert steps(folder) == [0, 1]


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(family, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "save", lambda *told: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.train(returning(), family, config(), folder=tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []


class Unshowable:
    """A stream that fails in what is asked of it."""

    encoding = "utf-8"

    def __init__(self, error=None):
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.parametrize(
    "stream", [None, Unshowable(ValueError("closed")), Unshowable(BrokenPipeError())]
)
@pytest.mark.parametrize("given", [False, True])
def test_nothing_that_fails_to_be_shown_ends_a_run(stream, given, family, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    console = Console(file=stream, force_terminal=True) if given else None
    run = training.train(returning(), family, config(meta_updates=2), console=console)
    assert run.num_updates == 2
    assert sys.stdout is sys.stderr is stream


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(meta_updates=0), "meta_updates=0 must be at least 1"),
        (dict(num_tasks=0), "num_tasks=0 must be at least 1"),
        (dict(checkpoint_every=0), "checkpoint_every=0 must be at least 1"),
        (dict(seed=-1), "seed=-1 must be at least 0"),
        (dict(seed=2**32), "seed=4294967296 must be at most 4294967295"),
        (dict(report_seconds=float("inf")), "report_seconds=inf must lie between"),
        (dict(report_seconds=float("nan")), "report_seconds=nan must lie between"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        training.Config(**settings)


SHARED_RUN = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
folder, name, process, processes, port = sys.argv[1:]
if int(processes) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
from jaxmeta import tasks
from jaxmeta.meta_updates.gradients import map_tasks
from jaxmeta.runs import records, training
from jaxmeta.algorithms.maml import Config, maml
family = tasks.make("navigation", horizon=4)
algorithm = maml(family, Config(num_streams=2, hidden_sizes=(4,)))
if int(process) > 0:
    records.write = None  # only the first process writes
settings = training.Config(meta_updates=3, num_tasks=8, checkpoint_every=1, report_seconds=0.01)

def leave(name, run):
    leaves = [np.ravel(x) for x in jax.tree.leaves(run.state)]
    np.save(f"{folder}/{name}-{process}.npy", np.concatenate(leaves))

def train(**where):
    return training.train(algorithm, family, settings, description={}, **where)

if name == "alone":
    assert jax.device_count() == 1
    leave(name, train())
    for other in ("eight", "processes=[2]"):
        leave("restored-" + other, train(folder=f"{folder}/{other}", resume=True))
else:
    assert jax.device_count() == {"eight": 8, "processes=[2]": 4}[name]
    leave(name, train(folder=f"{folder}/{name}"))
    leave(name + "-resumed", train(folder=f"{folder}/{name}", resume=True))
    try:  # every process learns that the folder is not free
        train(folder=f"{folder}/{name}")
    except (FileExistsError if process == "0" else RuntimeError) as error:
        assert "is not empty" in str(error), error
    else:
        raise AssertionError
if name == "eight":
    mesh = training.device_mesh(16)
    run = training.begin(jax.random.key(0), algorithm=algorithm)
    run = jax.device_put(run, NamedSharding(mesh, PartitionSpec()))
    after = []
    for chunk in (None, 8):  # in chunks, too, every device has its share of each
        config = Config(num_streams=2, hidden_sizes=(4,), tasks_per_chunk=chunk)
        step = jax.jit(lambda run: training.advance(
            run, 1, algorithm=maml(family, config), family=family, num_tasks=16, mesh=mesh
        )).lower(run).compile()
        text = step.as_text()
        assert "all-reduce" in text
        for moves in ("all-gather", "all-to-all", "collective-permute"):
            assert moves not in text, moves
        leaves = [np.ravel(x) for x in jax.tree.leaves(step(run)[0].state)]
        after.append(np.concatenate(leaves))
    np.testing.assert_allclose(*after, rtol=1e-9, atol=1e-12)
    numbers = np.arange(16.0)  # and what belongs to a task comes back at its place
    doubled = map_tasks(lambda x: 2 * x, jax.numpy.asarray(numbers), tasks_per_chunk=8)
    np.testing.assert_array_equal(doubled, 2 * numbers)
    try:
        training.device_mesh(12)
    except ValueError as error:
        assert "num_tasks=12 must be a multiple of the 8 devices" in str(error), error
    else:
        raise AssertionError
"""


@pytest.mark.slow
def test_devices_and_processes_share_the_tasks_and_change_no_result(tmp_path):
    """Eight simulated devices, and two processes of two, against one: the same tasks and keys, results
    equal to rounding; the compiled step reduces over devices and gathers nothing; a run is written once,
    and its checkpoint is as good on one device."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]

    def start(name, devices, process=0, processes=1):
        flags = os.environ["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={devices}"
        arguments = [str(x) for x in (tmp_path, name, process, processes, port)]
        # In float64, for an optimiser's first steps make as much of a gradient of mere rounding as of any other.
        return subprocess.Popen(
            [sys.executable, "-c", FAIL_AT_ONCE + SHARED_RUN, *arguments],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"},
        )

    for name, devices, processes in (("eight", 8, 1), ("processes=[2]", 2, 2), ("alone", 1, 1)):
        started = [start(name, devices, process, processes) for process in range(processes)]
        assert exit_codes(started) == [0] * len(started)
    names = ("alone-0", "eight-0", "processes=[2]-0", "processes=[2]-1")
    alone, eight, first, second = (np.load(tmp_path / f"{name}.npy") for name in names)
    assert alone.size > 20
    np.testing.assert_allclose(eight, alone, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(first, alone, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(first, second)
    for name, whole in (("eight", eight), ("processes=[2]", first)):
        for process in range(2 if name == "processes=[2]" else 1):
            resumed = np.load(tmp_path / f"{name}-resumed-{process}.npy")
            np.testing.assert_array_equal(resumed, whole)
    for name, whole in (("eight", eight), ("processes=[2]", first)):
        np.testing.assert_array_equal(np.load(tmp_path / f"restored-{name}-0.npy"), whole)
        assert [row["update"] for row in lines(tmp_path / name)] == [1, 2, 3]
        assert steps(tmp_path / name) == [1, 2, 3]


def test_compilation_cache_folder(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(training.Path, "home", no_home)
    try:
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        training.enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == before
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "a"))
        training.enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a")
        training.enable_compilation_cache(tmp_path / "b")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "b")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_the_compilation_cache_changes_no_number(whole, family, algorithm, tmp_path):
    """A program that was compiled, one that was read from the folder, and one that never was in it."""
    hits: list[str] = []
    jax.monitoring.register_event_listener(
        lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None
    )
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
    minimum = jax.config.jax_persistent_cache_min_compile_time_secs
    digests, found = [], []
    try:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for folder, on in ((tmp_path, True), (tmp_path, True), (tmp_path / "none", False)):
            jax.config.update("jax_enable_compilation_cache", on)
            jax.config.update("jax_compilation_cache_dir", str(folder))
            compilation_cache.reset_cache()
            jax.clear_caches()
            hits.clear()
            run = training.train(algorithm, family, config(), **QUIET)
            digests.append(checkpoints.digest(run))
            found.append(len(hits))
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", minimum)
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_enable_compilation_cache", before[1])
        compilation_cache.reset_cache()
    assert found[0] == found[2] == 0
    assert found[1] > 0
    assert digests == [checkpoints.digest(whole[1])] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"folder": ""}, "folder='' names no path"),
        ({"folder": 3}, "folder"),
        ({"description": {"training": 1}}, "description has 'training'"),
        ({"description": [1]}, "description"),
        ({"resume": "yes"}, "resume='yes' must be of type bool"),
        ({"sink": "wandb"}, "sink"),
        ({"sink": sinks.tensorboard}, "sink=tensorboard makes a sink and is none: call it"),
        ({"config": {"meta_updates": 3}}, "config is dict"),
        ({"algorithm": "maml"}, "algorithm is str 'maml'"),
        ({"family": "navigation"}, "tasks.make makes one from a name"),
    ],
)
def test_arguments_of_another_kind_are_named(
    algorithm, family, given, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    told = dict(algorithm=algorithm, family=family, config=config(), **QUIET) | given
    with pytest.raises((TypeError, ValueError)) as error:
        training.train(**told)
    assert message in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("hypers", "message"),
    [
        (Hyper(), "must be a list of settings"),
        ([Hyper(), None], "hypers[1] has the structure"),
        ([Hyper(step_size="a")], "hypers[0].step_size='a' must be a number"),
    ],
)
def test_settings_of_a_population_are_numbers_of_one_kind(algorithm, family, hypers, message):
    with pytest.raises((TypeError, ValueError)) as error:
        training.train_population(algorithm, family, config(), hypers=hypers)
    assert message in str(error.value)


def test_what_a_sink_raises_costs_nothing_that_was_learned(algorithm, family, tmp_path):
    """Also what is no Exception."""

    def leaves(line):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        training.train(algorithm, family, config(), folder=tmp_path, sink=leaves, **QUIET)
    assert max(steps(tmp_path)) == 1


def test_settings_of_a_population_are_checked_one_by_one():
    family = tasks.make("navigation", horizon=3)
    algorithm = maml(family, Config(num_streams=2))
    plan = training.Config(meta_updates=1, num_tasks=2)
    for hypers, message in (
        (
            [MamlHyper(), MamlHyper(step_size=-1.0)],
            r"hypers\[1\]: step_size=-1.0 must lie between",
        ),
        ([dict(step_size=0.1)], r"hypers\[0\] is dict .* it must be algorithms.maml.Hyper"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            training.train_population(algorithm, family, plan, hypers=hypers)


# Curricula


def reporting(algorithm):
    """The algorithm with a report of each task: its return is how far to the right the goal is."""

    def step_with_results(key, state, tasks, learns):
        goals = jnp.where(learns[:, None], tasks.goal, 0.0)
        state, metrics = algorithm.step(key, state, tasks.replace(goal=goals))
        x = tasks.goal[:, 0]
        one = x[:, None, None]
        results = TaskResults(x, x, one, one, one, one, jnp.ones(one.shape, bool))
        return state, metrics, results

    return algorithm._replace(step_with_results=step_with_results)


@pytest.fixture(scope="module")
def taught(family, algorithm):
    """What trains under a curriculum, and how."""
    config = curricula.PLRConfig(capacity=6, replay=0.6, score="absolute_advantage")
    return reporting(algorithm), curricula.plr(family, config)


@pytest.fixture(scope="module")
def taught_whole(family, taught, tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    algorithm, curriculum = taught
    how = dict(folder=folder, curriculum=curriculum, **QUIET)
    return folder, training.train(algorithm, family, config(), **how)


def test_a_run_under_a_curriculum_resumes_bit_for_bit(taught, taught_whole, family, tmp_path):
    algorithm, curriculum = taught
    folder, run = taught_whole
    how = dict(folder=tmp_path, curriculum=curriculum, **QUIET)
    training.train(algorithm, family, config(meta_updates=7), **how)
    resumed = training.train(algorithm, family, config(report_seconds=9.0), resume=True, **how)
    assert_bit_equal(resumed, run)
    assert run.curriculum.time == 12
    assert max(line["curriculum/replayed"] for line in lines(folder)) > 0
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in lines(tmp_path)]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in lines(folder)]


def test_another_curriculum_does_not_resume(taught, taught_whole, family):
    algorithm, _ = taught
    folder, _ = taught_whole
    other = curricula.plr(family, curricula.PLRConfig(capacity=6, score="absolute_advantage"))
    how = dict(folder=folder, resume=True, **QUIET)
    with pytest.raises(CheckpointError, match=r"curriculum.replay is 0.5 and was 0.6"):
        training.train(algorithm, family, config(), curriculum=other, **how)
    with pytest.raises(CheckpointError, match="curriculum is None and was"):
        training.train(algorithm, family, config(), **how)


def test_a_run_under_a_curriculum_is_loaded_with_it(taught, taught_whole, family, tmp_path):
    algorithm, curriculum = taught
    _, run = taught_whole
    folder, how = tmp_path, dict(algorithm=algorithm, family=family)
    training.train(algorithm, family, config(), folder=folder, curriculum=curriculum)
    loaded = experiments.load(folder, curriculum=curriculum, **how)
    assert_bit_equal(loaded.run, run)
    with pytest.raises(CheckpointError, match="curriculum 'plr'. Pass curriculum= to load"):
        experiments.load(folder, **how)


def test_without_a_curriculum_numbers_are_those_of_the_plain_step(whole, family, algorithm):
    """And what tasks gave is not even traced."""

    def unused(*inputs):
        raise AssertionError("step_with_results is for curricula alone")

    run = training.train(algorithm._replace(step_with_results=unused), family, config())
    assert_bit_equal(run, whole[1])
    assert run.curriculum == ()


@pytest.mark.slow
def test_members_of_a_population_have_curricula_of_their_own(taught, family):
    algorithm, curriculum = taught
    how = dict(curriculum=curriculum)
    both = training.train_population(algorithm, family, config(meta_updates=6), num_seeds=2, **how)
    for seed in range(2):
        one = training.train(algorithm, family, config(meta_updates=6, seed=seed), **how)
        member = jax.tree.map(lambda x, seed=seed: x[0, seed], both)
        np.testing.assert_allclose(member.curriculum.score, one.curriculum.score, rtol=1e-5)
        np.testing.assert_allclose(member.state.params["w"], one.state.params["w"], rtol=1e-4)
    assert not np.allclose(both.curriculum.score[0, 0], both.curriculum.score[0, 1])


def test_a_curriculum_begins_anew_from_an_initial_state(taught, taught_whole, family):
    algorithm, curriculum = taught
    run = training.train(
        algorithm, family, config(meta_updates=1), initial=taught_whole[1], curriculum=curriculum
    )
    assert run.curriculum.time == 1


def test_a_curriculum_and_what_does_not_fit_it(taught, family, algorithm):
    _, curriculum = taught
    with pytest.raises(ValueError, match="no step_with_results"):
        training.train(algorithm, family, config(), curriculum=curriculum)
    with pytest.raises(TypeError, match="curriculum is"):
        training.train(algorithm, family, config(), curriculum="plr")
    with pytest.raises(ValueError, match="description has 'curriculum'"):
        training.train(algorithm, family, config(), description={"curriculum": {}})
