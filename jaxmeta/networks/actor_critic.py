"""The interface of networks that remember: a policy and a value that share one state."""

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


class Inputs(NamedTuple):
    """What the network is shown at a step; with leading ``[T]`` for a stream."""

    obs: jax.Array  # [O], flat
    past: (
        jax.Array
    )  # [A + 1], previous action (one-hot if discrete) and reward in units; zeros after a reset
    time: jax.Array  # [2], first step of an episode; share of the trial that has passed
    reset: jax.Array  # [], bool: forget everything before this step


def joined(inputs: Inputs) -> jax.Array:
    """All that is shown, in one row: ``[O + A + 1 + 2]``, `input_sizes` together."""
    return jnp.concatenate([inputs.obs, inputs.past, inputs.time], axis=-1)


class ActorCritic(NamedTuple):
    """A policy and a value that share what they remember."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``."""
    initial: Callable[[], Any]
    """``() -> state`` at the start of a trial."""
    step: Callable[[Params, Any, Inputs], tuple[Distribution, Any]]
    """``(params, state, inputs) -> (distribution, state)``, one step."""
    unroll: Callable[[Params, Any, Inputs], tuple[Distribution, jax.Array]]
    """``(params, state, inputs [T]) -> (distributions [T], v [T])``; v is in units of `Meta.value_scale`."""
