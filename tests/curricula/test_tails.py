"""RoML: the cross-entropy method against numpy and scipy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxmeta import curricula, tasks
from jaxmeta.curricula import RoMLConfig, tails
from jaxmeta.types import TaskResults


def test_the_density_is_scipy_s():
    rng = np.random.default_rng(0)
    phi, x = rng.uniform(0.1, 0.9, 3), rng.uniform(0.01, 0.99, (4, 5, 3))
    exact = np.prod(scipy.stats.beta(2 * phi, 2 - 2 * phi).pdf(x), axis=-1)
    np.testing.assert_allclose(tails.density(jnp.asarray(phi), jnp.asarray(x)), exact, rtol=1e-4)
    half = jnp.full(3, 0.5)
    np.testing.assert_allclose(tails.density(half, jnp.asarray(x)), 1.0, rtol=1e-5)


def test_a_step_is_the_weighted_mean_of_the_worst_tasks():
    rng = np.random.default_rng(1)
    config = RoMLConfig(alpha=0.3, reference=0.4, step=0.25, batch=20)
    phi, x, returns = np.array([0.3, 0.6]), rng.uniform(size=(2, 10, 2)), rng.normal(size=(2, 10))
    returns[0, 1] = returns[1, 7] = np.nan
    threshold = np.nanquantile(returns[:, :4], 0.3)  # four of ten are reference tasks
    total, weights = np.zeros(2), 0.0
    for u in range(2):
        for m in range(10):
            if returns[u, m] <= threshold:
                q = np.prod(scipy.stats.beta(2 * phi, 2 - 2 * phi).pdf(x[u, m]))
                weight = 1 / (0.4 + 0.6 * q)
                total, weights = total + weight * x[u, m], weights + weight
    exact = phi + 0.25 * (total / weights - phi)
    found = tails.tail_means(*map(jnp.asarray, (phi, x, returns)), config)
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    nothing = jnp.full((2, 10), jnp.nan)
    np.testing.assert_allclose(
        tails.tail_means(jnp.asarray(phi), jnp.asarray(x), nothing, config), phi
    )


@pytest.fixture(scope="module")
def run():
    """Returns fall with the first number and do not depend on the second: ``(states, draws, metrics)``."""
    family = tasks.make("pendulum", horizon=5)
    curriculum = curricula.roml(family, RoMLConfig(alpha=0.1, batch=200))

    def update(state, key):
        before, drawn = curriculum.draw(key, state, None, 100)
        after, metrics = curriculum.update(before, drawn, TaskResults(returns=-drawn.info[:, 0]))
        return after, (after, drawn, metrics)

    keys = jax.random.split(jax.random.key(0), 40)
    return jax.jit(lambda: jax.lax.scan(update, curriculum.init(100), keys))()[1]


def test_tasks_move_to_the_lowest_returns(run):
    states, drawn, metrics = run
    # The worst tenth lies between 0.9 and 1, and its mean is 0.95.
    assert abs(states.phi[-1, 0] - 0.95) < 0.02
    assert abs(states.phi[-1, 1] - 0.5) < 0.15
    x = np.asarray(drawn.info)
    assert abs(x[20:, :20, 0].mean() - 0.5) < 0.03  # the reference tasks
    assert x[20:, 20:, 0].mean() > 0.9
    np.testing.assert_allclose(
        metrics["curriculum/reference_return"], -x[:, :20, 0].mean(axis=1), rtol=1e-4
    )


def test_the_distribution_moves_once_there_are_enough_tasks(run):
    """200 tasks, so every second meta-update."""
    phi = np.asarray(run[0].phi[:, 0])
    assert phi[0] == 0.5
    assert phi[1] != phi[0]
    assert phi[2] == phi[1]
    assert phi[3] != phi[2]


def test_the_drawn_numbers_make_the_tasks(run):
    drawn = run[1]
    factor = np.asarray(drawn.tasks.g) / 10.0
    np.testing.assert_allclose(factor, 1.5 ** (2 * np.asarray(drawn.info[..., 0]) - 1), rtol=1e-4)


def test_a_family_without_parameters_is_refused():
    family = dataclasses.replace(tasks.make("pendulum"), parameters=None)
    with pytest.raises(ValueError, match="family='pendulum' has no parameters"):
        curricula.roml(family)
    with pytest.raises(ValueError, match="alpha=0 must lie between"):
        RoMLConfig(alpha=0)


def test_parameters_that_do_not_give_the_training_tasks_are_refused():
    """Else RoML would draw tasks that the family does not train on."""
    family = tasks.make("cartpole", horizon=3)
    few = tasks.sample_tasks(jax.random.key(0), family, 20, split="train")

    def one_of_few(key):
        place = jax.random.randint(key, (), 0, 20)
        return jax.tree.map(lambda x: x[place], few)

    size, task = family.parameters
    others = (
        dataclasses.replace(family, train=one_of_few),
        dataclasses.replace(family, train=family.out_of_distribution),
        dataclasses.replace(family, parameters=tasks.Parameters(size, lambda x: task(x**2))),
    )
    for other in others:
        with pytest.raises(
            tasks.InvalidEnvironment, match="parameters give other tasks than train"
        ):
            curricula.roml(other)
    zero = dataclasses.replace(family, parameters=tasks.Parameters(0, task))
    with pytest.raises(ValueError, match="parameters.size=0 must be at least 1"):
        curricula.roml(zero)


@pytest.mark.parametrize("name", ["pendulum", "mountain_car", "acrobot"])
def test_families_keep_that_promise(name):
    curricula.roml(tasks.make(name))
