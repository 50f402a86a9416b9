import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxmeta import checks, evaluation, tasks
from jaxmeta.algorithms import recurrent_sac as module
from jaxmeta.algorithms.recurrent_sac import Config, Hyper, recurrent_sac
from jaxmeta.learners.recurrent import TrialMemory
from jaxmeta.networks.actor_critic import joined
from jaxmeta.networks.distributions import TanhGaussian
from jaxmeta.networks.recurrent import gru, lstm
from jaxmeta.networks.soft_actor_critic import (
    RecurrentSoftActorCritic,
    recurrent_soft_actor_critic,
)
from jaxmeta.runs import training
from jaxmeta.types import TimeStep, Trajectory
from tests.probes import learned_in_units, thorough

pytest.importorskip("flashbax")
HORIZON = 3
FAMILY = tasks.make("half_circle", horizon=HORIZON)
SETTINGS = dict(memory_size=4, hidden_sizes=(4,), gradient_steps=2)
REPLAY = dict(replay_trials=6, replayed_trials=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(memory="gur"), "memory='gur' is unknown: did you mean 'gru'"),
        (dict(memory_size=0), "memory_size=0 must be at least 1"),
        (dict(encoder_sizes=(8, 0)), "encoder_sizes=0 must be at least 1"),
        (dict(num_episodes=0), "num_episodes=0 must be at least 1"),
        (dict(gradient_steps=0), "gradient_steps=0 must be at least 1"),
        (dict(replay_trials=0), "replay_trials=0 must be at least 1"),
        (dict(replay_trials=8), "replayed_trials=16 must be at most replay_trials=8"),
        (dict(acts="mod"), "acts='mod' is unknown: did you mean 'mode'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(discount=1.5), "discount=1.5 must lie between 0 and 1"),
        (dict(target_rate=2.0), "target_rate=2.0 must lie between 0.0 and 1.0"),
        (dict(first_temperature=0.0), "first_temperature=0.0 must lie between"),
        (dict(target_entropy=2.0), "target_entropy=2.0 must lie between"),
        (dict(cloning_cost=0.2), "cloning_cost=0.2 has no effect with filtered_cloning=False"),
    ],
)
def test_bad_hyper_parameters_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        recurrent_sac(FAMILY, hyper=Hyper(**values))


def test_what_does_not_fit_is_named(monkeypatch):
    with pytest.raises(ValueError, match="recurrent_sac needs a Box of floats: recurrent_q takes"):
        recurrent_sac(tasks.make("tabular"))
    network = recurrent_soft_actor_critic(FAMILY, gru(4))
    with pytest.raises(ValueError, match="memory= has no effect with the argument network="):
        recurrent_sac(FAMILY, network=network, memory=gru(4))
    with pytest.raises(ValueError, match="memory_size=8 has no effect with the argument network="):
        recurrent_sac(FAMILY, Config(memory_size=8), network=network)
    with pytest.raises(ValueError, match="memory='lstm' has no effect with the argument memory="):
        recurrent_sac(FAMILY, Config(memory="lstm"), memory=gru(4))
    with pytest.raises(ValueError, match="network does not fit family 'pendulum'"):
        recurrent_sac(tasks.make("pendulum"), network=network)
    algorithm = recurrent_sac(FAMILY, Config(replay_trials=2, replayed_trials=1))
    state, drawn = jax.eval_shape(lambda: begun_with(algorithm, 4))
    with pytest.raises(ValueError, match="replay_trials=2 must be at least 4"):
        jax.eval_shape(algorithm.step, jax.random.key(2), state, drawn)
    monkeypatch.setattr("jaxmeta.learners.buffers.device_memory", lambda: 10**5)
    with pytest.raises(ValueError, match="replay_trials=100000 takes .* GB"):
        recurrent_sac(FAMILY, Config(replay_trials=100_000))


def test_the_bytes_of_a_buffer_are_known_before_it_is_made():
    """Position, two actions of two numbers, two rewards and two flags a step."""
    predicted = module.replay_bytes(FAMILY, Config(num_episodes=4, replay_trials=100))
    assert predicted == 100 * 12 * (2 * 4 + 4 * 4 + 2 * 4 + 2)


