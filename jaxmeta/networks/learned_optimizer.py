"""The network of a learned optimiser: a recurrent network that each parameter of an agent goes through by itself."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.networks.mlp import normalized_mlp
from jaxmeta.networks.recurrent import gru
from jaxmeta.types import Params


class OptimizerNetwork(NamedTuple):
    """The network as pure functions."""

    init: Callable[[jax.Array], Params]
    """``(key) -> {"memory": ..., "head": ...}``."""
    initial: Callable[[int], jax.Array]
    """``(P) -> memory [P, H]`` of P parameters that have not been updated yet."""
    apply: Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    """``(params, memory [P, H], x [P, F]) -> (outputs [P, num_outputs], memory)``."""


def optimizer_network(
    num_inputs: int,
    num_outputs: int,
    *,
    memory_size: int = 8,
    hidden_sizes: Sequence[int] = (16, 16),
) -> OptimizerNetwork:
    """A GRU, and layers with layer normalisation that read it. The weights of the last layer are zero at first, so the first
    outputs are zero.

    Args:
        num_inputs: F, features of a parameter.
        num_outputs: Outputs for a parameter.
        memory_size: H, units of the GRU.
        hidden_sizes: Layers between the GRU and the outputs.
    """
    checks.at_least("num_inputs", num_inputs, 1)
    checks.at_least("num_outputs", num_outputs, 1)
    memory_size = checks.at_least("memory_size", memory_size, 1)
    cell, head = gru(memory_size), normalized_mlp(memory_size, hidden_sizes, num_outputs, 0.0)

    def init(key: jax.Array) -> Params:
        memory_key, head_key = jax.random.split(key)
        return {"memory": cell.init(memory_key, num_inputs), "head": head.init(head_key)}

    def apply(params: Params, memory: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        never = jnp.zeros((), bool)
        memory, _ = jax.vmap(cell.step, (None, 0, 0, None))(params["memory"], (memory,), x, never)
        return head.apply(params["head"], memory), memory

    return OptimizerNetwork(init, lambda num: jnp.zeros((num, memory_size)), apply)
