r"""PEARL: soft actor-critic on a latent variable that is inferred from the episodes so far and held fixed within an episode.

Rakelly et al. 2019, "Efficient off-policy meta-reinforcement learning via probabilistic context variables". A network turns each
transition (s, a, r) into a Gaussian factor over z, and the posterior q(z | context) is their product (`networks.task_posteriors`).
The policy and two action values read the observation and z. The learner draws z from N(0, I) for its first episode, and at the
start of each later one from the posterior given all episodes so far: posterior sampling, which explores from episode to episode.

In training, critic and encoder learn together from

$$L = ½ \sum_i \mathrm{mean} (Q_i(s, a, z) - y)^2 + β\, KL(q(z | c) \,\|\, N(0, I)), \quad z \sim q(z | c),$$

with z a constant in the target y, in the policy's and in the temperature's loss, those of `learners.soft_actor_critic`. Only the
critic's gradient reaches the encoder. The context c is drawn from the recent first episodes, whose z is from the prior: from one of
them, from several or from all, so that the learner knows contexts of every length. The steps
(s, a, r, s') that the critic learns from are drawn from all that the task's replay holds. Within an episode nothing is
remembered, and a time limit does not cut the values: γ weighs what would come after it.

Differences from the paper. The paper has a fixed set of training tasks, and this algorithm has one, too: the state holds the first
`Config.num_training_tasks` tasks that ``step`` is given, with a ring of steps each (`learners.task_replay`). Once they are
there, a meta-update visits as many of them as it is given tasks, drawn without replacement, and ignores the new ones. A visit replaces the task's context and
adds to its ring. The critic is of SAC's second version: twin values with a target network, no state value, and a learned temperature.
The paper draws a context of a fixed number of transitions. The KL is the mean over tasks, not the sum, and rewards are in units of the returns' spread, so β is smaller. The policy has no cost on
its mean and spread.

In the paper's sparse task the critic learns from a dense reward in training, and the context shows the sparse one: ``training_reward=
navigation.dense_reward`` does that. The first ``prior_episodes`` draw z from the prior, and with ``context_from="trial"`` the context
has the later episodes, too, as published.

Where rewards are rare this has a circle: the encoder learns nothing until contexts hold rewards, and contexts hold none until z makes
policies differ. ``encoder_learns="teacher"``, which is not in the paper, opens it. A second encoder, the teacher, reads the critic's rewards of the same context and
learns by L. The encoder learns to predict its z, by $-\log q(z | c)$. So its posterior is wide where the context leaves several tasks
possible. By L alone it is not: the values of a mean task err less than those of a drawn one.

Use it where tasks are told apart by rewards at single steps, actions are continuous and environment steps are dear. It explores
by whole episodes of one hypothesis, so it needs two or more episodes, and does less well than `rl2` where exploring within the first pays. Where rewards are sparse
it needs a dense one in training, and the teacher.

```python
import jax
from jaxmeta import evaluation, tasks
from jaxmeta.algorithms.pearl import Config, Hyper, pearl
from jaxmeta.runs import training

family = tasks.make("half_circle", horizon=5)
sizes = dict(hidden_sizes=(16,), encoder_sizes=(16,), num_training_tasks=20, replay_steps=200)
config = Config(num_episodes=3, gradient_steps=4, batch_size=8, context_size=8, **sizes)
algorithm = pearl(family, config, Hyper(learning_rate=1e-3))
run = training.train(algorithm, family, training.Config(meta_updates=5, num_tasks=5))

held_out = tasks.sample_tasks(jax.random.key(1), family, 20, split="test")
how = dict(learner=algorithm.learner, env=family.env, num_steps=15)
trials = evaluation.trials(jax.random.key(2), run.state.meta, held_out, **how)
print(evaluation.episode_returns(trials, 3).mean(axis=0))
```
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
from jaxmeta.estimators.episodes import episode_index
from jaxmeta.estimators.returns import discounted_returns
from jaxmeta.estimators.units import in_units, running_reward_scale
from jaxmeta.learners import recurrent, soft_actor_critic, task_replay
from jaxmeta.learners.buffers import check_memory
from jaxmeta.learners.recurrent import Meta
from jaxmeta.learners.soft_actor_critic import Learned, State
from jaxmeta.meta_updates.outer_loop import Optimizer, as_arrays, outer_optimizer
from jaxmeta.networks.distributions import DiagGaussian, TanhGaussian
from jaxmeta.networks.encodings import encode_action, input_sizes
from jaxmeta.networks.heads import Head
from jaxmeta.networks.policies import acting
from jaxmeta.networks.soft_actor_critic import (
    TwinValues,
    check_bounded,
    in_half_widths,
    squashed_head,
    twin_values,
    unit_policy,
)
from jaxmeta.networks.task_posteriors import (
    ContextEncoder,
    Evidence,
    context_encoder,
    divergence_from_prior,
    no_evidence,
    posterior,
    product,
)
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.keys import quick
from jaxmeta.types import Learner, MetaAlgorithm, Params, Task, TimeStep, Trajectory

TrainingReward = Callable[[Task, jax.Array, jax.Array, jax.Array], jax.Array]
"""``(task, obs, action, next_obs) -> reward []``, of one step."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of PEARL that are fixed when the program is compiled: sizes, counts and choices."""

    num_episodes: int = 3
    """Episodes in a trial (E): the first with z from the prior, the others with z from the posterior."""
    prior_episodes: int = 1
    """The first episodes of a trial, whose z is from the prior (k); each has a new one."""
    context_from: Literal["prior", "trial"] = "prior"
    """The episodes of a visit that are its context: those with z from the `prior`, or all of a `trial`."""
    encoder_learns: Literal["values", "teacher"] = "values"
    """The encoder learns to infer a z that the `values` need, or to predict the z of a `teacher`. The teacher is a second encoder
    that reads the critic's rewards in place of the context's, and infers a z that the values need."""
    num_streams: int = 4
    """Trials of a task in a meta-update (N). Their first episodes are the task's context."""
    num_training_tasks: int = 100
    """The tasks of training, which the state holds (P)."""
    replay_steps: int = 10_000
    """The last steps of each training task that are kept."""
    gradient_steps: int = 32
    """Gradient steps in a meta-update."""
    batch_tasks: int = 16
    """Training tasks that a gradient step learns from."""
    batch_size: int = 64
    """Kept steps of each of them."""
    context_size: int = 80
    """Transitions of its context from which z is inferred, if they are of all of its P episodes. From p episodes, p uniform, there
    are p / P of them."""
    latent_size: int = 5
    """Entries of z."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of the policy's and the values' hidden layers."""
    encoder_sizes: tuple[int, ...] = (64, 64)
    """Widths of the encoder's hidden layers."""
    acts: Literal["sample", "mode"] = "mode"
    """Outside of training the learner draws its actions, or takes the middle of their distribution. In training it draws them."""
    unroll: int = 1
    """Steps a rollout's loop is unrolled by."""

    def __post_init__(self) -> None:
        checks.fields(self)
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, str):
                continue
            for number in value if isinstance(value, tuple) else (value,):
                checks.at_least(name, number, 1)
        if self.prior_episodes > self.num_episodes:
            raise ValueError(
                f"prior_episodes={self.prior_episodes} must be at most num_episodes={self.num_episodes}"
            )

    @property
    def context_parts(self) -> int:
        """Episodes of a visit that are its context."""
        of_trial = self.num_episodes if self.context_from == "trial" else self.prior_episodes
        return self.num_streams * of_trial


