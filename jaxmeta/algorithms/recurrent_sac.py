r"""Recurrent soft actor-critic (SAC): continuous actions on memories that last through all episodes of a trial, learned from old trials.

The learner learns a task in its memory, as in `rl2`. Ni et al. 2022, "Recurrent model-free RL can be a strong baseline for many
POMDPs", train it by soft actor-critic (Haarnoja et al. 2018, "Soft actor-critic algorithms and applications"): the policy and the
two action values have a recurrent network each, which reads observations, previous actions and rewards from the first step of a
trial on. The policy is a Gaussian that is squashed into the bounds of actions. With $h_t$ for what came before,

$$y_t = r_t + γ (\min_i \bar Q_i(h_{t+1}, a') - α \log π(a'|h_{t+1})), \quad y_{T-1} = r_{T-1}, \quad a' \sim π(h_{t+1}),$$

and `learners.soft_actor_critic` has the losses of critic, policy and temperature. As in `rl2`, values cross the ends of episodes,
by time limit or not, and a trial ends with its last step. The target network follows the critic after every gradient step.

The algorithm's state holds the last trials. A meta-update acts in new tasks, adds their trials to the buffer
(`learners.buffers`), and then takes ``Config(gradient_steps=...)`` steps, each on trials drawn from the whole buffer. Trials are
replayed from their first step with an empty memory, so no stored state goes stale.

With ``Config(filtered_cloning=True)`` the policy also takes after old actions that were better than its own. On the half circle it
then needs as many steps to 0.9 of the way and ends at 0.94 of it, not at 0.90 (three seeds).

Use it for an agent with continuous actions that explores and remembers within a trial, where environment steps are dear. It needs
fewer of them than `rl2` and takes more computation for each. It needs flashbax: ``pip install "jaxmeta[replay]"``.

```python
import jax
from jaxmeta import evaluation, tasks
from jaxmeta.algorithms.recurrent_sac import Config, Hyper, recurrent_sac
from jaxmeta.networks.recurrent import gru
from jaxmeta.runs import training

family = tasks.make("half_circle", horizon=5)
config = Config(num_episodes=2, gradient_steps=4, replay_trials=64, replayed_trials=8)
algorithm = recurrent_sac(family, config, Hyper(learning_rate=1e-3), memory=gru(16))
run = training.train(algorithm, family, training.Config(meta_updates=4, num_tasks=8))

held_out = tasks.sample_tasks(jax.random.key(1), family, 20, split="test")
how = dict(learner=algorithm.learner, env=family.env, num_steps=10)
trials = evaluation.trials(jax.random.key(2), run.state.meta, held_out, **how)
print(evaluation.episode_returns(trials, 2).mean(axis=0))
```
"""

import dataclasses
import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, learners
from jaxmeta.estimators.returns import discounted_returns
from jaxmeta.estimators.units import running_reward_scale
from jaxmeta.learners import soft_actor_critic, trial_replay
from jaxmeta.learners.buffers import Buffer, check_sizes, item_buffer, predicted_bytes
from jaxmeta.learners.recurrent import (
    MEMORY_SETTINGS,
    Meta,
    RecurrentLearner,
    annealed,
    counted_steps,
    given_network,
    memory_of,
    moved_value_scale,
    step_metrics,
    trial_learner,
    values_to_come,
)
from jaxmeta.learners.soft_actor_critic import Learned, State
from jaxmeta.learners.trial_replay import Batch
from jaxmeta.meta_updates.outer_loop import Optimizer, as_arrays, outer_optimizer
from jaxmeta.networks import recurrent
from jaxmeta.networks.actor_critic import Inputs
from jaxmeta.networks.distributions import TanhGaussian
from jaxmeta.networks.recurrent import Memory
from jaxmeta.networks.soft_actor_critic import (
    RecurrentSoftActorCritic,
    check_bounded,
    check_soft_network_fits,
    in_half_widths,
    recurrent_soft_actor_critic,
    unit_policy,
)
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.keys import quick
from jaxmeta.types import Learner, MetaAlgorithm, Params, Task

