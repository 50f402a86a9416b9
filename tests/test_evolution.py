import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import evolution

PARAMS = {"a": jnp.array([0.3, -1.0]), "b": jnp.array(2.0)}


def test_perturbations_have_the_standard_deviation_asked_for_and_differ_by_leaf():
    keys = jax.random.split(jax.random.key(0), 20_000)
    same_shapes = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    epsilon = jax.vmap(lambda key: evolution.perturbation(key, same_shapes, 0.2))(keys)
    noise = np.concatenate([epsilon["a"], epsilon["b"]], axis=1)
    np.testing.assert_allclose(np.cov(noise.T), 0.04 * np.eye(4), atol=2e-3)
    np.testing.assert_allclose(noise.mean(0), 0.0, atol=6e-3)


def test_a_pair_lies_on_both_sides():
    epsilon = {"a": jnp.array([0.1, 0.2]), "b": jnp.array(-0.5)}
    pair = evolution.antithetic(PARAMS, epsilon)
    np.testing.assert_allclose(pair["a"], [[0.4, -0.8], [0.2, -1.2]], rtol=1e-6)
    np.testing.assert_allclose(pair["b"], [1.5, 2.5])


def test_it_is_unbiased_where_fitness_is_quadratic(x64):
    """``F = -½ (θ - c)ᵀ H (θ - c)``: the mean of the estimates is the gradient at any σ."""
    theta, centre = jnp.array([0.5, -1.0, 2.0]), jnp.array([1.0, 0.0, 0.5])
    hessian = jnp.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 3.0]])

    def fitness(theta):
        return -0.5 * (theta - centre) @ hessian @ (theta - centre)

    def estimate(key):
        epsilon = evolution.perturbation(key, theta, 0.7)
        pair = jax.vmap(fitness)(evolution.antithetic(theta, epsilon))
        return evolution.gradient(epsilon, pair, 0.7)

    estimates = np.asarray(jax.vmap(estimate)(jax.random.split(jax.random.key(0), 20_000)))
    error = estimates.std(0) / np.sqrt(len(estimates))
    assert np.all(np.abs(estimates.mean(0) - jax.grad(fitness)(theta)) < 4 * error)
    assert np.all(error < 0.1)
