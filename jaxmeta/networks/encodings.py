"""Observations, actions and rewards as the numbers that a network reads."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple
import jax
import jax.numpy as jnp
import optax
from gymnax.environments import spaces
from jaxmeta import checks
from jaxmeta.networks.distributions import Distribution
from jaxmeta.meta_updates.gradients import State, guarded_update
from jaxmeta.networks.policies import Head, action_head
from jaxmeta.networks.values import Value, value_mlp
from jaxmeta.estimators.episodes import episode_index
from jaxmeta.estimators.returns import gae, td_errors
from jaxmeta.estimators.streams import count, without_broken_streams
from jaxmeta.estimators.units import in_units, running, running_reward_scale
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Learner, MetaAlgorithm, Params, Task, TimeStep, Trajectory


def input_sizes(family: TaskFamily) -> tuple[int, int, int]:
    """Lengths of `Inputs.obs`, `Inputs.past` and `Inputs.time`."""
    space = family.action_space
    action_size = space.n if isinstance(space, spaces.Discrete) else math.prod(space.shape)
    return math.prod(family.observation_shape), action_size + 1, 2


def encode_action(action: jax.Array, family: TaskFamily) -> jax.Array:
    """Actions as numbers: one-hot where they are discrete, ``[T, *action_shape] -> [T, A]``."""
    space = family.action_space
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(action, space.n)
    return action.reshape(action.shape[0], -1)
