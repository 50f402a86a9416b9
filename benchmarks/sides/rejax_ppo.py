"""PPO on CartPole by rejax 0.1.3, as `benchmarks/peers.py` asks for it; runs in an environment of its own."""

import jax
import rejax
from turns import learn, settings

algorithm = rejax.get_algo("ppo").create(
    env="CartPole-v1",
    agent_kwargs=dict(activation="tanh", hidden_layer_sizes=(64, 64)),
    **settings(),
)
update = jax.jit(algorithm.train_iteration)
evaluation = jax.jit(lambda state, key: algorithm.eval_callback(algorithm, state, key)[1].mean())

learn(
    lambda seed: algorithm.init_state(jax.random.key(seed)),
    lambda state: jax.block_until_ready(update(state)),
    lambda seed, state: evaluation(state, jax.random.key(10**6 + seed)),
)
