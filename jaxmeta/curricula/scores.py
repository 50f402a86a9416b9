"""Scores of tasks: how much an agent can still learn in each, from what the task gave."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.types import TaskResults


class Score(NamedTuple):
    """A score, and what it is computed from."""

    needs: tuple[str, ...]
    """The fields of `TaskResults` that it reads."""
    score: Callable[[TaskResults, jax.Array], jax.Array]
    """``(results [M], best [M]) -> [M]``; ``best`` is the highest return of a trial in the task so far. NaN for a task without
    counted steps."""


def max_monte_carlo(results: TaskResults, best: jax.Array) -> jax.Array:
    """Mean gap between the ``best [M]`` return in a task and the return that the value predicts, ``[M]`` (MaxMC).

    Jiang et al. 2021, "Replay-guided adversarial environment design", section 5: ``mean_t (R_max - V(s_t))``. There an
    episode has one reward, at its end. Where rewards come on the way, those earned before a step are added to its value.
    """
    earned = jnp.cumsum(results.reward, axis=-1) - results.reward
    return _mean_step(best[:, None, None] - (earned + results.value), results.counted)


def positive_value_loss(results: TaskResults, best: jax.Array) -> jax.Array:
    """Mean positive part of the generalised advantages in each task, ``[M]``; ``best`` is not used.

    Jiang et al. 2021, "Replay-guided adversarial environment design", section 5.
    """
    return _mean_step(jnp.maximum(results.advantage, 0.0), results.counted)


def absolute_advantage(results: TaskResults, best: jax.Array) -> jax.Array:
    """Mean magnitude of the generalised advantages in each task, ``[M]``, the L1 value loss; ``best`` is not used.

    Jiang et al. 2021, "Prioritized level replay", section 3.
    """
    return _mean_step(jnp.abs(results.advantage), results.counted)


def solved_share(episodes: jax.Array, threshold: float = 0.0) -> jax.Array:
    """p, the share of each task's ended ``episodes [M, ...]`` with a return above ``threshold``, ``[M]``; NaN without any."""
    flat = episodes.reshape(len(episodes), -1)
    return jnp.mean((flat > threshold).astype(flat.dtype), axis=1, where=~jnp.isnan(flat))


def learnable(p: jax.Array) -> jax.Array:
    """The learnability ``p (1 - p)`` of tasks that are solved with probability p, of any shape.

    Rutherford et al. 2024, "No regrets: investigating and improving regret approximations for curriculum discovery".
    """
    return p * (1.0 - p)


def _mean_step(x: jax.Array, counted: jax.Array) -> jax.Array:
    """The mean of ``x [M, N, T]`` over the ``counted`` steps of each task, ``[M]``; NaN without any."""
    return jnp.mean(x, axis=(1, 2), where=counted)


SCORES: dict[str, Score] = {
    "max_monte_carlo": Score(("best", "reward", "value", "counted"), max_monte_carlo),
    "positive_value_loss": Score(("advantage", "counted"), positive_value_loss),
    "absolute_advantage": Score(("advantage", "counted"), absolute_advantage),
    "learnability": Score(
        ("episodes",), lambda results, best: learnable(solved_share(results.episodes))
    ),
}
"""Scores by name. ``learnability`` calls an episode solved if its return is positive."""
