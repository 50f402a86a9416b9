"""Posteriors against exact rationals, numerical integrals and enumeration."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxmeta import references, tasks
from jaxmeta.references.posteriors import posterior_action, posterior_best_arm, posterior_goal
from jaxmeta.tasks.dark_room import DarkRoomParams


def times(p, q):
    """The product of two polynomials, coefficients from the constant on."""
    product = [Fraction(0)] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            product[i + j] += a * b
    return product


def primitive(p):
    return [Fraction(0), *(a / (i + 1) for i, a in enumerate(p))]


def best_arm(arms):
    """``∫ f_i Π F_j`` of arms (successes, failures) in rationals: all are polynomials."""
    density = []
    for successes, failures in arms:
        power = [Fraction(1)]
        for factor in [[0, 1]] * successes + [[1, -1]] * failures:
            power = times(power, [Fraction(x) for x in factor])
        total = sum(primitive(power))
        density.append([x / total for x in power])
    return [
        sum(
            primitive(
                functools.reduce(
                    times, (primitive(f) if j != i else f for j, f in enumerate(density))
                )
            )
        )
        for i in range(len(arms))
    ]


def found(arms, **settings):
    successes, failures = np.array(arms, float).T
    return np.asarray(posterior_best_arm(successes, successes + failures, **settings))


KNOWN = [
    ([(3, 1), (1, 1)], [Fraction(5, 7), Fraction(2, 7)]),
    ([(0, 0)] * 5, [Fraction(1, 5)] * 5),
    ([(2, 0), *[(0, 0)] * 4], [Fraction(3, 7), *[Fraction(1, 7)] * 4]),
    ([(0, 2), *[(0, 0)] * 4], [Fraction(1, 35), *[Fraction(17, 70)] * 4]),
    ([(4, 2)], [Fraction(1)]),
]


@pytest.mark.parametrize(("arms", "exact"), KNOWN)
def test_exact_values(arms, exact):
    assert best_arm(arms) == exact
    np.testing.assert_allclose(found(arms), np.array(exact, float), atol=1e-6)


def random_arms(rng, num_arms, most):
    return [tuple(x) for x in rng.integers(0, most, (num_arms, 2)).tolist()]


@pytest.mark.parametrize("num_nodes", [32, 128])
def test_random_counts(num_nodes, x64):
    """To rounding, also with no more points than the promise asks for."""
    rng = np.random.default_rng(0)
    for num_arms in (2, 3, 5):
        arms = random_arms(rng, num_arms, 5)
        exact = np.array(best_arm(arms), float)
        np.testing.assert_allclose(found(arms, num_nodes=num_nodes), exact, atol=1e-12)


def test_single_precision_is_right_to_a_millionth():
    rng = np.random.default_rng(1)
    for _ in range(3):
        arms = random_arms(rng, 5, 12)
        assert found(arms).dtype == np.float32
        np.testing.assert_allclose(found(arms), np.array(best_arm(arms), float), atol=1e-6)


def integrated(frozen):
    """``∫ f_i Π F_j`` of SciPy's distributions on [0, 1], by adaptive quadrature."""

    def integrand(x, i):
        others = [d.cdf(x) for j, d in enumerate(frozen) if j != i]
        return frozen[i].pdf(x) * np.prod(others)

    peaks = sorted(float(d.mean()) for d in frozen)
    return [
        scipy.integrate.quad(integrand, 0, 1, args=(i,), points=peaks, limit=400)[0]
        for i in range(len(frozen))
    ]


def test_five_hundred_pulls(x64):
    arms = [(180, 120), (90, 50), (20, 20), (1, 9), (7, 3)]
    frozen = [scipy.stats.beta(1 + s, 1 + f) for s, f in arms]
    for num_nodes in (128, 512):
        np.testing.assert_allclose(found(arms, num_nodes=num_nodes), integrated(frozen), atol=1e-6)


def test_gaussian_arms():
    """The density of a mean is normal, cut to [0, 1]."""
    mean, pulls, noise = np.array([0.7, 0.4]), np.array([4.0, 2.0]), 0.3
    best = posterior_best_arm(mean * pulls, pulls, reward_noise=noise)
    scale = noise / np.sqrt(pulls)
    cut = [
        scipy.stats.truncnorm(-m / s, (1 - m) / s, m, s) for m, s in zip(mean, scale, strict=True)
    ]
    np.testing.assert_allclose(best, integrated(cut), atol=1e-6)
    np.testing.assert_allclose(best[0], 0.87125, atol=5e-6)
    # Means outside of the prior's support, and arms without a pull.
    best = posterior_best_arm(jnp.array([6.0, 0.0, -1.0]), jnp.array([4.0, 0, 2]), reward_noise=0.3)
    m, s = np.array([1.5, -0.5]), 0.3 / np.sqrt([4, 2])
    high, low = (
        scipy.stats.truncnorm(-m / s, (1 - m) / s, m, s) for m, s in zip(m, s, strict=True)
    )
    np.testing.assert_allclose(best, integrated([high, scipy.stats.uniform(), low]), atol=1e-6)


