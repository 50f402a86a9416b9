"""Brax's dynamics through this library's environment; rewards by hand. Few programs: they compile slowly."""

import dataclasses
import functools
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, rollouts, tasks
from jaxmeta.tasks import locomotion
from jaxmeta.tasks.locomotion import Locomotion, Motion

if importlib.util.find_spec("brax") is None:
    pytest.skip("Brax is not installed", allow_module_level=True)

SHAPES = {
    "half_cheetah_direction": (17, 6),
    "half_cheetah_velocity": (17, 6),
    "ant_direction": (27, 8),
    "ant_goal": (29, 8),
    "walker_params": (17, 6),
}
NAMES = sorted(SHAPES)


def brax_step(body, state, action):
    """Brax's own step, from a state of its own."""
    with locomotion._brax_at_work():
        return body.step(state, action)


def test_the_half_cheetah_is_brax_s_and_its_task_the_sign_of_velocity():
    """Both ways at once, with actions out of range, which are clipped."""
    env = tasks.make("half_cheetah_direction").env
    body = env._standard_body()

    def compare(key, task):
        reset_key, act_key = jax.random.split(key)
        obs, ours = env.reset_env(reset_key, task)
        with locomotion._brax_at_work():
            theirs = body.reset(reset_key)

        def step(carry, key):
            ours, theirs = carry
            action = jax.random.uniform(key, (6,), minval=-1.3, maxval=1.3)
            obs, ours, reward, terminated, _ = env.step_env(key, ours, action, task)
            theirs = brax_step(body, theirs, jnp.clip(action, -1, 1))
            parts = theirs.metrics["x_velocity"], theirs.metrics["reward_ctrl"]
            return (ours, theirs), (obs, theirs.obs, reward, *parts, terminated)

        _, steps = jax.lax.scan(step, (ours, theirs), jax.random.split(act_key, 5))
        return obs, theirs.obs, steps

    both = jax.tree.map(lambda sign: jnp.array([sign, -sign]), env.default_params)
    first, expected_first, (obs, expected, reward, velocity, cost, terminated) = jax.jit(
        jax.vmap(compare, (None, 0))
    )(jax.random.key(0), both)
    np.testing.assert_allclose(first, expected_first, atol=1e-6)
    np.testing.assert_allclose(obs, expected, rtol=1e-3, atol=1e-3)
    # Brax charges 0.1 times the sum of the squares.
    sign = np.array([[1.0], [-1.0]])
    np.testing.assert_allclose(reward, sign * velocity + 0.5 * cost, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(obs[0], obs[1])
    assert np.abs(velocity).max() > 0.1
    assert not np.any(terminated)


def lived(direction):
    """Seven random steps with episodes of three; the same keys whatever the direction."""
    family = tasks.make("half_cheetah_direction", horizon=3)
    task = family.env.default_params.replace(direction=direction)
    learner = evaluation.controller_learner(lambda key, *_: family.random_action(key))
    setup = rollouts.Setup(learner, family.env, num_streams=1, num_steps=7)
    history = rollouts.lifetime(jax.random.key(1), task, task, setup=setup, num_updates=0)
    return jax.tree.map(lambda x: x[0, 0], history.trajectories)


def test_the_task_outlasts_episodes():
    data = jax.jit(jax.vmap(lived))(jnp.array([1.0, -1.0]))
    assert data.last.tolist() == 2 * [[False, False, True, False, False, True, False]]
    assert np.all(data.discount == 1)
    np.testing.assert_array_equal(data.action[0], data.action[1])
    moved = data.reward + 0.05 * jnp.sum(data.action**2, axis=-1)
    np.testing.assert_allclose(moved[0], -moved[1], atol=1e-5)
    assert np.all(np.abs(moved) > 1e-3)


@pytest.mark.slow
def test_a_batch_of_tasks_is_each_of_them():
    directions = jnp.array([1.0, -1.0])
    together, alone = jax.jit(jax.vmap(lived))(directions), jax.jit(lived)
    each = jax.tree.map(lambda *x: jnp.stack(x), *map(alone, directions))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    jax.tree.map(close, together, each)


def test_the_ant_sees_where_it_is_and_earns_for_being_near_the_goal():
    env = tasks.make("ant_goal").env
    task = env.default_params.replace(goal=jnp.array([1.0, -2.0]))

    def steps(key):
        obs, state = env.reset_env(key, task)

        def step(state, key):
            action = jax.random.uniform(key, (8,), minval=-1, maxval=1)
            obs, state, reward, _, _ = env.step_env(key, state, action, task)
            return state, (obs, reward, action)

        return obs, jax.lax.scan(step, state, jax.random.split(key, 4))[1]

    first, (obs, reward, action) = jax.jit(steps)(jax.random.key(0))
    assert np.abs(first[:2]).max() < 0.2
    assert np.all(first[None, :2] != obs[:, :2])
    far = np.abs(obs[:, :2] - task.goal[None]).sum(axis=1)
    np.testing.assert_allclose(reward, -far - 0.1 * np.sum(action**2, axis=1), rtol=1e-4)


def test_walkers_differ_by_mass_and_friction_and_fall():
    """All from one start with the same action, held."""
    env = tasks.make("walker_params").env
    body = env._standard_body()
    standard = env.default_params
    drawn = jax.tree.map(
        lambda *x: jnp.stack(x),
        standard,
        standard.replace(mass=standard.mass.at[0].set(3.0)),
        standard.replace(mass=standard.mass.at[6].set(0.4)),
        standard.replace(friction=jnp.array(0.1)),
    )

    action = jnp.array([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])  # bends both legs alike

    def steps(task):
        obs, state = env.reset_env(jax.random.key(0), task)

        def step(state, key):
            obs, state, reward, terminated, _ = env.step_env(key, state, action, task)
            velocity = (reward - 1 + 1e-3 * jnp.sum(action**2)) * body.dt
            return state, (obs, velocity, state.body.x.pos[0, 0], terminated)

        keys = jax.random.split(jax.random.key(1), 80)
        return obs, state.body.x.pos[0, 0], jax.lax.scan(step, state, keys)[1]

    first, start, (obs, moved, place, terminated) = jax.jit(jax.vmap(steps))(drawn)
    np.testing.assert_array_equal(first, np.broadcast_to(first[:1], first.shape))
    for i in range(1, 4):
        assert np.abs(obs[i] - obs[0]).max() > 0.1
    np.testing.assert_allclose(np.cumsum(moved, axis=1) + start[:, None], place, atol=1e-3)
    assert np.all(terminated.any(axis=1))
    assert not np.any(terminated[:, 0])
    low = obs[..., 0] <= 0.8  # the torso's height
    assert np.all(terminated >= low)
    assert np.all(low.any(axis=1) | (np.abs(obs[..., 1]) >= 1).any(axis=1))


def test_drawn_physics_are_those_of_the_system():
    env = tasks.make("walker_params").env
    task = tasks.make("walker_params").train(jax.random.key(0))
    standard, system = env._standard_body().sys, env._body(task).sys
    inertia = system.link.inertia
    np.testing.assert_allclose(inertia.mass / standard.link.inertia.mass, task.mass, rtol=1e-6)
    np.testing.assert_allclose(
        inertia.i, standard.link.inertia.i * task.mass[:, None, None], rtol=1e-6
    )
    np.testing.assert_allclose(system.geom_friction / standard.geom_friction, task.friction)
    assert env._standard_body().sys is standard


@pytest.mark.parametrize("name", NAMES)
def test_spaces_are_those_of_the_body(name):
    family = tasks.make(name)
    num_observed, num_actions = SHAPES[name]
    task = family.train(jax.random.key(0))
    obs, state = jax.eval_shape(family.env.reset_env, jax.random.key(0), task)
    assert obs.shape == family.observation_shape == (num_observed,)
    assert family.action_space.shape == (num_actions,)
    action = family.random_action(jax.random.key(1))
    assert family.action_space.contains(action)
    after = jax.eval_shape(family.env.step_env, jax.random.key(0), state, action, task)
    assert after[0].shape == obs.shape
    assert jax.tree.map(jnp.shape, after[1]) == jax.tree.map(jnp.shape, state)
    assert [x.shape for x in after[2:4]] == [(), ()]


def test_rewards_are_the_papers():
    motion = Motion(position=jnp.array([1.0, 2.0]), velocity=jnp.array([3.0, -4.0]))
    earned = {
        locomotion.HALF_CHEETAH_DIRECTION: (locomotion.Direction(jnp.array(-1.0)), -3.0),
        locomotion.HALF_CHEETAH_VELOCITY: (locomotion.Velocity(jnp.array(1.0)), -2.0),
        locomotion.ANT_DIRECTION: (locomotion.Heading(jnp.array([0.6, -0.8])), 5.0),
        locomotion.ANT_GOAL: (locomotion.Goal(jnp.array([2.0, -1.0])), -4.0),
        locomotion.WALKER_PARAMS: (None, 3.0),
    }
    for kind, (task, expected) in earned.items():
        np.testing.assert_allclose(kind.earned(task, motion), expected, rtol=1e-6)
    costs = {kind: (kind.control_cost, kind.alive, kind.falls) for kind in earned}
    assert list(costs.values()) == [
        (0.05, 0, False),
        (0.05, 0, False),
        (0.5, 1, True),
        (0.1, 0, False),
        (1e-3, 1, True),
    ]


def lived_by(controller, family, num_tasks):
    """Returns of an episode in each of some held-out tasks; what `evaluation` does, but quicker to compile."""

    def episode(key, task):
        obs, state = family.env.reset_env(key, task)

        def step(carry, _):
            obs, state, alive = carry
            action = controller(task, obs)
            obs, state, reward, terminated, _ = family.env.step_env(key, state, action, task)
            return (obs, state, alive & ~terminated), (alive * reward, jnp.abs(action).max())

        start = obs, state, jnp.ones((), bool)
        _, (reward, size) = jax.lax.scan(step, start, length=family.horizon)
        return reward.sum(), size.max()

    drawn = tasks.sample_tasks(jax.random.key(3), family, num_tasks, split="test")
    keys = jax.random.split(jax.random.key(4), num_tasks)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(episode))(keys, drawn))


