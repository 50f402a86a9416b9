"""Returns of agents that need no training: random, optimal and expert ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.evaluation.curves import adaptation_returns
from jaxmeta.tasks import environments
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Learner, Task, TimeStep


@checks.arguments
def random_returns(
    key: jax.Array, tasks: Task, *, family: TaskFamily, num_streams: int = 20
) -> jax.Array:
    """Mean return of uniformly random actions in each task, ``[M]``.

    As for all controllers below, the mean is over the streams that are not broken; NaN if all are
    broken.
    """
    return _controller_returns(
        key, tasks, lambda key, task, obs: family.random_action(key), family, num_streams
    )


@checks.arguments
def optimal_returns(key: jax.Array, tasks: Task, *, family: TaskFamily) -> jax.Array:
    """Return of the family's optimal policy, which is told the task, ``[M]``.

    It is the expected return if the family has an ``optimal_return``, else the return of one
    episode.

    Raises:
        ValueError: the family's optimum is not known.
    """
    if family.optimal_return is not None:
        environments.num_tasks("tasks", tasks, family.env)
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

    The expert is not proven optimal: a learner may do better.

    Raises:
        ValueError: the family has no expert.
    """
    expert_action = family.expert_action
    if expert_action is None:
        raise ValueError(f"family {family.name!r} has no expert_action")
    return _controller_returns(
        key, tasks, lambda key, task, obs: expert_action(task, obs), family, num_streams
    )


@checks.arguments
def reference_returns(key: jax.Array, tasks: Task, *, family: TaskFamily) -> jax.Array:
    """The return that `normalized` maps to 1, ``[M]``: the optimal return if it is known, else the expert's.

    Raises:
        ValueError: the family has neither.
    """
    known = family.optimal_action or family.optimal_return
    return (optimal_returns if known else expert_returns)(key, tasks, family=family)


def controller_learner(policy: Callable[[jax.Array, Task, jax.Array], jax.Array]) -> Learner:
    """A learner that acts by ``policy(key, task, obs)`` and never learns; its ``meta`` is the task."""

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
    """Mean return ``[M]`` of ``policy(key, task, obs)`` in each task."""
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

    num_tasks = environments.num_tasks("tasks", tasks, family.env)
    return jax.vmap(task_returns)(jax.random.split(key, num_tasks), tasks).reshape(num_tasks)
