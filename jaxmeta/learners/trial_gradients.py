"""Policy gradients over whole trials of learners with memory: advantages that cross the ends of episodes, and steps on minibatches.

RL² and VariBAD share this module and differ in the network and the losses.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.episodes import episode_index
from jaxmeta.estimators.units import advantage_scale, in_units, running_reward_scale
from jaxmeta.learners import minibatches
from jaxmeta.learners.auxiliary_steps import AuxiliarySteps
from jaxmeta.learners.minibatches import Counts, in_chunks, learn_in_epochs
from jaxmeta.learners.recurrent import (
    EpochConfig,
    Meta,
    RecurrentLearner,
    TrialHyper,
    annealed,
    counted_steps,
    moved_value_scale,
    recurrent_learner,
    step_metrics,
    trial_estimates,
)
from jaxmeta.meta_updates.outer_loop import PARAMS, as_arrays, first_state, outer_optimizer
from jaxmeta.networks.actor_critic import ActorCritic, Inputs
from jaxmeta.recurrences import linear_recurrence
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.keys import quick
from jaxmeta.types import (
    MetaAlgorithm,
    Params,
    Task,
    TaskResults,
    Trajectory,
)


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
    auxiliary: AuxiliarySteps | None = None,
) -> MetaAlgorithm:
    """The outer loop: act in trials of new tasks, then learn from them in epochs of minibatches, and then take the ``auxiliary`` steps.

    A trial with a number in its counted steps that is not finite is left out and counted in
    ``skipped_tasks``. A minibatch without a good trial or without a finite gradient changes nothing;
    ``skipped_updates`` is 1 if no minibatch changed anything. Several devices share the tasks for
    acting, and for learning if their number divides ``config.minibatch_groups`` (`learners.minibatches`).
    """
    parts = recurrent_learner(family, config, network)
    improve = partial(_improved, network=network, config=config, loss=loss, optimizer=optimizer)
    prepare = partial(prepared, parts=parts, network=network, config=config, bonus=loss.bonus)

    def init(key: jax.Array, hyper: TrialHyper = hyper) -> Any:
        state = first_state(first_meta(key, network, hyper), PARAMS, optimizer)
        return state if auxiliary is None else auxiliary.begin(state)

    def step_with_results(
        key: jax.Array, state: Any, tasks: Task, learns: jax.Array | None = None
    ) -> tuple[Any, dict, TaskResults]:
        act_key, learn_key, *more_keys = jax.random.split(quick(key), 2 if auxiliary is None else 3)
        hyper = annealed(state.meta.hyper, state.num_updates)
        recorded = parts.trials(act_key, state.meta, tasks)
        learn_key, meta, batch = prepare(learn_key, state.meta, hyper, recorded)
        counted = batch.counted
        results = task_results(meta, batch, recorded, config)
        if loss.bonus is not None:  # they are of rewards with bonuses, and returns are not
            results = results._replace(value=None, advantage=None)
        if learns is not None:
            trials = jnp.repeat(learns, config.num_streams)
            batch = batch._replace(counted=counted & trials[:, None])
        state, reports, applied = improve(learn_key, state._replace(meta=meta), batch, hyper)
        metrics = step_metrics(
            reports,
            applied,
            recorded,
            counted,
            config.num_episodes,
            explore_episodes=config.explore_episodes,
        )
        if learns is not None:  # a meta-update that has nothing to learn from skips nothing
            metrics["skipped_updates"] *= jnp.any(learns).astype(jnp.int32)
        if auxiliary is not None:
            state, report = auxiliary.follow(
                more_keys[0],
                state,
                recorded,
                batch.counted,
                hyper,
                parts=parts,
                initial=network.initial,
            )
            metrics |= report
        return state, metrics, results

    def step(key: jax.Array, state: Any, tasks: Task) -> tuple[Any, dict]:
        return step_with_results(key, state, tasks)[:2]

    return MetaAlgorithm(
        init, step, parts.learner, parts.lifetime, step_with_results=step_with_results
    )


def _improved(
    key: jax.Array,
    state: Any,
    batch: Batch,
    hyper: TrialHyper,
    *,
    network: ActorCritic,
    config: Config,
    loss: Loss,
    optimizer: Callable[[Any], optax.GradientTransformation],
) -> tuple[Any, dict[str, jax.Array], jax.Array]:
    """``state`` after epochs of minibatches of ``batch``, with their reports and whether each was applied."""
    learned, reports, applied = learn_in_epochs(
        key,
        (state.meta.params, state.optimizer),
        batch,
        hyper,
        losses=partial(minibatch_loss, network=network, loss=loss),
        of_whole=partial(whole_minibatch, normalize=config.normalize),
        optimizer=outer_optimizer(optimizer, hyper),
        config=config,
    )
    params, optimizer_state = learned
    state = state._replace(
        meta=state.meta._replace(params=params),
        optimizer=optimizer_state,
        num_updates=state.num_updates + jnp.any(applied).astype(jnp.int32),
    )
    return state, reports, applied


def first_meta(key: jax.Array, network: ActorCritic, hyper: TrialHyper) -> Meta:
    """The meta of a run before its first meta-update."""
    return Meta(network.init(key), jnp.zeros(2), jnp.zeros(()), as_arrays(hyper))


def prepared(
    key: jax.Array,
    meta: Meta,
    hyper: TrialHyper,
    recorded: Trajectory,
    *,
    parts: RecurrentLearner,
    network: ActorCritic,
    config: Config,
    bonus: Callable[..., dict[str, jax.Array]] | None,
) -> tuple[jax.Array, Meta, Batch]:
    """``(key, meta, batch)``: a new key, ``meta`` with its running scales moved, and what to learn from trials ``[B, T]``."""
    data, counted = counted_steps(recorded, config.num_episodes)
    inputs = jax.vmap(parts.inputs, in_axes=(None, 0))(meta, data)
    key, extra = bonuses(key, meta, hyper, data, inputs, counted, bonus)
    meta, batch = with_advantages(
        meta,
        hyper,
        data,
        inputs,
        counted,
        extra,
        network=network,
        trials_per_chunk=config.trials_per_chunk,
        explore_episodes=config.explore_episodes,
    )
    return key, meta, batch


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
    estimates = partial(trial_estimates, discount=hyper.discount, lambda_=hyper.gae_lambda)
    advantage, returns = jax.vmap(estimates)(earned, v)
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


def task_results(meta: Meta, batch: Batch, recorded: Trajectory, config: Config) -> TaskResults:
    """The results of each task, for a curriculum: of a batch of trials ``[M N, T]`` and ``meta`` after `with_advantages`.

    As in the values, rewards of the first ``config.explore_episodes`` count 0, except in ``episodes``.
    """
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

    reward = jnp.where(index < config.explore_episodes, 0.0, reward)
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
