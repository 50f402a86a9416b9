r"""Meta-learned value functions: predict a policy's return in a new task from a little experience of another policy.

In a task there are two policies, a target π whose value is wanted and a behaviour μ that acts. The agent
holds a value function V_w. It starts at the meta-learned w_0 and takes K steps on one batch D of μ's
experience,

$$w_{k+1} = w_k + β \,\mathrm{mean}_t\, e_t ∇V_{w_k}(s_t), \quad e_t = \mathrm{target}_t - V_{w_k}(s_t),$$

on targets for π; importance ratios ρ = π/μ correct for the actions of μ. The meta-objective is the
prediction error after the steps, ``½ E (V_{w_K}(s) - V^π(s))²``, measured on *other* experience D' of the
same task: w_K was fitted to D, so its error on D is biased. The gradient in w_0 (and in β, if step sizes
are learned) goes through every step, also through the bootstrap values in the targets.

Model-agnostic meta-learning (Finn, Abbeel & Levine 2017, algorithm 1) of temporal-difference learning
(Sutton 1988) with the corrections of Precup, Sutton & Singh 2000, "Eligibility traces for off-policy policy
evaluation", and Espeholt et al. 2018, "IMPALA".

Use it to predict a policy's return in a new task after little experience of another policy. It earns no return itself, and costs as
much as MAML.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.meta_value import Config, Hyper, meta_value, meta_value_parts
from jaxmeta.runs import training

family = tasks.make("latent_tabular")  # random MDPs with structure in common
config = Config(num_updates=3, policy="softmax_linear", hidden_sizes=(32,))
algorithm = meta_value(family, config, Hyper(discount=0.9, policy_distance=0.2))
run = training.train(algorithm, family, training.Config(meta_updates=200, num_tasks=20))

parts = meta_value_parts(family, config)  # in one new task: ten trajectories of μ, three steps
meta, task = run.state.meta, family.test(jax.random.key(1))
agent = parts.learner.init(jax.random.key(2), meta)
data = parts.experience(jax.random.key(3), meta, task, agent)
weights = parts.adapt(meta, agent, data, num_updates=3)  # before and after each step
print(parts.predict(jax.tree.map(lambda w: w[-1], weights), data.timestep.obs))
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

from jaxmeta import checks, learners, rollouts
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.returns import (
    importance_returns,
    vtrace_targets,
    weighted_importance_returns,
)
from jaxmeta.estimators.streams import count, mean_over_streams, without_broken_streams
from jaxmeta.learners.gradient import (
    Adaptation,
    AdaptiveLearner,
    Meta,
    adapted,
    check_adapts,
    first_meta,
    inner_step,
    rematerialized,
    with_adapted,
)
from jaxmeta.meta_updates.outer_loop import Optimizer
from jaxmeta.networks.policies import Policy, log_probs, policy_learner
from jaxmeta.networks.values import Value
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Learner, MetaAlgorithm, Params, Task, Trajectory

TARGETS = ("vtrace", "importance_sampling", "weighted_importance_sampling", "td")
OUTER_TARGETS = ("doubly_robust", "importance_sampling", "vtrace")


@dataclasses.dataclass(frozen=True)
class Config(Adaptation):
    """Settings of meta-learned values that are fixed when the program is compiled: sizes, counts and choices."""

    num_streams: int = 10
    """Trajectories of μ in a batch (N)."""
    num_steps: int | None = None
    """Steps of each (T), of any number: values bootstrap where a stream is cut. None is the family's horizon."""
    num_updates: int = 3
    """Steps on the batch (K) in meta-training; 0 trains one value function for all tasks."""
    step_sizes: Literal["fixed", "scalar", "parameter"] = "parameter"
    """Step sizes: fixed, one that is learned, or one learned per parameter (Meta-SGD: Li et al. 2017)."""
    scored: Literal["last", "all"] = "all"
    """The prediction error that counts: after the `last` step, or the mean over `all` K."""
    target: Literal["vtrace", "importance_sampling", "weighted_importance_sampling", "td"] = (
        "vtrace"
    )
    """The targets of the steps: V-trace(λ, ρ̄, c̄); per-decision importance sampling, plain or weighted
    (normalised over the streams); or TD(λ) without a correction, whose fixed point is the value of μ."""
    rho_bar: float = math.inf
    """ρ̄, where V-trace truncates the ratio of a TD error; below infinity its fixed point is not V^π."""
    c_bar: float = 1.0
    """c̄, where V-trace truncates the ratios of a trace: speed against noise."""
    gradient: Literal["semi", "residual"] = "semi"
    """Semi-gradient TD, or the gradient of the squared error with its targets (Baird 1995)."""
    outer_target: Literal["doubly_robust", "importance_sampling", "vtrace"] = "doubly_robust"
    """The targets that predictions are measured against: unbiased estimates of V^π, with the adapted values as
    control variates or without; or V-trace with the bars above, which is less noisy. All of them
    bootstrap from the adapted values where a time limit cuts a stream off."""
    outer_policy: Literal["behaviour", "target"] = "behaviour"
    """The policy that collects the experience on which predictions are measured. The target policy's needs no
    correction, and unbiased targets are then Monte-Carlo returns."""
    policy: Literal["mlp", "categorical", "gaussian", "softmax_linear"] = "mlp"
    """The kind of π and μ: a tanh network, categorical or Gaussian as the action space asks, or
    softmax-linear."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("scored", self.scored, ("last", "all"))
        checks.choice("target", self.target, TARGETS)
        checks.between("rho_bar", self.rho_bar, 0, math.inf)
        checks.between("c_bar", self.c_bar, 0, math.inf)
        checks.choice("gradient", self.gradient, ("semi", "residual"))
        checks.choice("outer_target", self.outer_target, OUTER_TARGETS)
        checks.choice("outer_policy", self.outer_policy, ("behaviour", "target"))
        if "vtrace" not in (self.target, self.outer_target):
            checks.ignored(self, ("rho_bar", "c_bar"), "unless target or outer_target is 'vtrace'")


class Hyper(NamedTuple):
    """Numbers of meta-learned values that may be swept, scheduled or learned, each a float or an array ``[]``."""

    discount: float = 0.9
    """γ of the values."""
    trace_lambda: float = 0.9
    """λ of V-trace and of TD(λ)."""
    step_size: float = 0.1
    """β; where it is learned, what it starts from."""
    policy_scale: float = 1.0
    """Standard deviation of π's parameters around those of a new policy."""
    policy_distance: float = 0.3
    """Standard deviation of the difference of π's and μ's parameters."""
    learning_rate: float = 3e-3
    """Step size of the outer optimiser."""
    max_grad_norm: float = 10.0
    """Clips the norm of the meta-gradient."""