def begun_with(algorithm, num_tasks):
    """A state and tasks, compiled as one."""

    @jax.jit
    def begun():
        drawn = tasks.sample_tasks(jax.random.key(1), FAMILY, num_tasks, split="train")
        return algorithm.init(jax.random.key(0)), drawn

    return begun()


def flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])


def test_objects_are_what_names_stand_for():
    named = recurrent_sac(FAMILY, Config(memory="lstm", memory_size=5, hidden_sizes=(6,)))
    memory = recurrent_sac(FAMILY, Config(hidden_sizes=(6,)), memory=lstm(5))
    network = recurrent_soft_actor_critic(FAMILY, lstm(5), hidden_sizes=(6,))
    given = recurrent_sac(FAMILY, network=network)
    states = [jax.jit(x.init)(jax.random.key(0)) for x in (named, memory, given)]
    chex.assert_trees_all_equal(*states)


def tanh_gaussian(mean):
    shape = mean.shape
    full = functools.partial(jnp.full, shape)
    return TanhGaussian(mean, full(-0.7), full(0.0), full(0.1))


# A policy and values that are linear in all that is shown; values have a product of features and actions, and weigh the features.
LINEAR = RecurrentSoftActorCritic(
    init=lambda key: {
        "actor": jax.random.normal(key, (7, 2)),
        "critic": {
            "memory": jax.random.normal(jax.random.fold_in(key, 2), (7,)),
            "head": jax.random.normal(jax.random.fold_in(key, 1), (2, 7, 3)),
        },
    },
    initial=lambda: (),
    step=lambda params, state, inputs: (tanh_gaussian(joined(inputs) @ params["actor"]), state),
    policies=lambda params, inputs: tanh_gaussian(joined(inputs) @ params),
    features=lambda params, inputs: joined(inputs) * params["memory"][None],
    values=lambda params, x, action: jnp.einsum(
        "ti,kij,tj->kt", x, params["head"], jnp.append(action, jnp.ones_like(action[:, :1]), axis=1)
    ),
)


def recorded_trials(num_trials):
    """Trials of three steps, ``[B, 3]``, whose second step ends an episode by termination."""
    rng = np.random.default_rng(0)
    shape = num_trials, 3
    last = np.broadcast_to(np.arange(3) >= 1, shape)
    action = rng.uniform(-0.1, 0.1, (*shape, 2))
    reward, obs = rng.normal(size=shape), rng.normal(size=(*shape, 2))
    before, earned = np.roll(action, 1, axis=1), np.roll(reward, 1, axis=1)
    data = Trajectory(
        TimeStep(obs, before, earned, np.roll(last, 1, axis=1)),
        *(action, np.zeros(shape), reward, 1.0 - last, last, np.roll(obs, -1, axis=1)),
        TrialMemory((), np.zeros(num_trials, np.int32)),
    )
    return jax.tree.map(jnp.asarray, data)


def in_numpy(data, unit):
    """Inputs ``[B, 3, 7]``, rewards and actions in half widths of recorded trials."""
    data = jax.tree.map(np.asarray, data)
    x = np.zeros((*data.reward.shape, 7))
    x[..., :2] = data.timestep.obs
    x[:, 1:, 2:4] = data.timestep.action[:, 1:]
    x[:, 1:, 4] = data.timestep.reward[:, 1:] / unit
    x[..., 5] = data.timestep.first
    x[..., 6] = np.arange(3) / 6
    return x, data.reward, data.action / 0.1


def on_recorded(monkeypatch, make):
    """The algorithm that ``make()`` makes, given trials ``[B, T]`` in the place of tasks to act in."""
    whole = module.trial_learner

    def without_acting(*arguments, **more):
        found = whole(*arguments, **more)
        return found._replace(trials=lambda key, meta, data: data)

    monkeypatch.setattr(module, "trial_learner", without_acting)
    monkeypatch.setattr(checks, "batch", lambda *arguments: None)  # they are no tasks
    monkeypatch.setattr(module.trial_replay, "kept_trial", lambda *_: kept_shapes())
    return make()


