r"""Meta-learned action values: control by a softmax of Q, adapted by Retrace or tree-backup.

The agent holds Q_w, which starts at what is meta-learned, and acts by π(a|s) ∝ exp(Q_w(s, a)/τ). An update
looks at the last R batches of experience, each of the policy μ that acted then, and takes a step

$$w ← w + α \,\mathrm{mean}_t\, (\mathrm{target}_t - Q_w(s_t, a_t)) ∇Q_w(s_t, a_t)$$

on targets of the present π (Munos et al. 2016, "Safe and efficient off-policy reinforcement learning",
eq. 3). The policy after the updates is a differentiable function of where they began, so the
meta-objective is that of `meta_actor_critic`: the return on new experience, less ``value_cost`` times the
error of the values (`learners.replay.outer_loss`).
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from gymnax.environments import spaces

from jaxmeta import checks, learners, meta_updates
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.episodes import in_first_episode
from jaxmeta.estimators.returns import action_value_targets
from jaxmeta.estimators.streams import count, without_broken_streams
from jaxmeta.learners.gradient import Meta
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
    q = q or value_mlp(family.observation_shape, config.hidden_sizes, space.n)
    policy = softmax_policy(q)

    def init(key: jax.Array, hyper: Any) -> Meta:
        return learners.gradient.first_meta(q.init(key), hyper, config)

    def values(params: Params, obs: jax.Array, hyper: Any) -> tuple[jax.Array, Categorical]:
        """Mean of Q under π, and π, for ``obs [N, T, *obs_shape]``."""
        every = q.apply(params, obs)
        distribution = Categorical(every / hyper.temperature)
        return jnp.sum(jnp.exp(distribution.log_probs()) * every, axis=-1), distribution

    def gradient(meta: Meta, params: Params, data: Trajectory, good: jax.Array) -> Params:
        """Down which Q goes, of one batch ``[N, T]``; ratios and targets are live."""

        def taken(params: Params) -> jax.Array:
            every = q.apply(params, data.timestep.obs)
            return jnp.take_along_axis(every, data.action[..., None], axis=-1)[..., 0]

        _, distribution = values(params, data.timestep.obs, meta.hyper)
        v_next, _ = values(params, data.next_obs, meta.hyper)
        log_prob = distribution.log_prob(data.action)
        if config.trace == "retrace":
            # Ratios of new experience are 1, where the derivative of min(1, ρ) is whole or none of ρ's
            # as rounding has it: the trace's length is data.
            ratio = jnp.exp(jax.lax.stop_gradient(log_prob) - data.log_prob)
            cut = jnp.minimum(1.0, ratio)
        else:
            cut = jnp.exp(log_prob)
        now = taken(params)
        target = jax.vmap(action_value_targets)(
            data.reward,
            meta.hyper.discount * data.discount,
            q=now,
            v_next=v_next,
            c=meta.hyper.trace_lambda * cut,
            last=data.last,
        )
        counted = jax.vmap(in_first_episode)(data.last) & good[:, None]
        error = jnp.where(counted, target - now, 0.0)
        num_steps = count(good, error) * error.shape[1]
        return surrogates.semi_gradient(taken, params, -error / num_steps)

    parts = learners.replay_learner(
        family, config, policy, lambda meta, params: (params, meta.hyper.temperature), gradient
    )

    def task_loss(meta: Meta, key: jax.Array, task: Task) -> tuple[jax.Array, dict]:
        history = parts.live(key, meta, task)
        params, data = jax.tree.map(lambda x: x[-1], (history.agent.params, history.trajectories))
        data, good = without_broken_streams(data)
        v, distribution = values(params, data.timestep.obs, meta.hyper)
        v_next, _ = values(params, data.next_obs, meta.hyper)
        loss, report = learners.replay.outer_loss(
            distribution.log_prob(data.action), data, good, v, v_next, meta.hyper
        )
        return loss, report | learners.gradient.report(history)

    return meta_updates.follow_meta_gradient(
        task_loss,
        parts.learner,
        init,
        learners.gradient.learned_part(config),
        hyper,
        optimizer,
        env_steps=parts.env_steps,
        tasks_per_chunk=config.tasks_per_chunk,
    )
