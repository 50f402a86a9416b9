"""The interface of networks that remember: a policy and a value that share one state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.networks.distributions import Distribution
from jaxmeta.types import Params


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
