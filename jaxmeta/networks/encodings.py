"""Encodings of observations, actions and rewards as inputs of a network."""

import math

import jax
from gymnax.environments import spaces

from jaxmeta.tasks.family import TaskFamily


def input_sizes(family: TaskFamily) -> tuple[int, int, int]:
    """Lengths of `Inputs.obs`, `Inputs.past` and `Inputs.time`."""
    space = family.action_space
    action_size = space.n if isinstance(space, spaces.Discrete) else math.prod(space.shape)
    return math.prod(family.observation_shape), action_size + 1, 2


def encode_action(action: jax.Array, family: TaskFamily) -> jax.Array:
    """Actions as rows of numbers, one-hot if discrete: ``[T, *action_shape] -> [T, A]``."""
    space = family.action_space
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(action, space.n)
    return action.reshape(action.shape[0], -1)
