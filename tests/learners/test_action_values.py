"""λ-returns and their error, written out; recurrent Q's own tests hold the rest of the module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.algorithms.recurrent_q import Hyper
from jaxmeta.learners import action_values
from jaxmeta.learners.buffers import item_buffer
from jaxmeta.types import TimeStep, Trajectory

SCALE = jnp.asarray([1.0, 2.0])
Q = np.array([[0.0, 1.0], [2.0, 1.0], [-1.0, 0.5], [3.0, 0.0]])
ACTION = [1, 1, 1, 0]  # the second is not the best
REWARD = [1.0, 2.0, 4.0, 8.0]


def a_batch():
    counted = jnp.ones((1, 4), bool)
    return action_values.Batch(None, jnp.asarray([ACTION]), jnp.asarray([REWARD]), counted)


def by_hand(last, trace, discount=0.5, lambda_=0.25):
    """Backwards: r + γ [(1 - λ) max Q' + λ G'], in rewards' units."""
    best = 1.0 + 2.0 * Q.max(1)
    returns, after = np.zeros(4), None
    for t in reversed(range(4)):
        returns[t] = REWARD[t]
        if t < 3 and not last[t]:
            goes_on = trace == "peng" or ACTION[t + 1] == Q[t + 1].argmax()
            kept = lambda_ * goes_on
            returns[t] += discount * ((1 - kept) * best[t + 1] + kept * after)
        after = returns[t]
    return returns


@pytest.mark.parametrize("trace", action_values.TRACES)
@pytest.mark.parametrize("last", [[0, 0, 0, 0], [0, 1, 0, 1]])
def test_returns_and_their_error_written_out(trace, last):
    hyper = Hyper(discount=0.5, trace_lambda=0.25)
    told = dict(last=jnp.asarray([last], bool) if any(last) else None)
    q = jnp.asarray(Q)[None]
    found = action_values.lambda_returns(q, a_batch(), SCALE, hyper, trace, **told)
    expected = by_hand(last, trace)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    error = action_values.value_error(q, a_batch(), SCALE, hyper, trace=trace, **told)
    taken = Q[np.arange(4), ACTION]
    np.testing.assert_allclose(error, 0.5 * np.mean((taken - (expected - 1) / 2) ** 2), rtol=1e-6)


def test_without_a_buffer_nothing_is_kept():
    assert action_values.with_replay((), None, None, None, None) == ((), None)


def test_drawn_trials_begin_at_time_zero_with_what_is_kept_of_them():
    pytest.importorskip("flashbax")
    zeros = jnp.zeros((2, 3))
    step = TimeStep(zeros, zeros, zeros, zeros)
    data = Trajectory(step, zeros, zeros, zeros, zeros, zeros, zeros, zeros)
    data, counted = action_values.kept(data, jnp.ones((2, 3), bool))
    assert data.log_prob == data.next_obs == data.memory == ()
    more = jnp.asarray([[5.0], [7.0]])
    items = (data, counted, more)
    buffer = item_buffer(jax.tree.map(lambda x: x[0], items), 4, 3)
    seen = []
    good = jnp.asarray([False, True])
    replay, replayed = action_values.with_replay(
        buffer.init(), buffer, items, good, lambda *parts: seen.append(parts)
    )
    assert buffer.size(replay) == 2
    replayed(jax.random.key(0))
    ((drawn, counted, more),) = seen
    assert more.tolist() == [[7.0]] * 3  # the other is not good
    assert counted.shape == (3, 3)
    assert drawn.memory.time.tolist() == [0, 0, 0]
