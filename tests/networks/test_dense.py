"""The dense layer: its formula, its initial weights, and the flax module of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.networks import dense


def test_a_layer_is_affine():
    params = jax.tree.map(lambda x: x + 0.1, dense.init(jax.random.key(0), 3, 2))
    x = jax.random.normal(jax.random.key(1), (5, 4, 3))
    by_hand = np.asarray(x) @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(dense.apply(params, x), by_hand, rtol=1e-5, atol=1e-6)
    doubled = dense.apply(params, x, lambda x, w: 2 * jnp.matmul(x, w))
    np.testing.assert_allclose(doubled, 2 * by_hand - 0.1, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_parts", [1, 3])
def test_every_part_is_drawn_as_one_layer(num_parts):
    """The variance is 2 / (inputs + outputs of one part); biases are 0."""
    params = dense.init(jax.random.key(0), 100, 200, num_parts)
    assert params["kernel"].shape == (100, num_parts * 200)
    np.testing.assert_allclose(params["kernel"].std(), (2 / 300) ** 0.5, rtol=0.03)
    assert not jnp.any(params["bias"])
    with pytest.raises(ValueError, match="num_inputs=0 must be at least 1"):
        dense.init(jax.random.key(0), 0, 2)


def test_the_flax_module_is_the_same_layer():
    module = dense.Dense(200, 0.01)
    x = jax.random.normal(jax.random.key(1), (5, 100))
    params = module.init(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(params["kernel"].std(), 0.01 * (2 / 300) ** 0.5, rtol=0.03)
    moved = jax.tree.map(lambda x: x + 0.1, params)
    np.testing.assert_array_equal(module.apply({"params": moved}, x), dense.apply(moved, x))
