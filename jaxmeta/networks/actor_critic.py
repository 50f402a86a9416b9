"""Recurrent actor-critics: a policy and a value that share one memory."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.networks.distributions import Distribution
from jaxmeta.networks.encodings import input_sizes
from jaxmeta.networks.policies import action_head
from jaxmeta.networks.recurrent import Memory
from jaxmeta.networks.values import value_mlp
from jaxmeta.tasks.family import TaskFamily
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


@checks.arguments
def recurrent_actor_critic(
    family: TaskFamily,
    memory: Memory,
    *,
    encoder_sizes: Sequence[int] = (),
    hidden_sizes: Sequence[int] = (),
) -> ActorCritic:
    """A policy and a value on the outputs of a recurrent network that reads all inputs.

    Args:
        family: Tasks with the observations and the actions.
        memory: The recurrent network.
        encoder_sizes: Widths of tanh layers before the memory. The policy and the value then read the
            last layer beside the memory, which helps if inputs mean something only together.
        hidden_sizes: Widths of the policy's and the value's hidden layers.
    """
    widths = checks.each_at_least("encoder_sizes", encoder_sizes, 1)
    num_inputs = sum(input_sizes(family))
    num_encoded = widths[-1] if widths else num_inputs
    num_features = memory.size + (num_encoded if widths else 0)
    encoder = value_mlp((num_inputs,), widths[:-1], num_encoded) if widths else None
    policy = action_head(num_features, family.action_space, hidden_sizes)
    value = value_mlp((num_features,), hidden_sizes)

    def init(key: jax.Array) -> Params:
        memory_key, policy_key, value_key, *more = jax.random.split(key, 4 if encoder else 3)
        params = {
            "memory": memory.init(memory_key, num_encoded),
            "policy": policy.init(policy_key),
            "value": value.init(value_key),
        }
        return params | {"encoder": encoder.init(*more)} if encoder else params

    def encoded(params: Params, inputs: Inputs) -> jax.Array:
        x = joined(inputs)
        return jnp.tanh(encoder.apply(params["encoder"], x)) if encoder else x

    def features(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.concatenate([x, y], axis=-1) if encoder else y

    def step(params: Params, state: Any, inputs: Inputs) -> tuple[Distribution, Any]:
        x = encoded(params, inputs)
        y, state = memory.step(params["memory"], state, x, inputs.reset)
        return policy.apply(params["policy"], features(x, y)), state

    def unroll(params: Params, state: Any, inputs: Inputs) -> tuple[Distribution, jax.Array]:
        x = encoded(params, inputs)
        y, _ = memory.unroll(params["memory"], state, x, inputs.reset)
        z = features(x, y)
        return policy.apply(params["policy"], z), value.apply(params["value"], z)

    return ActorCritic(init, memory.initial, step, unroll)