class Agent(NamedTuple):
    """The two policies and the value of one task."""

    value: Params
    """Parameters w of the value, which the steps change."""
    target: Params
    """Parameters of the target policy π."""
    behaviour: Params
    """Parameters of the behaviour policy μ, which acts."""


@dataclasses.dataclass(frozen=True)
class MetaValue(AdaptiveLearner):
    """A learner of values, with the functions that losses and evaluations need. All are for one task."""

    config: Config
    """Sizes, counts and choices."""
    experience: Callable[[jax.Array, Meta, Task, Agent], Trajectory]
    """``(key, meta, task, agent) -> data [N, T]``: episodes of μ from their first step."""
    adapt: Callable[..., Params]
    """``(meta, agent, data [N, T], num_updates=K) -> w_0 ... w_K``: a tree with leading ``[K + 1]``."""
    predict: Callable[[Params, jax.Array], jax.Array]
    """``(w, obs [*batch, *obs_shape]) -> v [*batch]``."""
    log_ratio: Callable[[Agent, Trajectory], jax.Array]
    """``(agent, data [N, T]) -> log π(a_t|s_t) - log μ(a_t|s_t)``, ``[N, T]``."""
    policy: Policy
    """The policy that acts."""

    @property
    def env_steps(self) -> int:
        """Steps of one task in a meta-update: 2 N T, a batch to learn from and a batch to predict."""
        return 2 * self.setup.env_steps


@checks.arguments
def meta_value_parts(
    family: TaskFamily,
    config: Config,
    *,
    policy: Policy | None = None,
    value: Value | None = None,
) -> MetaValue:
    """The learner that ``config`` describes, on tasks of ``family``; arguments and errors as in `meta_value`."""
    policy, value = learners.gradient.policy_and_value(family, config, policy, value)
    check_adapts(config, value.init)
    log_ratio = partial(log_ratios, policy=policy)
    update = partial(value_step, log_ratio=log_ratio, value=value, config=config)
    learner = policy_learner(
        policy,
        init=partial(birth, policy=policy),
        params=lambda meta, agent: agent.behaviour,
        update=rematerialized(update, config),
        reads=Meta,
    )
    num_steps = config.num_steps or family.horizon  # values bootstrap where a stream is cut
    setup = rollouts.Setup(learner, family.env, config.num_streams, num_steps, config.unroll)
    return MetaValue(
        init=lambda key, hyper: first_meta(value.init(key), hyper, config),
        experience=partial(rollouts.sample, setup=setup),
        adapt=partial(adapt, learner=learner),
        predict=value.apply,
        log_ratio=log_ratio,
        policy=policy,
        setup=setup,
        config=config,
    )


