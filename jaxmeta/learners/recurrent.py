"""Learners with memory: they learn a task in the state of a recurrent network.

A *trial* is one stream of a task: E episodes of at most H steps, one after the other. The memory lasts from
the first step of a trial to the last. It is not cleared at the end of an episode, so each episode can use
the earlier ones. This memory, and seeing the previous action and reward, makes a recurrent policy a
meta-learner (Duan et al. 2016, "RL²: fast reinforcement learning via slow reinforcement learning"; Wang et
al. 2016, "Learning to reinforcement learn"). The objective is the return of the whole trial: values and
advantages cross the ends of episodes too.

If episodes end sooner, the stream still goes on for E H steps. The steps up to the end of the E-th episode
are *counted*. Later steps enter no loss, no statistic and no report, whatever numbers they hold. Otherwise
the policies with the shortest episodes would earn most.

The unit of rewards changes nothing. The network sees rewards in units of a running scale (`Meta`), and it
learns values and advantages in such units. Rewards times 1 000 give the same parameters.

All learners with memory share this module. `trial_gradients` follows policy gradients (RL², VariBAD), `action_values` learns
values.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks, rollouts
from jaxmeta.estimators.episodes import episode_index
from jaxmeta.estimators.returns import advantages_and_targets
from jaxmeta.estimators.streams import finite_streams
from jaxmeta.estimators.units import in_units, running
from jaxmeta.learners import minibatches
from jaxmeta.networks import recurrent
from jaxmeta.networks.actor_critic import ActorCritic, Inputs
from jaxmeta.networks.distributions import Distribution
from jaxmeta.networks.encodings import encode_action
from jaxmeta.networks.policies import acting
from jaxmeta.networks.recurrent import Memory
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import (
    Learner,
    Lifetime,
    Params,
    Task,
    TimeStep,
    Trajectory,
)


@dataclasses.dataclass(frozen=True)
class TrialConfig:
    """Settings of the trials of all learners with memory; algorithms add their own."""

    num_episodes: int = 1
    """Episodes in a trial (E), with one memory."""
    num_streams: int = 1
    """Trials of a task in a meta-update (N)."""
    remembers: Literal["trial", "episode"] = "trial"
    """The memory is cleared at the start of a `trial`, or of every `episode`. The latter is the control
    that does not learn from one episode to the next."""
    sees_time: bool = True
    """Show the network how much of the trial has passed. The best way to explore depends on it, and
    values depend on it even more."""
    hidden_sizes: tuple[int, ...] = ()
    """Widths of hidden layers between the memory and the policy's and the value's outputs."""
    unroll: int = 1
    """Steps a rollout's loop is unrolled by."""

    def __post_init__(self) -> None:
        checks.fields(self)
        for name in ("num_episodes", "num_streams", "unroll"):
            checks.at_least(name, getattr(self, name), 1)
        checks.choice("remembers", self.remembers, ("trial", "episode"))
        for size in self.hidden_sizes:
            checks.at_least("hidden_sizes", size, 1)


@dataclasses.dataclass(frozen=True)
class EpochConfig(TrialConfig):
    """Settings of the trials of learners with memory and of the passes over them; algorithms add their own."""

    num_epochs: int = 4
    """Passes over a batch of trials."""
    num_minibatches: int = 4
    """Gradient steps in a pass; the number of trials must be a multiple of it."""
    minibatch_groups: int = 1
    """Blocks of trials that each minibatch takes as many trials from; the number of trials must be a multiple of
    ``num_minibatches * minibatch_groups``. Devices share learning where their number divides it. Another value
    draws other minibatches; another number of devices does not."""
    trials_per_chunk: int | None = None
    """Trials of a minibatch whose values are in memory at a time; None is all of them. It must be a multiple of
    `minibatch_groups` and divide a minibatch. It changes no number but by rounding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_epochs", "num_minibatches"):
            checks.at_least(name, getattr(self, name), 1)
        minibatches.check_settings(self)

    @property
    def num_replayed(self) -> int:
        """Old trials beside the new ones in each minibatch."""
        return 0

    def check_num_tasks(self, num_tasks: int) -> None:
        """Raises ValueError unless the trials of a meta-update with M = ``num_tasks`` can be cut into minibatches."""
        num_trials = num_tasks * self.num_streams
        said = f"num_tasks={num_tasks} × num_streams={self.num_streams} = {num_trials}"
        minibatches.check_trials(num_trials, self, said, num_replayed=self.num_replayed)

    def check_devices(self, num_devices: int) -> None:
        """Warns unless ``num_devices`` devices share learning."""
        minibatches.check_shared(self, num_devices)


TrialHyper = Any
"""A `Hyper`, or an algorithm's own NamedTuple with the same fields and more, as VariBAD's."""


class Meta(NamedTuple):
    """The network's parameters and the running scales of returns and rewards.

    A scale of 0 is not known yet: the first batch with a scale sets it.
    """

    params: Params
    """The network's parameters."""
    value_scale: jax.Array
    """``[2]``, running mean and standard deviation of the returns to come."""
    reward_scale: jax.Array
    """``[]``, running mean of the batches' largest rewards."""
    hyper: TrialHyper
    """The algorithm's Hyper."""


