from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.estimators import baselines, episodes, returns, units
from jaxmeta.estimators.baselines import linear_features
from jaxmeta.types import TimeStep, Trajectory
from tests.probes import CounterParams, constant_learner
from tests.rollouts.test_rollout import ENV, act_in

td_errors = jax.jit(baselines.baseline_td_errors, static_argnums=2, static_argnames="baseline")
linear_baseline = jax.jit(baselines.linear_baseline)


def trajectories(num_streams=6, num_steps=8):
    task = CounterParams(terminate_at=99, truncate_at=num_steps)
    learner = constant_learner()
    _, data = act_in(ENV, task, learner, num_steps=num_steps)
    data = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_streams, *x.shape)), data)
    return data._replace(reward=jax.random.normal(jax.random.key(0), (num_streams, num_steps)))


def test_a_stream_s_baseline_does_not_depend_on_the_stream():
    data = trajectories()
    discount = 0.9 * data.discount
    delta = td_errors(data, discount, 8)
    changed = data._replace(reward=data.reward.at[2].add(5.0))
    moved = td_errors(changed, discount, 8) - delta
    # In its own stream only the rewards show, in the others the new fit does.
    np.testing.assert_allclose(moved[2], 5.0, rtol=1e-4)
    assert np.abs(np.delete(np.asarray(moved), 2, 0)).max() > 0.1


def test_a_baseline_of_the_time_alone_does_not_see_the_observations():
    data = trajectories()
    noise = jax.random.normal(jax.random.key(1), data.timestep.obs.shape)
    seen, unseen = (
        data._replace(timestep=data.timestep._replace(obs=obs)) for obs in (noise, 0.0 * noise)
    )
    discount = 0.9 * data.discount
    blind = td_errors(seen, discount, 8, baseline="time")
    np.testing.assert_allclose(blind, td_errors(unseen, discount, 8), atol=1e-4)
    assert np.abs(blind - td_errors(seen, discount, 8)).max() > 0.1


def test_neither_large_observations_nor_the_unit_of_rewards_show_in_the_baseline():
    """In single precision: near 1 000, a time stamp, far too large and far too small to be squared. And
    beside a coordinate that never moves."""
    data = trajectories(num_steps=20)
    obs = jax.random.normal(jax.random.key(1), (6, 20, 2))
    reward = data.reward + obs[..., 0] * obs[..., 1]

    @jax.jit
    def delta(scale, shift, unit):
        seen = jnp.stack([scale * obs[..., 0] + shift, obs[..., 1], shift + 0.0 * reward], axis=-1)
        earned = data._replace(timestep=data.timestep._replace(obs=seen), reward=unit * reward)
        return td_errors(earned, 0.9 * data.discount, 20)

    usual = delta(1.0, 0.0, 1.0)
    assert jnp.max(jnp.abs(usual - reward)) > 0.5  # the baseline does something
    for scale, shift in ((1.0, 1e3), (1e6, 1.7e9), (1e30, 0.0), (1e-30, 0.0), (1e-3, 1.0)):
        np.testing.assert_allclose(delta(scale, shift, 1.0), usual, atol=5e-3)
    for unit in (2.0**30, 2.0**-30):
        np.testing.assert_array_equal(delta(1.0, 0.0, unit) / unit, usual)


