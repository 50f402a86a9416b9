"""Learned objectives: a rule of learning, improved while agents live by it.

M agents learn in tasks of their own by one rule (see `update_rules`): LPG's recurrent network (Oh et al.
2020, "Discovering reinforcement learning algorithms", algorithm 1) or LPO's drift (Lu et al. 2022,
"Discovered policy optimisation"). A meta-update looks at a window of K updates of each and improves the
rule by

* `meta_gradient`: the policy gradient of the agents after each of the K updates, through the updates.
  A critic for each agent, which the rule never sees, serves as baseline;
* `es`: an antithetic pair that lives each window from where the agent is (Salimans et al. 2017);
* `pes`: a pair that stays apart for life, whose estimate owes nothing to the truncation (Vicol, Metz &
  Sohl-Dickstein 2021, "Unbiased gradient estimation in unrolled computation graphs with persistent
  evolution strategies", algorithm 2).

Agents whose life is over are born again in the tasks of the next meta-update. Memory is that of a window,
however long they live.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks
from jaxmeta.estimators.streams import mean_over_streams
from jaxmeta.learners import update_rules
from jaxmeta.learners.update_rules import Agent, AgentOptimizer, Meta, UpdateRule
from jaxmeta.meta_updates.gradients import (
    finite_tasks,
    guarded_update,
    map_tasks,
    masked_mean,
    nan_unless,
)
from jaxmeta.meta_updates.outer_loop import Optimizer
from jaxmeta.meta_updates.windows import Member, Window, evolution_strategy, policy_gradient
from jaxmeta.networks.policies import Policy
from jaxmeta.networks.values import value_mlp
from jaxmeta.tasks.family import TaskFamily, sample_tasks
from jaxmeta.types import History, MetaAlgorithm, Task, Trajectory


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of learned objectives that are fixed when the program is compiled: sizes, counts and choices."""

    objective: Literal["lpg", "lpo"] = "lpg"
    """The rule that is learned: LPG's targets or LPO's drift."""
    outer: Literal["meta_gradient", "es", "pes"] = "meta_gradient"
    """The estimator of the meta-gradient."""
    num_agents: int = 32
    """Lives M that go on from one meta-update to the next, a task each."""
    lifespan: int = 100
    """Updates of a life, a multiple of `num_updates`."""
    num_updates: int = 5
    """Updates K of the window that a meta-update looks at."""
    num_streams: int = 8
    """Streams N of an agent."""
    num_steps: int = 20
    """Steps T of every stream between updates."""
    num_epochs: int = 1
    """Steps of an agent's optimiser in an update; LPO's drift is zero in the first of them."""
    hidden_sizes: tuple[int, ...] = ()
    """Layers of the agents' networks; none makes them linear."""
    num_predictions: int = 16
    """Categories of LPG's prediction."""
    memory_size: int = 32
    """Units of LPG's LSTM, or of LPO's hidden layer."""
    tasks_per_chunk: int | None = None
    """Agents that are worked on at a time; None is the library's choice for this machine."""
    rematerialize: bool = True
    """Compute an update's intermediate values again in the reverse pass."""
    unroll: int = 1
    """Steps of acting compiled into one iteration."""

    def __post_init__(self) -> None:
        checks.fields(self)
        checks.choice("objective", self.objective, ("lpg", "lpo"))
        checks.choice("outer", self.outer, ("meta_gradient", "es", "pes"))
        at_least_one = (
            *("num_agents", "lifespan", "num_updates", "num_streams", "num_steps", "num_epochs"),
            *("num_predictions", "memory_size", "unroll"),
        )
        for name in at_least_one:
            checks.at_least(name, getattr(self, name), 1)
        if self.tasks_per_chunk is not None:
            checks.at_least("tasks_per_chunk", self.tasks_per_chunk, 1)
        if self.lifespan % self.num_updates:
            raise ValueError(
                f"lifespan={self.lifespan} must be a multiple of num_updates={self.num_updates}"
            )
        if self.objective == "lpo" and self.num_epochs < 2:
            raise ValueError(
                f"num_epochs={self.num_epochs} must be at least 2 with objective='lpo': its drift has no "
                "gradient in the first"
            )


