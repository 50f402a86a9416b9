r"""DREAM: one policy explores to find out the task, and another policy exploits what the first found out.

Liu et al. 2021, "Decoupling exploration and exploitation for meta-reinforcement learning without sacrifices". A trial is an
episode of exploration and then episodes of exploitation. In training the tasks are known. Four networks learn at once:

1. the *bottleneck* f(task) keeps what exploitation needs: it is trained by the exploiter's loss, ``z = f(task) + 0.1 ε``, and
   ``max(|f|², 10)`` keeps it small against that noise;
2. the *exploiter*, a policy and a value of an episode and z. In half of the trials, and always at test time, z is what the
   decoder made of the exploration;
3. the *decoder* g(τ) reads the exploration and is trained to be near f, at every step: ``|g(τ_:t) - f(task)|²``;
4. the *explorer*, a policy and a value, whose reward at a step is the information gained by it,

$$r_t = |g(τ_{:t}) - f|² - |g(τ_{:t+1})- f|² - c,$$

whose sum is the gain of the whole exploration less its cost. The family's own rewards of that episode count nothing, but all networks see
them. τ_:t ends with the observation of step t; of the episode's last step its reward and action are read, and not where it led to.

Both policies learn by PPO from the newest trials, as `rl2` does; an episode's return ends with it. The paper has recurrent double
deep Q-networks with replay instead. The decoder learns by its own loss alone. While all explorations are alike, the decoder learns to
read no others, and the explorer is not paid for others. ``Config(decoder_reads="trial")`` shows the decoder more.

Use it where to explore does not pay within an episode, and tasks can be told from each other in training. A task is told as its
`TaskFamily.task_vector`.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.dream import Config, Hyper, dream

family = tasks.make("bus", world="map")
algorithm = dream(family, Config(memory_size=16), Hyper(learning_rate=2e-3))
state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
for key in jax.random.split(jax.random.key(1), 3):
    tasks_key, step_key = jax.random.split(key)
    drawn = tasks.sample_tasks(tasks_key, family, 8, split="train")
    state, metrics = step(step_key, state, drawn)
print(metrics["return/before"], metrics["return/after"], metrics["information_gain"])
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
from jaxmeta.estimators.streams import count, unless
from jaxmeta.estimators.units import in_units, running_reward_scale
from jaxmeta.learners import trial_gradients
from jaxmeta.learners.minibatches import in_chunks, learn_in_epochs
from jaxmeta.learners.recurrent import (
    RecurrentLearner,
    TrialMemory,
    annealed,
    counted_steps,
    memory_of,
    moved_value_scale,
    step_metrics,
    trial_estimates,
    trial_learner,
)
from jaxmeta.meta_updates.gradients import State
from jaxmeta.meta_updates.outer_loop import (
    PARAMS,
    Optimizer,
    as_arrays,
    first_state,
    outer_optimizer,
)
from jaxmeta.networks import recurrent
from jaxmeta.networks.action_values import ActionValues, recurrent_outputs
from jaxmeta.networks.actor_critic import ActorCritic, Inputs, recurrent_actor_critic
from jaxmeta.networks.distributions import Distribution
from jaxmeta.networks.mlp import Network, mlp
from jaxmeta.networks.recurrent import Memory
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.keys import quick
from jaxmeta.types import MetaAlgorithm, Params, Task, Trajectory


@dataclasses.dataclass(frozen=True)
class Config(learners.recurrent.EpochConfig):
    """Settings of DREAM that are fixed when the program is compiled: sizes, counts and choices."""

    num_episodes: int = 2
    """Episodes in a trial (E), at least 2: the first explores."""
    hidden_sizes: tuple[int, ...] = (64,)
    """Widths of the layers between each memory and its outputs."""
    memory: Literal["gru", "lstm", "linear", "transformer", "none"] = "gru"
    """The recurrent network of the explorer, of the decoder and of the exploiter: one each."""
    memory_size: int = 64
    """Width of each memory."""
    encoder_sizes: tuple[int, ...] = (64,)
    """Widths of tanh layers before each memory, as in `rl2`."""
    precision: Literal["full", "bfloat16"] = "full"
    """The precision of the recurrent networks' matrix products, as in `rl2`."""
    latent_size: int = 16
    """Entries of z."""
    bottleneck_sizes: tuple[int, ...] = (64,)
    """Widths of the bottleneck's tanh layers."""
    decoder_reads: Literal["exploration", "trial"] = "exploration"
    """The steps at which the decoder learns: the exploration's alone, as published, or the whole trial's. An exploiter that is not told
    the task tries what the exploration left open. With ``"trial"`` the decoder learns from these tries, too. It can then read an
    exploration that the explorer has hardly ever made, and the explorer is paid for it. Trials with a told exploiter are read as
    before."""
    bottleneck_scale: float = 1.0
    """Factor of the initial weights of the bottleneck's last layer. The less it is, the nearer codes begin to each other: the exploiter
    then draws those apart that it has a use for, and the explorer is paid later."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("num_episodes", self.num_episodes, 2)
        checks.ignored(self, ["remembers"], "in DREAM, whose exploiter remembers z")
        recurrent.check(self.memory, self.memory_size, self.precision)
        checks.at_least("latent_size", self.latent_size, 1)
        checks.choice("decoder_reads", self.decoder_reads, ("exploration", "trial"))
        checks.between("bottleneck_scale", self.bottleneck_scale, 0.0, 1e3)
        for name in ("encoder_sizes", "bottleneck_sizes"):
            for size in getattr(self, name):
                checks.at_least(name, size, 1)


class Hyper(NamedTuple):
    """Numbers of DREAM, each a float or an array ``[]``; a run can sweep or schedule them."""

    discount: float = 0.99
    """γ, of both policies."""
    gae_lambda: float = 0.95
    """λ of both policies' advantages."""
    learning_rate: float = 1e-3
    """Step size of the optimiser, a minibatch."""
    anneal_updates: float = math.inf
    """Meta-updates in which the step size and the weight of the entropy fall to zero in a straight line;
    infinite keeps them."""
    max_grad_norm: float = 10.0
    """Clips the norm of the gradient of all parameters together."""
    clip: float = 0.2
    """ε of PPO."""
    entropy_cost: float = 0.02
    """Weight of the exploiter's entropy, in nats a step."""
    exploration_entropy: float = 0.5
    """Weight of the explorer's entropy, in units of `entropy_cost`."""
    value_cost: float = 0.5
    """Weight of the squared errors of values, in units of the spread of returns."""
    exploration_cost: float = 0.0
    """c: the cost of a step of exploration, in units of the latent's square. The paper's is 0.1. Where an action ends an episode, as on
    the bus worlds, PPO then ends the exploration at once, before the decoder has learned that anything is to be gained."""
    noise: float = 0.1
    """Standard deviation of what is added to the bottleneck's output in training."""
    free_norm: float = 10.0
    """The square of the bottleneck's output costs nothing up to here."""
    bottleneck_cost: float = 1.0
    """Weight of the bottleneck's size."""
    decoder_cost: float = 1.0
    """Weight of the decoder's error."""


