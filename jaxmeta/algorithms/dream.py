r"""DREAM: one policy explores to find out the task, and another policy exploits what the first found out.

Liu et al. 2021, "Decoupling exploration and exploitation for meta-reinforcement learning without sacrifices". A trial is an
episode of exploration and then episodes of exploitation. In training the tasks are known. Four networks learn at once:

1. the *bottleneck* f(task) keeps what exploitation needs: it is trained by the exploiter's values, ``z = f(task) + 0.1 ε``, and
   ``max(|f|², 10)`` keeps it small against that noise;
2. the *exploiter*, action values Q(history, z) of an episode. In half of the trials, and always at test time, z is what the
   decoder made of the exploration;
3. the *decoder* g(τ) reads the exploration and is trained to be near f, at every step: ``|g(τ_:t) - f(task)|²``;
4. the *explorer*, action values of the exploration, whose reward at a step is the information gained by it,

$$r_t = |g(τ_{:t}) - f|² - |g(τ_{:t+1})- f|² - c,$$

which is computed anew each time that a trial is learned from, and sums up to the gain of the whole exploration. The family's own
rewards of that episode count nothing, but all networks see them. τ_:t ends with the observation of step t; of the episode's last
step its reward and action are read, and not where it led to.

As in `recurrent_q`, values are learned by λ-returns from whole trials, new and old ones, with layer normalisation and without
target networks; an episode's return ends with it. The paper has double deep Q-networks with dueling heads instead. The decoder
learns by its own loss alone.

Use it where to explore does not pay within an episode, tasks can be told from each other in training, and actions are discrete. It
needs flashbax: ``pip install "jaxmeta[replay]"``. A task is told as its `TaskFamily.task_vector`. On the bus worlds (`tasks.bus`) it has
learned to find one bus so far, not all.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.dream import Config, Hyper, dream

family = tasks.make("bus", world="map")
algorithm = dream(family, Config(memory_size=16, replay_trials=256), Hyper(epsilon_updates=2))
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
from jaxmeta.estimators.streams import count
from jaxmeta.estimators.units import running_reward_scale
from jaxmeta.learners import action_values
from jaxmeta.learners.action_values import TRACES, unrolled
from jaxmeta.learners.buffers import check_sizes, item_buffer
from jaxmeta.learners.minibatches import learn_in_epochs
from jaxmeta.learners.recurrent import (
    RecurrentLearner,
    counted_steps,
    memory_of,
    moved_value_scale,
    step_metrics,
    trial_learner,
)
from jaxmeta.learners.trial_replay import State, kept, remembered
from jaxmeta.meta_updates.outer_loop import Optimizer, as_arrays, outer_optimizer
from jaxmeta.networks import recurrent
from jaxmeta.networks.action_values import (
    ActionValues,
    epsilon_greedy,
    num_discrete_actions,
    recurrent_outputs,
)
from jaxmeta.networks.actor_critic import Inputs
from jaxmeta.networks.distributions import Categorical
from jaxmeta.networks.mlp import Network, mlp
from jaxmeta.networks.recurrent import Memory
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.keys import quick
from jaxmeta.types import MetaAlgorithm, Params, Task, Trajectory

BOTTLENECK_SCALE = 1.6
"""Factor of the initial weights of the bottleneck's last layer. Codes begin as far from each other as they may stay, so that
what tells them apart is worth many steps of exploration."""


@dataclasses.dataclass(frozen=True)
class Config(learners.recurrent.EpochConfig):
    """Settings of DREAM that are fixed when the program is compiled: sizes, counts and choices."""

    num_episodes: int = 2
    """Episodes in a trial (E), at least 2: the first explores."""
    hidden_sizes: tuple[int, ...] = (64,)
    """Widths of the layers between each memory and its outputs, with layer normalisation before a ReLU."""
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
    trace: Literal["peng", "watkins"] = "peng"
    """As in `recurrent_q`."""
    replay_trials: int = 4096
    """The last trials that are kept."""
    replayed_trials: int = 32
    """Kept trials that a minibatch draws and learns from beside its new ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("num_episodes", self.num_episodes, 2)
        checks.ignored(self, ["remembers"], "in DREAM, whose exploiter remembers z")
        recurrent.check(self.memory, self.memory_size, self.precision)
        checks.at_least("latent_size", self.latent_size, 1)
        for name in ("encoder_sizes", "bottleneck_sizes"):
            for size in getattr(self, name):
                checks.at_least(name, size, 1)
        checks.choice("trace", self.trace, TRACES)
        check_sizes(self.replay_trials, self.replayed_trials)


