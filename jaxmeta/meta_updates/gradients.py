"""One step of the slow loop: gradients task by task, their guarded mean, one optimiser update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks
from jaxmeta.estimators.rows import all_finite, packing
from jaxmeta.estimators.streams import count
from jaxmeta.types import Meta

TaskLoss = Callable[[Any, jax.Array, Any], tuple[jax.Array, dict[str, jax.Array]]]
"""``(learned, key, task) -> (loss [], report)``: the meta-objective in one task (or on experience recorded in
it), to be minimised. Only its gradient is used: the value of a surrogate on its own data means nothing."""


class State(NamedTuple):
    """The state of the slow loop."""

    meta: Meta
    """The part that the learner reads."""
    optimizer: Any
    """The optimiser's state."""
    num_updates: jax.Array
    """``[]``, int32: meta-updates that were applied."""


def tasks_at_once(num_tasks: int, tasks_per_chunk: int | None) -> int:
    """The number of ``num_tasks`` to work on at a time.

    ``None`` is all of them on an accelerator or on several devices. On a single CPU it is 5, so that the working
    set fits its cache, or 4 or 3 if these divide ``num_tasks``: a rest is a second program to compile.
    """
    checks.at_least("num_tasks", num_tasks, 1)
    if tasks_per_chunk is not None:
        return min(checks.at_least("tasks_per_chunk", tasks_per_chunk, 1), num_tasks)
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return num_tasks
    return next((size for size in (5, 4, 3) if num_tasks % size == 0), min(5, num_tasks))


def map_tasks(function: Callable[..., Any], inputs: Any, *, tasks_per_chunk: int | None) -> Any:
    """``function(input)`` for each of ``inputs [M]``, a chunk at a time (`tasks_at_once`), ``[M]``.

    If D devices share the tasks, each holds a block of M / D, and a chunk takes as many tasks from every
    block, so that no device waits for another. M and ``tasks_per_chunk`` must then be multiples of D;
    otherwise tasks move between devices.
    """
    num_tasks, devices = jax.tree.leaves(inputs)[0].shape[0], jax.device_count()
    size = tasks_at_once(num_tasks, tasks_per_chunk)
    pack, unpack = packing(function)
    if devices == 1 or size == num_tasks or size % devices or num_tasks % size:
        return jax.vmap(unpack)(jax.lax.map(pack, inputs, batch_size=size))
    num_chunks, share = num_tasks // size, size // devices

    def chunks(x: jax.Array) -> jax.Array:
        blocks = x.reshape(devices, num_chunks, share, *x.shape[1:])
        return jnp.swapaxes(blocks, 0, 1).reshape(num_chunks, size, *x.shape[1:])

    def whole(x: jax.Array) -> jax.Array:
        blocks = x.reshape(num_chunks, devices, share, *x.shape[2:])
        return jnp.swapaxes(blocks, 0, 1).reshape(num_tasks, *x.shape[2:])

    results = jax.lax.map(jax.vmap(pack), jax.tree.map(chunks, inputs))
    return jax.vmap(unpack)([whole(x) for x in results])


def finite_tasks(results: Any) -> jax.Array:
    """A mask of the tasks whose ``results [M]`` are finite in every leaf, bool ``[M]``."""
    return jax.vmap(all_finite)(results)


def masked_mean(results: Any, good: jax.Array) -> Any:
    """The mean of ``results [M]`` over ``good`` tasks (bool ``[M]``), zero without any. Integers are counts: their
    sum over all tasks, good or not, because the counted events took place."""

    def mean(x: jax.Array) -> jax.Array:
        checks.shapes("M... M", results=x, good=good)
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jnp.sum(x, axis=0, dtype=x.dtype)
        mask = good.reshape(-1, *[1] * (x.ndim - 1))
        total = jnp.sum(jnp.where(mask, x, jnp.zeros_like(x)), axis=0, dtype=x.dtype)
        return total / count(good, total)

    return jax.tree.map(mean, results)


def meta_gradient(
    task_loss: TaskLoss, learned: Any, keys: jax.Array, tasks: Any, *, tasks_per_chunk: int | None
) -> tuple[Any, dict[str, jax.Array]]:
    """Mean over ``tasks [M]`` of the gradient of ``task_loss``, a key each: ``(gradient, metrics)``.

    Guarded: a task whose loss, report or gradient is not finite is left out of every mean, of metrics too,
    and counted in ``skipped_tasks``. With no task left the gradient is zero and the reported means are
    NaN. Integers in a report are counts: they are summed over all tasks, left out or not.
    ``tasks_per_chunk`` is as in `map_tasks`.
    """

    return guarded_gradient(task_loss, learned, keys, tasks, tasks_per_chunk=tasks_per_chunk)[:2]


def guarded_gradient(
    task_loss: TaskLoss, learned: Any, keys: jax.Array, tasks: Any, *, tasks_per_chunk: int | None
) -> tuple[Any, dict[str, jax.Array], jax.Array]:
    """`meta_gradient`, and a mask of the tasks that it is the mean of, bool ``[M]``."""
    return reported_gradient(task_loss, learned, keys, tasks, tasks_per_chunk=tasks_per_chunk)[:3]


def reported_gradient(
    task_loss: TaskLoss,
    learned: Any,
    keys: jax.Array,
    tasks: Any,
    *,
    tasks_per_chunk: int | None,
    learns: jax.Array | None = None,
) -> tuple[Any, dict[str, jax.Array], jax.Array, dict[str, jax.Array]]:
    """`guarded_gradient`, and the reports of all tasks, ``[M]``.

    The gradient is the mean over the tasks in ``learns`` (bool ``[M]``; None is all). The metrics are of all tasks.
    """

    def task_gradient(key_and_task: tuple) -> tuple:
        (loss, report), gradient = jax.value_and_grad(task_loss, has_aux=True)(
            learned, *key_and_task
        )
        return gradient, loss, report

    results = map_tasks(task_gradient, (keys, tasks), tasks_per_chunk=tasks_per_chunk)
    good = finite_tasks(results)
    gradients, _, by_task = results
    gradient, _, reports = masked_mean(results, good)
    if learns is not None:
        gradient = masked_mean(gradients, good & learns)
    num_good = jnp.sum(good)
    metrics = nan_unless(num_good > 0, reports) | {
        "meta_grad_norm": optax.tree.norm(gradient),
        "skipped_tasks": len(keys) - num_good,
    }
    return gradient, metrics, good, by_task


def nan_unless(some: jax.Array, report: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """``report`` with NaN for its means unless there are ``some []``; counts (integers) stay."""
    return {
        name: x if jnp.issubdtype(x.dtype, jnp.integer) else jnp.where(some, x, jnp.nan)
        for name, x in report.items()
    }


def optimizer_step(
    optimizer: optax.GradientTransformation, gradient: Any, optimizer_state: Any, learned: Any
) -> tuple[Any, Any]:
    """``(learned, optimizer_state)`` after a step of ``optimizer``."""
    with jax.numpy_dtype_promotion("standard"):  # Adam raises a float to the number of its steps
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, learned)
        return optax.apply_updates(learned, updates), optimizer_state


def guarded_update(
    optimizer: optax.GradientTransformation,
    gradient: Any,
    optimizer_state: Any,
    learned: Any,
    *,
    apply: jax.Array,
) -> tuple[Any, Any]:
    """``(learned, optimizer_state)`` after a step of ``optimizer``, or unchanged unless ``apply []``."""
    moved = optimizer_step(optimizer, gradient, optimizer_state, learned)
    return jax.tree.map(
        lambda new, old: jnp.where(apply, new, old), moved, (learned, optimizer_state)
    )