class Meta(NamedTuple):
    """The part of the state that the learner reads. A scale of 0 is not known yet."""

    params: Params
    """Parameters of the four networks."""
    value_scale: jax.Array
    """``[2]``, running mean and standard deviation of the exploiter's returns to come."""
    gain_scale: jax.Array
    """``[2]``, the same of the explorer's."""
    reward_scale: jax.Array
    """``[]``, running mean of the batches' largest rewards."""
    told: jax.Array
    """``[]``, bool: whether the exploiter is given `latent` instead of what the decoder says; only in training."""
    latent: jax.Array
    """``[Z]``, the bottleneck's output of the task, with its noise; zeros outside of training."""
    hyper: Any
    """The algorithm's Hyper."""


class Acting(NamedTuple):
    """The learner's memory of a trial: the states of its networks."""

    episode: jax.Array
    """``[]``, int32: the number of the episode."""
    explorer: Any
    """The explorer's state."""
    decoder: Any
    """The decoder's state."""
    exploiter: Any
    """The exploiter's state."""
    z: jax.Array
    """``[Z]``, what the decoder made of the exploration; zeros in it."""


class Shown(NamedTuple):
    """The tasks of the trials as training knows them, ``[B]``."""

    task: jax.Array
    """``[B, P]``, the tasks as vectors."""
    told: jax.Array
    """bool ``[B]``: whether the exploiter was given the bottleneck's output."""
    noise: jax.Array
    """``[B, Z]``, the noise on it."""


