"""Learners in context: a recurrent network learns to predict actions. Rewards are inputs, and nothing is learned from their sum.

The network reads what a recurrent learner reads: observations, the previous actions and rewards, and where episodes
begin. Its weights are frozen at test time, so all that it learns in a task is in its memory (its context).
Algorithm distillation and decision-pretrained transformers share this module. They differ in the actions that the network
predicts: another learner's, or an expert's who knows the task.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.estimators.units import running_reward_scale
from jaxmeta.learners import minibatches, recurrent
from jaxmeta.learners.minibatches import Counts, learn_in_epochs
from jaxmeta.meta_updates.gradients import State
from jaxmeta.meta_updates.outer_loop import (
    PARAMS,
    Optimizer,
    as_arrays,
    first_state,
    outer_optimizer,
)
from jaxmeta.networks import recurrent as networks
from jaxmeta.networks.actor_critic import (
    ActorCritic,
    Inputs,
    check_network_fits,
    recurrent_actor_critic,
)
from jaxmeta.networks.distributions import Categorical, Distribution
from jaxmeta.networks.recurrent import Memory
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Params, Trajectory

NETWORK_SETTINGS = (
    "memory",
    "memory_size",
    "precision",
    "context",
    "encoder_sizes",
    "hidden_sizes",
)
"""The settings that name a network."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of learners in context; algorithms add their own."""

    num_episodes: int = 4
    """Episodes in a trial (E), with one memory."""
    memory: Literal["transformer", "gru", "lstm", "linear"] = "transformer"
    """The recurrent network."""
    memory_size: int = 64
    """Width of the recurrent network; a multiple of 8 for a transformer."""
    precision: Literal["full", "bfloat16"] = "full"
    """The precision of the recurrent network's matrix products."""
    context: int | None = None
    """Steps that each layer of a transformer attends to; None is a whole trial. Other networks have no such limit."""
    encoder_sizes: tuple[int, ...] = ()
    """Widths of tanh layers before the memory; the policy reads their output, too, beside the memory."""
    hidden_sizes: tuple[int, ...] = ()
    """Widths of the policy's hidden layers."""
    num_minibatches: int = 1
    """Gradient steps on a batch; the number of its streams must be a multiple of it."""
    minibatch_groups: int = 1
    """Blocks of streams that each minibatch takes as many streams from; as in `rl2`, devices share learning where their
    number divides it."""
    trials_per_chunk: int | None = None
    """Streams of a minibatch whose values are in memory at a time, as in `rl2`; None is all of them."""
    acts: Literal["sample", "mode"] = "sample"
    """The learner draws its actions, or takes the most probable ones. It reads the same ``meta`` in both cases."""

    def __post_init__(self) -> None:
        checks.fields(self)
        for name in ("num_episodes", "num_minibatches"):
            checks.at_least(name, getattr(self, name), 1)
        networks.check(self.memory, self.memory_size, self.precision)
        if self.context is not None:
            checks.at_least("context", self.context, 1)
        if self.context is not None and self.memory != "transformer":
            raise ValueError(
                f"context={self.context} has no effect with memory={self.memory!r}: only a transformer's memory has a length"
            )
        for name in ("encoder_sizes", "hidden_sizes"):
            for size in getattr(self, name):
                checks.at_least(name, size, 1)
        minibatches.check_settings(self)

    def check_devices(self, num_devices: int) -> None:
        """Warns unless ``num_devices`` devices share learning."""
        minibatches.check_shared(self, num_devices)


class Hyper(NamedTuple):
    """Numbers of learners in context, each a float or an array ``[]``; a run can sweep them."""

    learning_rate: float = 1e-3
    """Step size of the optimiser, a minibatch."""
    anneal_updates: float = math.inf
    """Meta-updates in which the step size falls to zero in a straight line; infinite keeps it."""
    max_grad_norm: float = 1.0
    """Clips the norm of the gradient of all parameters together."""


class Meta(NamedTuple):
    """The network's parameters and the running scale of rewards."""

    params: Params
    """The network's parameters."""
    reward_scale: jax.Array
    """``[]``, running mean of the batches' largest rewards; 0 is not known yet."""
    hyper: Hyper
    """The numbers of this run."""


class Batch(NamedTuple):
    """Streams to learn from, ``[B, T]``."""

    inputs: Inputs
    """The network's inputs."""
    action: jax.Array
    """The actions to predict."""
    counted: jax.Array
    """bool: the steps to learn from."""


class InContextLearner(NamedTuple):
    """The learner, and the two functions that its algorithms share."""

    recurrent: recurrent.RecurrentLearner
    """The learner, its inputs and its trials."""
    init: Callable[..., State]
    """`MetaAlgorithm.init`."""
    imitate: Callable[..., tuple[State, dict[str, jax.Array]]]
    """``(key, state, data, action, counted, all [B, T]) -> (state, metrics)``: learns to predict ``action`` where ``counted``."""


