"""Action distributions as NamedTuples of arrays, which pass through ``vmap`` and ``scan``.

The last axis of a parameter array is the event (or category) axis; leading axes are batch axes.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks


class Categorical(NamedTuple):
    """A distribution over the integers 0 .. A-1, from unnormalised ``logits [..., A]``."""

    logits: jax.Array
    """``[..., A]``, unnormalised log-probabilities."""

    def sample(self, key: jax.Array) -> jax.Array:
        """A draw, int32 ``[...]``."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> jax.Array:
        """The most probable category, int32 ``[...]``."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_probs(self) -> jax.Array:
        """Normalised log-probabilities ``[..., A]``."""
        return jax.nn.log_softmax(self.logits)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """log p(value) for integers ``value [...]``, ``[...]``; -inf outside 0 .. A-1."""
        checks.shapes("...A ...", logits=self.logits, value=value)
        # A one-hot product instead of a gather: its gradient is dense, which is faster on an
        # accelerator.
        chosen = jax.nn.one_hot(value, self.logits.shape[-1], dtype=bool)
        log_prob = jnp.sum(jnp.where(chosen, self.log_probs(), 0.0), axis=-1)
        return jnp.where(jnp.any(chosen, axis=-1), log_prob, -jnp.inf)

    def entropy(self) -> jax.Array:
        """-sum_a p(a) log p(a), in nats, ``[...]``."""
        log_p = self.log_probs()
        return -jnp.sum(_expected(log_p, log_p), axis=-1)

    def kl(self, other: "Categorical") -> jax.Array:
        """KL(self || other), in nats, ``[...]``."""
        checks.shapes("...A", logits=self.logits, other=other.logits)
        log_p, log_q = self.log_probs(), other.log_probs()
        return jnp.sum(_expected(log_p, log_p) - _expected(log_p, log_q), axis=-1)


def _expected(log_p: jax.Array, x: jax.Array) -> jax.Array:
    """``p x``; 0 with a zero derivative where p is 0, where x is often infinite."""
    possible = ~jnp.isneginf(log_p)
    return jnp.exp(log_p) * jnp.where(possible, x, 0.0)


class DiagGaussian(NamedTuple):
    """Independent normals with ``mean [..., D]`` and ``log_std [..., D]``."""

    mean: jax.Array
    """``[..., D]``."""
    log_std: jax.Array
    """``[..., D]``, logarithms of the standard deviations."""

    def sample(self, key: jax.Array) -> jax.Array:
        """A draw ``[..., D]``."""
        checks.shapes("...D", mean=self.mean, log_std=self.log_std)
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> jax.Array:
        """The mean ``[..., D]``."""
        return self.mean

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log-density at ``value [..., D]``, ``[...]``."""
        checks.shapes("...D", mean=self.mean, log_std=self.log_std, value=value)
        z = (value - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> jax.Array:
        """Differential entropy in nats, ``[...]``."""
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def kl(self, other: "DiagGaussian") -> jax.Array:
        """KL(self || other), in nats, ``[...]``."""
        others = {"other.mean": other.mean, "other.log_std": other.log_std}
        checks.shapes("...D", mean=self.mean, log_std=self.log_std, **others)
        variance_ratio = jnp.exp(2.0 * (self.log_std - other.log_std))
        z = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return jnp.sum(other.log_std - self.log_std + 0.5 * (variance_ratio + z**2 - 1.0), axis=-1)


Distribution = Categorical | DiagGaussian
