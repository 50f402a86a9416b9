"""Encodings of observations, actions and rewards as inputs of a network."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta.tasks import boxes
from jaxmeta.tasks.family import TaskFamily


def input_sizes(family: TaskFamily) -> tuple[int, int, int]:
    """Lengths of `Inputs.obs`, `Inputs.past` and `Inputs.time`."""
    space = family.action_space
    if isinstance(space, spaces.Discrete):
        action_size = space.n
    elif boxes.is_integer(space):
        action_size = int(np.sum(boxes.categories("action_space", space)[1]))
    else:
        action_size = math.prod(space.shape)
    return math.prod(family.observation_shape), action_size + 1, 2


def encode_action(action: jax.Array, family: TaskFamily) -> jax.Array:
    """Actions as rows of numbers, ``[T, *action_shape] -> [T, A]``; choices are one-hot, entry after entry."""
    space = family.action_space
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(action, space.n)
    if boxes.is_integer(space):
        choices = zip(*boxes.categories("action_space", space), strict=True)
        rows = [
            jax.nn.one_hot(action[:, i] - int(low), int(size))
            for i, (low, size) in enumerate(choices)
        ]
        return jnp.concatenate(rows, axis=-1)
    return action.reshape(action.shape[0], -1)
