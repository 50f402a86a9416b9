import functools
import json
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxmeta import checks, evaluation, references, tasks
from jaxmeta.algorithms import recurrent_q as module
from jaxmeta.algorithms.recurrent_q import Config, Hyper, recurrent_q
from jaxmeta.learners.recurrent import TrialMemory
from jaxmeta.networks.action_values import ActionValues, recurrent_action_values
from jaxmeta.networks.actor_critic import joined
from jaxmeta.networks.recurrent import gru, lstm
from jaxmeta.runs import training
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import TimeStep, Trajectory
from tests.probes import (
    FAIL_AT_ONCE,
    Counter,
    CounterParams,
    exit_codes,
    learned_in_units,
    thorough,
)

pytest.importorskip("flashbax")
HORIZON = 4


@pytest.fixture(scope="module")
def family():
    """Episodes that terminate before their time limit, with a reward that names the task."""

    def sample(key):
        return CounterParams(number=jax.random.normal(key), terminate_at=2, truncate_at=HORIZON)

    return TaskFamily("counter", Counter(), HORIZON, sample, sample, sample)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(memory="gur"), "memory='gur' is unknown: did you mean 'gru'"),
        (dict(memory="counts"), "memory='counts' is unknown"),
        (dict(memory_size=0), "memory_size=0 must be at least 1"),
        (dict(encoder_sizes=(8, 0)), "encoder_sizes=0 must be at least 1"),
        (dict(num_episodes=0), "num_episodes=0 must be at least 1"),
        (dict(trace="watkin"), "trace='watkin' is unknown: did you mean 'watkins'"),
        (dict(replay_trials=-1), "replay_trials=-1 must be at least 0"),
        (dict(replay_trials=8, replayed_trials=0), "replayed_trials=0 must be at least 1"),
        (dict(replayed_trials=8), "replayed_trials=8 has no effect with replay_trials=0"),
        (dict(replay_trials=8), "replayed_trials=32 must be at most replay_trials=8"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(trace_lambda=1.5), "trace_lambda=1.5 must lie between 0 and 1"),
        (dict(first_epsilon=2.0), "first_epsilon=2.0 must lie between 0.0 and 1.0"),
        (dict(last_epsilon=-0.1), "last_epsilon=-0.1 must lie between"),
        (dict(epsilon=1.1), "epsilon=1.1 must lie between"),
        (dict(first_temperature=-1.0), "first_temperature=-1.0 must lie between"),
        (dict(diversity=1.1), "diversity=1.1 must lie between 0.0 and 1.0"),
        (dict(epsilon_updates=0.0), "epsilon_updates=0.0 must lie between"),
        (dict(anneal_updates=0), "anneal_updates=0 must lie between 1"),
    ],
)
def test_bad_hyper_parameters_are_named(family, values, message):
    with pytest.raises(ValueError, match=message):
        recurrent_q(family, hyper=Hyper(**values))


def test_what_does_not_fit_is_named(family, monkeypatch):
    with pytest.raises(ValueError, match="recurrent_q needs a Discrete space"):
        recurrent_q(tasks.make("navigation"))
    network = recurrent_action_values(family, gru(4))
    with pytest.raises(ValueError, match="memory= has no effect with the argument network="):
        recurrent_q(family, network=network, memory=gru(4))
    with pytest.raises(ValueError, match="memory_size=8 has no effect with the argument network="):
        recurrent_q(family, Config(memory_size=8), network=network)
    with pytest.raises(ValueError, match="memory='lstm' has no effect with the argument memory="):
        recurrent_q(family, Config(memory="lstm"), memory=gru(4))
    with pytest.raises(ValueError, match="network does not fit family 'bernoulli_bandit'"):
        recurrent_q(tasks.make("bernoulli_bandit"), network=network)
    algorithm = recurrent_q(family, Config(replay_trials=2, replayed_trials=1, num_minibatches=1))
    state, drawn = jax.eval_shape(lambda: begun_with(algorithm, family, 4))
    with pytest.raises(ValueError, match="replay_trials=2 must be at least 4"):
        jax.eval_shape(algorithm.step, jax.random.key(2), state, drawn)
    monkeypatch.setattr("jaxmeta.learners.buffers.device_memory", lambda: 10**6)
    with pytest.raises(ValueError, match="replay_trials=100000 takes .* GB"):
        recurrent_q(family, Config(replay_trials=100_000))