LEAST = {
    "half_cheetah_direction": 300.0,
    "half_cheetah_velocity": -110.0,
    "ant_direction": 700.0,
    "ant_goal": -250.0,
    "walker_params": 480.0,
}
"""Mean returns that experts exceed; standing still earns about 0, -200, 200, -500 and 200."""


def test_the_cheetah_s_expert_runs_both_ways():
    family = tasks.make("half_cheetah_direction", horizon=40)
    returns, size = lived_by(family.expert_action, family, 6)
    assert returns.mean() > 40
    assert returns.min() > 0
    assert size.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_experts_do_what_is_asked_in_held_out_tasks(name, least):
    """Means of whole episodes; random actions and standing still are far below, as the table of families says."""
    family = tasks.make(name)
    returns, size = lived_by(family.expert_action, family, 20)
    assert returns.mean() > least
    assert size.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_an_expert_is_one_for_the_physics_that_it_was_found_in(name):
    assert tasks.make(name, backend="generalized").expert_action is None
    family = tasks.make(name)
    task = family.train(jax.random.key(0))
    action = family.expert_action(task, 100 * jnp.ones(family.observation_shape))
    assert family.action_space.contains(action)
    assert np.abs(action).max() == 1  # clipped


def test_an_expert_is_a_mixture_of_linear_policies_with_their_constants():
    """By hand, of two policies with two actions that see two numbers."""
    weights = jnp.array([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]], [[0.0, -1.0, 0.25], [30.0, 0.0, 1.0]]])

    def view(task, obs):
        return locomotion.View(jnp.array([1.0, task]), obs)

    kind = dataclasses.replace(locomotion.WALKER_PARAMS, view=view)
    obs = jnp.array([0.1, -0.2])
    action = locomotion.linear_action(weights, 0.5, obs, kind=kind)
    np.testing.assert_allclose(action, [0.1 + 0.5 + 0.5 * (0.2 + 0.25), 1.0], rtol=1e-6)
    kind = dataclasses.replace(
        kind, view=lambda *x: view(*x)._replace(turn=jnp.array([[0.0, -1.0], [1.0, 0.0]]))
    )
    turned = locomotion.linear_action(weights, 0.0, obs, kind=kind)
    np.testing.assert_allclose(turned, [0.2, 0.6], rtol=1e-6)


