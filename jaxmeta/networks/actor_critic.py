"""Recurrent actor-critics: a policy and a value that share one memory."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.networks.distributions import Distribution
from jaxmeta.networks.encoders import Module
from jaxmeta.networks.encoders import encoder as encoder_of
from jaxmeta.networks.encodings import input_sizes
from jaxmeta.networks.heads import Head, action_head
from jaxmeta.networks.policies import check_fits
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


def check_network_fits(family: TaskFamily, network: ActorCritic, *, name: str = "network") -> None:
    """Raises ValueError, which names the argument ``name``, unless ``network`` takes the family's observations and its actions are the family's."""

    def distribution_of(key: jax.Array) -> Distribution:
        return network.step(network.init(key), network.initial(), zero_inputs(family))[0]

    check_fits(name, family, distribution_of)


def zero_inputs(family: TaskFamily) -> Inputs:
    """Inputs of one step with zeros in the shapes that the family has, after a reset."""
    obs_size, past_size, time_size = input_sizes(family)
    return Inputs(
        jnp.zeros(obs_size), jnp.zeros(past_size), jnp.zeros(time_size), jnp.ones((), bool)
    )


@checks.arguments
def recurrent_actor_critic(
    family: TaskFamily,
    memory: Memory,
    *,
    encoder_sizes: Sequence[int] = (),
    hidden_sizes: Sequence[int] = (),
    encoder: Module | None = None,
    head: Callable[[int], Head] | None = None,
    more_inputs: int = 0,
) -> ActorCritic:
    """A policy and a value on the outputs of a recurrent network that reads all inputs.

    Args:
        family: Tasks with the observations and the actions.
        memory: The recurrent network.
        encoder_sizes: Widths of tanh layers before the memory. The policy and the value then read the
            last layer beside the memory, which helps if inputs mean something only together.
        hidden_sizes: Widths of the policy's and the value's hidden layers.
        encoder: The network that reads the observation before all else, for example ``networks.cnn(family)`` or a flax
            module of your own (`encoders.encoder`); None reads the flat observation. The policy and the value read its
            features beside the memory.
        head: ``(num_features) -> Head``, the policy's last part; None is `action_head`.
        more_inputs: Numbers that are read beside the family's, at the end of `Inputs.time`.

    Raises:
        ValueError: the encoder does not fit the observations, or the action space has no default head.
    """
    sizes = checks.each_at_least("encoder_sizes", encoder_sizes, 1)
    stem = stem_of(family, sizes, encoder, more_inputs)
    num_features = memory.size + (stem.size if stem.beside else 0)
    if head is None:
        policy = action_head(num_features, family.action_space, hidden_sizes)
    else:
        policy = head(num_features)
    value = value_mlp((num_features,), hidden_sizes)

    def init(key: jax.Array) -> Params:
        memory_key, policy_key, value_key, *more = jax.random.split(key, 4 if stem.beside else 3)
        params = {
            "memory": memory.init(memory_key, stem.size),
            "policy": policy.init(policy_key),
            "value": value.init(value_key),
        }
        return params | stem.init(more[0] if stem.beside else None)

    def features(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.concatenate([x, y], axis=-1) if stem.beside else y

    def step(params: Params, state: Any, inputs: Inputs) -> tuple[Distribution, Any]:
        x = stem.apply(params, inputs)
        y, state = memory.step(params["memory"], state, x, inputs.reset)
        return policy.apply(params["policy"], features(x, y)), state

    def unroll(params: Params, state: Any, inputs: Inputs) -> tuple[Distribution, jax.Array]:
        x = stem.apply(params, inputs)
        y, _ = memory.unroll(params["memory"], state, x, inputs.reset)
        z = features(x, y)
        return policy.apply(params["policy"], z), value.apply(params["value"], z)

    return ActorCritic(init, memory.initial, step, unroll)


class Stem(NamedTuple):
    """The part of a network before the memory, which reads the inputs."""

    init: Callable[[jax.Array | None], Params]
    """``(key) -> params``, entries of the whole network's parameters; the key is None unless it is ``beside``."""
    apply: Callable[[Params, Inputs], jax.Array]
    """``(params of the whole network, inputs) -> [..., size]``."""
    size: int
    """Numbers that the memory reads."""
    beside: bool
    """Whether what stands on the memory, such as a policy, reads them, too, beside the memory."""


def stem_of(
    family: TaskFamily, widths: tuple[int, ...], module: Module | None, more: int = 0
) -> Stem:
    """The encoder of observations, if there is one, and then tanh layers of ``widths``, if there are any.

    `Inputs.time` has ``more`` numbers at its end than the family's.
    """
    obs_size, *others = (*input_sizes(family), more)
    shape = family.observation_shape
    if module is None:
        encode, num_inputs = None, obs_size + sum(others)
    else:
        encode = encoder_of(family, module)
        num_inputs = encode.size + sum(others)
    layers = value_mlp((num_inputs,), widths[:-1], widths[-1]) if widths else None

    def init(key: jax.Array | None) -> Params:
        if key is None:
            return {}
        if encode is None:
            return {"encoder": layers.init(key)} if layers else {}
        seen_key, layers_key = jax.random.split(key)
        params = {"observation": encode.init(seen_key)}
        return params | ({"encoder": layers.init(layers_key)} if layers else {})

    def apply(params: Params, inputs: Inputs) -> jax.Array:
        if encode is not None:
            rows = inputs.obs.reshape(-1, *shape)
            seen = jax.vmap(encode.apply, (None, 0))(params["observation"], rows)
            inputs = inputs._replace(obs=seen.reshape(*inputs.obs.shape[:-1], -1))
        x = joined(inputs)
        return jnp.tanh(layers.apply(params["encoder"], x)) if layers else x

    size = widths[-1] if widths else num_inputs
    return Stem(init, apply, size, beside=encode is not None or layers is not None)
