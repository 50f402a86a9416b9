"""How well learners adapt to tasks they have not met, and how sure that is.

The functions of keys and tasks are pure; statistics are scipy's. A stream with a number that is not finite is left out
and counted; a task or an episode without a return is NaN, and `summarize` leaves out and counts such tasks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.estimators.episodes import first_episode_return
from jaxmeta.estimators.streams import finite_streams, mean_over_streams
from jaxmeta.rollouts.lifetime import lifetime
from jaxmeta.tasks import environments, time_limit
from jaxmeta.types import Learner, Task


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
    num_tasks = environments.num_tasks("tasks", tasks, env)

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
    limit = time_limit.ends_by(env)
    if limit is not None and num_steps < limit:
        raise ValueError(
            f"num_steps={num_steps} must be at least {limit}, the horizon: an episode that is cut has no return"
        )