class Hyper(NamedTuple):
    """Numbers of PEARL, each a float or an array ``[]``; a run can sweep or schedule them."""

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
    kl_cost: float = 1e-5
    """β, the weight of the divergence of the posterior from the prior, in nats."""


class Memory(NamedTuple):
    """The learner's memory of a trial."""

    evidence: Evidence
    """The product of the factors of all transitions so far but the last."""
    obs: jax.Array
    """``[O]``, the observation before."""
    z: jax.Array
    """``[Z]``, the latent variable of this episode."""
    episodes: jax.Array
    """``[]``, int32: episodes that have begun."""


class Transition(NamedTuple):
    """A transition of a context."""

    obs: jax.Array
    """``[O]``."""
    action: jax.Array
    """``[A]``, encoded."""
    reward: jax.Array
    """``[]``, as the learner sees it, not in units."""
    training_reward: Any = ()
    """``[]``, as the critic learns it, not in units; ``()`` while acting."""


class Step(NamedTuple):
    """A step that the critic learns from."""

    obs: jax.Array
    """``[O]``."""
    action: jax.Array
    """``[*action_shape]``."""
    reward: jax.Array
    """``[]``, as the critic learns it, not in units."""
    discount: jax.Array
    """``[]``, 0 at termination, else 1."""
    next_obs: jax.Array
    """``[O]``."""