class Batch(NamedTuple):
    """Trials to learn from, ``[B, T]``, cut into the steps of both policies."""

    explorer: trial_gradients.Batch
    """The exploration, ``[B, H + 1]``: its first H steps or fewer count, and the decoder reads one more."""
    exploiter: trial_gradients.Batch
    """The other episodes, ``[B, T - H]``. Their inputs are without z."""
    begins: jax.Array
    """bool ``[B, T - H]``: first steps of the exploiter's episodes."""
    decoder: Inputs
    """``[B, L]``, the decoder's inputs, which may be of longer trials than the explorer's."""
    read: jax.Array
    """bool ``[B, L]``: the steps at which the decoder learns."""
    z: jax.Array
    """``[B, Z]``, what the decoder made of the exploration when the trial was new."""
    shown: Shown
    """The tasks as training knows them."""
    counted: jax.Array
    """bool ``[B, T]``: the steps to learn from."""


class Episodes(NamedTuple):
    """Masks of the steps of trials, bool ``[B, T]`` each."""

    explores: jax.Array
    """Steps of the first episode."""
    exploits: jax.Array
    """Steps of the others."""
    begins: jax.Array
    """First steps of episodes."""
    read: jax.Array
    """The first step after the exploration, at which the decoder has read all of it."""


class Networks(NamedTuple):
    """The four networks."""

    bottleneck: Network
    """f."""
    decoder: ActionValues
    """g: ``num_outputs`` is the latent's size."""
    explorer: ActorCritic
    """The policy and the value of exploration."""
    exploiter: ActorCritic
    """The policy and the value of exploitation; reads z beside its inputs."""

    def init(self, key: jax.Array) -> Params:
        """New parameters, by the networks' names."""
        keys = jax.random.split(key, len(self))
        return {
            name: getattr(self, name).init(k) for name, k in zip(self._fields, keys, strict=True)
        }


