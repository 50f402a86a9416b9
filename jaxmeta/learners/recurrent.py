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

RL² and VariBAD share this module and differ in the network. `recurrent_q` shares its trials and its passes over them.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, rollouts
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.episodes import episode_index
from jaxmeta.estimators.returns import advantages_and_targets
from jaxmeta.estimators.streams import finite_streams
from jaxmeta.estimators.units import advantage_scale, in_units, running, running_reward_scale
from jaxmeta.learners import minibatches
from jaxmeta.learners.minibatches import Counts, in_chunks, learn_in_epochs
from jaxmeta.meta_updates.gradients import State
from jaxmeta.meta_updates.outer_loop import PARAMS, as_arrays, first_state, outer_optimizer
from jaxmeta.networks import recurrent
from jaxmeta.networks.actor_critic import ActorCritic, Inputs
from jaxmeta.networks.distributions import Distribution
from jaxmeta.networks.encodings import encode_action
from jaxmeta.networks.policies import acting
from jaxmeta.networks.recurrent import Memory
from jaxmeta.recurrences import linear_recurrence
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.keys import quick
from jaxmeta.types import (
    Learner,
    Lifetime,
    MetaAlgorithm,
    Params,
    Task,
    TaskResults,
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


@dataclasses.dataclass(frozen=True)
class Config(EpochConfig):
    """Settings of learners with memory that follow a policy gradient; algorithms add their own."""

    explore_episodes: int = 0
    """Episodes at the start of a trial that are for exploration alone (E-RL²): the network sees their rewards, and returns,
    values and advantages count them 0."""
    normalize: bool = True
    """Scale each minibatch's advantages to mean 0 and standard deviation 1; without it they are in units of
    the spread of returns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("explore_episodes", self.explore_episodes, 0)
        if self.explore_episodes >= self.num_episodes:
            raise ValueError(
                f"explore_episodes={self.explore_episodes} must be less than num_episodes={self.num_episodes}: "
                "nothing would be earned"
            )


class Hyper(NamedTuple):
    """Numbers of learners with memory, each a float or an array ``[]``; a run can sweep or learn them."""

    discount: float = 0.99
    """γ, which makes the advantages less noisy. The objective is the trial's undiscounted return."""
    gae_lambda: float = 0.95
    """λ of the advantages."""
    learning_rate: float = 1e-3
    """Step size of the optimiser, a minibatch."""
    anneal_updates: float = math.inf
    """Meta-updates in which the step size and the weight of the entropy fall to zero in a straight line;
    infinite keeps them."""
    max_grad_norm: float = 1.0
    """Clips the norm of the gradient of all parameters together."""
    clip: float = 0.2
    """ε of PPO: ratios beyond 1 ± ε earn nothing more. `a2c` ignores it."""
    entropy_cost: float = 0.01
    """Weight of the policy's entropy, in nats a step."""
    value_cost: float = 0.5
    """Weight of the squared error of values, in units of the spread of returns."""


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
    trials: Callable[[jax.Array, Any, Task], Trajectory]
    """``(key, meta, tasks [M]) -> [M N, T]``: the trials of all streams of all tasks."""
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


def trials_of(key: jax.Array, meta: Any, tasks: Task, *, setup: rollouts.Setup) -> Trajectory:
    """The trials of all streams of all tasks ``[M]``, each a whole rollout of ``setup``: ``[M N, T]``."""

    def trial(key: jax.Array, task: Task) -> Trajectory:
        history = rollouts.lifetime(key, meta, task, setup=setup, num_updates=0)
        return jax.tree.map(lambda x: x[0], history.trajectories)

    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    data = jax.vmap(trial)(jax.random.split(key, num_tasks), tasks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)


def values_to_come(v: jax.Array) -> jax.Array:
    """``v_{t+1}``, and 0 after the trial, ``[T]``. Values cross the ends of episodes within a trial."""
    return jnp.append(v[1:], jnp.zeros_like(v[:1]))


def advantages_and_returns(
    reward: jax.Array, v: jax.Array, hyper: TrialHyper
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantages and λ-returns over one whole trial, across the ends of its episodes, ``[T]`` each.

    Rewards and values after the trial's last episode must be 0.
    """
    never = jnp.zeros_like(reward)
    return advantages_and_targets(
        reward,
        jnp.full_like(reward, hyper.discount),
        v=v,
        v_next=values_to_come(v),
        last=never,
        lambda_=hyper.gae_lambda,
    )


PolicyLoss = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""``(log_ratio [T], advantage [T], hyper) -> [T]``, the policy's objective at each step, to be maximised."""


def ppo(log_ratio: jax.Array, advantage: jax.Array, hyper: TrialHyper) -> jax.Array:
    """PPO's clipped objective at each step (Schulman et al. 2017, eq. 7), ``[T]``."""
    return surrogates.clipped_ratio(log_ratio, advantage, hyper.clip)


def a2c(log_ratio: jax.Array, advantage: jax.Array, hyper: TrialHyper) -> jax.Array:
    """The policy gradient at each step (Mnih et al. 2016), ``[T]``; for data of the policy itself."""
    return log_ratio * advantage


class Loss(NamedTuple):
    """The losses of one minibatch of trials."""

    policy: PolicyLoss
    """`ppo`, `a2c` or your own."""
    auxiliary: Callable[..., tuple[jax.Array, dict]] | None = None
    """``(params, key, data [T], inputs [T], counted [T], hyper) -> (loss [], report)`` of one trial, to be
    minimised beside it. Rewards in ``data`` are in units. Steps that are not ``counted`` (bool) hold zeros
    and must not enter the loss."""
    bonus: Callable[..., dict[str, jax.Array]] | None = None
    """``(params, key, data [T], inputs [T], counted [T], hyper) -> {name: [T]}`` of one trial: bonuses for exploration
    that the policy and the value learn from beside the rewards, and that nothing else sees (`bonuses`). The weight of
    a bonus is ``hyper.<name>_bonus``."""


class Batch(NamedTuple):
    """Trials to learn from, ``[B, T]``; steps that are not ``counted`` hold zeros."""

    data: Trajectory
    """The trials, with rewards in units."""
    inputs: Inputs
    """The network's inputs."""
    advantage: jax.Array
    """Advantages over the whole trial, in units of the spread of returns."""
    target: jax.Array
    """λ-returns, as the network predicts them: in units, from the mean."""
    counted: jax.Array
    """bool: the steps to learn from."""


def learn_from_trials(
    family: TaskFamily,
    config: Config,
    hyper: TrialHyper,
    network: ActorCritic,
    loss: Loss,
    optimizer: Callable[[Any], optax.GradientTransformation],
) -> MetaAlgorithm:
    """The outer loop: act in trials of new tasks, then learn from them in epochs of minibatches.

    A trial with a number in its counted steps that is not finite is left out and counted in
    ``skipped_tasks``. A minibatch without a good trial or without a finite gradient changes nothing;
    ``skipped_updates`` is 1 if no minibatch changed anything. Several devices share the tasks for
    acting, and for learning if their number divides ``config.minibatch_groups`` (`learners.minibatches`).
    """
    parts = recurrent_learner(family, config, network)
    losses = partial(minibatch_loss, network=network, loss=loss)
    of_whole = partial(whole_minibatch, normalize=config.normalize)
    chunk = config.trials_per_chunk

    def init(key: jax.Array, hyper: TrialHyper = hyper) -> State:
        meta = Meta(network.init(key), jnp.zeros(2), jnp.zeros(()), as_arrays(hyper))
        return first_state(meta, PARAMS, optimizer)

    def step_with_results(
        key: jax.Array, state: State, tasks: Task, learns: jax.Array | None = None
    ) -> tuple[State, dict, TaskResults]:
        key = quick(key)
        act_key, learn_key = jax.random.split(key)
        hyper = annealed(state.meta.hyper, state.num_updates)
        recorded = parts.trials(act_key, state.meta, tasks)
        data, counted = counted_steps(recorded, config.num_episodes)
        inputs = jax.vmap(parts.inputs, in_axes=(None, 0))(state.meta, data)
        learn_key, bonus = bonuses(learn_key, state.meta, hyper, data, inputs, counted, loss.bonus)
        meta, batch = with_advantages(
            state.meta,
            hyper,
            data,
            inputs,
            counted,
            bonus,
            network=network,
            trials_per_chunk=chunk,
            explore_episodes=config.explore_episodes,
        )
        results = task_results(meta, batch, recorded, config)
        if learns is not None:
            trials = jnp.repeat(learns, config.num_streams)
            batch = batch._replace(counted=counted & trials[:, None])
        learned, reports, applied = learn_in_epochs(
            learn_key,
            (meta.params, state.optimizer),
            batch,
            hyper,
            losses=losses,
            of_whole=of_whole,
            optimizer=outer_optimizer(optimizer, hyper),
            config=config,
        )
        metrics = jax.tree.map(lambda x: jnp.mean(x, where=applied), reports)
        metrics |= trial_metrics(
            recorded, counted, config.num_episodes, explore_episodes=config.explore_episodes
        )
        done = jnp.any(applied).astype(jnp.int32)
        wanted = 1 if learns is None else jnp.any(learns).astype(jnp.int32)
        metrics["skipped_updates"] = wanted * (1 - done)
        metrics["env_steps"] = jnp.asarray(len(counted) * parts.lifetime.num_steps, jnp.int32)
        params, optimizer_state = learned
        meta = meta._replace(params=params)
        return State(meta, optimizer_state, state.num_updates + done), metrics, results

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        return step_with_results(key, state, tasks)[:2]

    return MetaAlgorithm(
        init, step, parts.learner, parts.lifetime, step_with_results=step_with_results
    )


def annealed(hyper: TrialHyper, num_updates: jax.Array) -> Any:
    """``hyper`` with the step size and the weights of the entropy and of bonuses after ``num_updates []`` meta-updates."""
    done = num_updates.astype(float) / hyper.anneal_updates
    left = jnp.maximum(1.0 - done, 0.0)
    falling = [x for x in ("learning_rate", "entropy_cost") if x in hyper._fields]
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


def with_advantages(
    meta: Meta,
    hyper: TrialHyper,
    data: Trajectory,
    inputs: Inputs,
    counted: jax.Array,
    bonus: jax.Array | float = 0.0,
    *,
    network: ActorCritic,
    trials_per_chunk: int | None = None,
    explore_episodes: int = 0,
) -> tuple[Meta, Batch]:
    """``meta`` with its running scales moved, and the batch: advantages and targets over whole trials ``[B, T]``.

    Rewards of the first ``explore_episodes`` count 0. A ``bonus [B, T]`` counts in all episodes.
    """
    mean, spread = meta.value_scale
    v = in_chunks(
        lambda trial: network.unroll(meta.params, *trial)[1],
        (data.memory.state, inputs),
        trials_per_chunk=trials_per_chunk,
    )
    v = jnp.where(counted, mean + spread * v, 0.0)
    reward = jnp.where(counted, data.reward, 0.0)
    explores = jax.vmap(episode_index)(data.last) < explore_episodes
    earned = jnp.where(explores, 0.0, reward) + bonus
    advantage, returns = jax.vmap(advantages_and_returns, (0, 0, None))(earned, v, hyper)
    mean, spread = value_scale = moved_value_scale(meta.value_scale, returns, counted)
    batch = Batch(
        data=data._replace(reward=in_units(reward, meta.reward_scale)),
        inputs=inputs,
        advantage=in_units(advantage, spread),
        target=in_units(returns - mean, spread),
        counted=counted,
    )
    reward_scale = running_reward_scale(meta.reward_scale, reward, counted)
    return meta._replace(value_scale=value_scale, reward_scale=reward_scale), batch


class Whole(NamedTuple):
    """Numbers of a whole minibatch that the losses of its trials need."""

    counts: Counts
    """The divisors of means."""
    mean: jax.Array
    """``[]``, the mean that is taken from advantages."""
    scale: jax.Array
    """``[]``, the scale that they are divided by."""


def whole_minibatch(batch: Batch, *, normalize: bool) -> Whole:
    """The numbers of a minibatch ``[B, T]`` that the losses of its trials need."""
    advantage, counted = batch.advantage, batch.counted
    mean, scale = jnp.zeros((), advantage.dtype), jnp.ones((), advantage.dtype)
    if normalize:
        mean = jnp.mean(advantage, where=counted)
        scale = advantage_scale(advantage - mean, counted)
    return Whole(minibatches.counts(batch), mean, scale)


def bonuses(
    key: jax.Array,
    meta: Meta,
    hyper: TrialHyper,
    data: Trajectory,
    inputs: Inputs,
    counted: jax.Array,
    bonus: Callable[..., dict[str, jax.Array]] | None,
) -> tuple[jax.Array, jax.Array | float]:
    """``(key, bonus [B, T])``: a new key and the sum of all bonuses of trials ``[B, T]``, 0 without any; arguments as in `Loss`.

    Each is divided by the standard deviation of its discounted sums, of the batch, and is in the unit of rewards.
    """
    if bonus is None:
        return key, 0.0
    key, bonus_key = jax.random.split(key)
    keys = jax.random.split(bonus_key, len(counted))
    seen = data._replace(reward=in_units(data.reward, meta.reward_scale))
    given = jax.vmap(bonus, (None, 0, 0, 0, 0, None))(
        meta.params, keys, seen, inputs, counted, hyper
    )
    unit = jnp.where(meta.reward_scale > 0, meta.reward_scale, 1.0)
    total = jnp.zeros_like(data.reward)
    for name, x in given.items():
        x = jnp.where(counted, x, 0.0)
        sums = jax.vmap(lambda x: linear_recurrence(x, jnp.full_like(x, hyper.discount)))(x)
        spread = jnp.std(sums, where=counted)
        total += getattr(hyper, f"{name}_bonus") * unit * in_units(x, spread)
    return key, jax.lax.stop_gradient(total)


def task_results(
    meta: Meta, batch: Batch, recorded: Trajectory, config: TrialConfig
) -> TaskResults:
    """What each task gave, for a curriculum: of a batch of trials ``[M N, T]`` and ``meta`` after `with_advantages`."""
    mean, spread = meta.value_scale
    counted = batch.counted
    reward = jnp.where(counted, recorded.reward, 0.0)
    good = jnp.any(counted, axis=1)
    index = jax.vmap(episode_index)(recorded.last)
    ended = index[:, -1] + recorded.last[:, -1].astype(index.dtype)
    episode = jnp.arange(config.num_episodes)
    in_episode = index[:, None, :] == episode[None, :, None]
    episodes = jnp.sum(jnp.where(in_episode, reward[:, None, :], 0.0), axis=2)
    known = good[:, None] & (episode[None, :] < ended[:, None])

    def by_task(x: jax.Array) -> jax.Array:
        return x.reshape(-1, config.num_streams, *x.shape[1:])

    trial = by_task(jnp.sum(reward, axis=1))
    return TaskResults(
        returns=jnp.mean(trial, axis=1, where=by_task(good)),
        best=jnp.max(trial, axis=1, where=by_task(good), initial=-jnp.inf),
        episodes=by_task(jnp.where(known, episodes, jnp.nan)),
        reward=by_task(reward),
        value=by_task(mean + spread * (batch.target - batch.advantage)),
        advantage=by_task(spread * batch.advantage),
        counted=by_task(counted),
    )


def minibatch_loss(
    params: Params,
    keys: jax.Array,
    batch: Batch,
    hyper: TrialHyper,
    whole: Whole,
    *,
    network: ActorCritic,
    loss: Loss,
) -> tuple[jax.Array, dict]:
    """``(loss [], report)``, the share of some trials, with a key each, of a minibatch: policy, value, entropy, auxiliary."""
    data, inputs, advantage, target, counted = batch
    advantage = (advantage - whole.mean) / whole.scale
    distribution, v = jax.vmap(network.unroll, in_axes=(None, 0, 0))(
        params, data.memory.state, inputs
    )
    # Other steps hold no action of the policy. Their ratio may be infinite, and a mask after `exp`
    # leaves a NaN in the gradient.
    log_ratio = jnp.where(counted, distribution.log_prob(data.action) - data.log_prob, 0.0)

    def mean_step(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(counted, x, 0.0)) / whole.counts.steps.astype(x.dtype)

    gain = mean_step(loss.policy(log_ratio, advantage, hyper))
    entropy = mean_step(distribution.entropy())
    error = mean_step((v - target) ** 2)
    report = {
        "entropy": entropy,
        "value_loss": error,
        "kl": mean_step(jnp.expm1(log_ratio) - log_ratio),
    }
    total = hyper.value_cost * error - gain - hyper.entropy_cost * entropy
    if loss.auxiliary is not None:
        more, its_report = jax.vmap(loss.auxiliary, in_axes=(None, 0, 0, 0, 0, None))(
            params, keys, data, inputs, counted, hyper
        )
        good = jnp.any(counted, axis=1)
        weight = good.astype(total.dtype) / whole.counts.trials.astype(total.dtype)
        total = total + jnp.sum(weight * more)
        report |= {name: jnp.sum(weight * x) for name, x in its_report.items()}
    return total, report


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