def test_the_bytes_of_a_buffer_are_known_before_it_is_made():
    """GridNavi: 25 cells, two actions, two rewards and two flags a step."""
    family = tasks.make("gridnavi", horizon=15)
    config = Config(num_episodes=4, replay_trials=100)
    predicted = module.replay_bytes(family, config)
    assert predicted == 100 * 60 * (25 * 4 + 2 * 4 + 2 * 4 + 2)
    state = jax.eval_shape(recurrent_q(family, config).init, jax.random.key(0))
    taken = jax.tree.leaves(state.replay.experience)
    assert predicted == sum(x.size * x.dtype.itemsize for x in taken)
    assert module.replay_bytes(family, Config()) == 0


def begun_with(algorithm, family, num_tasks):
    """A state and tasks, compiled as one."""

    @jax.jit
    def begun():
        drawn = tasks.sample_tasks(jax.random.key(1), family, num_tasks, split="train")
        return algorithm.init(jax.random.key(0)), drawn

    return begun()


def flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])


def test_objects_are_what_names_stand_for(family):
    named = recurrent_q(family, Config(memory="lstm", memory_size=5, hidden_sizes=(6,)))
    memory = recurrent_q(family, Config(hidden_sizes=(6,)), memory=lstm(5))
    network = recurrent_action_values(family, lstm(5), hidden_sizes=(6,))
    given = recurrent_q(family, network=network)
    states = [jax.jit(x.init)(jax.random.key(0)) for x in (named, memory, given)]
    chex.assert_trees_all_equal(*states)


# Action values that are linear in all that is shown.
LINEAR = ActionValues(
    init=lambda key: jax.random.normal(key, (8, 3)),
    initial=lambda: (),
    step=lambda params, state, inputs: (joined(inputs) @ params, state),
    unroll=lambda params, state, inputs: joined(inputs) @ params,
)


def recorded_trials(num_trials):
    """Trials of three steps, an episode each, ``[B, 3]``."""
    rng = np.random.default_rng(0)
    shape = num_trials, 3
    last = np.broadcast_to(np.arange(3) == 2, shape)
    action = rng.integers(0, 3, shape)
    reward, obs = rng.normal(size=shape), rng.normal(size=(*shape, 2))
    before, earned = (np.roll(x, 1, axis=1) for x in (action, reward))
    data = Trajectory(
        TimeStep(obs, before, earned, np.roll(last, 1, axis=1)),
        *(action, np.zeros(shape), reward, np.ones(shape), last, np.roll(obs, -1, axis=1)),
        TrialMemory((), np.zeros(num_trials, np.int32)),
    )
    return jax.tree.map(jnp.asarray, data)


def on_recorded(monkeypatch, make):
    """The algorithm that ``make()`` makes, given trials ``[B, T]`` in the place of tasks to act in."""
    whole = module.trial_learner

    def without_acting(*arguments):
        return whole(*arguments)._replace(trials=lambda key, meta, data, **axes: data)

    monkeypatch.setattr(module, "trial_learner", without_acting)
    monkeypatch.setattr(checks, "batch", lambda *arguments: None)  # they are no tasks
    return make()


