import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import tasks
from jaxmeta.networks import task_posteriors as module


@pytest.fixture(scope="module")
def encoded():
    """Factors of six transitions, and the means and variances of them in numpy."""
    family = tasks.make("half_circle", horizon=3)
    encoder = module.context_encoder(family, 3, (8,))
    params = encoder.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    given = [
        jax.random.normal(key, (6, *shape))
        for key, shape in zip(keys, ((2,), (2,), ()), strict=True)
    ]
    x = np.concatenate([*map(np.asarray, given[:2]), np.asarray(given[2])[:, None]], axis=1)
    for part in (*params["body"]["params"].values(), params["head"]["params"]):
        x = x @ np.asarray(part["kernel"]) + np.asarray(part["bias"])
        x = np.tanh(x) if part["kernel"].shape[1] == 8 else x
    mean, variance = x[:, :3], np.log1p(np.exp(x[:, 3:]))
    return encoder.factors(params, *given), mean, variance


def test_the_posterior_is_the_product_of_gaussians(encoded):
    """1/σ² = Σ 1/σ_n² and μ = σ² Σ μ_n/σ_n², and no prior among them; its density is their normalised product."""
    factors, mean, variance = encoded
    q = module.posterior(module.product(factors, jnp.ones(6, bool)))
    sigma2 = 1 / np.sum(1 / variance, axis=0)
    np.testing.assert_allclose(q.mean, sigma2 * np.sum(mean / variance, axis=0), rtol=1e-4)
    np.testing.assert_allclose(np.exp(2 * q.log_std), sigma2, rtol=1e-4)
    grid = np.linspace(-8, 8, 4001)
    log_p = np.sum(-((grid[:, None] - mean[:, 0]) ** 2) / (2 * variance[:, 0]), axis=1)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    np.testing.assert_allclose(p @ grid, q.mean[0], atol=1e-3)


def test_order_and_grouping_do_not_matter_and_what_is_not_counted_is_left_out(encoded):
    factors, _, variance = encoded
    whole = module.product(factors, jnp.ones(6, bool))
    turned = jax.tree.map(lambda x: x[jnp.array([3, 0, 5, 1, 4, 2])], factors)
    counted = jnp.array([True, False, True, True, False, False])
    parts = [module.product(factors, x) for x in (counted, ~counted)]
    summed = jax.tree.map(jnp.add, *parts)
    for other in (module.product(turned, jnp.ones(6, bool)), summed):
        np.testing.assert_allclose(whole.precision, other.precision, rtol=1e-5)
        np.testing.assert_allclose(whole.weighted, other.weighted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        parts[0].precision, np.sum(1 / variance[np.asarray(counted)], axis=0), rtol=1e-4
    )
    assert jnp.all(whole.precision > parts[0].precision)


def test_without_a_factor_the_posterior_is_the_prior():
    for evidence in (
        module.no_evidence(2),
        module.product(module.Evidence(jnp.ones((3, 2)), jnp.ones((3, 2))), jnp.zeros(3, bool)),
    ):
        q = module.posterior(evidence)
        np.testing.assert_array_equal(q.mean, jnp.zeros(2))
        np.testing.assert_array_equal(q.log_std, jnp.zeros(2))
        assert module.divergence_from_prior(q) == 0


def test_the_divergence_is_from_a_standard_normal():
    """KL(N(1, 4) || N(0, 1)) = (4 + 1 - 1)/2 - log 2."""
    q = module.posterior(module.Evidence(jnp.array([0.25]), jnp.array([0.25])))
    np.testing.assert_allclose(module.divergence_from_prior(q), 2 - np.log(2), rtol=1e-6)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="latent_size=0 must be at least 1"):
        module.context_encoder(tasks.make("half_circle"), 0)
