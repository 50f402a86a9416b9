"""Meta-gradients: agents whose discount, λ, costs, step size and reward are learned while they live.

Xu, van Hasselt & Silver 2018, "Meta-gradient reinforcement learning". An agent θ is an actor-critic that
learns on and on, and its update depends on numbers η,

    θ_{k+1} = θ_k - α ∇ L_η(θ_k; D_k),    D_k ~ π_{θ_k},

which are moved after every L updates down a meta-objective on what the agent does next,

    η ← η - β ∇_η L'(θ_L(η); D_L),

the derivative taken through those L updates and no further: the memory that it needs does not grow with
a lifetime. D_L is then learned from in its turn, with the new η. All lives share η.
Settings make it

* self-tuning actor-critic (`learns` costs and step sizes, `outer_kl_cost`: Zahavy et al. 2020, "A
  self-tuning actor-critic algorithm", without its leaky V-trace: here all data are on-policy);
* LIRPG (`intrinsic_reward`: Zheng, Oh & Singh 2018, "On learning intrinsic rewards for policy gradient
  methods"): a reward r_η(s, a) is added to the one that the agent learns from;
* bootstrapped meta-gradients (`outer="bootstrap"`: Flennerhag et al. 2022, "Bootstrapped meta-learning"):
  the meta-objective is the distance to where a few more updates would lead;
* debiased (`outer_value`: Bonnet, Midgley & Laterre 2022, "Debiasing meta-gradient reinforcement learning
  by learning the outer value function"): L' has a value function of its own discount;
* with nothing to learn, the actor-critic itself.
"""

import dataclasses
import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import adaptation, checks, lifelong, meta_update
from jaxmeta.distributions import Distribution
from jaxmeta.gradient_learner import Optimizer, is_applicable, mean_kl, outer_optimizer
from jaxmeta.lifelong import Life, Score
from jaxmeta.memory_learner import action_features, input_sizes
from jaxmeta.networks import Policy, Value, default_policy, value_mlp
from jaxmeta.returns import gae, td_errors
from jaxmeta.tasks.family import TaskFamily, sample_tasks
from jaxmeta.types import Learner, MetaAlgorithm, Params, Stream, Task, TimeStep, Trajectory

LEARNABLE = ("discount", "gae_lambda", "policy_cost", "value_cost", "entropy_cost", "step_size")
"""What `Config.learns` may name: entries of `Hyper`."""
INNER_OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": optax.sgd,
    # A square root has a derivative where gradients are zero only if something is added inside of it.
    "rmsprop": partial(optax.rmsprop, eps=1e-8, eps_in_sqrt=True),
    "adam": partial(optax.adam, eps_root=1e-8),
}
# A meta-gradient through small steps is small, and a bootstrapped one smaller: Adam's own ε would hide it.
ADAM = partial(optax.adam, eps=1e-15)
NO_END = int(jnp.iinfo(jnp.int32).max)


