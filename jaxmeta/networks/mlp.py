"""The feed-forward networks of policies and values. Only this file, `dense` and `encoders` import ``flax.linen``."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.networks import dense
from jaxmeta.networks.dense import Dense
from jaxmeta.types import Params


class Network(NamedTuple):
    """A feed-forward network as two pure functions."""

    init: Callable[[jax.Array], Params]
    """``(key) -> {"body": ..., "head": ...}``."""
    apply: Callable[[Params, jax.Array], jax.Array]
    """``(params, x [..., inputs]) -> [..., outputs]``."""


class _Body(nn.Module):
    hidden_sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.hidden_sizes:
            x = jnp.tanh(Dense(size)(x))
        return x


class _NormalizedBody(nn.Module):
    hidden_sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.hidden_sizes:
            x = nn.relu(nn.LayerNorm(param_dtype=jnp.result_type(float))(Dense(size, 1.0)(x)))
        return x


def mlp(
    num_inputs: int, hidden_sizes: Sequence[int], num_outputs: int, output_scale: float
) -> Network:
    """A tanh network whose last layer, the head, has its own entry in the parameters; some methods adapt the head alone."""
    hidden_sizes = checks.each_at_least("hidden_sizes", hidden_sizes, 1)
    return _network(_Body(hidden_sizes), num_inputs, Dense(num_outputs, output_scale))


def normalized_mlp(
    num_inputs: int, hidden_sizes: Sequence[int], num_outputs: int, output_scale: float
) -> Network:
    """As `mlp`, of layers with layer normalisation (Ba et al. 2016) before a ReLU, for action values without a target network.

    Gallici et al. 2024, "Simplifying deep temporal difference learning", show that the normalisation keeps
    temporal differences stable.
    """
    hidden_sizes = checks.each_at_least("hidden_sizes", hidden_sizes, 1)
    return _network(_NormalizedBody(hidden_sizes), num_inputs, Dense(num_outputs, output_scale))


def hidden_activations(params: Params, x: jax.Array) -> dict[str, jax.Array]:
    """The outputs ``[..., size]`` of each hidden layer of an `mlp` at ``x [..., inputs]``, by the layers' names."""
    layers, found = params["body"].get("params", {}), {}
    for i in range(len(layers)):
        x = jnp.tanh(dense.apply(layers[f"Dense_{i}"], x))
        found[f"Dense_{i}"] = x
    return found


def _network(body: nn.Module, num_inputs: int, head: nn.Module) -> Network:
    """The network of a body and a head."""

    def init(key: jax.Array) -> Params:
        body_key, head_key = jax.random.split(key)
        hidden, body_params = body.init_with_output(body_key, jnp.zeros(num_inputs))
        return {"body": body_params, "head": head.init(head_key, hidden)}

    def apply(params: Params, x: jax.Array) -> jax.Array:
        return head.apply(params["head"], body.apply(params["body"], x))  # type: ignore[return-value]

    return Network(init, apply)


def obs_size(obs_shape: Sequence[int]) -> int:
    """The number of entries of an observation; raises ValueError if it is 0."""
    size = math.prod(checks.each_at_least("obs_shape", obs_shape, 0))
    if size == 0:
        raise ValueError(f"obs_shape={tuple(obs_shape)} must hold at least one number to see")
    return size
