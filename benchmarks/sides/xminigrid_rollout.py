"""Random actions in an empty grid of xminigrid: by this library or by its own wrapper, as `benchmarks/peers.py` asks for it.

Runs in an environment that has both.
"""

from typing import Any

import jax
import xminigrid
from gymnax.environments import spaces
from turns import answer, settings
from xminigrid.wrappers import GymAutoResetWrapper

from jaxmeta import evaluation, rollouts

told = settings()
grid, params = xminigrid.make("MiniGrid-Empty-8x8")
num_actions = grid.num_actions(params)


class Gymnaxs:
    """The functions of xminigrid's environments that a rollout needs; the state is its time step."""

    default_params = params

    def action_space(self, params: Any) -> spaces.Discrete:
        return spaces.Discrete(num_actions)

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        # Raw keys, for they are part of the state, whose entries are chosen between.
        timestep = grid.reset(params, jax.random.key_data(key))
        return timestep.observation, timestep

    def step_env(self, key: jax.Array, timestep: Any, action: jax.Array, params: Any) -> tuple:
        timestep = grid.step(params, timestep, action)
        ended = timestep.discount == 0
        return timestep.observation, timestep, timestep.reward, ended, {}

    def is_truncated(self, timestep: Any, params: Any) -> jax.Array:
        return timestep.last()


learner = evaluation.controller_learner(
    lambda key, params, obs: jax.random.randint(key, (), 0, num_actions)
)


def jaxmetas(key: jax.Array) -> tuple:
    setup = rollouts.Setup(learner, Gymnaxs(), told["num_envs"], told["num_steps"])
    data = rollouts.sample(key, (), params, (), setup=setup)
    return data.reward, data.last


def xminigrids(key: jax.Array) -> tuple:
    env = GymAutoResetWrapper(grid)

    def one(key: jax.Array) -> tuple:
        reset_key, key = jax.random.split(key)

        def step(timestep: Any, key: jax.Array) -> tuple:
            action = jax.random.randint(key, (), 0, num_actions)
            timestep = env.step(params, timestep, action)
            return timestep, (timestep.reward, timestep.last())

        first = env.reset(params, jax.random.key_data(reset_key))
        return jax.lax.scan(step, first, jax.random.split(key, told["num_steps"]))[1]

    return jax.vmap(one)(jax.random.split(key, told["num_envs"]))


rollout = jax.jit({"jaxmeta": jaxmetas, "xminigrid": xminigrids}[told["by"]])


def turn() -> dict:
    reward, last = jax.block_until_ready(rollout(jax.random.key(0)))
    return {"reward": float(reward.mean()), "ends": float(last.mean())}


answer({"turn": turn})
