import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxmeta import evaluation, tasks
from jaxmeta.algorithms import pearl as module
from jaxmeta.algorithms.pearl import Config, Hyper, pearl
from jaxmeta.learners import task_replay
from jaxmeta.networks.distributions import DiagGaussian, TanhGaussian
from jaxmeta.networks.heads import Head
from jaxmeta.networks.soft_actor_critic import TwinValues
from jaxmeta.networks.task_posteriors import ContextEncoder, Evidence
from jaxmeta.runs import training
from jaxmeta.tasks import navigation
from jaxmeta.types import TimeStep, Trajectory
from tests.algorithms.test_recurrent_sac import drawn_with, flat, slope
from tests.probes import learned_in_units

HORIZON = 3
FAMILY = tasks.make("half_circle", horizon=HORIZON)
SMALL = Config(
    num_episodes=2, num_streams=2, num_training_tasks=4, replay_steps=16, gradient_steps=2,
    batch_tasks=3, batch_size=4, context_size=5, latent_size=2, hidden_sizes=(4,), encoder_sizes=(4,),
)  # fmt: skip
NUM_TASKS = 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_episodes=0), "num_episodes=0 must be at least 1"),
        (dict(latent_size=0), "latent_size=0 must be at least 1"),
        (dict(context_size=0), "context_size=0 must be at least 1"),
        (dict(hidden_sizes=(8, 0)), "hidden_sizes=0 must be at least 1"),
        (dict(acts="mod"), "acts='mod' is unknown: did you mean 'mode'"),
        (dict(num_episodes=2, prior_episodes=3), "prior_episodes=3 must be at most num_episodes=2"),
        (dict(context_from="trail"), "context_from='trail' is unknown: did you mean 'trial'"),
        (dict(encoder_learns="value"), "encoder_learns='value' is unknown: did you mean 'values'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(kl_cost=-1.0), "kl_cost=-1.0 must lie between 0"),
        (dict(target_rate=2.0), "target_rate=2.0 must lie between 0.0 and 1.0"),
        (dict(first_temperature=0.0), "first_temperature=0.0 must lie between"),
    ],
)
def test_bad_hyper_parameters_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        pearl(FAMILY, hyper=Hyper(**values))


def test_what_does_not_fit_is_named(monkeypatch):
    with pytest.raises(ValueError, match="pearl needs a Box of floats: recurrent_q takes"):
        pearl(tasks.make("tabular"))
    with pytest.raises(ValueError, match=r"replay_steps=8 must be at least .* = 12, the steps of"):
        pearl(FAMILY, dataclasses.replace(SMALL, replay_steps=8))
    algorithm = pearl(FAMILY, dataclasses.replace(SMALL, num_training_tasks=1))
    state, drawn = jax.eval_shape(lambda: begun_with(algorithm))
    with pytest.raises(ValueError, match="num_training_tasks=1 must be at least 2, the number"):
        jax.eval_shape(algorithm.step, jax.random.key(0), state, drawn)
    wrong = pearl(FAMILY, SMALL, training_reward=lambda task, obs, action, after: after)
    state, drawn = jax.eval_shape(lambda: begun_with(wrong))
    with pytest.raises(ValueError, match="training_reward"):
        jax.eval_shape(wrong.step, jax.random.key(0), state, drawn)
    monkeypatch.setattr("jaxmeta.learners.buffers.device_memory", lambda: 10**5)
    with pytest.raises(ValueError, match="num_training_tasks × replay_steps=1000000 takes"):
        pearl(FAMILY)


def begun_with(algorithm, num_tasks=NUM_TASKS):
    """A state and tasks, compiled as one."""

    @jax.jit
    def begun():
        drawn = tasks.sample_tasks(jax.random.key(1), FAMILY, num_tasks, split="train")
        return algorithm.init(jax.random.key(0)), drawn

    return begun()


@functools.cache
def small():
    """The algorithm, and its step compiled once."""
    algorithm = pearl(FAMILY, SMALL)
    return algorithm, jax.jit(algorithm.step)


