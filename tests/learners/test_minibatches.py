"""Minibatches are drawn within groups; chunks and devices change no number."""

import dataclasses
import os
import socket
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta.learners import minibatches
from tests.probes import FAIL_AT_ONCE, exit_codes


class Batch(NamedTuple):
    """Trials of one step, with a number each."""

    x: jax.Array
    y: jax.Array
    number: jax.Array
    counted: jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of passes over trials."""

    num_epochs: int = 3
    num_minibatches: int = 2
    minibatch_groups: int = 1
    trials_per_chunk: int | None = None


NUM_TRIALS, RATE = 16, 0.1


def batch(num_trials=NUM_TRIALS):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, num_trials, 3))
    counted = np.ones((num_trials, 1), bool)
    counted[3] = False
    return Batch(*map(jnp.asarray, (x, y, np.arange(num_trials), counted)))


def losses(params, keys, some, hyper, whole):
    """Of a curved function, so that the order of minibatches matters; reports which trials it saw."""
    error = jnp.tanh(some.x @ params["w"]) - some.y[:, 0] + hyper * params["b"]
    share = jnp.where(some.counted[:, 0], error**2, 0.0) / whole.steps.astype(error.dtype)
    none = jnp.zeros(NUM_TRIALS + 1)
    seen, drawn = none.at[some.number].add(1.0), jax.vmap(jax.random.normal)(keys)
    return jnp.sum(share), {"seen": seen, "drawn": none.at[some.number].add(drawn)}


def learned(config, replayed=None):
    """``(params, reports)`` after epochs of gradient descent."""
    params = {"w": jnp.array([0.3, -0.2, 0.1]), "b": jnp.asarray(0.5)}
    optimizer = optax.sgd(RATE)

    @jax.jit
    def learn(key, batch):
        state = params, optimizer.init(params)
        return minibatches.learn_in_epochs(
            key, state, batch, 2.0, losses=losses, optimizer=optimizer, config=config, replayed=replayed
        )  # fmt: skip

    (after, _), reports, applied = learn(jax.random.key(1), batch())
    assert jnp.all(applied)
    return after, jax.tree.map(np.asarray, reports)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_minibatch_takes_as_many_trials_from_every_group(x64, groups):
    """Each trial once in a pass, and other minibatches in every pass."""
    _, reports = learned(Settings(minibatch_groups=groups))
    seen = reports["seen"][..., :NUM_TRIALS]  # [epochs, minibatches, trials]
    np.testing.assert_array_equal(seen.sum(axis=1), np.ones((3, NUM_TRIALS)))
    of_groups = seen.reshape(3, 2, groups, -1).sum(axis=-1)
    np.testing.assert_array_equal(of_groups, np.full((3, 2, groups), NUM_TRIALS / 2 / groups))
    assert len({half.tobytes() for half in seen[:, 0]}) == 3
    drawn = reports["drawn"][..., :NUM_TRIALS]  # a key for each trial and minibatch
    assert len(set(drawn[seen > 0].tolist())) == 3 * NUM_TRIALS
    if groups > 1:  # a group's order is its own
        first = seen[:, 0].reshape(3, groups, -1)
        assert any(len({group.tobytes() for group in one}) > 1 for one in first)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("chunk", [None, 4, 8])
def test_chunks_and_devices_change_no_number(x64, monkeypatch, chunk, devices):
    """The parameters are those of gradient descent by hand, on the minibatches that were drawn."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    after, reports = learned(Settings(minibatch_groups=4, trials_per_chunk=chunk))
    data = jax.tree.map(np.asarray, batch())
    w, b = np.array([0.3, -0.2, 0.1]), 0.5
    norms = []
    for seen in reports["seen"].reshape(6, -1)[:, :NUM_TRIALS]:
        rows = (seen > 0) & data.counted[:, 0]
        x, y = data.x[rows], data.y[rows, 0]
        error = np.tanh(x @ w) - y + 2.0 * b
        dw = 2 * (error * (1 - np.tanh(x @ w) ** 2)) @ x / rows.sum()
        db = 2 * np.sum(error) * 2.0 / rows.sum()
        w, b = w - RATE * dw, b - RATE * db
        norms.append(np.sqrt(dw @ dw + db**2))
    np.testing.assert_allclose(after["w"], w, rtol=1e-12)
    np.testing.assert_allclose(after["b"], b, rtol=1e-12)
    np.testing.assert_allclose(reports["meta_grad_norm"].reshape(-1), norms, rtol=1e-12)
    _, whole = learned(Settings(minibatch_groups=4))
    np.testing.assert_allclose(
        reports["drawn"], whole["drawn"], rtol=1e-12
    )  # a trial keeps its key