@pytest.mark.slow
def test_the_ant_is_the_same_after_a_quarter_turn():
    """Brax's dynamics from a pose, and from the same pose turned, with the motors renamed."""
    body = tasks.make("ant_goal").env._standard_body()
    seen, motors = (turns[1] for turns in locomotion._quarter_turns())
    rng = np.random.default_rng(0)
    pose = np.array(body.sys.init_q)
    pose[7:] += rng.uniform(-0.2, 0.2, 8)
    obs = np.concatenate([pose, rng.normal(scale=0.3, size=14)])
    action = rng.uniform(-1, 1, 8)

    def after(obs, action):
        with locomotion._brax_at_work():
            state = body.pipeline_init(obs[:15], obs[15:])
            for _ in range(2):
                state = body.pipeline_step(state, action)
            return body._get_obs(state)

    both = np.stack([obs, seen @ obs]), np.stack([action, motors @ action])
    one, turned = np.asarray(jax.jit(jax.vmap(after))(*both))
    np.testing.assert_allclose(seen @ one, turned, atol=0.05)
    assert np.abs(one - turned).max() > 1


def test_experts_of_ants_see_their_way_along_x():
    """Whichever of the four axes is nearest to it; what they do is turned back."""
    stand = jnp.zeros(27).at[0].set(0.5)
    for turns, heading in enumerate([[0.8, 0.6], [-0.6, 0.8], [-0.8, -0.6], [0.6, -0.8]]):
        heading = jnp.array(heading)
        view = locomotion.ANT_DIRECTION.view(
            locomotion.Heading(heading), stand.at[13:15].set(heading)
        )
        np.testing.assert_allclose(view.obs[:15], [*stand[:13].tolist(), 0.8, 0.6], atol=1e-6)
        np.testing.assert_array_equal(view.turn, locomotion._quarter_turns()[1][turns])
        place = jnp.array([5.0, -7.0])
        goal = locomotion.Goal(place + 0.5 * heading)
        view = locomotion.ANT_GOAL.view(goal, jnp.concatenate([place, stand]))
        np.testing.assert_allclose(view.obs[:3], [0.4, 0.3, 0.5], atol=1e-6)
        np.testing.assert_allclose(view.mixture, [0.4, 0.6], atol=1e-6)