class Hyper(NamedTuple):
    """Numbers of DREAM, each a float or an array ``[]``; a run can sweep or schedule them."""

    discount: float = 0.99
    """γ, of both policies."""
    trace_lambda: float = 0.9
    """λ of the returns that values are learned from."""
    learning_rate: float = 1e-3
    """Step size of the optimiser, a minibatch."""
    anneal_updates: float = math.inf
    """Meta-updates in which the step size falls to zero in a straight line; infinite keeps it."""
    max_grad_norm: float = 10.0
    """Clips the norm of the gradient of all parameters together."""
    first_epsilon: float = 1.0
    """ε in the first meta-update: the probability of a random action in training."""
    last_epsilon: float = 0.05
    """ε after `epsilon_updates`."""
    first_temperature: float = 0.0
    """τ in the first meta-update, as in `recurrent_q`."""
    last_temperature: float = 0.0
    """τ after `epsilon_updates`."""
    epsilon_updates: float = 100.0
    """Meta-updates in which ε and τ fall from the first to the last in a straight line."""
    epsilon: float = 0.0
    """ε outside of training."""
    temperature: float = 0.0
    """τ outside of training."""
    exploration_cost: float = 0.1
    """c: the cost of a step of exploration, in units of the latent's square."""
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
    """What the learner remembers of a trial: the states of its networks."""

    episode: jax.Array
    """``[]``, int32: the number of the episode."""
    explorer: Any
    """The explorer's state."""
    decoder: Any
    """The decoder's state."""
    exploiter: Any
    """The exploiter's state."""
    z: jax.Array
    """``[Z]``, what the decoder made of the exploration; zeros before its end."""


class Batch(NamedTuple):
    """Trials to learn from, ``[B, T]``; steps that are not ``counted`` hold zeros."""

    inputs: Inputs
    """The networks' inputs."""
    action: jax.Array
    """int32: the actions that were taken."""
    reward: jax.Array
    """The family's rewards, not in units."""
    counted: jax.Array
    """bool: the steps to learn from."""
    task: jax.Array
    """``[B, P]``, the trials' tasks as vectors."""


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
    explorer: ActionValues
    """Values of exploration."""
    exploiter: ActionValues
    """Values of exploitation; reads z beside its inputs."""

    def init(self, key: jax.Array) -> Params:
        """New parameters, by the networks' names."""
        keys = jax.random.split(key, len(self))
        return {
            name: getattr(self, name).init(k) for name, k in zip(self._fields, keys, strict=True)
        }


