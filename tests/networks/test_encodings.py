import dataclasses

import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import tasks
from jaxmeta.networks.encodings import encode_action, input_sizes
from jaxmeta.tasks import navigation


def test_discrete_actions_are_one_hot():
    family = tasks.make("tabular", num_states=4, num_actions=3)
    found = encode_action(jnp.array([2, 0]), family)
    np.testing.assert_array_equal(found, [[0, 0, 1], [1, 0, 0]])
    assert input_sizes(family) == (4, 3 + 1, 2)


def test_continuous_actions_are_as_they_are():
    family = tasks.make("navigation")
    action = jnp.array([[0.1, -0.2], [0.0, 0.05], [0.3, 0.4]])
    np.testing.assert_array_equal(encode_action(action, family), action)
    assert input_sizes(family) == (2, 2 + 1, 2)


def test_observations_of_any_shape_are_counted_flat():
    family = tasks.make("catch")
    rows, columns = family.observation_shape
    assert rows > 1
    assert columns > 1
    assert input_sizes(family)[0] == rows * columns


def test_several_choices_are_one_hot_entry_after_entry():
    family = dataclasses.replace(tasks.make("navigation"), env=Choices())
    action = jnp.array([[-1, 2], [1, 0]], jnp.int32)
    found = encode_action(action, family)
    np.testing.assert_array_equal(found, [[1, 0, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0]])
    assert input_sizes(family) == (2, 6 + 1, 2)


class Choices(navigation.Navigation):
    """Navigation whose actions are integers: three from -1 on, and three from 0 on."""

    def action_space(self, params=None):
        return spaces.Box(np.array([-1, 0]), np.array([1, 2]), (2,), jnp.int32)
