"""Algorithm distillation predicts the next action of a history, and learns to learn where histories show it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import datasets, evaluation, tasks
from jaxmeta.algorithms.algorithm_distillation import Config, Hyper, algorithm_distillation
from jaxmeta.learners import in_context
from jaxmeta.networks.actor_critic import Inputs
from jaxmeta.networks.recurrent import gru, linear_recurrence
from jaxmeta.runs import training


@pytest.fixture(scope="module")
def family():
    return tasks.make("dark_room", size=3, horizon=4)


@pytest.fixture(scope="module")
def batch(family):
    """Six windows of 7 steps."""
    drawn = tasks.sample_tasks(jax.random.key(0), family, 4, split="train")
    mixed = datasets.mixtures(
        jax.random.key(1), drawn, family=family, num_streams=2, num_episodes=4
    )
    source = datasets.windows(mixed, 7)
    return source.sample(jax.random.key(2), source.load(0)[0], 6)


@pytest.fixture(scope="module")
def algorithm(family):
    return algorithm_distillation(
        family, Config(num_episodes=4), Hyper(learning_rate=0.1), memory=gru(4), optimizer=optax.sgd
    )


@pytest.fixture(scope="module")
def step(algorithm):
    return jax.jit(algorithm.step)


def written_out(family, params, windows):
    """``-mean log π(a_t | o_t, earlier (o, a, r))`` with the inputs put together by hand."""
    network = in_context.network_of(family, Config(num_episodes=4), gru(4), None)
    losses = []
    for i in range(windows.reward.shape[0]):
        state = network.initial()
        for t in range(windows.reward.shape[1]):
            past = jnp.zeros(family.action_space.n + 1)
            if t > 0:  # rewards are in units of the largest, which is 1
                past = (
                    past.at[windows.action[i, t - 1]].set(1.0).at[-1].set(windows.reward[i, t - 1])
                )
            inputs = Inputs(
                obs=windows.timestep.obs[i, t],
                past=past,
                time=jnp.array([windows.timestep.first[i, t], 0.0], float),
                reset=jnp.asarray(t == 0),
            )
            distribution, state = network.step(params, state, inputs)
            losses.append(-distribution.log_prob(windows.action[i, t]))
    return jnp.mean(jnp.stack(losses))


def test_a_step_descends_the_loss_of_the_paper(family, algorithm, step, batch):
    assert jnp.max(batch.reward) == 1
    state = algorithm.init(jax.random.key(3))
    after, metrics = step(jax.random.key(4), state, batch)
    loss, gradient = jax.jit(jax.value_and_grad(lambda x: written_out(family, x, batch)))(
        state.meta.params
    )
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    norm = optax.tree.norm(gradient)
    wanted = jax.tree.map(
        lambda p, g: p - 0.1 * g / jnp.maximum(norm, 1), state.meta.params, gradient
    )
    for x, y in zip(jax.tree.leaves(after.meta.params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7)
    assert after.num_updates == 1
    assert metrics["env_steps"] == metrics["skipped_tasks"] == metrics["skipped_updates"] == 0


def test_a_window_with_what_is_no_action_is_left_out_and_counted(algorithm, step, batch):
    state, key = algorithm.init(jax.random.key(3)), jax.random.key(4)
    wrong = batch._replace(action=batch.action.at[1, 3].set(5))
    after, metrics = step(key, state, wrong)
    assert metrics["skipped_tasks"] == 1
    broken = batch._replace(reward=batch.reward.at[1, 3].set(np.nan))
    without, _ = step(key, state, broken)
    for x, y in zip(*map(jax.tree.leaves, (after.meta.params, without.meta.params)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_broken_window_is_left_out_and_counted(algorithm, step, batch):
    state = algorithm.init(jax.random.key(3))
    broken = batch._replace(reward=batch.reward.at[2, 5].set(jnp.nan))
    after, metrics = step(jax.random.key(4), state, broken)
    assert metrics["skipped_tasks"] == 1
    other = jax.tree.map(
        lambda x: x.at[2].set(jnp.nan if x.dtype == jnp.float32 else x[0]), batch
    )  # nothing of it is read
    again, _ = step(jax.random.key(4), state, other)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(x, y)
    nothing = batch._replace(reward=jnp.full_like(batch.reward, jnp.nan))
    same, metrics = step(jax.random.key(4), state, nothing)
    assert metrics["skipped_updates"] == 1
    for x, y in zip(jax.tree.leaves(same), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_unit_of_rewards_changes_nothing(algorithm, step, batch):
    state = algorithm.init(jax.random.key(3))
    scaled = batch._replace(
        reward=1024 * batch.reward,
        timestep=batch.timestep._replace(reward=1024 * batch.timestep.reward),
    )
    one, thousand = (step(jax.random.key(4), state, x)[0].meta for x in (batch, scaled))
    for x, y in zip(jax.tree.leaves(one.params), jax.tree.leaves(thousand.params), strict=True):
        np.testing.assert_array_equal(x, y)


def test_other_windows_are_refused(family, algorithm, batch):
    state = algorithm.init(jax.random.key(3))
    drawn = tasks.sample_tasks(jax.random.key(0), family, 4, split="train")
    with pytest.raises(
        TypeError, match=r"windows is .*DarkRoomParams.*; it must be types.Trajectory"
    ):
        algorithm.step(jax.random.key(4), state, drawn)
    narrow = batch._replace(timestep=batch.timestep._replace(obs=batch.timestep.obs[..., :4]))
    with pytest.raises(
        ValueError, match=r"windows.timestep.obs has shape \(6, 7, 4\); with family"
    ):
        algorithm.step(jax.random.key(4), state, narrow)
    far = algorithm_distillation(family, Config(num_episodes=4, memory_size=8))
    with pytest.raises(ValueError, match="windows of 7 steps are shorter than .* context=16"):
        far.step(jax.random.key(4), far.init(jax.random.key(3)), batch)
    one = jax.tree.map(lambda x: x[0], batch)
    with pytest.raises(ValueError, match=r"windows.reward has shape \(7,\); it must be \[M, T\]"):
        algorithm.step(jax.random.key(4), state, one)


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
def test_it_learns_to_learn_from_windows_of_several_episodes_alone():
    """On held-out goals of a 5 × 5 room returns rise within the context. With windows of one episode they do not."""
    family = tasks.make("dark_room", size=5, horizon=10, observes="coordinates")
    drawn = tasks.sample_tasks(jax.random.key(0), family, 60, split="train")
    mixed = datasets.mixtures(
        jax.random.key(1), drawn, family=family, num_streams=20, num_episodes=16, random_steps=0.7
    )
    held_out = tasks.sample_tasks(jax.random.key(2), family, 400, split="test")
    optimum = jnp.mean(jax.vmap(family.optimal_return)(held_out))
    config = Config(num_episodes=16, encoder_sizes=(64,), hidden_sizes=(64,))
    algorithm = algorithm_distillation(
        family, config, Hyper(3e-3, anneal_updates=500), memory=linear_recurrence(64)
    )

    def shares(length):
        """Share of the optimum of the first and of the last five episodes."""
        source = datasets.windows(mixed, length, starts="episode")
        plan = training.Config(meta_updates=500, num_tasks=32)
        run = training.train(algorithm, family, plan, source=source)
        trials = jax.jit(
            lambda key, meta: evaluation.trials(
                key, meta, held_out, learner=algorithm.learner, env=family.env, num_steps=160
            )
        )(jax.random.key(3), run.state.meta)
        returns = evaluation.episode_returns(trials, 16).mean(axis=0) / optimum
        return returns[0], returns[-5:].mean()

    first, last = shares(160)
    assert first < 0.2
    assert last > 0.5
    _, blind = shares(10)
    assert blind < 0.2
