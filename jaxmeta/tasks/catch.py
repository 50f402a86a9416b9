"""Catch: move a paddle under a falling ball; gymnax's Catch-bsuite.

Osband et al. 2020, "Behaviour suite for reinforcement learning", section 2.2: 10 rows, 5 columns, +1 for
the ball caught and -1 for the ball missed, which ends the episode. One task alone, for what was learned
elsewhere to be tried on.
"""

import functools
from typing import Any

import gymnax
import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.tasks.family import TaskFamily


@functools.cache
def _environment() -> Any:
    """One environment: gymnax environments hash by identity, and each new one compiles anew."""
    return gymnax.make("Catch-bsuite")[0]


def follow(task: Any, obs: jax.Array) -> jax.Array:
    """Towards the ball's column, int32 ``[]``: 0 is left, 2 right. It always gets there in time."""
    paddle = jnp.argmax(obs[-1])
    ball = jnp.argmax(jnp.max(obs[:-1], axis=0))
    return (1 + jnp.sign(ball - paddle)).astype(jnp.int32)


def catch(*, horizon: int = 9) -> TaskFamily:
    """Catch, the same task in every split.

    Args:
        horizon: Time limit of an episode, in steps; the ball is down after 9.
    """
    checks.at_least("horizon", horizon, 1)
    env = _environment()
    task = env.default_params.replace(max_steps_in_episode=jnp.asarray(horizon, jnp.int32))

    def sample(key: jax.Array) -> Any:
        del key
        return task

    return TaskFamily(
        name="catch",
        env=env,
        horizon=horizon,
        train=sample,
        test=sample,
        out_of_distribution=sample,
        optimal_action=follow,
    )