def birth(key: jax.Array, meta: Meta, *, policy: Policy) -> Agent:
    """A newborn agent. π and μ are drawn with it, because they are as new to it as its task."""
    init_key, target_key, behaviour_key = jax.random.split(key, 3)
    target = perturbed(target_key, policy.init(init_key), meta.hyper.policy_scale)
    behaviour = perturbed(behaviour_key, target, meta.hyper.policy_distance)
    return Agent(meta.params, target, behaviour)


def log_ratios(agent: Agent, data: Trajectory, *, policy: Policy) -> jax.Array:
    """``log π(a_t|s_t) - log μ(a_t|s_t)`` on ``data [N, T]``, ``[N, T]``."""
    return log_probs(policy, agent.target, data) - data.log_prob


def value_step(
    key: jax.Array,
    meta: Meta,
    agent: Agent,
    data: Trajectory,
    *,
    log_ratio: Callable[[Agent, Trajectory], jax.Array],
    value: Value,
    config: Config,
) -> Agent:
    """The agent after a step of its value on a batch ``data [N, T]`` of μ's experience."""
    del key
    data, good = without_broken_streams(data)
    rho = jnp.exp(log_ratio(agent, data))
    part = adapted(agent.value, config)

    def predict(part: Any) -> jax.Array:
        return value.apply(with_adapted(agent.value, part, config), data.timestep.obs)

    def errors(part: Any) -> jax.Array:
        v = predict(part)
        v_next = value.apply(with_adapted(agent.value, part, config), data.next_obs)
        return inner_targets(data, good, v, v_next, rho, meta.hyper, config) - v

    if config.gradient == "residual":
        gradient = jax.grad(lambda part: 0.5 * mean_over_streams(errors(part) ** 2, good))(part)
    else:
        num_steps = count(good, data.reward) * data.reward.shape[1]
        descent = -jnp.where(good[:, None], errors(part), 0.0) / num_steps
        gradient = surrogates.semi_gradient(predict, part, descent)
    part = inner_step(part, meta, gradient, config)
    return agent._replace(value=with_adapted(agent.value, part, config))


def adapt(
    meta: Meta, agent: Agent, data: Trajectory, *, learner: Learner, num_updates: int
) -> Params:
    """The values ``w_0 ... w_K`` of K steps on one batch ``data [N, T]``: a tree with leading ``[K + 1]``."""

    def update(agent: Agent, key: jax.Array) -> tuple[Agent, Params]:
        after = learner.update(key, meta, agent, data)
        return after, after.value

    newborn = jax.tree.map(lambda w: w[None], agent.value)
    if num_updates == 0:  # a scan of no steps cannot run in Python
        return newborn
    # Updates take a key; a step of the value does not use it.
    keys = jax.random.split(jax.random.key(0), num_updates)
    _, steps = jax.lax.scan(update, agent, keys)
    return jax.tree.map(lambda w, ws: jnp.concatenate([w, ws]), newborn, steps)


