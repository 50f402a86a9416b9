"""Acting: one stream of experience. Everything here is written for one stream; callers ``vmap``.

Rollouts are data. Nothing that comes out of them carries a gradient: losses evaluate the policy again
on what was recorded, and no derivative ever runs through an environment.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.tasks import door, environments, keys
from jaxmeta.types import Learner, Stream, Task, TimeStep, Trajectory


@checks.arguments
def begin_stream(key: jax.Array, meta: Any, task: Task, *, learner: Learner, env: Any) -> Stream:
    """A stream at the first step of an episode of ``task``, with a fresh memory."""
    obs, env_state = door.reset(env, keys.typed(key), task)
    space = environments.action_space(env)
    dtype = _float_dtype() if jnp.issubdtype(space.dtype, jnp.floating) else space.dtype
    timestep = TimeStep(
        obs=obs,
        action=jnp.zeros(space.shape, dtype),
        reward=jnp.zeros((), _float_dtype()),
        first=jnp.ones((), bool),
    )
    return Stream(env_state, timestep, learner.memory(meta))


@checks.arguments
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
    truncation at once, termination wins (``discount`` is 0). The environment gets actions clipped to the bounds
    of its action space; the trajectory holds them as the learner drew them. ``unroll`` is passed to
    ``jax.lax.scan``; 4 helps on accelerators. Of an environment that has no ``step_env`` of its own, like
    gymnax's wrappers, ``step`` is called, which resets.

    Raises:
        tasks.InvalidEnvironment: what the environment hands over is not what `tasks.door` asks for.
    """
    checks.at_least("num_steps", num_steps, 1)
    checks.at_least("unroll", unroll, 1)
    # Stopped on the way in, so that differentiating a caller does not even trace the tangents.
    meta, agent, stream = jax.lax.stop_gradient((meta, agent, stream))
    begun, stream = stream, stream._replace(memory=keys.all_quick(stream.memory))
    act_key, step_key, reset_key = keys.all_quick(tuple(jax.random.split(keys.typed(key), 3)))

    def step(stream: Stream, t: jax.Array) -> tuple[Stream, Trajectory]:
        timestep = stream.timestep
        action, log_prob, memory = learner.act(
            keys.at_step(act_key, t), meta, agent, stream.memory, timestep
        )
        after = door.step(
            env,
            keys.at_step(step_key, t),
            keys.at_step(reset_key, t),
            stream.env_state,
            action,
            task,
        )
        next_timestep = TimeStep(
            obs=after.obs,
            action=action.astype(timestep.action.dtype),
            reward=after.reward,
            first=after.last,
        )
        seen = Trajectory(
            timestep=timestep,
            action=action,
            log_prob=log_prob,
            reward=after.reward,
            discount=1.0 - after.terminated.astype(_float_dtype()),
            last=after.last,
            next_obs=after.next_obs,
            memory=(),
        )
        return Stream(after.state, next_timestep, keys.all_quick(memory)), seen

    stream, trajectory = jax.lax.scan(step, stream, jnp.arange(num_steps), unroll=unroll)
    trajectory = trajectory._replace(memory=begun.memory)
    return jax.lax.stop_gradient((keys.as_in(begun, stream), trajectory))


def _float_dtype() -> Any:
    return jnp.result_type(float)
