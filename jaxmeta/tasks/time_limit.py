"""The time limit of an episode: environments that are cut off after a number of steps.

Every family has one time limit, its horizon. An environment that promises by ``ends_by`` to end its
episodes by the horizon is used as it is. Any other is put into a `TimeLimit`, which counts the
steps.
"""

import dataclasses
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta.tasks.environments import name_of
from jaxmeta.types import Environment, SteppedEnvironment, Task


@struct.dataclass
class TimedState:
    """The state of the environment within, and the steps taken in the episode."""

    inner: Any
    """The state of the environment within."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class TimeLimit(environment.Environment[Any, Any]):
    """An environment whose episodes are cut off after ``horizon`` steps, unless they end before."""

    env: SteppedEnvironment
    """The environment within."""
    horizon: int
    """Time limit of an episode, in steps."""

    @property
    def ends_by(self) -> int:
        return self.horizon

    @property
    def default_params(self) -> Task:
        return self.env.default_params

    @property
    def name(self) -> str:
        return name_of(self.env)

    def reset_env(self, key: jax.Array, params: Task) -> tuple[Any, TimedState]:
        obs, state = self.env.reset_env(key, params)
        return obs, TimedState(state, jnp.zeros((), jnp.int32))

    def step_env(
        self, key: jax.Array, state: TimedState, action: jax.Array, params: Task
    ) -> tuple[Any, TimedState, jax.Array, jax.Array, dict]:
        obs, inner, *rest = self.env.step_env(key, state.inner, action, params)
        return obs, TimedState(inner, state.time + 1), *rest

    def is_truncated(self, state: TimedState, params: Task) -> jax.Array:
        return self.env.is_truncated(state.inner, params) | (state.time >= self.horizon)

    def observe(
        self, key: jax.Array, state: TimedState, action: jax.Array | None, params: Task
    ) -> Any:
        return self.env.observe(key, state.inner, action, params)

    def action_space(self, params: Task | None = None) -> spaces.Space:
        return self.env.action_space(params)

    def observation_space(self, params: Task | None = None) -> spaces.Space:
        return self.env.observation_space(params)


def limited(env: Any, horizon: int) -> Any:
    """``env``, with episodes that end after at most ``horizon`` steps.

    An environment may promise by an attribute ``ends_by`` the step by which each of its episodes
    has ended. If that step is the horizon, ``env`` itself is returned and the rollout needs no
    counter; all environments of this library promise it. An environment around another may have a
    method ``limited`` that puts the limit inside, so that the outer environment sees where episodes
    end.
    """
    if ends_by(env) == horizon:
        return env
    if hasattr(type(env), "limited"):
        within = env.limited(horizon)
        if ends_by(within) == horizon:
            return within
    return TimeLimit(env.env if isinstance(env, TimeLimit) else env, horizon)


def ends_by(env: Any) -> int | None:
    """The step by which the environment promises that every episode has ended; None without a promise.

    A class that overrides ``reset_env``, ``step_env`` or ``is_truncated`` does not inherit its
    parents' promise.
    """
    for parent in type(env).__mro__:
        if "ends_by" in vars(parent):
            promised = env.ends_by
            return promised if type(promised) is int else None
        if {"reset_env", "step_env", "is_truncated"} & set(vars(parent)):
            return None
    return None


def steps_without_reset(env: Environment) -> TypeGuard[SteppedEnvironment]:
    """Whether an environment has a ``step_env`` and a ``reset_env`` of its own.

    gymnax's wrappers pass these two methods on from the environment that they wrap, and so bypass
    themselves. Of such an environment only ``step`` and ``reset`` may be called.
    """
    if isinstance(env, TimeLimit):
        return steps_without_reset(env.env)
    return hasattr(type(env), "step_env") and hasattr(type(env), "reset_env")


def without_limit(env: Environment) -> Environment:
    """The environment inside a `TimeLimit`; any other environment as it is."""
    return env.env if isinstance(env, TimeLimit) else env
