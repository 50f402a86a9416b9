"""The fast loop of off-policy learners: every update uses the last batches of experience again.

Old batches need importance ratios to the present policy. The learners' own gradients hold them; this module
has the agent, the batches that it keeps, and the meta-objective that off-policy learners share.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxmeta import checks, rollouts
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.episodes import in_first_episode
from jaxmeta.estimators.returns import advantages_and_targets, td_errors
from jaxmeta.estimators.streams import count, mean_over_streams, without_broken_streams
from jaxmeta.learners.gradient import (
    Adaptation,
    AdaptiveLearner,
    Meta,
    adapted,
    check_adapts,
    episode_steps,
    first_meta,
    inner_step,
    rematerialized,
    with_adapted,
)
from jaxmeta.networks.policies import Policy, policy_learner
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Hyper, Params, Trajectory


@dataclasses.dataclass(frozen=True)
class Config(Adaptation):
    """Settings of off-policy learners; algorithms add their own."""

    num_updates: int = 3
    """Updates (K) in meta-training, each after a new batch; 0 trains without meta-learning."""
    num_batches: int = 2
    """The last batches that an update uses (R); 1 forgets all but the newest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("num_batches", self.num_batches, 1)


class Agent(NamedTuple):
    """The parameters of one task and its last batches of experience."""

    params: Params
    """The parameters that updates change."""
    batches: Trajectory
    """``[R, N, T]``, the newest first."""
    num_batches: jax.Array
    """``[]``, int32: the number of filled batches."""


Gradient = Callable[[Meta, Params, Trajectory, jax.Array], Params]
"""``(meta, params, data [N, T], good [N]) -> gradient``, a tree like params: the direction that an update descends, on
the good streams of one batch; zero without any."""


@checks.arguments
def replay_learner(
    family: TaskFamily,
    config: Config,
    policy: Policy,
    *,
    init: Callable[[jax.Array], Params],
    policy_params: Callable[[Meta, Params], Params],
    gradient: Gradient,
) -> AdaptiveLearner:
    """The learner of an agent's ``params`` on tasks of ``family``.

    Args:
        family: The tasks' family.
        config: Sizes, counts and choices.
        policy: The policy that acts.
        init: ``(key) -> params``, the parameters that training starts from.
        policy_params: ``(meta, params) -> the policy's parameters``.
        gradient: The gradient on one batch; an update descends its mean over the batches with good streams.

    Raises:
        ValueError: ``config.num_steps`` is below the horizon; there are no parameters of the name
            ``config.adapts``.
    """
    num_steps = episode_steps(family, config)
    check_adapts(config, init)

    def birth(key: jax.Array, meta: Meta) -> Agent:
        batches = empty_batches(key, meta, setup, config.num_batches)
        return Agent(meta.params, batches, jnp.zeros((), jnp.int32))

    def update(key: jax.Array, meta: Meta, agent: Agent, data: Trajectory) -> Agent:
        del key
        agent = remember(agent, data)
        mean = mean_gradient(meta, agent, gradient)
        part = inner_step(adapted(agent.params, config), meta, adapted(mean, config), config)
        return agent._replace(params=with_adapted(agent.params, part, config))

    learner = policy_learner(
        policy,
        init=birth,
        params=lambda meta, agent: policy_params(meta, agent.params),
        update=rematerialized(update, config),
        reads=Meta,
    )
    setup = rollouts.Setup(learner, family.env, config.num_streams, num_steps, config.unroll)

    def start(key: jax.Array, hyper: Hyper) -> Meta:
        return first_meta(init(key), hyper, config)

    return AdaptiveLearner(start, setup, config)


def empty_batches(
    key: jax.Array, meta: Meta, setup: rollouts.Setup, num_batches: int
) -> Trajectory:
    """Zeros in the shape of the last batches of experience, ``[R, N, T]``."""

    def experience(key: jax.Array, meta: Meta) -> Trajectory:
        agent = Agent(meta.params, None, None)  # type: ignore[arg-type]
        return rollouts.sample(key, meta, setup.env.default_params, agent, setup=setup)

    shapes = jax.eval_shape(experience, key, meta)  # runs nothing
    return jax.tree.map(lambda x: jnp.zeros((num_batches, *x.shape), x.dtype), shapes)


def remember(agent: Agent, data: Trajectory) -> Agent:
    """The agent with ``data [N, T]`` as its newest batch and without its oldest.

    Raises:
        ValueError: ``data`` has another shape than the batches before it.
    """
    num_batches, *kept = agent.batches.reward.shape
    if data.reward.shape != tuple(kept):
        raise ValueError(
            f"trajectories of shape {data.reward.shape} must be [num_streams, num_steps] = {tuple(kept)}, as "
            "configured: they are kept beside those before them"
        )
    batches = jax.tree.map(
        lambda new, old: jnp.concatenate([new[None], old[:-1]]), data, agent.batches
    )
    return agent._replace(
        batches=batches, num_batches=jnp.minimum(agent.num_batches + 1, num_batches)
    )


def mean_gradient(meta: Meta, agent: Agent, gradient: Gradient) -> Params:
    """The mean of ``gradient`` over the agent's batches that have good streams, a tree like params."""
    filled = jnp.arange(agent.batches.reward.shape[0]) < agent.num_batches
    # A broken stream is kept as it is, and left out in every update on its batch.
    seen, good = jax.vmap(without_broken_streams)(agent.batches)
    gradients = jax.vmap(gradient, (None, None, 0, 0))(meta, agent.params, seen, good)
    some = filled & jnp.any(good, axis=1)
    share = some.astype(seen.reward.dtype) / count(some, seen.reward)
    return jax.tree.map(lambda g: jnp.tensordot(share, g, 1), gradients)


class OuterHyper(Protocol):
    """The part of an algorithm's `Hyper` that `outer_loss` reads."""

    @property
    def discount(self) -> float:
        """γ."""

    @property
    def trace_lambda(self) -> float:
        """λ of the advantages and of the values' targets."""

    @property
    def value_cost(self) -> float:
        """Weight of the values' squared error."""


def outer_loss(
    log_prob: jax.Array,
    data: Trajectory,
    good: jax.Array,
    v: jax.Array,
    v_next: jax.Array,
    hyper: OuterHyper,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The adapted agent on its own new experience, all ``[N, T]``: ``(loss [], report)``.

    Minus the policy gradient's surrogate, per step of T, plus ``value_cost`` times the values' squared
    error to TD(λ) targets. Values are constants for the policy, and targets are constants for the values: a
    derivative through them is a derivative of neither the return nor the error. First episodes of the
    ``good [N]`` streams count.
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