class TrialMemory(NamedTuple):
    """The network's state and the time in the trial, of one stream."""

    state: Any
    """The state of the network."""
    time: jax.Array
    """``[]``, int32: steps since the trial began."""


class RecurrentLearner(NamedTuple):
    """The learner and the functions of it that the outer loop needs."""

    learner: Learner
    """The learner."""
    inputs: Callable[[Any, Trajectory], Inputs]
    """``(meta, data [T]) -> inputs [T]``."""
    trials: Callable[..., Trajectory]
    """``(key, meta, tasks [M], meta_axes=None) -> [M N, T]``: the trials of all streams of all tasks. Leaves of ``meta``
    at which ``meta_axes`` is 0 hold a number for each task."""
    lifetime: Lifetime
    """N trials of T = E H steps."""


def memory_of(family: TaskFamily, config: Any, memory: Memory | None = None) -> Memory:
    """``memory``, or the recurrent network that ``config``, of RL² or of VariBAD, names.

    A named transformer attends to the whole trial.

    Raises:
        ValueError: ``memory`` is given, and so is another name, size or precision than the default.
    """
    if memory is not None:
        checks.ignored(config, MEMORY_SETTINGS, "with the argument memory=")
        return memory
    return recurrent.make(
        config.memory,
        size=config.memory_size,
        precision=config.precision,
        context=config.num_episodes * family.horizon,
    )


MEMORY_SETTINGS = ("memory", "memory_size", "precision")
"""The settings that name a recurrent network."""


def given_network(
    family: TaskFamily,
    config: Any,
    memory: Memory | None,
    network: Any,
    *,
    settings: Sequence[str],
    check_fits: Callable[[TaskFamily, Any], None],
) -> Any:
    """``network``, a whole one that takes the place of ``memory`` and of the ``settings`` of ``config``; ``check_fits(family, network)`` raises.

    Raises:
        ValueError: ``memory`` or one of the settings has no effect beside ``network``.
    """
    if memory is not None:
        raise ValueError(
            "memory= has no effect with the argument network=, which has a memory: leave one out"
        )
    checks.ignored(config, settings, "with the argument network=")
    check_fits(family, network)
    return network


@checks.arguments
def recurrent_learner(
    family: TaskFamily,
    config: TrialConfig,
    network: ActorCritic,
    *,
    reads: type = Meta,
    greedy: bool = False,
) -> RecurrentLearner:
    """The learner that acts by the policy of ``network`` on tasks of ``family``; the other arguments are those of `trial_learner`."""
    return trial_learner(
        family,
        config,
        network.initial,
        lambda meta, state, inputs: network.step(meta.params, state, inputs),
        reads=reads,
        greedy=greedy,
    )


Choose = Callable[[Any, Any, Inputs], tuple[Distribution, Any]]
"""``(meta, state, inputs) -> (distribution, state)``: how a network with a memory acts at one step."""


