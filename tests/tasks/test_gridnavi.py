import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta import evaluation, tasks
from jaxmeta.rollout import begin_stream
from jaxmeta.tasks.gridnavi import MOVES, GridNavi, GridNaviParams, GridNaviState, goals
from tests.probes import constant_learner

SIZE = 5
NEAR = [(1, 0), (0, 1), (1, 1)]
CELLS = [(x, y) for y in range(SIZE) for x in range(SIZE)]  # in the observation's order


def every_step(size, task_goals):
    """What each action does in each cell under each goal: successor and reward, ``[G, C, A]``."""
    env = GridNavi(size)
    cells = jnp.array([(x, y) for y in range(size) for x in range(size)])

    def step(goal, position, action):
        state = GridNaviState(position=position, time=jnp.array(3))
        return env.step_env(jax.random.key(0), state, action, GridNaviParams(goal=goal))

    over_actions = jax.vmap(step, (None, None, 0))
    over_cells = jax.vmap(over_actions, (None, 0, None))
    over_goals = jax.jit(jax.vmap(over_cells, (0, None, None)))
    obs, state, reward, terminated, _ = over_goals(jnp.array(task_goals), cells, jnp.arange(5))
    assert not terminated.any()
    assert jnp.all(state.time == 4)
    index = state.position[..., 0] + size * state.position[..., 1]
    assert jnp.array_equal(obs, jax.nn.one_hot(index, size**2))
    return np.asarray(index), np.asarray(reward)


def test_every_action_in_every_cell_under_every_goal():
    index, reward = every_step(SIZE, CELLS)
    steps = dict(stay=(0, 0), up=(0, 1), right=(1, 0), down=(0, -1), left=(-1, 0))
    assert MOVES.tolist() == [list(step) for step in steps.values()]
    for c, (x, y) in enumerate(CELLS):
        for a, (dx, dy) in enumerate(steps.values()):
            there = (x + dx, y + dy)
            there = there if there in CELLS else (x, y)  # walls
            for g, goal in enumerate(CELLS):
                assert CELLS[index[g, c, a]] == there
                assert reward[g, c, a] == np.float32(1.0 if there == goal else -0.1)


def test_an_episode_begins_in_the_corner_and_ends_at_the_horizon():
    env = GridNavi(horizon=4)
    obs, state = env.reset_env(jax.random.key(0), env.default_params)
    assert obs.tolist() == [1.0] + [0.0] * 24
    assert state.position.tolist() == [0, 0]
    for _ in range(4):
        assert not env.is_truncated(state, env.default_params)
        _, state, *_ = env.step_env(jax.random.key(0), state, jnp.array(1), env.default_params)
    assert env.is_truncated(state, env.default_params)