@pytest.mark.parametrize("trace", ["peng", "watkins"])
def test_two_updates_on_three_steps_are_those_written_out_by_hand(x64, monkeypatch, family, trace):
    """In numpy: scales, λ-returns of the present network in each pass, the trial's end, the cut, the annealed step."""
    num_trials, gamma, lambda_ = 4, 0.9, 0.8
    hyper = Hyper(
        discount=gamma, trace_lambda=lambda_, learning_rate=0.3, anneal_updates=4.0,
        max_grad_norm=1e9,
    )  # fmt: skip
    config = Config(num_epochs=2, num_minibatches=1, trace=trace)

    def make():
        return recurrent_q(family, config, hyper, network=LINEAR, optimizer=optax.sgd)

    data = recorded_trials(num_trials)
    algorithm = on_recorded(monkeypatch, make)
    state = algorithm.init(jax.random.key(0))
    mean, spread, unit = 0.7, 2.0, 0.5
    scales = dict(value_scale=jnp.array([mean, spread]), reward_scale=jnp.asarray(unit))
    state = state._replace(
        meta=state.meta._replace(**scales), num_updates=jnp.asarray(1, jnp.int32)
    )
    after, metrics = jax.jit(algorithm.step)(jax.random.key(1), state, data)

    data = jax.tree.map(np.asarray, data)
    x = np.zeros((num_trials, 3, 8))
    x[..., :2] = data.timestep.obs
    x[:, 1:, 2:5] = np.eye(3)[data.timestep.action[:, 1:]]
    x[:, 1:, 5] = data.timestep.reward[:, 1:] / unit
    x[..., 6] = data.timestep.first
    x[..., 7] = np.arange(3) / HORIZON
    w = np.asarray(state.meta.params)

    def returns(w):
        q = mean + spread * (x @ w)
        best, greedy = q.max(-1), q.argmax(-1) == data.action
        goes_on = lambda_ * (greedy if trace == "watkins" else np.ones_like(best))
        g2 = data.reward[:, 2]
        g1 = data.reward[:, 1] + gamma * ((1 - goes_on[:, 2]) * best[:, 2] + goes_on[:, 2] * g2)
        g0 = data.reward[:, 0] + gamma * ((1 - goes_on[:, 1]) * best[:, 1] + goes_on[:, 1] * g1)
        return np.stack([g0, g1, g2], axis=1), greedy

    first, greedy = returns(w)
    assert 0 < greedy[:, 1:].sum() < greedy[:, 1:].size
    mean, spread = mean + 0.1 * (first.mean() - mean), spread + 0.1 * (first.std() - spread)
    losses, one_hot = [], np.eye(3)[data.action]
    for _ in range(2):
        target = (returns(w)[0] - mean) / spread
        error = np.einsum("bta,bta->bt", x @ w, one_hot) - target
        losses.append(0.5 * (error**2).mean())
        gradient = np.einsum("bti,bta,bt->ia", x, one_hot, error) / error.size
        w = w - 0.3 * (1 - 1 / 4) * gradient
    np.testing.assert_allclose(after.meta.value_scale, [mean, spread], rtol=1e-10)
    unit += 0.1 * (np.abs(data.reward).max() - unit)
    np.testing.assert_allclose(after.meta.reward_scale, unit, rtol=1e-10)
    np.testing.assert_allclose(after.meta.params, w, rtol=1e-9)
    np.testing.assert_allclose(metrics["value_loss"], np.mean(losses), rtol=1e-9)


SETTINGS = dict(memory_size=4, hidden_sizes=(4,), num_epochs=2, num_minibatches=1)
REPLAY = dict(replay_trials=6, replayed_trials=3)


def test_replaying_a_trial_is_learning_from_it_live(x64, family):
    """The buffer holds the one new trial alone: the mean over it and its copy is the mean over it."""
    states = []
    for replay in ({}, dict(replay_trials=1, replayed_trials=1)):
        algorithm = recurrent_q(family, Config(num_episodes=2, **SETTINGS, **replay))
        state, drawn = begun_with(algorithm, family, 1)
        step = jax.jit(algorithm.step)
        for i in range(3):
            state, _ = step(jax.random.key(i), state, drawn)
        states.append(state._replace(replay=()))
    live, replayed = map(flat, states)
    np.testing.assert_allclose(replayed, live, rtol=1e-9, atol=1e-12)


