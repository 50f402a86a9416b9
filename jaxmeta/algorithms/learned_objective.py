"""Learned objectives: a rule of learning, improved while agents live by it.

M agents learn in tasks of their own by one rule (see `update_rules`): LPG's recurrent network (Oh et al.
2020, "Discovering reinforcement learning algorithms", algorithm 1), LPO's drift (Lu et al. 2022,
"Discovered policy optimisation"), or the meta-network of DiscoRL (see `disco`). The agents' optimiser may be learned, too, beside a
rule or alone (OPEN, see `learned_optimizers`). A meta-update looks at a window of K updates of each and improves the rule by

* `meta_gradient`: the policy gradient of the agents after each of the K updates, through the updates.
  A critic for each agent, which the rule never sees, serves as baseline;
* `es`: an antithetic pair that lives each window from where the agent is (Salimans et al. 2017);
* `pes`: a pair that stays apart for life, whose estimate owes nothing to the truncation (Vicol, Metz &
  Sohl-Dickstein 2021, "Unbiased gradient estimation in unrolled computation graphs with persistent
  evolution strategies", algorithm 2).

Agents whose life is over are born again in the tasks of the next meta-update. Memory is that of a window,
however long they live.

Use it for an update rule that agents follow in other families. Meta-training takes many lifetimes.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.learned_objective import Config, Hyper, learned_objective

family = tasks.make("tabular")
algorithm = learned_objective(family, Config(num_agents=4, objective="lpg"), Hyper())
state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
for key in jax.random.split(jax.random.key(1), 3):
    tasks_key, step_key = jax.random.split(key)
    drawn = tasks.sample_tasks(tasks_key, family, 4, split="train")
    state, metrics = step(step_key, state, drawn)
print(metrics)
```
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks
from jaxmeta.estimators.streams import mean_over_streams
from jaxmeta.learners import disco, update_rules
from jaxmeta.learners.disco import DiscoRule
from jaxmeta.learners.learned_optimizers import LearnedOptimizer
from jaxmeta.learners.update_rules import Agent, AgentOptimizer, Meta, RuleLearner, UpdateRule
from jaxmeta.meta_updates import windows
from jaxmeta.meta_updates.gradients import (
    finite_tasks,
    map_tasks,
    masked_mean,
    nan_unless,
)
from jaxmeta.meta_updates.outer_loop import PARAMS, Optimizer, as_arrays, descend
from jaxmeta.meta_updates.windows import Estimator, MakeEstimator, Member, Objective, Window
from jaxmeta.networks.policies import Policy
from jaxmeta.networks.values import Value, value_mlp
from jaxmeta.rollouts import Setup, lifelong
from jaxmeta.tasks.family import TaskFamily, sample_tasks
from jaxmeta.tasks.keys import quick
from jaxmeta.types import Learner, MetaAlgorithm, Params, Task, Trajectory

ESTIMATORS: dict[str, MakeEstimator] = {
    "meta_gradient": windows.policy_gradient,
    "es": windows.evolution_strategy,
    "pes": windows.persistent_evolution_strategy,
}
"""The estimators that `Config.outer` names."""


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
    """The rule's parameters and numbers: the input of the agents."""
    members: Member
    """``[M]``."""
    optimizer: Any
    """The optimiser's state."""
    num_updates: jax.Array
    """``[]``, int32: meta-updates that were applied."""