def kept_shapes():
    data = recorded_trials(1)
    kept = module.trial_replay.kept(data, jnp.ones((1, 3), bool))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), kept)


def test_a_step_on_a_trial_of_three_steps_is_the_one_written_out_by_hand(x64, monkeypatch):
    """In numpy, with random numbers as data: targets across the end of an episode and to the end of the trial, three losses and
    cloning, their gradients by differences, each of its own part, the step and the target's."""
    hyper = Hyper(
        discount=0.9, learning_rate=0.3, max_grad_norm=1e9, target_rate=0.2, first_temperature=0.5,
        target_entropy=-1.5, cloning_cost=0.7,
    )  # fmt: skip
    config = Config(
        num_episodes=2, replay_trials=1, replayed_trials=1, gradient_steps=1, filtered_cloning=True
    )
    data = recorded_trials(1)
    algorithm = on_recorded(
        monkeypatch,
        lambda: recurrent_sac(FAMILY, config, hyper, network=LINEAR, optimizer=optax.sgd),
    )
    state = algorithm.init(jax.random.key(0))
    target = jax.tree.map(lambda x: 0.5 * x + 0.1, state.target)
    mean, spread, unit = 0.7, 2.0, 0.5
    scales = dict(value_scale=jnp.array([mean, spread]), reward_scale=jnp.asarray(unit))
    state = state._replace(meta=state.meta._replace(**scales), target=target)
    noise = np.array([[0.3, 1.0], [1.1, 0.2], [-0.4, 0.9]])
    monkeypatch.setattr(
        TanhGaussian, "sample_and_log_prob", lambda self, key: drawn_with(self, noise)
    )
    after, metrics = jax.jit(algorithm.step)(jax.random.key(1), state, data)

    reward = np.asarray(data.reward)[0]
    returns = np.array([reward[0] + 0.9 * (reward[1] + 0.9 * reward[2]), 0, reward[2]])
    returns[1] = reward[1] + 0.9 * reward[2]
    mean, spread = mean + 0.1 * (returns.mean() - mean), spread + 0.1 * (returns.std() - spread)
    unit += 0.1 * (np.abs(reward).max() - unit)
    np.testing.assert_allclose(after.meta.value_scale, [mean, spread], rtol=1e-9)
    np.testing.assert_allclose(after.meta.reward_scale, unit, rtol=1e-9)
    (x,), _, (taken,) = in_numpy(data, unit)

    def log_density(u, noise):
        density = -0.5 * noise**2 + 0.7 - 0.5 * np.log(2 * np.pi) - np.log(1 - np.tanh(u) ** 2)
        return density.sum(axis=1)

    def policy(actor):
        """Actions in half widths, and their log-density there."""
        u = x @ actor + np.exp(-0.7) * noise
        return np.tanh(u), log_density(u, noise)

    def q(critic, action):
        row = np.concatenate([action, np.ones((3, 1))], axis=1)
        known = x * critic["memory"]
        return np.stack([np.sum((known @ w) * row, axis=1) for w in critic["head"]])

    actor, critic, target = jax.tree.map(
        np.asarray, (state.meta.params["actor"], state.meta.params["critic"], target)
    )
    action, log_prob = policy(actor)
    v = mean + spread * (q(target, action).min(axis=0) - 0.5 * log_prob)
    y = (reward + 0.9 * np.array([v[1], v[2], 0.0]) - mean) / spread

    def critic_loss(critic):
        return 0.5 * np.mean(np.sum((q(critic, taken) - y) ** 2, axis=0))

    better = q(critic, taken).mean(axis=0) > q(critic, action).mean(axis=0)
    assert 0 < better.sum() < 3

    def actor_loss(actor):
        action, log_prob = policy(actor)
        u = np.arctanh(taken)
        told = log_density(u, (u - x @ actor) / np.exp(-0.7))
        cloned = np.mean(np.where(better, told, 0.0))
        return np.mean(0.5 * log_prob - q(critic, action).min(axis=0)) - 0.7 * cloned

    moved_critic = {
        name: part - 0.3 * slope(lambda x, name=name: critic_loss(critic | {name: x}), part)
        for name, part in critic.items()
    }
    np.testing.assert_allclose(metrics["value_loss"], critic_loss(critic), rtol=1e-7)
    np.testing.assert_allclose(metrics["policy_loss"], actor_loss(actor), rtol=1e-7)
    np.testing.assert_allclose(metrics["entropy"], -np.mean(log_prob), rtol=1e-7)
    np.testing.assert_allclose(metrics["temperature"], 0.5, rtol=1e-7)
    for name, part in moved_critic.items():
        found = after.meta.params["critic"][name]
        np.testing.assert_allclose(found, part, rtol=1e-5, atol=1e-8, err_msg=name)
        part = target[name] + 0.2 * (part - target[name])
        np.testing.assert_allclose(after.target[name], part, rtol=1e-5, atol=1e-8, err_msg=name)
    moved_actor = actor - 0.3 * slope(actor_loss, actor)
    np.testing.assert_allclose(after.meta.params["actor"], moved_actor, rtol=1e-5, atol=1e-8)
    moved = np.log(0.5) + 0.3 * 0.5 * np.mean(log_prob - 3.0)
    np.testing.assert_allclose(after.meta.params["log_temperature"], moved, rtol=1e-7)