class Batch(NamedTuple):
    """The experience that a gradient step learns from."""

    steps: Step
    """``[B, S]``."""
    context: Transition
    """``[B, C]``."""
    in_context: jax.Array
    """``[B, C]``, bool: the transitions from which z is inferred."""
    counted: jax.Array
    """``[B, S]``, bool."""


class Networks(NamedTuple):
    """PEARL's networks; their parameters are ``"actor"``, ``"critic"`` and ``"encoder"``."""

    actor: Head
    """The policy, on the observation and z."""
    critic: TwinValues
    """The action values, on the same."""
    encoder: ContextEncoder
    """The network that turns a transition into a factor."""


@checks.constructor(
    target_rate=(0.0, 1.0), first_temperature=(1e-12, 1e6), target_entropy=(-100.0, 1.0)
)
def pearl(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    training_reward: TrainingReward | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """PEARL on a family of tasks with continuous actions.

    A trial with a number in its counted steps, or a training reward, that is not finite is left out of the replay and counted in ``skipped_tasks``; a
    meta-update without a good new trial changes nothing. A new task without a good trial is not taken among the training tasks.
    On several devices the tasks are shared for acting; each device holds the whole replay.

    Args:
        family: The tasks' family; ``step`` is given its tasks, of which the first become the training tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different values can be vmapped.
        training_reward: ``(task, obs, action, next_obs) -> reward []``, what the critic learns in place of the task's reward, which
            stays what the context shows; None is the task's reward.
        optimizer: ``learning_rate -> optax.GradientTransformation``.

    Raises:
        ValueError: the family's actions are not a ``Box`` of floats with bounds; a value of ``hyper`` is out of range; the replay
            is shorter than a visit, or takes more memory than the device has; in ``step``, there are more tasks than training
            tasks.
    """
    networks = networks_of(family, config)
    train = learner_of(family, config, networks)
    num_steps = config.num_episodes * family.horizon
    if config.replay_steps < config.num_streams * num_steps:
        raise ValueError(
            f"replay_steps={config.replay_steps} must be at least num_streams × num_episodes × horizon = "
            f"{config.num_streams * num_steps}, the steps of a visit"
        )
    setup = rollouts.Setup(train, family.env, config.num_streams, num_steps, config.unroll)
    first_replay = empty_replay(family, config)

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        meta = first_meta(key, networks, hyper, config)
        optimizer_state = outer_optimizer(optimizer, meta.hyper).init(meta.params)
        # A copy: a state that is overwritten in place must not hold an array twice.
        target = jax.tree.map(jnp.copy, meta.params["critic"])
        return State(meta, optimizer_state, jnp.zeros((), jnp.int32), target, first_replay())

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        visit_key, act_key, learn_key = jax.random.split(quick(key), 3)
        hyper = recurrent.annealed(state.meta.hyper, state.num_updates)
        visited = task_replay.visit(visit_key, state.replay, tasks)
        recorded = recurrent.trials_of(act_key, state.meta, visited.tasks, setup=setup)
        data, counted = recurrent.counted_steps(recorded, config.num_episodes)
        every = jax.tree.map(lambda x: jnp.repeat(x, config.num_streams, axis=0), visited.tasks)
        steps, counted = steps_of(every, data, counted, family, training_reward)
        meta = with_scales(state.meta, data, steps, counted)
        replay = remembered(state.replay, visited, data, steps, counted, family, config)
        learned, reports, applied = soft_actor_critic.learn_from_replay(
            learn_key,
            Learned(meta.params, state.target, state.optimizer),
            partial(batch_of, replay=replay, config=config),
            losses=partial(losses, meta=meta, networks=networks, family=family),
            optimizer=outer_optimizer(optimizer, hyper),
            target_rate=hyper.target_rate,
            num_steps=config.gradient_steps,
            apply=jnp.any(counted),
        )
        metrics = recurrent.step_metrics(reports, applied, recorded, counted, config.num_episodes)
        metrics["training_tasks"] = replay.num_tasks
        done = state.num_updates + 1 - metrics["skipped_updates"]
        params, target, optimizer_state = learned
        meta = meta._replace(params=params)
        return State(meta, optimizer_state, done, target, replay), metrics

    learner = train
    if config.acts == "mode":
        learner = learner_of(family, config, networks, greedy=True)
    return MetaAlgorithm(init, step, learner, setup.collects(trial=True))


@checks.arguments
def networks_of(family: TaskFamily, config: Config) -> Networks:
    """The networks that ``config`` describes.

    Raises:
        ValueError: the family's actions are not a ``Box`` of floats with bounds.
    """
    check_bounded("pearl", family)
    num_features = input_sizes(family)[0] + config.latent_size
    return Networks(
        squashed_head(family, num_features, config.hidden_sizes),
        twin_values(num_features, family.action_space, config.hidden_sizes),
        context_encoder(family, config.latent_size, config.encoder_sizes),
    )


def first_meta(key: jax.Array, networks: Networks, hyper: Hyper, config: Config) -> Meta:
    """The meta of a run before its first meta-update; ``params["log_temperature"]`` is ``[]``."""
    hyper = as_arrays(hyper)
    params = {
        name: part.init(key)
        for key, (name, part) in zip(
            jax.random.split(key, 3), networks._asdict().items(), strict=True
        )
    }
    if config.encoder_learns == "teacher":
        params["teacher"] = jax.tree.map(jnp.copy, params["encoder"])
    params["log_temperature"] = jnp.log(hyper.first_temperature)
    return Meta(params, jnp.zeros(2), jnp.zeros(()), hyper)


@checks.arguments
def learner_of(
    family: TaskFamily, config: Config, networks: Networks, *, greedy: bool = False
) -> Learner:
    """The learner that draws z from its posterior at the start of each episode, and acts by the policy given z."""

    def memory(meta: Meta) -> Memory:
        size = config.latent_size
        obs = jnp.zeros(input_sizes(family)[0])
        return Memory(no_evidence(size), obs, jnp.zeros(size), jnp.zeros((), jnp.int32))

    def look(key: jax.Array, meta: Meta, memory: Memory, timestep: TimeStep) -> Memory:
        """The memory with the last transition in it and, where an episode begins, a new z."""
        action = encode_action(timestep.action[None], family)[0]
        before = Transition(memory.obs, action, timestep.reward)
        factor = factors(networks.encoder, meta.params["encoder"], before, meta.reward_scale)
        begun = memory.episodes > 0
        evidence = jax.tree.map(lambda x, y: x + jnp.where(begun, y, 0.0), memory.evidence, factor)
        episodes = memory.episodes + timestep.first.astype(jnp.int32)
        infers = episodes > config.prior_episodes
        known = jax.tree.map(lambda x: jnp.where(infers, x, 0.0), evidence)
        z = jnp.where(timestep.first, posterior(known).sample(key), memory.z)
        return Memory(evidence, timestep.obs.reshape(-1), z, episodes)

    def policy_step(
        params: Params, memory: Memory, timestep: TimeStep
    ) -> tuple[TanhGaussian, Memory]:
        x = jnp.concatenate([memory.obs, memory.z], axis=-1)
        return networks.actor.apply(params, x), memory  # type: ignore[return-value]

    act_by = acting(policy_step, lambda meta, agent: meta.params["actor"], greedy=greedy)

    def act(
        key: jax.Array, meta: Meta, agent: Any, memory: Memory, timestep: TimeStep
    ) -> tuple[jax.Array, jax.Array, Memory]:
        z_key, act_key = jax.random.split(key)
        memory = look(z_key, meta, memory, timestep)
        return act_by(act_key, meta, agent, memory, timestep)

    learner = Learner(
        init=lambda key, meta: (),
        memory=memory,
        act=act,
        update=lambda key, meta, agent, trajectories: agent,
    )
    return checks.reading(learner, Meta)


def factors(
    encoder: ContextEncoder, params: Params, context: Transition, unit: jax.Array
) -> Evidence:
    """The factors ``[...]`` of transitions ``[...]``, whose rewards the encoder reads in units of ``unit []``."""
    reward = in_units(context.reward, unit)
    return encoder.factors(params, context.obs, context.action, reward)


def empty_replay(family: TaskFamily, config: Config) -> Callable[[], task_replay.Kept]:
    """``() -> replay`` without a task; the tasks have the shapes of the family's training tasks.

    Raises:
        ValueError: it takes more memory than the device has.
    """
    task = jax.eval_shape(family.train, jax.eval_shape(lambda: jax.random.key(0)))
    obs_size, past_size, _ = input_sizes(family)
    obs, action = jnp.zeros(obs_size), jnp.zeros(family.action_space.shape)
    nothing = jnp.zeros(())
    step = Step(obs, action, nothing, nothing, obs)
    kept_steps = config.num_training_tasks * config.replay_steps
    check_memory(step, kept_steps, name="num_training_tasks × replay_steps")
    return partial(
        task_replay.empty,
        task,
        step,
        Transition(obs, jnp.zeros(past_size - 1), nothing, nothing),
        num_tasks=config.num_training_tasks,
        capacity=config.replay_steps,
        size=config.context_parts * family.horizon,
    )


def steps_of(
    tasks: Task,
    data: Trajectory,
    counted: jax.Array,
    family: TaskFamily,
    training_reward: TrainingReward | None,
) -> tuple[Step, jax.Array]:
    """``(steps, counted)``, ``[B, T]`` each, of trials in ``tasks [B]``, with the rewards that the critic learns.

    A trial with a training reward that is not finite in its ``counted`` steps has no counted step.
    """
    shape = data.reward.shape
    reward = data.reward
    if training_reward is not None:
        of_stream = jax.vmap(training_reward, (None, 0, 0, 0))
        reward = jax.vmap(of_stream)(tasks, data.timestep.obs, data.action, data.next_obs)
        checks.shapes("BT BT", training_reward=reward, reward=data.reward)
        reward = reward.astype(data.reward.dtype)
        counted = counted & jnp.all(jnp.isfinite(reward) | ~counted, axis=1, keepdims=True)
        reward = jnp.where(counted, reward, 0.0)
    steps = Step(
        data.timestep.obs.reshape(*shape, -1),
        data.action,
        reward,
        data.discount,
        data.next_obs.reshape(*shape, -1),
    )
    return steps, counted


def remembered(
    replay: task_replay.Kept,
    visited: task_replay.Visit,
    data: Trajectory,
    steps: Step,
    counted: jax.Array,
    family: TaskFamily,
    config: Config,
) -> task_replay.Kept:
    """``replay`` with the trials ``[M N, T]`` of a visit: their steps, and their episodes that are the context."""
    num_tasks = visited.places.shape[0]

    def by_task(x: jax.Array, length: int | None = None) -> jax.Array:
        x = x[:, :length]
        return x.reshape(num_tasks, -1, *x.shape[2:])

    episodes = config.context_parts // config.num_streams
    length = episodes * family.horizon
    shown = counted & (jax.vmap(episode_index)(data.last) < episodes)
    encode = jax.vmap(partial(encode_action, family=family))
    context = Transition(steps.obs, encode(data.action), data.reward, steps.reward)
    return task_replay.add(
        replay,
        visited,
        jax.tree.map(by_task, steps),
        by_task(counted),
        jax.tree.map(lambda x: by_task(x, length), context),
        by_task(shown, length),
    )


def with_scales(meta: Meta, data: Trajectory, steps: Step, counted: jax.Array) -> Meta:
    """``meta`` with its running scales moved by trials ``[B, T]``: of the episodes' returns that the critic learns, and of the rewards
    that are seen."""
    reward = jnp.where(counted, steps.reward, 0.0)
    discount = meta.hyper.discount * steps.discount
    nothing = jnp.zeros_like(reward)
    returns = jax.vmap(discounted_returns)(reward, discount, v_next=nothing, last=data.last)
    return meta._replace(
        value_scale=recurrent.moved_value_scale(meta.value_scale, returns, counted),
        reward_scale=running_reward_scale(meta.reward_scale, data.reward, counted),
    )


def batch_of(key: jax.Array, *, replay: task_replay.Kept, config: Config) -> Batch:
    """Steps and contexts drawn from the replay; nothing is counted while it is empty."""
    drawn = task_replay.draw(
        key,
        replay,
        num_tasks=config.batch_tasks,
        num_steps=config.batch_size,
        num_context=config.context_size,
        num_parts=config.context_parts,
    )
    counted = jnp.broadcast_to(replay.num_tasks > 0, drawn.steps.reward.shape)
    return Batch(drawn.steps, drawn.context, drawn.in_context, counted)


def posteriors(
    params: Params, batch: Batch, *, meta: Meta, networks: Networks
) -> dict[str, DiagGaussian]:
    """The posteriors ``[B]`` of the ``"encoder"`` and, where there is one, of the ``"teacher"``, given the contexts of a batch."""
    shown = {"encoder": batch.context}
    if "teacher" in params:
        shown["teacher"] = batch.context._replace(reward=batch.context.training_reward)
    units = {"encoder": meta.reward_scale, "teacher": meta.value_scale[1]}
    found = {
        name: factors(networks.encoder, params[name], x, units[name]) for name, x in shown.items()
    }
    return {name: posterior(product(x, batch.in_context)) for name, x in found.items()}


def losses(
    params: Params,
    target: Params,
    key: jax.Array,
    batch: Batch,
    *,
    meta: Meta,
    networks: Networks,
    family: TaskFamily,
) -> tuple[jax.Array, dict]:
    """``(loss [], report)`` of a batch: of critic and encoder together, of the policy and of the temperature."""
    z_key, now_key, next_key = jax.random.split(key, 3)
    steps, counted = batch.steps, batch.counted
    inferred = posteriors(params, batch, meta=meta, networks=networks)
    q_z = inferred.get("teacher", inferred["encoder"])
    z = jnp.broadcast_to(q_z.sample(z_key)[:, None], (*counted.shape, q_z.mean.shape[-1]))
    fixed_z = jax.lax.stop_gradient(z)
    temperature = jnp.exp(params["log_temperature"])
    fixed, alpha = jax.lax.stop_gradient((params, temperature))

    mean, spread = meta.value_scale
    to_come = jnp.concatenate([steps.next_obs, fixed_z], axis=-1)
    policy = unit_policy(networks.actor.apply(fixed["actor"], to_come))  # type: ignore[arg-type]
    action, log_prob = policy.sample_and_log_prob(next_key)
    q_next = networks.critic.apply(target, to_come, action)
    v_next = mean + spread * soft_actor_critic.soft_value(q_next, log_prob, alpha)
    discount = meta.hyper.discount * steps.discount
    y = soft_actor_critic.soft_target(steps.reward, discount, v_next, meta.value_scale)

    taken = in_half_widths(steps.action, family)
    seen = jnp.concatenate([steps.obs, z], axis=-1)
    critic = soft_actor_critic.critic_loss(
        networks.critic.apply(params["critic"], seen, taken), y, counted
    )
    kl = jnp.mean(divergence_from_prior(q_z))

    now = jnp.concatenate([steps.obs, fixed_z], axis=-1)
    policy = unit_policy(networks.actor.apply(params["actor"], now))  # type: ignore[arg-type]
    action, log_prob = policy.sample_and_log_prob(now_key)
    q = networks.critic.apply(fixed["critic"], now, action)
    actor = soft_actor_critic.actor_loss(log_prob, q, temperature, counted)
    wanted = action.shape[-1] * meta.hyper.target_entropy
    total = critic + meta.hyper.kl_cost * kl + actor
    total += soft_actor_critic.temperature_loss(
        params["log_temperature"], log_prob, wanted, counted
    )
    report = {}
    if "teacher" in inferred:
        report["prediction_loss"] = -jnp.mean(inferred["encoder"].log_prob(fixed_z[:, 0]))
        total += report["prediction_loss"]
    return total, report | {
        "value_loss": critic,
        "policy_loss": actor,
        "entropy": -soft_actor_critic.mean_where(log_prob, counted),
        "temperature": temperature,
        "belief_kl": kl,
    }
