import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.tasks.navigation import Navigation, NavigationParams, NavigationState, optimal_action

TASK = NavigationParams(goal=jnp.array([0.3, -0.4]))


def step(env, position, action):
    state = NavigationState(position=jnp.array(position), time=jnp.array(0))
    return env.step_env(jax.random.key(0), state, jnp.array(action), TASK)


def test_a_move_is_clipped_per_axis_and_rewarded_where_it_ends():
    obs, state, reward, terminated, _ = step(Navigation(), [0.0, 0.0], [0.05, -9.0])
    np.testing.assert_allclose(obs, [0.05, -0.1])
    assert jnp.array_equal(state.position, obs)
    np.testing.assert_allclose(reward, -(0.25**2 + 0.3**2), rtol=1e-6)
    assert not terminated
    np.testing.assert_allclose(
        step(Navigation(reward="distance"), [0.0, 0.0], [0.05, -9.0])[2],
        -np.hypot(0.25, 0.3),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("position", "reward"), [([0.3, -0.4], 1.0), ([0.3, -0.3], 0.5), ([0.3, -0.19], 0.0)]
)
def test_sparse_reward_begins_at_the_radius(position, reward):
    env = tasks.make("sparse_navigation", radius=0.2).env
    np.testing.assert_allclose(step(env, position, [0.0, 0.0])[2], reward, atol=1e-6)


def test_episodes_end_at_the_horizon_or_near_the_goal():
    env = Navigation(horizon=3, goal_tolerance=0.01)
    at = lambda time: NavigationState(position=jnp.zeros(2), time=jnp.array(time))  # noqa: E731
    assert not env.is_truncated(at(2), TASK)
    assert env.is_truncated(at(3), TASK)
    assert step(env, [0.295, -0.395], [0.0, 0.0])[3]
    assert not step(env, [0.32, -0.4], [0.0, 0.0])[3]
    assert not step(Navigation(), [0.3, -0.4], [0.0, 0.0])[3]


def test_goals_of_each_split():
    family = tasks.make("navigation")
    for split in ("train", "test"):
        goals = np.asarray(tasks.sample_tasks(jax.random.key(0), family, 4000, split=split).goal)
        assert np.abs(goals).max() <= 0.5
        np.testing.assert_allclose(goals.mean(0), 0, atol=0.02)
        np.testing.assert_allclose(goals.var(0), 1 / 12, rtol=0.06)
    far = np.asarray(
        tasks.sample_tasks(jax.random.key(0), family, 8000, split="out_of_distribution").goal
    )
    size = np.abs(far).max(1)
    assert size.min() >= 0.5
    assert size.max() <= 0.8
    # Uniform over the frame: each sub-area as often as its size says. Corners are 4 · 0.3² of 1.56.
    corners = (np.abs(far).min(1) > 0.5).mean()
    np.testing.assert_allclose(corners, 4 * 0.3**2 / (1.6**2 - 1), atol=0.015)
    np.testing.assert_allclose(far.mean(0), 0, atol=0.03)


def test_optimal_action_goes_as_far_as_it_may():
    np.testing.assert_allclose(optimal_action(TASK, jnp.zeros(2)), [0.1, -0.1])
    np.testing.assert_allclose(
        optimal_action(TASK, jnp.array([0.28, -0.4])), [0.02, 0.0], atol=1e-6
    )


def test_equal_settings_are_equal_environments():
    assert Navigation(horizon=5) == Navigation(horizon=5)
    assert hash(Navigation(horizon=5)) == hash(Navigation(horizon=5))
    assert Navigation(horizon=5) != Navigation(horizon=6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("navigation", dict(reward="cubed"), "reward='cubed' is unknown"),
        ("navigation", dict(goal_tolerance=-1.0), "goal_tolerance=-1.0 must lie between 0"),
        ("sparse_navigation", dict(radius=0.0), "radius=0.0 must lie between 1e-06"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        tasks.make(name, **settings)


# The half circle


@pytest.mark.parametrize(
    ("position", "reward"), [([0.3, -0.4], 1.0), ([0.3, -0.25], 0.85), ([0.3, -0.19], 0.0)]
)
def test_the_sparse_reward_of_the_half_circle(position, reward):
    """1 - distance within 0.2, as the point robot's code pays it."""
    env = tasks.make("half_circle", reward="sparse").env
    np.testing.assert_allclose(step(env, position, [0.0, 0.0])[2], reward, atol=1e-6)
    env = tasks.make("half_circle").env
    away = np.hypot(*(np.array(position) - TASK.goal))
    np.testing.assert_allclose(step(env, position, [0.0, 0.0])[2], -away, atol=1e-6)


def test_goals_of_the_half_circle():
    family = tasks.make("half_circle")
    every = np.linspace(0, np.pi, 100)
    found = []
    for split, number in (("train", 80), ("test", 20)):
        goals = np.asarray(tasks.sample_tasks(jax.random.key(0), family, 2000, split=split).goal)
        np.testing.assert_allclose(np.hypot(*goals.T), 1.0, rtol=1e-6)
        nearest = np.abs(np.arctan2(goals[:, 1], goals[:, 0])[:, None] - every)
        assert nearest.min(1).max() < 1e-5
        found.append(set(nearest.argmin(1).tolist()))
        assert len(found[-1]) == number
    assert not found[0] & found[1]
    far = tasks.sample_tasks(jax.random.key(0), family, 2000, split="out_of_distribution").goal
    np.testing.assert_allclose(np.hypot(*far.T), 1.0, rtol=1e-6)
    assert far[:, 1].max() < 0
    np.testing.assert_allclose(far.mean(0), [0, -2 / np.pi], atol=0.07)
    other = tasks.make("half_circle", split_seed=1)
    assert tasks.content_hash(other, "train") != tasks.content_hash(family, "train")


def test_the_optimum_of_the_half_circle():
    """By hand for the goal (0, 1): it is reached with the tenth step, and pays within 0.2 from the eighth on."""
    task = NavigationParams(goal=jnp.array([[0.0, 1.0]]))
    dense, sparse = (tasks.make("half_circle", reward=x) for x in ("distance", "sparse"))
    earned = [
        evaluation.optimal_returns(jax.random.key(0), task, family=x)[0] for x in (dense, sparse)
    ]
    # Rounding may put the eighth step's distance a little beyond the radius.
    np.testing.assert_allclose(earned[0], -4.5, rtol=1e-5)
    assert min(abs(earned[1] - x) for x in (0.8 + 0.9 + 11.0, 0.9 + 11.0)) < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(reward="squared_distance"), "reward='squared_distance' .*'distance'"),
        (dict(num_goals=4), "num_goals=4 must be at least 5"),
        (dict(radius=0.0), "radius=0.0 must lie between 1e-06"),
        (dict(split_seed=-1), "split_seed=-1 must be at least 0"),
    ],
)
def test_bad_settings_of_the_half_circle_are_named(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tasks.make("half_circle", **settings)
