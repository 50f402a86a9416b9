"""Craftax: survive, gather and build in a generated world, which is the task.

Matthews et al. 2024, "Craftax: a lightning-fast benchmark for open-ended reinforcement learning", and its faster
remake of Crafter (Hafner 2022). A task is one world, with its map, its ores and its animals where they were at the
beginning. So what an agent has found in one episode is where it was in the next. Observations are symbolic.

Needs Craftax: ``pip install "jaxmeta[craftax]"``.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.functions import from_functions


@functools.cache
def _environment(classic: bool) -> Any:
    try:
        from craftax.craftax_env import make_craftax_env_from_name
    except ImportError as error:
        raise checks.missing("craftax", "craftax") from error
    name = "Craftax-Classic-Symbolic-v1" if classic else "Craftax-Symbolic-v1"
    return make_craftax_env_from_name(name, auto_reset=False)


@functools.cache
def _family(classic: bool, horizon: int) -> TaskFamily:
    env = _environment(classic)
    params = env.default_params

    def world(key: jax.Array) -> dict[str, Any]:
        # A world takes long to make. As part of the task it is made once, and not at every reset.
        with jax.numpy_rank_promotion("allow"):
            obs, state = env.reset_env(key, params)
        return {"obs": obs, "state": jax.tree.map(jnp.asarray, state)}

    def reset(key: jax.Array, task: dict[str, Any]) -> tuple[jax.Array, Any]:
        return task["obs"], task["state"]

    def step(key: jax.Array, state: Any, action: jax.Array, task: dict[str, Any]) -> tuple:
        with jax.numpy_rank_promotion("allow"):
            obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
        return obs, state, reward, terminated

    seen, chosen = env.observation_space(params), env.action_space(params)
    return from_functions(
        reset,
        step,
        observation_space=spaces.Box(-jnp.inf, jnp.inf, seen.shape, jnp.float32),
        action_space=spaces.Discrete(chosen.n),
        horizon=horizon,
        train=world,
        name="craftax",
    )


def craftax(*, classic: bool = True, horizon: int = 200) -> TaskFamily:
    """Craftax: a world is drawn per task; each new achievement earns a reward, and death ends the episode.

    Worlds of all splits have the same distribution, for it has no outside. There is no expert.

    Args:
        classic: Craftax-Classic, the game of Crafter with 22 achievements; else the whole of Craftax with 67.
        horizon: Time limit of an episode, in steps.

    Raises:
        ValueError: the horizon is below 1.
        ImportError: Craftax is not installed.
    """
    checks.at_least("horizon", horizon, 1)
    return _family(checks.field("classic", classic, bool), horizon)
