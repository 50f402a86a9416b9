"""gymnax's dynamics, and experts that reach what they are told."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.tasks import reaching


def test_the_arm_is_gymnax_s_with_actions_clipped_and_the_goal_hidden():
    family = tasks.make("reacher")
    task = family.train(jax.random.key(0))
    env, _ = gymnax.make("Reacher-misc")
    obs, state = family.env.reset_env(jax.random.key(1), task)
    np.testing.assert_array_equal(state.inner.goal_xy, task.drawn["goal_xy"])
    assert obs.shape == family.observation_shape == (6,)
    for t, action in enumerate(jax.random.normal(jax.random.key(2), (10, 2)) * 2):
        clipped = jnp.clip(action, -1.0, 1.0)
        expected, _, reward, *_ = env.step_env(jax.random.key(t), state.inner, clipped, task.inner)
        obs, state, got, *_ = family.env.step_env(jax.random.key(t), state, action, task)
        np.testing.assert_array_equal(obs, expected[:6])
        assert got == reward
        np.testing.assert_array_equal(expected[6:], task.drawn["goal_xy"])
    shown = tasks.make("reacher", goal_visible=True)
    obs, _ = shown.env.reset_env(jax.random.key(1), task)
    np.testing.assert_array_equal(obs[6:], task.drawn["goal_xy"])


def test_the_swimmer_is_gymnax_s():
    family = tasks.make("swimmer", goal_visible=True)
    task = family.train(jax.random.key(0)).replace(strength=jnp.ones(()))
    env, params = gymnax.make("Swimmer-misc")
    obs, state = family.env.reset_env(jax.random.key(1), task)
    _, reference = env.reset_env(jax.random.key(1), params)
    reference = reference.replace(
        urchin_xys=task.urchins, xy=state.position, xy_vel=state.velocity, goal_xy=task.goal
    )
    np.testing.assert_array_equal(obs, env.get_obs(reference, params))
    for t, action in enumerate(jax.random.normal(jax.random.key(2), (20, 2)) * 2):
        with jax.numpy_rank_promotion("allow"):
            expected, reference, reward, *_ = env.step_env(
                jax.random.key(t), reference, jnp.clip(action, -1.0, 1.0), params
            )
        obs, state, got, terminated, _ = family.env.step_env(jax.random.key(t), state, action, task)
        np.testing.assert_allclose(obs, expected, rtol=1e-6)
        np.testing.assert_allclose(got, reward, rtol=1e-5)
        assert not terminated
    hidden = tasks.make("swimmer")
    np.testing.assert_array_equal(
        hidden.env.reset_env(jax.random.key(1), task)[0],
        hidden.env.reset_env(jax.random.key(1), task.replace(goal=task.goal + 1))[0],
    )


def test_the_swimmer_s_strength_is_its_acceleration():
    family = tasks.make("swimmer")
    task = family.train(jax.random.key(0)).replace(strength=jnp.array(3.0))
    _, state = family.env.reset_env(jax.random.key(1), task)
    _, after, *_ = family.env.step_env(jax.random.key(1), state, jnp.array([0.5, -2.0]), task)
    np.testing.assert_allclose(after.velocity, [0.05 * 1.5, -0.05 * 3.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "inside", "outside"), [("reacher", 1.5, 2.0), ("swimmer", 1.0, 1.5)]
)
def test_goals_lie_where_the_split_says(name, inside, outside):
    family = tasks.make(name)
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 1000, split=split)
        goal = np.asarray(drawn.drawn["goal_xy"] if name == "reacher" else drawn.goal)
        size = np.linalg.norm(goal, axis=1) if name == "reacher" else np.abs(goal).max(axis=1)
        least, most = (inside, outside) if split == "out_of_distribution" else (0.0, inside)
        np.testing.assert_allclose([size.min(), size.max()], [least, most], atol=0.1)
        assert np.all(np.abs(goal.mean(0)) < 0.12)


@pytest.mark.parametrize("name", ["reacher", "swimmer"])
def test_bodies_differ_if_asked_for(name):
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), tasks.make(name, scale=2.0), 500, split=split)
        factors = (
            [drawn.inner.torque_scale, drawn.inner.dt / 0.05]
            if name == "reacher"
            else [drawn.strength]
        )
        for factor in factors:
            size = np.abs(np.log2(factor))
            least, most = (1.0, 1.5) if split == "out_of_distribution" else (0.0, 1.0)
            np.testing.assert_allclose([size.min(), size.max()], [least, most], atol=0.02)
    with pytest.raises(ValueError, match=r"scale=0.5 must lie between 1 and"):
        tasks.make(name, scale=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("reacher", {}, (70, 65)),
        ("reacher", dict(scale=1.5), (65, 50)),
        ("swimmer", {}, (180, 175)),
        ("swimmer", dict(scale=1.5), (180, 165)),
    ],
)
def test_experts_are_far_better_than_random(name, settings, least):
    """Of 100 and 200 at most. Random agents earn about 27 and 78, out of distribution 16 and 53."""
    family = tasks.make(name, **settings)
    drawn = [
        tasks.sample_tasks(jax.random.key(0), family, 20, split=split)
        for split in ("test", "out_of_distribution")
    ]
    both = jax.tree.map(lambda *x: jnp.concatenate(x), *drawn)
    returns = jax.jit(
        lambda tasks: evaluation.expert_returns(
            jax.random.key(1), tasks, family=family, num_streams=2
        )
    )(both)
    assert np.all(np.asarray(returns).reshape(2, 20).mean(1) > least)


def test_the_arm_s_expert_comes_to_rest_with_its_hand_at_the_goal():
    family = tasks.make("reacher")
    drawn = tasks.sample_tasks(jax.random.key(0), family, 30, split="test")

    def hand(task, key):
        obs, state = family.env.reset_env(key, task)

        def step(carry, _):
            obs, state = carry
            obs, state, *_ = family.env.step_env(key, state, reaching.reach(task, obs), task)
            return (obs, state), None

        state = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)
        (obs, _), _ = jax.lax.scan(step, (obs, state), length=300)
        return jnp.stack([obs[:2].sum(), obs[2:4].sum()]), obs[4:6]

    place, velocity = jax.jit(jax.vmap(hand))(drawn, jax.random.split(jax.random.key(1), 30))
    np.testing.assert_allclose(place, drawn.drawn["goal_xy"], atol=0.02)
    np.testing.assert_allclose(velocity, 0.0, atol=0.05)


def test_the_swimmer_s_expert_rests_beside_an_urchin_at_the_goal():
    goal = jnp.array([0.2, 0.1])
    task = reaching.SwimmerParams(goal=goal, urchins=goal[None], strength=jnp.ones(()))
    offsets = np.linspace(-0.5, 0.5, 41)
    best = max(float(reaching.swimmer_reward(goal + jnp.array([x, 0.0]), task)) for x in offsets)
    position, velocity = goal, jnp.zeros(2)
    for _ in range(80):
        action = reaching.swim(task, jnp.concatenate([goal, position, velocity]), dt=0.05)
        velocity = velocity + 0.05 * action
        position = position + 0.05 * velocity
    assert reaching.swimmer_reward(position, task) > 0.95 * best