@checks.constructor(
    first_epsilon=(0.0, 1.0),
    last_epsilon=(0.0, 1.0),
    epsilon_updates=(1e-6, math.inf),
    epsilon=(0.0, 1.0),
    first_temperature=(0.0, 1e6),
    last_temperature=(0.0, 1e6),
    temperature=(0.0, 1e6),
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
    """DREAM on a family of tasks with discrete actions.

    ``return/before`` is of the exploration and ``return/after`` of the last episode; in training half of the trials
    are told their tasks there. ``information_gain`` is the mean over trials of the whole exploration's, without the steps' cost.
    A broken trial is left out as in `recurrent_q`.

    Args:
        family: The tasks' family; ``step`` is given its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different values can be
            vmapped.
        memory: The recurrent network of each of explorer, decoder and exploiter; None makes those that ``config`` names.
        optimizer: ``learning_rate -> optax.GradientTransformation``.

    Raises:
        ImportError: flashbax is not installed.
        ValueError: the family's actions are not discrete; a value of ``hyper`` is out of range; a setting has no effect
            beside the others; the buffer takes more memory than the device has; in ``step``, the number of trials is no
            multiple of ``config.num_minibatches`` or greater than ``config.replay_trials``.
    """
    networks = networks_of(family, config, memory)
    parts = _learner_of(family, config, networks)
    item = kept_trial(family, config, networks, hyper)
    buffer = item_buffer(item, config.replay_trials, config.replayed_trials, name="replay_trials")

    def init(key: jax.Array, hyper: Any = hyper) -> State:
        meta = first_meta(key, networks, config, hyper)
        optimizer_state = outer_optimizer(optimizer, meta.hyper).init(meta.params)
        return State(meta, optimizer_state, jnp.zeros((), jnp.int32), buffer.init())

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        act_key, learn_key = jax.random.split(quick(key))
        hyper = action_values.scheduled(state.meta.hyper, state.num_updates)
        now = state.meta._replace(hyper=hyper)
        told = jax.vmap(family.task_vector)(tasks)
        recorded = trials(act_key, now, tasks, told, parts=parts, networks=networks)
        told = jnp.repeat(told, config.num_streams, axis=0)
        data, counted = counted_steps(recorded, config.num_episodes)
        good = jnp.any(counted, axis=1)
        told = jnp.where(good[:, None], told, 0.0)
        make = partial(batch_of, state.meta, parts=parts)
        items = (*kept(data, counted), told)
        replay, replayed = remembered(state.replay, buffer, items, make)
        batch = make(data, counted, told)
        meta, gain = with_scales(state.meta, batch, hyper, networks=networks, config=config)
        scales = (meta.value_scale, meta.gain_scale)
        learned, reports, applied = learn_in_epochs(
            learn_key,
            (meta.params, state.optimizer),
            batch,
            hyper,
            losses=partial(all_losses, scales=scales, networks=networks, config=config),
            of_whole=whole_minibatch,
            optimizer=outer_optimizer(optimizer, hyper),
            config=config,
            replayed=replayed,
        )
        metrics = step_metrics(
            reports, applied, recorded, counted, config.num_episodes, explore_episodes=1
        )
        metrics["information_gain"] = gain
        metrics["epsilon"] = hyper.epsilon
        metrics["replay_trials"] = buffer.size(replay)
        done = state.num_updates + 1 - metrics["skipped_updates"]
        params, optimizer_state = learned
        return State(meta._replace(params=params), optimizer_state, done, replay), metrics

    return MetaAlgorithm(init, step, parts.learner, parts.lifetime)


def networks_of(family: TaskFamily, config: Config, memory: Memory | None = None) -> Networks:
    """The four networks that ``config`` describes; raises ValueError unless the family's actions are discrete."""
    num_actions = num_discrete_actions("dream", family)
    memory = memory_of(family, config, memory)
    sizes: dict[str, Any] = dict(
        encoder_sizes=config.encoder_sizes, hidden_sizes=config.hidden_sizes
    )
    task = jax.eval_shape(lambda key: family.task_vector(family.train(key)), jax.random.key(0))
    return Networks(
        bottleneck=mlp(task.size, config.bottleneck_sizes, config.latent_size, BOTTLENECK_SCALE),
        decoder=recurrent_outputs(family, memory, config.latent_size, **sizes),
        explorer=recurrent_outputs(family, memory, num_actions, **sizes),
        exploiter=recurrent_outputs(
            family, memory, num_actions, more_inputs=config.latent_size, **sizes
        ),
    )


def first_meta(key: jax.Array, networks: Networks, config: Config, hyper: Hyper) -> Meta:
    """The meta of a run before its first meta-update."""
    unknown, nothing = jnp.zeros(2), jnp.zeros(config.latent_size)
    told = jnp.zeros((), bool)
    params = networks.init(key)
    return Meta(params, unknown, unknown, jnp.zeros(()), told, nothing, as_arrays(hyper))


def episodes(batch: Batch) -> Episodes:
    """Which steps of trials ``[B, T]`` belong to which episode."""
    begins = (batch.inputs.time[..., 0] > 0) & batch.counted
    number = jnp.cumsum(begins, axis=1) - 1
    return Episodes(
        explores=batch.counted & (number == 0),
        exploits=batch.counted & (number > 0),
        begins=begins,
        read=begins & (number == 1),
    )


def information_gain(distance: jax.Array, explores: jax.Array) -> jax.Array:
    """The reward of exploration without its cost, ``[B, T]``: by how much each step brings the decoder nearer to the bottleneck.

    Args:
        distance: ``[B, T]``, the square of the decoder's error before each step.
        explores: bool ``[B, T]``: steps of exploration; all others gain 0. A step follows the last of them.
    """
    after = jnp.concatenate([distance[:, 1:], distance[:, -1:]], axis=1)
    return jnp.where(explores, distance - after, 0.0)


class _Views(NamedTuple):
    """What the networks make of a batch."""

    f: jax.Array
    g: jax.Array
    distance: jax.Array
    gain: jax.Array
    explorer_q: jax.Array
    explorer: action_values.Batch


def _views(params: Params, batch: Batch, hyper: Any, networks: Networks) -> _Views:
    """The bottleneck's, the decoder's and the explorer's outputs, and what the explorer learns from."""
    of = episodes(batch)
    f = networks.bottleneck.apply(params["bottleneck"], batch.task)
    g = unrolled(params["decoder"], batch.inputs, networks.decoder)
    distance = jnp.sum((g - jax.lax.stop_gradient(f)[:, None]) ** 2, axis=-1)
    gain = information_gain(jax.lax.stop_gradient(distance), of.explores)
    reward = jnp.where(of.explores, gain - hyper.exploration_cost, 0.0)
    q = unrolled(params["explorer"], batch.inputs, networks.explorer)
    explorer = action_values.Batch(batch.inputs, batch.action, reward, of.explores)
    return _Views(f, g, distance, gain, q, explorer)


def _exploiter(
    params: Params, batch: Batch, z: jax.Array, networks: Networks
) -> tuple[jax.Array, action_values.Batch]:
    """The exploiter's values ``[B, T, A]`` given ``z [B, Z]``, and what it learns from."""
    of = episodes(batch)
    inputs = with_latent(
        batch.inputs, of.begins, jnp.broadcast_to(z[:, None], (*of.begins.shape, z.shape[-1]))
    )
    q = unrolled(params["exploiter"], inputs, networks.exploiter)
    reward = jnp.where(of.exploits, batch.reward, 0.0)
    return q, action_values.Batch(inputs, batch.action, reward, of.exploits)


def with_latent(inputs: Inputs, begins: jax.Array, z: jax.Array) -> Inputs:
    """The exploiter's inputs: with ``z [..., Z]``, and without a past where an episode ``begins``, bool ``[...]``."""
    return Inputs(
        obs=inputs.obs,
        past=jnp.where(begins[..., None], 0.0, inputs.past),
        time=jnp.concatenate([inputs.time, z], axis=-1),
        reset=begins,
    )


class Whole(NamedTuple):
    """What the means of a whole minibatch divide by, each ``[]`` and at least 1."""

    explored: jax.Array
    """The steps of exploration."""
    exploited: jax.Array
    """The other steps."""
    read: jax.Array
    """The prefixes of explorations, the empty and the whole ones with them."""
    trials: jax.Array
    """The trials with a counted step."""


def whole_minibatch(batch: Batch) -> Whole:
    """The numbers of a minibatch ``[B, T]`` that the losses of its trials divide by."""
    of, steps = episodes(batch), batch.reward
    return Whole(
        explored=count(of.explores, steps),
        exploited=count(of.exploits, steps),
        read=count(of.explores | of.read, steps),
        trials=count(jnp.any(batch.counted, axis=1), steps),
    )


def all_losses(
    params: Params,
    keys: jax.Array,
    batch: Batch,
    hyper: Any,
    whole: Whole,
    *,
    scales: tuple[jax.Array, jax.Array],
    networks: Networks,
    config: Config,
) -> tuple[jax.Array, dict]:
    """``(loss [], report)``, the share of some trials in a minibatch's: of both values, the decoder and the bottleneck."""
    value_scale, gain_scale = scales
    of, good = episodes(batch), jnp.any(batch.counted, axis=1)
    views = _views(params, batch, hyper, networks)
    explored = action_values.value_error(
        views.explorer_q,
        views.explorer,
        gain_scale,
        hyper,
        trace=config.trace,
        divisor=whole.explored,
    )
    z = jax.vmap(latent, (0, 0, 0, None))(keys, views.f, _read(views.g, of), hyper.noise)
    q, exploiter = _exploiter(params, batch, z, networks)
    exploited = action_values.value_error(
        q,
        exploiter,
        value_scale,
        hyper,
        trace=config.trace,
        divisor=whole.exploited,
        last=_last(of.begins),
    )
    read = of.explores | of.read
    decoder = jnp.sum(jnp.where(read, views.distance, 0.0)) / whole.read
    square = jnp.sum(views.f**2, axis=-1)
    too_large = jnp.maximum(square, hyper.free_norm)
    size = jnp.sum(jnp.where(good, too_large, 0.0)) / whole.trials
    loss = explored + exploited + hyper.decoder_cost * decoder + hyper.bottleneck_cost * size
    report = {
        "value_loss": exploited,
        "explorer_loss": explored,
        "decoder_loss": decoder,
        "bottleneck": jnp.sum(jnp.where(good, square, 0.0)) / whole.trials,
    }
    return loss, report


def latent(key: jax.Array, f: jax.Array, g: jax.Array, noise: jax.Array) -> jax.Array:
    """z of a trial to learn from, ``[Z]``: the bottleneck's ``f [Z]`` with its noise, or as likely the decoder's ``g [Z]``."""
    told_key, noise_key = jax.random.split(key)
    noisy = f + noise * jax.random.normal(noise_key, f.shape)
    return jnp.where(jax.random.bernoulli(told_key), noisy, jax.lax.stop_gradient(g))


def with_scales(
    meta: Meta, batch: Batch, hyper: Any, *, networks: Networks, config: Config
) -> tuple[Meta, jax.Array]:
    """``meta`` with its running scales moved by new trials, and the mean information gain of their exploration, ``[]``."""
    of = episodes(batch)
    views = _views(meta.params, batch, hyper, networks)
    q, exploiter = _exploiter(meta.params, batch, _read(views.g, of), networks)
    how = dict(hyper=hyper, trace=config.trace)
    explored = action_values.lambda_returns(
        views.explorer_q, views.explorer, meta.gain_scale, **how
    )
    exploited = action_values.lambda_returns(
        q, exploiter, meta.value_scale, **how, last=_last(of.begins)
    )
    good = jnp.any(batch.counted, axis=1)
    gain = jnp.sum(views.gain) / count(good, views.gain)
    moved = meta._replace(
        value_scale=moved_value_scale(meta.value_scale, exploited, of.exploits),
        gain_scale=moved_value_scale(meta.gain_scale, explored, of.explores),
        reward_scale=running_reward_scale(meta.reward_scale, batch.reward, batch.counted),
    )
    return moved, gain


def _read(g: jax.Array, of: Episodes) -> jax.Array:
    """The decoder's output after the exploration, ``[B, Z]``."""
    return jnp.sum(jnp.where(of.read[..., None], g, 0.0), axis=1)


def _last(begins: jax.Array) -> jax.Array:
    """The steps before first steps of episodes, bool ``[B, T]``."""
    return jnp.concatenate([begins[:, 1:], jnp.zeros_like(begins[:, :1])], axis=1)


def batch_of(
    meta: Meta, data: Trajectory, counted: jax.Array, task: jax.Array, *, parts: RecurrentLearner
) -> Batch:
    """The batch of trials ``[B, T]``, with rewards that the networks see in today's units."""
    inputs = jax.vmap(parts.inputs, in_axes=(None, 0))(meta, data)
    return Batch(inputs, data.action, jnp.where(counted, data.reward, 0.0), counted, task)


def trials(
    key: jax.Array,
    meta: Meta,
    tasks: Task,
    told: jax.Array,
    *,
    parts: RecurrentLearner,
    networks: Networks,
) -> Trajectory:
    """Training's trials, ``[M N, T]``: in half of the tasks the exploiter is told its own, of which ``told [M, P]`` are vectors."""

    def of_task(key: jax.Array, task: Task, told: jax.Array) -> Trajectory:
        coin_key, noise_key, key = jax.random.split(key, 3)
        f = networks.bottleneck.apply(meta.params["bottleneck"], told)
        z = f + meta.hyper.noise * jax.random.normal(noise_key, f.shape)
        mine = meta._replace(told=jax.random.bernoulli(coin_key), latent=z)
        return parts.trials(key, mine, jax.tree.map(lambda x: x[None], task))

    data = jax.vmap(of_task)(jax.random.split(key, len(told)), tasks, told)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)


