"""A family, and what a pretended algorithm gives, for tests of curricula."""

import jax
import jax.numpy as jnp

from jaxmeta import tasks
from jaxmeta.types import TaskResults

FAMILY = tasks.make("tabular", num_states=2, num_actions=2, horizon=3)


def value_of(task):
    """A number that names a task, ``[M]``."""
    return task.reward[:, 0, 0]


def gave(drawn, scale=1.0):
    """Results of tasks ``[M]``, whose positive value loss is the number that names each."""
    x = value_of(drawn.tasks)
    one = x[:, None, None]
    return TaskResults(
        returns=x,
        best=x,
        episodes=one,
        reward=one,
        value=jnp.zeros_like(one),
        advantage=scale * one,
        counted=jnp.ones(one.shape, bool),
    )


def lived(curriculum, num_updates, num_tasks=4, seed=0, scale=1.0):
    """``(state, draws, metrics)`` of some meta-updates, compiled."""

    def update(state, key):
        state, drawn = curriculum.draw(key, state, None, num_tasks)
        after, metrics = curriculum.update(state, drawn, gave(drawn, scale))
        return after, (state, drawn, metrics)

    @jax.jit
    def run(key):
        keys = jax.random.split(key, num_updates)
        return jax.lax.scan(update, curriculum.init(num_tasks), keys)

    state, (before, draws, metrics) = run(jax.random.key(seed))
    return state, before, draws, metrics
