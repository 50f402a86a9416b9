"""Acting: one stream of experience. Everything here is written for one stream; callers ``vmap``.

Rollouts are data. Nothing that comes out of them carries a gradient: losses evaluate the policy again
on what was recorded, and no derivative ever runs through an environment.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import checks, keys
from jaxmeta.tasks.family import steps_without_reset
from jaxmeta.types import Learner, Stream, Task, TimeStep, Trajectory


def begin_stream(key: jax.Array, meta: Any, task: Task, *, learner: Learner, env: Any) -> Stream:
    """A stream at the first step of an episode of ``task``, with a fresh memory."""
    reset = env.reset_env if steps_without_reset(env) else env.reset
    obs, env_state = reset(key, task)
    action_space = env.action_space(env.default_params)
    timestep = TimeStep(
        obs=_as_float(obs),
        action=jnp.zeros(action_space.shape, action_space.dtype),
        reward=jnp.zeros((), _float_dtype()),
        first=jnp.ones((), bool),
    )
    return Stream(jax.tree.map(_strong, env_state), timestep, learner.memory(meta))


def rollout(
    key: jax.Array,
    meta: Any,
    task: Task,
    agent: Any,
    stream: Stream,
    *,
    learner: Learner,
    env: Any,
    num_steps: int,
    unroll: int = 1,
) -> tuple[Stream, Trajectory]:
    """Acts for ``num_steps``: ``(stream, trajectory [T])``.

    Where an episode ends the environment is reset into the *same* task and the stream goes on; the
    trajectory's ``next_obs`` is the true successor. Should an environment report termination and
    truncation at once, termination wins (``discount`` is 0). Observations and rewards are cast to
    float once, here. ``unroll`` is passed to ``jax.lax.scan``; 4 helps on accelerators. Of an environment that
    has no ``step_env`` of its own, like gymnax's wrappers, ``step`` is called, which resets.
    """
    checks.at_least("num_steps", num_steps, 1)
    checks.at_least("unroll", unroll, 1)
    # Stopped on the way in, so that differentiating a caller does not even trace the tangents.
    meta, agent, stream = jax.lax.stop_gradient((meta, agent, stream))
    begun, stream = stream, keys.all_quick(stream)
    act_key, step_key, reset_key = keys.all_quick(tuple(jax.random.split(key, 3)))

    def step(stream: Stream, t: jax.Array) -> tuple[Stream, Trajectory]:
        timestep = stream.timestep
        action, log_prob, memory = learner.act(
            keys.at_step(act_key, t), meta, agent, stream.memory, timestep
        )
        next_obs, reward, terminated, last, following = _transition(
            keys.at_step(step_key, t),
            keys.at_step(reset_key, t),
            env,
            stream.env_state,
            action,
            task,
        )
        (obs, env_state), memory = keys.all_quick((following, memory))
        env_state = jax.tree.map(
            lambda new, old: new.astype(old.dtype), env_state, stream.env_state
        )
        next_obs, reward = _as_float(next_obs), _as_float(reward).reshape(())
        next_timestep = TimeStep(
            obs=_as_float(obs),
            action=action.astype(timestep.action.dtype),
            reward=reward,
            first=last,
        )
        seen = Trajectory(
            timestep=timestep,
            action=action,
            log_prob=log_prob,
            reward=reward,
            discount=1.0 - _as_float(terminated),
            last=last,
            next_obs=next_obs,
            memory=(),
        )
        return Stream(env_state, next_timestep, memory), seen

    stream, trajectory = jax.lax.scan(step, stream, jnp.arange(num_steps), unroll=unroll)
    trajectory = trajectory._replace(memory=begun.memory)
    return jax.lax.stop_gradient((keys.as_in(begun, stream), trajectory))


def _transition(
    step_key: jax.Array, reset_key: jax.Array, env: Any, state: Any, action: jax.Array, task: Task
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, tuple[jax.Array, Any]]:
    """``(true successor, reward, terminated, last, (obs, state) that follow)``: after an end those of a new episode."""
    if not steps_without_reset(env):
        obs, after, reward, terminated, truncated, info = env.step(step_key, state, action, task)
        last = jnp.logical_or(terminated, truncated)
        return info["final_observation"], reward, terminated, last, (obs, after)
    next_obs, after, reward, terminated, _ = env.step_env(step_key, state, action, task)
    last = jnp.logical_or(terminated, env.is_truncated(after, task))
    # At every step: under a vmap nothing can be left out for most. It is drawn here and not for all
    # steps beforehand, for that much memory to write and read is slower than drawing.
    reset = env.reset_env(reset_key, task)
    following = jax.tree.map(
        lambda reset, new: jnp.where(last, reset, new), *keys.all_quick((reset, (next_obs, after)))
    )
    return next_obs, reward, terminated, last, following


def _float_dtype() -> Any:
    return jnp.result_type(float)


def _as_float(x: Any) -> jax.Array:
    return jnp.asarray(x, _float_dtype())


def _strong(x: Any) -> jax.Array:
    """The same value without a weak type, so that a scan's carry keeps its type."""
    return jnp.asarray(x, jnp.asarray(x).dtype)
