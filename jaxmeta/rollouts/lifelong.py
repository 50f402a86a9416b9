"""Agents that live across meta-updates: each learns in its task until it has reached its lifespan.

Meta-gradients and learned objectives improve a learner during its lifetime, a window of a few
updates at a time. The agent at a window's start is data: derivatives reach back to the window's
start, and memory does not grow with the lifetime. After its lifespan an agent is replaced by a
newborn one in a new task, inside the compiled program.

Functions are written for one task; callers ``vmap``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.estimators.episodes import sum_so_far
from jaxmeta.estimators.streams import count
from jaxmeta.rollouts.lifetime import Setup, adapt, append, begin, collect
from jaxmeta.types import History, Meta, Stream, Task


class Life(NamedTuple):
    """An agent in its task, with its age."""

    task: Task
    """The task in which the agent lives."""
    agent: Any
    """The agent, as `Learner.init` and `Learner.update` return it."""
    streams: Stream
    """``[N]``, the agent's streams of experience."""
    age: jax.Array
    """``[]``, int32: updates since birth."""


class Score(NamedTuple):
    """Returns of one stream, carried from window to window."""

    so_far: jax.Array
    """``[]``, the undiscounted return of the present episode so far."""
    broken: jax.Array
    """``[]``, bool: whether the present episode had a reward that is not finite."""
    finished: jax.Array
    """``[]``, the return of the last finished episode; 0 before the first."""
    counts: jax.Array
    """``[]``, bool: whether an episode has finished and the last finished one has a return."""


def no_score(num_streams: int) -> Score:
    """The score of new streams, ``[N]``."""
    zeros, no = jnp.zeros(num_streams), jnp.zeros(num_streams, bool)
    return Score(zeros, no, zeros, no)


def tally(score: Score, reward: jax.Array, last: jax.Array) -> Score:
    """The score of one stream after ``[T]`` more steps.

    The mean of ``finished`` takes each stream once; a mean over all episodes that ended would
    favour short episodes. An episode with a reward that is not finite has no return.
    """
    finite = jnp.isfinite(reward)
    total = sum_so_far(jnp.where(finite, reward, 0.0), last, score.so_far)
    faults = (~finite).astype(reward.dtype)
    broken = sum_so_far(faults, last, score.broken.astype(reward.dtype)) > 0
    ended, latest = jnp.any(last), last.shape[0] - 1 - jnp.argmax(last[::-1])
    return Score(
        so_far=jnp.where(last[-1], 0.0, total[-1]),
        broken=broken[-1] & ~last[-1],
        finished=jnp.where(ended, jnp.where(broken[latest], 0.0, total[latest]), score.finished),
        counts=jnp.where(ended, ~broken[latest], score.counts),
    )


def mean_return(score: Score) -> tuple[jax.Array, jax.Array]:
    """Mean return of the last finished episodes of ``score [...]`` (0 without any), and their number, int32 ``[]``."""
    total = jnp.sum(jnp.where(score.counts, score.finished, 0.0))
    return total / count(score.counts, total), jnp.sum(score.counts, dtype=jnp.int32)


@checks.arguments
def birth(key: jax.Array, meta: Meta, task: Task, *, setup: Setup) -> Life:
    """A newborn agent in ``task``, of age 0."""
    agent, streams = begin(key, meta, task, setup=setup)
    return Life(task, agent, streams, jnp.zeros((), jnp.int32))


@checks.arguments
def renewed(
    key: jax.Array,
    meta: Meta,
    life: Life,
    task: Task,
    *,
    setup: Setup,
    lifespan: int | jax.Array,
) -> Life:
    """``life``, or a newborn agent in ``task`` if ``life`` has reached ``lifespan`` updates."""
    over = life.age >= lifespan
    successor = birth(key, meta, task, setup=setup)
    return jax.tree.map(lambda new, old: jnp.where(over, new, old), successor, life)


@checks.arguments
def live(
    key: jax.Array, meta: Meta, life: Life, *, setup: Setup, num_updates: int
) -> tuple[Life, History]:
    """``(life, history [K])`` after K = ``num_updates`` more updates.

    The result is differentiable in ``meta`` through these updates. The given agent is data.
    """
    agent, streams, history = adapt(
        key,
        meta,
        life.task,
        jax.lax.stop_gradient(life.agent),
        life.streams,
        setup=setup,
        num_updates=num_updates,
    )
    return Life(life.task, agent, streams, life.age + num_updates), history


def live_and_show(
    keys: tuple[jax.Array, jax.Array],
    meta: Meta,
    life: Life,
    *,
    setup: Setup,
    num_updates: int,
) -> tuple[Life, History]:
    """``(life, history [K + 1])``: `live` with the first of two keys, and then, with the second, what the agent
    does after the K updates. No update has seen that experience yet."""
    live_key, show_key = keys
    life, history = live(live_key, meta, life, setup=setup, num_updates=num_updates)
    streams, after = collect(show_key, meta, life.task, life.agent, life.streams, setup=setup)
    return life._replace(streams=streams), append(history, History(life.agent, after))


def aged(lives: Life, chosen: jax.Array, ages: int | jax.Array) -> Life:
    """``lives [M]``, or pairs of lives ``[M, 2]``, of which the ``chosen`` (bool ``[M]``) get other ``ages``, one
    number or ``[M]``."""
    age = lives.age

    def spread(x: Any) -> jax.Array:
        x = jnp.broadcast_to(x, chosen.shape)
        return jnp.broadcast_to(x.reshape(-1, *[1] * (age.ndim - 1)), age.shape)

    return lives._replace(age=jnp.where(spread(chosen), spread(ages), age).astype(age.dtype))


def num_lives(tasks: Task, num_agents: int) -> int:
    """The number M of ``tasks [M]``.

    Raises:
        ValueError: it is not ``num_agents``.
    """
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    if num_tasks != num_agents:
        raise ValueError(
            f"num_tasks={num_tasks} must be num_agents={num_agents}: a step is given a task for each life, "
            "should it begin anew"
        )
    return num_tasks