NETWORK_SETTINGS = (*MEMORY_SETTINGS, "encoder_sizes", "hidden_sizes")
"""The settings that name a network."""


@dataclasses.dataclass(frozen=True)
class Config(learners.recurrent.TrialConfig):
    """Settings of recurrent SAC that are fixed when the program is compiled: sizes, counts and choices."""

    hidden_sizes: tuple[int, ...] = (64,)
    """Widths of the layers between a memory and the actions, or the values."""
    memory: Literal["gru", "lstm", "linear", "transformer", "none"] = "gru"
    """The recurrent network of the policy, and of the values; `none` is a control without memory."""
    memory_size: int = 64
    """Width of each memory."""
    encoder_sizes: tuple[int, ...] = ()
    """Widths of tanh layers before each memory, as in `rl2`."""
    precision: Literal["full", "bfloat16"] = "full"
    """The precision of the recurrent networks' matrix products, as in `rl2`."""
    replay_trials: int = 4096
    """The last trials that are kept."""
    replayed_trials: int = 16
    """Kept trials that a gradient step learns from."""
    gradient_steps: int = 32
    """Gradient steps in a meta-update."""
    acts: Literal["sample", "mode"] = "mode"
    """Outside of training the learner draws its actions, or takes the middle of their distribution. In training it draws them."""
    filtered_cloning: bool = False
    """Whether the policy also takes after old actions that were better than its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        recurrent.check(self.memory, self.memory_size, self.precision)
        for size in self.encoder_sizes:
            checks.at_least("encoder_sizes", size, 1)
        checks.at_least("gradient_steps", self.gradient_steps, 1)
        check_sizes(self.replay_trials, self.replayed_trials)


class Hyper(NamedTuple):
    """Numbers of recurrent SAC, each a float or an array ``[]``; a run can sweep or schedule them."""

    discount: float = 0.99
    """γ."""
    learning_rate: float = 1e-3
    """Step size of the optimiser, a gradient step, for all parts."""
    anneal_updates: float = math.inf
    """Meta-updates in which the step size falls to zero in a straight line; infinite keeps it."""
    max_grad_norm: float = 10.0
    """Clips the norm of the gradient of all parameters together."""
    target_rate: float = 0.05
    """Share of the way that the target network moves to the critic after a gradient step. Layer normalisation in the critic allows a
    larger one than the usual 0.005."""
    first_temperature: float = 0.05
    """α at first, in units of the returns' spread."""
    target_entropy: float = -1.0
    """Entropy that α is learned to keep, in nats for each entry of an action in half widths. 0.69 is uniform."""
    cloning_cost: float = 0.1
    """Weight of filtered cloning in the policy's loss."""