def test_a_minibatch_learns_from_old_trials_too(family):
    """Other trials in the buffer, another step."""
    algorithm = recurrent_q(family, Config(num_episodes=2, **SETTINGS, **REPLAY))
    step = jax.jit(algorithm.step)
    state, drawn = begun_with(algorithm, family, 2)
    state, _ = step(jax.random.key(0), state, drawn)
    data, counted = state.replay.experience
    changed = state.replay.replace(experience=(data._replace(reward=data.reward + 1.0), counted))
    after, metrics = step(jax.random.key(1), state, drawn)
    others, _ = step(jax.random.key(1), state._replace(replay=changed), drawn)
    assert metrics["replay_trials"] == 4
    assert np.max(np.abs(flat(after.meta.params) - flat(others.meta.params))) > 1e-5


def test_training_acts_by_its_own_epsilon_and_evaluation_by_the_best_action(family):
    hyper = Hyper(
        first_epsilon=0.9, last_epsilon=0.1, epsilon_updates=4.0, anneal_updates=2.0,
        first_temperature=1.0, last_temperature=0.2,
    )  # fmt: skip
    learned = functools.partial(module.scheduled, jax.tree.map(jnp.asarray, hyper))
    found = [learned(jnp.asarray(i, jnp.int32)) for i in range(6)]
    np.testing.assert_allclose([x.epsilon for x in found], [0.9, 0.7, 0.5, 0.3, 0.1, 0.1])
    np.testing.assert_allclose(
        [x.temperature for x in found], [1.0, 0.8, 0.6, 0.4, 0.2, 0.2], rtol=1e-6
    )
    np.testing.assert_allclose([x.learning_rate for x in found], [1e-3, 5e-4, 0, 0, 0, 0])
    algorithm = recurrent_q(family, Config(num_episodes=2, **SETTINGS), hyper)
    state, drawn = begun_with(algorithm, family, 4)
    assert jax.jit(algorithm.step)(jax.random.key(2), state, drawn)[1]["epsilon"] == jnp.float32(
        0.9
    )
    learner, task = algorithm.learner, jax.tree.map(lambda x: x[0], drawn)
    obs, _ = family.env.reset(jax.random.key(0), task)
    timestep = TimeStep(obs, jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.ones((), bool))
    for epsilon, every in ((0.0, 1), (1.0, 3)):
        meta = state.meta._replace(hyper=state.meta.hyper._replace(epsilon=jnp.asarray(epsilon)))
        act = jax.jit(
            jax.vmap(
                lambda key, meta=meta: learner.act(key, meta, (), learner.memory(meta), timestep)
            )
        )
        action, log_prob, _ = act(jax.random.split(jax.random.key(1), 64))
        assert len(set(action.tolist())) == every
        np.testing.assert_allclose(log_prob, np.log(1 / every), rtol=1e-6)


def test_trials_of_training_are_acted_by_training_s_epsilon(family):
    """The first actions of sixteen trials in one task: all alike at ε = 0, and not at ε = 1."""
    algorithm = recurrent_q(family, Config(**SETTINGS, replay_trials=16, replayed_trials=1))
    _, drawn = begun_with(algorithm, family, 16)
    same = jax.tree.map(lambda x: jnp.repeat(x[:1], 16, axis=0), drawn)
    init, step = jax.jit(algorithm.init), jax.jit(algorithm.step)
    for epsilon, distinct in ((0.0, 1), (1.0, 3)):
        hyper = Hyper(first_epsilon=epsilon, last_epsilon=epsilon, epsilon=1.0 - epsilon)
        state = init(jax.random.key(0), jax.tree.map(jnp.asarray, hyper))
        state, _ = step(jax.random.key(2), state, same)
        data, _ = state.replay.experience
        assert len(set(np.asarray(data.action)[0, :, 0].tolist())) == distinct


