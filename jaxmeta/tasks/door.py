"""Resetting and stepping an environment: every rollout acts through `reset` and `step`.

* Observations are one array of the observation space's shape, of numbers or booleans, and become floats; those of
  several parts are flattened first (see `composite`). A reward is one such number, a flag one boolean.
* A state keeps its structure, its shapes and the kinds of its numbers from step to step. If two steps return two
  widths of one kind, the state has the wider one from the start.
* Actions have the action space's shape and kind. The environment gets actions clipped to the bounds of a `Box`;
  trajectories record actions as they were drawn.
* An episode ends by the family's horizon, whatever the environment's own limit is (see `time_limit`).

`signatures` checks these rules once for each environment, before anything compiles.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.tasks import boxes, keys
from jaxmeta.tasks.environments import (
    InvalidEnvironment,
    action_space,
    check_action,
    flat_observation,
    kind,
    summary,
)
from jaxmeta.tasks.signatures import Signature, signature_of
from jaxmeta.tasks.time_limit import (
    TimedState,
    TimeLimit,
    steps_without_reset,
    without_limit,
)
from jaxmeta.types import Environment, Task


class Transition(NamedTuple):
    """The result of one step."""

    next_obs: jax.Array
    """``[*obs_shape]``, float: the true successor, before any reset."""
    reward: jax.Array
    """``[]``, float."""
    terminated: jax.Array
    """``[]``, bool."""
    last: jax.Array
    """``[]``, bool: terminated or truncated."""
    obs: jax.Array
    """``[*obs_shape]``, float: the next observation to act on; after an end, the first of a new
    episode."""
    state: Any
    """The next state; after an end, the first of a new episode."""


def reset(env: Environment, key: jax.Array, task: Task) -> tuple[jax.Array, Any]:
    """``(obs, state)`` at the start of an episode.

    Raises InvalidEnvironment where the environment breaks the rules of this module.
    """
    signature = signature_of(env, task)
    key = key if signature.quick_keys else keys.plain(key)
    within = without_limit(env)
    obs, state = _conformed(within, _initial(within, key, task), signature)
    return obs, TimedState(state, jnp.zeros((), jnp.int32)) if isinstance(env, TimeLimit) else state


def step(
    env: Environment,
    step_key: jax.Array,
    reset_key: jax.Array,
    state: Any,
    action: jax.Array,
    task: Task,
) -> Transition:
    """One step; if it ends the episode, the environment is reset into the same task.

    Raises InvalidEnvironment as `reset` does, and where the action is not of the action space's
    shape and kind.
    """
    within, signature = without_limit(env), signature_of(env, task)
    if not signature.quick_keys:
        step_key, reset_key = keys.plain(step_key), keys.plain(reset_key)
    space = action_space(env)
    check_action("the learner's action", action, space)
    if isinstance(space, spaces.Box):
        action = boxes.clip(action, space)
    inner, late = state, jnp.zeros((), bool)
    if isinstance(env, TimeLimit):
        inner, time = state.inner, state.time + 1
        late = time >= env.horizon
    if steps_without_reset(within):
        next_obs, after, reward, terminated, _ = within.step_env(step_key, inner, action, task)
        obs, truncated = next_obs, within.is_truncated(after, task)
    else:
        obs, after, reward, terminated, truncated, info = within.step(step_key, inner, action, task)
        next_obs = info["final_observation"]
    terminated, ended = _flag(terminated), _flag(terminated) | _flag(truncated)
    last = ended | late
    begins_anew = last if steps_without_reset(within) else late & ~ended
    if steps_without_reset(within) or isinstance(env, TimeLimit):
        # The reset is computed at every step: under a vmap it cannot be skipped. Drawing all resets
        # beforehand is slower, because of the memory that it writes and reads.
        anew = _initial(within, reset_key, task)
        obs, after = jax.tree.map(
            lambda new, old: jnp.where(begins_anew, new, old),
            *(_conformed(within, x, signature) for x in (anew, (obs, after))),
        )
    else:
        obs, after = _conformed(within, (obs, after), signature)
    if isinstance(env, TimeLimit):
        after = TimedState(after, jnp.where(last, 0, time))
    return Transition(
        next_obs=_as_float(flat_observation(within, next_obs)),
        reward=_number(reward),
        terminated=terminated,
        last=last,
        obs=obs,
        state=after,
    )


def _initial(env: Environment, key: jax.Array, task: Task) -> tuple[Any, Any]:
    return (env.reset_env if steps_without_reset(env) else env.reset)(key, task)


def _conformed(
    env: Environment, obs_and_state: tuple[Any, Any], signature: Signature
) -> tuple[jax.Array, Any]:
    """The observation as one array of floats, and the state with the signature's dtypes and jax's own keys."""
    obs, state = obs_and_state
    if str(jax.tree.structure(state)) != str(jax.tree.structure(signature.state)):
        found, known = checks.structures(state, signature.state)
        raise InvalidEnvironment(f"the state has the structure {found}, and had {known}; {CHANGED}")

    def cast(x: Any, like: Any) -> jax.Array:
        x = jnp.asarray(x)
        if kind(like.dtype) == "key":
            return keys.plain(x)
        fits = x.shape == like.shape and kind(x.dtype) == kind(like.dtype)
        if not fits or jnp.promote_types(x.dtype, like.dtype) != like.dtype:
            raise InvalidEnvironment(
                f"the state has a leaf that is {summary(x)}, and was {summary(like)}; {CHANGED}"
            )
        return x.astype(like.dtype)

    obs = _as_float(flat_observation(env, obs))
    return obs, jax.tree.map(cast, state, signature.state)


CHANGED = (
    "the environment has changed since it was first checked: it must not change, and environments that are equal "
    "must do the same"
)


def _flag(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    if x.size != 1 or x.dtype != bool:
        raise InvalidEnvironment(f"a flag is {summary(x)}, and was one boolean; {CHANGED}")
    return x.reshape(())


def _number(x: Any) -> jax.Array:
    x = _as_float(x)
    if x.size != 1:
        raise InvalidEnvironment(f"the reward is {summary(x)}, and was one number; {CHANGED}")
    return x.reshape(())


def _as_float(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.result_type(float))
