import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta import returns
from jaxmeta.networks import linear_baseline, linear_features
from tests.probes import CounterParams, constant_learner
from tests.test_rollout import ENV, act_in

T = 12


def streams(seed):
    """Random rewards, values and flags; where an episode terminated it also ended."""
    rng = np.random.default_rng(seed)
    last = rng.random(T) < 0.3
    terminated = last & (rng.random(T) < 0.5)
    first = np.concatenate([[True], last[:-1]])
    gamma = rng.uniform(0.5, 1.0)
    columns = dict(
        reward=rng.normal(size=T),
        discount=gamma * (1.0 - terminated),
        v=rng.normal(size=T),
        v_next=rng.normal(size=T),
        last=last,
        first=first,
    )
    return {name: jnp.asarray(x) for name, x in columns.items()}


seeds = st.integers(0, 10_000)


@settings(max_examples=20, deadline=None)
@given(seeds, st.booleans())
def test_linear_recurrence_is_its_loop(seed, reverse):
    a, b = np.random.default_rng(seed).normal(size=(2, T))
    expected, y = np.zeros(T), 0.0
    for t in reversed(range(T)) if reverse else range(T):
        y = a[t] + b[t] * y
        expected[t] = y
    result = returns.linear_recurrence(jnp.array(a), jnp.array(b), reverse=reverse)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0, 1))
def test_gae_is_its_loop(seed, lambda_):
    s = streams(seed)
    delta = returns.td_errors(s["reward"], s["discount"], s["v"], s["v_next"])
    expected, advantage = np.zeros(T), 0.0
    for t in reversed(range(T)):
        td = s["reward"][t] + s["discount"][t] * s["v_next"][t] - s["v"][t]
        carried = 0.0 if s["last"][t] else advantage
        advantage = td + s["discount"][t] * lambda_ * carried
        expected[t] = advantage
    result = returns.gae(delta, s["discount"], s["last"], lambda_)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_gae_at_lambda_one_is_the_return_less_the_value(seed):
    """Σ of TD errors telescopes: v cancels between steps when v_next is the next step's v."""
    s = streams(seed)
    inside = jnp.concatenate([s["v"][1:], s["v_next"][-1:]])
    v_next = jnp.where(s["last"], s["v_next"], inside)
    delta = returns.td_errors(s["reward"], s["discount"], s["v"], v_next)
    g = returns.discounted_returns(s["reward"], s["discount"], s["last"], v_next)
    np.testing.assert_allclose(
        returns.gae(delta, s["discount"], s["last"], 1.0), g - s["v"], rtol=1e-4, atol=1e-4
    )


def test_truncation_bootstraps_and_termination_does_not():
    """The same three rewards of 8, γ = 0.5, and a successor worth 100: by hand."""
    for terminate_at, truncate_at, tail in ((99, 3, 100.0), (3, 99, 0.0), (99, 99, 100.0)):
        task = CounterParams(terminate_at=terminate_at, truncate_at=truncate_at)
        _, data = act_in(ENV, task, constant_learner(), num_steps=3)
        g = returns.discounted_returns(
            data.reward, 0.5 * data.discount, data.last, jnp.full(3, 100.0)
        )
        by_hand = [
            8 + 0.5 * (8 + 0.5 * (8 + 0.5 * tail)),
            8 + 0.5 * (8 + 0.5 * tail),
            8 + 0.5 * tail,
        ]
        np.testing.assert_allclose(g, by_hand)


def test_returns_do_not_cross_episodes():
    _, data = act_in(ENV, CounterParams(terminate_at=2), constant_learner(), num_steps=4)
    g = returns.discounted_returns(data.reward, 1.0 * data.discount, data.last, jnp.zeros(4))
    assert g.tolist() == [16, 8, 16, 8]


def test_cumulative_discount_restarts_with_the_episode():
    first = jnp.array([0, 0, 1, 0, 0], bool)
    discount = jnp.array([0.5, 0.0, 0.5, 0.25, 1.0])
    # The stream's first step counts as a start, also in the middle of an episode.
    g = returns.cumulative_discount(discount, first)
    np.testing.assert_allclose(g, [1, 0.5, 1, 0.5, 0.125])


def test_episode_step():
    first = jnp.array([0, 0, 1, 0, 0, 1], bool)
    assert returns.episode_step(first).tolist() == [0, 1, 0, 1, 2, 0]


