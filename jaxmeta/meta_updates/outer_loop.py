"""The outer loop that most algorithms share: follow the meta-gradient with an optax optimiser."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple
import jax
import jax.numpy as jnp
import optax
from jaxmeta import checks
from jaxmeta.networks.distributions import Distribution
from jaxmeta.meta_updates.gradients import State, guarded_update, map_tasks, meta_gradient
from jaxmeta.networks.policies import Policy, default_policy
from jaxmeta.estimators.surrogates import Surrogate
from jaxmeta.estimators.baselines import BASELINES, baseline_td_errors, sees_observations
from jaxmeta.estimators.episodes import first_episode_return, in_first_episode
from jaxmeta.estimators.streams import finite_streams, mean_over_streams, without_broken_streams
from jaxmeta.estimators.units import advantage_scale
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import History, Learner, MetaAlgorithm, Params, Task, TimeStep, Trajectory
from jaxmeta.learners.gradient import Adaptation, Meta, first_meta, learned, with_learned


Optimizer = Callable[[Any], optax.GradientTransformation]
"""``learning_rate -> optax.GradientTransformation``."""


def outer_optimizer(optimizer: Optimizer, hyper: Any) -> optax.GradientTransformation:
    """``optimizer`` at ``hyper.learning_rate``, after the gradient's norm is cut to ``hyper.max_grad_norm``."""
    return optax.chain(
        optax.clip_by_global_norm(hyper.max_grad_norm), optimizer(hyper.learning_rate)
    )


def first_state(meta: Meta, config: Adaptation, optimizer: Optimizer) -> State:
    """The state before the first meta-update, for algorithms that follow a meta-gradient."""
    optimizer_state = outer_optimizer(optimizer, meta.hyper).init(learned(meta, config))
    return State(meta, optimizer_state, jnp.zeros((), jnp.int32))


def descend(
    state: State, gradient: Any, config: Adaptation, optimizer: Optimizer, *, apply: jax.Array
) -> State:
    """The state after one step of the outer optimiser down ``gradient``; unchanged unless ``apply []``."""
    moved, optimizer_state = guarded_update(
        outer_optimizer(optimizer, state.meta.hyper),
        gradient,
        state.optimizer,
        learned(state.meta, config),
        apply=apply,
    )
    meta = with_learned(state.meta, moved, config)
    return State(meta, optimizer_state, state.num_updates + apply.astype(jnp.int32))


def is_applicable(metrics: dict[str, jax.Array], num_tasks: int) -> jax.Array:
    """Whether a meta-gradient says anything: of at least one task, and of a norm that is finite, ``[]``."""
    return (metrics["skipped_tasks"] < num_tasks) & jnp.isfinite(metrics["meta_grad_norm"])


def follow_meta_gradient(
    task_loss: Callable[[Meta, jax.Array, Task], tuple[jax.Array, dict]],
    learner: Learner,
    first_meta: Callable[[jax.Array, Any], Meta],
    config: Adaptation,
    hyper: Any,
    optimizer: Optimizer,
    *,
    env_steps: int,
) -> MetaAlgorithm:
    """The outer loop that most share: one step of the optimiser down the mean over tasks of the gradient
    of ``task_loss: (meta, key, task) -> (loss [], report)``.

    ``first_meta: (key, hyper) -> meta`` is what training starts from; ``env_steps`` are of one task.
    """

    def init(key: jax.Array, hyper: Any = hyper) -> State:
        return first_state(first_meta(key, hyper), config, optimizer)

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        gradient, metrics = meta_gradient(
            lambda learned, key, task: task_loss(
                with_learned(state.meta, learned, config), key, task
            ),
            learned(state.meta, config),
            jax.random.split(key, num_tasks),
            tasks,
            tasks_per_chunk=config.tasks_per_chunk,
        )
        applied = is_applicable(metrics, num_tasks)
        state = descend(state, gradient, config, optimizer, apply=applied)
        return state, metrics | {
            "skipped_updates": jnp.asarray(~applied, jnp.int32),
            "env_steps": jnp.asarray(num_tasks * env_steps, jnp.int32),
        }

    return MetaAlgorithm(init, step, learner)