@checks.constructor(policy_scale=(0, 1e6), policy_distance=(0, 1e6))
def meta_value(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    policy: Policy | None = None,
    value: Value | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """A meta-learned value function on a family of tasks.

    The prediction error after k steps is reported as ``error/k``, measured as the meta-objective is.

    Args:
        family: The tasks' family; ``step`` is given its tasks.
        config: Sizes, counts and choices.
        hyper: Defaults of ``init(key, hyper)``; kept in ``state.meta.hyper``, so runs over different
            values can be vmapped.
        policy: The kind of π and μ; None builds the one that ``config.policy`` names.
        value: The value function; None is a tanh network, linear without ``config.hidden_sizes``.
        optimizer: ``learning_rate -> optax.GradientTransformation`` of the outer loop.

    Raises:
        ValueError: the policy does not fit the family's action space; a value of ``hyper`` is out of
            range.
    """
    if "vtrace" not in (config.target, config.outer_target) and config.target != "td":
        checks.ignored(hyper, ("trace_lambda",), "without V-trace and TD(λ)")
    parts = meta_value_parts(family, config, policy=policy, value=value)

    def task_loss(meta: Meta, key: jax.Array, task: Task) -> tuple[jax.Array, dict]:
        birth_key, data_key, outer_key = jax.random.split(key, 3)
        agent = parts.learner.init(birth_key, meta)
        data = parts.experience(data_key, meta, task, agent)
        weights = parts.adapt(meta, agent, data, num_updates=config.num_updates)
        outer_agent = agent
        if config.outer_policy == "target":
            outer_agent = agent._replace(behaviour=agent.target)
        fresh = parts.experience(outer_key, meta, task, outer_agent)
        errors = jax.vmap(lambda w: prediction_error(parts, w, agent, fresh, meta.hyper, config))(
            weights
        )
        scored = errors[1:] if config.scored == "all" and config.num_updates else errors[-1:]
        report = {f"error/{k}": error for k, error in enumerate(errors)}
        report["skipped_streams"] = learners.gradient.skipped_streams(data, fresh)
        data, good = without_broken_streams(data)
        report["log_ratio"] = mean_over_streams(jnp.abs(parts.log_ratio(agent, data)), good)
        return jnp.mean(scored), report

    return learners.gradient.meta_learned(task_loss, parts, hyper, optimizer)


def prediction_error(
    parts: MetaValue, w: Params, agent: Agent, data: Trajectory, hyper: Hyper, config: Config
) -> jax.Array:
    """``½ mean_t (V_w(s_t) - target_t)²`` on data ``[N, T]`` that w does not depend on, ``[]``.

    Targets are constants. With unbiased targets the gradient is the gradient of the error to V^π, weighted by
    the states that the data's policy visits.
    """
    data, good = without_broken_streams(data)
    v, v_next = parts.predict(w, data.timestep.obs), parts.predict(w, data.next_obs)
    rho = jnp.exp(parts.log_ratio(agent, data))
    target = jax.lax.stop_gradient(outer_targets(data, v, v_next, rho, hyper, config))
    return 0.5 * mean_over_streams((v - target) ** 2, good)


def inner_targets(
    data: Trajectory,
    good: jax.Array,
    v: jax.Array,
    v_next: jax.Array,
    rho: jax.Array,
    hyper: Hyper,
    config: Config,
) -> jax.Array:
    """The targets of the steps, all ``[N, T]``; streams that are not ``good [N]`` have no part in them."""
    stream = _stream(data, v_next, rho, hyper)
    if config.target == "importance_sampling":
        return jax.vmap(importance_returns)(**stream)
    if config.target == "weighted_importance_sampling":
        return weighted_importance_returns(**stream, good=good)
    if config.target == "td":
        uncorrected = partial(vtrace_targets, lambda_=hyper.trace_lambda)
        return jax.vmap(uncorrected)(**stream | {"rho": jnp.ones_like(rho)}, v=v)
    return jax.vmap(_vtrace(hyper, config))(**stream, v=v)


def outer_targets(
    data: Trajectory, v: jax.Array, v_next: jax.Array, rho: jax.Array, hyper: Hyper, config: Config
) -> jax.Array:
    """The targets that predictions are measured against, all ``[N, T]``."""
    stream = _stream(data, v_next, rho, hyper)
    if config.outer_target == "importance_sampling":
        return jax.vmap(importance_returns)(**stream)
    if config.outer_target == "vtrace":
        return jax.vmap(_vtrace(hyper, config))(**stream, v=v)
    unbiased = partial(vtrace_targets, rho_bar=math.inf, c_bar=math.inf, lambda_=1.0)
    return jax.vmap(unbiased)(**stream, v=v)


def _vtrace(hyper: Hyper, config: Config) -> Callable[..., jax.Array]:
    """`vtrace_targets` with the bars and λ that are configured."""
    return partial(
        vtrace_targets,
        rho_bar=config.rho_bar,
        c_bar=config.c_bar,
        lambda_=hyper.trace_lambda,
    )


def _stream(data: Trajectory, v_next: jax.Array, rho: jax.Array, hyper: Hyper) -> dict[str, Any]:
    """The arguments of all targets by name, ``[N, T]`` each."""
    discount = hyper.discount * data.discount
    return dict(reward=data.reward, discount=discount, v_next=v_next, rho=rho, last=data.last)


def perturbed(key: jax.Array, params: Params, scale: jax.Array) -> Params:
    """``params`` with normal noise of standard deviation ``scale []``."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        x + scale * jax.random.normal(k, x.shape, x.dtype)
        for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)