class Hyper(NamedTuple):
    """Numbers of learned objectives that may be swept, scheduled or learned, each a float or an array ``[]``."""

    discount: float = 0.95
    """γ of agents and meta-objective."""
    gae_lambda: float = 0.95
    """λ of the meta-gradient's advantages, and of agents that have some."""
    step_size: float = 1.0
    """Step size of the agents' optimiser."""
    prediction_cost: float = 0.5
    """Weight of the prediction's part of an agent's loss (α_y of LPG)."""
    entropy_cost: float = 0.0
    """Weight of the policy's entropy in LPO's loss."""
    learning_rate: float = 1e-3
    """Step size of the outer optimiser."""
    max_grad_norm: float = 1.0
    """Clips the norm of each agent's meta-gradient: one at the edge of chaos must not outweigh all others.
    Evolution strategies, whose estimates are large and few worse than others, go unclipped."""
    critic_step_size: float = 0.05
    """Step size of the critics' Adam; for `meta_gradient`."""
    noise_std: float = 0.02
    """Standard deviation σ of perturbations; for evolution strategies."""
    policy_entropy_bonus: float = 0.01
    """β_0: the rule's reward for an agent's entropy."""
    prediction_entropy_bonus: float = 1e-3
    """β_1: for that of LPG's prediction."""
    policy_target_cost: float = 1e-3
    """β_2: cost of the square of LPG's π̂."""
    prediction_target_cost: float = 1e-3
    """β_3: cost of the square of LPG's ŷ."""


class State(NamedTuple):
    """The state of the slow loop: the rule and the agents that live by it."""

    meta: Meta
    members: Member
    """``[M]``."""
    optimizer: Any
    num_updates: jax.Array
    """``[]``, int32: meta-updates that were applied."""


