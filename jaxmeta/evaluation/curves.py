"""Adaptation curves: mean return in each task after 0, 1, ... K updates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.estimators.episodes import first_episode_return
from jaxmeta.estimators.streams import finite_streams, mean_over_streams
from jaxmeta.rollouts.fits import check_fits
from jaxmeta.rollouts.lifetime import Setup, lifetime
from jaxmeta.tasks import environments, time_limit
from jaxmeta.types import Environment, Learner, Meta, Task


class AdaptationCurve(NamedTuple):
    """Returns after each update, and the number of streams left out."""

    returns: jax.Array
    """``[M, K + 1]``, mean return in each task after 0 .. K updates; NaN if every stream of the
    task is broken."""
    skipped_streams: jax.Array
    """``[M, K + 1]``, int32: streams left out of the mean."""


@checks.arguments
def adaptation_curve(
    key: jax.Array,
    meta: Meta,
    tasks: Task,
    *,
    learner: Learner,
    env: Environment,
    num_streams: int,
    num_updates: int,
    num_steps: int,
    restart: bool = True,
    tasks_per_chunk: int = 20,
) -> AdaptationCurve:
    """Mean return in each task after 0 .. K updates, and the number of streams left out of it.

    A return is undiscounted and of a stream's first episode. The mean is over those of the N
    streams whose first episode ended and whose numbers are all finite. The return after k updates
    comes from new episodes that the agent has not learned from yet.

    Args:
        key: Random key.
        meta: Input of the learner: ``state.meta``.
        tasks: Tasks with a leading axis, ``[M]``.
        learner: The learner to evaluate.
        env: The family's environment: ``family.env``.
        num_streams: N, episodes for each update and for each measurement.
        num_updates: K.
        num_steps: Steps of a stream, at least ``family.horizon``.
        restart: Begin every round with new, independent episodes.
        tasks_per_chunk: Tasks evaluated at a time; bounds memory.

    Raises:
        ValueError: tasks have no leading axis; ``num_steps`` is less than the horizon; ``meta`` is of a population, or
            the learner does not fit the environment.
    """

    checks.at_least("tasks_per_chunk", tasks_per_chunk, 1)
    checks.at_least("num_steps", num_steps, 1)
    _covers_an_episode(num_steps, env)
    num_tasks = environments.num_tasks("tasks", tasks, env)
    check_fits(meta, tasks, learner=learner, env=env)
    setup = Setup(learner, env, num_streams, num_steps)

    def curve(key_and_task: tuple) -> AdaptationCurve:
        history = lifetime(
            key_and_task[0],
            meta,
            key_and_task[1],
            setup=setup,
            num_updates=num_updates,
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


def adaptation_returns(key: jax.Array, meta: Meta, tasks: Task, **how: Any) -> jax.Array:
    """The ``returns [M, K + 1]`` of `adaptation_curve`, which has the same arguments.

    Broken streams are left out of the means. A task whose streams are all broken has NaN.
    `adaptation_curve` counts broken streams.
    """
    return adaptation_curve(key, meta, tasks, **how).returns


def _covers_an_episode(num_steps: int, env: Environment) -> None:
    """Raises ValueError if ``num_steps`` is less than the horizon."""
    limit = time_limit.ends_by(env)
    if limit is not None and num_steps < limit:
        raise ValueError(
            f"num_steps={num_steps} must be at least {limit}, the horizon: an episode that is cut has no return"
        )