def test_long_observations_are_left_to_who_asks_for_them():
    """An image makes tens of thousands of features: their fit is neither made unasked nor at all."""
    sees = baselines.sees_observations
    assert sees((248,), "auto")
    assert not sees((249,), "auto")
    assert not sees((2,), "time")
    assert sees((10, 10, 4), "observation")
    image = (64, 64, 3)
    with pytest.raises(ValueError, match=r"makes 24580 features .* \(64, 64, 3\), .*use .*'time'"):
        sees(image, "observation")

    def floats(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    N, T = 20, 100
    timestep = TimeStep(floats(N, T, *image), None, None, floats(N, T))
    data = Trajectory(timestep, None, None, floats(N, T), floats(N, T), floats(N, T), None, None)

    def delta(data):
        return td_errors(data, data.discount, T)

    memory = jax.jit(delta).lower(data).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**20


def test_the_baseline_s_values_end_with_the_episode():
    """Two truncated episodes in a stream: TD errors add up to the return less the value in each of them,
    which they do only if no value of the second is carried into the first."""
    task = CounterParams(terminate_at=99, truncate_at=4)
    _, data = act_in(ENV, task, constant_learner(), num_steps=8)
    data = jax.tree.map(lambda x: jnp.broadcast_to(x, (6, *x.shape)), data)
    data = data._replace(reward=jax.random.normal(jax.random.key(0), (6, 8)))
    discount = 0.9 * data.discount
    assert jnp.all(discount > 0)
    delta = td_errors(data, discount, 4)
    zeros = jnp.zeros((6, 8))
    g = jax.vmap(returns.discounted_returns)(data.reward, discount, v_next=zeros, last=data.last)
    features = jax.vmap(lambda obs, first: linear_features(obs, episodes.episode_step(first), 4))(
        data.timestep.obs, data.timestep.first
    )
    advantage = jax.vmap(partial(returns.gae, lambda_=1.0))(delta, discount, last=data.last)
    np.testing.assert_allclose(advantage, g - linear_baseline(features, g), atol=1e-4)


def test_the_baseline_explains_what_time_explains():
    data = trajectories(num_streams=20)
    data = data._replace(reward=data.reward * 0.01 + 1.0)
    delta = td_errors(data, 1.0 * data.discount, 8)
    assert np.abs(delta).max() < 0.15  # returns reach 8


@pytest.mark.parametrize("num_streams", [1, 2])
def test_few_streams_are_no_trouble(num_streams):
    data = trajectories(num_streams=num_streams)
    delta = td_errors(data, 0.9 * data.discount, 8)
    assert jnp.all(jnp.isfinite(delta))
    if num_streams == 1:  # nothing to fit a baseline to
        np.testing.assert_allclose(delta, data.reward, atol=1e-5)


def test_what_is_not_counted_changes_neither_baseline_nor_scale():
    """A second episode in a stream: whatever it holds, the first one's TD errors and scale stay."""
    rng = np.random.default_rng(0)
    first = np.zeros((3, 6), bool)
    first[:, [0, 4]] = True
    last = jnp.asarray(np.roll(first, -1, axis=1))
    reward, obs = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 3, 6)))
    discount = 0.9 * (1.0 - last)

    def results(later, counted):
        seen = obs.at[:, 4:].set(later)[..., None]
        earned = reward.at[:, 4:].set(later)
        timestep = TimeStep(seen, reward, reward, jnp.asarray(first))
        data = Trajectory(timestep, reward, reward, earned, discount, last, seen, ())
        delta = td_errors(data, discount, 6, counted)
        advantage = jax.vmap(partial(returns.gae, lambda_=0.9))(delta, discount, last=last)
        return delta[:, :4], units.advantage_scale(advantage, counted)

    counted = jax.vmap(episodes.in_first_episode)(last)
    for x, y in zip(results(0.0, counted), results(50.0, counted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    for x, y in zip(results(0.0, None), results(50.0, None), strict=True):
        assert jnp.max(jnp.abs(x - y)) > 1e-2  # and it is the mask that does it


def test_linear_features():
    obs, step = jnp.array([[2.0], [3.0]]), jnp.array([0.0, 5.0])
    phi = baselines.linear_features(obs, step, 10)
    np.testing.assert_allclose(phi, [[2, 4, -1, 1, -1, 1], [3, 9, 0, 0, 0, 1]], atol=1e-6)


def test_linear_baseline_is_least_squares_on_the_other_streams(x64):
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(4, 7, 3)), rng.normal(size=(4, 7))
    predicted = linear_baseline(jnp.array(features), jnp.array(targets), ridge=0.0)
    for n in range(4):
        others = [i for i in range(4) if i != n]
        w = np.linalg.lstsq(
            features[others].reshape(-1, 3), targets[others].reshape(-1), rcond=None
        )[0]
        np.testing.assert_allclose(predicted[n], features[n] @ w, atol=1e-5)


def test_the_units_of_features_do_not_show_in_a_baseline(x64):
    features, targets = jax.random.normal(jax.random.key(0), (4, 4, 7, 3)), jnp.ones((4, 7))
    targets = targets + features[3, :, :, 0]
    usual = linear_baseline(features[0], targets)
    other = linear_baseline(features[0] * jnp.array([[[1e-9, 1.0, 1e9]]]), 1e6 * targets)
    np.testing.assert_allclose(other, 1e6 * usual, rtol=1e-9)


def test_linear_baseline_survives_what_breaks_normal_equations():
    """Collinear features, a feature that is zero throughout, large values: in float32."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 50, 1)) * 100
    features = np.concatenate([x, 2 * x, 0 * x, np.ones_like(x)], axis=2)
    predicted = linear_baseline(jnp.array(features), jnp.array(3 * x[..., 0] + 1))
    np.testing.assert_allclose(predicted, 3 * x[..., 0] + 1, rtol=0.02, atol=1.0)


@pytest.mark.parametrize("size", [1, 3, 20])
def test_small_systems_are_solved_without_lapack(size, x64):
    rng = np.random.default_rng(size)
    root = rng.normal(size=(5, size, size))
    a = root @ root.transpose(0, 2, 1) * 10.0 ** rng.uniform(-3, 3) + 1e-3 * np.eye(size)
    b = rng.normal(size=(5, size))
    solve = jax.jit(jax.vmap(baselines._solve_positive_definite))
    expected = np.linalg.solve(a, b[..., None])[..., 0]
    np.testing.assert_allclose(solve(a, b), expected, rtol=1e-6, atol=1e-8)