def test_steps_after_a_trial_s_last_episode_count_for_nothing(x64, monkeypatch):
    """Two steps and one that is not counted, whatever it holds: the loss and its gradient of the two steps, at the same noise."""
    network = recurrent_soft_actor_critic(FAMILY, gru(4), hidden_sizes=(4,))
    meta = module.first_meta(jax.random.key(0), network=network)
    meta = meta._replace(value_scale=jnp.array([0.7, 2.0]), reward_scale=jnp.asarray(0.5))
    target = jax.tree.map(lambda x: 0.5 * x + 0.1, meta.params["critic"])
    config = Config(num_episodes=2, filtered_cloning=True)
    parts = module._learner_of(FAMILY, config, network)
    data = recorded_trials(2)
    noise = jnp.array([[0.3, -0.5], [1.1, 0.2], [-0.4, 0.9]])

    def found(data, counted):
        monkeypatch.setattr(
            TanhGaussian,
            "sample_and_log_prob",
            lambda self, key: drawn_with(self, noise[: counted.shape[1]]),
        )
        batch = module.trial_replay.batch_of(meta, data, counted, parts=parts)
        loss = functools.partial(
            module.losses, meta=meta, network=network, family=FAMILY, config=config
        )
        return jax.jit(jax.value_and_grad(lambda x: loss(x, target, jax.random.key(0), batch)[0]))(
            meta.params
        )

    shorter = jax.tree.map(lambda x: x[:, :2] if x.ndim > 1 else x, data)
    whole = found(shorter, jnp.ones((2, 2), bool))
    for reward in (0.0, 1e3):
        data = data._replace(reward=data.reward.at[:, 2].set(reward))
        longer = found(data, jnp.broadcast_to(jnp.arange(3) < 2, (2, 3)))
        chex.assert_trees_all_close(longer, whole, rtol=1e-9, atol=1e-12)


def drawn_with(distribution, noise):
    """`TanhGaussian.sample_and_log_prob` with given normal numbers."""
    u = distribution.mean + jnp.exp(distribution.log_std) * jnp.broadcast_to(
        noise, distribution.mean.shape
    )
    return distribution._squashed(u), distribution._log_density(u)


def slope(function, at):
    """The gradient by central differences."""
    found = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        move = np.zeros_like(at)
        move[index] = 1e-6
        found[index] = (function(at + move) - function(at - move)) / 2e-6
    return found