def test_diverse_tasks_explore_each_by_an_epsilon_and_a_temperature_of_its_own(family):
    """Trial i is the one that a run without diversity acts at task i's ε and temperature."""
    algorithm = recurrent_q(family, Config(**SETTINGS, replay_trials=4, replayed_trials=1))
    _, drawn = begun_with(algorithm, family, 4)
    init, step = jax.jit(algorithm.init), jax.jit(algorithm.step)

    def actions(epsilon, temperature, diversity):
        hyper = Hyper(
            first_epsilon=epsilon, first_temperature=temperature, diversity=diversity
        )  # fmt: skip
        state = init(jax.random.key(0), jax.tree.map(lambda x: jnp.asarray(x, float), hyper))
        # Larger outputs, at which the temperature matters.
        params = jax.tree.map(lambda x: 30.0 * x, state.meta.params)
        state = state._replace(meta=state.meta._replace(params=params))
        data, _ = step(jax.random.key(2), state, drawn)[0].replay.experience
        return np.asarray(data.action)[0]

    diverse, alike = actions(0.5, 0.4, 1.0), actions(0.5, 0.4, 0.0)
    assert np.any(diverse != alike)
    for i, factor in enumerate([0.25, 0.75, 1.25, 1.75]):
        np.testing.assert_array_equal(diverse[i], actions(0.5 * factor, 0.4 * factor, 0.0)[i])


PROTOCOL = {
    "on-policy": {},
    "with replay": REPLAY,
    "linear, two streams": dict(memory="linear", num_streams=2, trace="watkins"),
    "transformer": dict(memory="transformer", memory_size=8, **REPLAY),
    "no memory, by episode": dict(memory="none", remembers="episode"),
}


@pytest.mark.parametrize("variant", thorough(PROTOCOL, ("on-policy", "with replay")))
def test_protocol(family, variant):
    """One compilation; a state that keeps shapes, types and weak types; metrics under their names; a broken
    task is left out, also of the buffer; with every task broken nothing changes."""
    config = Config(num_episodes=2, **SETTINGS | PROTOCOL[variant])
    algorithm = recurrent_q(family, config)
    state, drawn = begun_with(algorithm, family, 4)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(algorithm.step, n=1))
    after, metrics = step(jax.random.key(2), state, drawn)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type)
    names = {"return/before", "return/after", "return/trial", "value_loss", "epsilon"}
    names |= {"meta_grad_norm", "skipped_tasks", "skipped_updates", "env_steps"}
    names |= {"replay_trials"} if config.replay_trials else set()
    assert set(metrics) == names
    assert all(x.shape == () for x in metrics.values())
    assert metrics["env_steps"] == 4 * config.num_streams * 2 * HORIZON
    assert metrics["skipped_tasks"] == metrics["skipped_updates"] == 0
    assert after.num_updates == 1
    assert np.any(flat(after.meta.params) != flat(state.meta.params))

    broken = drawn.replace(number=np.array(drawn.number))
    broken.number[1] = np.nan
    partly, metrics = step(jax.random.key(3), after, broken)
    assert metrics["skipped_tasks"] == config.num_streams
    assert metrics["skipped_updates"] == 0
    assert np.all(np.isfinite(flat(partly.meta.params)))
    if config.replay_trials:
        data, counted = partly.replay.experience
        assert metrics["replay_trials"] == 6
        assert np.all(np.any(counted, axis=-1))
        assert np.all(np.isfinite(data.reward))
    hopeless = drawn.replace(number=np.full_like(drawn.number, np.nan))
    same, metrics = step(jax.random.key(2), partly, hopeless)
    assert metrics["skipped_tasks"] == 4 * config.num_streams
    assert metrics["skipped_updates"] == 1
    chex.assert_trees_all_equal(same, partly)


@pytest.mark.slow
@pytest.mark.parametrize("replay", [0, 1])
def test_the_unit_of_rewards_changes_nothing(x64, replay):
    """Three meta-updates: the same parameters, to the bit where the unit is a power of two."""
    config = Config(num_episodes=2, **SETTINGS | (REPLAY if replay else {}))
    plain = tasks.make("tabular", num_states=3, num_actions=2, horizon=3)

    learned = learned_in_units(lambda family: recurrent_q(family, config), plain, 4)

    state, reports = learned(1.0)
    usual = state.meta
    assert jnp.all(reports["skipped_updates"] == 0)
    assert usual.reward_scale > 0
    for unit, tolerance in ((1024.0, 0.0), (1e-3, 1e-7)):
        meta = learned(unit)[0].meta
        np.testing.assert_allclose(meta.reward_scale / unit, usual.reward_scale, rtol=1e-7)
        np.testing.assert_allclose(
            flat(meta.params), flat(usual.params), rtol=tolerance, atol=1e-3 * tolerance
        )


