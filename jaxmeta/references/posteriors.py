"""Exact posteriors: what an agent that knows the prior believes after what it has seen.

They are the targets that a network trained to predict optimal actions approaches (Lee et al. 2023,
"Supervised pretraining can learn in-context reinforcement learning").
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import checks
from jaxmeta.tasks import gridnavi


@checks.arguments
def posterior_best_arm(
    reward: jax.Array,
    pulls: jax.Array,
    *,
    reward_noise: float | None = None,
    num_nodes: int = 128,
) -> jax.Array:
    """Posterior probability that each arm is the best one, ``[A]``; the means are U(0, 1) before any pull.

    ``P(i) = ∫ f_i(x) Π_{j≠i} F_j(x) dx`` with the posterior density f and distribution function F
    of each arm's mean. The integrals are exact for polynomials of degree below ``num_nodes``. So for
    Bernoulli arms the result is exact to rounding as long as all pulls together are at most
    ``num_nodes - A``. A prior Beta(α, β) is α - 1 more reward and α + β - 2 more pulls.

    Args:
        reward: ``[A]``, total reward of each arm.
        pulls: ``[A]``, pulls of each arm.
        reward_noise: None for Bernoulli arms; else the standard deviation of Gaussian rewards
            around the mean, positive.
        num_nodes: Points of the quadrature, at least 2.
    """
    checks.at_least("num_nodes", num_nodes, 2)
    checks.shapes("A A", reward=reward, pulls=pulls)
    x, integral, total = (jnp.asarray(part, float) for part in _quadrature(num_nodes))
    x, total = x[None], total[None]
    s, n = jnp.asarray(reward, float)[:, None], jnp.asarray(pulls, float)[:, None]
    if reward_noise is None:
        log_density = s * jnp.log(x) + (n - s) * jnp.log1p(-x)
    else:
        checks.between("reward_noise", reward_noise, 1e-6, 1e6)
        log_density = (s * x - n * x**2 / 2) / reward_noise**2
    density = jax.nn.softmax(log_density + jnp.log(total), axis=1) / total
    below = jnp.einsum("ax,yx->ay", density, integral, precision="highest")
    ones = jnp.ones_like(below[:1])
    # The other arms' distribution functions: those of the arms before it, times those after it.
    before = jnp.cumprod(jnp.concatenate([ones, below[:-1]]), axis=0)
    after = jnp.cumprod(jnp.concatenate([ones, below[:0:-1]]), axis=0)[::-1]
    best = jnp.maximum(jnp.sum(total * density * before * after, axis=1), 0.0)
    return best / jnp.sum(best)


@checks.arguments
def posterior_goal(reward: jax.Array, visits: jax.Array, prior: jax.Array) -> jax.Array:
    """Posterior probability of each cell to be Dark Room's goal, ``[C]``.

    Where a step has been rewarded, that cell is the goal. Else it is one of the prior's cells in
    which no step has ended. If there is none, the prior was wrong, and the goal is uniform over all
    cells in which no step has ended.

    Args:
        reward: ``[C]``, total reward of the steps that ended in each cell.
        visits: ``[C]``, the number of steps that ended in each cell.
        prior: ``[C]``, probability of each cell before any step.
    """
    checks.shapes("C C C", reward=reward, visits=visits, prior=prior)
    unseen = jnp.asarray(visits) == 0
    candidates = [jnp.asarray(reward) > 0, jnp.where(unseen, prior, 0.0), unseen]
    weights = jnp.stack([jnp.asarray(x, float) for x in candidates])
    first = jnp.argmax(jnp.any(weights > 0, axis=1))  # of those that leave a cell
    chosen = weights[first]
    return chosen / jnp.sum(chosen)


@checks.arguments
def posterior_action(goal: jax.Array, cell: jax.Array, *, size: int) -> jax.Array:
    """Probability that each action is Dark Room's optimal one in a cell, ``P(a|s) = Σ_g P(g) 1[a*(s; g) = a]``, ``[5]``.

    The optimal action a* is that of the family: along x first, then along y, then stay.

    Args:
        goal: ``[C]``, probability of each cell to be the goal.
        cell: ``[]``, the agent's cell; (x, y) has index ``x + size * y``.
        size: Cells along a side, at least 2; C is its square.

    Raises:
        ValueError: ``size`` is less than 2, or ``goal`` is not of so many cells.
    """
    checks.at_least("size", size, 2)
    if jnp.shape(goal) != (size**2,):
        raise ValueError(
            f"goal must have shape {(size**2,)}, a number for each cell of size={size}, and has {jnp.shape(goal)}"
        )
    index = jnp.arange(size**2)
    places = jnp.stack([index % size, index // size], axis=1)
    best = jax.vmap(lambda place: gridnavi.towards(place, cell, size=size))(places)
    return jnp.zeros(len(gridnavi.MOVES), goal.dtype).at[best].add(goal)


@functools.cache
def _quadrature(num_nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chebyshev points in (0, 1), ``[n]``, and weights of integrals up to each, ``[n, n]``, and up to 1, ``[n]``.

    A function is replaced by the polynomial of degree n - 1 through its values at the points, which
    is a sum of Chebyshev polynomials, and these are integrated in closed form. Up to 1 it is Fejér's
    first rule, whose weights are positive.
    """
    angle = (np.arange(num_nodes) + 0.5) * np.pi / num_nodes
    order = np.arange(num_nodes)
    coefficients = 2 * np.cos(np.outer(order, angle)) / num_nodes  # [order, point]
    coefficients[0] /= 2

    def primitives(angle: np.ndarray) -> np.ndarray:
        """Of each Chebyshev polynomial, at ``cos(angle) [m]``, ``[m, order]``."""
        raised = np.cos(np.outer(angle, order + 1)) / (2 * (order + 1))
        lowered = np.cos(np.outer(angle, order - 1)) / (2 * np.where(order == 1, np.inf, order - 1))
        primitive = raised - lowered
        primitive[:, 0] = np.cos(angle)
        return primitive

    # The angle falls from π at 0 to 0 at 1; lengths are halved.
    from_zero = primitives(np.append(angle, 0.0)) - primitives(np.array([np.pi]))
    weights = from_zero @ coefficients / 2
    return (1 + np.cos(angle)) / 2, weights[:-1], weights[-1]