@pytest.mark.parametrize("prior_episodes", [1, 2])
def test_z_is_drawn_from_the_product_of_all_episodes_so_far_and_held_within_one(prior_episodes):
    """By hand over a trial of three episodes: from the prior first, then from N(μ, σ²) of the transitions before, with the last one of the
    episode and no step across its end."""
    config = dataclasses.replace(SMALL, prior_episodes=prior_episodes)
    networks = module.networks_of(FAMILY, config)
    learner = module.learner_of(FAMILY, config, networks)
    meta = module.first_meta(jax.random.key(0), networks, Hyper(), config)
    unit = 0.5
    meta = meta._replace(reward_scale=jnp.asarray(unit))
    rng = np.random.default_rng(0)
    length = 3 * HORIZON
    obs, reward = rng.normal(size=(length, 2)), rng.normal(size=length)
    first = np.arange(length) % HORIZON == 0
    keys = jax.random.split(jax.random.key(1), length)
    act = jax.jit(learner.act)
    memory, z, actions = learner.memory(meta), [], []
    before, earned = jnp.zeros(2), jnp.zeros(())
    for t in range(length):
        timestep = TimeStep(jnp.asarray(obs[t], jnp.float32), before, earned, jnp.asarray(first[t]))
        action, _, memory = act(keys[t], meta, (), memory, timestep)
        z.append(np.asarray(memory.z))
        actions.append(np.asarray(action))
        before, earned = action, jnp.asarray(reward[t], jnp.float32)

    for begin in range(0, length, HORIZON):
        noise = np.asarray(jax.random.normal(jax.random.split(keys[begin])[0], (2,)))
        mean, std = np.zeros(2), np.ones(2)
        if begin >= prior_episodes * HORIZON:
            seen = networks.encoder.factors(
                meta.params["encoder"], *map(jnp.asarray, (obs[:begin], np.stack(actions[:begin]), reward[:begin] / unit))
            )  # fmt: skip
            precision = np.asarray(seen.precision).sum(axis=0)
            mean, std = np.asarray(seen.weighted).sum(axis=0) / precision, precision**-0.5
        for t in range(begin, begin + HORIZON):
            np.testing.assert_allclose(z[t], mean + std * noise, rtol=1e-4, atol=1e-5)


def tanh_gaussian(mean):
    full = functools.partial(jnp.full, mean.shape)
    return TanhGaussian(mean, full(-0.7), full(0.0), full(0.1))


# Networks that are linear; the latent has one entry, so that features are three numbers.
LINEAR = module.Networks(
    Head(init=None, apply=lambda params, x: tanh_gaussian(x @ params)),
    TwinValues(
        init=None,
        apply=lambda params, x, action: jnp.einsum(
            "...i,kij,...j->k...",
            x,
            params,
            jnp.concatenate([action, jnp.ones_like(action[..., :1])], axis=-1),
        ),
    ),
    ContextEncoder(
        init=None,
        factors=lambda params, obs, action, reward: linear_factors(
            jnp.concatenate([obs, action, reward[..., None]], axis=-1) @ params
        ),
    ),
)


def linear_factors(outputs):
    precision = 1 / jax.nn.softplus(outputs[..., 1:])
    return Evidence(precision, outputs[..., :1] * precision)


