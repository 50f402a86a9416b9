import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta.networks.distributions import (
    Categorical,
    DiagGaussian,
    FactoredCategorical,
    TanhGaussian,
)

finite = st.floats(-5, 5, width=32, allow_subnormal=False)  # which XLA rounds to zero
logits = st.lists(finite, min_size=2, max_size=5)


@settings(max_examples=25)
@given(logits)
def test_categorical_matches_its_definition(row):
    p = np.exp(row) / np.sum(np.exp(row))
    d = Categorical(jnp.array(row))
    np.testing.assert_allclose(
        [d.log_prob(jnp.array(a)) for a in range(len(row))], np.log(p), atol=1e-5
    )
    np.testing.assert_allclose(d.entropy(), scipy.stats.entropy(p), atol=1e-5)
    other = Categorical(jnp.zeros(len(row)))
    np.testing.assert_allclose(d.kl(other), np.sum(p * np.log(p * len(row))), atol=1e-5)
    assert d.mode() == np.argmax(row)


def test_categorical_with_an_impossible_action():
    d = Categorical(jnp.array([0.0, 0.0, -jnp.inf]))
    np.testing.assert_allclose(d.entropy(), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(d.kl(Categorical(jnp.zeros(3))), np.log(1.5), rtol=1e-6)
    assert (
        d.log_prob(jnp.array(2))
        == d.log_prob(jnp.array(3))
        == d.log_prob(jnp.array(-1))
        == -jnp.inf
    )
    for function in (Categorical.entropy, lambda d: d.kl(Categorical(jnp.zeros(3)))):
        gradient = jax.grad(lambda logits, f=function: f(Categorical(logits)))(d.logits)
        assert jnp.all(jnp.isfinite(gradient))


def test_categorical_samples_follow_the_probabilities():
    p = np.array([0.1, 0.2, 0.7])
    draws = jax.vmap(Categorical(jnp.log(p)).sample)(jax.random.split(jax.random.key(0), 20_000))
    assert draws.dtype == jnp.int32
    assert scipy.stats.chisquare(np.bincount(draws), 20_000 * p).pvalue > 1e-3


def test_gaussian_matches_scipy():
    mean, log_std = np.array([0.3, -1.0]), np.array([-0.5, 0.4])
    d = DiagGaussian(jnp.array(mean), jnp.array(log_std))
    x = np.array([0.1, 0.7])
    reference = scipy.stats.norm(mean, np.exp(log_std))
    np.testing.assert_allclose(d.log_prob(jnp.array(x)), reference.logpdf(x).sum(), rtol=1e-5)
    np.testing.assert_allclose(d.entropy(), reference.entropy().sum(), rtol=1e-5)
    assert jnp.array_equal(d.mode(), d.mean)


def test_gaussian_kl_is_the_expected_log_ratio():
    p = DiagGaussian(jnp.array([0.3, -1.0]), jnp.array([-0.5, 0.4]))
    q = DiagGaussian(jnp.array([0.0, -0.5]), jnp.array([0.1, 0.2]))
    draws = jax.vmap(p.sample)(jax.random.split(jax.random.key(1), 100_000))
    ratio = jax.vmap(lambda x: p.log_prob(x) - q.log_prob(x))(draws)
    np.testing.assert_allclose(p.kl(q), ratio.mean(), atol=4 * float(ratio.std()) / 100_000**0.5)
    np.testing.assert_allclose(p.kl(p), 0.0, atol=1e-6)


def test_gaussian_samples_follow_the_density():
    d = DiagGaussian(jnp.array([2.0]), jnp.array([-1.0]))
    draws = jax.vmap(d.sample)(jax.random.split(jax.random.key(2), 5_000))
    assert (
        scipy.stats.kstest(np.asarray(draws[:, 0]), scipy.stats.norm(2.0, np.exp(-1)).cdf).pvalue
        > 1e-3
    )


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_batch_axes_lead(batch):
    assert Categorical(jnp.zeros((*batch, 4))).log_prob(jnp.zeros(batch, int)).shape == batch
    gaussian = DiagGaussian(jnp.zeros((*batch, 4)), jnp.zeros((*batch, 4)))
    assert gaussian.log_prob(jnp.zeros((*batch, 4))).shape == batch
    assert gaussian.kl(gaussian).shape == gaussian.entropy().shape == batch


def test_independent_choices_are_a_product_of_categoricals():
    logits = jnp.array([[0.5, -1.0, -jnp.inf], [0.1, 0.2, 2.0]])
    low = jnp.array([-1, 4])
    d = FactoredCategorical(logits, low)
    parts = [Categorical(row) for row in logits]
    value = jnp.array([0, 6])
    expected = parts[0].log_prob(jnp.array(1)) + parts[1].log_prob(jnp.array(2))
    np.testing.assert_allclose(d.log_prob(value), expected, rtol=1e-6)
    np.testing.assert_allclose(d.entropy(), sum(x.entropy() for x in parts), rtol=1e-6)
    other = FactoredCategorical(jnp.zeros((2, 3)), low)
    expected = sum(x.kl(Categorical(jnp.zeros(3))) for x in parts)
    np.testing.assert_allclose(d.kl(other), expected, rtol=1e-6)
    np.testing.assert_array_equal(d.mode(), [-1, 6])
    assert d.log_prob(jnp.array([1, 6])) == d.log_prob(jnp.array([0, 3])) == -jnp.inf
    draws = np.asarray(jax.vmap(d.sample)(jax.random.split(jax.random.key(0), 4000)))
    table = np.histogram2d(*draws.T, bins=[[-1, 0, 1, 2], [4, 5, 6, 7]])[0] / 4000
    p = np.exp(parts[0].log_probs())[:, None] * np.exp(parts[1].log_probs())[None]
    np.testing.assert_allclose(table, p, atol=0.03)
    gradient = jax.grad(lambda x: FactoredCategorical(x, low).log_prob(value))(logits)
    assert jnp.all(jnp.isfinite(gradient))


def test_a_squashed_gaussian_has_the_density_of_its_draws():
    """Against numerical integration over the range, and the histogram of draws."""
    mean, log_std = jnp.array([0.4]), jnp.array([-0.3])
    centre, half = jnp.array([1.0]), jnp.array([2.0])
    d = TanhGaussian(mean, log_std, centre, half)
    grid = np.linspace(-0.9999, 2.9999, 20_001)
    p = np.exp(jax.vmap(d.log_prob)(jnp.asarray(grid)[:, None]))
    width = grid[1] - grid[0]
    np.testing.assert_allclose(p.sum() * width, 1.0, atol=2e-3)
    np.testing.assert_allclose(d.entropy(), -np.sum(p * np.log(p)) * width, atol=2e-3)
    draws = np.asarray(jax.vmap(d.sample)(jax.random.split(jax.random.key(0), 20_000)))[:, 0]
    found, edges = np.histogram(draws, bins=8, range=(-1, 3))
    cumulative = np.interp(edges, grid, np.cumsum(p) * width)
    assert (
        scipy.stats.chisquare(
            found, 20_000 * np.diff(cumulative) / np.diff(cumulative).sum()
        ).pvalue
        > 1e-3
    )
    np.testing.assert_allclose(d.mode(), 1.0 + 2.0 * np.tanh(0.4), rtol=1e-6)
    other = TanhGaussian(mean + 1, log_std, centre, half)
    expected = DiagGaussian(mean, log_std).kl(DiagGaussian(mean + 1, log_std))
    np.testing.assert_allclose(d.kl(other), expected, rtol=1e-6)


def test_a_squashed_gaussian_far_out_stays_inside_and_finite():
    d = TanhGaussian(jnp.array([30.0, -30.0]), jnp.zeros(2), jnp.zeros(2), jnp.ones(2))
    action = d.sample(jax.random.key(0))
    assert jnp.all(jnp.abs(action) < 1)
    value, gradient = jax.value_and_grad(lambda m: d._replace(mean=m).log_prob(action))(d.mean)
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))
    assert jnp.isfinite(d.entropy())


