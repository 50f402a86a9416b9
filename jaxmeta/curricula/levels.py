"""A buffer of tasks with scores: which to keep, and which to draw again.

Jiang, Grefenstette & Rocktäschel 2021, "Prioritized level replay", section 3. A task is drawn again with probability
``(1 - ρ) P_S + ρ P_C``. P_S falls with the rank of its score, ``rank^(-1/β)``, and P_C grows with the time since it was drawn
last. The batch of a meta-update is drawn without replacement. A full buffer replaces its least probable tasks by new
ones with higher scores.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.types import Task


class Levels(NamedTuple):
    """C places for tasks. A place without a task has the score -inf."""

    tasks: Task
    """``[C]``."""
    score: jax.Array
    """``[C]``."""
    best: jax.Array
    """``[C]``, the highest return of a trial in the task so far."""
    drawn_at: jax.Array
    """``[C]``, int32: the meta-update in which the task was drawn last."""
    time: jax.Array
    """``[]``, int32: meta-updates so far."""


class Priorities(NamedTuple):
    """Settings of the distribution of replayed tasks."""

    temperature: float
    """β."""
    staleness: float
    """ρ."""


def empty(draw: Callable[[jax.Array], Task], capacity: int) -> Levels:
    """A buffer of C = ``capacity`` places for tasks like those of ``draw(key)``."""
    one = jax.eval_shape(draw, jax.random.key(0))
    return Levels(
        tasks=jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), one),
        score=jnp.full(capacity, -jnp.inf),
        best=jnp.full(capacity, -jnp.inf),
        drawn_at=jnp.zeros(capacity, jnp.int32),
        time=jnp.zeros((), jnp.int32),
    )


def filled(levels: Levels) -> jax.Array:
    """The places that hold a task, bool ``[C]``."""
    return levels.score > -jnp.inf


def log_rank_weights(score: jax.Array, temperature: float) -> jax.Array:
    """``log P_S``, normalised, ``[C]``: rank 1 has the highest score, and equal scores rank by their place.

    -inf for the score -inf.
    """
    order = jnp.argsort(-score, stable=True)
    rank = jnp.zeros_like(score).at[order].set(jnp.arange(1, len(score) + 1, dtype=score.dtype))
    return _normalized(jnp.where(score > -jnp.inf, -jnp.log(rank) / temperature, -jnp.inf))


def log_staleness_weights(levels: Levels) -> jax.Array:
    """``log P_C``, normalised, ``[C]``: in proportion to the meta-updates since the last draw; uniform where all are 0."""
    age = jnp.where(filled(levels), levels.time - levels.drawn_at, 0).astype(levels.score.dtype)
    weight = jnp.where(jnp.any(age > 0), jnp.log(age), jnp.zeros_like(age))
    return _normalized(jnp.where(filled(levels), weight, -jnp.inf))


def log_probabilities(levels: Levels, how: Priorities) -> jax.Array:
    """The logarithm of the probability to draw each task again, ``[C]``; -inf at places without a task."""
    by_rank = jnp.log1p(-how.staleness) + log_rank_weights(levels.score, how.temperature)
    by_age = jnp.log(how.staleness) + log_staleness_weights(levels)
    return jnp.logaddexp(by_rank, by_age)


def draw(key: jax.Array, levels: Levels, num: int, how: Priorities) -> tuple[jax.Array, jax.Array]:
    """``(places [num], valid [num])``: different places, drawn one after the other without replacement.

    A draw is not ``valid`` where the buffer holds fewer tasks; its place is then another one.
    """
    # The largest of log P plus Gumbel noise are a draw without replacement (Vieira 2014).
    log_p = log_probabilities(levels, how)
    noisy, places = jax.lax.top_k(log_p + jax.random.gumbel(key, log_p.shape, log_p.dtype), num)
    return places.astype(jnp.int32), noisy > -jnp.inf


def rescored(
    levels: Levels, places: jax.Array, which: jax.Array, score: jax.Array, best: jax.Array
) -> Levels:
    """The buffer with new scores and best returns of ``which`` (bool ``[M]``) of its tasks at different ``places [M]``.

    A score that is NaN keeps the old one.
    """
    known = which & ~jnp.isnan(score)
    at = jnp.where(which, places, len(levels.score))  # other indices are dropped
    scored = jnp.where(known, places, len(levels.score))
    return levels._replace(
        score=levels.score.at[scored].set(score, mode="drop"),
        best=levels.best.at[at].max(best, mode="drop"),
        drawn_at=levels.drawn_at.at[at].set(levels.time, mode="drop"),
    )


def inserted(
    levels: Levels,
    tasks: Task,
    which: jax.Array,
    score: jax.Array,
    best: jax.Array,
    how: Priorities,
) -> Levels:
    """The buffer with ``which`` (bool ``[M]``) of ``tasks [M]`` put in, those with the highest scores first.

    The i-th best new task takes the i-th least probable place, empty places first. It does so only if the place is empty
    or has a lower score. A task whose score is not finite stays outside.
    """
    capacity, num = len(levels.score), len(score)
    few = min(capacity, num)
    score = jnp.where(which & jnp.isfinite(score), score, -jnp.inf)
    candidates = jnp.argsort(-score, stable=True)[:few]
    places = jnp.argsort(log_probabilities(levels, how), stable=True)[:few]
    enters = score[candidates] > levels.score[places]
    at = jnp.where(enters, places, capacity)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[at].set(new[candidates], mode="drop")

    return Levels(
        tasks=jax.tree.map(put, levels.tasks, tasks),
        score=put(levels.score, score),
        best=put(levels.best, best),
        drawn_at=levels.drawn_at.at[at].set(levels.time, mode="drop"),
        time=levels.time,
    )


def report(levels: Levels) -> dict[str, jax.Array]:
    """Metrics: the number of tasks in the buffer, and their mean score (NaN without any)."""
    some = filled(levels)
    return {
        "curriculum/levels": jnp.sum(some, dtype=jnp.int32),
        "curriculum/score": jnp.mean(levels.score, where=some),
    }


def choose(which: jax.Array, one: Any, other: Any) -> Any:
    """``one [M]`` where ``which`` (bool ``[M]``), else ``other [M]``, in every leaf."""

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(which.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(leaf, one, other)


def _normalized(log_weight: jax.Array) -> jax.Array:
    """Logarithms of weights that sum to 1, ``[C]``; all -inf stay so."""
    total = jax.nn.logsumexp(log_weight)
    return log_weight - jnp.where(total > -jnp.inf, total, 0.0)