@checks.arguments
def trial_learner(
    family: TaskFamily,
    config: TrialConfig,
    initial: Callable[[], Any],
    choose: Choose,
    *,
    reads: type = Meta,
    greedy: bool = False,
) -> RecurrentLearner:
    """The learner that acts by ``choose`` on tasks of ``family``.

    Args:
        family: The tasks' family.
        config: The trials' settings.
        initial: ``() -> state`` of the network at the start of a trial.
        choose: ``(meta, state, inputs) -> (distribution, state)``, one step.
        reads: The type of the learner's ``meta``, which has ``params`` and ``reward_scale``.
        greedy: Take the most probable action instead of a draw.
    """
    num_steps = config.num_episodes * family.horizon

    def look(meta: Any, timestep: TimeStep, time: jax.Array) -> Inputs:
        """The inputs of the network at one step."""
        reset = time == 0
        if config.remembers == "episode":
            reset = reset | timestep.first
        reward = in_units(timestep.reward, meta.reward_scale)
        past = jnp.append(encode_action(timestep.action[None], family)[0], reward)
        passed = (time / num_steps) if config.sees_time else jnp.zeros_like(timestep.reward)
        return Inputs(
            obs=timestep.obs.reshape(-1),
            past=jnp.where(reset, 0.0, past),
            time=jnp.stack([timestep.first.astype(past.dtype), passed.astype(past.dtype)]),
            reset=reset,
        )

    def policy_step(
        meta: Any, memory: TrialMemory, timestep: TimeStep
    ) -> tuple[Distribution, TrialMemory]:
        shown = look(meta, timestep, memory.time)
        distribution, state = choose(meta, memory.state, shown)
        return distribution, TrialMemory(state, memory.time + 1)

    def inputs(meta: Any, data: Trajectory) -> Inputs:
        time = data.memory.time + jnp.arange(data.reward.shape[0], dtype=jnp.int32)
        return jax.vmap(look, (None, 0, 0))(meta, data.timestep, time)

    learner = Learner(
        init=lambda key, meta: (),
        memory=lambda meta: TrialMemory(initial(), jnp.zeros((), jnp.int32)),
        act=acting(policy_step, lambda meta, agent: meta, greedy=greedy),
        update=lambda key, meta, agent, trajectories: agent,
    )

    learner = checks.reading(learner, reads)
    setup = rollouts.Setup(learner, family.env, config.num_streams, num_steps, config.unroll)

    trials = partial(trials_of, setup=setup)
    return RecurrentLearner(learner, inputs, trials, setup.collects(trial=True))


def trials_of(
    key: jax.Array, meta: Any, tasks: Task, *, setup: rollouts.Setup, meta_axes: Any = None
) -> Trajectory:
    """The trials of all streams of all tasks ``[M]``, each a whole rollout of ``setup``: ``[M N, T]``.

    ``meta_axes`` are as ``in_axes`` of `jax.vmap`: 0 at leaves of ``meta`` with a leading ``[M]``; None is one meta for all.
    """

    def trial(key: jax.Array, meta: Any, task: Task) -> Trajectory:
        history = rollouts.lifetime(key, meta, task, setup=setup, num_updates=0)
        return jax.tree.map(lambda x: x[0], history.trajectories)

    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    mapped = jax.vmap(trial, in_axes=(0, meta_axes, 0))
    data = mapped(jax.random.split(key, num_tasks), meta, tasks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)


def values_to_come(v: jax.Array) -> jax.Array:
    """``v_{t+1}``, and 0 after the trial, ``[T]``. Values cross the ends of episodes within a trial."""
    return jnp.append(v[1:], jnp.zeros_like(v[:1]))


