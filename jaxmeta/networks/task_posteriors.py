"""Posteriors over a latent variable z that stands for a task, as products of Gaussian factors, one for each transition.

Rakelly et al. 2019, "Efficient off-policy meta-reinforcement learning via probabilistic context variables", section 4.1: a network
turns a transition into a factor N(μ_n, σ_n²), and the posterior is the product of all factors, so the order of transitions does not
matter. Factors are kept as sums of natural parameters, so more transitions are added without looking at the old ones again.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.networks.distributions import DiagGaussian
from jaxmeta.networks.encodings import input_sizes
from jaxmeta.networks.values import value_mlp
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Params

MIN_VARIANCE = 1e-7
"""The least variance of a factor."""


class Evidence(NamedTuple):
    """A product of Gaussian factors, as sums over the factors; zeros are no factor."""

    precision: jax.Array
    """``[..., Z]``, Σ 1/σ_n²."""
    weighted: jax.Array
    """``[..., Z]``, Σ μ_n/σ_n²."""


class ContextEncoder(NamedTuple):
    """The network that turns transitions into factors."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``."""
    factors: Callable[[Params, jax.Array, jax.Array, jax.Array], Evidence]
    """``(params, obs [*batch, O], action [*batch, A], reward [*batch]) -> factors [*batch]``; actions are encoded, and rewards are
    in units."""


@checks.arguments
def context_encoder(
    family: TaskFamily, latent_size: int, hidden_sizes: Sequence[int] = (64, 64)
) -> ContextEncoder:
    """A tanh network from an observation, an action and a reward to a factor over ``latent_size`` numbers."""
    checks.at_least("latent_size", latent_size, 1)
    obs_size, past_size, _ = input_sizes(family)
    network = value_mlp((obs_size + past_size,), hidden_sizes, 2 * latent_size)

    def factors(params: Params, obs: jax.Array, action: jax.Array, reward: jax.Array) -> Evidence:
        inputs = jnp.concatenate([obs, action, reward[..., None]], axis=-1)
        mean, raw = jnp.split(network.apply(params, inputs), 2, axis=-1)
        precision = 1.0 / jnp.maximum(jax.nn.softplus(raw), MIN_VARIANCE)
        return Evidence(precision, mean * precision)

    return ContextEncoder(network.init, factors)


def no_evidence(latent_size: int) -> Evidence:
    """No factor, ``[Z]``."""
    return Evidence(jnp.zeros(latent_size), jnp.zeros(latent_size))


def product(factors: Evidence, counted: jax.Array) -> Evidence:
    """The product of the ``factors [..., C]`` that are ``counted`` (bool ``[..., C]``), ``[...]``."""
    mask = counted[..., None]
    return jax.tree.map(lambda x: jnp.sum(jnp.where(mask, x, 0.0), axis=-2), factors)


def posterior(evidence: Evidence) -> DiagGaussian:
    """The normalised product of factors ``[...]``; N(0, I) without any. As published, the prior is no factor."""
    known = evidence.precision > 0
    precision = jnp.where(known, evidence.precision, 1.0)
    return DiagGaussian(evidence.weighted / precision, -0.5 * jnp.log(precision))


def divergence_from_prior(q: DiagGaussian) -> jax.Array:
    """``KL(q || N(0, I))``, in nats, ``[...]``."""
    zeros = jnp.zeros_like(q.mean)
    return q.kl(DiagGaussian(zeros, zeros))