@dataclasses.dataclass(frozen=True)
class Config:
    """What shapes the program."""

    num_agents: int = 20
    """Lives that go on at a time (M); a step must be given as many tasks, for those that begin anew."""
    num_streams: int = 16
    """Parallel instances of its task that an agent acts in (N)."""
    num_steps: int = 20
    """Steps of each between two updates (T)."""
    num_updates: int = 1
    """Updates that the meta-gradient reaches through (L); a meta-update is L + 1 updates of the agents."""
    lifespan: int | None = None
    """Updates after which an agent makes room for a newborn in another task; None is never."""
    learns: tuple[str, ...] = ("discount", "gae_lambda")
    """Which of `LEARNABLE` are meta-learned; the rest stay as they are in `Hyper`."""
    intrinsic_reward: bool = False
    """Meta-learn a reward that is added to the task's (LIRPG); needs `outer_value`."""
    outer: Literal["policy_gradient", "bootstrap"] = "policy_gradient"
    """The meta-objective: the actor-critic's at the outer discount and λ, or the distance to a target."""
    outer_value: bool = False
    """Learn a second value function, of the outer discount and λ, for the meta-objective."""
    value_targets: Literal["lambda", "monte_carlo"] = "lambda"
    """What values are fitted to: returns of the λ of the advantages, or of λ = 1, which do not wait for
    one value to have learned from the next."""
    num_target_updates: int = 1
    """Updates from the agent to the target of `bootstrap`; the last one climbs the outer objective."""
    inner_optimizer: Literal["sgd", "rmsprop", "adam"] = "sgd"
    """Of the agents; its state is part of them."""
    policy: Literal["mlp", "categorical", "gaussian", "softmax_linear"] = "mlp"
    """A tanh network, categorical or Gaussian as the action space asks, or softmax-linear."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of policy, values and intrinsic reward."""
    rematerialize: bool = True
    """Compute an update's intermediate values again in the backward pass rather than keep them."""
    tasks_per_chunk: int | None = None
    """Lives whose meta-gradient is worked on at a time; as in `gradient_learner`."""
    unroll: int = 1
    """Steps a rollout's loop is unrolled by."""

    def __post_init__(self) -> None:
        counts = ("num_agents", "num_streams", "num_steps", "num_updates", "num_target_updates")
        for name in (*counts, "unroll"):
            checks.at_least(name, getattr(self, name), 1)
        for name in ("lifespan", "tasks_per_chunk"):
            if getattr(self, name) is not None:
                checks.at_least(name, getattr(self, name), 1)
        for name in self.learns:
            checks.choice("learns", name, LEARNABLE)
        checks.choice("outer", self.outer, ("policy_gradient", "bootstrap"))
        checks.choice("value_targets", self.value_targets, ("lambda", "monte_carlo"))
        checks.choice("inner_optimizer", self.inner_optimizer, INNER_OPTIMIZERS)
        if self.intrinsic_reward and not self.outer_value:
            raise ValueError(
                "outer_value=False must be True with intrinsic_reward: the agent's own value is of both "
                "rewards, and the meta-objective of the task's alone"
            )


class Hyper(NamedTuple):
    """What may be swept, scheduled or learned: numbers, or arrays ``[]`` that are mapped or traced."""

    discount: float = 0.99
    """γ of the agents."""
    gae_lambda: float = 0.95
    """λ of their advantages and of the targets of their value."""
    policy_cost: float = 1.0
    """Weight of the policy gradient."""
    value_cost: float = 0.5
    """Weight of half the squared error of values. At L = 1 it and λ have a meta-gradient through values
    only where `outer_value_cost` asks for good ones."""
    entropy_cost: float = 0.01
    """Weight of the policy's entropy, in nats a step."""
    step_size: float = 0.01
    """α of the agents' optimiser."""
    min_discount: float = 0.0
    """A learned γ is ``min_discount + (1 - min_discount) sigmoid(η)``."""
    intrinsic_scale: float = 0.01
    """Bound of the intrinsic reward."""
    outer_discount: float = 0.99
    """γ' of the meta-objective."""
    outer_lambda: float = 0.95
    """λ' of the meta-objective, and of the targets of the outer value."""
    outer_value_cost: float = 0.0
    """Weight of half the squared error of values in the meta-objective."""
    outer_entropy_cost: float = 0.0
    """Weight of the entropy in the meta-objective."""
    outer_kl_cost: float = 0.0
    """Weight of KL(π after the L updates || π before them) in the meta-objective, in nats a step."""
    learning_rate: float = 1e-2
    """Step size β of the outer optimiser."""
    max_grad_norm: float = 1.0
    """Clips the norm of the meta-gradient."""


