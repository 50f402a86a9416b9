"""Feed-forward value functions: estimates of the return to come."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from jaxmeta import checks
from jaxmeta.networks.encoders import Module, encoder
from jaxmeta.networks.mlp import mlp, obs_size
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Params


class Value(NamedTuple):
    """A value function: an estimate of the return to come from an observation."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``."""
    apply: Callable[[Params, jax.Array], jax.Array]
    """``(params, obs [*batch, *obs_shape]) -> v [*batch]``."""


def value_mlp(
    obs_shape: Sequence[int],
    hidden_sizes: Sequence[int] = (64, 64),
    num_outputs: int | None = None,
) -> Value:
    """A tanh network from an observation to its value, or to ``[num_outputs]`` predictions."""
    size = 1 if num_outputs is None else num_outputs
    size = checks.at_least("num_outputs", size, 1)
    network = mlp(obs_size(obs_shape), hidden_sizes, size, 1.0)
    rank = len(obs_shape)

    def apply(params: Params, obs: jax.Array) -> jax.Array:
        if obs.shape[obs.ndim - rank :] != tuple(obs_shape):
            raise ValueError(f"obs has shape {obs.shape}; its last axes must be {tuple(obs_shape)}")
        batch = obs.shape[: obs.ndim - rank]
        outputs = network.apply(params, obs.reshape(*batch, -1))
        return outputs[..., 0] if num_outputs is None else outputs

    return Value(network.init, apply)


@checks.arguments
def encoded_value(family: TaskFamily, module: Module, hidden_sizes: Sequence[int] = ()) -> Value:
    """The value on the features of an encoder, as `policies.encoded_policy`.

    Parameters are ``{"encoder": ..., "body": ..., "head": ...}``.
    """
    encode = encoder(family, module)
    network = mlp(encode.size, hidden_sizes, 1, 1.0)
    shape = family.observation_shape

    def init(key: jax.Array) -> Params:
        encoder_key, network_key = jax.random.split(key)
        return {"encoder": encode.init(encoder_key)} | network.init(network_key)

    def apply(params: Params, obs: jax.Array) -> jax.Array:
        if obs.shape[obs.ndim - len(shape) :] != shape:
            raise ValueError(f"obs has shape {obs.shape}; its last axes must be {shape}")
        batch = obs.shape[: obs.ndim - len(shape)]
        rows = obs.reshape(-1, *shape)
        features = jax.vmap(encode.apply, (None, 0))(params["encoder"], rows)
        return network.apply(params, features)[..., 0].reshape(batch)

    return Value(init, apply)
