"""Trials: whole streams of experience of a learner with memory, and the returns of their episodes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.estimators.episodes import episode_index
from jaxmeta.estimators.streams import finite_streams
from jaxmeta.rollouts.fits import check_fits
from jaxmeta.rollouts.lifetime import Setup, lifetime
from jaxmeta.tasks import environments
from jaxmeta.types import Environment, Learner, Meta, Task


class Trials(NamedTuple):
    """Actions and rewards, one row for each trial."""

    action: jax.Array
    """``[M, T, *action_shape]``."""
    reward: jax.Array
    """``[M, T]``."""
    last: jax.Array
    """``[M, T]``, bool: last steps of episodes."""
    good: jax.Array
    """``[M]``, bool: whether all numbers of the trial are finite."""


@checks.arguments
def trials(
    key: jax.Array,
    meta: Meta,
    tasks: Task,
    *,
    learner: Learner,
    env: Environment,
    num_steps: int,
    num_updates: int = 0,
    tasks_per_chunk: int = 1000,
) -> Trials:
    """One trial in each task, ``[M, (K + 1) T]``, to evaluate learners with memory.

    A trial is T = ``num_steps`` steps of one stream without restarts, so memory lasts across
    episodes. With ``num_updates`` K > 0 a trial is K + 1 times as long, and the learner is updated
    every T steps (posterior sampling learns between episodes). ``tasks`` have a leading axis,
    ``[M]``.

    Raises ValueError if ``meta`` is of a population, or the learner does not fit the environment.
    """

    checks.at_least("tasks_per_chunk", tasks_per_chunk, 1)
    num_tasks = environments.num_tasks("tasks", tasks, env)
    check_fits(meta, tasks, learner=learner, env=env)
    setup = Setup(learner, env, num_streams=1, num_steps=num_steps)

    def trial(key_and_task: tuple) -> Trials:
        history = lifetime(
            key_and_task[0],
            meta,
            key_and_task[1],
            setup=setup,
            num_updates=num_updates,
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

    An episode that does not end within the trial has no return and is NaN. So are all episodes of a
    trial with a number that is not finite. `summarize` leaves such trials out and counts them.
    """

    checks.at_least("num_episodes", num_episodes, 1)
    given = {"trials.reward": trials.reward, "trials.last": trials.last, "trials.good": trials.good}
    checks.shapes("MT MT M", **given)

    def returns(reward: jax.Array, last: jax.Array, good: jax.Array) -> jax.Array:
        index = episode_index(last)
        episode = jax.nn.one_hot(index, num_episodes, dtype=reward.dtype)
        ended = jnp.arange(num_episodes) < index[-1] + last[-1].astype(index.dtype)
        return jnp.where(ended & good, reward @ episode, jnp.nan)

    return jax.vmap(returns)(trials.reward, trials.last, trials.good)
