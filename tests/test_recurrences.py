from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta.recurrences import linear_recurrence

T = 12
recurrence = jax.jit(linear_recurrence, static_argnames=("reverse", "parallel"))


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([None, False, True]))
def test_linear_recurrence_is_its_loop(seed, reverse, parallel):
    a, b = np.random.default_rng(seed).normal(size=(2, T))
    expected, y = np.zeros(T), 0.0
    for t in reversed(range(T)) if reverse else range(T):
        y = a[t] + b[t] * y
        expected[t] = y
    result = recurrence(a, b, reverse=reverse, parallel=parallel)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_both_ways_through_a_linear_recurrence_have_the_same_derivatives(x64):
    a, b, weight = np.random.default_rng(0).normal(size=(3, T))

    def loss(ab, parallel):
        return jnp.sum(weight * linear_recurrence(*ab, parallel=parallel) ** 2)

    ab = jnp.array(a), jnp.array(b)
    for derivative in (jax.grad, jax.hessian):
        derivative = jax.jit(derivative(loss), static_argnums=1)
        step_by_step, at_once = (derivative(ab, parallel) for parallel in (False, True))
        chex.assert_trees_all_close(step_by_step, at_once, rtol=1e-10)


def test_the_parallel_recurrence_is_differentiable_twice(x64):
    rng = np.random.default_rng(0)
    a, b, v, w = (jnp.asarray(rng.uniform(0, 1, size=(6, 2))) for _ in range(4))

    def loop(a, b):
        h = [b[0]]
        for t in range(1, 6):
            h.append(b[t] + a[t] * h[-1])
        return jnp.stack(h)

    def twice(recurrence):
        def slope(a, b):
            return jax.jvp(lambda a: jnp.sum(v * recurrence(a, b) ** 2), (a,), (w,))[1]

        return recurrence(a, b), jax.grad(slope, (0, 1))(a, b)

    def at_once(a, b):
        return linear_recurrence(b, a, parallel=True)

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-12),
        jax.jit(twice, static_argnums=0)(at_once),
        jax.jit(twice, static_argnums=0)(loop),
    )