def trial_estimates(
    reward: jax.Array, v: jax.Array, *, discount: jax.Array, lambda_: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantages and λ-returns over one whole trial, across the ends of its episodes, ``[T]`` each.

    Rewards and values after the trial's last episode must be 0. ``discount`` and ``lambda_`` are of all steps, ``[]``, or of each,
    ``[T]``.
    """
    return advantages_and_targets(
        reward,
        jnp.broadcast_to(jnp.asarray(discount, reward.dtype), reward.shape),
        v=v,
        v_next=values_to_come(v),
        last=jnp.zeros_like(reward),
        lambda_=lambda_,
    )


def annealed(hyper: TrialHyper, num_updates: jax.Array) -> Any:
    """``hyper`` with the step sizes and the weights of the entropy and of bonuses after ``num_updates []`` meta-updates."""
    done = num_updates.astype(float) / hyper.anneal_updates
    left = jnp.maximum(1.0 - done, 0.0)
    rates = ("learning_rate", "belief_learning_rate")
    falling = [x for x in (*rates, "entropy_cost") if x in hyper._fields]
    after = {name: left * getattr(hyper, name) for name in falling}
    if "bonus_updates" in hyper._fields:
        left = jnp.maximum(1.0 - num_updates.astype(float) / hyper.bonus_updates, 0.0)
        after |= {x: left * getattr(hyper, x) for x in hyper._fields if x.endswith("_bonus")}
    return hyper._replace(**after)


def counted_steps(recorded: Trajectory, num_episodes: int) -> tuple[Trajectory, jax.Array]:
    """``(data, counted)`` of trials, ``[B, T]``: finite numbers to compute with, and the steps to learn from.

    Steps count up to the end of a trial's last episode, unless a number of the trial is not finite.
    """
    counted = jax.vmap(episode_index)(recorded.last) < num_episodes
    # Zeros, and not a copy of a good trial, which would have to be sent to other devices.
    counted = finite_streams(blank(recorded, counted))[:, None] & counted
    return blank(recorded, counted), counted


def blank(data: Trajectory, counted: jax.Array) -> Trajectory:
    """``data [B, T]`` with zeros at the steps that are not ``counted``. Masking a NaN later is not enough: it
    comes back through a derivative and through attention."""

    def blank(x: jax.Array) -> jax.Array:
        mask = counted.reshape(*counted.shape, *[1] * (x.ndim - 2))
        return jnp.where(mask, x, jnp.zeros_like(x))

    return jax.tree.map(blank, data._replace(memory=()))._replace(memory=data.memory)


def moved_value_scale(scale: jax.Array, returns: jax.Array, counted: jax.Array) -> jax.Array:
    """Running mean and standard deviation of the returns to come ``[B, T]`` at ``counted`` steps, ``[2]``.

    A spread that may be rounding error becomes 0, which means unknown. In its units the network would
    learn noise.
    """
    batch = jnp.stack([jnp.mean(returns, where=counted), jnp.std(returns, where=counted)])
    moved = running(scale, batch, scale[1] > 0)
    mean, spread = jnp.where(jnp.any(counted), moved, scale)
    rounding = 100 * jnp.finfo(spread.dtype).eps * jnp.abs(mean)
    return jnp.stack([mean, jnp.where(spread > rounding, spread, 0.0)])


def step_metrics(
    reports: dict[str, jax.Array],
    applied: jax.Array,
    recorded: Trajectory,
    counted: jax.Array,
    num_episodes: int,
    *,
    explore_episodes: int = 0,
) -> dict[str, jax.Array]:
    """Metrics of a meta-update: the means of the ``reports [...]`` of its gradient steps where they were ``applied [...]`` (bool), what it took, and
    `trial_metrics` of its trials, ``recorded [B, T]`` with ``counted [B, T]`` (bool)."""
    metrics = jax.tree.map(lambda x: jnp.mean(x, where=applied), reports)
    metrics |= trial_metrics(recorded, counted, num_episodes, explore_episodes=explore_episodes)
    metrics["skipped_updates"] = 1 - jnp.any(applied).astype(jnp.int32)
    metrics["env_steps"] = jnp.asarray(counted.size, jnp.int32)
    return metrics


def trial_metrics(
    data: Trajectory, counted: jax.Array, num_episodes: int, *, explore_episodes: int = 0
) -> dict[str, jax.Array]:
    """Mean undiscounted returns of the first and the last episode and of the trial; the number of broken trials.

    The trial's return is of the episodes after the first ``explore_episodes``.
    ``data [B, T]`` are B trials, and ``counted [B, T]`` marks their steps that count: none of a broken trial.
    """
    good = jnp.any(counted, axis=1)
    episode = jax.vmap(episode_index)(data.last)

    def mean(which: jax.Array) -> jax.Array:
        return jnp.mean(jnp.sum(jnp.where(which, data.reward, 0.0), axis=1), where=good)

    return {
        "return/before": mean(episode == 0),
        "return/after": mean(episode == num_episodes - 1),
        "return/trial": mean((episode >= explore_episodes) & (episode < num_episodes)),
        "skipped_tasks": len(good) - jnp.sum(good, dtype=jnp.int32),
    }