@checks.constructor()
def learned_objective(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    rule: UpdateRule | DiscoRule | None = None,
    estimator: MakeEstimator | None = None,
    policy: Policy | None = None,
    optimizer: Optimizer = optax.adam,
    agent_optimizer: AgentOptimizer | LearnedOptimizer = optax.sgd,
) -> MetaAlgorithm:
    """A learned objective on a family of tasks.

    Args:
        family: The tasks' family; ``step`` is given ``config.num_agents`` of its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different
            values can be vmapped.
        rule: The rule that is learned, such as ``update_rules.lpg(memory_size=8)``, ``disco.disco()`` or one's own;
            None builds the one that ``config.objective`` names. DiscoRL's agents have a network of their own, whose
            torso has ``config.hidden_sizes``, and learn from their newest experience.
        estimator: The meta-gradient estimator, such as `windows.persistent_evolution_strategy`; None is the
            one that ``config.outer`` names.
        policy: The agents' policy; None builds one that fits the action space.
        optimizer: ``learning_rate -> optax.GradientTransformation`` of the outer loop.
        agent_optimizer: The same of the agents. A meta-gradient through Adam needs its ``eps_root``
            positive; `disco.adam` needs none. A learned optimiser, such as ``learned_optimizers.open_optimizer()``, is learned
            with the rule, or alone where the rule has no parameters, as ``update_rules.dpo()``. It is made for evolution strategies:
            a meta-gradient reaches its own parameters, and none of the rule's.

    Raises:
        ValueError: the policy does not fit the family's action space; a value of ``hyper`` is out of
            range, or has no effect; in ``step``, the number of tasks is not ``config.num_agents``.
    """
    _refuse_ignored(config, hyper, rule, estimator)
    followed = rule or rule_of(config)
    make_estimator = estimator or ESTIMATORS[config.outer]
    if not isinstance(followed, DiscoRule):
        _refuse_unlearned(followed, agent_optimizer, make_estimator)
    critic = value_mlp(family.observation_shape, config.hidden_sizes)
    how = (family, config, agent_optimizer, critic, policy)
    if isinstance(followed, DiscoRule):
        learner, first_params, judged = _disco_parts(followed, *how)
    else:
        learner, first_params, judged = _rule_parts(followed, *how)
    setup = Setup(learner, family.env, config.num_streams, config.num_steps, config.unroll)
    window = Window(setup, config.lifespan, config.num_updates)
    made = make_estimator(window, judged)

    def init(key: jax.Array, hyper: Hyper = hyper) -> State:
        rule_key, *keys = jax.random.split(key, 3)
        hyper = as_arrays(hyper)
        meta = Meta(first_params(rule_key), hyper)
        members = _first_members(keys, meta, family, made, config)
        optimizer_state = optimizer(hyper.learning_rate).init(meta.params)
        return State(meta, members, optimizer_state, jnp.zeros((), jnp.int32))

    def step(key: jax.Array, state: State, tasks: Task) -> tuple[State, dict]:
        num_tasks = lifelong.num_lives(tasks, config.num_agents)
        key, meta = quick(key), state.meta
        gradients, reports, members = map_tasks(
            lambda inputs: made.estimate(inputs[0], meta, *inputs[1:]),
            (jax.random.split(key, num_tasks), state.members, tasks),
            tasks_per_chunk=config.tasks_per_chunk,
        )
        # What else is in a life is the task's.
        good = finite_tasks((gradients, reports, members._replace(life=members.life.agent)))
        gradient, report = masked_mean((gradients, reports), good)
        applied = jnp.any(good)
        transform = optimizer(meta.hyper.learning_rate)  # the estimators clip
        state = descend(state, gradient, PARAMS, transform, apply=applied)
        # A broken agent is born again where the next window begins.
        members = members._replace(life=lifelong.aged(members.life, ~good, config.lifespan))
        return state._replace(members=members), {
            **nan_unless(applied, report),
            "meta_grad_norm": optax.tree.norm(gradient),
            "skipped_tasks": num_tasks - jnp.sum(good),
            "skipped_updates": jnp.asarray(~applied, jnp.int32),
            "env_steps": jnp.asarray(num_tasks * made.env_steps, jnp.int32),
        }

    return MetaAlgorithm(init, step, learner, setup.collects())


def rule_of(config: Config) -> UpdateRule:
    """The rule that ``config`` names; with `update_rules.rule_learner`, agents of any family follow it."""
    if config.objective == "lpg":
        return update_rules.lpg(
            num_predictions=config.num_predictions, memory_size=config.memory_size
        )
    return update_rules.lpo(hidden_size=config.memory_size)


_Parts = tuple[Learner, Callable[[jax.Array], Params], Objective]
"""The agents, the first parameters ``(key) -> params`` of what is learned, and what the agents are judged by."""


def _rule_parts(
    rule: UpdateRule,
    family: TaskFamily,
    config: Config,
    optimizer: AgentOptimizer | LearnedOptimizer,
    critic: Value,
    policy: Policy | None,
) -> _Parts:
    """The agents that follow a rule of `update_rules`, and what they are judged by."""
    parts = update_rules.rule_learner(
        rule,
        family,
        hidden_sizes=config.hidden_sizes,
        num_epochs=config.num_epochs,
        policy=policy,
        optimizer=optimizer,
        rematerialize=config.rematerialize,
        lifespan=config.lifespan if update_rules.reads_time(rule, optimizer) else None,
    )
    return parts.learner, parts.first_params, objective(rule, parts, critic)