def kept_trial(family: TaskFamily, config: Config, networks: Networks, hyper: Hyper) -> Any:
    """Shapes and dtypes of what the buffer keeps of one trial; nothing is run."""

    def trial(key: jax.Array) -> Any:
        init_key, key = jax.random.split(key)
        task = jax.tree.map(lambda x: jnp.asarray(x)[None], family.env.default_params)
        told = jax.vmap(family.task_vector)(task)
        meta = first_meta(init_key, networks, config, hyper)
        parts = _learner_of(family, dataclasses.replace(config, num_streams=1), networks)
        recorded = trials(quick(key), meta, task, told, parts=parts, networks=networks)
        items = (*kept(*counted_steps(recorded, config.num_episodes)), told)
        return jax.tree.map(lambda x: x[0], items)

    return jax.eval_shape(trial, jax.eval_shape(lambda: jax.random.key(0)))


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
) -> tuple[Categorical, Acting]:
    """One step: by the explorer in the first episode, then by the exploiter."""
    params, begins = meta.params, inputs.time[0] > 0
    episode = jnp.where(inputs.reset, 0, state.episode + begins.astype(jnp.int32))
    explorer_q, explorer = networks.explorer.step(params["explorer"], state.explorer, inputs)
    g, decoder = networks.decoder.step(params["decoder"], state.decoder, inputs)
    z = jnp.where(begins & (episode == 1), g, jnp.where(inputs.reset, 0.0, state.z))
    shown = with_latent(inputs, begins, jnp.where(meta.told, meta.latent, z))
    exploiter_q, exploiter = networks.exploiter.step(params["exploiter"], state.exploiter, shown)
    q = jnp.where(episode == 0, explorer_q, exploiter_q)
    policy = epsilon_greedy(q, meta.hyper.epsilon, meta.hyper.temperature)
    return policy, Acting(episode, explorer, decoder, exploiter, z)