def test_many_histories_at_once():
    rng = np.random.default_rng(2)
    pulls = rng.integers(0, 6, (40, 3)).astype(float)
    reward = np.floor(pulls * rng.random((40, 3)))
    best = jax.jit(jax.vmap(posterior_best_arm))(reward, pulls)
    np.testing.assert_allclose(best.sum(1), 1.0, rtol=1e-6)
    for row in (0, 17, 39):
        np.testing.assert_allclose(
            best[row], posterior_best_arm(reward[row], pulls[row]), atol=1e-6
        )


def test_a_prior_is_more_pulls():
    """Beta(2, 1) and Beta(1, 3) without a pull: P = 1 - ∫ 2x (1 - x)^3 dx."""
    best = posterior_best_arm(jnp.array([1.0, 0.0]), jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(best, [0.9, 0.1], atol=1e-6)


# Dark rooms


def test_where_the_goal_may_be():
    prior = jnp.array([0.5, 0.25, 0.25, 0.0])
    none = jnp.zeros(4)
    np.testing.assert_allclose(posterior_goal(none, none, prior), prior)
    seen = jnp.array([0.0, 3.0, 0.0, 1.0])
    np.testing.assert_allclose(posterior_goal(none, seen, prior), [2 / 3, 0, 1 / 3, 0])
    paid = jnp.array([0.0, 0.0, 0.0, 1.0])  # a goal that the prior did not expect
    np.testing.assert_allclose(posterior_goal(paid, seen, prior), [0, 0, 0, 1])
    np.testing.assert_allclose(posterior_goal(none, jnp.array([1.0, 1, 1, 0]), prior), [0, 0, 0, 1])


def test_the_goal_by_bayes_rule():
    """Enumeration over the goals: the likelihood of the rewards of random steps is 0 or 1."""
    rng = np.random.default_rng(0)
    prior = rng.dirichlet(np.ones(9))
    for num_steps in (0, 1, 5, 20):
        goal = rng.choice(9, p=prior)
        ended = rng.integers(0, 9, num_steps)
        likely = np.array([np.all((ended == g) == (ended == goal)) for g in range(9)])
        visits = np.bincount(ended, minlength=9).astype(float)
        reward = visits * (np.arange(9) == goal)
        expected = prior * likely / (prior * likely).sum()
        np.testing.assert_allclose(posterior_goal(reward, visits, prior), expected, rtol=1e-5)


def test_the_action_by_enumeration():
    family = tasks.make("dark_room", size=4)
    goal = np.random.default_rng(0).dirichlet(np.ones(16)).astype(np.float32)
    found = jax.jit(jax.vmap(lambda cell: posterior_action(goal, cell, size=4)))(jnp.arange(16))
    for cell in range(16):
        expected = np.zeros(5)
        for g in range(16):
            task = DarkRoomParams(goal=jnp.array([g % 4, g // 4]), start=jnp.zeros(2, jnp.int32))
            expected[int(family.optimal_action(task, jnp.eye(16)[cell]))] += goal[g]
        np.testing.assert_allclose(found[cell], expected, rtol=1e-5)


def test_the_prior_is_over_the_training_goals():
    prior = np.asarray(references.room_prior(size=9))
    assert np.isclose(prior.sum(), 1.0)
    assert (prior > 0).sum() == 65
    family = tasks.make("dark_room")
    for split, expected in (("train", 1 / 65), ("test", 0.0)):
        x, y = tasks.sample_tasks(jax.random.key(0), family, 50, split=split).goal.T
        np.testing.assert_allclose(prior[x + 9 * y], expected, rtol=1e-6)
    np.testing.assert_allclose(references.room_prior(size=9, prior="all"), 1 / 81)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_nodes=1), "num_nodes=1 must be at least 2"),
        (dict(reward_noise=0.0), "reward_noise=0.0 must lie between 1e-06"),
        (dict(pulls=jnp.zeros(3)), "pulls"),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        posterior_best_arm(**dict(reward=jnp.zeros(2), pulls=jnp.zeros(2)) | settings)


def test_a_goal_of_another_room_is_refused():
    with pytest.raises(
        ValueError, match=r"goal must have shape \(9,\), .* of size=3, and has \(4,\)"
    ):
        posterior_action(jnp.ones(4), jnp.array(0), size=3)