def test_a_squashed_draw_comes_with_its_log_density_and_its_derivatives(x64):
    """The density is the numerical derivative of the distribution function at the draw. Derivatives are those at a fixed normal
    number, by differences, also where tanh is flat, where the density of the draw itself has none."""
    d = TanhGaussian(
        jnp.array([0.4, -1.0]), jnp.array([-0.3, 0.2]), jnp.array([1.0, 0.0]), jnp.array([2.0, 0.1])
    )
    key = jax.random.key(3)
    action, log_prob = d.sample_and_log_prob(key)
    np.testing.assert_array_equal(action, d.sample(key))
    np.testing.assert_allclose(log_prob, d.log_prob(action), rtol=1e-9)

    def below(x):
        u = np.arctanh((x - np.asarray(d.centre)) / np.asarray(d.half_width))
        return scipy.stats.norm(np.asarray(d.mean), np.exp(np.asarray(d.log_std))).cdf(u)

    step = 1e-6
    density = np.prod((below(action + step) - below(action - step)) / (2 * step))
    np.testing.assert_allclose(log_prob, np.log(density), rtol=1e-6)

    def both(mean, log_std):
        action, log_prob = d._replace(mean=mean, log_std=log_std).sample_and_log_prob(key)
        return jnp.append(action, log_prob)

    for mean in (d.mean, jnp.array([4.0, -5.0])):
        found = jax.jacobian(both, (0, 1))(mean, d.log_std)
        for i, part in enumerate(found):
            for entry in range(2):
                move = 1e-6 * np.eye(2)[entry]
                at = [[mean, d.log_std], [mean, d.log_std]]
                at[0][i], at[1][i] = at[0][i] + move, at[1][i] - move
                slope = (both(*at[0]) - both(*at[1])) / 2e-6
                np.testing.assert_allclose(part[:, entry], slope, rtol=1e-4, atol=1e-8)
    far = TanhGaussian(jnp.array([30.0]), jnp.zeros(1), jnp.zeros(1), jnp.ones(1))
    slope = jax.grad(lambda m: far._replace(mean=m).sample_and_log_prob(key)[1])(far.mean)
    np.testing.assert_allclose(slope, 2.0, rtol=1e-9)  # of -log(1 - tanh²)