def test_replaying_a_trial_is_learning_from_it_live(x64):
    """The buffer holds the one new trial alone: a step on three draws of it is the gradient of the loss on it, at the same noise.

    With one draw or three: means over copies are the mean.
    """
    found = []
    for number in (1, 3):
        sizes = SETTINGS | dict(gradient_steps=1, replay_trials=3, replayed_trials=number)
        config = Config(num_episodes=2, **sizes)
        algorithm = recurrent_sac(FAMILY, config, optimizer=optax.sgd)
        state, drawn = begun_with(algorithm, 1)
        with pytest.MonkeyPatch.context() as patch:
            noise = jnp.linspace(-1.0, 1.0, 2 * HORIZON * 2).reshape(-1, 2)
            patch.setattr(
                TanhGaussian,
                "sample_and_log_prob",
                lambda self, key, x=noise: drawn_with(self, x),
            )
            after, _ = jax.jit(algorithm.step)(jax.random.key(1), state, drawn)
        found.append(flat(after.meta.params))
    assert np.max(np.abs(found[0] - flat(state.meta.params))) > 1e-6
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_old_trials_are_learned_from():
    """Other trials in the buffer, another step; and a policy that is told by the critic alone sends it nothing."""
    algorithm = recurrent_sac(FAMILY, Config(num_episodes=2, **SETTINGS | REPLAY))
    step = jax.jit(algorithm.step)
    state, drawn = begun_with(algorithm, 2)
    state, _ = step(jax.random.key(0), state, drawn)
    data, counted = state.replay.experience
    changed = state.replay.replace(experience=(data._replace(reward=data.reward + 1.0), counted))
    after, metrics = step(jax.random.key(1), state, drawn)
    others, _ = step(jax.random.key(1), state._replace(replay=changed), drawn)
    assert metrics["replay_trials"] == 4
    assert np.max(np.abs(flat(after.meta.params) - flat(others.meta.params))) > 1e-5


@pytest.mark.slow
def test_it_acts_by_draws_in_training_and_by_the_middle_elsewhere():
    config = Config(num_episodes=2, **SETTINGS | REPLAY)
    algorithm = recurrent_sac(FAMILY, config)
    drawing = recurrent_sac(FAMILY, dataclasses.replace(config, acts="sample"))
    state, _ = begun_with(algorithm, 1)
    meta = state.meta
    timestep = TimeStep(jnp.zeros(2), jnp.zeros(2), jnp.zeros(()), jnp.ones((), bool))
    for one, distinct in ((algorithm, 1), (drawing, 16)):
        learner = one.learner
        act = jax.vmap(lambda key, x=learner: x.act(key, meta, (), x.memory(meta), timestep)[0])
        found = np.asarray(jax.jit(act)(jax.random.split(jax.random.key(1), 16)))
        assert len(np.unique(found[:, 0])) == distinct
        assert np.all(np.abs(found) < 0.1)
    same = tasks.sample_tasks(jax.random.key(1), FAMILY, 1, split="train")
    same = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), same)
    state, _ = jax.jit(algorithm.step)(jax.random.key(2), state, same)
    data, _ = state.replay.experience
    assert len(np.unique(np.asarray(data.action)[0, :4, 0, 0])) == 4


PROTOCOL = {
    "GRU": {},
    "linear, two streams": dict(memory="linear", num_streams=2, encoder_sizes=(3,)),
    "transformer": dict(memory="transformer", memory_size=8),
    "no memory, by episode": dict(memory="none", remembers="episode"),
}


@pytest.mark.parametrize("variant", thorough(PROTOCOL, ("GRU",)))
def test_protocol(variant):
    """One compilation; a state that keeps shapes, types and weak types; metrics under their names; a broken
    task is left out, also of the buffer; with every task broken nothing changes."""
    config = Config(
        num_episodes=2, **SETTINGS | dict(replay_trials=12, replayed_trials=3) | PROTOCOL[variant]
    )
    algorithm = recurrent_sac(FAMILY, config)
    state, drawn = begun_with(algorithm, 4)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(algorithm.step, n=1))
    after, metrics = step(jax.random.key(2), state, drawn)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type)
    names = {"return/before", "return/after", "return/trial", "value_loss", "policy_loss"}
    names |= {"entropy", "temperature", "meta_grad_norm", "skipped_tasks", "skipped_updates"}
    assert set(metrics) == names | {"env_steps", "replay_trials"}
    assert all(x.shape == () for x in metrics.values())
    assert metrics["env_steps"] == 4 * config.num_streams * 2 * HORIZON
    assert metrics["skipped_tasks"] == metrics["skipped_updates"] == 0
    assert after.num_updates == 1
    for part in ("actor", "critic", "log_temperature"):
        assert np.any(flat(after.meta.params[part]) != flat(state.meta.params[part]))
    assert np.any(flat(after.target) != flat(state.target))

    broken = drawn.replace(goal=np.array(drawn.goal))
    broken.goal[1] = np.nan
    partly, metrics = step(jax.random.key(3), after, broken)
    assert metrics["skipped_tasks"] == config.num_streams
    assert metrics["skipped_updates"] == 0
    assert np.all(np.isfinite(flat(partly.meta.params)))
    data, _ = partly.replay.experience
    assert np.all(np.isfinite(data.reward))
    hopeless = drawn.replace(goal=np.full_like(drawn.goal, np.nan))
    same, metrics = step(jax.random.key(2), partly, hopeless)
    assert metrics["skipped_tasks"] == 4 * config.num_streams
    assert metrics["skipped_updates"] == 1
    chex.assert_trees_all_equal(same, partly)


