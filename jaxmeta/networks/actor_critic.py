"""The interface of recurrent actor-critics: a policy and a value that share one state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.networks.distributions import Distribution
from jaxmeta.types import Params


class Inputs(NamedTuple):
    """Inputs of the network at one step; with leading ``[T]`` for a stream."""

    obs: jax.Array
    """``[O]``, the observation, flat."""
    past: jax.Array
    """``[A + 1]``, the previous action (one-hot if discrete) and the previous reward in units;
    zeros after a reset."""
    time: jax.Array
    """``[2]``, whether this is the first step of an episode, and the share of the trial that has
    passed."""
    reset: jax.Array
    """``[]``, bool: forget everything before this step."""


def joined(inputs: Inputs) -> jax.Array:
    """All inputs but ``reset`` in one row, ``[O + A + 1 + 2]``: the sum of `input_sizes`."""
    return jnp.concatenate([inputs.obs, inputs.past, inputs.time], axis=-1)


class ActorCritic(NamedTuple):
    """A policy and a value that share one memory."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``."""
    initial: Callable[[], Any]
    """``() -> state`` at the start of a trial."""
    step: Callable[[Params, Any, Inputs], tuple[Distribution, Any]]
    """``(params, state, inputs) -> (distribution, state)``, one step."""
    unroll: Callable[[Params, Any, Inputs], tuple[Distribution, jax.Array]]
    """``(params, state, inputs [T]) -> (distributions [T], v [T])``; ``v`` is in units of
    `Meta.value_scale`."""