@checks.constructor(
    target_rate=(0.0, 1.0),
    first_temperature=(1e-12, 1e6),
    target_entropy=(-100.0, 1.0),
    cloning_cost=(0.0, 1e6),
)
def recurrent_sac(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    memory: Memory | None = None,
    network: RecurrentSoftActorCritic | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """Recurrent soft actor-critic on a family of tasks with continuous actions.

    A trial with a number in its counted steps that is not finite is left out of the buffer and counted in ``skipped_tasks``; a
    meta-update without a good new trial changes nothing. On several devices the tasks are shared for acting, as in `rl2`; each
    device holds the whole buffer.

    Args:
        family: The tasks' family; ``step`` is given its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different values can be vmapped.
        memory: The recurrent network, for example ``gru(64)``, of which the policy and the values have one each; None makes the
            one that ``config`` names.
        network: The policy and the values with their memories; None puts them on ``memory``.
        optimizer: ``learning_rate -> optax.GradientTransformation``.

    Raises:
        ImportError: flashbax is not installed.
        ValueError: the family's actions are not a ``Box`` of floats with bounds; a value of ``hyper`` is out of range; a setting
            has no effect beside the others; the buffer takes more memory than the device has; in ``step``, the number of trials
            is greater than ``config.replay_trials``.
    """
    if not config.filtered_cloning:
        checks.ignored(hyper, ["cloning_cost"], "with filtered_cloning=False")
    network = network_of(family, config, memory, network)
    parts = _learner_of(family, config, network)
    buffer = buffer_of(family, config, network, parts)

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        meta = first_meta(key, network=network, hyper=hyper)
        optimizer_state = outer_optimizer(optimizer, meta.hyper).init(meta.params)
        # A copy: a state that is overwritten in place must not hold an array twice.
        target = jax.tree.map(jnp.copy, meta.params["critic"])
        return State(meta, optimizer_state, jnp.zeros((), jnp.int32), target, buffer.init())

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        act_key, learn_key = jax.random.split(quick(key))
        hyper = annealed(state.meta.hyper, state.num_updates)
        recorded = parts.trials(act_key, state.meta, tasks)
        data, counted = counted_steps(recorded, config.num_episodes)
        meta = with_scales(state.meta, data.reward, counted)
        make = partial(trial_replay.batch_of, meta, parts=parts)
        items = trial_replay.kept(data, counted)
        replay = buffer.add(state.replay, items, jnp.any(counted, axis=1))
        learned, reports, applied = soft_actor_critic.learn_from_replay(
            learn_key,
            Learned(meta.params, state.target, state.optimizer),
            lambda key: trial_replay.drawn(key, replay, buffer, make),
            losses=partial(losses, meta=meta, network=network, family=family, config=config),
            optimizer=outer_optimizer(optimizer, hyper),
            target_rate=hyper.target_rate,
            num_steps=config.gradient_steps,
            apply=jnp.any(counted),
        )
        metrics = step_metrics(reports, applied, recorded, counted, config.num_episodes)
        metrics["replay_trials"] = buffer.size(replay)
        done = state.num_updates + 1 - metrics["skipped_updates"]
        params, target, optimizer_state = learned
        meta = meta._replace(params=params)
        return State(meta, optimizer_state, done, target, replay), metrics

    return MetaAlgorithm(init, step, _evaluated(family, config, network, parts), parts.lifetime)


def network_of(
    family: TaskFamily,
    config: Config,
    memory: Memory | None = None,
    network: RecurrentSoftActorCritic | None = None,
) -> RecurrentSoftActorCritic:
    """``network``, or a policy and action values on ``memory``, or on the memory that ``config`` names.

    Raises:
        ValueError: the family's actions are not a ``Box`` of floats with bounds; ``memory`` or a setting of ``config`` has no
            effect beside ``network``.
    """
    check_bounded("recurrent_sac", family)
    if network is not None:
        how: dict[str, Any] = dict(settings=NETWORK_SETTINGS, check_fits=check_soft_network_fits)
        return given_network(family, config, memory, network, **how)
    return recurrent_soft_actor_critic(
        family,
        memory_of(family, config, memory),
        encoder_sizes=config.encoder_sizes,
        hidden_sizes=config.hidden_sizes,
    )


def replay_bytes(
    family: TaskFamily,
    config: Config,
    *,
    memory: Memory | None = None,
    network: RecurrentSoftActorCritic | None = None,
) -> int:
    """The bytes that the buffer of ``config.replay_trials`` trials takes, before it is made."""
    network = network_of(family, config, memory, network)
    parts = _learner_of(family, config, network)
    item = trial_replay.kept_trial(family, parts, partial(first_meta, network=network))
    return predicted_bytes(item, config.replay_trials)


def buffer_of(
    family: TaskFamily, config: Config, network: RecurrentSoftActorCritic, parts: RecurrentLearner
) -> Buffer:
    """The buffer of the last ``config.replay_trials`` trials."""
    return item_buffer(
        trial_replay.kept_trial(family, parts, partial(first_meta, network=network)),
        config.replay_trials,
        config.replayed_trials,
        name="replay_trials",
    )


def first_meta(
    key: jax.Array, *, network: RecurrentSoftActorCritic, hyper: Hyper = Hyper()
) -> Meta:
    """The meta of a run before its first meta-update; ``params["log_temperature"]`` is ``[]``."""
    hyper = as_arrays(hyper)
    params = network.init(key) | {"log_temperature": jnp.log(hyper.first_temperature)}
    return Meta(params, jnp.zeros(2), jnp.zeros(()), hyper)


def with_scales(meta: Meta, reward: jax.Array, counted: jax.Array) -> Meta:
    """``meta`` with the running scales of returns and rewards moved by new trials' ``reward [B, T]``."""
    reward = jnp.where(counted, reward, 0.0)
    never = jnp.zeros_like(reward)
    discount = jnp.full_like(reward, meta.hyper.discount)
    returns = jax.vmap(discounted_returns)(reward, discount, v_next=never, last=never)
    return meta._replace(
        value_scale=moved_value_scale(meta.value_scale, returns, counted),
        reward_scale=running_reward_scale(meta.reward_scale, reward, counted),
    )


def losses(
    params: Params,
    target: Params,
    key: jax.Array,
    batch: Batch,
    *,
    meta: Meta,
    network: RecurrentSoftActorCritic,
    family: TaskFamily,
    config: Config,
) -> tuple[jax.Array, dict]:
    """``(loss [], report)`` of a batch of trials: of the critic, the policy and the temperature, each of which moves its own part.

    The same draw of the policy at step t is the next action of step t - 1 and what the policy is judged by at step t.
    """
    mean, spread = meta.value_scale
    temperature = jnp.exp(params["log_temperature"])
    features = jax.vmap(network.features, (None, 0))
    values = jax.vmap(network.values, (None, 0, 0), out_axes=1)
    policy = unit_policy(jax.vmap(network.policies, (None, 0))(params["actor"], batch.inputs))
    action, log_prob = policy.sample_and_log_prob(key)

    fixed, fixed_action, fixed_log_prob, alpha = jax.lax.stop_gradient(
        (params["critic"], action, log_prob, temperature)
    )
    q_next = values(target, features(target, batch.inputs), fixed_action)
    v = mean + spread * soft_actor_critic.soft_value(q_next, fixed_log_prob, alpha)
    v_next = jax.vmap(values_to_come)(jnp.where(batch.counted, v, 0.0))
    discount = jnp.full_like(v, meta.hyper.discount)
    y = soft_actor_critic.soft_target(batch.reward, discount, v_next, meta.value_scale)

    known = features(params["critic"], batch.inputs)
    taken = in_half_widths(batch.action, family)
    q = values(params["critic"], known, taken)
    critic = soft_actor_critic.critic_loss(q, y, batch.counted)
    drawn = values(fixed, jax.lax.stop_gradient(known), action)
    actor = soft_actor_critic.actor_loss(log_prob, drawn, temperature, batch.counted)
    if config.filtered_cloning:
        told = policy.log_prob(taken)
        cloning = soft_actor_critic.cloning_loss(told, q, drawn, batch.counted)
        actor += meta.hyper.cloning_cost * cloning
    wanted = action.shape[-1] * meta.hyper.target_entropy
    entropy = -soft_actor_critic.mean_where(log_prob, batch.counted)
    total = critic + actor
    total += soft_actor_critic.temperature_loss(
        params["log_temperature"], log_prob, wanted, batch.counted
    )
    return total, {
        "value_loss": critic,
        "policy_loss": actor,
        "entropy": entropy,
        "temperature": temperature,
    }


def _evaluated(
    family: TaskFamily, config: Config, network: RecurrentSoftActorCritic, parts: RecurrentLearner
) -> Learner:
    """The learner as it acts outside of training."""
    if config.acts == "sample":
        return parts.learner
    return _learner_of(family, config, network, greedy=True).learner


def _learner_of(
    family: TaskFamily, config: Config, network: RecurrentSoftActorCritic, *, greedy: bool = False
) -> RecurrentLearner:
    def choose(meta: Meta, state: Any, inputs: Inputs) -> tuple[TanhGaussian, Any]:
        return network.step(meta.params, state, inputs)

    return trial_learner(family, config, network.initial, choose, greedy=greedy)
