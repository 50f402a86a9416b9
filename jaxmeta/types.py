"""The vocabulary of the library.

A *learner* is born into a *task*, acts in it, learns from what it saw and acts again: a lifetime. A
*meta-algorithm* improves what learners are born with. Everything else in the library takes and returns
the types below.

Axes, outermost first: M tasks, K updates in a lifetime, N streams of experience in a task, T steps.
Docstrings give unbatched shapes (``[T]`` for one stream, ``[N, T]`` for one task); callers ``vmap``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any
"""Parameters of a network: nested dicts of arrays."""

Task = Any
"""One MDP of a family: a gymnax ``EnvParams`` pytree whose traced leaves tell it from the others."""


class TimeStep(NamedTuple):
    """What a policy may look at before it acts."""

    obs: jax.Array  # [*obs_shape], float
    action: (
        jax.Array
    )  # [*action_shape], the previous action, of the episode before too; zeros at birth
    reward: jax.Array  # [], the previous reward, likewise: the last of an episode says the most
    first: jax.Array  # [], bool: first step of an episode


class Stream(NamedTuple):
    """All that acting carries from one step to the next."""

    env_state: Any
    timestep: TimeStep
    memory: Any


class Trajectory(NamedTuple):
    """What one stream saw in T steps; every leaf but ``memory`` has a leading ``[T]``."""

    timestep: TimeStep
    action: jax.Array
    log_prob: jax.Array  # log-probability of the action under the policy that acted
    reward: jax.Array
    discount: jax.Array  # 0 where the task terminated, else 1 (a time limit is no termination)
    last: jax.Array  # bool: the episode ended with this step, by termination or truncation
    next_obs: jax.Array  # the true successor, before any reset
    memory: Any  # the memory before the first step


class History(NamedTuple):
    """What adaptation went through; every leaf has a leading ``[K]``."""

    agent: Any  # the agent that acted, before its update
    trajectories: Trajectory  # [K, N, T]: what it saw and was then updated on


class Learner(NamedTuple):
    """The fast loop: how one lifetime goes. ``meta`` is what the slow loop learns."""

    init: Callable[[jax.Array, Any], Any]
    """``(key, meta) -> agent``, once per task."""
    memory: Callable[[Any], Any]
    """``(meta) -> memory``, once per stream."""
    act: Callable[[jax.Array, Any, Any, Any, TimeStep], tuple[jax.Array, jax.Array, Any]]
    """``(key, meta, agent, memory, timestep) -> (action, log_prob, memory)``, at every step."""
    update: Callable[[jax.Array, Any, Any, Trajectory], Any]
    """``(key, meta, agent, trajectories [N, T]) -> agent``."""


class MetaAlgorithm(NamedTuple):
    """The slow loop: the outer optimisation of what learners are born with."""

    init: Callable[..., Any]
    """``(key) -> state``; ``state.meta`` is what the learner reads."""
    step: Callable[[jax.Array, Any, Task], tuple[Any, dict[str, jax.Array]]]
    """``(key, state, tasks [M]) -> (state, metrics)``: one meta-update; metrics are scalars."""
    learner: Learner