def _disco_parts(
    rule: DiscoRule,
    family: TaskFamily,
    config: Config,
    optimizer: AgentOptimizer | LearnedOptimizer,
    critic: Value,
    policy: Policy | None,
) -> _Parts:
    """The agents that follow DiscoRL, and what they are judged by: their entropy is the rule's only other charge."""
    if policy is not None:
        raise ValueError(
            "policy must be None with DiscoRL, whose agents have a network of their own"
        )
    if isinstance(optimizer, LearnedOptimizer):
        raise ValueError(
            "agent_optimizer must make optax optimisers with DiscoRL: a learned one is for agents of update_rules"
        )
    parts = disco.disco_learner(
        rule,
        family,
        hidden_sizes=config.hidden_sizes,
        optimizer=optimizer,
        rematerialize=config.rematerialize,
    )

    def log_prob(agent: disco.Agent, data: Trajectory) -> jax.Array:
        return parts.policy(agent.params, data).log_prob(data.action)

    def charge(meta: Meta, agent: disco.Agent, data: Trajectory, good: jax.Array) -> jax.Array:
        entropy = parts.policy(agent.params, data).entropy()
        return -meta.hyper.policy_entropy_bonus * mean_over_streams(entropy, good)

    return parts.learner, rule.init, Objective(log_prob, charge, critic)


def objective(rule: UpdateRule, parts: RuleLearner, critic: Value) -> Objective:
    """The estimators' view of agents that follow ``rule``."""

    def log_prob(agent: Agent, data: Trajectory) -> jax.Array:
        return parts.outputs(agent.params, data, agent.age).distribution.log_prob(data.action)

    def charge(meta: Meta, agent: Agent, data: Trajectory, good: jax.Array) -> jax.Array:
        outputs = parts.outputs(agent.params, data, agent.age)
        at_steps = rule.regularizer(parts.rule_params(meta), outputs, data, meta.hyper)
        return mean_over_streams(at_steps, good)

    return Objective(log_prob, charge, critic)


def _first_members(
    keys: list[jax.Array], meta: Meta, family: TaskFamily, estimator: Estimator, config: Config
) -> Member:
    """Members ``[M]`` of different ages, so that each meta-update sees agents of every age."""
    task_key, birth_key = keys
    tasks = sample_tasks(task_key, family, config.num_agents, split="train")
    birth_keys = jax.random.split(birth_key, config.num_agents)
    members = jax.vmap(estimator.birth, (0, None, 0))(birth_keys, meta, tasks)
    windows = jnp.arange(config.num_agents) * (config.lifespan // config.num_updates)
    ages = windows // config.num_agents * config.num_updates
    everyone = jnp.ones(config.num_agents, bool)
    return members._replace(life=lifelong.aged(members.life, everyone, ages))


def _refuse_unlearned(
    rule: UpdateRule,
    optimizer: AgentOptimizer | LearnedOptimizer,
    estimator: MakeEstimator,
) -> None:
    """Raises ValueError if no derivative reaches the rule: a learned optimiser takes what it reads as data."""
    through = estimator is windows.policy_gradient and isinstance(optimizer, LearnedOptimizer)
    if through and jax.tree.leaves(jax.eval_shape(rule.init, jax.random.key(0))):
        raise ValueError(
            "outer='meta_gradient' must be 'es' or 'pes' for a rule with parameters beside a learned agent_optimizer, "
            "through which no meta-gradient reaches the rule"
        )


def _refuse_ignored(
    config: Config,
    hyper: Hyper,
    rule: UpdateRule | DiscoRule | None,
    estimator: MakeEstimator | None,
) -> None:
    """Raises ValueError if a setting is not at its default and has no effect."""
    if rule is not None:
        checks.ignored(config, ("objective", "num_predictions", "memory_size"), "beside rule")
        if isinstance(rule, DiscoRule):
            because = "with DiscoRL"
            checks.ignored(config, ("num_epochs",), because)
            costs = ("policy_target_cost", "prediction_target_cost", "prediction_entropy_bonus")
            checks.ignored(hyper, ("prediction_cost", "entropy_cost", *costs), because)
    elif config.objective == "lpo":
        because = "with objective='lpo'"
        checks.ignored(config, ("num_predictions",), because)
        of_lpg = ("prediction_entropy_bonus", "policy_target_cost", "prediction_target_cost")
        checks.ignored(hyper, of_lpg, because)
    else:
        checks.ignored(hyper, ("entropy_cost",), "with objective='lpg'")
    if estimator is not None:
        checks.ignored(config, ("outer",), "beside estimator")
    elif config.outer == "meta_gradient":
        checks.ignored(hyper, ("noise_std",), "with outer='meta_gradient'")
    else:
        because = f"with outer={config.outer!r}"
        checks.ignored(hyper, ("max_grad_norm", "critic_step_size"), because)
