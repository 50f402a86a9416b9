"""MAML on 2-D navigation by this library, as `benchmarks/peers.py` asks for it."""

import jax
from turns import learn, settings

from jaxmeta import evaluation, tasks
from jaxmeta.algorithms.maml import Config, Hyper, maml

EVALUATED = 100  # held-out tasks

told = settings()
num_tasks, num_streams = told["num_tasks"], told["num_streams"]
family = tasks.make("navigation", horizon=told["num_steps"])
algorithm = maml(family, Config(num_streams=num_streams, hidden_sizes=(64, 64)), Hyper())


@jax.jit
def updated(key: jax.Array, state: object) -> tuple:
    key, task_key, step_key = jax.random.split(key, 3)
    drawn = tasks.sample_tasks(task_key, family, num_tasks, split="train")
    return key, algorithm.step(step_key, state, drawn)[0]


@jax.jit
def adapted_return(key: jax.Array, meta: object) -> jax.Array:
    task_key, key = jax.random.split(key)
    drawn = tasks.sample_tasks(task_key, family, EVALUATED, split="test")
    told = dict(learner=algorithm.learner, env=family.env, num_steps=family.horizon)
    sizes = dict(num_streams=num_streams, num_updates=1)
    returns = evaluation.adaptation_returns(key, meta, drawn, **told, **sizes)
    return returns[:, -1].mean()


def begun(seed: int) -> tuple:
    init_key, key = jax.random.split(jax.random.key(seed))
    return key, algorithm.init(init_key)


learn(
    begun,
    lambda run: jax.block_until_ready(updated(*run)),
    lambda seed, run: adapted_return(jax.random.key(10**6 + seed), run[1].meta),
)
