"""Any family with the task in the observation, so that the agent need not infer it.

The oracle of Zintgraf et al. 2020, "VariBAD: a very good method for Bayes-adaptive deep RL via
meta-learning", section 5: a policy trained on it is an upper bound for a policy that must infer the
task.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks import environments, time_limit
from jaxmeta.tasks.family import Controller, TaskFamily, flat
from jaxmeta.types import SteppedEnvironment, Task


@dataclasses.dataclass(frozen=True)
class Informed(environment.Environment[Any, Any]):
    """An environment whose observation is followed by the task. Those around equal environments are equal.

    Observations are ``[O + P]`` float: the inner observation flattened, then every leaf of the
    parameters flattened, in the order of ``jax.tree.leaves``. Leaves that are the same in all tasks
    are included.
    """

    env: SteppedEnvironment
    """The environment within."""
    vector: Callable[[Task], jax.Array] = flat
    """``task -> [P]``, the task as it is observed."""

    @property
    def ends_by(self) -> int | None:
        """The step by which every episode has ended, if the environment within promises one."""
        return time_limit.ends_by(self.env)

    @property
    def default_params(self) -> Any:
        return self.env.default_params

    def reset_env(self, key: jax.Array, params: Task) -> tuple[jax.Array, Any]:
        obs, state = self.env.reset_env(key, params)
        return self._told(obs, params), state

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Task
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, dict]:
        obs, *rest = self.env.step_env(key, state, action, params)
        return self._told(obs, params), *rest

    def _told(self, obs: Any, params: Task) -> jax.Array:
        seen = jnp.ravel(jnp.asarray(environments.flat_observation(self.env, obs), float))
        return jnp.concatenate([seen, self.vector(params)])

    def is_truncated(self, state: Any, params: Task) -> jax.Array:
        return self.env.is_truncated(state, params)

    @property
    def name(self) -> str:
        return f"Informed{environments.name_of(self.env)}"

    def action_space(self, params: Task | None = None) -> spaces.Space:
        return self.env.action_space(params)

    def observation_space(self, params: Task) -> spaces.Box:
        # Sizes are computed from the default task: a batch of tasks would count as larger.
        task_size = jax.eval_shape(self.vector, self.default_params).size
        obs_size = math.prod(environments.observation_space(self.env).shape)
        return spaces.Box(-jnp.inf, jnp.inf, (obs_size + task_size,), jnp.float32)


@checks.arguments
def informed(family: TaskFamily) -> TaskFamily:
    """``family`` with the task in its observations: its environment in `Informed`.

    A family with an ``identity`` shows that instead of the parameters. Horizon, samplers, optima and controllers are those of ``family``. The name gets the prefix
    ``informed_``.
    """
    shape = family.observation_shape

    def uninformed(controller: Controller | None) -> Controller | None:
        if controller is None:
            return None
        return lambda task, obs: controller(task, obs[: math.prod(shape)].reshape(shape))

    return dataclasses.replace(
        family,
        name=f"informed_{family.name}",
        env=Informed(family.env, family.identity or flat),
        optimal_action=uninformed(family.optimal_action),
        expert_action=uninformed(family.expert_action),
    )
