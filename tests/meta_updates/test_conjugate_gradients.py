import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.meta_updates.conjugate_gradients import conjugate_gradients

CURVATURE = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 2.0]])
TARGET = np.array([1.0, 2.0, -3.0])


def product(v):
    """``CURVATURE v`` of a tree."""
    flat = jnp.asarray(CURVATURE) @ jnp.concatenate([v["a"], v["b"].ravel()])
    return {"a": flat[:1], "b": flat[1:].reshape(2, 1)}


@pytest.fixture
def solve(x64):
    target = {"a": jnp.asarray(TARGET[:1]), "b": jnp.asarray(TARGET[1:].reshape(2, 1))}
    products = []

    def counted(v):
        products.append(v)
        return product(v)

    def solve(num_steps, scale=1.0):
        tree = jax.tree.map(lambda x: scale * x, target)
        results = conjugate_gradients(counted, tree, num_steps=num_steps)
        assert jax.tree.structure(results[0]) == jax.tree.structure(target)
        return [np.concatenate([x["a"], x["b"].ravel()]) for x in results]

    solve.products = products
    return solve


def test_as_many_steps_as_numbers_solve_it(solve):
    """Against the dense solution; one step is the steepest descent's."""
    x, applied = solve(1)
    np.testing.assert_allclose(x, TARGET * (TARGET @ TARGET) / (TARGET @ CURVATURE @ TARGET))
    np.testing.assert_allclose(applied, CURVATURE @ x)
    for num_steps in (3, 100):  # after which it ends by itself, before it divides by nothing
        x, applied = solve(num_steps)
        np.testing.assert_allclose(x, np.linalg.solve(CURVATURE, TARGET), rtol=1e-9)
        np.testing.assert_allclose(applied, TARGET, rtol=1e-9)
    assert len(solve.products) == 3  # traced once in each


def test_nothing_solves_nothing(solve):
    np.testing.assert_array_equal(solve(5, scale=0.0), np.zeros((2, 3)))
