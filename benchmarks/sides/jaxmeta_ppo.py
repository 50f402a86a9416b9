"""PPO on CartPole (Schulman et al. 2017) with this library's parts, as `benchmarks/peers.py` asks for it.

The numbers lie in other places than in the usual implementation. A minibatch is a set of whole streams: as
good a sample as single steps of all of them, and to shuffle 2 048 streams costs nothing beside shuffling 262 144 steps, a random key each.
And its gradient is added up over rows that fit into a core's cache, on a CPU in less than half of the time.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import optax
from turns import learn, settings

from jaxmeta import networks, rollouts
from jaxmeta.estimators import surrogates
from jaxmeta.estimators.episodes import first_episode_return
from jaxmeta.estimators.returns import advantages_and_targets
from jaxmeta.networks.distributions import Categorical
from jaxmeta.types import Learner, Trajectory

DISCOUNT, LAMBDA, CLIP, VALUE_COST, ENTROPY_COST = 0.99, 0.95, 0.2, 0.5, 0.01
# Steps whose gradient is worked on at a time.
ROWS = 512 if jax.default_backend() == "cpu" else 2**20

told = settings()
env, task = gymnax.make("CartPole-v1")
optimizer = optax.adam(3e-4)


def network(num_outputs: int) -> nn.Sequential:
    """As in rejax; this library's own policies begin nearly uniform, and so learn a few updates later."""
    return nn.Sequential([nn.Dense(64), nn.tanh, nn.Dense(64), nn.tanh, nn.Dense(num_outputs)])


logits, values = network(2), network(1)
policy = networks.feed_forward(
    lambda key: logits.init(key, jnp.zeros(4)),
    lambda params, obs: Categorical(logits.apply(params, obs)),
)
value = networks.Value(
    lambda key: values.init(key, jnp.zeros(4)),
    lambda params, obs: values.apply(params, obs)[..., 0],
)


def init(key: jax.Array, meta: Any) -> Any:
    keys = jax.random.split(key)
    return {"policy": policy.init(keys[0]), "value": value.init(keys[1])}


learner = Learner(
    init=init,
    memory=lambda meta: policy.memory(),
    act=networks.acting(policy.step, lambda meta, agent: agent["policy"]),
    update=lambda key, meta, agent, data: agent,
)
setup = rollouts.Setup(learner, env, told["num_envs"], told["num_steps"])


class Batch(NamedTuple):
    """The data of an update; with leading ``[num_envs, num_steps]``, or rows."""

    timestep: Any
    action: jax.Array
    log_prob: jax.Array
    v: jax.Array
    advantage: jax.Array


def evaluated(params: Any, data: Trajectory) -> Batch:
    obs = jnp.concatenate([data.timestep.obs, data.next_obs[:, -1:]], axis=1)
    at_once = max(1, ROWS // told["num_steps"])
    v = jax.lax.map(partial(value.apply, params["value"]), obs, batch_size=at_once)
    discount = DISCOUNT * (1.0 - data.last)  # as in rejax, a time limit counts as an end
    advantage, _ = jax.vmap(partial(advantages_and_targets, lambda_=LAMBDA))(
        data.reward, discount, v=v[:, :-1], v_next=v[:, 1:], last=data.last
    )
    return Batch(data.timestep, data.action, data.log_prob, v[:, :-1], advantage)


def loss(params: Any, rows: Batch, mean: jax.Array, spread: jax.Array) -> jax.Array:
    pi = policy.unroll(params["policy"], (), rows.timestep)
    log_ratio = pi.log_prob(rows.action) - rows.log_prob
    gain = surrogates.clipped_ratio(log_ratio, (rows.advantage - mean) / spread, CLIP)
    v, target = value.apply(params["value"], rows.timestep.obs), rows.v + rows.advantage
    near = rows.v + jnp.clip(v - rows.v, -CLIP, CLIP)
    error = 0.5 * jnp.maximum((v - target) ** 2, (near - target) ** 2)
    return jnp.mean(VALUE_COST * error - gain - ENTROPY_COST * pi.entropy())


def minibatch(carry: tuple, streams: Batch) -> tuple:
    params, optimizer_state = carry
    mean, spread = streams.advantage.mean(), streams.advantage.std() + 1e-8
    num_rows = streams.action.size
    size = ROWS if num_rows % ROWS == 0 else num_rows
    rows = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[2:]), streams)

    def add(total: Any, rows: Batch) -> tuple:
        return jax.tree.map(jnp.add, total, jax.grad(loss)(params, rows, mean, spread)), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), rows)
    gradient = jax.tree.map(lambda x: x / (num_rows // size), total)
    steps, optimizer_state = optimizer.update(gradient, optimizer_state)
    return (optax.apply_updates(params, steps), optimizer_state), None


@jax.jit
def begun(key: jax.Array) -> tuple:
    begin_key, key = jax.random.split(key)
    params, streams = rollouts.begin(begin_key, (), task, setup=setup)
    return key, params, optimizer.init(params), streams


@jax.jit
def updated(key: jax.Array, params: Any, optimizer_state: Any, streams: Any) -> tuple:
    key, act_key, learn_key = jax.random.split(key, 3)
    streams, data = rollouts.collect(act_key, (), task, params, streams, setup=setup)
    batch = evaluated(params, data)

    def epoch(carry: tuple, key: jax.Array) -> tuple:
        order = jax.random.permutation(key, told["num_envs"]).reshape(told["num_minibatches"], -1)

        def step(carry: tuple, chosen: jax.Array) -> tuple:
            return minibatch(carry, jax.tree.map(lambda x: x[chosen], batch))

        return jax.lax.scan(step, carry, order)

    keys = jax.random.split(learn_key, told["num_epochs"])
    (params, optimizer_state), _ = jax.lax.scan(epoch, (params, optimizer_state), keys)
    return key, params, optimizer_state, streams


@jax.jit
def mean_return(key: jax.Array, params: Any) -> jax.Array:
    episodes = rollouts.Setup(learner, env, 128, int(task.max_steps_in_episode))
    data = rollouts.sample(key, (), task, params, setup=episodes)
    return jnp.mean(jax.vmap(first_episode_return)(data.reward, data.last))


learn(
    lambda seed: begun(jax.random.key(seed)),
    lambda state: jax.block_until_ready(updated(*state)),
    lambda seed, state: mean_return(jax.random.key(10**6 + seed), state[1]),
)
