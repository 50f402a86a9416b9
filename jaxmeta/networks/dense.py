"""The dense layer ``x W + b`` of all networks: Glorot's initial weights and zero biases.

`init` and `apply` are pure functions. `Dense` is the same layer for flax modules, which derive a layer's random key
from the layer's name.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.types import Params


def init(key: jax.Array, num_inputs: int, size: int, num_parts: int = 1) -> Params:
    """Parameters of ``num_parts`` dense layers side by side: ``"kernel" [inputs, parts * size]`` and ``"bias"``, zeros."""
    checks.at_least("num_inputs", num_inputs, 1)
    kernel = glorot(key, num_inputs, size, num_parts)
    return {"kernel": kernel, "bias": jnp.zeros(num_parts * size)}


def apply(
    params: Params, x: jax.Array, product: Callable[..., jax.Array] = jnp.matmul
) -> jax.Array:
    """The outputs ``[*batch, size]`` of inputs ``x [*batch, inputs]``; ``product`` multiplies matrices."""
    y = product(x, params["kernel"])
    return y + jnp.broadcast_to(params["bias"], y.shape)


def glorot(
    key: jax.Array, num_inputs: int, size: int, num_parts: int = 1, scale: float = 1.0
) -> jax.Array:
    """``num_parts`` matrices side by side, ``[inputs, parts * size]``, each as in Glorot & Bengio 2010, times ``scale``."""
    # As in MAML's code. Orthogonal matrices would need a decomposition by LAPACK, which this
    # library avoids (see `_solve_positive_definite`).
    variance = jnp.asarray(2 * scale**2 / (num_inputs + size), float)
    shape = (num_inputs, num_parts * size)
    return jnp.sqrt(variance) * jax.random.normal(key, shape)


class Dense(nn.Module):
    """A dense layer of a flax module."""

    size: int
    """Outputs."""
    scale: float = 1.0
    """Factor of the initial weights."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The outputs ``[*batch, size]`` of inputs ``x [*batch, inputs]``."""
        kernel = self.param("kernel", glorot, x.shape[-1], self.size, 1, self.scale)
        bias = self.param("bias", lambda key: jnp.zeros(self.size))
        return apply({"kernel": kernel, "bias": bias}, x)
