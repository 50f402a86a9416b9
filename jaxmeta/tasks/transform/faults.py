"""A broken simulator: numbers that are not finite."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.transform.wrappers import Wrapper
from jaxmeta.types import Task


@dataclasses.dataclass(frozen=True)
class Faulty(Wrapper):
    """At random steps the reward is NaN or the first entry of the observation is infinite; the state stays finite."""

    rate: float
    """The share of steps with a fault."""

    ends_by = Wrapper.ends_by  # the overridden methods end no episode

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Task
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, dict]:
        fault_key, kind_key, key = jax.random.split(key, 3)
        obs, state, reward, terminated, info = self.env.step_env(key, state, action, params)
        fault = jax.random.bernoulli(fault_key, self.rate)
        is_reward = jax.random.bernoulli(kind_key)
        first = (jnp.arange(obs.size) == 0).reshape(obs.shape)
        reward = jnp.where(fault & is_reward, jnp.nan, reward)
        return jnp.where(fault & ~is_reward & first, jnp.inf, obs), state, reward, terminated, info


@checks.arguments
def faulty(family: TaskFamily, *, rate: float = 1e-3) -> TaskFamily:
    """The family with a fault in a share ``rate`` of its steps: a NaN reward or an infinite observation, half each.

    It tests a learner on a simulator that breaks. Learners of this library leave out the broken
    streams and count them.
    """
    rate = checks.between("rate", rate, 0, 1)
    return dataclasses.replace(family, name=f"faulty_{family.name}", env=Faulty(family.env, rate))
