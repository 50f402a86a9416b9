"""How well learners adapt to tasks they have not met, and how sure that is.

The functions of keys and tasks are pure; statistics are scipy's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jaxmeta.adaptation import lifetime
from jaxmeta.returns import first_episode_return
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Learner, Task, TimeStep


def adaptation_returns(
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
) -> jax.Array:
    """Mean return in each task after 0 .. K updates, ``[M, K + 1]``.

    A return is undiscounted, of the first episode of each stream, averaged over the N streams.
    ``num_steps`` must cover an episode. What is reported after k updates was not learned from: it is
    the experience of the agent before its next update.
    """

    def returns(key_and_task: tuple) -> jax.Array:
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
        return jax.vmap(jax.vmap(first_episode_return))(data.reward, data.last).mean(1)

    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    return jax.lax.map(
        returns,
        (jax.random.split(key, num_tasks), tasks),
        batch_size=min(tasks_per_chunk, num_tasks),
    )


def random_returns(
    key: jax.Array, tasks: Task, *, family: TaskFamily, num_streams: int = 20
) -> jax.Array:
    """Mean return of uniformly random actions in each task, ``[M]``."""
    return _reference_returns(
        key, tasks, lambda key, task, obs: family.random_action(key), family, num_streams
    )


def optimal_returns(key: jax.Array, tasks: Task, *, family: TaskFamily) -> jax.Array:
    """Return of the family's optimal policy, which is told the task, ``[M]``.

    Raises:
        ValueError: the family has no closed-form optimum.
    """
    optimal_action = family.optimal_action
    if optimal_action is None:
        raise ValueError(f"family {family.name!r} has no optimal_action")
    return _reference_returns(
        key, tasks, lambda key, task, obs: optimal_action(task, obs), family, num_streams=1
    )


def _reference_returns(
    key: jax.Array,
    tasks: Task,
    policy: Callable[[jax.Array, Task, jax.Array], jax.Array],
    family: TaskFamily,
    num_streams: int,
) -> jax.Array:
    def act(
        key: jax.Array, task: Task, agent: Any, memory: Any, timestep: TimeStep
    ) -> tuple[jax.Array, jax.Array, Any]:
        return policy(key, task, timestep.obs), jnp.zeros(()), memory

    # A learner that is told the task: the task is its meta.
    learner = Learner(
        init=lambda key, task: (),
        memory=lambda task: (),
        act=act,
        update=lambda key, task, agent, trajectories: agent,
    )
    settings: dict[str, Any] = dict(
        num_streams=num_streams, num_updates=0, num_steps=family.horizon
    )

    def task_returns(key: jax.Array, task: Task) -> jax.Array:
        one = jax.tree.map(lambda x: x[None], task)
        return adaptation_returns(key, task, one, learner=learner, env=family.env, **settings)

    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    return jax.vmap(task_returns)(jax.random.split(key, num_tasks), tasks).reshape(num_tasks)


def interquartile_mean(x: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean of the middle half (Agarwal et al. 2021, "Deep reinforcement learning at the edge")."""
    return scipy.stats.trim_mean(x, 0.25, axis=axis)


def bootstrap_interval(
    x: np.ndarray,
    statistic: Callable[..., Any] = np.mean,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of ``x [M]`` (tasks or seeds): ``(low, high)``."""
    x = np.asarray(x, np.float64)
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

    ``(mean R_k - mean R_0) / (mean R* - mean R_0)``, means over tasks; 0 at k = 0 and 1 at the optimum.

    Args:
        returns: ``[M, K + 1]``.
        optimal: ``[M]``.
    """
    mean = np.mean(returns, axis=0)
    return (mean - mean[0]) / (np.mean(optimal) - mean[0])


def summarize(
    returns: np.ndarray, random: np.ndarray, optimal: np.ndarray | None
) -> dict[str, Any]:
    """What a report needs of an adaptation curve, ready for JSON.

    Args:
        returns: ``[M, K + 1]``, return of each task after 0 .. K updates.
        random: ``[M]``, return of the random agent.
        optimal: ``[M]``, return of the optimal agent, where known.

    Returns:
        ``returns`` (means, K + 1), ``intervals`` (95 % bootstrap over tasks), ``interquartile_means``,
        ``random``, ``optimal`` and ``gap_closed`` (None where no optimum is known), ``num_tasks``.
        A number that is not finite is None.
    """
    returns = np.asarray(returns, np.float64)
    columns: Sequence[np.ndarray] = list(returns.T)
    closed = None if optimal is None else gap_closed(returns, np.asarray(optimal, np.float64))
    return {
        "num_tasks": len(returns),
        "returns": [_number(x.mean()) for x in columns],
        "intervals": [[_number(end) for end in bootstrap_interval(x)] for x in columns],
        "interquartile_means": [_number(interquartile_mean(x)) for x in columns],
        "random": _number(np.mean(random)),
        "optimal": None if optimal is None else _number(np.mean(optimal)),
        "gap_closed": None if closed is None else [_number(x) for x in closed],
    }


def _number(x: Any) -> float | None:
    """A JSON number; None where learning diverged, which JSON cannot hold."""
    return float(x) if np.isfinite(x) else None
