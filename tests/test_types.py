import jax
import jax.numpy as jnp
import pytest

from jaxmeta import types


@pytest.mark.parametrize("name", ["TimeStep", "Stream", "Trajectory", "History"])
def test_traced_types_are_pytrees_whose_every_field_is_a_leaf(name):
    kind = getattr(types, name)
    fields = kind._fields
    value = kind(*[jnp.arange(2.0) + i for i in range(len(fields))])
    doubled = jax.jit(lambda x: jax.tree.map(lambda leaf: 2 * leaf, x))(value)
    assert isinstance(doubled, kind)
    for i, field in enumerate(fields):
        assert jnp.array_equal(getattr(doubled, field), 2 * (jnp.arange(2.0) + i))


def test_learner_and_algorithm_list_what_the_slow_loop_needs():
    assert types.Learner._fields == ("init", "memory", "act", "update")
    assert types.MetaAlgorithm._fields == ("init", "step", "learner", "lifetime")


def test_help_says_what_fields_are():
    for kind in (types.Learner, types.MetaAlgorithm, types.Trajectory, types.TimeStep):
        for field in kind._fields:
            assert "Alias for field" not in getattr(kind, field).__doc__
    assert types.Learner.memory.__doc__ == "``(meta) -> memory``, once per stream."
