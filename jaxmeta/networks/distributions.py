"""Action distributions as NamedTuples of arrays, which pass through ``vmap`` and ``scan``.

The last axis of a parameter array is the event (or category) axis; leading axes are batch axes.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


class FactoredCategorical(NamedTuple):
    """Independent choices, one for each of D entries: entry i is ``low[i]`` plus a category of ``logits[i]``."""

    logits: jax.Array
    """``[..., D, A]``, unnormalised log-probabilities; -inf for the categories that an entry lacks."""
    low: jax.Array
    """``[..., D]``, int32: the lowest value of each entry."""

    def sample(self, key: jax.Array) -> jax.Array:
        """A draw, int32 ``[..., D]``."""
        return self.low + Categorical(self.logits).sample(key)

    def mode(self) -> jax.Array:
        """The most probable value of each entry, int32 ``[..., D]``."""
        return self.low + Categorical(self.logits).mode()

    def log_prob(self, value: jax.Array) -> jax.Array:
        """log p(value) for integers ``value [..., D]``, ``[...]``; -inf outside of the support."""
        checks.shapes("...DA ...D ...D", logits=self.logits, low=self.low, value=value)
        return jnp.sum(Categorical(self.logits).log_prob(value - self.low), axis=-1)

    def entropy(self) -> jax.Array:
        """The sum of the entries' entropies, in nats, ``[...]``."""
        return jnp.sum(Categorical(self.logits).entropy(), axis=-1)

    def kl(self, other: "FactoredCategorical") -> jax.Array:
        """KL(self || other) of two with the same ``low``, in nats, ``[...]``."""
        checks.shapes("...DA", logits=self.logits, other=other.logits)
        return jnp.sum(Categorical(self.logits).kl(Categorical(other.logits)), axis=-1)


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


class TanhGaussian(NamedTuple):
    """``centre + half_width * tanh(u)`` of independent normals u: actions that never leave their bounds.

    Haarnoja et al. 2018, "Soft actor-critic: off-policy maximum entropy deep reinforcement learning with a stochastic
    actor", appendix C.
    """

    mean: jax.Array
    """``[..., D]``, means of u."""
    log_std: jax.Array
    """``[..., D]``, logarithms of the standard deviations of u."""
    centre: jax.Array
    """``[..., D]``, middles of the ranges."""
    half_width: jax.Array
    """``[..., D]``, half the widths of the ranges."""

    @property
    def _normal(self) -> DiagGaussian:
        return DiagGaussian(self.mean, self.log_std)

    def sample(self, key: jax.Array) -> jax.Array:
        """A draw ``[..., D]``, strictly inside of the range."""
        return self._squashed(self._normal.sample(key))

    def mode(self) -> jax.Array:
        """The median ``[..., D]``, which is tanh of the mean."""
        return self._squashed(self.mean)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log-density at ``value [..., D]``, ``[...]``. A value on a bound or beyond it counts as the nearest value inside."""
        checks.shapes("...D", mean=self.mean, log_std=self.log_std, value=value)
        share = (value - self.centre) / self.half_width
        limit = 1.0 - float(jnp.finfo(share.dtype).eps)
        return self._log_density(jnp.arctanh(jnp.clip(share, -limit, limit)))

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A draw ``[..., D]`` and its log-density ``[...]``, both differentiable in the parameters.

        The log-density is computed from u. `log_prob` finds u again from the draw, which has no derivative near a bound.
        """
        u = self._normal.sample(key)
        return self._squashed(u), self._log_density(u)

    def entropy(self) -> jax.Array:
        """Differential entropy in nats, ``[...]``: the normals' plus the mean logarithm of the slope, by quadrature.

        The mean is by Gauss-Hermite quadrature with `QUADRATURE_POINTS` points, exact to about 1e-3 nats an entry for
        standard deviations up to 2.
        """
        nodes, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE_POINTS)
        z = jnp.asarray(nodes, self.mean.dtype).reshape(-1, *[1] * self.mean.ndim)
        u = self.mean[None] + jnp.exp(self.log_std)[None] * z
        slope = jax.vmap(self._log_slope)(u)
        share = jnp.asarray(weights / weights.sum(), slope.dtype)
        return self._normal.entropy() + jnp.sum(jnp.tensordot(share, slope, 1), axis=-1)

    def kl(self, other: "TanhGaussian") -> jax.Array:
        """KL(self || other) in nats, ``[...]``, for two with the same range. It equals the KL of the two normals."""
        return self._normal.kl(other._normal)

    def _squashed(self, u: jax.Array) -> jax.Array:
        limit = 1.0 - float(jnp.finfo(u.dtype).eps)
        return self.centre + self.half_width * jnp.clip(jnp.tanh(u), -limit, limit)

    def _log_density(self, u: jax.Array) -> jax.Array:
        """The log-density ``[...]`` of the action that ``u [..., D]`` becomes."""
        return self._normal.log_prob(u) - jnp.sum(self._log_slope(u), axis=-1)

    def _log_slope(self, u: jax.Array) -> jax.Array:
        """log of the derivative of an action in ``u [..., D]``, ``[..., D]``; stable where tanh is flat."""
        return jnp.log(self.half_width) + 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))


QUADRATURE_POINTS = 16
"""Points of the quadrature in `TanhGaussian.entropy`."""

Distribution = Categorical | FactoredCategorical | DiagGaussian | TanhGaussian
