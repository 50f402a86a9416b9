"""Transformations of rewards: scaled, signed, delayed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxmeta import checks
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.transform.laws import factor
from jaxmeta.tasks.transform.wrappers import (
    Transformed,
    TransformedParams,
    Wrapper,
    carried,
    inner_return,
    transformed,
)
from jaxmeta.types import Task


@dataclasses.dataclass(frozen=True)
class ScaledRewards(Transformed):
    """Rewards are multiplied by ``drawn``."""

    @property
    def nothing(self) -> jax.Array:
        return jnp.ones(())

    def earn(self, reward: jax.Array, params: TransformedParams) -> jax.Array:
        return params.drawn * reward


@checks.arguments
def scaled_rewards(family: TaskFamily, *, scale: float = 10.0) -> TaskFamily:
    """The family with its rewards multiplied by a factor, log-uniform in ``[1 / scale, scale]``.

    Out of distribution the factor lies outside, on either side, by up to a factor of sqrt(scale).

    Raises:
        ValueError: ``scale`` is not above 1.
    """
    scale = checks.between("scale", scale, 1, 1e6)
    if scale == 1:
        raise ValueError(f"scale={scale} must be above 1")
    optimal_return = family.optimal_return

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        return factor(key, scale, split)

    return transformed(
        family,
        ScaledRewards(family.env),
        draw,
        prefix="scaled_rewards",
        optimal_action=carried(family.optimal_action),
        optimal_return=optimal_return and (lambda task: task.drawn * optimal_return(task.inner)),
        expert_action=carried(family.expert_action),
    )


@checks.arguments
def signed_rewards(family: TaskFamily) -> TaskFamily:
    """The family with rewards multiplied by 1 or -1, with equal probabilities.

    Every split draws from both signs. The result has no controllers, because the known ones would
    seek penalties.
    """

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        return jax.random.rademacher(key, (), float)

    return transformed(family, ScaledRewards(family.env), draw, prefix="signed_rewards")


@struct.dataclass
class DelayedState:
    """The state within and the rewards that are still to be paid."""

    inner: Any
    """The state of the environment within."""
    owed: jax.Array
    """``[longest delay + 1]``, the reward to pay after each number of steps."""


@dataclasses.dataclass(frozen=True)
class DelayedRewards(Transformed):
    """Each reward is paid ``drawn`` steps later, int32; at an episode's end all outstanding rewards are paid.

    So an episode has the same return as within.
    """

    longest: int
    """The longest possible delay, in steps."""

    ends_by = Wrapper.ends_by  # the overridden methods end no episode

    @property
    def nothing(self) -> jax.Array:
        return jnp.zeros((), jnp.int32)

    def reset_env(
        self, key: jax.Array, params: TransformedParams
    ) -> tuple[jax.Array, DelayedState]:
        obs, inner = self.env.reset_env(key, params.inner)
        return obs, DelayedState(inner, jnp.zeros(self.longest + 1))

    def step_env(
        self, key: jax.Array, state: DelayedState, action: jax.Array, params: TransformedParams
    ) -> tuple[jax.Array, DelayedState, jax.Array, jax.Array, dict]:
        obs, inner, reward, terminated, info = self.env.step_env(
            key, state.inner, action, params.inner
        )
        owed = state.owed.at[params.drawn].add(reward)
        last = jnp.logical_or(terminated, self.env.is_truncated(inner, params.inner))
        paid = jnp.where(last, jnp.sum(owed), owed[0])
        owed = jnp.append(owed[1:], jnp.zeros((), owed.dtype))
        return obs, DelayedState(inner, owed), paid, terminated, info

    def state_within(self, state: DelayedState) -> Any:
        return state.inner


@checks.arguments
def delayed_rewards(family: TaskFamily, *, max_delay: int = 10) -> TaskFamily:
    """The family with its rewards paid some steps late; outstanding rewards are paid at an episode's end.

    The delay is uniform from 0 to ``max_delay`` steps; out of distribution it is longer, up to
    twice ``max_delay``. Returns and optima stay the same.
    """
    max_delay = checks.at_least("max_delay", max_delay, 1)

    def draw(key: jax.Array, inner: Task, split: str) -> jax.Array:
        first = max_delay + 1 if split == "out_of_distribution" else 0
        last = 2 * max_delay if split == "out_of_distribution" else max_delay
        return jax.random.randint(key, (), first, last + 1, jnp.int32)

    return transformed(
        family,
        DelayedRewards(family.env, longest=2 * max_delay),
        draw,
        prefix="delayed_rewards",
        optimal_action=carried(family.optimal_action),
        optimal_return=inner_return(family),
        expert_action=carried(family.expert_action),
    )
