"""The outer loop that most algorithms share: follow the meta-gradient with an optax optimiser."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxmeta.meta_updates.gradients import State, guarded_update, reported_gradient
from jaxmeta.tasks.keys import quick
from jaxmeta.types import Learner, Lifetime, Meta, MetaAlgorithm, Task, TaskResults

Optimizer = Callable[[Any], optax.GradientTransformation]
"""``learning_rate -> optax.GradientTransformation``."""


class OuterHyper(Protocol):
    """The part of an algorithm's `Hyper` that the outer loop reads."""

    @property
    def learning_rate(self) -> float:
        """Step size of the outer optimiser."""

    @property
    def max_grad_norm(self) -> float:
        """Clips the norm of the meta-gradient."""


class Learned(NamedTuple):
    """The part of a learner's ``meta`` that the outer loop learns."""

    partition: Callable[[Meta], Any]
    """``(meta) -> learned``, the part as a tree of arrays."""
    combine: Callable[[Meta, Any], Meta]
    """``(meta, learned) -> meta`` with that part replaced."""


PARAMS = Learned(lambda meta: meta.params, lambda meta, params: meta._replace(params=params))
"""``meta.params``, and nothing else of ``meta``."""


AnyHyper = TypeVar("AnyHyper")


def as_arrays(hyper: AnyHyper) -> AnyHyper:
    """``hyper`` with its numbers as arrays of floats, so that runs over different values share a program."""
    return jax.tree.map(lambda x: jnp.asarray(x, float), hyper)


def outer_optimizer(optimizer: Optimizer, hyper: OuterHyper) -> optax.GradientTransformation:
    """``optimizer`` at ``hyper.learning_rate``; the gradient's norm is clipped to ``hyper.max_grad_norm`` first."""
    return optax.chain(
        optax.clip_by_global_norm(hyper.max_grad_norm), optimizer(hyper.learning_rate)
    )


def first_state(meta: Meta, part: Learned, optimizer: Optimizer) -> State:
    """The state before the first meta-update, for algorithms that follow a meta-gradient."""
    optimizer_state = outer_optimizer(optimizer, meta.hyper).init(part.partition(meta))
    return State(meta, optimizer_state, jnp.zeros((), jnp.int32))


AnyState = TypeVar("AnyState", bound=Any)
"""A NamedTuple with at least the fields of `State`."""


def descend(
    state: AnyState,
    gradient: Any,
    part: Learned,
    optimizer: optax.GradientTransformation,
    *,
    apply: jax.Array,
) -> AnyState:
    """The state after one step of ``optimizer`` down ``gradient``; unchanged unless ``apply []``."""
    moved, optimizer_state = guarded_update(
        optimizer, gradient, state.optimizer, part.partition(state.meta), apply=apply
    )
    return state._replace(
        meta=part.combine(state.meta, moved),
        optimizer=optimizer_state,
        num_updates=state.num_updates + apply.astype(jnp.int32),
    )


def is_applicable(metrics: dict[str, jax.Array], num_tasks: int) -> jax.Array:
    """Whether a meta-gradient comes from at least one task and has a finite norm, bool ``[]``."""
    return (metrics["skipped_tasks"] < num_tasks) & jnp.isfinite(metrics["meta_grad_norm"])


def follow_meta_gradient(
    task_loss: Callable[[Meta, jax.Array, Task], tuple[jax.Array, dict]],
    learner: Learner,
    first_meta: Callable[[jax.Array, Any], Meta],
    part: Learned,
    hyper: OuterHyper,
    optimizer: Optimizer,
    *,
    env_steps: int,
    tasks_per_chunk: int | None,
    lifetime: Lifetime | None = None,
) -> MetaAlgorithm:
    """The algorithm that learns a part of ``meta`` by the gradient of a loss, its mean over tasks.

    Args:
        task_loss: ``(meta, key, task) -> (loss [], report)``.
        learner: The learner that reads ``meta``.
        first_meta: ``(key, hyper) -> meta``, the start of training.
        part: The part of ``meta`` that is learned.
        hyper: The default of ``init(key, hyper)``.
        optimizer: ``learning_rate -> optax.GradientTransformation``.
        env_steps: Environment steps of one task in a meta-update.
        tasks_per_chunk: As in `meta_updates.map_tasks`.
        lifetime: How the learner collects experience.
    """

    def init(key: jax.Array, hyper: OuterHyper = hyper) -> State:
        return first_state(first_meta(key, hyper), part, optimizer)

    def step_with_results(
        key: jax.Array, state: State, tasks: Task, learns: jax.Array | None = None
    ) -> tuple[State, dict, TaskResults]:
        key = quick(key)
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        gradient, metrics, good, reports = reported_gradient(
            lambda learned, key, task: task_loss(part.combine(state.meta, learned), key, task),
            part.partition(state.meta),
            jax.random.split(key, num_tasks),
            tasks,
            tasks_per_chunk=tasks_per_chunk,
            learns=learns,
        )
        applied, wanted = is_applicable(metrics, num_tasks), jnp.ones((), bool)
        if learns is not None:
            wanted = jnp.any(learns)
            applied &= jnp.any(good & learns)
        transform = outer_optimizer(optimizer, state.meta.hyper)
        state = descend(state, gradient, part, transform, apply=applied)
        metrics |= {
            "skipped_updates": jnp.asarray(wanted & ~applied, jnp.int32),
            "env_steps": jnp.asarray(num_tasks * env_steps, jnp.int32),
        }
        after = reports.get("return/after")
        return (
            state,
            metrics,
            TaskResults(None if after is None else jnp.where(good, after, jnp.nan)),
        )

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        return step_with_results(key, state, tasks)[:2]

    return MetaAlgorithm(init, step, learner, lifetime, step_with_results=step_with_results)
