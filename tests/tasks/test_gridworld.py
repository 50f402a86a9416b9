import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.tasks.gridworld import GridWorld, GridWorldParams, optimal_return, successors


def test_moves_stop_at_walls():
    after = successors(3)
    moves = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
    for cell in range(9):
        x, y = cell % 3, cell // 3
        for action, (dx, dy) in enumerate(moves):
            there = (x + dx, y + dy)
            if not (0 <= there[0] < 3 and 0 <= there[1] < 3):
                there = (x, y)
            assert after[cell, action] == there[0] + 3 * there[1]


def test_a_step_earns_what_lies_where_it_ends():
    env = GridWorld(3, horizon=5)
    task = GridWorldParams(reward=jnp.arange(9.0), ends=jnp.arange(9) == 5)
    for cell in range(9):
        for action in range(5):
            _, state = env.reset_env(jax.random.key(0), task)
            state = state.replace(cell=jnp.array(cell))
            obs, state, reward, terminated, _ = env.step_env(
                jax.random.key(1), state, jnp.array(action), task
            )
            there = successors(3)[cell, action]
            assert state.cell == there == jnp.argmax(obs)
            assert obs.sum() == 1
            assert reward == there
            assert terminated == (there == 5)


def test_an_episode_starts_anywhere_and_ends_at_the_horizon():
    env = GridWorld(3, horizon=4)
    _, state = jax.vmap(env.reset_env, (0, None))(
        jax.random.split(jax.random.key(0), 9000), env.default_params
    )
    share = np.bincount(state.cell, minlength=9) / 9000
    np.testing.assert_allclose(share, 1 / 9, atol=0.02)
    _, state = env.reset_env(jax.random.key(0), env.default_params)
    for t in range(4):
        assert not env.is_truncated(state, env.default_params)
        _, state, *_ = env.step_env(jax.random.key(t), state, jnp.array(0), env.default_params)
    assert env.is_truncated(state, env.default_params)


@pytest.mark.parametrize(
    ("split", "count"), [("train", 3), ("test", 3), ("out_of_distribution", 6)]
)
def test_objects_lie_where_the_law_says(split, count):
    family = tasks.make("gridworld", size=4, num_objects=3)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 4000, split=split)
    present = np.asarray(drawn.reward) != 0
    assert np.all(present.sum(1) == count)
    np.testing.assert_allclose(present.mean(0), count / 16, atol=0.03)
    rewards = np.asarray(drawn.reward)[present]
    assert np.all(np.abs(rewards) <= 1)
    np.testing.assert_allclose([rewards.mean(), rewards.std()], [0, 1 / np.sqrt(3)], atol=0.02)
    assert not np.any(np.asarray(drawn.ends) & ~present)
    np.testing.assert_allclose(np.asarray(drawn.ends)[present].mean(), 0.5, atol=0.02)


def test_the_optimum_is_that_of_all_plans():
    """Against every sequence of actions from every cell; a task is deterministic, so plans are enough."""
    env = GridWorld(2, horizon=3)
    for key in range(5):
        reward_key, ends_key = jax.random.split(jax.random.key(key))
        task = GridWorldParams(
            reward=jax.random.normal(reward_key, (4,)),
            ends=jax.random.bernoulli(ends_key, 0.3, (4,)),
        )
        plans = jnp.stack(jnp.meshgrid(*[jnp.arange(5)] * 3), axis=-1).reshape(-1, 3)

        def earned(cell, plan, task=task):
            _, state = env.reset_env(jax.random.key(0), task)
            state, total, alive = state.replace(cell=cell), 0.0, 1.0
            for t in range(3):
                _, state, reward, ended, _ = env.step_env(jax.random.key(t), state, plan[t], task)
                total, alive = total + alive * reward, alive * (1.0 - ended)
            return total

        returns = jax.vmap(jax.vmap(earned, (None, 0)), (0, None))(jnp.arange(4), plans)
        np.testing.assert_allclose(
            optimal_return(task, size=2, horizon=3), returns.max(1).mean(), rtol=1e-5
        )


def test_nobody_beats_the_optimum():
    family = tasks.make("gridworld", size=3, horizon=6)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 50, split="test")
    best = evaluation.optimal_returns(jax.random.key(1), drawn, family=family)
    random = evaluation.random_returns(jax.random.key(2), drawn, family=family, num_streams=200)
    assert np.mean(best) > np.mean(random) + 1.0
    assert np.all(best >= random - 0.3)


def test_bad_settings_are_named():
    with pytest.raises(
        ValueError, match="num_objects=5 must be at most 4, half the cells of size=3"
    ):
        tasks.make("gridworld", size=3, num_objects=5)
    with pytest.raises(ValueError, match="size=1 must be at least 2"):
        tasks.make("gridworld", size=1)