@pytest.mark.parametrize("chunk", [2, 4])
def test_replayed_trials_come_in_chunks_too(x64, monkeypatch, chunk):
    def replayed(key):
        number = jnp.full(4, NUM_TRIALS)
        x, y = jax.random.normal(key, (2, 4, 3), float)
        return Batch(x, y, number, jnp.ones((4, 1), bool))

    whole, usual = learned(Settings(minibatch_groups=2), replayed)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    after, reports = learned(Settings(minibatch_groups=2, trials_per_chunk=chunk), replayed)
    assert np.all(reports["seen"][..., NUM_TRIALS] == 4)
    np.testing.assert_allclose(reports["drawn"], usual["drawn"], rtol=1e-12)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def test_what_maps_over_trials_in_chunks_is_what_maps_over_all():
    x = jnp.arange(12.0).reshape(6, 2)
    for chunk in (None, 2, 4, 6):
        found = minibatches.in_chunks(jnp.sum, x, trials_per_chunk=chunk)
        np.testing.assert_array_equal(found, x.sum(axis=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(minibatch_groups=0), "minibatch_groups=0 must be at least 1"),
        (dict(trials_per_chunk=0), "trials_per_chunk=0 must be at least 1"),
        (
            dict(minibatch_groups=4, trials_per_chunk=6),
            "trials_per_chunk=6 must be a multiple of minibatch_groups=4",
        ),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        minibatches.check_settings(Settings(**settings))


def test_numbers_that_do_not_divide_are_named():
    said = "num_tasks × num_streams = 24"
    minibatches.check_trials(24, Settings(minibatch_groups=4, trials_per_chunk=4), said)
    with pytest.raises(
        ValueError, match="num_minibatches=2 × minibatch_groups=8 = 16 must divide .* = 24"
    ):
        minibatches.check_trials(24, Settings(minibatch_groups=8), said)
    with pytest.raises(
        ValueError,
        match="trials_per_chunk=8 must divide the trials of a minibatch, 24 / num_minibatches=2 = 12",
    ):
        minibatches.check_trials(24, Settings(trials_per_chunk=8), said)
    with pytest.raises(ValueError, match="replayed_trials=3 = 15"):
        minibatches.check_trials(24, Settings(trials_per_chunk=4), said, num_replayed=3)


def test_a_warning_says_where_devices_do_not_share_learning():
    minibatches.check_shared(Settings(minibatch_groups=8), 4)
    minibatches.check_shared(Settings(), 1)
    with pytest.warns(UserWarning, match="minibatch_groups=2 is no multiple of the 4 devices"):
        minibatches.check_shared(Settings(minibatch_groups=2), 4)


SHARED_LEARNING = """
import re, sys, jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
folder, process, processes, port = sys.argv[1:]
if int(processes) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
from jaxmeta import tasks
from jaxmeta.algorithms import recurrent_q, rl2, varibad
from jaxmeta.runs import processes as host, training

NUM_TASKS, NUM_MINIBATCHES = 32, 2
bandit = tasks.make("bernoulli_bandit", num_arms=3, num_pulls=4)
cuts = dict(minibatch_groups=8, num_minibatches=NUM_MINIBATCHES)
algorithms = {
    "rl2": rl2.rl2(bandit, rl2.Config(memory_size=4, trials_per_chunk=8, **cuts)),
    "varibad": varibad.varibad(bandit, varibad.Config(memory_size=4, hidden_sizes=(4,), **cuts)),
    "recurrent_q": recurrent_q.recurrent_q(bandit, recurrent_q.Config(memory_size=4, **cuts)),
}
COLLECTIVE = r" = (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\\("

def check_messages(text, params):
    sizes = []
    for shapes, kind in re.findall(COLLECTIVE, text):
        assert kind == "all-reduce", (kind, shapes)
        sizes.append(sum(int(np.prod([int(n) for n in dims.split(",") if n] or [1]))
                         for dims in re.findall(r"[a-z]+[0-9]*\\[([0-9,]*)\\]", shapes)))
    large = [size for size in sizes if size > 64]
    number = sum(x.size for x in jax.tree.leaves(params))
    # One sum of all gradients and reports in a minibatch, and else only single numbers.
    assert len(large) == 1 and number <= large[0] <= number + 16, (number, sizes)

if int(processes) > 1:
    cases = [("rl2", jax.device_count())]
else:
    cases = [("rl2", n) for n in (1, 2, 4, 8)] + [(x, n) for x in ("varibad", "recurrent_q") for n in (1, 8)]
for name, devices in cases:
    algorithm = algorithms[name]
    jax.device_count = lambda devices=devices: devices  # of eight, the first so many
    mesh = jax.make_mesh((devices,), ("tasks",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    run = jax.jit(lambda: training.begin(jax.random.key(0), algorithm=algorithm))()
    run = host.spread(run, NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(lambda run: training.advance(
        run, 2, algorithm=algorithm, family=bandit, num_tasks=NUM_TASKS, mesh=mesh, max_updates=2
    )).lower(run).compile()
    if devices > 1:
        check_messages(step.as_text(), run.state.meta.params)
    leaves = [np.ravel(x) for x in jax.tree.leaves(step(run)[0].state)]
    np.save(f"{folder}/{name},{devices},{process} of {processes}.npy", np.concatenate(leaves))
"""


@pytest.mark.slow
def test_devices_share_learning_and_change_no_result(tmp_path):
    """One, two, four and eight simulated devices, and two processes of two: the same state after two meta-updates.
    In the compiled program no trial crosses devices, and a minibatch's gradients cross them in one message."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]

    def start(devices, process, processes):
        flags = os.environ["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={devices}"
        arguments = [str(x) for x in (tmp_path, process, processes, port)]
        return subprocess.Popen(
            [sys.executable, "-c", FAIL_AT_ONCE + SHARED_LEARNING, *arguments],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"},
        )

    assert exit_codes([start(8, 0, 1)], seconds=600) == [0]
    assert exit_codes([start(2, process, 2) for process in range(2)], seconds=600) == [0, 0]
    paths = list(tmp_path.glob("*.npy"))
    assert len(paths) == 4 + 2 * 2 + 2
    for path in paths:
        alone = np.load(tmp_path / f"{path.name.partition(',')[0]},1,0 of 1.npy")
        np.testing.assert_allclose(np.load(path), alone, rtol=1e-9, atol=1e-12, err_msg=path.name)