def drawn(name, split):
    return tasks.sample_tasks(jax.random.key(0), tasks.make(name), 4000, split=split)


@pytest.mark.parametrize("split", ["train", "test"])
def test_tasks_follow_their_law(split):
    direction = np.asarray(drawn("half_cheetah_direction", split).direction)
    assert set(direction.tolist()) == {1.0, -1.0}
    assert abs(direction.mean()) < 0.05
    velocity = np.asarray(drawn("half_cheetah_velocity", split).velocity)
    np.testing.assert_allclose(np.quantile(velocity, [0, 0.5, 1]), [0, 1, 2], atol=0.05)
    heading = np.asarray(drawn("ant_direction", split).heading)
    assert {tuple(x) for x in heading.tolist()} == {(1.0, 0.0), (-1.0, 0.0)}
    distance = np.linalg.norm(drawn("ant_goal", split).goal, axis=1)
    np.testing.assert_allclose(  # of the disc's area, half is within √½ of its radius
        np.quantile(distance, [0.5, 1]), [3 / np.sqrt(2), 3], atol=0.05
    )
    walker = drawn("walker_params", split)
    size = np.log(np.c_[walker.mass, walker.friction]) / np.log(2)
    assert size.shape == (4000, 8)
    np.testing.assert_allclose(
        np.quantile(size, [0, 0.25, 1], axis=0),
        np.array([[-1.0], [-0.5], [1.0]]) + np.zeros(8),
        atol=0.05,
    )


def test_tasks_out_of_distribution_lie_outside():
    split = "out_of_distribution"
    forward = np.mean(drawn("half_cheetah_direction", split).direction > 0)
    np.testing.assert_allclose(forward, 0.9, atol=0.02)
    velocity = np.asarray(drawn("half_cheetah_velocity", split).velocity)
    np.testing.assert_allclose(np.quantile(velocity, [0, 0.5, 1]), [2, 2.5, 3], atol=0.05)
    heading = np.asarray(drawn("ant_direction", split).heading)
    np.testing.assert_allclose(np.linalg.norm(heading, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(heading.mean(axis=0), 0, atol=0.05)
    distance = np.linalg.norm(drawn("ant_goal", split).goal, axis=1)
    np.testing.assert_allclose([distance.min(), distance.max()], [3, 4.5], atol=0.05)
    walker = drawn("walker_params", split)
    size = np.abs(np.log(np.c_[walker.mass, walker.friction])) / np.log(2)
    np.testing.assert_allclose([size.min(), size.max()], [1, 1.5], atol=0.01)


def test_environments_of_equal_settings_are_one():
    env = tasks.make("half_cheetah_direction").env
    assert env == tasks.make("half_cheetah_direction").env
    assert hash(env) == hash(Locomotion(locomotion.HALF_CHEETAH_DIRECTION))
    assert env != tasks.make("half_cheetah_direction", horizon=7).env
    assert env._standard_body() is tasks.make("half_cheetah_velocity").env._standard_body()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="backend='springs' is unknown: did you mean 'spring'"):
        tasks.make("ant_goal", backend="springs")
    with pytest.raises(ValueError, match="scale=1 must be above 1"):
        tasks.make("walker_params", scale=1)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "brax", None)
    with pytest.raises(ImportError, match=r'pip install "jaxmeta\[brax\]"'):
        tasks.make("ant_direction")