HYPER_RANGES: dict[str, tuple[float, float]] = {
    "outer_discount": (0, 1),
    "outer_lambda": (0, 1),
    "min_discount": (0, 1),
    "policy_cost": (0, math.inf),
    "intrinsic_scale": (0, math.inf),
    "outer_value_cost": (0, math.inf),
    "outer_entropy_cost": (0, math.inf),
    "outer_kl_cost": (0, math.inf),
}


class Meta(NamedTuple):
    """What the learner reads."""

    params: dict[
        str, Any
    ]  # η: unconstrained numbers [], by name; "reward" is a network's parameters
    hyper: Hyper


class Agent(NamedTuple):
    """An actor-critic."""

    params: dict[str, Params]  # "policy", "value" and, where there is one, "outer_value"
    optimizer: Any


class State(NamedTuple):
    """What the slow loop carries."""

    meta: Meta
    lives: Life  # [M]
    scores: Score  # [M, N]
    optimizer: Any
    num_updates: jax.Array  # [], int32: meta-updates that were applied


class Window(NamedTuple):
    """What a meta-update looks at in one life; all of it is data."""

    agent: Agent  # before the first update
    trajectories: Trajectory  # [L + 1, N, T]; the last one is held out of the updates
    target: Any  # parameters of the policy to match; None without one
    matching: Any  # [N, T], where to match it


