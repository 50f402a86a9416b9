r"""Meta-learned actor-critic: policy and value adapt together and are meta-learned together.

In a task the agent holds a policy π_θ and a value V_w, which start at meta-learned parameters. An update
uses the last R batches of experience, each corrected by the ratios ρ = π_θ/μ to the policy that acted
then, and moves both (Espeholt et al. 2018, "IMPALA", section 4.2, with V-trace targets v_t and the factor
g_t = γ^t of a discounted objective):

$$θ ← θ + α_θ \,\mathrm{mean}_t\, g_t \min(ρ_t, \bar ρ) (r_t + γ v_{t+1} - V_w(s_t)) ∇\log π_θ(a_t | s_t)$$

$$w ← w + α_w \,\mathrm{mean}_t\, (v_t - V_w(s_t)) ∇V_w(s_t)$$

The meta-objective, on new experience of the adapted agent, is the return less ``value_cost`` times the
prediction error (`learners.replay.outer_loss`). Its derivative goes back through all updates to the first
parameters of both, and through the values that the policy learned from: MAML (Finn, Abbeel & Levine 2017,
algorithm 3) with the critic inside.

Use it where policy and value should adapt together, on the last batches of experience and not on the newest alone. It costs as
much as MAML, for every batch that is used again.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.meta_actor_critic import Config, Hyper, meta_actor_critic

family = tasks.make("pendulum", horizon=20)
algorithm = meta_actor_critic(family, Config(num_streams=4, num_updates=2), Hyper(step_size=0.01))
state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
for key in jax.random.split(jax.random.key(1), 3):
    tasks_key, step_key = jax.random.split(key)
    drawn = tasks.sample_tasks(tasks_key, family, 4, split="train")
    state, metrics = step(step_key, state, drawn)
print(metrics["return/before"], metrics["return/after"])
```
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import checks, learners
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.episodes import cumulative_discount, in_first_episode
from jaxmeta.estimators.returns import td_errors, vtrace_targets
from jaxmeta.estimators.streams import count, without_broken_streams
from jaxmeta.learners.gradient import Meta, last_round
from jaxmeta.meta_updates.outer_loop import Optimizer
from jaxmeta.networks.policies import Policy, log_probs
from jaxmeta.networks.values import Value
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import MetaAlgorithm, Params, Task, Trajectory


@dataclasses.dataclass(frozen=True)
class Config(learners.replay.Config):
    """Settings of the meta-learned actor-critic that are fixed when the program is compiled: sizes, counts and choices."""

    rho_bar: float = 2.0
    """ρ̄, where the ratio of a step is truncated; above 1."""
    c_bar: float = 1.0
    """c̄, where the ratios of a trace are truncated."""
    adapts: str = "all"
    """The parameters that updates change: `all` of them, those of the `policy` or those of the `value`."""
    policy: Literal["mlp", "categorical", "gaussian", "softmax_linear"] = "mlp"
    """A tanh network, categorical or Gaussian as the action space asks, or softmax-linear."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("adapts", self.adapts, ("all", "policy", "value"))
        checks.between("rho_bar", self.rho_bar, 0, math.inf)
        checks.between("c_bar", self.c_bar, 0, math.inf)
        if not self.rho_bar > 1:
            raise ValueError(
                f"rho_bar={self.rho_bar} must exceed 1: the ratios of new experience are 1, where "
                "min(1, ρ) has half the derivative that the meta-gradient goes through"
            )


class Hyper(NamedTuple):
    """Numbers of the meta-learned actor-critic that may be swept, scheduled or learned, each a float or an array ``[]``."""

    discount: float = 0.99
    """γ."""
    trace_lambda: float = 0.95
    """λ of the targets, in the updates and in the meta-objective."""
    step_size: float = 0.5
    """α_θ; where it is learned, what it starts from."""
    value_step_size: float = 0.1
    """α_w, likewise."""
    value_cost: float = 0.1
    """Weight of the prediction error in the meta-objective."""
    learning_rate: float = 3e-3
    """Step size of the outer optimiser."""
    max_grad_norm: float = 10.0
    """Clips the norm of the meta-gradient."""


