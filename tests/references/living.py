"""Lifetimes of agents that need no training, and their means."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import tasks
from jaxmeta.rollouts.lifetime import Setup, lifetime
from jaxmeta.types import TimeStep, Trajectory


def live(learner, family, *, num_tasks, num_updates=0, num_steps, key=0):
    """Tasks ``[M]`` and the only stream of a lifetime in each: a trajectory ``[M, K + 1, T]``."""
    task_key, life_key = jax.random.split(jax.random.key(key))
    drawn = tasks.sample_tasks(task_key, family, num_tasks, split="test")
    setup = Setup(learner, family.env, num_streams=1, num_steps=num_steps)

    def one(key, task):
        return lifetime(key, (), task, setup=setup, num_updates=num_updates)

    history = jax.jit(jax.vmap(one))(jax.random.split(life_key, num_tasks), drawn)
    trajectories = jax.tree.map(lambda x: x[:, :, 0], history.trajectories)
    return drawn, history.agent, trajectories


def assert_mean(values, expected, *, exact=True, rounding=0.0):
    """Within four standard errors, of both sides where the expected value was simulated as often."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / len(values) ** 0.5
    assert abs(values.mean() - expected) < 4 * error * (1 if exact else 2**0.5) + rounding


def total_rewards(learner, family, **settings):
    return live(learner, family, **settings)[2].reward.sum((1, 2))


def episode(states, actions, rewards, successors, *, num_states):
    """Trajectories ``[N, T]`` of states and successors by number."""
    observed = lambda x: jax.nn.one_hot(jnp.asarray(x), num_states)  # noqa: E731
    zeros = jnp.zeros(np.shape(states))
    return Trajectory(
        timestep=TimeStep(observed(states), zeros, zeros, zeros),
        action=jnp.asarray(actions),
        log_prob=zeros,
        reward=jnp.asarray(rewards),
        discount=1 - zeros,
        last=zeros,
        next_obs=observed(successors),
        memory=(),
    )
