"""Acting in one stream of experience; callers ``vmap``.

Rollouts are data: their results carry no gradient. Losses evaluate the policy again on the recorded
experience, and no derivative runs through an environment.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.tasks import door, environments, keys
from jaxmeta.types import Environment, Learner, Meta, Stream, Task, TimeStep, Trajectory


@checks.arguments
def begin_stream(
    key: jax.Array, meta: Meta, task: Task, *, learner: Learner, env: Environment
) -> Stream:
    """A stream at the first step of an episode of ``task``, with a new memory."""
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
    meta: Meta,
    task: Task,
    agent: Any,
    stream: Stream,
    *,
    learner: Learner,
    env: Environment,
    num_steps: int,
    unroll: int = 1,
) -> tuple[Stream, Trajectory]:
    """``(stream, trajectory [T])`` after acting for T = ``num_steps`` steps.

    When an episode ends, the environment is reset into the *same* task and the stream continues;
    the trajectory's ``next_obs`` is the true successor. If an environment reports termination and
    truncation at once, termination wins (``discount`` is 0). The environment gets actions clipped
    to the bounds of its action space; the trajectory holds actions as the learner drew them.
    ``unroll`` is passed to ``jax.lax.scan``; 4 helps on accelerators. An environment without a
    ``step_env`` of its own, like gymnax's wrappers, is stepped by ``step``, which resets.

    Raises:
        tasks.InvalidEnvironment: the environment breaks a rule of `tasks.door`.
    """
    checks.at_least("num_steps", num_steps, 1)
    checks.at_least("unroll", unroll, 1)
    # Gradients are stopped at the inputs too, so that differentiating a caller does not trace
    # tangents here.
    meta, agent, stream = jax.lax.stop_gradient((meta, agent, stream))
    begun, stream = stream, stream._replace(memory=keys.all_quick(stream.memory))
    act_key, step_key, reset_key = jax.random.split(keys.quick(key), 3)

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
    """jax's default floating-point type."""
    return jnp.result_type(float)
