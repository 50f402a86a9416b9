"""Packing small arrays into rows loses nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.estimators import rows

TREE = {
    "flag": jnp.array(True),
    "count": jnp.array(3, jnp.int32),
    "empty": jnp.zeros((0, 2)),
    "half": jnp.arange(2, dtype=jnp.bfloat16),
    "key": jax.random.key(1),
    "large": jnp.arange(float(rows.LARGE)),
    "numbers": jnp.arange(6.0).reshape(2, 3),
    "one": jnp.array(-0.0),
}


def test_what_is_packed_comes_back():
    packed, unpack = rows.packed(TREE)
    assert len(packed) == 6  # flags, counts, halves, keys, floats, and the large leaf by itself
    back = unpack(packed)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, TREE)
    chex.assert_trees_all_equal(back, TREE)
    assert np.signbit(back["one"])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("name", ["half", "large", "numbers", "one"])
def test_one_number_that_is_not_finite_is_seen(bad, name):
    assert rows.all_finite(TREE)
    broken = TREE[name].reshape(-1).at[0].set(bad).reshape(TREE[name].shape)
    assert not rows.all_finite(TREE | {name: broken})


def test_without_a_number_all_are_finite():
    assert rows.all_finite({"count": jnp.array(1)})
    assert rows.all_finite(())
