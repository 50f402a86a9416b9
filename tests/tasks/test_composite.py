"""Observations of several parts become one array in the documented order, and come apart again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta.tasks import MultiDiscrete, composite, unflatten

SPACE = spaces.Dict(
    {
        "b": spaces.Tuple((spaces.Box(-1.0, 2.0, (2, 1)), spaces.Discrete(3))),
        "a": spaces.Box(0, 9, (2,), jnp.int32),
        "c": MultiDiscrete((2, 3)),
    }
)
VALUE = {
    "b": (jnp.array([[0.5], [1.5]]), jnp.array(2)),
    "a": jnp.array([7, 8]),
    "c": jnp.array([1, 0]),
}
FLAT = [7, 8, 0.5, 1.5, 0, 0, 1, 0, 1, 1, 0, 0]


def test_parts_are_in_the_order_of_the_table_and_come_back():
    flat = composite.flatten(SPACE, VALUE)
    assert flat.dtype == jnp.float32
    np.testing.assert_array_equal(flat, FLAT)
    parts = unflatten(SPACE, jnp.stack([flat, flat]))
    assert sorted(parts) == ["a", "b", "c"]
    np.testing.assert_array_equal(parts["a"][1], [7, 8])
    np.testing.assert_array_equal(parts["b"][0][1], VALUE["b"][0])
    np.testing.assert_array_equal(parts["b"][1][0], [0, 0, 1])
    np.testing.assert_array_equal(parts["c"][0], [0, 1, 1, 0, 0])


def test_bounds_are_those_of_the_parts():
    space = composite.flat_space(SPACE)
    assert space.shape == (12,)
    np.testing.assert_array_equal(space.low, [0, 0, -1, -1, *[0] * 8])
    np.testing.assert_array_equal(space.high, [9, 9, 2, 2, *[1] * 8])


def test_a_space_that_stands_alone_is_left_as_it_is():
    for space in (spaces.Discrete(3), spaces.Box(0, 1, (2, 2))):
        assert not composite.is_composite(space)
        assert unflatten(space, FLAT) is FLAT


def test_multi_discrete_is_a_box_of_integers():
    space = MultiDiscrete([2, 5])
    assert isinstance(space, spaces.Box)
    assert repr(space) == "MultiDiscrete((2, 5))"
    np.testing.assert_array_equal(space.high, [1, 4])
    for sizes in ((), (0, 2), (2.5,), 3):
        with pytest.raises((ValueError, TypeError), match="sizes"):
            MultiDiscrete(sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(a=jnp.zeros(3)), r"obs\['a'\] is of shape \(3,\); it must be of shape \(2,\)"),
        (dict(b=(VALUE["b"][0],)), r"obs\['b'\] is of 1; it must be a tuple of 2 parts"),
        (dict(b=(VALUE["b"][0], jnp.array(0.5))), r"obs\['b'\]\[1\] is of float32; .* integers"),
        (dict(a=jnp.zeros(2, complex)), "it must be of real numbers"),
        (dict(d=jnp.zeros(2)), "it must be a dictionary of a, b, c"),
        (dict(c=None), r"obs\['c'\] is NoneType"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    composite.check("obs", SPACE, VALUE)
    with pytest.raises(ValueError, match=message):
        composite.check("obs", SPACE, VALUE | change)


def test_a_part_without_bounds_or_of_another_kind():
    with pytest.raises(ValueError, match=r"the part \['x'\] is"):
        composite.flat_space(spaces.Dict({"x": spaces.Space()}))
    with pytest.raises(ValueError, match="at least one category"):
        composite.flat_space(spaces.Tuple((spaces.Discrete(0),)))


def test_flattening_runs_in_a_program():
    np.testing.assert_array_equal(jax.jit(lambda x: composite.flatten(SPACE, x))(VALUE), FLAT)
