import jax
import numpy as np
import optax
import pytest

from jaxmeta import learners, tasks
from jaxmeta.algorithms.es import Config, Hyper, es

POPULATION, TASKS = 6, 3


@pytest.fixture(scope="module")
def family():
    return tasks.make("navigation", horizon=5)


def test_the_step_is_openai_s_on_the_adapted_return(x64, family):
    """θ + rate · mean_p rank_p ε_p / σ, ranks of the mean over tasks of what members earn after adapting."""
    config = Config(num_streams=3, hidden_sizes=(4,), population_size=POPULATION)
    hyper = Hyper(learning_rate=0.5, noise_std=0.3, step_size=0.2)
    algorithm = es(family, config, hyper, optimizer=optax.sgd)

    @jax.jit
    def stepped():
        state = algorithm.init(jax.random.key(0))
        drawn = tasks.sample_tasks(jax.random.key(1), family, TASKS, split="train")
        return state, drawn, *algorithm.step(jax.random.key(2), state, drawn)

    state, drawn, after, metrics = stepped()
    parts = learners.gradient_learner(family, config)
    theta, unravel = jax.flatten_util.ravel_pytree(state.meta.params)
    ask_key, live_key, _ = jax.random.split(jax.random.key(2), 3)
    half = np.asarray(jax.random.normal(ask_key, (POPULATION // 2, theta.size)))
    noise = np.concatenate([half, -half])

    def earned(noise, key, task):
        meta = state.meta._replace(params=unravel(theta + 0.3 * noise))
        return learners.gradient.report(parts.live(key, meta, task))["return/after"]

    over_tasks = jax.vmap(earned, in_axes=(None, 0, 0))
    keys = jax.random.split(live_key, TASKS)
    own_too = np.concatenate([noise, np.zeros_like(noise[:1])])
    earnings = jax.jit(jax.vmap(over_tasks, in_axes=(0, None, None)))(own_too, keys, drawn)
    *returns, own = np.asarray(earnings).mean(1)
    ranks = np.argsort(np.argsort(returns)) / (POPULATION - 1) - 0.5
    step = 0.5 * ranks @ noise / (POPULATION * 0.3)
    moved = jax.flatten_util.ravel_pytree(after.meta.params)[0]
    np.testing.assert_allclose(moved, theta + step, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(metrics["return/after"], own, rtol=1e-9)  # θ's


@pytest.mark.slow
def test_every_task_counts_for_the_ranks(family):
    """Reports are means over all tasks: one that earns nothing like the others shows."""
    config = Config(num_streams=3, hidden_sizes=(4,), population_size=2)
    algorithm = es(family, config)
    state = algorithm.init(jax.random.key(0))
    drawn = tasks.sample_tasks(jax.random.key(1), family, TASKS, split="train")
    step = jax.jit(algorithm.step)
    near = step(jax.random.key(2), state, drawn)[1]["return/after"]
    for m in range(TASKS):
        goal = np.array(drawn.goal)
        goal[m] = 30.0
        far = drawn.replace(goal=goal)
        assert step(jax.random.key(2), state, far)[1]["return/after"] < near - 1000
