"""A policy network that acts in copies of CartPole: by this library or by gymnax, as `benchmarks/peers.py` asks for it."""

from typing import Any

import gymnax
import jax
from gymnax.experimental import RolloutWrapper
from turns import answer, settings

from jaxmeta import networks, rollouts
from jaxmeta.types import Learner

told = settings()
env, task = gymnax.make("CartPole-v1")
policy = networks.action_head(4, env.action_space(task), (64, 64))
params = policy.init(jax.random.key(0))


def act(key: jax.Array, meta: Any, agent: Any, memory: Any, timestep: Any) -> tuple:
    pi = policy.apply(agent, timestep.obs)
    action = pi.sample(key)
    return action, pi.log_prob(action), memory


learner = Learner(
    init=lambda key, meta: params,
    memory=lambda meta: (),
    act=act,
    update=lambda key, meta, agent, data: agent,
)


def jaxmetas(key: jax.Array, params: Any) -> tuple:
    begin_key, act_key = jax.random.split(key)
    world: dict[str, Any] = dict(learner=learner, env=env)
    streams = rollouts.begin_streams(begin_key, (), task, **world, num_streams=told["num_envs"])
    _, data = rollouts.experience(
        act_key, (), task, params, streams, **world, num_steps=told["num_steps"]
    )
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
