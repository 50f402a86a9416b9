"""λ-returns and their error, written out; recurrent Q's own tests hold the rest of the module."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.algorithms.recurrent_q import Hyper
from jaxmeta.learners import action_values

SCALE = jnp.asarray([1.0, 2.0])
Q = np.array([[0.0, 1.0], [2.0, 1.0], [-1.0, 0.5], [3.0, 0.0]])
ACTION = [1, 1, 1, 0]  # the second is not the best
REWARD = [1.0, 2.0, 4.0, 8.0]


def a_batch():
    counted = jnp.ones((1, 4), bool)
    return action_values.Batch(None, jnp.asarray([ACTION]), jnp.asarray([REWARD]), counted)


def by_hand(trace, discount=0.5, lambda_=0.25):
    """Backwards: r + γ [(1 - λ) max Q' + λ G'], in rewards' units."""
    best = 1.0 + 2.0 * Q.max(1)
    returns, after = np.zeros(4), None
    for t in reversed(range(4)):
        returns[t] = REWARD[t]
        if t < 3:
            goes_on = trace == "peng" or ACTION[t + 1] == Q[t + 1].argmax()
            kept = lambda_ * goes_on
            returns[t] += discount * ((1 - kept) * best[t + 1] + kept * after)
        after = returns[t]
    return returns


@pytest.mark.parametrize("trace", action_values.TRACES)
def test_returns_and_their_error_written_out(trace):
    hyper = Hyper(discount=0.5, trace_lambda=0.25)
    q = jnp.asarray(Q)[None]
    found = action_values.lambda_returns(q, a_batch(), SCALE, hyper, trace)
    expected = by_hand(trace)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    told = dict(trace=trace, divisor=jnp.asarray(8))  # twice the steps: a minibatch of two chunks
    error = action_values.value_error(q, a_batch(), SCALE, hyper, **told)
    taken = Q[np.arange(4), ACTION]
    np.testing.assert_allclose(error, 0.25 * np.mean((taken - (expected - 1) / 2) ** 2), rtol=1e-6)


def test_exploration_of_diverse_tasks_written_out():
    hyper = Hyper(epsilon=0.6, temperature=0.2, diversity=1.0)
    found = action_values.exploring(hyper, 4)
    np.testing.assert_allclose(found.epsilon, [0.15, 0.45, 0.75, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found.temperature, [0.05, 0.15, 0.25, 0.35], rtol=1e-6)
    half = action_values.exploring(hyper._replace(diversity=0.5), 2)
    np.testing.assert_allclose(half.epsilon, [0.45, 0.75], rtol=1e-6)
    for num_tasks in (1, 3):
        alike = action_values.exploring(hyper._replace(diversity=0.0), num_tasks)
        np.testing.assert_array_equal(alike.epsilon, np.full(num_tasks, np.float32(0.6)))
    alone = action_values.exploring(hyper, 1)  # a task alone explores as is scheduled
    np.testing.assert_array_equal(alone.temperature, [np.float32(0.2)])
