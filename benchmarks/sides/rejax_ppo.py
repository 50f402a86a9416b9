"""PPO on CartPole by rejax 0.1.3, as `benchmarks/peers.py` asks for it; runs in an environment of its own."""

from typing import Any

import jax
import rejax
from turns import answer, settings

algorithm = rejax.get_algo("ppo").create(
    env="CartPole-v1",
    agent_kwargs=dict(activation="tanh", hidden_layer_sizes=(64, 64)),
    **settings(),
)
update = jax.jit(algorithm.train_iteration)
evaluation = jax.jit(lambda state, key: algorithm.eval_callback(algorithm, state, key)[1].mean())
state: Any = algorithm.init_state(jax.random.key(0))


def begin(seed: int) -> dict:
    global state
    state = algorithm.init_state(jax.random.key(seed))
    return {}


def turn() -> dict:
    global state
    state = jax.block_until_ready(update(state))
    return {}


def evaluate(seed: int) -> dict:
    return {"return": float(evaluation(state, jax.random.key(10**6 + seed)))}


answer({"begin": begin, "turn": turn, "evaluate": evaluate})
