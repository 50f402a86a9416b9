"""A policy network that acts in copies of CartPole: by this library or by gymnax, as `benchmarks/peers.py` asks for it."""

from typing import Any

import gymnax
import jax
from gymnax.experimental import RolloutWrapper
from turns import answer, settings

from jaxmeta import evaluation, networks, rollouts

told = settings()
env, task = gymnax.make("CartPole-v1")
policy = networks.action_head(4, env.action_space(task), (64, 64))
params = policy.init(jax.random.key(0))


learner = evaluation.controller_learner(
    lambda key, params, obs: policy.apply(params, obs).sample(key)
)


def jaxmetas(key: jax.Array, params: Any) -> tuple:
    setup = rollouts.Setup(learner, env, told["num_envs"], told["num_steps"])
    data = rollouts.sample(key, params, task, (), setup=setup)
    return data.timestep.obs, data.action, data.reward, data.next_obs, data.last


wrapper = RolloutWrapper(
    lambda params, obs, key: policy.apply(params, obs).sample(key),
    env_name="CartPole-v1",
    num_env_steps=told["num_steps"],
)


def gymnaxs(key: jax.Array, params: Any) -> tuple:
    return wrapper.batch_rollout(jax.random.split(key, told["num_envs"]), params)


rollout = jax.jit({"jaxmeta": jaxmetas, "gymnax": gymnaxs}[told["by"]])


def turn() -> dict:
    jax.block_until_ready(rollout(jax.random.key(0), params))
    return {}


answer({"turn": turn})
