r"""Meta-learned action values: control by a softmax of Q, adapted by Retrace or tree-backup.

The agent holds Q_w, which starts at meta-learned parameters, and acts by π(a|s) ∝ exp(Q_w(s, a)/τ). An update
uses the last R batches of experience, each of the policy μ that acted then, and takes a step

$$w ← w + α \,\mathrm{mean}_t\, (\mathrm{target}_t - Q_w(s_t, a_t)) ∇Q_w(s_t, a_t)$$

on targets of the present π (Munos et al. 2016, "Safe and efficient off-policy reinforcement learning",
eq. 3). The policy after the updates is a differentiable function of the first parameters, so the
meta-objective is the one of `meta_actor_critic`: the return on new experience, less ``value_cost`` times
the error of the values (`learners.replay.outer_loss`).

Use it for action values that adapt off-policy. Actions must be discrete.

```python
import jax
from jaxmeta import tasks
from jaxmeta.algorithms.meta_q import Config, Hyper, meta_q

family = tasks.make("cartpole", horizon=20)
algorithm = meta_q(family, Config(num_streams=4, num_updates=2), Hyper(step_size=0.01))
state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
for key in jax.random.split(jax.random.key(1), 3):
    tasks_key, step_key = jax.random.split(key)
    drawn = tasks.sample_tasks(tasks_key, family, 4, split="train")
    state, metrics = step(step_key, state, drawn)
print(metrics["return/before"], metrics["return/after"])
```
"""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from gymnax.environments import spaces

from jaxmeta import checks, learners
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.episodes import in_first_episode
from jaxmeta.estimators.returns import action_value_targets
from jaxmeta.estimators.streams import count, without_broken_streams
from jaxmeta.learners.gradient import Meta, last_round
from jaxmeta.meta_updates.outer_loop import Optimizer
from jaxmeta.networks.distributions import Categorical
from jaxmeta.networks.policies import Policy, feed_forward
from jaxmeta.networks.values import Value, value_mlp
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import MetaAlgorithm, Params, Task, Trajectory


@dataclasses.dataclass(frozen=True)
class Config(learners.replay.Config):
    """Settings of meta-learned action values that are fixed when the program is compiled: sizes, counts and choices."""

    trace: Literal["retrace", "tree_backup"] = "retrace"
    """The factor that cuts traces of other policies' experience: min(1, π/μ); or π, which needs no μ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("trace", self.trace, ("retrace", "tree_backup"))


class Hyper(NamedTuple):
    """Numbers of meta-learned action values that may be swept, scheduled or learned, each a float or an array ``[]``."""

    discount: float = 0.99
    """γ."""
    trace_lambda: float = 0.95
    """λ of the targets, in the updates and in the meta-objective."""
    temperature: float = 0.3
    """τ, in units of return."""
    step_size: float = 0.5
    """α; where it is learned, what it starts from."""
    value_cost: float = 0.1
    """Weight of the prediction error in the meta-objective."""
    learning_rate: float = 3e-3
    """Step size of the outer optimiser."""
    max_grad_norm: float = 10.0
    """Clips the norm of the meta-gradient."""


def softmax_policy(q: Value) -> Policy:
    """``π(a|s) ∝ exp(Q_w(s, a)/τ)``; its parameters are ``(w, τ)``, a new one's τ is 1."""
    return feed_forward(
        lambda key: (q.init(key), jnp.ones(())),
        lambda params, obs: Categorical(q.apply(params[0], obs) / params[1]),
    )


@checks.constructor(temperature=(1e-6, 1e6))
def meta_q(
    family: TaskFamily,
    config: Config = Config(),
    hyper: Hyper = Hyper(),
    *,
    q: Value | None = None,
    optimizer: Optimizer = optax.adam,
) -> MetaAlgorithm:
    """Meta-learned action values on a family with discrete actions; arguments and errors as in `maml`, and

    Args:
        q: ``obs [*batch, *obs_shape] -> [*batch, A]``; None is a tanh network.
    """
    space = family.action_space
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"family {family.name!r} has actions in {space!r}; meta_q needs a Discrete space"
        )
    if q is not None:
        checks.ignored(config, ("hidden_sizes",), "beside a q= of your own")
    q = q or value_mlp(family.observation_shape, config.hidden_sizes, space.n)
    parts = learners.replay_learner(
        family,
        config,
        softmax_policy(q),
        init=q.init,
        policy_params=lambda meta, params: (params, meta.hyper.temperature),
        gradient=partial(q_gradient, q=q, config=config),
    )

    def task_loss(meta: Meta, key: jax.Array, task: Task) -> tuple[jax.Array, dict]:
        history = parts.live(key, meta, task)
        agent, data = last_round(history)
        data, good = without_broken_streams(data)
        v, distribution = mean_values(agent.params, data.timestep.obs, meta.hyper, q)
        v_next, _ = mean_values(agent.params, data.next_obs, meta.hyper, q)
        loss, report = learners.replay.outer_loss(
            distribution.log_prob(data.action), data, good, v, v_next, meta.hyper
        )
        return loss, report | learners.gradient.report(history)

    return learners.gradient.meta_learned(task_loss, parts, hyper, optimizer)


def mean_values(
    params: Params, obs: jax.Array, hyper: Hyper, q: Value
) -> tuple[jax.Array, Categorical]:
    """The mean of Q under π, and π, for ``obs [N, T, *obs_shape]``."""
    every = q.apply(params, obs)
    distribution = Categorical(every / hyper.temperature)
    return jnp.sum(jnp.exp(distribution.log_probs()) * every, axis=-1), distribution


def q_gradient(
    meta: Meta, params: Params, data: Trajectory, good: jax.Array, *, q: Value, config: Config
) -> Params:
    """The direction that Q descends, on the ``good [N]`` streams of a batch ``[N, T]``. Targets are live."""

    def taken(params: Params) -> jax.Array:
        every = q.apply(params, data.timestep.obs)
        return jnp.take_along_axis(every, data.action[..., None], axis=-1)[..., 0]

    _, distribution = mean_values(params, data.timestep.obs, meta.hyper, q)
    v_next, _ = mean_values(params, data.next_obs, meta.hyper, q)
    now, log_prob = taken(params), distribution.log_prob(data.action)
    target = jax.vmap(action_value_targets)(
        data.reward,
        meta.hyper.discount * data.discount,
        q=now,
        v_next=v_next,
        c=meta.hyper.trace_lambda * trace_factor(log_prob, data.log_prob, config.trace),
        last=data.last,
    )
    counted = jax.vmap(in_first_episode)(data.last) & good[:, None]
    error = jnp.where(counted, target - now, 0.0)
    num_steps = count(good, error) * error.shape[1]
    return surrogates.semi_gradient(taken, params, -error / num_steps)


def trace_factor(log_prob: jax.Array, log_prob_mu: jax.Array, trace: str) -> jax.Array:
    """The factor that cuts a trace at each step, from log-probabilities under π and μ, all ``[N, T]``."""
    if trace == "tree_backup":
        return jnp.exp(log_prob)
    # Ratios are data. On new experience they are 1 up to rounding, which would decide at each step
    # whether min(1, ρ) has the derivative of ρ or none.
    return jnp.minimum(1.0, jnp.exp(jax.lax.stop_gradient(log_prob) - log_prob_mu))
