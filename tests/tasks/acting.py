"""Acting at random, and a family around a `Counter` with some of its methods replaced."""

import jax
import jax.numpy as jnp

from jaxmeta.rollouts.rollout import begin_stream, rollout
from jaxmeta.tasks import TaskFamily
from jaxmeta.types import Learner
from tests.probes import Counter, CounterParams


def acted(family, task, num_steps, key=0):
    """A stream of random actions, wider than the space where that is a Box, and the state after every step."""

    def act(key, meta, agent, memory, timestep):
        action = family.random_action(key)
        if jnp.issubdtype(action.dtype, jnp.floating):
            action = 3.0 * action
        return action, jnp.zeros(()), memory

    learner = Learner(
        init=lambda key, meta: (), memory=lambda meta: (), act=act, update=lambda *args: ()
    )
    world = dict(learner=learner, env=family.env)

    @jax.jit
    def run(key):
        begin_key, key = jax.random.split(key)
        stream = begin_stream(begin_key, None, task, **world)

        def step(stream, key):
            stream, data = rollout(key, None, task, (), stream, **world, num_steps=1)
            return stream, (jax.tree.map(lambda x: x[0], data), stream.env_state)

        return stream, jax.lax.scan(step, stream, jax.random.split(key, num_steps))[1]

    return run(jax.random.key(key))


def counting(**changes):
    """A family of three steps around a `Counter` with some of its methods replaced."""
    env = type("Changed", (Counter,), changes)()
    return TaskFamily("own", env, 3, *[lambda key: CounterParams(number=7.0)] * 3)