@checks.constructor()
def meta_actor_critic(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    policy: Policy | None = None,
    value: Value | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """A meta-learned actor-critic on a family of tasks; arguments and errors as in `maml`, and

    Args:
        value: The critic; None is a tanh network, linear in the observation without hidden sizes.
    """
    if config.adapts == "policy":
        checks.ignored(hyper, ("value_step_size",), "with adapts='policy'")
    if config.adapts == "value":
        checks.ignored(hyper, ("step_size",), "with adapts='value'")
    policy, value = learners.gradient.policy_and_value(family, config, policy, value)

    def init(key: jax.Array) -> Params:
        policy_key, value_key = jax.random.split(key)
        return {"policy": policy.init(policy_key), "value": value.init(value_key)}

    parts = learners.replay_learner(
        family,
        config,
        policy,
        init=init,
        policy_params=lambda meta, params: params["policy"],
        gradient=partial(actor_critic_gradient, policy=policy, value=value, config=config),
    )

    def task_loss(meta: Meta, key: jax.Array, task: Task) -> tuple[jax.Array, dict]:
        history = parts.live(key, meta, task)
        agent, data = last_round(history)
        data, good = without_broken_streams(data)
        loss, report = learners.replay.outer_loss(
            log_probs(policy, agent.params["policy"], data),
            data,
            good,
            value.apply(agent.params["value"], data.timestep.obs),
            value.apply(agent.params["value"], data.next_obs),
            meta.hyper,
        )
        return loss, report | learners.gradient.report(history)

    return learners.gradient.meta_learned(task_loss, parts, hyper, optimizer)


def actor_critic_gradient(
    meta: Meta,
    params: Params,
    data: Trajectory,
    good: jax.Array,
    *,
    policy: Policy,
    value: Value,
    config: Config,
) -> Params:
    """The direction that policy and value descend, on the ``good [N]`` streams of a batch ``[N, T]``.

    Targets are live, and so is the ratio that weights a step of the policy: its derivative tells how the
    update changes with the policy's first parameters. The ratios in the targets are data, as in IMPALA. If
    they were live, the policy would move the targets of the values but not the targets of the outer loss.
    """
    counted = jax.vmap(in_first_episode)(data.last) & good[:, None]
    discount = meta.hyper.discount * data.discount

    def along(function: Callable[[Params], jax.Array], at: Params, e: jax.Array) -> Params:
        num_steps = count(good, e) * e.shape[1]
        return surrogates.semi_gradient(function, at, -jnp.where(counted, e, 0.0) / num_steps)

    def log_prob(theta: Params) -> jax.Array:
        return log_probs(policy, theta, data)

    def predict(w: Params) -> jax.Array:
        return value.apply(w, data.timestep.obs)

    rho = jnp.exp(log_prob(params["policy"]) - data.log_prob)
    v, v_next = predict(params["value"]), value.apply(params["value"], data.next_obs)
    advantage, error = vtrace_errors(
        data, discount, v, v_next, jax.lax.stop_gradient(rho), meta.hyper, config
    )
    g = jax.vmap(cumulative_discount)(discount, data.timestep.first)
    weighted = g * jnp.minimum(rho, config.rho_bar) * advantage
    return {
        "policy": along(log_prob, params["policy"], weighted),
        "value": along(predict, params["value"], error),
    }


def vtrace_errors(
    data: Trajectory,
    discount: jax.Array,
    v: jax.Array,
    v_next: jax.Array,
    rho: jax.Array,
    hyper: Hyper,
    config: Config,
) -> tuple[jax.Array, jax.Array]:
    """``r_t + γ v_{t+1} - V(s_t)`` for the policy and ``v_t - V(s_t)`` for the value, all ``[N, T]``."""

    targets = partial(
        vtrace_targets,
        rho_bar=config.rho_bar,
        c_bar=config.c_bar,
        lambda_=hyper.trace_lambda,
    )
    target = jax.vmap(targets)(data.reward, discount, v=v, v_next=v_next, rho=rho, last=data.last)
    # The target of the next step; behind the end of an episode or of the stream, the next value.
    goes_on = ~data.last.at[:, -1].set(True)
    to_come = jnp.where(goes_on, jnp.roll(target, -1, axis=1), v_next)
    return td_errors(data.reward, discount, v=v, v_next=to_come), target - v
