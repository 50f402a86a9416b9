"""The worst tasks: CVaR, percentiles, shares of solved episodes; and the probability that one agent beats another. In NumPy."""

from typing import Any

import numpy as np

from jaxmeta import checks
from jaxmeta.evaluation.statistics import bootstrap_interval

SHARES = (0.01, 0.05, 0.1)
"""The shares of worst tasks in `tail_summary`."""


def cvar(x: np.ndarray, share: float, *, ranked_by: np.ndarray | None = None) -> float:
    """Mean of the worst ``share`` of ``x [M]``, returns of tasks or shares of solved episodes: the conditional value at risk.

    ``share`` times M tasks count, the last one in part. A task that is not finite is left out. The mean is NaN without any.

    Args:
        x: ``[M]``.
        share: Between 0 and 1; 1 is the mean.
        ranked_by: ``[M]``, by which the worst tasks are found; None is ``x``. Noise makes the worst of ``x`` look worse than
            they are, so rank by a second measurement.

    Raises:
        ValueError: a shape is wrong, or ``share`` is not between 0 and 1.
    """
    ranked_by = x if ranked_by is None else ranked_by
    x, ranked_by = checks.numbers("M M", x=x, ranked_by=ranked_by)
    checks.between("share", share, 1e-9, 1)
    good = np.isfinite(x) & np.isfinite(ranked_by)
    worst_first = x[good][np.argsort(ranked_by[good], kind="stable")]
    num = share * len(worst_first)
    if not num:
        return float("nan")
    weight = np.clip(num - np.arange(len(worst_first)), 0.0, 1.0)
    return float(np.sum(weight * worst_first) / num)


def solve_rate(episodes: np.ndarray, *, threshold: float = 0.0) -> np.ndarray:
    """The share of each task's ``episodes [M, E]`` whose return is above ``threshold``, ``[M]``.

    Episodes without a return (NaN) are left out; a task without any is NaN.
    """
    (episodes,) = checks.numbers("ME", episodes=episodes)
    checks.between("threshold", threshold, -np.inf, np.inf)
    known = np.isfinite(episodes)
    count = np.sum(known, axis=1)
    solved = np.sum(known & (episodes > threshold), axis=1)
    return np.where(count > 0, solved / np.maximum(count, 1), np.nan)


def tail_summary(x: np.ndarray) -> dict[str, Any]:
    """The mean and the tail of ``x [M]``, returns of tasks or shares of solved episodes, as a dictionary ready for JSON.

    ``mean``, ``percentile_20`` (the 20th percentile over tasks), ``cvar_1``, ``cvar_5`` and ``cvar_10`` (means of the worst 1, 5
    and 10 % of tasks), ``num_tasks`` and ``skipped_tasks``, those that are not finite. A number without tasks is None.
    """
    (x,) = checks.numbers("M", x=x)
    good = x[np.isfinite(x)]
    known = bool(good.size)
    names = {f"cvar_{100 * share:.0f}": share for share in SHARES}
    return {
        "mean": float(np.mean(good)) if known else None,
        "percentile_20": float(np.quantile(good, 0.2)) if known else None,
        **{name: cvar(good, share) if known else None for name, share in names.items()},
        "num_tasks": int(good.size),
        "skipped_tasks": int(x.size - good.size),
    }


def by_episode(episodes: np.ndarray) -> tuple[list[float], list[tuple[float, float]]]:
    """Mean return of each of the ``episodes [M, E]`` over tasks, and its 95 % bootstrap interval over tasks, E of both.

    Episodes without a return (NaN) are left out; without any the mean is NaN.
    """
    (episodes,) = checks.numbers("ME", episodes=episodes)
    columns = [x[np.isfinite(x)] for x in episodes.T]
    means = [float(np.mean(x)) if x.size else float("nan") for x in columns]
    return means, [bootstrap_interval(x) for x in columns]


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
    """The probability that a run of X returns more than a run of Y in a task, its mean over tasks; equal returns count half.

    Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice". The result is NaN if an entry is NaN
    or if there is none: a NaN is neither above nor below a return.

    Args:
        x: ``[S, M]``, returns of S seeds of X in M tasks.
        y: ``[S', M]``, returns of S' seeds of Y in the same tasks.
    """
    x, y = checks.numbers("SM PM", x=x, y=y)
    return float(np.mean(_wins(x, y))) if _comparable(x, y) else float("nan")


def improvement_interval(
    x: np.ndarray,
    y: np.ndarray,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `probability_of_improvement`: ``(low, high)``.

    Seeds of X, seeds of Y and tasks are resampled independently, as in `interquartile_interval`. The result is NaN where the
    probability is.
    """
    x, y = checks.numbers("SM PM", x=x, y=y)
    checks.between("confidence", confidence, 0, 1)
    checks.at_least("num_resamples", num_resamples, 1)
    checks.at_least("seed", seed, 0)
    if not _comparable(x, y):
        return (float("nan"), float("nan"))
    wins = _wins(x, y)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_resamples):
        ours, theirs, columns = (rng.multinomial(n, np.full(n, 1 / n)) / n for n in wins.shape)
        found.append(np.einsum("i,j,m,ijm->", ours, theirs, columns, wins, optimize=True))
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _comparable(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether there are entries, and none is NaN."""
    return bool(x.size and y.size) and not (np.any(np.isnan(x)) or np.any(np.isnan(y)))


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1 where ``x [S, M]`` is above ``y [S', M]``, 1/2 where they are equal, ``[S, S', M]``."""
    ours, theirs = x[:, None, :], y[None, :, :]
    return (ours > theirs) + 0.5 * (ours == theirs)