@pytest.mark.slow
def test_the_unit_of_rewards_changes_nothing(x64):
    """Three meta-updates: the same parameters, to the bit where the unit is a power of two."""
    config = Config(num_episodes=2, **SETTINGS | REPLAY)

    learned = learned_in_units(lambda family: recurrent_sac(family, config), FAMILY, 2)

    state, reports = learned(1.0)
    usual = state.meta
    assert jnp.all(reports["skipped_updates"] == 0)
    meta = learned(1024.0)[0].meta
    np.testing.assert_allclose(meta.value_scale / 1024, usual.value_scale, rtol=1e-12)
    np.testing.assert_allclose(flat(meta.params), flat(usual.params), rtol=0, atol=0)


@pytest.mark.slow
def test_a_run_with_a_buffer_resumes_bit_for_bit(tmp_path):
    """Five meta-updates are two, a checkpoint and three: parameters, target, optimiser, buffer and metrics."""
    algorithm = recurrent_sac(FAMILY, Config(num_episodes=2, **SETTINGS | REPLAY))
    quiet = dict(console=Console(quiet=True))

    def config(meta_updates):
        return training.Config(meta_updates=meta_updates, num_tasks=2, checkpoint_every=2)

    whole = training.train(algorithm, FAMILY, config(5), folder=tmp_path / "whole", **quiet)
    folder = tmp_path / "parts"
    training.train(algorithm, FAMILY, config(2), folder=folder, **quiet)
    resumed = training.train(algorithm, FAMILY, config(5), folder=folder, resume=True, **quiet)
    assert resumed.state.replay.is_full
    chex.assert_trees_all_equal(*(jax.random.key_data(run.key) for run in (resumed, whole)))
    chex.assert_trees_all_equal(resumed.state, whole.state)

    def lines(folder):
        text = (tmp_path / folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{k: x for k, x in json.loads(line).items() if k != "seconds"} for line in text]

    assert lines("parts") == lines("whole")


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
def test_it_learns_to_find_the_goal_and_to_go_there():
    """Half of the way from random to told, in the second of two episodes, on held-out goals."""
    family = tasks.make("half_circle", horizon=10)
    config = Config(num_episodes=2, memory_size=32, gradient_steps=32, replayed_trials=16)
    hyper = Hyper(learning_rate=2e-3, target_rate=0.05, first_temperature=0.05)
    algorithm = recurrent_sac(family, config, hyper)
    run = training.train(algorithm, family, training.Config(meta_updates=120, num_tasks=4))
    held_out = tasks.sample_tasks(jax.random.key(1), family, 500, split="test")
    how = dict(learner=algorithm.learner, env=family.env, num_steps=20)
    trials = evaluation.trials(jax.random.key(2), run.state.meta, held_out, **how)
    returns = evaluation.episode_returns(trials, 2)[:, 1]
    random = evaluation.random_returns(jax.random.key(3), held_out, family=family)
    told = evaluation.reference_returns(jax.random.key(4), held_out, family=family)
    share = (returns.mean() - random.mean()) / (told.mean() - random.mean())
    assert share > 0.5, float(share)
