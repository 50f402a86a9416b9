"""Policies whose weights depend on what a memory knows of the task, and a memory that cannot forget the largest it has seen.

Beck et al. 2023, "Hypernetworks in meta-reinforcement learning": a linear layer from the memory's output makes the weights of a
policy that reads the features of the current step. With bias-HyperInit all tasks begin with one ordinary policy. Beck et al. 2024, "SplAgger:
split aggregation for meta-reinforcement learning": half of a recurrent network's outputs go through a running maximum.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.networks import dense
from jaxmeta.networks.distributions import Distribution
from jaxmeta.networks.heads import Head, action_head
from jaxmeta.networks.recurrent import Memory
from jaxmeta.types import Params


@checks.arguments
def hyper_head(
    num_features: int,
    action_space: spaces.Space,
    memory_size: int,
    hidden_sizes: Sequence[int] = (32,),
) -> Head:
    """A head whose weights are ``W = A e + a`` of the memory's output e, the last ``memory_size`` features; it reads the others.

    A is 0 at first and a an ordinary draw (bias-HyperInit). Biases are made alike. It is the ``head`` of
    `actor_critic.recurrent_actor_critic` with ``encoder_sizes``, whose features are the encoder's and then the memory's.

    Args:
        num_features: All features.
        action_space: As in `heads.action_head`.
        memory_size: The size of e, less than ``num_features``.
        hidden_sizes: Widths of the policy's hidden layers.

    Raises:
        ValueError: no features are left beside the memory's.
    """
    checks.at_least("memory_size", memory_size, 1)
    if num_features <= memory_size:
        raise ValueError(
            f"num_features={num_features} must be more than memory_size={memory_size}: the policy reads what is beside the "
            "memory's output; set encoder_sizes"
        )
    base = action_head(num_features - memory_size, action_space, hidden_sizes)

    def init(key: jax.Array) -> Params:
        params = base.init(key)
        nothing = jax.tree.map(lambda x: jnp.zeros((memory_size, *x.shape), x.dtype), params)
        return {"a": params, "A": nothing}

    def one(params: Params, x: jax.Array) -> Distribution:
        seen, e = x[: num_features - memory_size], x[num_features - memory_size :]
        made = jax.tree.map(lambda a, by: a + jnp.tensordot(e, by, 1), params["a"], params["A"])
        return base.apply(made, seen)

    def apply(params: Params, x: jax.Array) -> Distribution:
        call = one
        for _ in x.shape[:-1]:
            call = jax.vmap(call, (None, 0))
        return call(params, x)

    return Head(init, apply)


@checks.arguments
def split_aggregation(memory: Memory) -> Memory:
    """``memory`` with a running maximum over time, from 0, of the second half of its outputs, then a linear layer on both halves.

    Raises:
        ValueError: the memory's size is odd.
    """
    size, half = memory.size, memory.size // 2
    if size % 2:
        raise ValueError(f"memory.size={size} must be even, to be halved")

    def init(key: jax.Array, num_inputs: int) -> Params:
        memory_key, key = jax.random.split(key)
        return {
            "memory": memory.init(memory_key, num_inputs),
            "joined": dense.init(key, size, size),
        }

    def aggregate(largest: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple:
        y, reset = at
        largest = jnp.maximum(jnp.where(reset, 0.0, largest), y[half:])
        return largest, jnp.concatenate([y[:half], largest])

    def step(params: Params, state: Any, x: jax.Array, reset: jax.Array) -> tuple[jax.Array, Any]:
        inner, largest = state
        y, inner = memory.step(params["memory"], inner, x, reset)
        largest, y = aggregate(largest, (y, reset))
        return dense.apply(params["joined"], y), (inner, largest)

    def unroll(params: Params, state: Any, x: jax.Array, reset: jax.Array) -> tuple[jax.Array, Any]:
        inner, largest = state
        y, inner = memory.unroll(params["memory"], inner, x, reset)
        largest, y = jax.lax.scan(aggregate, largest, (y, reset))
        return dense.apply(params["joined"], y), (inner, largest)

    return Memory(init, lambda: (memory.initial(), jnp.zeros(half)), step, unroll, size)
