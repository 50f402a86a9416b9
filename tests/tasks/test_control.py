"""gymnax's dynamics against gymnasium's, step by step, and the physics that are drawn."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxmeta import evaluation, tasks
from jaxmeta.tasks import derived

FIELDS = {
    "cartpole": ("gravity", "masscart", "masspole", "length", "force_mag"),
    "pendulum": ("g", "m", "l"),
    "mountain_car": ("force", "gravity"),
    "acrobot": ("link_length_1", "link_length_2", "link_mass_1", "link_mass_2", "link_moi"),
}
NAMES = sorted(FIELDS)


def drawn_task(name, key=5, split="train"):
    return getattr(tasks.make(name), split)(jax.random.key(key))


@pytest.mark.parametrize("seed", range(3))
def test_cartpole_is_gymnasium_s_under_drawn_physics(seed):
    task = drawn_task("cartpole", seed)
    reference = gymnasium.make("CartPole-v1").unwrapped
    for field in FIELDS["cartpole"]:
        setattr(reference, field, float(getattr(task, field)))
    reference.total_mass = reference.masspole + reference.masscart
    reference.polemass_length = reference.masspole * reference.length
    compare(
        "cartpole",
        task,
        reference,
        lambda state: (state.x, state.x_dot, state.theta, state.theta_dot),
        seed,
    )


@pytest.mark.parametrize("seed", range(3))
def test_pendulum_is_gymnasium_s_under_drawn_physics(seed):
    task = drawn_task("pendulum", seed)
    reference = gymnasium.make("Pendulum-v1").unwrapped
    for field in FIELDS["pendulum"]:
        setattr(reference, field, float(getattr(task, field)))
    compare("pendulum", task, reference, lambda state: (state.theta, state.theta_dot), seed)


def compare(name, task, reference, state_of, seed):
    env = tasks.make(name).env.env  # within the time limit
    step = jax.jit(env.step_env)
    reference.reset(seed=seed)
    _, state = env.reset_env(jax.random.key(seed), task)
    for t in range(200):
        action = tasks.make(name).random_action(jax.random.key(1000 * seed + t))
        reference.state = np.array(state_of(state), np.float64)
        expected, reward, terminated, _, _ = reference.step(np.asarray(action))
        obs, state, got, done, _ = step(jax.random.key(t), state, action, task)
        np.testing.assert_allclose(obs, expected, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(got, reward, rtol=2e-5, atol=2e-5)
        assert bool(done) == terminated
        reference.steps_beyond_terminated = None
        if done:
            _, state = env.reset_env(jax.random.key(7 * t), task)


@pytest.mark.parametrize("name", NAMES)
def test_factors_lie_where_the_split_says(name):
    scale = {"cartpole": 2.0, "pendulum": 1.5, "mountain_car": 1.2, "acrobot": 1.3}[name]
    family = tasks.make(name)
    standard = family.env.default_params
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 500, split=split)
        for field in FIELDS[name]:
            factor = np.abs(np.log(getattr(drawn, field) / getattr(standard, field))) / np.log(
                scale
            )
            if split == "out_of_distribution":
                assert factor.min() >= 0.999
                assert 1.4 < factor.max() <= 1.501
            else:
                assert 0.95 < factor.max() <= 1.001
                np.testing.assert_allclose(factor.mean(), 0.5, atol=0.05)


def test_what_is_derived_follows_what_is_drawn():
    drawn = tasks.sample_tasks(jax.random.key(0), tasks.make("cartpole"), 5, split="train")
    np.testing.assert_allclose(drawn.total_mass, drawn.masscart + drawn.masspole)
    np.testing.assert_allclose(drawn.polemass_length, drawn.masspole * drawn.length)
    drawn = tasks.sample_tasks(jax.random.key(0), tasks.make("acrobot"), 5, split="train")
    np.testing.assert_allclose(drawn.link_com_pos_2, drawn.link_length_2 / 2)


@pytest.mark.parametrize("name", NAMES)
def test_every_drawn_field_changes_the_dynamics(name):
    """A parameter that an environment ignores would make tasks differ in name only."""
    family = tasks.make(name)
    task = drawn_task(name)
    env = family.env.env  # within the time limit
    _, state = env.reset_env(jax.random.key(0), task)
    leaves, structure = jax.tree.flatten(state)
    state = jax.tree.unflatten(
        structure,
        [x + 0.01 if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating) else x for x in leaves],
    )
    if name == "pendulum":  # gravity has no effect where the rod stands straight
        state = state.replace(theta=jnp.array(1.0))
    action = jnp.zeros(1) + 1.0 if name == "pendulum" else jnp.array(0)

    def successor(task):
        return env.step_env(jax.random.key(1), state, action, task)[0]

    for field in FIELDS[name]:
        changed = task.replace(**{field: getattr(task, field) * 1.5})
        changed = derived.with_derived(changed, [field])
        assert not np.allclose(successor(task), successor(changed), rtol=1e-7, atol=1e-9), field


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [("cartpole", 195), ("pendulum", -500), ("mountain_car", -150), ("acrobot", -200)],
)
def test_experts_are_far_better_than_random(name, least):
    """Mean returns in and out of distribution; random agents earn about 25, -1260, -200 and -495."""
    family = tasks.make(name)
    splits = ("test", "out_of_distribution")
    drawn = [tasks.sample_tasks(jax.random.key(0), family, 20, split=split) for split in splits]
    both = jax.tree.map(lambda *x: jnp.concatenate(x), *drawn)
    returns = jax.jit(
        lambda tasks: evaluation.expert_returns(
            jax.random.key(1), tasks, family=family, num_streams=2
        )
    )(both)
    assert np.all(np.asarray(returns).reshape(2, 20).mean(1) > least)


@pytest.mark.parametrize("name", NAMES)
def test_experts_act_within_the_action_space(name):
    family = tasks.make(name)
    task = drawn_task(name)
    for obs in jax.random.normal(jax.random.key(0), (20, *family.observation_shape)):
        action = family.expert_action(task, obs)
        assert action.shape == family.action_space.shape
        assert action.dtype == family.action_space.dtype
        assert family.action_space.contains(action)


def test_horizon_is_the_time_limit():
    family = tasks.make("pendulum", horizon=4)
    task = family.train(jax.random.key(0))
    _, state = family.env.reset_env(jax.random.key(0), task)
    for t in range(4):
        assert not family.env.is_truncated(state, task)
        _, state, *_ = family.env.step_env(jax.random.key(t), state, jnp.zeros(1), task)
    assert family.env.is_truncated(state, task)


def test_one_environment_a_name():
    """gymnax environments hash by identity; two would compile everything twice."""
    assert tasks.make("cartpole").env == tasks.make("cartpole", scale=1.5).env


def test_bad_scale_is_named():
    with pytest.raises(ValueError, match=r"scale=0.5 must lie between 1 and"):
        tasks.make("pendulum", scale=0.5)


@pytest.mark.parametrize("name", ["cartpole", "pendulum", "mountain_car", "acrobot"])
def test_independent_numbers_make_the_training_tasks(name):
    """The ends of the range, and the law of the training tasks by a test of Kolmogorov and Smirnov."""
    family = tasks.make(name)
    size, made = family.parameters
    corners = jax.vmap(made)(jnp.array([[0.0], [1.0]]) * jnp.ones((1, size)))
    drawn = tasks.sample_tasks(jax.random.key(0), family, 500, split="train")
    x = jax.random.uniform(jax.random.key(1), (500, size))
    others = jax.vmap(made)(x)
    varying = 0
    for path, ours in jax.tree_util.tree_leaves_with_path(others):
        theirs = np.asarray(dict(jax.tree_util.tree_leaves_with_path(drawn))[path])
        ends = dict(jax.tree_util.tree_leaves_with_path(corners))[path]
        if np.all(theirs == theirs[:1]):
            np.testing.assert_array_equal(ours, theirs)
            continue
        varying += 1
        assert np.min(ends) <= np.min(theirs) * 1.0001
        assert np.max(ends) >= np.max(theirs) * 0.9999
        assert scipy.stats.ks_2samp(np.asarray(ours), np.asarray(theirs)).pvalue > 1e-4
    assert varying >= size
