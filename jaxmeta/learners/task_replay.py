"""Replay task by task: a fixed set of tasks, each with the last steps lived in it and with the context of its last visit.

The set is filled by the tasks of the first meta-updates. From then on its tasks are visited again. Everything is arrays in an
algorithm's state, so that a checkpoint holds it and a resumed run is bit-equal.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.tasks import keys
from jaxmeta.types import Task


class Kept(NamedTuple):
    """P tasks with their steps."""

    tasks: Task
    """``[P]``, the tasks; the first ``num_tasks`` are there."""
    num_tasks: jax.Array
    """``[]``, int32."""
    steps: Any
    """``[P, C]``, a ring of each task's last C steps."""
    num_steps: jax.Array
    """``[P]``, int32: steps that were ever added to the ring."""
    context: Any
    """``[P, K]``, the steps of each task's last visit from which it is inferred; the first ``num_context`` are there."""
    num_context: jax.Array
    """``[P]``, int32."""


class Visit(NamedTuple):
    """The tasks of a meta-update."""

    tasks: Task
    """``[M]``, the tasks to act in."""
    places: jax.Array
    """``[M]``, int32: their places among the kept tasks; those of new tasks are not given yet."""
    is_new: jax.Array
    """``[]``, bool: whether they are new."""


def empty(task: Any, step: Any, context: Any, *, num_tasks: int, capacity: int, size: int) -> Kept:
    """A set of P = ``num_tasks`` tasks, with nothing in it.

    Args:
        task: One task; like ``step`` and ``context``, arrays or their shapes and dtypes.
        step: One step of the ring.
        context: One step of the context.
        num_tasks: P.
        capacity: C.
        size: K.
    """

    def many(one: Any, *axes: int) -> Any:
        return jax.tree.map(lambda x: _zeros(x, axes), one)

    count = jnp.zeros(num_tasks, jnp.int32)
    return Kept(
        many(task, num_tasks),
        jnp.zeros((), jnp.int32),
        many(step, num_tasks, capacity),
        count,
        many(context, num_tasks, size),
        count,
    )


def visit(key: jax.Array, kept: Kept, tasks: Task) -> Visit:
    """The tasks to act in: the new ``tasks [M]`` while there is room, and else M different kept ones, drawn uniformly.

    Raises:
        ValueError: M is greater than the number of tasks that can be kept.
    """
    capacity = kept.num_steps.shape[0]
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    if num_tasks > capacity:
        raise ValueError(
            f"num_training_tasks={capacity} must be at least {num_tasks}, the number of tasks of a meta-update"
        )
    is_new = kept.num_tasks < capacity
    places = jax.random.permutation(key, capacity)[:num_tasks].astype(jnp.int32)

    def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(is_new, _like(new, old), old[places])

    return Visit(jax.tree.map(chosen, tasks, kept.tasks), places, is_new)


