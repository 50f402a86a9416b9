"""Weights that depend on the memory, and the memory with a running maximum, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta.networks.heads import action_head
from jaxmeta.networks.hypernetworks import hyper_head, split_aggregation
from jaxmeta.networks.recurrent import feed_forward, gru

SPACE = spaces.Discrete(3)


def test_all_tasks_begin_with_one_ordinary_policy():
    head, ordinary = hyper_head(7, SPACE, 2, (4,)), action_head(5, SPACE, (4,))
    key = jax.random.key(0)
    params, x = head.init(key), jax.random.normal(jax.random.key(1), (3, 2, 7))
    expected = ordinary.apply(ordinary.init(key), x[..., :5]).logits
    np.testing.assert_allclose(head.apply(params, x).logits, expected, rtol=1e-5, atol=1e-7)


def test_weights_are_linear_in_the_memory():
    """W = a + Σ A_i e_i, by hand, of each row its own."""
    head, ordinary = hyper_head(7, SPACE, 2, (4,)), action_head(5, SPACE, (4,))
    params = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape), head.init(jax.random.key(0))
    )
    x = jax.random.normal(jax.random.key(1), (3, 7))
    logits = head.apply(params, x).logits
    for row, found in zip(x, logits, strict=True):
        made = jax.tree.map(
            lambda a, by, e=row[5:]: a + e[0] * by[0] + e[1] * by[1], params["a"], params["A"]
        )
        np.testing.assert_allclose(
            found, ordinary.apply(made, row[:5]).logits, rtol=1e-4, atol=1e-5
        )


def test_the_first_gradient_reaches_what_the_memory_moves():
    head = hyper_head(7, SPACE, 2, (4,))
    params, x = head.init(jax.random.key(0)), jnp.ones(7)
    gradient = jax.grad(lambda params: head.apply(params, x).logits[0])(params)
    assert any(jnp.any(g != 0) for g in jax.tree.leaves(gradient["A"]))


def test_the_policy_must_have_something_to_read():
    with pytest.raises(ValueError, match="num_features=4 must be more than memory_size=4"):
        hyper_head(4, SPACE, 4)


def test_half_of_the_outputs_are_the_largest_so_far():
    memory = split_aggregation(feed_forward(4))
    params = memory.init(jax.random.key(0), 3)
    params["joined"] = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    x = jax.random.normal(jax.random.key(1), (6, 3))
    reset = jnp.asarray([1, 0, 0, 1, 0, 0], bool)
    y, (_, state) = memory.unroll(params, memory.initial(), x, reset)
    plain = np.asarray(feed_forward(4).unroll(params["memory"], (), x, reset)[0])
    np.testing.assert_allclose(y[:, :2], plain[:, :2], rtol=1e-6)
    for t in range(6):
        start = 3 * (t // 3)
        largest = np.maximum(plain[start : t + 1, 2:].max(0), 0.0)
        np.testing.assert_allclose(y[t, 2:], largest, rtol=1e-6)
    np.testing.assert_allclose(state, y[-1, 2:], rtol=1e-6)


def test_steps_and_unrolls_agree():
    memory = split_aggregation(gru(4))
    params, x = memory.init(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (4, 3))
    reset = jnp.asarray([1, 0, 1, 0], bool)
    y, last = memory.unroll(params, memory.initial(), x, reset)
    state = memory.initial()
    for t in range(4):
        out, state = memory.step(params, state, x[t], reset[t])
        np.testing.assert_allclose(out, y[t], rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state, last)


def test_an_odd_memory_cannot_be_halved():
    with pytest.raises(ValueError, match="memory.size=3 must be even"):
        split_aggregation(gru(3))
