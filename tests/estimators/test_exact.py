"""The oracle against what it could be computed by otherwise: loops, closed forms, finite differences."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.estimators import exact
from jaxmeta.estimators.surrogates import SURROGATES

pytestmark = pytest.mark.usefixtures("x64")
S, A, H = 3, 2, 4


@pytest.fixture
def mdp(x64):
    return exact.random_mdp(jax.random.key(0), num_states=S, num_actions=A, discount=0.9)


@pytest.fixture
def policy(x64):
    return jax.nn.softmax(jax.random.normal(jax.random.key(1), (S, A)))


def test_random_mdp_is_an_mdp(mdp):
    np.testing.assert_allclose(mdp.transition.sum(-1), 1.0)
    np.testing.assert_allclose(mdp.initial.sum(), 1.0)
    assert mdp.reward.dtype == mdp.transition.dtype == jnp.float64


def test_paths_cover_everything_once(mdp, policy):
    states, actions = exact.trajectories(S, A, H)
    assert states.shape == actions.shape == ((S * A) ** H, H)
    assert len({(*s, *a) for s, a in zip(states.tolist(), actions.tolist(), strict=True)}) == len(
        states
    )
    p = exact.probabilities(mdp, policy, states, actions)
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-14)


def test_backward_induction_agrees_with_enumeration(mdp, policy):
    states, actions = exact.trajectories(S, A, H)
    p = exact.probabilities(mdp, policy, states, actions)
    returns = (mdp.reward[states, actions] * mdp.discount ** jnp.arange(H)[None, :]).sum(1)
    np.testing.assert_allclose(exact.expected_return(mdp, policy, H), p @ returns, rtol=1e-13)


def test_values_approach_the_infinite_horizon_s(mdp, policy):
    transition = jnp.einsum("sa,sat->st", policy, mdp.transition)
    reward = jnp.sum(policy * mdp.reward, axis=1)
    stationary = jnp.linalg.solve(jnp.eye(S) - 0.9 * transition, reward)
    np.testing.assert_allclose(exact.values(mdp, policy, 400)[0], stationary, rtol=1e-12)
    assert jnp.all(exact.values(mdp, policy, 5)[-1] == 0)


def test_softmax_linear_is_the_softmax_of_the_features_sum():
    features = jax.random.normal(jax.random.key(2), (S, A, 3))
    theta = jnp.array([0.5, -1.0, 2.0])
    policy = exact.softmax_linear(features, theta)
    for s in range(S):
        weight = [math.exp(sum(features[s, a] * theta)) for a in range(A)]
        np.testing.assert_allclose(policy[s], np.array(weight) / sum(weight), rtol=1e-14)


def test_derivatives_are_finite_differences(mdp):
    features = jax.random.normal(jax.random.key(2), (S, A, 2))
    theta, h = jnp.array([0.3, -0.2]), 1e-4

    @jax.jit
    def objective(theta):
        return exact.expected_return(mdp, exact.softmax_linear(features, theta), H)

    gradient, hessian = jax.jit(lambda theta: exact.derivatives(objective, theta))(theta)
    for i, j in itertools.product(range(2), range(2)):
        a, b = h * np.eye(2)[i], h * np.eye(2)[j]
        slope = (objective(theta + a) - objective(theta - a)) / (2 * h)
        curvature = (
            objective(theta + a + b)
            - objective(theta + a - b)
            - objective(theta - a + b)
            + objective(theta - a - b)
        ) / (4 * h**2)
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-6)
        np.testing.assert_allclose(hessian[i, j], curvature, atol=1e-6)


def test_paths_from_one_initial_state():
    states, actions = exact.trajectories(2, 2, 2, initial_state=1)
    assert states.shape == actions.shape == (8, 2)
    assert (states[:, 0] == 1).all()


@pytest.mark.parametrize(("num_outcomes", "batch_size"), [(8, 1), (3, 2), (2, 5), (4, 4)])
def test_batches_count_every_ordered_batch_once(num_outcomes, batch_size):
    indices, multiplicity = exact.batches(num_outcomes, batch_size)
    ordered = [tuple(sorted(x)) for x in itertools.product(range(num_outcomes), repeat=batch_size)]
    assert len(indices) == math.comb(num_outcomes + batch_size - 1, batch_size)
    assert {tuple(x) for x in indices.tolist()} == set(ordered)
    assert multiplicity.tolist() == [ordered.count(tuple(x)) for x in indices.tolist()]


class Adaptation:
    """Two states, two actions, two steps from state 0: eight outcomes, and one score-function step on them."""

    def __init__(self):
        mdp = exact.random_mdp(jax.random.key(3), num_states=2, num_actions=2, discount=0.9)
        self.mdp = mdp = mdp._replace(initial=jnp.array([1.0, 0.0]))
        self.paths = exact.trajectories(2, 2, 2, initial_state=0)
        self.features = jax.random.normal(jax.random.key(4), (2, 2, 3))
        self.theta = 0.5 * jax.random.normal(jax.random.key(5), (3,))
        self.returns = mdp.reward[self.paths] @ jnp.array([1.0, 0.9])

    def objective(self, theta):
        return exact.expected_return(self.mdp, exact.softmax_linear(self.features, theta), 2)

    def probabilities(self, theta):
        policy = exact.softmax_linear(self.features, theta)
        return exact.probabilities(self.mdp, policy, *self.paths)

    def update(self, theta, indices):
        def log_prob(theta):
            policy = exact.softmax_linear(self.features, theta)
            return jnp.log(policy[self.paths])[indices].sum(1)

        gain = self.returns[indices]
        return theta + 0.5 * jax.grad(lambda theta: jnp.mean(gain * log_prob(theta)))(theta)

    def finite(self, batch_size, num_updates=1, **settings):
        """``θ -> F_{N,K}(θ)``."""
        return lambda theta: exact.finite_batch_objective(
            self.objective,
            self.update,
            self.probabilities,
            theta,
            batch_size=batch_size,
            num_updates=num_updates,
            **settings,
        )

    def limit(self, num_updates=1):
        return lambda theta: exact.limit_objective(self.objective, theta, 0.5, num_updates)


@pytest.fixture
def adaptation(x64):
    return Adaptation()


def test_probabilities_of_all_batches_add_up(adaptation):
    p = adaptation.probabilities(adaptation.theta)
    for batch_size in (1, 2, 5):
        ones = exact.batch_expectation(lambda _: jnp.ones(()), p, batch_size=batch_size)
        np.testing.assert_allclose(ones, 1.0, rtol=1e-14)


@pytest.mark.parametrize("chunk_size", [1024, 7])  # more than there are; neither a divisor nor one
def test_the_finite_batch_objective_is_a_sum_over_ordered_batches(adaptation, chunk_size):
    a = adaptation

    def by_hand(theta):
        p = a.probabilities(theta)
        pairs = jnp.array(list(itertools.product(range(8), repeat=2)))
        after = jax.vmap(lambda pair: a.objective(a.update(theta, pair)))(pairs)
        return jnp.sum(p[pairs[:, 0]] * p[pairs[:, 1]] * after)

    value, gradient = jax.jit(jax.value_and_grad(a.finite(2, chunk_size=chunk_size)))(a.theta)
    expected, expected_gradient = jax.jit(jax.value_and_grad(by_hand))(a.theta)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12)


def test_two_updates_are_a_double_loop(adaptation):
    a = adaptation
    p, objective, update = (jax.jit(f) for f in (a.probabilities, a.objective, a.update))

    def by_hand(theta):
        total = 0.0
        for i in range(8):
            once = update(theta, np.array([i]))
            for j in range(8):
                twice = update(once, np.array([j]))
                total += p(theta)[i] * p(once)[j] * objective(twice)
        return total

    value, gradient = jax.jit(jax.value_and_grad(a.finite(1, num_updates=2)))(a.theta)
    np.testing.assert_allclose(value, by_hand(a.theta), rtol=1e-13)
    h = 1e-5 * np.array([0.6, -0.64, 0.48])
    slope = by_hand(a.theta + h) - by_hand(a.theta - h)
    np.testing.assert_allclose(gradient @ h, slope / 2, rtol=1e-7)


def test_three_updates_are_one_and_two(adaptation):
    a = adaptation
    p, update, twice = (jax.jit(f) for f in (a.probabilities, a.update, a.finite(1, 2)))
    total = sum(p(a.theta)[i] * twice(update(a.theta, np.array([i]))) for i in range(8))
    np.testing.assert_allclose(jax.jit(a.finite(1, 3))(a.theta), total, rtol=1e-13)


def test_no_updates_are_the_objective(adaptation):
    assert adaptation.finite(3, 0)(adaptation.theta) == adaptation.objective(adaptation.theta)
    assert adaptation.limit(0)(adaptation.theta) == adaptation.objective(adaptation.theta)


def test_the_limit_s_gradient_is_its_closed_form(adaptation):
    a = adaptation

    def both(theta):
        g, h = exact.derivatives(a.objective, theta)
        expected = (jnp.eye(3) + 0.5 * h) @ jax.grad(a.objective)(theta + 0.5 * g)
        return (jax.grad(a.limit())(theta), expected), (
            a.limit(2)(theta),
            a.limit()(theta + 0.5 * g),
        )

    for one, other in jax.jit(both)(a.theta):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_finite_batches_approach_the_limit_as_one_over_n(adaptation):
    a = adaptation

    def gradients(theta):
        return [jax.grad(f)(theta) for f in (a.limit(), a.finite(2), a.finite(4), a.finite(8))]

    limit, *finite = jax.jit(gradients)(a.theta)
    errors = [jnp.linalg.norm(x - limit) for x in finite]
    for coarse, fine in itertools.pairwise(errors):
        np.testing.assert_allclose(coarse / fine, 2.0, rtol=0.25)


def test_which_objective_a_meta_gradient_is_of(adaptation):
    """The table in `surrogates`: expected meta-gradients, over all batches of N, against ∇F_N and ∇F_∞.

    DiCE has no bias left for many streams: its error halves as N doubles. LVC, score and first order keep theirs.
    """
    a = adaptation
    discount, first = jnp.full(2, 0.9), jnp.array([True, False])

    def log_prob(theta, indices):
        return jnp.log(exact.softmax_linear(a.features, theta)[a.paths])[indices]

    def update(theta, indices, name="score"):
        def gain(theta):
            now = log_prob(theta, indices)
            streams = jax.vmap(SURROGATES[name], (0, 0, 0, None, None))
            return jnp.mean(
                streams(
                    now, jax.lax.stop_gradient(now), a.mdp.reward[a.paths][indices], discount, first
                )
            )

        return theta + 0.5 * jax.grad(gain)(theta)

    def estimates(indices):
        slope = jax.grad(a.objective)(update(a.theta, indices))
        through = {
            name: jax.vjp(lambda theta: update(theta, indices, name), a.theta)[1](slope)[0]  # noqa: B023
            for name in ("dice", "lvc", "score")
        }
        return through | {"first order": slope}

    @jax.jit
    def expected():
        """The expectation of each, ∇F_N and ∇F_∞, for every N."""
        told = a.objective, update, a.probabilities
        p, limit = a.probabilities(a.theta), jax.grad(a.limit())(a.theta)
        rows = []
        for size in (1, 2, 4, 8):
            finite = jax.grad(partial(exact.finite_batch_objective, *told, batch_size=size))(
                a.theta
            )
            rows.append(exact.batch_expectation(estimates, p, batch_size=size) | {"truth": finite})
        return rows, limit

    rows, limit = expected()
    norm = np.linalg.norm
    names = ("dice", "lvc", "score", "first order")
    for row in rows:
        assert min(norm(row[name] - row["truth"]) for name in names) > 1e-3 * norm(limit)
    for what in (lambda row: row["dice"] - row["truth"], lambda row: row["dice"] - limit):
        for coarse, fine in itertools.pairwise(rows):
            np.testing.assert_allclose(norm(what(coarse)) / norm(what(fine)), 2.0, rtol=0.3)
    # Where errors of 1/N and 1/N² are taken out (Richardson), what is left is the bias for many streams.
    left = {
        name: norm((8 * rows[3][name] - 6 * rows[2][name] + rows[1][name]) / 3 - limit)
        / norm(limit)
        for name in names
    }
    assert left["dice"] < 1e-4
    assert min(left[name] for name in names[1:]) > 1e-3


def test_an_mdp_and_functions_are_asked_for():
    policy, theta = jnp.ones((2, 2)) / 2, jnp.zeros(2)
    for call, told in (
        (
            lambda: exact.values("chain", policy, 2),
            "mdp is str 'chain'; it must be estimators.exact.MDP",
        ),
        (lambda: exact.derivatives(theta, theta), "objective is .*; it must be a function"),
    ):
        with pytest.raises(TypeError, match=told):
            call()
