import jax
import numpy as np
import pytest

from jaxmeta import rollouts, tasks
from jaxmeta.algorithms.reptile import Config, Hyper, reptile


@pytest.mark.parametrize("num_updates", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_theta_moves_towards_the_mean_of_the_adapted(x64, num_updates):
    """θ + ε mean_i (φ_i - θ), φ_i after K updates and one on what was seen after them."""
    family = tasks.make("navigation", horizon=5)
    config = Config(num_streams=3, hidden_sizes=(4,), num_updates=num_updates)
    algorithm = reptile(family, config, Hyper(learning_rate=0.25))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    drawn = tasks.sample_tasks(jax.random.key(1), family, 3, split="train")
    after, _ = jax.jit(algorithm.step)(jax.random.key(2), state, drawn)

    setup = rollouts.Setup(algorithm.learner, family.env, num_streams=3, num_steps=5)

    def adapted(key, task):
        live_key, update_key = jax.random.split(key)
        history = rollouts.lifetime(
            live_key, state.meta, task, setup=setup, num_updates=num_updates, restart=True
        )
        agent, data = jax.tree.map(lambda x: x[-1], (history.agent, history.trajectories))
        return algorithm.learner.update(update_key, state.meta, agent, data)

    phi = jax.jit(jax.vmap(adapted))(jax.random.split(jax.random.key(2), 3), drawn)
    rows = (state.meta.params, phi, after.meta.params)
    for theta, phi, moved in zip(*map(jax.tree.leaves, rows), strict=True):
        np.testing.assert_allclose(
            moved, theta + 0.25 * (phi.mean(0) - theta), rtol=1e-9, atol=1e-12
        )