@pytest.mark.parametrize("infers", ["encoder", "teacher"])
def test_the_loss_and_its_gradients_are_those_written_out_by_hand(x64, monkeypatch, infers):
    """In numpy, on two tasks of three steps. Only the critic's error and the divergence reach what infers z, the encoder or its
    teacher; z is a constant in the target, for the policy and where it is predicted; a termination ends the values and a time limit
    does not."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.normal(size=shape)  # noqa: E731
    params = {
        "actor": draw(3, 2), "critic": draw(2, 3, 3), "encoder": 0.5 * draw(5, 2),
        "log_temperature": np.log(0.4),
    }  # fmt: skip
    if infers == "teacher":
        params["teacher"] = 0.5 * draw(5, 2)
    target = draw(2, 3, 3)
    steps = module.Step(
        draw(2, 3, 2), 0.1 * np.tanh(draw(2, 3, 2)), draw(2, 3), np.ones((2, 3)), draw(2, 3, 2)
    )
    steps.discount[0, 1] = 0.0
    context = module.Transition(draw(2, 4, 2), draw(2, 4, 2), draw(2, 4), draw(2, 4))
    hyper = Hyper(discount=0.9, kl_cost=0.3, target_entropy=-0.5)
    meta = module.Meta((), jnp.array([0.7, 2.0]), jnp.asarray(0.5), hyper)
    noise, z_noise = draw(3, 2), draw(2, 1)
    monkeypatch.setattr(
        TanhGaussian, "sample_and_log_prob", lambda self, key: drawn_with(self, noise)
    )
    monkeypatch.setattr(
        DiagGaussian, "sample", lambda self, key: self.mean + jnp.exp(self.log_std) * z_noise
    )
    given = jax.tree.map(jnp.asarray, (params, target, steps, context))
    in_context = np.array([[True] * 4, [True, False, True, True]])
    batch = module.Batch(given[2], given[3], jnp.asarray(in_context), jnp.ones((2, 3), bool))

    def loss(params):
        return module.losses(
            params, given[1], jax.random.key(0), batch, meta=meta, networks=LINEAR, family=FAMILY
        )

    (total, report), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(given[0])

    rewards = {"encoder": context.reward / 0.5, "teacher": context.training_reward / 2.0}

    def posterior(encoder, name=infers):
        x = np.concatenate([context.obs, context.action, rewards[name][..., None]], axis=-1)
        outputs = x @ encoder
        precision = in_context / np.log1p(np.exp(outputs[..., 1]))
        variance = 1 / precision.sum(axis=1)
        return variance * (outputs[..., 0] * precision).sum(axis=1), variance

    def drawn_z(encoder):
        mean, variance = posterior(encoder)
        z = mean + np.sqrt(variance) * z_noise[:, 0]
        return np.repeat(z[:, None, None], 3, axis=1)

    def policy(actor, obs, z):
        u = np.concatenate([obs, z], axis=-1) @ actor + np.exp(-0.7) * noise
        density = -0.5 * noise**2 + 0.7 - 0.5 * np.log(2 * np.pi) - np.log(1 - np.tanh(u) ** 2)
        return np.tanh(u), density.sum(axis=-1)

    def q(critic, obs, z, action):
        x = np.concatenate([obs, z], axis=-1)
        row = np.concatenate([action, np.ones((2, 3, 1))], axis=-1)
        return np.einsum("bti,kij,btj->kbt", x, critic, row)

    def prediction_loss(encoder):
        mean, variance = posterior(encoder, "encoder")
        error = fixed_z[:, 0, 0] - mean
        return np.mean(0.5 * (error**2 / variance + np.log(2 * np.pi * variance)))

    fixed_z = drawn_z(params[infers])
    action, log_prob = policy(params["actor"], steps.next_obs, fixed_z)
    v = 0.7 + 2.0 * (q(target, steps.next_obs, fixed_z, action).min(axis=0) - 0.4 * log_prob)
    y = (steps.reward + 0.9 * steps.discount * v - 0.7) / 2.0

    def critic_loss(critic, encoder):
        error = q(critic, steps.obs, drawn_z(encoder), steps.action / 0.1) - y
        return 0.5 * np.mean(np.sum(error**2, axis=0))

    def divergence(encoder):
        mean, variance = posterior(encoder)
        return np.mean(0.5 * (variance + mean**2 - 1 - np.log(variance)))

    def actor_loss(actor):
        action, log_prob = policy(actor, steps.obs, fixed_z)
        return np.mean(0.4 * log_prob - q(params["critic"], steps.obs, fixed_z, action).min(axis=0))

    now = policy(params["actor"], steps.obs, fixed_z)[1]
    np.testing.assert_allclose(
        report["value_loss"], critic_loss(params["critic"], params[infers]), rtol=1e-9
    )
    np.testing.assert_allclose(report["belief_kl"], divergence(params[infers]), rtol=1e-9)
    np.testing.assert_allclose(report["policy_loss"], actor_loss(params["actor"]), rtol=1e-9)
    np.testing.assert_allclose(report["entropy"], -now.mean(), rtol=1e-9)
    cooled = -0.4 * (now.mean() - 1.0)
    expected = critic_loss(params["critic"], params[infers]) + actor_loss(params["actor"])
    expected += 0.3 * divergence(params[infers]) + cooled
    if infers == "teacher":
        expected += prediction_loss(params["encoder"])
    np.testing.assert_allclose(total, expected, rtol=1e-9)
    functions = {
        "actor": actor_loss,
        "critic": lambda x: critic_loss(x, params[infers]),
        "encoder": prediction_loss,
    }
    functions[infers] = lambda x: critic_loss(params["critic"], x) + 0.3 * divergence(x)
    for name, function in functions.items():
        found = slope(function, params[name])
        assert np.max(np.abs(found)) > 1e-3
        np.testing.assert_allclose(gradient[name], found, rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(gradient["log_temperature"], cooled, rtol=1e-9)


def test_a_visit_keeps_every_step_and_renews_the_context_by_first_episodes():
    """The state after one, two and three meta-updates: two tasks, then four, then two of them again."""
    algorithm, step = small()
    state, drawn = begun_with(algorithm)
    state, metrics = step(jax.random.key(2), state, drawn)
    replay = jax.tree.map(np.asarray, state.replay)
    visit_steps, context_steps = 2 * 2 * HORIZON, 2 * HORIZON
    assert metrics["training_tasks"] == 2
    np.testing.assert_array_equal(replay.tasks.goal[:2], drawn.goal)
    assert replay.num_steps.tolist() == [visit_steps] * 2 + [0] * 2
    assert replay.num_context.tolist() == [context_steps] * 2 + [0] * 2
    for task in range(2):
        # Both trials begin at the origin; the first episodes of both are the context.
        steps = jax.tree.map(
            lambda x, task=task: x[task, :visit_steps].reshape(2, -1, *x.shape[2:]), replay.steps
        )
        np.testing.assert_array_equal(steps.obs[:, [0, HORIZON]], 0.0)
        context = jax.tree.map(
            lambda x, task=task: x[task].reshape(2, HORIZON, *x.shape[2:]), replay.context
        )
        for name in ("obs", "action", "reward"):
            np.testing.assert_array_equal(getattr(context, name), getattr(steps, name)[:, :HORIZON])
        np.testing.assert_allclose(
            steps.next_obs - steps.obs, np.clip(steps.action, -0.1, 0.1), atol=1e-6
        )
        distance = np.linalg.norm(steps.next_obs - replay.tasks.goal[task], axis=-1)
        np.testing.assert_allclose(steps.reward, -distance, rtol=1e-5)
        assert np.all(steps.discount == 1)  # a time limit is no termination
    others = jax.tree.map(lambda x: -x, drawn)
    second, _ = step(jax.random.key(3), state, others)
    np.testing.assert_array_equal(second.replay.tasks.goal[2:], others.goal)
    third, metrics = step(jax.random.key(4), second, drawn)
    assert metrics["training_tasks"] == 4
    np.testing.assert_array_equal(third.replay.tasks.goal, second.replay.tasks.goal)
    visited = np.asarray(third.replay.num_steps) == 2 * visit_steps
    assert visited.sum() == 2
    renewed = np.any(
        np.asarray(third.replay.context.action) != np.asarray(second.replay.context.action),
        axis=(1, 2),
    )
    np.testing.assert_array_equal(renewed, visited)
    assert np.all(np.asarray(third.replay.num_context) == context_steps)


@pytest.mark.parametrize(("context_from", "length"), [("prior", 2), ("trial", 5)])
def test_a_context_ends_with_an_episode_that_ends_early(context_from, length):
    """The first episode terminates at its second step of the possible three, and the second at the trial's fifth; a second trial is
    broken."""
    config = dataclasses.replace(SMALL, context_from=context_from)
    algorithm = pearl(FAMILY, config)
    state, drawn = begun_with(algorithm)
    one = jax.tree.map(lambda x: x[:1], drawn)
    x, ones = jnp.arange(24.0).reshape(2, 6, 2), jnp.ones((2, 6))
    last = jnp.array([[False, True, False, False, True, False]] * 2)
    data = Trajectory(TimeStep(x, x, ones, last), x, ones, ones, ones, last, x, ())
    counted = jnp.array([[True] * 5 + [False], [False] * 6])
    visited = task_replay.visit(jax.random.key(0), state.replay, one)
    steps = module.Step(x, x, ones, ones, x)
    replay = module.remembered(state.replay, visited, data, steps, counted, FAMILY, config)
    assert replay.num_steps.tolist() == [5, 0, 0, 0]
    assert replay.num_context.tolist() == [length, 0, 0, 0]
    np.testing.assert_array_equal(replay.context.obs[0, :length], x[0, :length])


@pytest.mark.slow
def test_the_critic_may_learn_another_reward_than_the_context_shows():
    """The sparse point robot of the paper: a dense reward in training."""
    sparse = tasks.make("half_circle", horizon=HORIZON, reward="sparse")
    config = dataclasses.replace(SMALL, encoder_learns="teacher")
    algorithm = pearl(sparse, config, training_reward=navigation.dense_reward)
    begun, drawn = begun_with(algorithm)
    state, metrics = jax.jit(algorithm.step)(jax.random.key(2), begun, drawn)
    replay = jax.tree.map(np.asarray, state.replay)
    goals = replay.tasks.goal[:2, None]
    distance = np.linalg.norm(replay.steps.next_obs[:2, :12] - goals, axis=-1)
    np.testing.assert_allclose(replay.steps.reward[:2, :12], -distance, rtol=1e-5)
    assert np.all(replay.context.reward == 0)  # nobody is within reach of a goal
    np.testing.assert_array_equal(
        replay.context.training_reward[:2].reshape(2, 2, HORIZON),
        replay.steps.reward[:2, :12].reshape(2, 2, 2 * HORIZON)[..., :HORIZON],
    )
    for name in ("encoder", "teacher"):
        before, after = (flat(x.meta.params[name]) for x in (begun, state))
        assert np.any(before != after), name
    assert metrics["return/trial"] == 0
    assert state.meta.reward_scale == 0
    assert state.meta.value_scale[1] > 0
    assert np.all(np.isfinite(flat(state.meta.params)))


def test_it_acts_by_draws_in_training_and_by_the_middle_elsewhere():
    algorithm, _ = small()
    drawing = pearl(FAMILY, dataclasses.replace(SMALL, acts="sample"))
    state, _ = begun_with(algorithm)
    timestep = TimeStep(jnp.zeros(2), jnp.zeros(2), jnp.zeros(()), jnp.zeros((), bool))
    for one, distinct in ((algorithm, 1), (drawing, 16)):
        learner = one.learner

        def act(key, learner=learner):
            memory = learner.memory(state.meta)
            return learner.act(key, state.meta, (), memory, timestep)[0]  # z stays 0

        found = np.asarray(jax.jit(jax.vmap(act))(jax.random.split(jax.random.key(1), 16)))
        assert len(np.unique(found[:, 0])) == distinct


def test_protocol():
    """One compilation; a state that keeps shapes, types and weak types; metrics under their names; a broken
    task is left out, also of the replay; with every task broken nothing changes."""
    algorithm, _ = small()
    state, drawn = begun_with(algorithm)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(algorithm.step, n=1))
    after, metrics = step(jax.random.key(2), state, drawn)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type)
    names = {"return/before", "return/after", "return/trial", "value_loss", "policy_loss"}
    names |= {"entropy", "temperature", "belief_kl", "meta_grad_norm"}
    assert set(metrics) == names | {
        "skipped_tasks",
        "skipped_updates",
        "env_steps",
        "training_tasks",
    }
    assert all(x.shape == () for x in metrics.values())
    assert metrics["env_steps"] == NUM_TASKS * 2 * 2 * HORIZON
    assert metrics["skipped_tasks"] == metrics["skipped_updates"] == 0
    assert after.num_updates == 1
    for part in ("actor", "critic", "encoder", "log_temperature"):
        assert np.any(flat(after.meta.params[part]) != flat(state.meta.params[part]))
    assert np.any(flat(after.target) != flat(state.target))

    broken = drawn.replace(goal=np.array(drawn.goal))
    broken.goal[0] = np.nan
    partly, metrics = step(jax.random.key(3), after, broken)
    assert metrics["skipped_tasks"] == SMALL.num_streams
    assert metrics["skipped_updates"] == 0
    assert metrics["training_tasks"] == 3
    assert np.all(np.isfinite(flat((partly.meta.params, partly.replay))))
    hopeless = drawn.replace(goal=np.full_like(drawn.goal, np.nan))
    same, metrics = step(jax.random.key(2), partly, hopeless)
    assert metrics["skipped_tasks"] == NUM_TASKS * SMALL.num_streams
    assert metrics["skipped_updates"] == 1
    chex.assert_trees_all_equal(same, partly)


@pytest.mark.slow
def test_the_unit_of_rewards_changes_nothing(x64):
    """Three meta-updates: the same parameters, to the bit where the unit is a power of two."""

    learned = learned_in_units(lambda family: pearl(family, SMALL), FAMILY, 2)

    state, reports = learned(1.0)
    usual = state.meta
    assert jnp.all(reports["skipped_updates"] == 0)
    meta = learned(1024.0)[0].meta
    np.testing.assert_allclose(meta.value_scale / 1024, usual.value_scale, rtol=1e-12)
    np.testing.assert_array_equal(flat(meta.params), flat(usual.params))


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_with_its_replay(tmp_path):
    """Five meta-updates are two, a checkpoint and three: parameters, target, optimiser, tasks, replay and metrics."""
    algorithm, _ = small()
    quiet = dict(console=Console(quiet=True))

    def config(meta_updates):
        return training.Config(meta_updates=meta_updates, num_tasks=2, checkpoint_every=2)

    whole = training.train(algorithm, FAMILY, config(5), folder=tmp_path / "whole", **quiet)
    folder = tmp_path / "parts"
    training.train(algorithm, FAMILY, config(2), folder=folder, **quiet)
    resumed = training.train(algorithm, FAMILY, config(5), folder=folder, resume=True, **quiet)
    assert resumed.state.replay.num_tasks == 4
    chex.assert_trees_all_equal(*(jax.random.key_data(run.key) for run in (resumed, whole)))
    chex.assert_trees_all_equal(resumed.state, whole.state)

    def lines(folder):
        text = (tmp_path / folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{k: x for k, x in json.loads(line).items() if k != "seconds"} for line in text]

    assert lines("parts") == lines("whole")


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
def test_it_finds_the_goal_from_one_episode():
    """Half of the way from random to told, in the second of two episodes, on held-out goals; less in the first."""
    family = tasks.make("half_circle", horizon=10)
    config = Config(
        num_episodes=2, num_streams=2, hidden_sizes=(64, 64), gradient_steps=32, batch_size=32
    )
    algorithm = pearl(family, config, Hyper(learning_rate=2e-3))
    run = training.train(algorithm, family, training.Config(meta_updates=200, num_tasks=10))
    held_out = tasks.sample_tasks(jax.random.key(1), family, 500, split="test")
    how = dict(learner=algorithm.learner, env=family.env, num_steps=20)
    trials = evaluation.trials(jax.random.key(2), run.state.meta, held_out, **how)
    returns = evaluation.episode_returns(trials, 2).mean(axis=0)
    random = evaluation.random_returns(jax.random.key(3), held_out, family=family).mean()
    told = evaluation.reference_returns(jax.random.key(4), held_out, family=family).mean()
    share = (returns - random) / (told - random)
    assert share[1] > 0.5, share
    assert share[1] > share[0] + 0.1, share


def test_a_training_reward_that_is_not_finite_leaves_its_trial_out():
    """Its scale would be NaN for ever, and every value after it."""
    drawn = tasks.sample_tasks(jax.random.key(1), FAMILY, NUM_TASKS, split="train")
    goal = drawn.goal[0]

    def reward(task, obs, action, after):
        return jnp.where(jnp.all(task.goal == goal), jnp.nan, after[0])

    algorithm = pearl(FAMILY, SMALL, training_reward=reward)
    state, metrics = jax.jit(algorithm.step)(
        jax.random.key(2), algorithm.init(jax.random.key(0)), drawn
    )
    left_out = int(np.sum(np.all(np.asarray(drawn.goal) == np.asarray(goal), axis=1)))
    assert 0 < left_out < NUM_TASKS
    assert metrics["skipped_tasks"] == left_out * SMALL.num_streams
    assert metrics["training_tasks"] == NUM_TASKS - left_out
    assert metrics["skipped_updates"] == 0
    for part in (state.meta.params, state.meta.value_scale, state.replay.steps.reward):
        assert np.all(np.isfinite(flat(part)))
    assert state.meta.value_scale[1] > 0
