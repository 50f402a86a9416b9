"""Evolution strategies on antithetic pairs: gradients of what is never differentiated.

The estimators are those of Gaussian smoothing, ``∇_θ E_ε F(θ + ε)`` with ``ε ~ N(0, σ²)``: unbiased for the
gradient of F itself where F is quadratic.
"""

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.types import Params


def perturbation(key: jax.Array, params: Params, noise_std: jax.Array | float) -> Params:
    """``ε ~ N(0, σ²)``, a tree like ``params``."""
    checks.shapes("?", noise_std=noise_std)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = [noise_std * jax.random.normal(keys[i], x.shape, x.dtype) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, noise)


def antithetic(params: Params, epsilon: Params) -> Params:
    """``(params + ε, params - ε)``, a tree like ``params`` with a leading ``[2]``."""
    checks.same_structure(params=params, epsilon=epsilon)
    return jax.tree.map(lambda x, e: jnp.stack([x + e, x - e]), params, epsilon)


def gradient(xi: Params, fitness: jax.Array, noise_std: jax.Array | float) -> Params:
    """``ξ (F⁺ - F⁻) / 2σ²`` of one pair, a tree like ``xi``.

    With ξ = ε, what was added to and taken from θ, it is the antithetic estimator of Salimans et al.
    2017, "Evolution strategies as a scalable alternative to reinforcement learning", section 2.1. Where
    θ is used again and again and F is what one window of a longer life earned, with another ε in
    each, it is biased: F owes something to earlier perturbations. With ξ the sum of all since birth it
    is not (persistent evolution strategies: Vicol, Metz & Sohl-Dickstein 2021, eq. 9).

    Args:
        xi: ξ.
        fitness: ``[2]``, of the pair as `antithetic` orders it.
        noise_std: σ.
    """
    checks.shapes("2 ?", fitness=fitness, noise_std=noise_std)
    slope = (fitness[0] - fitness[1]) / (2.0 * noise_std**2)
    return jax.tree.map(lambda x: slope * x, xi)