def test_a_run_with_a_buffer_resumes_bit_for_bit(family, tmp_path):
    """Five meta-updates are two, a checkpoint and three: parameters, optimiser, buffer and metrics."""
    algorithm = recurrent_q(family, Config(num_episodes=2, **SETTINGS | REPLAY))
    quiet = dict(console=Console(quiet=True))

    def config(meta_updates):
        return training.Config(meta_updates=meta_updates, num_tasks=2, checkpoint_every=2)

    whole = training.train(algorithm, family, config(5), folder=tmp_path / "whole", **quiet)
    folder = tmp_path / "parts"
    training.train(algorithm, family, config(2), folder=folder, **quiet)
    resumed = training.train(algorithm, family, config(5), folder=folder, resume=True, **quiet)
    assert resumed.state.replay.is_full
    keys = [jax.random.key_data(run.key) for run in (resumed, whole)]
    chex.assert_trees_all_equal(*keys)
    chex.assert_trees_all_equal(resumed.state, whole.state)

    def lines(folder):
        text = (tmp_path / folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{k: x for k, x in json.loads(line).items() if k != "seconds"} for line in text]

    assert lines("parts") == lines("whole")


SHARED_RUN = """
import sys, jax, numpy as np
from jaxmeta import tasks
from jaxmeta.algorithms.recurrent_q import Config, recurrent_q
from jaxmeta.runs import training
path, devices = sys.argv[1:]
assert jax.device_count() == int(devices)
family = tasks.make("gridnavi", horizon=4)
config = Config(num_episodes=2, memory_size=4, num_minibatches=2, replay_trials=12, replayed_trials=4)
run = training.train(recurrent_q(family, config), family, training.Config(meta_updates=3, num_tasks=8))
np.save(path, np.concatenate([np.ravel(x) for x in jax.tree.leaves(run.state)]))
"""


@pytest.mark.slow
def test_devices_share_the_acting_and_change_no_result(tmp_path):
    """Two simulated devices against one, with a buffer: the same state, to rounding."""
    states = []
    for devices in (1, 2):
        flags = os.environ["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={devices}"
        env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
        path = tmp_path / f"{devices}.npy"
        arguments = [sys.executable, "-c", FAIL_AT_ONCE + SHARED_RUN, str(path), str(devices)]
        assert exit_codes([subprocess.Popen(arguments, env=env)]) == [0]
        states.append(np.load(path))
    np.testing.assert_allclose(states[1], states[0], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
@pytest.mark.parametrize("replay", [0, 1])
def test_it_learns_to_explore(replay):
    """Five arms, ten pulls: 0.93 of what the Bayes-optimal agent earns (6.66); Thompson sampling earns 5.84."""
    family = tasks.make("bernoulli_bandit", num_arms=5, num_pulls=10)
    updates = 200 if replay else 300
    swept = dict(epsilon_updates=50) if replay else dict(epsilon_updates=100, trace_lambda=0.9)
    hyper = Hyper(discount=1.0, learning_rate=3e-3, anneal_updates=updates, **swept)
    more = dict(replay_trials=4096, replayed_trials=128) if replay else {}
    algorithm = recurrent_q(family, Config(memory_size=32, **more), hyper)
    run = training.train(algorithm, family, training.Config(meta_updates=updates, num_tasks=512))
    held_out = tasks.sample_tasks(jax.random.key(1), family, 20_000, split="test")
    how = dict(learner=algorithm.learner, env=family.env, num_steps=10)
    earned = jax.jit(
        lambda key, meta: jnp.mean(
            jnp.sum(evaluation.trials(key, meta, held_out, **how).reward, axis=1)
        )
    )(jax.random.key(2), run.state.meta)
    best = references.bayes_optimal_bandit(num_arms=5, num_pulls=10)
    assert earned > 0.93 * best, float(earned)