def test_goals_are_the_cells_outside_the_start_s_block():
    assert [tuple(goal) for goal in goals(SIZE)] == [c for c in CELLS if c not in [(0, 0), *NEAR]]
    assert goals(SIZE).shape == (21, 2)
    assert goals(SIZE).dtype == MOVES.dtype == np.int32
    assert [tuple(goal) for goal in goals(3)] == [(2, 0), (2, 1), (0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("split", tasks.SPLITS)
def test_goals_are_uniform_over_those_of_the_split(split):
    family = tasks.make("gridnavi")
    drawn = jax.jit(lambda key: tasks.sample_tasks(key, family, 5000, split=split))
    goal = drawn(jax.random.key(0)).goal
    assert goal.dtype == jnp.int32
    possible = NEAR if split == "out_of_distribution" else goals(SIZE).tolist()
    counts = np.bincount(goal[:, 0] + SIZE * goal[:, 1], minlength=SIZE**2)
    candidates = [CELLS.index(tuple(cell)) for cell in possible]
    assert counts[candidates].sum() == 5000
    assert scipy.stats.chisquare(counts[candidates]).pvalue > 1e-4


def batch(size):
    """Every goal there can be in any split."""
    return GridNaviParams(goal=jnp.concatenate([jnp.array(NEAR), jnp.asarray(goals(size))]))


@pytest.mark.parametrize(("size", "horizon"), [(5, 15), (5, 3), (3, 1)])
def test_optimal_return_is_that_of_dynamic_programming(size, horizon):
    """Backward induction over the table of all steps, for each goal; horizons too short included."""
    family = tasks.make("gridnavi", size=size, horizon=horizon)
    index, reward = every_step(size, batch(size).goal)
    v = np.zeros((len(index), size**2))
    for _ in range(horizon):
        v = (reward + np.stack([v[g, index[g]] for g in range(len(index))])).max(-1)
    np.testing.assert_allclose(
        jax.vmap(family.optimal_return)(batch(size)), v[:, 0], rtol=1e-5, atol=1e-5
    )


def test_the_optimum_told_the_goal_is_44_286_in_four_episodes(x64):
    """On average over the 21 goals, each episode from the corner: 4 (16.1 - 1.1 · 96 / 21) = 310 / 7."""
    family = tasks.make("gridnavi")
    optimal = jax.vmap(family.optimal_return)(GridNaviParams(goal=jnp.asarray(goals(SIZE))))
    np.testing.assert_allclose(4 * optimal.mean(), 310 / 7, rtol=1e-14)
    assert round(310 / 7, 3) == 44.286


@pytest.mark.parametrize(("size", "horizon"), [(5, 15), (4, 3)])
def test_optimal_actions_earn_the_optimal_return(size, horizon):
    family = tasks.make("gridnavi", size=size, horizon=horizon)
    led = dataclasses.replace(family, expert_action=family.optimal_action)
    earned = jax.jit(
        lambda tasks: evaluation.expert_returns(jax.random.key(0), tasks, family=led, num_streams=1)
    )(batch(size))
    optimal = evaluation.optimal_returns(jax.random.key(0), batch(size), family=family)
    np.testing.assert_allclose(earned, optimal, rtol=1e-5, atol=1e-5)


def test_optimal_action_nears_the_goal_from_every_cell():
    """Off the best path, too: one cell nearer with each step, and on the goal it stays."""
    family = tasks.make("gridnavi")
    obs = jnp.eye(SIZE**2)
    over_obs = jax.vmap(family.optimal_action, (None, 0))
    actions = jax.vmap(over_obs, (0, None))(GridNaviParams(goal=jnp.array(CELLS)), obs)
    assert actions.dtype == jnp.int32
    cells, moves = np.array(CELLS), MOVES[np.asarray(actions)]
    distance = lambda x: np.abs(x - cells[:, None]).sum(-1)  # noqa: E731
    before, after = distance(cells[None]), distance(cells[None] + moves)
    assert np.array_equal(after, np.maximum(before - 1, 0))


def test_types_are_kept_where_float_is_float64(x64):
    family = tasks.make("gridnavi")
    task = family.train(jax.random.key(0))
    stream = begin_stream(jax.random.key(1), None, task, learner=constant_learner(), env=family.env)
    action = family.optimal_action(task, stream.timestep.obs)
    obs, state, reward, *_ = family.env.step_env(jax.random.key(2), stream.env_state, action, task)
    assert obs.dtype == reward.dtype == family.optimal_return(task).dtype == jnp.float64
    assert task.goal.dtype == state.position.dtype == action.dtype == jnp.int32
    before, after = (
        [(x.dtype, x.weak_type) for x in jax.tree.leaves(s)] for s in (stream.env_state, state)
    )
    assert before == after
    assert not reward.weak_type


def test_equal_settings_are_equal_environments():
    assert GridNavi(4, horizon=5) == GridNavi(4, horizon=5)
    assert hash(GridNavi(4, horizon=5)) == hash(GridNavi(4, horizon=5))
    assert len({GridNavi(*settings) for settings in itertools.product((4, 5), (5, 6))}) == 4


@given(size=st.integers(max_value=2), horizon=st.integers(max_value=0))
def test_settings_too_small_are_named(size, horizon):
    with pytest.raises(ValueError, match=f"size={size} must be at least 3"):
        tasks.make("gridnavi", size=size)
    with pytest.raises(ValueError, match=f"horizon={horizon} must be at least 1"):
        tasks.make("gridnavi", horizon=horizon)


def test_a_size_that_is_no_integer_is_named():
    with pytest.raises(TypeError, match="size=5.0 must be an integer of at least 3"):
        tasks.make("gridnavi", size=5.0)