def add(
    kept: Kept,
    visited: Visit,
    steps: Any,
    counted: jax.Array,
    context: Any,
    in_context: jax.Array,
) -> Kept:
    """``kept`` with what was lived in a visit: ``steps [M, S]`` are added, and ``context [M, K]`` replaces the old one.

    Steps that are not ``counted``, or ``in_context`` (bool), are left out. A task without a step in its context is left out whole:
    a new one gets no place, and an old one keeps what it has. New tasks for which there is no room are left out, too.
    """
    capacity = kept.num_steps.shape[0]
    good = jnp.any(in_context, axis=1)
    rank = jnp.cumsum(good.astype(jnp.int32)) - 1
    places = jnp.where(visited.is_new, kept.num_tasks + rank, visited.places)
    places = jnp.where(good, places, capacity)  # out of range: not written
    room = capacity - kept.num_tasks
    added = jnp.where(visited.is_new, jnp.minimum(jnp.sum(good, dtype=jnp.int32), room), 0)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[places].set(_like(new, old), mode="drop")

    length = jax.tree.leaves(kept.steps)[0].shape[1]
    before = kept.num_steps.at[places].get(mode="fill", fill_value=0)
    slots = (before[:, None] + jnp.cumsum(counted.astype(jnp.int32), axis=1) - 1) % length
    slots = jnp.where(counted, slots, length)

    def append(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[places[:, None], slots].set(_like(new, old), mode="drop")

    front = jnp.argsort(~in_context, axis=1, stable=True)
    context = jax.tree.map(lambda x: jax.vmap(lambda x, rows: x[rows])(x, front), context)
    return Kept(
        jax.tree.map(put, kept.tasks, visited.tasks),
        kept.num_tasks + added,
        jax.tree.map(append, kept.steps, steps),
        put(kept.num_steps, before + jnp.sum(counted, axis=1, dtype=jnp.int32)),
        jax.tree.map(put, kept.context, context),
        put(kept.num_context, jnp.sum(in_context, axis=1, dtype=jnp.int32)),
    )


class Drawn(NamedTuple):
    """Steps and contexts of B tasks."""

    steps: Any
    """``[B, S]``."""
    context: Any
    """``[B, K]``."""
    in_context: jax.Array
    """``[B, K]``, bool: the steps of the context to infer the task from."""


def draw(
    key: jax.Array, kept: Kept, *, num_tasks: int, num_steps: int, num_context: int, num_parts: int
) -> Drawn:
    """Steps and contexts of B = ``num_tasks`` tasks, S = ``num_steps`` and K = ``num_context``.

    Tasks, steps of a task and steps of its context are drawn uniformly and with replacement. A context is of p consecutive parts
    of the ``num_parts`` that a task's context has, p uniform, and has p K / ``num_parts`` steps, rounded up: so a task is inferred
    from little and from much. While there is no task, all are zeros.
    """
    task_key, step_key, context_key, start_key, part_key = jax.random.split(key, 5)
    places = _below(task_key, kept.num_tasks, (num_tasks,))
    length = jax.tree.leaves(kept.steps)[0].shape[1]
    there = jnp.minimum(kept.num_steps[places], length)[:, None]
    slots = _below(step_key, there, (num_tasks, num_steps))
    parts = 1 + _below(part_key, jnp.asarray(num_parts, jnp.int32), (num_tasks, 1))
    size = jnp.maximum(kept.num_context[places][:, None], 1)
    width = (size * parts + num_parts - 1) // num_parts
    start = _below(start_key, size, (num_tasks, 1))
    used = (num_context * parts + num_parts - 1) // num_parts
    order = jnp.arange(num_context, dtype=jnp.int32)[None]
    # One from each of as many equal stretches, so that none is drawn twice where there are enough.
    offset = jax.random.uniform(context_key, (num_tasks, num_context))
    place = order.astype(offset.dtype) + offset
    stretch = width.astype(place.dtype) / used.astype(place.dtype)
    row = jnp.minimum((place * stretch).astype(jnp.int32), width - 1)
    rows = (start + row) % size
    return Drawn(
        jax.tree.map(lambda x: x[places[:, None], slots], kept.steps),
        jax.tree.map(lambda x: x[places[:, None], rows], kept.context),
        order < used,
    )


def _below(key: jax.Array, number: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Whole numbers from 0 to ``number - 1`` in an array of ``shape``; zeros where there is none."""
    most = jnp.broadcast_to(jnp.maximum(number, 1), shape)
    return jax.random.randint(key, shape, 0, most, jnp.int32)


def _like(new: Any, old: jax.Array) -> jax.Array:
    return new if keys.is_key(old) else jnp.asarray(new, old.dtype)


def _zeros(x: Any, axes: tuple[int, ...]) -> jax.Array:
    if keys.is_key(x):
        return jnp.broadcast_to(jax.random.key(0), (*axes, *x.shape))
    return jnp.zeros((*axes, *x.shape), x.dtype)
