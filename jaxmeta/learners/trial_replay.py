"""Replay of whole trials: what a learner with memory keeps of a trial, and how it learns from the trial again.

A kept trial is read from its first step with an empty memory, so no state of a network is stored. Rewards are kept as they were
paid; the network sees them in the units of the day.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta.learners.buffers import Buffer
from jaxmeta.learners.recurrent import RecurrentLearner, TrialMemory, counted_steps
from jaxmeta.networks.actor_critic import Inputs
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.keys import quick
from jaxmeta.types import Trajectory


class State(NamedTuple):
    """The state of the slow loop of an algorithm with replay."""

    meta: Any
    """The part that the learner reads."""
    optimizer: Any
    """The optimiser's state."""
    num_updates: jax.Array
    """``[]``, int32: meta-updates that were applied."""
    replay: Any
    """The buffer of the last trials; ``()`` without replay."""


class Batch(NamedTuple):
    """Trials to learn from, ``[B, T]``; steps that are not ``counted`` hold zeros."""

    inputs: Inputs
    """The network's inputs."""
    action: jax.Array
    """The actions that were taken."""
    reward: jax.Array
    """The rewards, not in units."""
    counted: jax.Array
    """bool: the steps to learn from."""


def batch_of(meta: Any, data: Trajectory, counted: jax.Array, *, parts: RecurrentLearner) -> Batch:
    """The batch of trials ``[B, T]``, with rewards that the network sees in today's units."""
    inputs = jax.vmap(parts.inputs, in_axes=(None, 0))(meta, data)
    return Batch(inputs, data.action, jnp.where(counted, data.reward, 0.0), counted)


def remembered(
    replay: Any,
    buffer: Buffer | None,
    items: tuple,
    batch_of: Callable[..., Any],
) -> tuple[Any, Callable[[jax.Array], Any] | None]:
    """The buffer's state with new trials in it, and ``(key) -> batch`` of trials drawn from it.

    Without a ``buffer`` the state stays, and the second is None.

    Args:
        replay: The buffer's state.
        buffer: The buffer, or None.
        items: ``(data, counted, ...)``, the new trials ``[B]`` as `kept` gives them and what else is kept of each. A
            trial without a counted step is not kept.
        batch_of: ``(data, counted, ...) -> batch`` of items.
    """
    if buffer is None:
        return replay, None
    replay = buffer.add(replay, items, jnp.any(items[1], axis=1))
    return replay, lambda key: drawn(key, replay, buffer, batch_of)


def drawn(key: jax.Array, replay: Any, buffer: Buffer, batch_of: Callable[..., Any]) -> Any:
    """The batch of trials ``[num_sampled, T]`` drawn from the buffer's state ``replay``."""
    data, counted, *more = buffer.sample(key, replay)
    # Every trial begins at time 0, and its values are learned from an empty memory.
    time = jnp.zeros(len(counted), jnp.int32)
    return batch_of(data._replace(memory=TrialMemory((), time)), counted, *more)


def kept(
    data: Trajectory, counted: jax.Array, *, successors: bool = False
) -> tuple[Trajectory, jax.Array]:
    """The parts of trials ``[B, T]`` that a buffer keeps, as ``(data, counted)``; with ``successors`` also ``next_obs``."""
    unused: Any = dict.fromkeys(("log_prob", "discount", "last", "memory"), ())
    if not successors:
        unused["next_obs"] = ()
    return data._replace(**unused), counted


def kept_trial(
    family: TaskFamily,
    parts: RecurrentLearner,
    first_meta: Callable[[jax.Array], Any],
    *,
    successors: bool = False,
) -> Any:
    """Shapes and dtypes of one kept trial; nothing is run.

    Args:
        family: The tasks' family.
        parts: The learner that acts.
        first_meta: ``(key) -> meta``, the learner's.
        successors: As in `kept`.
    """

    def trial(key: jax.Array) -> Any:
        init_key, key = jax.random.split(key)
        task = jax.tree.map(lambda x: jnp.asarray(x)[None], family.env.default_params)
        recorded = parts.trials(quick(key), first_meta(init_key), task)
        return jax.tree.map(
            lambda x: x[0], kept(*counted_steps(recorded, 1), successors=successors)
        )

    return jax.eval_shape(trial, jax.eval_shape(lambda: jax.random.key(0)))