def in_context_learner(
    family: TaskFamily,
    config: Config,
    hyper: Hyper,
    *,
    num_streams: int,
    memory: Memory | None,
    network: ActorCritic | None,
    optimizer: Optimizer,
) -> InContextLearner:
    """The learner that acts by its network, and how it learns to predict actions."""
    network = network_of(family, config, memory, network)
    trials = recurrent.EpochConfig(
        num_episodes=config.num_episodes, num_streams=num_streams, sees_time=False
    )
    parts = recurrent.recurrent_learner(
        family, trials, network, reads=Meta, greedy=config.acts == "mode"
    )
    learning = dataclasses.replace(
        trials,
        num_epochs=1,
        num_minibatches=config.num_minibatches,
        minibatch_groups=config.minibatch_groups,
        trials_per_chunk=config.trials_per_chunk,
    )
    losses = partial(prediction_loss, network=network)

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        meta = Meta(network.init(key), jnp.zeros(()), as_arrays(hyper))
        return first_state(meta, PARAMS, optimizer)

    def imitate(
        key: jax.Array, state: State, data: Trajectory, action: jax.Array, counted: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        meta = state.meta
        scale = running_reward_scale(meta.reward_scale, data.reward, counted)
        meta = meta._replace(reward_scale=scale)
        # The learner reads all streams from their first step, with an empty memory.
        begun = recurrent.TrialMemory((), jnp.zeros(counted.shape[0], jnp.int32))
        data = data._replace(memory=begun)
        hyper = recurrent.annealed(meta.hyper, state.num_updates)
        inputs = jax.vmap(parts.inputs, (None, 0))(meta, data)
        learned, reports, applied = learn_in_epochs(
            key,
            (meta.params, state.optimizer),
            Batch(inputs, action, counted),
            hyper,
            losses=losses,
            optimizer=outer_optimizer(optimizer, hyper),
            config=learning,
        )
        skipped = 1 - jnp.any(applied).astype(jnp.int32)
        metrics = jax.tree.map(lambda x: jnp.mean(x, where=applied), reports)
        metrics["skipped_tasks"] = jnp.sum(~jnp.any(counted, axis=1), dtype=jnp.int32)
        metrics["skipped_updates"] = skipped
        params, optimizer_state = learned
        done = state.num_updates + 1 - skipped
        return State(meta._replace(params=params), optimizer_state, done), metrics

    return InContextLearner(parts, init, imitate)


@checks.arguments
def predictions(
    family: TaskFamily,
    config: Config,
    *,
    memory: Memory | None = None,
    network: ActorCritic | None = None,
) -> Callable[[Meta, Trajectory], Distribution]:
    """``(meta, data [T]) -> distributions [T]``: what the network predicts at each step of a stream, after all that came before.

    Arguments are those of the algorithm that learned ``meta``. The network reads the stream from its first step, with an
    empty memory.
    """
    network = network_of(family, config, memory, network)
    trials = recurrent.TrialConfig(num_episodes=config.num_episodes, sees_time=False)
    parts = recurrent.recurrent_learner(family, trials, network, reads=Meta)

    def predicted(meta: Meta, data: Trajectory) -> Distribution:
        begun = recurrent.TrialMemory((), jnp.zeros((), jnp.int32))
        inputs = parts.inputs(meta, data._replace(memory=begun))
        return network.unroll(meta.params, network.initial(), inputs)[0]

    return predicted


def predictable(
    action: jax.Array, counted: jax.Array, family: TaskFamily
) -> tuple[jax.Array, jax.Array]:
    """``(action, counted)``, ``[B, T]`` each, without the streams in which a counted action is none of the family's.

    No network can predict it: the loss would be infinite, and its gradient 0 or NaN, for all streams of a minibatch.
    """
    sound = is_action(action, family.action_space)
    counted = counted & jnp.all(sound | ~counted, axis=1, keepdims=True)
    where = counted.reshape(*counted.shape, *[1] * (action.ndim - counted.ndim))
    return jnp.where(where, action, jnp.zeros_like(action)), counted


def is_action(action: jax.Array, space: spaces.Discrete | spaces.Box) -> jax.Array:
    """Whether each of the actions ``[B, T, *action_shape]`` is one: in 0 .. A - 1, or finite, bool ``[B, T]``."""
    if isinstance(space, spaces.Discrete):
        return (action >= 0) & (action < space.n)
    return jnp.all(jnp.isfinite(action), axis=tuple(range(2, action.ndim)))


def without_broken(data: Trajectory, counted: jax.Array) -> Trajectory:
    """``data [B, T]`` with zeros at the steps that are not ``counted``."""
    return recurrent.blank(data._replace(memory=()), counted)


def prediction_loss(
    params: Params,
    keys: jax.Array,
    batch: Batch,
    hyper: Hyper,
    whole: Counts,
    *,
    network: ActorCritic,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``(loss [], report)``: the share of some streams in the mean of ``-log π(action | what came before)`` over the counted
    steps of a minibatch, in nats a step."""
    del keys, hyper

    def predicted(inputs: Inputs) -> Any:
        return network.unroll(params, network.initial(), inputs)[0]

    distribution = jax.vmap(predicted)(batch.inputs)
    number = whole.steps.astype(batch.inputs.obs.dtype)
    log_prob = jnp.where(batch.counted, distribution.log_prob(batch.action), 0.0)
    loss = -jnp.sum(log_prob) / number
    report = {"loss": loss}
    if isinstance(distribution, Categorical):
        right = batch.counted & (distribution.mode() == batch.action)
        report["accuracy"] = jnp.sum(right.astype(number.dtype)) / number
    return loss, report


def network_of(
    family: TaskFamily, config: Config, memory: Memory | None, network: ActorCritic | None
) -> ActorCritic:
    """``network``, or a policy on ``memory``, or on the memory that ``config`` names.

    Raises:
        ValueError: ``memory`` or a setting of ``config`` has no effect beside the others; ``network`` does not fit the
            family.
    """
    if network is not None:
        how: dict[str, Any] = dict(settings=NETWORK_SETTINGS, check_fits=check_network_fits)
        return recurrent.given_network(family, config, memory, network, **how)
    if memory is not None:
        checks.ignored(config, NETWORK_SETTINGS[:4], "with the argument memory=")
    else:
        memory = networks.make(
            config.memory,
            size=config.memory_size,
            precision=config.precision,
            context=config.context or config.num_episodes * family.horizon,
        )
    return recurrent_actor_critic(
        family, memory, encoder_sizes=config.encoder_sizes, hidden_sizes=config.hidden_sizes
    )