@checks.constructor(
    exploration_entropy=(0.0, 1e6),
    exploration_cost=(0.0, 1e6),
    noise=(0.0, 1e6),
    free_norm=(0.0, 1e6),
    bottleneck_cost=(0.0, 1e6),
    decoder_cost=(0.0, 1e6),
)
def dream(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    memory: Memory | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """DREAM on a family of tasks.

    ``return/before`` is of the exploration and ``return/after`` of the last episode; in training half of the trials
    are told their tasks there, and ``return/told`` is the sum of these trials' episodes of exploitation. ``information_gain`` is the mean over trials of the whole
    exploration's, without the steps' cost. A trial with a number that is not finite is left out as in `rl2`.

    Args:
        family: The tasks' family; ``step`` is given its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different values can be
            vmapped.
        memory: The recurrent network of each of explorer, decoder and exploiter; None makes those that ``config`` names.
        optimizer: ``learning_rate -> optax.GradientTransformation``.

    Raises:
        ValueError: a value of ``hyper`` is out of range; a setting has no effect beside the others; in ``step``, the number
            of trials is no multiple of ``config.num_minibatches``.
    """
    networks = networks_of(family, config, memory)
    parts = _learner_of(family, config, networks)

    def init(key: jax.Array, hyper: Any = hyper) -> State:
        return first_state(first_meta(key, networks, config, hyper), PARAMS, optimizer)

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        act_key, learn_key = jax.random.split(quick(key))
        hyper = annealed(state.meta.hyper, state.num_updates)
        recorded, shown = trials(
            act_key, state.meta, tasks, family=family, parts=parts, networks=networks
        )
        meta, batch, metrics = prepared(
            state.meta, hyper, recorded, shown, parts=parts, networks=networks, config=config
        )
        learned, reports, applied = learn_in_epochs(
            learn_key,
            (meta.params, state.optimizer),
            batch,
            hyper,
            losses=partial(all_losses, networks=networks),
            of_whole=whole_minibatch,
            optimizer=outer_optimizer(optimizer, hyper),
            config=config,
        )
        metrics |= step_metrics(
            reports, applied, recorded, batch.counted, config.num_episodes, explore_episodes=1
        )
        params, optimizer_state = learned
        done = state.num_updates + 1 - metrics["skipped_updates"]
        return State(meta._replace(params=params), optimizer_state, done), metrics

    return MetaAlgorithm(init, step, parts.learner, parts.lifetime)


def networks_of(family: TaskFamily, config: Config, memory: Memory | None = None) -> Networks:
    """The four networks that ``config`` describes."""
    memory = memory_of(family, config, memory)
    sizes: dict[str, Any] = dict(
        encoder_sizes=config.encoder_sizes, hidden_sizes=config.hidden_sizes
    )
    task = jax.eval_shape(lambda key: family.task_vector(family.train(key)), jax.random.key(0))
    return Networks(
        bottleneck=mlp(
            task.size, config.bottleneck_sizes, config.latent_size, config.bottleneck_scale
        ),
        decoder=recurrent_outputs(family, memory, config.latent_size, **sizes),
        explorer=recurrent_actor_critic(family, memory, **sizes),
        exploiter=recurrent_actor_critic(family, memory, more_inputs=config.latent_size, **sizes),
    )


def first_meta(key: jax.Array, networks: Networks, config: Config, hyper: Hyper) -> Meta:
    """The meta of a run before its first meta-update."""
    unknown, nothing = jnp.zeros(2), jnp.zeros(config.latent_size)
    told = jnp.zeros((), bool)
    params = networks.init(key)
    return Meta(params, unknown, unknown, jnp.zeros(()), told, nothing, as_arrays(hyper))


def episodes(inputs: Inputs, counted: jax.Array) -> Episodes:
    """Which steps of trials ``[B, T]`` belong to which episode."""
    begins = (inputs.time[..., 0] > 0) & counted
    number = jnp.cumsum(begins, axis=1) - 1
    return Episodes(
        explores=counted & (number == 0),
        exploits=counted & (number > 0),
        begins=begins,
        read=begins & (number == 1),
    )


def information_gain(distance: jax.Array, explores: jax.Array) -> jax.Array:
    """The reward of exploration without its cost, ``[B, L]``: by how much each step brings the decoder nearer to the bottleneck.

    Args:
        distance: ``[B, L]``, the square of the decoder's error before each step.
        explores: bool ``[B, L]``: steps of exploration; all others gain 0. A step follows the last of them.
    """
    after = jnp.concatenate([distance[:, 1:], distance[:, -1:]], axis=1)
    return jnp.where(explores, distance - after, 0.0)


def with_latent(inputs: Inputs, begins: jax.Array, z: jax.Array) -> Inputs:
    """The exploiter's inputs: with ``z [..., Z]``, and without a past where an episode ``begins``, bool ``[...]``."""
    return Inputs(
        obs=inputs.obs,
        past=jnp.where(begins[..., None], 0.0, inputs.past),
        time=jnp.concatenate([inputs.time, z], axis=-1),
        reset=begins,
    )


def prepared(
    meta: Meta,
    hyper: Any,
    recorded: Trajectory,
    shown: Shown,
    *,
    parts: RecurrentLearner,
    networks: Networks,
    config: Config,
) -> tuple[Meta, Batch, dict[str, jax.Array]]:
    """``(meta, batch, metrics)``: ``meta`` with its running scales moved, and what to learn from trials ``[B, T]``."""
    batch = cut(meta, recorded, shown, parts=parts, networks=networks, config=config)
    in_chunk = dict(trials_per_chunk=config.trials_per_chunk)
    explored, exploited = batch.explorer, batch.exploiter

    def read(inputs: Inputs) -> jax.Array:
        return networks.decoder.unroll(meta.params["decoder"], networks.decoder.initial(), inputs)

    f = networks.bottleneck.apply(meta.params["bottleneck"], shown.task)
    g = in_chunks(read, explored.inputs, **in_chunk)
    distance = jnp.sum((g - f[:, None]) ** 2, axis=-1)
    gain = information_gain(distance, explored.counted)
    last = jnp.sum(explored.counted, axis=1)
    batch = batch._replace(z=jax.vmap(lambda g, last: g[last])(g, last))

    def of(name: str, inputs: Inputs, part: trial_gradients.Batch) -> jax.Array:
        unroll = getattr(networks, name).unroll
        return in_chunks(
            lambda trial: unroll(meta.params[name], *trial)[1],
            (part.data.memory.state, inputs),
            **in_chunk,
        )

    v = of("explorer", explored.inputs, explored)
    reward = jnp.where(explored.counted, gain - hyper.exploration_cost, 0.0)
    never = jnp.zeros_like(explored.counted)
    gain_scale, explored = with_advantages(meta.gain_scale, reward, v, never, explored, hyper)
    v = of("exploiter", with_latent(exploited.inputs, batch.begins, _told(f, batch)), exploited)
    reward = jnp.where(exploited.counted, exploited.data.reward, 0.0)
    ends = exploited.data.last
    value_scale, exploited = with_advantages(meta.value_scale, reward, v, ends, exploited, hyper)
    good = jnp.any(batch.counted, axis=1)
    told = good & shown.told
    metrics = {
        "information_gain": jnp.sum(gain) / count(good, gain),
        "return/told": jnp.sum(jnp.where(told[:, None], reward, 0.0)) / count(told, reward),
    }
    rewards = jnp.where(batch.counted, recorded.reward, 0.0)
    meta = meta._replace(
        gain_scale=gain_scale,
        value_scale=value_scale,
        reward_scale=running_reward_scale(meta.reward_scale, rewards, batch.counted),
    )
    return meta, batch._replace(explorer=explored, exploiter=exploited), metrics


def cut(
    meta: Meta,
    recorded: Trajectory,
    shown: Shown,
    *,
    parts: RecurrentLearner,
    networks: Networks,
    config: Config,
) -> Batch:
    """Trials ``[B, T]`` cut into the steps of both policies; advantages, targets and z are zeros."""
    data, counted = counted_steps(recorded, config.num_episodes)
    known = jnp.all(jnp.isfinite(shown.task), axis=1)
    counted = counted & known[:, None]
    good = jnp.any(counted, axis=1)[:, None]
    shown = shown._replace(task=jnp.where(good, shown.task, 0.0))
    inputs = jax.vmap(parts.inputs, in_axes=(None, 0))(meta, data)
    of = episodes(inputs, counted)
    unused: Any = dict.fromkeys(("timestep", "discount", "next_obs", "memory"), ())
    steps = data._replace(**unused), inputs
    num_trials, num_steps = counted.shape
    horizon = num_steps // config.num_episodes
    start = jnp.sum(of.explores, axis=1)

    def early(x: Any) -> Any:
        return jax.tree.map(lambda x: x[:, : horizon + 1], x)

    def late(x: Any) -> Any:
        def of_trial(x: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, num_steps - horizon)

        return jax.tree.map(lambda x: jax.vmap(of_trial)(x, start), x)

    def part(steps: tuple, counted: jax.Array, network: ActorCritic) -> trial_gradients.Batch:
        data, inputs = steps
        state = jax.tree.map(lambda x: jnp.tile(x, (num_trials, *[1] * x.ndim)), network.initial())
        data = data._replace(memory=TrialMemory(state, jnp.zeros(num_trials, jnp.int32)))
        nothing = jnp.zeros_like(data.reward)
        return trial_gradients.Batch(data, inputs, nothing, nothing, counted)

    # A told exploiter acts by the task: the decoder would read the task from its actions.
    tries = of.exploits & ~shown.told[:, None]
    decoder, read = inputs, of.explores | of.read | tries
    if config.decoder_reads == "exploration":
        decoder, read = early((inputs, of.explores | of.read))
    return Batch(
        explorer=part(early(steps), early(of.explores), networks.explorer),
        exploiter=part(late(steps), late(of.exploits), networks.exploiter),
        begins=late(of.begins & of.exploits),
        decoder=decoder,
        read=read,
        z=jnp.zeros_like(shown.noise),
        shown=shown,
        counted=counted,
    )


def with_advantages(
    scale: jax.Array,
    reward: jax.Array,
    v: jax.Array,
    ends: jax.Array,
    part: trial_gradients.Batch,
    hyper: Any,
) -> tuple[jax.Array, trial_gradients.Batch]:
    """The running scale of a policy's returns moved, and its steps with advantages and targets.

    Args:
        scale: ``[2]``, mean and spread of returns, the units of ``v``.
        reward: ``[B, L]``, what the policy is paid, not in units.
        v: ``[B, L]``, the policy's values, in units.
        ends: bool ``[B, L]``: steps with which a return ends, beside the last counted one.
        part: The steps.
        hyper: Its ``discount`` and ``gae_lambda``.
    """
    mean, spread = scale
    v = jnp.where(part.counted, mean + spread * v, 0.0)
    discount = hyper.discount * unless(ends, v)

    def estimates(reward: jax.Array, v: jax.Array, discount: jax.Array) -> tuple:
        return trial_estimates(reward, v, discount=discount, lambda_=hyper.gae_lambda)

    advantage, returns = jax.vmap(estimates)(reward, v, discount)
    mean, spread = scale = moved_value_scale(scale, returns, part.counted)
    advantage, target = in_units(advantage, spread), in_units(returns - mean, spread)
    return scale, part._replace(advantage=advantage, target=target)


class Whole(NamedTuple):
    """Numbers of a whole minibatch that the losses of its trials need."""

    explorer: trial_gradients.Whole
    """Of the steps of exploration."""
    exploiter: trial_gradients.Whole
    """Of the other steps."""
    read: jax.Array
    """``[]``, the steps at which the decoder learns; at least 1."""
    trials: jax.Array
    """``[]``, the trials with a counted step; at least 1."""


def whole_minibatch(batch: Batch) -> Whole:
    """The numbers of a minibatch ``[B, T]`` that the losses of its trials need."""
    return Whole(
        explorer=trial_gradients.whole_minibatch(batch.explorer, normalize=True),
        exploiter=trial_gradients.whole_minibatch(batch.exploiter, normalize=True),
        read=count(batch.read, batch.z),
        trials=count(jnp.any(batch.counted, axis=1), batch.z),
    )


def all_losses(
    params: Params, keys: jax.Array, batch: Batch, hyper: Any, whole: Whole, *, networks: Networks
) -> tuple[jax.Array, dict]:
    """``(loss [], report)``, the share of some trials in a minibatch's: of both policies, the decoder and the bottleneck."""
    f = networks.bottleneck.apply(params["bottleneck"], batch.shown.task)
    inputs = with_latent(batch.exploiter.inputs, batch.begins, _told(f, batch))
    reports: dict[str, jax.Array] = {}
    loss = jnp.zeros(())
    wander = hyper._replace(entropy_cost=hyper.exploration_entropy * hyper.entropy_cost)
    for name, part, its_hyper in (
        ("explorer", batch.explorer, wander),
        ("exploiter", batch.exploiter._replace(inputs=inputs), hyper),
    ):
        network, numbers = getattr(networks, name), getattr(whole, name)
        how = dict(network=network, loss=trial_gradients.Loss(trial_gradients.ppo))
        its_loss, report = trial_gradients.minibatch_loss(
            params[name], keys, part, its_hyper, numbers, **how
        )
        loss = loss + its_loss
        reports |= {f"{key}/{name}": x for key, x in report.items()}
    decoder = decoder_error(params, jax.lax.stop_gradient(f), batch, whole, networks=networks)
    square, good = jnp.sum(f**2, axis=-1), jnp.any(batch.counted, axis=1)
    size = jnp.sum(jnp.where(good, jnp.maximum(square, hyper.free_norm), 0.0)) / whole.trials
    reports["decoder_loss"] = decoder
    reports["bottleneck"] = jnp.sum(jnp.where(good, square, 0.0)) / whole.trials
    return loss + hyper.decoder_cost * decoder + hyper.bottleneck_cost * size, reports


def decoder_error(
    params: Params, f: jax.Array, batch: Batch, whole: Whole, *, networks: Networks
) -> jax.Array:
    """Some trials' share of the decoder's mean squared distance from ``f [B, Z]`` in a minibatch, ``[]``."""
    unroll = jax.vmap(networks.decoder.unroll, in_axes=(None, None, 0))
    g = unroll(params["decoder"], networks.decoder.initial(), batch.decoder)
    distance = jnp.sum((g - f[:, None]) ** 2, axis=-1)
    return jnp.sum(jnp.where(batch.read, distance, 0.0)) / whole.read


def _told(f: jax.Array, batch: Batch) -> jax.Array:
    """z of each step of exploitation ``[B, T - H, Z]``: the bottleneck's ``f [B, Z]`` with its noise, or the decoder's."""
    z = jnp.where(batch.shown.told[:, None], f + batch.shown.noise, batch.z)
    return jnp.broadcast_to(z[:, None], (*batch.begins.shape, z.shape[-1]))


def trials(
    key: jax.Array,
    meta: Meta,
    tasks: Task,
    *,
    family: TaskFamily,
    parts: RecurrentLearner,
    networks: Networks,
) -> tuple[Trajectory, Shown]:
    """Training's trials of tasks ``[M]``, ``[M N, T]``, and what is known of them: the exploiter is told a half of the tasks."""
    vectors = jax.vmap(family.task_vector)(tasks)
    scale = meta.hyper.noise

    def of_task(key: jax.Array, task: Task, vector: jax.Array) -> tuple[Trajectory, Shown]:
        coin_key, noise_key, key = jax.random.split(key, 3)
        f = networks.bottleneck.apply(meta.params["bottleneck"], vector)
        noise = scale * jax.random.normal(noise_key, f.shape)
        told = jax.random.bernoulli(coin_key)
        mine = meta._replace(told=told, latent=f + noise)
        data = parts.trials(key, mine, jax.tree.map(lambda x: x[None], task))
        shown = Shown(vector, told, noise)
        return data, jax.tree.map(lambda x: jnp.tile(x, (len(data.reward), *[1] * x.ndim)), shown)

    found = jax.vmap(of_task)(jax.random.split(key, len(vectors)), tasks, vectors)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def _learner_of(family: TaskFamily, config: Config, networks: Networks) -> RecurrentLearner:
    def initial() -> Acting:
        return Acting(
            episode=jnp.zeros((), jnp.int32),
            explorer=networks.explorer.initial(),
            decoder=networks.decoder.initial(),
            exploiter=networks.exploiter.initial(),
            z=jnp.zeros(config.latent_size),
        )

    return trial_learner(family, config, initial, partial(_choose, networks), reads=Meta)


def _choose(
    networks: Networks, meta: Meta, state: Acting, inputs: Inputs
) -> tuple[Distribution, Acting]:
    """One step: by the explorer in the first episode, then by the exploiter."""
    params, begins = meta.params, inputs.time[0] > 0
    episode = jnp.where(inputs.reset, 0, state.episode + begins.astype(jnp.int32))
    explores, explorer = networks.explorer.step(params["explorer"], state.explorer, inputs)
    g, decoder = networks.decoder.step(params["decoder"], state.decoder, inputs)
    z = jnp.where(begins & (episode == 1), g, jnp.where(inputs.reset, 0.0, state.z))
    shown = with_latent(inputs, begins, jnp.where(meta.told, meta.latent, z))
    exploits, exploiter = networks.exploiter.step(params["exploiter"], state.exploiter, shown)
    policy = jax.tree.map(lambda x, y: jnp.where(episode == 0, x, y), explores, exploits)
    return policy, Acting(episode, explorer, decoder, exploiter, z)
