"""The fast loop of off-policy learners: every update looks at the last batches of experience again.

What an old batch says of the present policy is a matter of importance ratios, which the learners' own
gradients see to; here are the agent, what it keeps, and the meta-objective that they share.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks, rollouts
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.episodes import in_first_episode
from jaxmeta.estimators.returns import advantages_and_targets, td_errors
from jaxmeta.estimators.streams import count, mean_over_streams, without_broken_streams
from jaxmeta.learners.gradient import (
    Adaptation,
    Meta,
    adapted,
    episode_steps,
    stepped,
    with_adapted,
)
from jaxmeta.networks.policies import Policy, acting
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import History, Learner, Params, Task, Trajectory


@dataclasses.dataclass(frozen=True)
class Config(Adaptation):
    """Settings of off-policy learners; algorithms add their own."""

    num_updates: int = 3
    """Updates (K) in meta-training, each after a new batch; 0 trains without meta-learning."""
    num_batches: int = 2
    """Batches that an update looks at (R), the newest and those before it; 1 forgets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("num_batches", self.num_batches, 1)


class Agent(NamedTuple):
    """The parameters of one task and its last batches of experience."""

    params: Params
    batches: Trajectory
    """``[R, N, T]``, the newest first."""
    num_batches: jax.Array
    """``[]``, int32: how many of them are filled."""


class ReplayLearner(NamedTuple):
    """The learner and what the outer losses need of it; everything is of one task."""

    learner: Learner
    setup: rollouts.Setup
    """The learner in its environment, N streams of T steps."""
    num_updates: int
    """Updates of a lifetime (K)."""

    @property
    def env_steps(self) -> int:
        """Steps of one lifetime: N T (K + 1)."""
        return self.setup.num_streams * self.setup.num_steps * (self.num_updates + 1)

    def live(self, key: jax.Array, meta: Meta, task: Task) -> History:
        """A lifetime, ``[K + 1]``; each of its rounds begins new episodes."""
        return rollouts.lifetime(
            key, meta, task, setup=self.setup, num_updates=self.num_updates, restart=True
        )


@checks.arguments
def replay_learner(
    family: TaskFamily,
    config: Config,
    policy: Policy,
    policy_params: Callable[[Meta, Params], Params],
    gradient: Callable[[Meta, Params, Trajectory, jax.Array], Params],
) -> ReplayLearner:
    """The learner of an agent's ``params`` on tasks of ``family``.

    Args:
        family: The tasks' family.
        config: Sizes, counts and choices.
        policy: Who acts.
        policy_params: ``(meta, params) -> the policy's parameters``.
        gradient: ``(meta, params, data [N, T], good [N]) -> gradient``, a tree like params, of the good streams of
            one batch, zero without any; params go down its mean over those batches that have some.

    Raises:
        ValueError: ``config.num_steps`` is below the horizon.
    """
    num_steps = episode_steps(family, config)

    def birth(key: jax.Array, meta: Meta) -> Agent:
        def experience(key: jax.Array, meta: Meta) -> Trajectory:
            agent = Agent(meta.params, None, None)  # type: ignore[arg-type]
            task, (begin_key, act_key) = family.env.default_params, jax.random.split(key)
            streams = rollouts.begin_streams(begin_key, meta, task, setup=setup)
            return rollouts.collect(act_key, meta, task, agent, streams, setup=setup)[1]

        # Nothing is run: the shapes of what will be seen are all that is asked for.
        shapes = jax.eval_shape(experience, key, meta)
        batches = jax.tree.map(lambda x: jnp.zeros((config.num_batches, *x.shape), x.dtype), shapes)
        return Agent(meta.params, batches, jnp.zeros((), jnp.int32))

    def update(key: jax.Array, meta: Meta, agent: Agent, data: Trajectory) -> Agent:
        del key
        kept = agent.batches.reward.shape[1:]
        if data.reward.shape != kept:
            raise ValueError(
                f"trajectories of shape {data.reward.shape} must be [num_streams, num_steps] = {kept}, as "
                "configured: they are kept beside those before them"
            )
        batches = jax.tree.map(
            lambda new, old: jnp.concatenate([new[None], old[:-1]]), data, agent.batches
        )
        num_batches = jnp.minimum(agent.num_batches + 1, config.num_batches)
        filled = jnp.arange(config.num_batches) < num_batches
        # What is kept is what was seen: a broken stream stays broken, and is left out as often as it is met.
        seen, good = jax.vmap(without_broken_streams)(batches)
        gradients = jax.vmap(gradient, (None, None, 0, 0))(meta, agent.params, seen, good)
        some = filled & jnp.any(good, axis=1)
        share = some.astype(data.reward.dtype) / count(some, data.reward)
        mean = jax.tree.map(lambda g: jnp.tensordot(share, g, 1), gradients)
        part = adapted(agent.params, config)
        part = stepped(part, meta, adapted(mean, config), config)
        params = with_adapted(agent.params, part, config)
        return Agent(params, batches, num_batches)

    learner = Learner(
        init=birth,
        memory=lambda meta: policy.memory(),
        act=acting(policy.step, lambda meta, agent: policy_params(meta, agent.params)),
        update=jax.checkpoint(update) if config.rematerialize else update,
    )
    learner = checks.reading(learner, Meta)
    setup = rollouts.Setup(learner, family.env, config.num_streams, num_steps, config.unroll)
    return ReplayLearner(learner, setup, config.num_updates)


def outer_loss(
    log_prob: jax.Array,
    data: Trajectory,
    good: jax.Array,
    v: jax.Array,
    v_next: jax.Array,
    hyper: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The adapted agent on its own new experience, all ``[N, T]``: ``(loss [], report)``.

    Minus the policy gradient's surrogate, per step of T, plus ``value_cost`` times the values' squared
    error to TD(λ) targets. For the policy the values are constants, and so are the targets: a derivative
    through them would be one of neither the return nor the error. First episodes count, of the streams
    that are ``good [N]``.
    """
    discount = hyper.discount * data.discount
    counted = jax.vmap(in_first_episode)(data.last)
    delta = td_errors(data.reward, discount, v=v, v_next=v_next)
    delta = jax.lax.stop_gradient(jnp.where(counted, delta, 0.0))
    surrogate = jax.vmap(surrogates.SURROGATES["score"], in_axes=(0, 0, 0, 0, 0, None))(
        log_prob, data.log_prob, delta, discount, data.timestep.first, hyper.trace_lambda
    )
    gain = mean_over_streams(surrogate, good) / data.reward.shape[1]
    targets = partial(advantages_and_targets, lambda_=hyper.trace_lambda)
    _, target = jax.vmap(targets)(data.reward, discount, v=v, v_next=v_next, last=data.last)
    error = jnp.where(counted, v - jax.lax.stop_gradient(target), 0.0)
    value_loss = 0.5 * mean_over_streams(error**2, good)
    return hyper.value_cost * value_loss - gain, {"value_loss": value_loss}
