"""Intervals and summaries of returns over tasks and seeds, in NumPy and SciPy."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats

from jaxmeta import checks


def normalized(returns: np.ndarray, random: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns on a scale on which the random agent is 0 and the reference is 1; same shape as ``returns``.

    ``(R - mean R_random) / (mean R_reference - mean R_random)``. Means are over tasks: if each task
    had its own scale, a task in which the reference is hardly better than chance would outweigh all
    others. Tasks in which one of the two has no return (NaN, because its streams are broken) are
    left out of both means.

    Args:
        returns: Any shape.
        random: ``[M]``, from `random_returns` on the tasks of ``returns``.
        reference: ``[M]``, from `reference_returns` on the same tasks.

    Raises:
        ValueError: the reference is no better than random, or shapes do not fit.
    """
    returns, random, reference = checks.numbers(
        "... M M", returns=returns, random=random, reference=reference
    )
    known = np.isfinite(random) & np.isfinite(reference)
    if not np.any(known):
        raise ValueError("random and reference have no task in which both are finite")
    zero, one = np.mean(random[known]), np.mean(reference[known])
    if not one > zero:
        raise ValueError(f"mean reference return {one} must exceed the random agent's, {zero}")
    return (returns - zero) / (one - zero)


def interquartile_mean(x: np.ndarray, axis: int | None = 0) -> np.ndarray:
    """Mean of the middle half along ``axis`` of ``x``, or over all entries ``[]`` if ``axis`` is None.

    Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice".
    """
    return scipy.stats.trim_mean(x, 0.25, axis=axis)


def interquartile_interval(
    x: np.ndarray, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the interquartile mean of ``x [seeds, tasks]``: ``(low, high)``.

    Seeds and tasks are resampled independently, as whole rows and whole columns (Owen 2007, "The
    pigeonhole bootstrap"). Agarwal et al. resample seeds anew for each task, because there each
    entry is a training run of its own. Here a row is one trained agent, and their interval would be
    too narrow. The interval is for new seeds and new tasks; with a single seed, for new tasks
    alone. With few seeds any bootstrap interval is too narrow. The result is NaN if an entry is not
    finite or if there is only one.
    """
    x = _table(x, confidence, num_resamples, seed)
    if not np.all(np.isfinite(x)) or x.size < 2:
        return (float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    draws = ([rng.integers(n, size=n) for n in x.shape] for _ in range(num_resamples))
    means = [interquartile_mean(x[np.ix_(*draw)], axis=None) for draw in draws]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_interval(
    x: np.ndarray, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``x [seeds, tasks]``: ``(low, high)``.

    Rows and columns are resampled as in `interquartile_interval`; the cost stays low for many
    tasks.
    """
    x = _table(x, confidence, num_resamples, seed)
    if not np.all(np.isfinite(x)) or x.size < 2:
        return (float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(num_resamples):
        # Weights are the counts of each row and column, so that sums replace copies.
        rows, columns = (rng.multinomial(n, np.full(n, 1 / n)) / n for n in x.shape)
        means.append(rows @ x @ columns)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _table(x: np.ndarray, confidence: float, num_resamples: int, seed: int) -> np.ndarray:
    """``x [seeds, tasks]`` in float64; checks the settings of the bootstrap too."""
    (x,) = checks.numbers("...", x=x)
    if x.ndim != 2:
        raise ValueError(f"x has shape {x.shape}; it must be [seeds, tasks]")
    checks.between("confidence", confidence, 0, 1)
    checks.at_least("num_resamples", num_resamples, 1)
    checks.at_least("seed", seed, 0)
    return x


def bootstrap_interval(
    x: np.ndarray,
    statistic: Callable[..., Any] = np.mean,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of ``x [M]`` (tasks or seeds): ``(low, high)``."""
    (x,) = checks.numbers("M", x=x)
    checks.between("confidence", confidence, 0, 1)
    checks.at_least("seed", seed, 0)
    if not np.all(np.isfinite(x)) or len(x) < 2:
        return (float("nan"), float("nan"))
    result = scipy.stats.bootstrap(
        (x,),
        statistic,
        confidence_level=confidence,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)


def gap_closed(returns: np.ndarray, optimal: np.ndarray) -> np.ndarray:
    """Share of the gap between the unadapted agent and the optimum that k updates close, ``[K + 1]``.

    ``(mean R_k - mean R_0) / (mean R* - mean R_0)``, with means over tasks: 0 at k = 0 and 1 at the
    optimum. NaN if there is no gap.

    Args:
        returns: ``[M, K + 1]``.
        optimal: ``[M]``.
    """
    returns, optimal = checks.numbers("MK M", returns=returns, optimal=optimal)
    mean = np.mean(returns, axis=0)
    gap = np.mean(optimal) - mean[0]
    return (mean - mean[0]) / gap if gap else np.full(mean.shape, np.nan)


def summarize(
    returns: np.ndarray, random: np.ndarray, optimal: np.ndarray | None
) -> dict[str, Any]:
    """Summary of an adaptation curve as a dictionary ready for JSON.

    A task with a return that is not finite (its streams are broken, or learning diverged) is left
    out of every number and counted.

    Args:
        returns: ``[M, K + 1]``, return of each task after 0 .. K updates.
        random: ``[M]``, return of the random agent.
        optimal: ``[M]``, return of the optimal agent, or None if it is not known.

    Returns:
        ``returns`` (means, K + 1), ``intervals`` (95 % bootstrap over tasks),
        ``interquartile_means``, ``random``, ``optimal`` and ``gap_closed`` (None if no optimum is
        known), ``num_tasks`` and ``skipped_tasks``. A number without tasks is None.
    """
    returns, random = checks.numbers("MK M", returns=returns, random=random)
    good = np.all(np.isfinite(returns), axis=1) & np.isfinite(random)
    if optimal is not None:
        (optimal,) = checks.numbers("M", optimal=optimal)
        checks.shapes("MK M", returns=returns, optimal=optimal)
        good &= np.isfinite(optimal)
        optimal = optimal[good]
    returns, random = returns[good], random[good]
    some = bool(np.any(good))
    columns: Sequence[np.ndarray] = list(returns.T)
    closed = gap_closed(returns, optimal) if optimal is not None and some else None
    return {
        "num_tasks": int(np.sum(good)),
        "skipped_tasks": int(np.sum(~good)),
        "returns": [_mean(x) for x in columns],
        "intervals": [[_number(end) for end in bootstrap_interval(x)] for x in columns],
        "interquartile_means": [_number(interquartile_mean(x)) if some else None for x in columns],
        "random": _mean(random),
        "optimal": None if optimal is None else _mean(optimal),
        "gap_closed": None if closed is None else [_number(x) for x in closed],
    }


def _mean(x: np.ndarray) -> float | None:
    """The mean of ``x [M]``; None without entries."""
    return _number(np.mean(x)) if x.size else None


def _number(x: Any) -> float | None:
    """A JSON number; None for a number that is not finite."""
    return float(x) if np.isfinite(x) else None
