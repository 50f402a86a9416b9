"""One meaning of the sides of a Box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import boxes

BIG = float(np.finfo(np.float32).max)
INF = float("inf")


@pytest.mark.parametrize(
    ("low", "high", "nominal"),
    [
        (-2.0, 4.0, (-2.0, 4.0)),
        (3.0, INF, (3.0, 5.0)),
        (3.0, BIG, (3.0, 5.0)),
        (-INF, -3.0, (-5.0, -3.0)),
        (-INF, INF, (-1.0, 1.0)),
        (-BIG, BIG, (-1.0, 1.0)),
        (-1e30, 1e30, (-1.0, 1.0)),
        (-1e6, 1e6, (-1e6, 1e6)),
    ],
)
def test_nominal_ranges_and_draws(low, high, nominal):
    space = spaces.Box(low, high, (2,))
    found = boxes.nominal(space)
    assert (found.low[0], found.high[1]) == nominal
    drawn = jax.vmap(lambda key: boxes.sample(key, space))(
        jax.random.split(jax.random.key(0), 4000)
    )
    drawn = (np.asarray(drawn) - nominal[0]) / (nominal[1] - nominal[0])
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    # Uniform: mean 1/2 and variance 1/12, within five standard errors.
    assert abs(drawn.mean() - 0.5) < 5 * np.sqrt(1 / 12 / drawn.size)
    assert abs(drawn.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / drawn.size)


def test_sides_may_differ_from_dimension_to_dimension():
    space = spaces.Box(jnp.array([-1.0, 0.0, -INF]), jnp.array([3.0, INF, 2.0]), (3,))
    found = boxes.nominal(space)
    assert found.middle.tolist() == [1, 1, 1]
    assert found.half_width.tolist() == [2, 1, 1]
    clipped = boxes.clip(jnp.array([9.0, 9.0, -9.0]), space)
    assert clipped.tolist() == [3, 9, -9]


def test_integers_are_drawn_up_to_both_ends_and_clipped():
    space = spaces.Box(-1, 2, (3,), jnp.int32)
    drawn = jax.vmap(lambda key: boxes.sample(key, space))(jax.random.split(jax.random.key(0), 200))
    assert drawn.dtype == jnp.int32
    assert set(np.asarray(drawn).ravel()) == {-1, 0, 1, 2}
    assert boxes.clip(jnp.array([-7, 0, 7]), space).tolist() == [-1, 0, 2]


@pytest.mark.parametrize(
    ("low", "high", "dtype", "message"),
    [
        (1.0, 0.0, jnp.float32, "must have low <= high"),
        (float("nan"), 1.0, jnp.float32, "must have low <= high"),
        (INF, INF, jnp.float32, "have no number between them"),
        (0, 255, jnp.int8, "are no .*int8"),
    ],
)
def test_bounds_that_are_none(low, high, dtype, message):
    with pytest.raises(ValueError, match=message):
        boxes.nominal(spaces.Box(low, high, (2,), dtype))


def test_the_largest_number_of_a_type_is_no_bound():
    """Of integers of 8 bits it is one."""
    for dtype, largest in ((jnp.float16, 65504.0), (jnp.int32, 2**31 - 1)):
        assert boxes.nominal(spaces.Box(-largest, largest, (1,), dtype)).high == 1
    narrow = spaces.Box(-128, 127, (1,), jnp.int8)
    assert boxes.nominal(narrow) == (-128, 127)
    drawn = jax.vmap(lambda key: boxes.sample(key, narrow))(
        jax.random.split(jax.random.key(0), 4000)
    )
    assert (drawn.min(), drawn.max()) == (-128, 127)


def test_integers_are_clipped_as_integers(x64):
    space = spaces.Box(0, INF, (2,), jnp.int64)
    assert boxes.clip(jnp.array([-5, 2**62 + 1]), space).tolist() == [0, 2**62 + 1]
    drawn = jax.vmap(lambda key: boxes.sample(key, spaces.Box(0, 2**31 - 1, (), jnp.int32)))(
        jax.random.split(jax.random.key(0), 50)
    )
    assert set(np.asarray(drawn)) == {0, 1, 2}  # unbounded above


def test_bounds_of_another_shape():
    with pytest.raises(ValueError, match="do not fit a Box of shape"):
        boxes.nominal(spaces.Box(jnp.zeros(3), jnp.ones(3), (2,)))