@checks.constructor()
def learned_objective(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    policy: Policy | None = None,
    optimizer: Optimizer = optax.adam,
    agent_optimizer: AgentOptimizer = optax.sgd,
) -> MetaAlgorithm:
    """A learned objective on a family of tasks.

    Args:
        family: The tasks' family; ``step`` is given ``config.num_agents`` of its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different
            values can be vmapped.
        policy: The agents' policy; None builds one that fits the action space.
        optimizer: ``learning_rate -> optax.GradientTransformation`` of the outer loop.
        agent_optimizer: The same of the agents. A meta-gradient through Adam needs its ``eps_root``
            positive.

    Raises:
        ValueError: the policy does not fit the family's action space; a value of ``hyper`` is out of
            range; in ``step``, the number of tasks is not ``config.num_agents``.
    """
    followed = rule(config)
    parts = update_rules.rule_learner(
        followed,
        family,
        hidden_sizes=config.hidden_sizes,
        num_epochs=config.num_epochs,
        policy=policy,
        optimizer=agent_optimizer,
        rematerialize=config.rematerialize,
    )
    window = Window(
        parts.learner,
        family.env,
        lifespan=config.lifespan,
        num_updates=config.num_updates,
        num_streams=config.num_streams,
        num_steps=config.num_steps,
        unroll=config.unroll,
    )

    def charge(meta: Meta, agent: Agent, data: Trajectory, good: jax.Array) -> jax.Array:
        outputs = parts.outputs(agent.params, data)
        at_steps = followed.regularizer(meta.params, outputs, data, meta.hyper)
        return mean_over_streams(at_steps, good)

    def log_prob(agent: Agent, data: Trajectory) -> jax.Array:
        return parts.outputs(agent.params, data).distribution.log_prob(data.action)

    def fitness(meta: Meta, history: History, good: jax.Array) -> jax.Array:
        earned = mean_over_streams(history.trajectories.reward, good)
        (agent, data), last_good = jax.tree.map(lambda x: x[-1], (history, good))
        return earned - charge(meta, agent, data, last_good)

    if config.outer == "meta_gradient":
        critic = value_mlp(family.observation_shape, config.hidden_sizes)
        estimator = policy_gradient(window, log_prob, charge, critic)
    else:
        estimator = evolution_strategy(window, fitness, persistent=config.outer == "pes")

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        rule_key, task_key, birth_key = jax.random.split(key, 3)
        hyper = jax.tree.map(lambda x: jnp.asarray(x, float), hyper)
        meta = Meta(followed.init(rule_key), hyper)
        drawn = sample_tasks(task_key, family, config.num_agents, split="train")
        members = jax.vmap(estimator.birth, (0, None, 0))(
            jax.random.split(birth_key, config.num_agents), meta, drawn
        )
        # Lives end at different times, so that each meta-update sees agents of every age.
        windows = jnp.arange(config.num_agents) * (config.lifespan // config.num_updates)
        ages = windows // config.num_agents * config.num_updates
        members = _aged(jnp.ones(config.num_agents, bool), members, ages)
        return State(
            meta,
            members,
            optimizer(hyper.learning_rate).init(meta.params),
            jnp.zeros((), jnp.int32),
        )

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        if num_tasks != config.num_agents:
            raise ValueError(
                f"tasks holds {num_tasks} tasks; it must hold num_agents={config.num_agents}"
            )
        meta = state.meta
        gradients, reports, members = map_tasks(
            lambda inputs: estimator.estimate(inputs[0], meta, *inputs[1:]),
            (jax.random.split(key, num_tasks), state.members, tasks),
            tasks_per_chunk=config.tasks_per_chunk,
        )
        agents = members._replace(life=members.life.agent)  # what else is in a life is the task's
        norms = jax.vmap(optax.tree.norm)(gradients)  # [M]
        good = finite_tasks((gradients, norms, reports, agents))
        limit = meta.hyper.max_grad_norm if config.outer == "meta_gradient" else jnp.inf
        shrink = jnp.minimum(1.0, limit / (norms + TINY))
        clipped = jax.tree.map(lambda x: jax.vmap(jnp.multiply)(shrink, x), gradients)
        gradient, report = masked_mean((clipped, reports), good)
        num_good = jnp.sum(good)
        applied = num_good > 0
        params, optimizer_state = guarded_update(
            optimizer(meta.hyper.learning_rate),
            gradient,
            state.optimizer,
            meta.params,
            apply=applied,
        )
        metrics = nan_unless(applied, report)
        # Whose agent is broken is born again where the next window begins.
        members = _aged(~good, members, jnp.full(num_tasks, config.lifespan))
        return State(
            meta._replace(params=params),
            members,
            optimizer_state,
            state.num_updates + applied.astype(jnp.int32),
        ), metrics | {
            "meta_grad_norm": optax.tree.norm(gradient),
            "skipped_tasks": num_tasks - num_good,
            "skipped_updates": jnp.asarray(~applied, jnp.int32),
            "env_steps": jnp.asarray(num_tasks * estimator.env_steps, jnp.int32),
        }

    return MetaAlgorithm(init, step, parts.learner)


TINY = 1e-12
"""Keeps a gradient of norm zero one."""


def rule(config: Config) -> UpdateRule:
    """The rule that ``config`` names; with `update_rules.rule_learner`, agents of any family follow it."""
    if config.objective == "lpg":
        return update_rules.lpg(
            num_predictions=config.num_predictions, memory_size=config.memory_size
        )
    return update_rules.lpo(hidden_size=config.memory_size)


def _aged(chosen: jax.Array, members: Member, ages: jax.Array) -> Member:
    """``members [M]``, of which the ``chosen`` (bool ``[M]``) are of other ``ages [M]``."""
    age = members.life.age  # [M], or [M, 2]

    def spread(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x.reshape(-1, *[1] * (age.ndim - 1)), age.shape)

    age = jnp.where(spread(chosen), spread(ages), age).astype(age.dtype)
    return members._replace(life=members.life._replace(age=age))