def meta_gradient(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    policy: Policy | None = None,
    value: Value | None = None,
    optimizer: Optimizer = ADAM,
) -> MetaAlgorithm:
    """Meta-gradients on a family of tasks.

    Args:
        family: The tasks' family; ``step`` is given its tasks, as many as ``config.num_agents``.
        config: What shapes the program.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different
            values can be vmapped.
        policy: The agents' policy; None builds the one that ``config.policy`` names.
        value: Their values; None builds tanh networks.
        optimizer: ``learning_rate -> optax.GradientTransformation`` of the outer loop.

    Raises:
        ValueError: the policy does not fit the family's action space; a value of ``hyper`` is out of
            range; ``step`` is given another number of tasks.
    """
    checks.hyper(hyper, **HYPER_RANGES)
    if policy is None:
        shapes = family.observation_shape, family.action_space
        policy = default_policy(config.policy, *shapes, config.hidden_sizes)
    if value is None:
        value = value_mlp(family.observation_shape, config.hidden_sizes)
    reward_network = _reward_network(family, config)
    inner_optimizer = INNER_OPTIMIZERS[config.inner_optimizer]

    def distribution(params: Params, data: Trajectory) -> Distribution:
        return jax.vmap(policy.unroll, in_axes=(None, 0, 0))(params, data.memory, data.timestep)

    def evaluation(
        params: Params, data: Trajectory, reward: Any, gamma: Any, lambda_: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Advantages and the value's targets, ``[N, T]``."""
        v, v_next = value.apply(params, data.timestep.obs), value.apply(params, data.next_obs)
        discount = gamma * data.discount
        delta = td_errors(reward, discount, v, v_next)
        advantage = jax.vmap(gae, in_axes=(0, 0, 0, None))(delta, discount, data.last, lambda_)
        if config.value_targets == "lambda":
            return advantage, v + advantage
        return advantage, v + jax.vmap(gae, in_axes=(0, 0, 0, None))(
            delta, discount, data.last, 1.0
        )

    def policy_loss(params: Params, data: Trajectory, advantage: Any, entropy_cost: Any) -> Any:
        pi = distribution(params, data)
        gain = jnp.mean(pi.log_prob(data.action) * advantage)
        return -gain - entropy_cost * jnp.mean(pi.entropy())

    def value_loss(params: Params, data: Trajectory, target: jax.Array) -> jax.Array:
        return jnp.mean((target - value.apply(params, data.timestep.obs)) ** 2) / 2

    def init_agent(key: jax.Array, meta: Meta) -> Agent:
        policy_key, value_key, outer_key = jax.random.split(key, 3)
        params = {"policy": policy.init(policy_key), "value": value.init(value_key)}
        if config.outer_value:
            params["outer_value"] = value.init(outer_key)
        return Agent(params, inner_optimizer(meta.hyper.step_size).init(params))

    def act(key: jax.Array, meta: Meta, agent: Agent, memory: Any, timestep: TimeStep) -> tuple:
        pi, memory = policy.step(agent.params["policy"], memory, timestep)
        action = pi.sample(key)
        return action, pi.log_prob(action), memory

    def update(key: jax.Array, meta: Meta, agent: Agent, data: Trajectory) -> Agent:
        del key
        h, now = learned_hyper(meta), agent.params
        reward = data.reward
        if config.intrinsic_reward:
            inputs = _state_actions(data, family)
            r = jnp.tanh(reward_network.apply(meta.params["reward"], inputs))
            reward = reward + h.intrinsic_scale * r
        # Outside of the loss, and live: what the loss takes as given, the meta-gradient does not.
        advantage, target = evaluation(now["value"], data, reward, h.discount, h.gae_lambda)
        if config.outer_value:
            outer = h.outer_discount, h.outer_lambda
            _, outer_target = evaluation(now["outer_value"], data, data.reward, *outer)

        def loss(params: Params) -> jax.Array:
            total = policy_loss(params["policy"], data, h.policy_cost * advantage, h.entropy_cost)
            total += h.value_cost * value_loss(params["value"], data, target)
            if config.outer_value:
                error = value_loss(params["outer_value"], data, outer_target)
                total += meta.hyper.value_cost * error
            return total

        return moved(agent, jax.grad(loss)(now), h.step_size)

    def moved(agent: Agent, gradient: Params, step_size: Any) -> Agent:
        updates, state = inner_optimizer(step_size).update(gradient, agent.optimizer, agent.params)
        return Agent(optax.apply_updates(agent.params, updates), state)

    learner = Learner(
        init=init_agent,
        memory=lambda meta: policy.memory(),
        act=act,
        update=jax.checkpoint(update) if config.rematerialize else update,
    )
    world: dict[str, Any] = dict(learner=learner, env=family.env)
    acting: dict[str, Any] = dict(num_steps=config.num_steps, unroll=config.unroll)

    def outer_loss(params: Params, data: Trajectory, hyper: Hyper) -> jax.Array:
        """The actor-critic's loss at the outer discount and λ; values are data."""
        critic = params["outer_value" if config.outer_value else "value"]
        advantage, target = jax.lax.stop_gradient(
            evaluation(critic, data, data.reward, hyper.outer_discount, hyper.outer_lambda)
        )
        loss = policy_loss(params["policy"], data, advantage, hyper.outer_entropy_cost)
        return loss + hyper.outer_value_cost * value_loss(critic, data, target)

    def objective(params: dict, meta: Meta, window: Window) -> jax.Array:
        """The meta-objective in one life, ``[]``, live in the learned ``params`` through L updates."""
        meta = meta._replace(params=params)
        learned_from, held_out = (
            jax.tree.map(lambda x, part=part: x[part], window.trajectories)
            for part in (slice(-1), -1)
        )
        agent, _ = jax.lax.scan(
            # The key is for learners that draw in their updates; this one does not.
            lambda agent, data: (learner.update(jax.random.key(0), meta, agent, data), None),
            window.agent,
            learned_from,
        )
        now = distribution(agent.params["policy"], held_out)
        before = distribution(window.agent.params["policy"], held_out)
        penalty = meta.hyper.outer_kl_cost * mean_kl(now, before)
        if config.outer == "policy_gradient":
            return outer_loss(agent.params, held_out, meta.hyper) + penalty
        target = distribution(window.target, window.matching)
        return mean_kl(target, distribution(agent.params["policy"], window.matching)) + penalty

    def bootstrap(
        key: jax.Array, meta: Meta, task: Task, agent: Agent, streams: Stream, data: Trajectory
    ) -> tuple[Params, Trajectory]:
        """A policy that `num_target_updates` more updates lead to, and what the last one learned from."""

        def onward(carry: tuple, key: jax.Array) -> tuple:
            agent, streams, data = carry
            update_key, act_key = jax.random.split(key)
            agent = learner.update(update_key, meta, agent, data)
            streams, data = adaptation.experience(
                act_key, meta, task, agent, streams, **world, **acting
            )
            return (agent, streams, data), None

        keys = jax.random.split(key, config.num_target_updates)[1:]
        (agent, _, data), _ = jax.lax.scan(onward, (agent, streams, data), keys)
        gradient = jax.grad(outer_loss)(agent.params, data, meta.hyper)
        target = moved(agent, gradient, learned_hyper(meta).step_size)
        return target.params["policy"], data

    def renew(
        key: jax.Array, meta: Meta, life: Life, score: Score, task: Task
    ) -> tuple[Life, Score]:
        lifespan = config.lifespan or NO_END
        over = life.age >= lifespan
        life = lifelong.renewed(key, meta, life, task, lifespan=lifespan, **world)
        fresh = lifelong.no_score(config.num_streams)
        return life, jax.tree.map(lambda new, old: jnp.where(over, new, old), fresh, score)

    def live(key: jax.Array, meta: Meta, life: Life) -> tuple[Life, Window]:
        """L updates, and what is seen after them."""
        live_key, act_key, target_key = jax.random.split(key, 3)
        born = life.agent
        life, history = lifelong.live(
            live_key, meta, life, num_updates=config.num_updates, **world, **acting
        )
        streams, held_out = adaptation.experience(
            act_key, meta, life.task, life.agent, life.streams, **world, **acting
        )
        target = matching = None
        if config.outer == "bootstrap":
            target, matching = bootstrap(target_key, meta, life.task, life.agent, streams, held_out)
        trajectories = jax.tree.map(
            lambda past, now: jnp.concatenate([past, now[None]]), history.trajectories, held_out
        )
        window = Window(born, trajectories, target, matching)
        return life._replace(streams=streams), jax.lax.stop_gradient(window)

    def learn(key: jax.Array, meta: Meta, life: Life, data: Trajectory) -> Life:
        agent = learner.update(key, meta, life.agent, data)
        return life._replace(agent=agent, age=life.age + 1)

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        meta_key, task_key, birth_key = jax.random.split(key, 3)
        hyper = jax.tree.map(lambda x: jnp.asarray(x, float), hyper)
        params = {name: _unconstrained(name, hyper) for name in config.learns}
        if config.intrinsic_reward:
            params["reward"] = reward_network.init(meta_key)
        meta = Meta(params, hyper)
        tasks = sample_tasks(task_key, family, config.num_agents, split="train")
        lives = jax.vmap(
            lambda key, task: lifelong.birth(
                key, meta, task, num_streams=config.num_streams, **world
            )
        )(jax.random.split(birth_key, config.num_agents), tasks)
        scores = jax.vmap(lambda _: lifelong.no_score(config.num_streams))(lives.age)
        optimizer_state = outer_optimizer(optimizer, hyper).init(params)
        return State(meta, lives, scores, optimizer_state, jnp.zeros((), jnp.int32))

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        if num_tasks != config.num_agents:
            raise ValueError(
                f"num_tasks={num_tasks} must be num_agents={config.num_agents}: a step is given a task "
                "for each life, should it begin anew"
            )
        keys = [jax.random.split(key, num_tasks) for key in jax.random.split(key, 4)]
        meta, lives = state.meta, state.lives
        # An agent that is not finite would be left out for ever: its time, too, is up.
        alive = meta_update.finite_tasks(lives.agent)
        lives = lives._replace(age=jnp.where(alive, lives.age, config.lifespan or NO_END))
        lives, scores = jax.vmap(renew, in_axes=(0, None, 0, 0, 0))(
            keys[0], meta, lives, state.scores, tasks
        )
        lives, windows = jax.vmap(live, in_axes=(0, None, 0))(keys[1], meta, lives)
        gradient, metrics = meta_update.meta_gradient(
            lambda params, _, window: (objective(params, meta, window), {}),
            meta.params,
            keys[2],
            windows,
            tasks_per_chunk=config.tasks_per_chunk,
        )
        applied = is_applicable(metrics, num_tasks)
        params, optimizer_state = meta_update.guarded_update(
            outer_optimizer(optimizer, meta.hyper),
            gradient,
            state.optimizer,
            meta.params,
            apply=applied,
        )
        meta = meta._replace(params=params)
        held_out = jax.tree.map(lambda x: x[:, -1], windows.trajectories)
        lives = jax.vmap(learn, in_axes=(0, None, 0, 0))(keys[3], meta, lives, held_out)
        before, scores = scores, jax.vmap(_tally)(scores, windows.trajectories)
        windows_seen = config.num_updates + 1
        if config.outer == "bootstrap":
            windows_seen += config.num_target_updates - 1
        h = learned_hyper(meta)
        metrics |= {f"learned/{name}": getattr(h, name) for name in config.learns}
        metrics |= {
            "return/before": jnp.nanmean(before.finished),
            "return/after": jnp.nanmean(scores.finished),
            "skipped_updates": jnp.asarray(~applied, jnp.int32),
            "env_steps": jnp.asarray(
                num_tasks * config.num_streams * config.num_steps * windows_seen, jnp.int32
            ),
        }
        return State(meta, lives, scores, optimizer_state, state.num_updates + applied), metrics

    return MetaAlgorithm(init, step, learner)


def learned_hyper(meta: Meta) -> Hyper:
    """``meta.hyper`` with what is learned in its place, differentiable in ``meta.params``."""
    now: dict[str, Any] = {
        name: _constrained(name, x, meta.hyper)
        for name, x in meta.params.items()
        if name in LEARNABLE
    }
    return meta.hyper._replace(**now)


def _constrained(name: str, x: jax.Array, hyper: Hyper) -> Any:
    """γ and λ by a sigmoid, costs and step sizes by an exponential."""
    if name == "discount":
        return hyper.min_discount + (1.0 - hyper.min_discount) * jax.nn.sigmoid(x)
    return jax.nn.sigmoid(x) if name == "gae_lambda" else jnp.exp(x)


def _unconstrained(name: str, hyper: Hyper) -> Any:
    """The inverse, of a value that is as close to the ends of its range as has a derivative."""
    x = getattr(hyper, name)
    if name not in ("discount", "gae_lambda"):
        return jnp.log(jnp.maximum(x, 1e-6))
    if name == "discount":
        x = (x - hyper.min_discount) / (1.0 - hyper.min_discount)
    x = jnp.clip(x, 1e-4, 1.0 - 1e-4)
    return jnp.log(x) - jnp.log1p(-x)


def _reward_network(family: TaskFamily, config: Config) -> Value:
    """``(s, a) -> []``, of `_state_actions`."""
    obs_size, past_size, _ = input_sizes(family)
    return value_mlp((obs_size + past_size - 1,), config.hidden_sizes)


def _state_actions(data: Trajectory, family: TaskFamily) -> jax.Array:
    """Observations and actions side by side, ``[N, T, O + A]``."""
    obs = data.timestep.obs.reshape(*data.reward.shape, -1)
    action = jax.vmap(lambda action: action_features(action, family))(data.action)
    return jnp.concatenate([obs, action], axis=-1)


def _tally(scores: Score, trajectories: Trajectory) -> Score:
    """``[N]`` scores after ``[K, N, T]``."""
    reward, last = (
        jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)
        for x in (trajectories.reward, trajectories.last)
    )
    return jax.vmap(lifelong.tally)(scores, reward, last)
