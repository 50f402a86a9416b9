"""How well learners adapt to tasks they have not met, and how sure that is.

The functions of keys and tasks are pure; statistics are scipy's. A stream with a number that is not finite is left out
and counted; a task or an episode without a return is NaN, and `summarize` leaves out and counts such tasks.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jaxmeta import checks
from jaxmeta.adaptation import lifetime
from jaxmeta.returns import (
    episode_index,
    finite_streams,
    first_episode_return,
    mean_over_streams,
)
from jaxmeta.tasks import door
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Learner, Task, TimeStep


class AdaptationCurve(NamedTuple):
    """Returns after each update, and how many streams did not count."""

    returns: jax.Array  # [M, K + 1], NaN where every stream of the task is broken
    skipped_streams: jax.Array  # [M, K + 1], int32


@checks.arguments
def adaptation_curve(
    key: jax.Array,
    meta: Any,
    tasks: Task,
    *,
    learner: Learner,
    env: Any,
    num_streams: int,
    num_updates: int,
    num_steps: int,
    restart: bool = True,
    tasks_per_chunk: int = 20,
) -> AdaptationCurve:
    """Mean return in each task after 0 .. K updates, and the streams that were left out of it.

    A return is undiscounted, of the first episode of each stream, averaged over those of the N streams whose
    first episode ended and that hold finite numbers alone. What is reported after k updates was not learned from: it is the experience of
    the agent before its next update.

    Args:
        key: Of everything random.
        meta: What the learner reads: ``state.meta``.
        tasks: With a leading axis, ``[M]``.
        learner: Whose lifetimes are measured.
        env: The family's: ``family.env``.
        num_streams: N, episodes for each update and for each measurement.
        num_updates: K.
        num_steps: Steps of a stream, at least an episode's: ``family.horizon``.
        restart: Begin every round anew, in independent episodes from the start.
        tasks_per_chunk: Tasks that are worked on at a time, to bound memory.

    Raises:
        ValueError: tasks have no leading axis, or ``num_steps`` is shorter than an episode may be.
    """

    checks.at_least("tasks_per_chunk", tasks_per_chunk, 1)
    checks.at_least("num_steps", num_steps, 1)
    _covers_an_episode(num_steps, env)
    num_tasks = door.num_tasks("tasks", tasks, env)

    def curve(key_and_task: tuple) -> AdaptationCurve:
        history = lifetime(
            key_and_task[0],
            meta,
            key_and_task[1],
            learner=learner,
            env=env,
            num_streams=num_streams,
            num_updates=num_updates,
            num_steps=num_steps,
            restart=restart,
        )
        data = history.trajectories
        returns = jax.vmap(jax.vmap(first_episode_return))(data.reward, data.last)
        # An episode that did not end within the steps has no return.
        good = jax.vmap(finite_streams)(data) & jnp.any(data.last, axis=-1)
        return AdaptationCurve(
            jax.vmap(mean_over_streams)(returns, good), jnp.sum(~good, axis=1, dtype=jnp.int32)
        )

    return jax.lax.map(
        curve,
        (jax.random.split(key, num_tasks), tasks),
        batch_size=min(tasks_per_chunk, num_tasks),
    )


def adaptation_returns(key: jax.Array, meta: Any, tasks: Task, **how: Any) -> jax.Array:
    """The ``returns [M, K + 1]`` of `adaptation_curve`, which has the same arguments.

    Broken streams are left out of the means; a task whose streams are all broken has NaN. `adaptation_curve`
    counts them.
    """
    return adaptation_curve(key, meta, tasks, **how).returns


def _covers_an_episode(num_steps: int, env: Any) -> None:
    limit = door.ends_by(env)
    if limit is not None and num_steps < limit:
        raise ValueError(
            f"num_steps={num_steps} must be at least {limit}, the horizon: an episode that is cut has no return"
        )


class Trials(NamedTuple):
    """What was done and earned, a row a trial."""

    action: jax.Array  # [M, T, *action_shape]
    reward: jax.Array  # [M, T]
    last: jax.Array  # [M, T], bool: an episode ended here
    good: jax.Array  # [M], bool: every number that was seen is finite


@checks.arguments
def trials(
    key: jax.Array,
    meta: Any,
    tasks: Task,
    *,
    learner: Learner,
    env: Any,
    num_steps: int,
    num_updates: int = 0,
    tasks_per_chunk: int = 1000,
) -> Trials:
    """One trial in each task, ``[M, (K + 1) T]``: what learners with memory are judged by.

    A trial is ``num_steps`` T of one stream that is never begun anew, so memory outlives episodes. With
    ``num_updates`` K > 0 it is K + 1 times as long, with an update of the learner's every T steps
    (posterior sampling learns between episodes). ``tasks`` have a leading axis, ``[M]``.
    """

    checks.at_least("tasks_per_chunk", tasks_per_chunk, 1)
    num_tasks = door.num_tasks("tasks", tasks, env)

    def trial(key_and_task: tuple) -> Trials:
        history = lifetime(
            key_and_task[0],
            meta,
            key_and_task[1],
            learner=learner,
            env=env,
            num_streams=1,
            num_updates=num_updates,
            num_steps=num_steps,
        )
        data = history.trajectories  # [K + 1, 1, T]
        seen = (data.action, data.reward, data.last)
        action, reward, last = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), seen)
        return Trials(action, reward, last, jnp.all(jax.vmap(finite_streams)(data)))

    return jax.lax.map(
        trial,
        (jax.random.split(key, num_tasks), tasks),
        batch_size=min(tasks_per_chunk, num_tasks),
    )


@checks.arguments
def episode_returns(trials: Trials, num_episodes: int) -> jax.Array:
    """Undiscounted return of each of the first E episodes of every trial, ``[M, E]``.

    NaN where there is none: an episode that the trial ends before, or cuts off, has no return, nor has one of a
    trial in which a number is not finite. `summarize` leaves such trials out and counts them.
    """

    checks.at_least("num_episodes", num_episodes, 1)
    told = {"trials.reward": trials.reward, "trials.last": trials.last, "trials.good": trials.good}
    checks.shapes("MT MT M", **told)

    def returns(reward: jax.Array, last: jax.Array, good: jax.Array) -> jax.Array:
        index = episode_index(last)
        episode = jax.nn.one_hot(index, num_episodes, dtype=reward.dtype)
        ended = jnp.arange(num_episodes) < index[-1] + last[-1].astype(index.dtype)
        return jnp.where(ended & good, reward @ episode, jnp.nan)

    return jax.vmap(returns)(trials.reward, trials.last, trials.good)


@checks.arguments
def random_returns(
    key: jax.Array, tasks: Task, *, family: TaskFamily, num_streams: int = 20
) -> jax.Array:
    """Mean return of uniformly random actions in each task, ``[M]``.

    Like all returns of controllers below, it is the mean over the streams that are not broken; NaN without any.
    """
    return _controller_returns(
        key, tasks, lambda key, task, obs: family.random_action(key), family, num_streams
    )


@checks.arguments
def optimal_returns(key: jax.Array, tasks: Task, *, family: TaskFamily) -> jax.Array:
    """Return of the family's optimal policy, which is told the task, ``[M]``: expected, where the
    family computes it, else of an episode.

    Raises:
        ValueError: the family's optimum is not known.
    """
    if family.optimal_return is not None:
        door.num_tasks("tasks", tasks, family.env)
        return jax.vmap(family.optimal_return)(tasks)
    optimal_action = family.optimal_action
    if optimal_action is None:
        raise ValueError(f"family {family.name!r} has no optimal_action")
    return _controller_returns(
        key, tasks, lambda key, task, obs: optimal_action(task, obs), family, num_streams=1
    )


@checks.arguments
def expert_returns(
    key: jax.Array, tasks: Task, *, family: TaskFamily, num_streams: int = 20
) -> jax.Array:
    """Mean return of the family's expert, which is told the task, ``[M]``.

    It is good, not proven optimal: a learner may do better.

    Raises:
        ValueError: the family has none.
    """
    expert_action = family.expert_action
    if expert_action is None:
        raise ValueError(f"family {family.name!r} has no expert_action")
    return _controller_returns(
        key, tasks, lambda key, task, obs: expert_action(task, obs), family, num_streams
    )


@checks.arguments
def reference_returns(key: jax.Array, tasks: Task, *, family: TaskFamily) -> jax.Array:
    """What 1 means for `normalized`: the optimal return where it is known, else the expert's, ``[M]``.

    Raises:
        ValueError: the family has neither.
    """
    known = family.optimal_action or family.optimal_return
    return (optimal_returns if known else expert_returns)(key, tasks, family=family)


def controller_learner(policy: Callable[[jax.Array, Task, jax.Array], jax.Array]) -> Learner:
    """A learner that acts by ``policy(key, task, obs)`` and learns nothing: the task is its meta."""

    def act(
        key: jax.Array, task: Task, agent: Any, memory: Any, timestep: TimeStep
    ) -> tuple[jax.Array, jax.Array, Any]:
        return policy(key, task, timestep.obs), jnp.zeros(()), memory

    return Learner(
        init=lambda key, task: (),
        memory=lambda task: (),
        act=act,
        update=lambda key, task, agent, trajectories: agent,
    )


def _controller_returns(
    key: jax.Array,
    tasks: Task,
    policy: Callable[[jax.Array, Task, jax.Array], jax.Array],
    family: TaskFamily,
    num_streams: int,
) -> jax.Array:
    settings: dict[str, Any] = dict(
        learner=controller_learner(policy),
        env=family.env,
        num_streams=num_streams,
        num_updates=0,
        num_steps=family.horizon,
    )

    def task_returns(key: jax.Array, task: Task) -> jax.Array:
        one = jax.tree.map(lambda x: x[None], task)
        return adaptation_returns(key, task, one, **settings)

    num_tasks = door.num_tasks("tasks", tasks, family.env)
    return jax.vmap(task_returns)(jax.random.split(key, num_tasks), tasks).reshape(num_tasks)


def normalized(returns: np.ndarray, random: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns on a scale where the random agent is 0 and the reference 1, the shape of ``returns``.

    ``(R - mean R_random) / (mean R_reference - mean R_random)``. Means are over the tasks: scaled task
    by task, one in which the reference is hardly better than chance would outweigh all others. Tasks in which
    either has no return (NaN: its streams are broken) are left out of both means.

    Args:
        returns: Any shape.
        random: ``[M]``, from `random_returns` on the tasks of ``returns``.
        reference: ``[M]``, from `reference_returns` on them.

    Raises:
        ValueError: the reference is no better than random, so there is no scale; or shapes do not fit.
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
    """Mean of the middle half (Agarwal et al. 2021, "Deep reinforcement learning at the edge of the
    statistical precipice"); over all entries if ``axis`` is None.
    """
    return scipy.stats.trim_mean(x, 0.25, axis=axis)


def interquartile_interval(
    x: np.ndarray, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the interquartile mean of ``x [seeds, tasks]``: ``(low, high)``.

    Seeds and tasks are resampled independently of each other, whole rows and whole columns (Owen 2007,
    "The pigeonhole bootstrap"). Agarwal et al. resample seeds anew for each task, for there each entry is
    a training run of its own; here a row is one trained agent, and their interval would be too narrow.
    This one speaks of new seeds and new tasks, with a single seed of new tasks alone; with a handful of
    seeds a bootstrap is still too narrow. NaN where an entry is not finite or there is only one.
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

    Resampled as in `interquartile_interval`, whole rows and whole columns; for many tasks.
    """
    x = _table(x, confidence, num_resamples, seed)
    if not np.all(np.isfinite(x)) or x.size < 2:
        return (float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(num_resamples):
        # How often each row and column is drawn: sums instead of copies.
        rows, columns = (rng.multinomial(n, np.full(n, 1 / n)) / n for n in x.shape)
        means.append(rows @ x @ columns)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _table(x: np.ndarray, confidence: float, num_resamples: int, seed: int) -> np.ndarray:
    """``x [seeds, tasks]`` in float64, checked like the settings of its bootstrap."""
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

    ``(mean R_k - mean R_0) / (mean R* - mean R_0)``, means over tasks; 0 at k = 0 and 1 at the optimum. NaN where there
    is no gap.

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
    """What a report needs of an adaptation curve, ready for JSON.

    A task in which a return is not finite (its streams are broken, or learning diverged) is left out of every
    number and counted.

    Args:
        returns: ``[M, K + 1]``, return of each task after 0 .. K updates.
        random: ``[M]``, return of the random agent.
        optimal: ``[M]``, return of the optimal agent, where known.

    Returns:
        ``returns`` (means, K + 1), ``intervals`` (95 % bootstrap over tasks), ``interquartile_means``,
        ``random``, ``optimal`` and ``gap_closed`` (None where no optimum is known), ``num_tasks`` and
        ``skipped_tasks``. A number that is of no task is None.
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
    return _number(np.mean(x)) if x.size else None


def _number(x: Any) -> float | None:
    """A JSON number; None where learning diverged, which JSON cannot hold."""
    return float(x) if np.isfinite(x) else None
