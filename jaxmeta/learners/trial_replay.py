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


def batch_of(meta: Any, data: Trajectory, counted: jax.Array, parts: RecurrentLearner) -> Batch:
    """The batch of trials ``[B, T]``, with rewards that the network sees in today's units."""
    inputs = jax.vmap(parts.inputs, in_axes=(None, 0))(meta, data)
    return Batch(inputs, data.action, jnp.where(counted, data.reward, 0.0), counted)


def remembered(
    replay: Any,
    meta: Any,
    data: Trajectory,
    counted: jax.Array,
    buffer: Buffer | None,
    parts: RecurrentLearner,
) -> tuple[Any, Callable[[jax.Array], Batch] | None]:
    """The buffer's state with new trials ``[B, T]`` in it, and ``(key) -> batch`` of trials drawn from it.

    Without a ``buffer`` the state stays, and the second is None.
    """
    if buffer is None:
        return replay, None
    replay = buffer.add(replay, kept(data, counted), jnp.any(counted, axis=1))
    return replay, lambda key: drawn(key, replay, meta, buffer, parts)


def drawn(key: jax.Array, replay: Any, meta: Any, buffer: Buffer, parts: RecurrentLearner) -> Batch:
    """The batch of trials ``[num_sampled, T]`` drawn from the buffer's state ``replay``."""
    data, counted = buffer.sample(key, replay)
    # Every trial begins at time 0, and its values are learned from an empty memory.
    time = jnp.zeros(len(counted), jnp.int32)
    return batch_of(meta, data._replace(memory=TrialMemory((), time)), counted, parts)


def kept(data: Trajectory, counted: jax.Array) -> tuple[Trajectory, jax.Array]:
    """The parts of trials ``[B, T]`` that a buffer keeps, as ``(data, counted)``."""
    unused: Any = dict.fromkeys(("log_prob", "discount", "last", "next_obs", "memory"), ())
    return data._replace(**unused), counted


def kept_trial(
    family: TaskFamily, parts: RecurrentLearner, first_meta: Callable[[jax.Array], Any]
) -> Any:
    """Shapes and dtypes of one kept trial; nothing is run.

    Args:
        family: The tasks' family.
        parts: The learner that acts.
        first_meta: ``(key) -> meta``, the learner's.
    """

    def trial(key: jax.Array) -> Any:
        init_key, key = jax.random.split(key)
        task = jax.tree.map(lambda x: jnp.asarray(x)[None], family.env.default_params)
        recorded = parts.trials(quick(key), first_meta(init_key), task)
        return jax.tree.map(lambda x: x[0], kept(*counted_steps(recorded, 1)))

    return jax.eval_shape(trial, jax.eval_shape(lambda: jax.random.key(0)))
