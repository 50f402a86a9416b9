"""An auxiliary loss that learns from old trials, in gradient steps and by an optimiser of its own, after the policy in each meta-update.

The alternative is to add it to the policy's loss on new trials (`trial_gradients.Loss`). A prediction about the task is as true of
old trials as of new ones, so it can learn from them again where a policy gradient cannot.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta.estimators.streams import count
from jaxmeta.estimators.units import in_units
from jaxmeta.learners import trial_replay
from jaxmeta.learners.buffers import Buffer
from jaxmeta.learners.recurrent import Meta, RecurrentLearner, TrialMemory, blank
from jaxmeta.meta_updates import gradients
from jaxmeta.meta_updates.gradients import guarded_update
from jaxmeta.networks.actor_critic import Inputs
from jaxmeta.types import Params, Trajectory


class State(NamedTuple):
    """The state of the slow loop of an algorithm with auxiliary steps."""

    meta: Any
    """The part that the learner reads."""
    optimizer: Any
    """The state of the policy's optimiser."""
    num_updates: jax.Array
    """``[]``, int32: meta-updates that were applied."""
    auxiliary_optimizer: Any
    """The state of the auxiliary loss's optimiser."""
    replay: Any
    """The buffer of the last trials."""


class Batch(NamedTuple):
    """Trials to learn from, ``[B, T]``; steps that are not ``counted`` hold zeros."""

    data: Trajectory
    """The trials, with rewards in units and the network's state before their first step."""
    inputs: Inputs
    """The network's inputs."""
    counted: jax.Array
    """bool: the steps to learn from."""


class AuxiliarySteps(NamedTuple):
    """Gradient steps on kept trials. The loss takes the same arguments as `trial_gradients.Loss.auxiliary`."""

    loss: Callable[..., tuple[jax.Array, dict]]
    """``(params, key, data [T], inputs [T], counted [T], hyper) -> (loss [], report)`` of one trial, to be minimised."""
    buffer: Buffer
    """The buffer of trials as `trial_replay.kept` gives them with ``successors``."""
    optimizer: Callable[[Any], optax.GradientTransformation]
    """``hyper -> optax.GradientTransformation`` of all parameters. The policy's parameters have no gradient."""
    num_steps: int
    """Gradient steps in a meta-update."""

    def begin(self, state: gradients.State) -> State:
        """The state before the first meta-update, given the one of the policy."""
        own = self.optimizer(state.meta.hyper).init(state.meta.params)
        return State(*state, own, self.buffer.init())

    def follow(
        self,
        key: jax.Array,
        state: State,
        recorded: Trajectory,
        counted: jax.Array,
        hyper: Any,
        *,
        parts: RecurrentLearner,
        initial: Callable[[], Any],
    ) -> tuple[State, dict[str, jax.Array]]:
        """``state`` after the new trials are kept and all steps are taken, and the report of the steps.

        Without a counted step among the new trials no step is taken. ``skipped_auxiliary_steps`` of the report counts steps that were not
        taken, for that or because their gradient was not finite.

        Args:
            key: A key.
            state: After the policy's update; its running scale is the unit of rewards.
            recorded: The new trials, ``[B, T]``.
            counted: bool ``[B, T]``; a trial without a counted step is not kept.
            hyper: The last argument of the loss.
            parts: The learner that acts.
            initial: ``() -> state`` of the network at the start of a trial.
        """
        items = trial_replay.kept(blank(recorded, counted), counted, successors=True)
        replay = self.buffer.add(state.replay, items, jnp.any(counted, axis=1))
        make = partial(batch_of, state.meta, parts=parts, initial=initial)
        optimizer = self.optimizer(hyper)

        def step(learned: tuple, key: jax.Array) -> tuple:
            params, optimizer_state = learned
            draw_key, loss_key = jax.random.split(key)
            batch = trial_replay.drawn(draw_key, replay, self.buffer, make)
            (_, report), gradient = jax.value_and_grad(self._mean, has_aux=True)(
                params, loss_key, batch, hyper
            )
            norm = optax.tree.norm(gradient)
            applied = jnp.isfinite(norm) & jnp.any(batch.counted) & jnp.any(counted)
            learned = guarded_update(optimizer, gradient, optimizer_state, params, apply=applied)
            return learned, (report | {"auxiliary_grad_norm": norm}, applied)

        reports: dict[str, jax.Array]
        applied: jax.Array
        learned, (reports, applied) = jax.lax.scan(
            step,
            (state.meta.params, state.auxiliary_optimizer),
            jax.random.split(key, self.num_steps),
        )
        report = jax.tree.map(lambda x: jnp.mean(x, where=applied), reports)
        report["replay_trials"] = self.buffer.size(replay)
        report["skipped_auxiliary_steps"] = jnp.sum(~applied, dtype=jnp.int32)
        params, own = learned
        meta = state.meta._replace(params=params)
        return state._replace(meta=meta, auxiliary_optimizer=own, replay=replay), report

    def _mean(
        self, params: Params, key: jax.Array, batch: Batch, hyper: Any
    ) -> tuple[jax.Array, dict]:
        """The mean over trials with a counted step."""
        keys = jax.random.split(key, len(batch.counted))
        results = jax.vmap(self.loss, (None, 0, 0, 0, 0, None))(params, keys, *batch, hyper)
        good = jnp.any(batch.counted, axis=1)
        return jax.tree.map(lambda x: jnp.sum(jnp.where(good, x, 0.0)) / count(good, x), results)


def batch_of(
    meta: Meta,
    data: Trajectory,
    counted: jax.Array,
    *,
    parts: RecurrentLearner,
    initial: Callable[[], Any],
) -> Batch:
    """The batch of kept trials ``[B, T]``, in today's units of rewards."""
    inputs = jax.vmap(parts.inputs, in_axes=(None, 0))(meta, data)
    many = len(counted)
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (many, *x.shape)), initial())
    memory = TrialMemory(state, data.memory.time)
    reward = in_units(data.reward, meta.reward_scale)
    return Batch(data._replace(memory=memory, reward=reward), inputs, counted)