def test_first_episode_return():
    reward = jnp.array([1.0, 2.0, 4.0, 8.0])
    assert returns.first_episode_return(reward, jnp.array([0, 1, 0, 1], bool)) == 3
    assert returns.first_episode_return(reward, jnp.zeros(4, bool)) == 15
    assert returns.first_episode_return(reward, jnp.array([1, 1, 0, 0], bool)) == 1


def test_discount_and_lambda_can_be_learned_through_returns(x64):
    """A stop hidden in here would make the derivative exactly zero."""
    s = streams(0)

    def loss(gamma_scale, lambda_):
        discount = gamma_scale * s["discount"]
        delta = returns.td_errors(s["reward"], discount, s["v"], s["v_next"])
        return returns.gae(delta, discount, s["last"], lambda_)[0]

    by_gamma, by_lambda = jax.grad(loss, argnums=(0, 1))(1.0, 0.9)
    h = 1e-6
    np.testing.assert_allclose(by_gamma, (loss(1 + h, 0.9) - loss(1 - h, 0.9)) / (2 * h), rtol=1e-6)
    np.testing.assert_allclose(
        by_lambda, (loss(1, 0.9 + h) - loss(1, 0.9 - h)) / (2 * h), rtol=1e-6
    )
    assert abs(by_gamma) > 1e-3
    assert abs(by_lambda) > 1e-3


def trajectories(num_streams=6, num_steps=8):
    task = CounterParams(terminate_at=99, truncate_at=num_steps)
    learner = constant_learner()
    _, data = act_in(ENV, task, learner, num_steps=num_steps)
    data = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_streams, *x.shape)), data)
    return data._replace(reward=jax.random.normal(jax.random.key(0), (num_streams, num_steps)))


def test_a_stream_s_baseline_does_not_depend_on_the_stream():
    data = trajectories()
    discount = 0.9 * data.discount
    delta = returns.baseline_td_errors(data, discount, 8)
    changed = data._replace(reward=data.reward.at[2].add(5.0))
    moved = returns.baseline_td_errors(changed, discount, 8) - delta
    # In its own stream only the rewards show, in the others the new fit does.
    np.testing.assert_allclose(moved[2], 5.0, rtol=1e-4)
    assert np.abs(np.delete(np.asarray(moved), 2, 0)).max() > 0.1


def test_the_baseline_s_values_end_with_the_episode():
    """Two truncated episodes in a stream: TD errors add up to the return less the value in each of them,
    which they do only if no value of the second is carried into the first."""
    task = CounterParams(terminate_at=99, truncate_at=4)
    _, data = act_in(ENV, task, constant_learner(), num_steps=8)
    data = jax.tree.map(lambda x: jnp.broadcast_to(x, (6, *x.shape)), data)
    data = data._replace(reward=jax.random.normal(jax.random.key(0), (6, 8)))
    discount = 0.9 * data.discount
    assert jnp.all(discount > 0)
    delta = returns.baseline_td_errors(data, discount, 4)
    zeros = jnp.zeros((6, 8))
    g = jax.vmap(returns.discounted_returns)(data.reward, discount, data.last, zeros)
    features = jax.vmap(lambda obs, first: linear_features(obs, returns.episode_step(first), 4))(
        data.timestep.obs, data.timestep.first
    )
    advantage = jax.vmap(returns.gae, in_axes=(0, 0, 0, None))(delta, discount, data.last, 1.0)
    np.testing.assert_allclose(advantage, g - linear_baseline(features, g), atol=1e-4)


def test_the_baseline_explains_what_time_explains():
    data = trajectories(num_streams=20)
    data = data._replace(reward=data.reward * 0.01 + 1.0)
    delta = returns.baseline_td_errors(data, 1.0 * data.discount, 8)
    assert np.abs(delta).max() < 0.15  # returns reach 8


def test_advantage_scale_is_the_root_mean_square():
    delta = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    never = jnp.zeros((2, 2), bool)
    scale = returns.advantage_scale(delta, jnp.zeros((2, 2)), never, 1.0)
    np.testing.assert_allclose(scale, 2.5, rtol=1e-6)
    assert returns.advantage_scale(jnp.zeros((2, 2)), jnp.ones((2, 2)), never, 1.0) > 0


@pytest.mark.parametrize("num_streams", [1, 2])
def test_few_streams_are_no_trouble(num_streams):
    data = trajectories(num_streams=num_streams)
    delta = returns.baseline_td_errors(data, 0.9 * data.discount, 8)
    assert jnp.all(jnp.isfinite(delta))
    if num_streams == 1:  # nothing to fit a baseline to
        np.testing.assert_allclose(delta, data.reward, atol=1e-5)
