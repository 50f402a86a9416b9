"""Surrogates against the exact gradient and Hessian, by enumeration in float64: no sampling.

The derivatives of a surrogate's expectation are sums over all paths, exact to rounding. So an unbiased
estimator is one whose relative bias is below 1e-11, and a bias that theory predicts is asserted as well:
a test that could not see it would be of no use. The checks are functions, so that bugs can be planted:
each check is shown to fail on what it is there to catch.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.estimators import baselines, episodes, exact, returns, surrogates
from jaxmeta.estimators.surrogates import (
    SURROGATES,
    loaded_dice,
    lvc,
    ppo_clip,
    score,
    taypo,
    vtrace,
)
from jaxmeta.recurrences import linear_recurrence
from jaxmeta.types import TimeStep, Trajectory

UNBIASED = 1e-11
INF = math.inf


class World(NamedTuple):
    """A finite MDP, a softmax-linear policy at θ, the one at θ_μ that acts off-policy, and all paths."""

    mdp: exact.MDP
    features: jax.Array  # [S, A, F]
    theta: jax.Array  # [F]
    theta_mu: jax.Array  # [F]
    wrong: jax.Array  # [H + 1, S]: values that are not those of any policy; zero at H
    states: jax.Array  # [P, H]
    actions: jax.Array  # [P, H]

    @property
    def horizon(self):
        return self.states.shape[1]

    @property
    def rewards(self):  # [P, H]
        return self.mdp.reward[self.states, self.actions]

    def policy(self, theta):
        return exact.softmax_linear(self.features, theta)

    def log_prob(self, theta):  # [P, H]
        return jnp.log(self.policy(theta))[self.states, self.actions]

    def probabilities(self, theta):  # [P]
        return exact.probabilities(self.mdp, self.policy(theta), self.states, self.actions)

    def objective(self, theta):
        return exact.expected_return(self.mdp, self.policy(theta), self.horizon)


def make_world(seed, *, sizes, num_features, initial_state=None):
    """Drawn by numpy, which compiles nothing."""
    num_states, num_actions, horizon = sizes
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(num_states), (num_states, num_actions))
    reward = rng.normal(size=(num_states, num_actions))
    initial = rng.dirichlet(np.ones(num_states))
    if initial_state is not None:
        initial = np.eye(num_states)[initial_state]
    features = rng.normal(size=(num_states, num_actions, num_features))
    theta, direction = 0.5 * rng.normal(size=(2, num_features))
    theta_mu = theta + 0.3 * direction / np.linalg.norm(direction)
    wrong = rng.normal(size=(horizon + 1, num_states))
    wrong[horizon] = 0.0
    mdp = exact.MDP(*map(jnp.asarray, (transition, reward, initial, 0.95)))
    paths = exact.trajectories(*sizes, initial_state=initial_state)
    return World(mdp, *map(jnp.asarray, (features, theta, theta_mu, wrong, *paths)))


@pytest.fixture(scope="module")
def small_world():
    """64 paths."""
    with jax.enable_x64(True):
        return make_world(3, sizes=(2, 2, 3), num_features=3)


@pytest.fixture(scope="module")
def large_world():
    """248 832 paths."""
    with jax.enable_x64(True):
        return make_world(0, sizes=(4, 3, 5), num_features=6)


@pytest.fixture
def world(x64, small_world):
    return small_world


def td_errors(world, v):
    """TD errors ``[P, H]`` with the values ``v [H + 1, S]``."""
    time = np.arange(world.horizon)[None, :]
    # The successor of the last step has value v[H] = 0, so any state will do.
    following = jnp.concatenate([world.states[:, 1:], world.states[:, :1]], axis=1)
    v_next = v[time + 1, following]
    return returns.td_errors(
        world.rewards, world.mdp.discount, v=v[time, world.states], v_next=v_next
    )


def signals(world, theta_mu):
    """What a trace may be multiplied with, ``[P, H]``: TD errors, and what is mistaken for them."""
    time, reward = np.arange(world.horizon), world.rewards
    v = exact.values(world.mdp, world.policy(theta_mu), world.horizon)
    g = (world.mdp.discount**time)[None, :]
    to_go = jnp.cumsum((g * reward)[:, ::-1], axis=1)[:, ::-1] / g
    exactly, wrongly = (x[time[None, :], world.states] for x in (v, world.wrong))
    by_time = world.probabilities(theta_mu) @ reward
    by_state = jnp.sum(world.policy(theta_mu) * world.mdp.reward, axis=1)[world.states]
    return {
        "zero": td_errors(world, jnp.zeros_like(v)),
        "exact": td_errors(world, v),
        "wrong": td_errors(world, world.wrong),
        # The return of the whole path, what came before the action included.
        "R": jnp.zeros_like(reward).at[:, -1].set(to_go[:, 0] / g[0, -1]),
        "r - b(t)": reward - by_time[None, :],
        "r - b(s)": reward - by_state,
        "G": to_go,
        "G - exact": to_go - exactly,
        "G - wrong": to_go - wrongly,
        "-exact": -exactly,
    }


def of(weights, **settings):
    """The surrogate with these weights."""
    return partial(surrogates.surrogate, weights=partial(weights, **settings))


def control_variate(log_ratio, first):
    """``(1 - W_{t-1}) (1 - ρ_t)``, at τ = 0: the second-order one of Liu et al. 2019, "Taming MAML"."""
    before = linear_recurrence(log_ratio, 1.0 - first) - log_ratio
    return jnp.expm1(before) * jnp.expm1(log_ratio)


def without_discount_factor(log_prob, log_mu, delta, discount, first, tau):
    return NAIVE(log_prob, log_mu, delta, jnp.ones_like(discount), first, tau)


NAIVE, LVC, DICE = of(score), of(lvc), of(loaded_dice)
LOADED = {x: of(loaded_dice, lambda_=x) for x in (0.0, 0.5, 0.95)}
TAYPO = {n: of(taypo, order=n) for n in (1, 2, 3, 5)}
# `off_policy` lets bars of 1 pass; why they are refused on-policy, a row of the table shows.
VTRACE = {
    x: of(vtrace, rho_bar=x[0], c_bar=x[1], off_policy=True)
    for x in ((INF, INF), (2.0, 2.0), (1.0, 1.0), (INF, 1.0))
}
DR, CONTROL_VARIATE = VTRACE[INF, INF], of(control_variate)


class Term(NamedTuple):
    """A surrogate of one of the `signals`; an estimator is a sum of these."""

    estimator: Callable
    signal: str
    tau: float = 1.0
    sampling: bool = False  # the second derivative is of the paths' probabilities too (E-MAML)


# Foerster et al. 2018 add sum_t g_t (1 - ρ_t) b_t to DiCE; Liu et al. 2019 subtract their control variate.
FOERSTER = (Term(DICE, "zero"), Term(LVC, "-exact", 0.0))
TMAML = (*FOERSTER, Term(CONTROL_VARIATE, "-exact", 0.0))

# Estimator: terms, bias of the gradient, bias of the Hessian. 0 is unbiased; other numbers were measured
# on another MDP of this size, with other code, and say how large the bias is.
ON_POLICY = {
    "naive, whole return": ([Term(NAIVE, "R")], 0, 6.37),
    "naive, V = 0 (the original MAML)": ([Term(NAIVE, "zero")], 0, 4.12),
    "naive, exact V": ([Term(NAIVE, "exact")], 0, 1.00),
    "naive without γ^t": ([Term(without_discount_factor, "zero")], 9.6e-2, 4.34),
    "DiCE, whole return": ([Term(DICE, "R")], 0, 0),
    "DiCE, V = 0": ([Term(DICE, "zero")], 0, 0),
    "DiCE, Foerster's baseline": (FOERSTER, 0, 0),
    "TMAML": (TMAML, 0, 0),
    "DiCE, r - b(t)": ([Term(DICE, "r - b(t)")], 0, 0),
    "DiCE, r - b(s)": ([Term(DICE, "r - b(s)")], 1.0e-1, 6.95e-2),
    "DiCE, return to go": ([Term(DICE, "G")], 2.9e-1, 2.34e-1),
    "DiCE, return to go - exact V": ([Term(DICE, "G - exact")], 0, 0),
    "DiCE, return to go - wrong V": ([Term(DICE, "G - wrong")], 2.4e-1, 2.72e-1),
    "Loaded 1, exact V": ([Term(DICE, "exact")], 0, 0),
    "Loaded 1, wrong V": ([Term(DICE, "wrong")], 0, 0),
    "Loaded 1, τ 0.95, exact V": ([Term(DICE, "exact", 0.95)], 0, 0),
    "Loaded 1, τ 0.95, wrong V": ([Term(DICE, "wrong", 0.95)], 1.2e-2, 1.37e-2),
    "Loaded 1, τ 0, exact V": ([Term(DICE, "exact", 0.0)], 0, 0),
    "Loaded 0.95, exact V": ([Term(LOADED[0.95], "exact")], 0, 2.40e-2),
    "Loaded 0.5, exact V": ([Term(LOADED[0.5], "exact")], 0, 2.33e-1),
    "LVC, V = 0": ([Term(LVC, "zero")], 0, 4.55e-1),
    "LVC, exact V": ([Term(LVC, "exact")], 0, 4.55e-1),
    "LVC, whole return": ([Term(LVC, "R")], 0, 4.55e-1),
    "E-MAML, V = 0": ([Term(NAIVE, "zero", sampling=True)], 0, 0),
    "E-MAML, exact V": ([Term(NAIVE, "exact", sampling=True)], 0, 0),
    "doubly robust, exact V": ([Term(DR, "exact")], 0, 0),
    "doubly robust, wrong V": ([Term(DR, "wrong")], 0, 0),
    "TayPO-1, exact V": ([Term(TAYPO[1], "exact")], 0, 4.55e-1),
    "TayPO-2, V = 0": ([Term(TAYPO[2], "zero")], 0, 0),
    "TayPO-2, exact V": ([Term(TAYPO[2], "exact")], 0, 0),
    "V-trace (2, 2), exact V": ([Term(VTRACE[2.0, 2.0], "exact")], 0, 0),
    # min(ρ, 1) at ρ = 1 has half the derivative, and where rounding breaks the tie all or none of it.
    "V-trace (1, 1), exact V": ([Term(VTRACE[1.0, 1.0], "exact")], 2.8e-1, 3.38e-1),
}

OFF_POLICY = {
    "importance sampling, V = 0": ([Term(DR, "zero")], 0, 0),
    "doubly robust, exact V": ([Term(DR, "exact")], 0, 0),
    "doubly robust, wrong V": ([Term(DR, "wrong")], 0, 0),
    "Loaded 1, exact V": ([Term(DICE, "exact")], 0, 0),
    "Loaded 0.95, exact V": ([Term(LOADED[0.95], "exact")], 2.6e-3, 4.43e-2),
    "TayPO-1, exact V": ([Term(TAYPO[1], "exact")], 3.7e-2, 4.65e-1),
    "LVC, exact V": ([Term(LVC, "exact")], 3.7e-2, 4.65e-1),
    "TayPO-2, exact V": ([Term(TAYPO[2], "exact")], 2.3e-4, 1.27e-2),
    "TayPO-3, exact V": ([Term(TAYPO[3], "exact")], 2.2e-5, 4.40e-4),
    "TayPO-5 (H), exact V": ([Term(TAYPO[5], "exact")], 0, 0),
    "V-trace (1, 1), exact V": ([Term(VTRACE[1.0, 1.0], "exact")], 7.7e-1, 8.95e-1),
    "V-trace (2, 2), exact V": ([Term(VTRACE[2.0, 2.0], "exact")], 0, 0),
    "V-trace (inf, 1), exact V": ([Term(VTRACE[INF, 1.0], "exact")], 1.4e-1, 7.13e-1),
    "naive, exact V": ([Term(NAIVE, "exact")], 1.5e-1, 1.00),
}


# One program for all terms, since time goes into compiling; this one is worth some optimisation.
@partial(jax.jit, static_argnums=1, compiler_options={"xla_backend_optimization_level": 1})
def measure(world, terms, theta_mu):
    """The expected gradient ``[F]`` and Hessian ``[F, F]`` at θ of each of ``terms``, where μ acts."""
    given, log_mu = signals(world, theta_mu), world.log_prob(theta_mu)
    discount = jnp.full(world.horizon, world.mdp.discount)
    first = jnp.zeros(world.horizon, bool).at[0].set(True)

    def log_policy(theta):
        return jnp.log(world.policy(theta))

    psi, curvature = jax.jacfwd(log_policy)(world.theta), jax.hessian(log_policy)(world.theta)
    groups, found = {}, {}
    for term in terms:
        groups.setdefault(term.estimator, []).append(term)
    for estimator, group in groups.items():
        estimators = jax.vmap(estimator, in_axes=(None, None, 0, None, None, 0))
        delta = jnp.stack([given[term.signal] for term in group], axis=1)  # [P, V, H]
        tau = jnp.array([term.tau for term in group])
        sampling = jnp.array([term.sampling for term in group], float)

        def derivatives(index, estimators=estimators, delta=delta, tau=tau, sampling=sampling):
            """On one path: those in its log-probabilities, then the chain rule."""
            i = index[0]
            step = (world.states[i], world.actions[i])

            def values(log_prob):
                return estimators(log_prob, log_mu[i], delta[i], discount, first, tau)

            def jacobian(log_prob):
                g = jax.jacrev(values)(log_prob)
                return g, g

            h, g = jax.jacfwd(jacobian, has_aux=True)(log_policy(world.theta)[step])
            gradient = g @ psi[step]
            hessian = jnp.einsum("vij,ia,jb->vab", h, psi[step], psi[step])
            hessian += jnp.einsum("vi,iab->vab", g, curvature[step])
            # E-MAML: the probability of the path has a derivative too.
            hessian += jnp.einsum("v,va,b->vab", sampling, gradient, psi[step].sum(0))
            return gradient, hessian

        p = world.probabilities(theta_mu)
        expected = exact.batch_expectation(derivatives, p, batch_size=1, chunk_size=1024)
        found |= {term: tuple(x[v] for x in expected) for v, term in enumerate(group)}
    return [found[term] for term in terms]


@jax.jit
def truth(world):
    return exact.derivatives(world.objective, world.theta)


def relative_bias(estimate, truth):
    return float(jnp.linalg.norm(estimate - truth) / jnp.linalg.norm(truth))


def biases(world, rows, theta_mu):
    """Relative biases of gradient and Hessian by row, each a sequence of terms."""
    terms = tuple(dict.fromkeys(itertools.chain(*rows.values())))
    found = dict(zip(terms, measure(world, terms, theta_mu), strict=True))
    return {
        name: tuple(
            relative_bias(sum(found[term][i] for term in terms), truth(world)[i]) for i in (0, 1)
        )
        for name, terms in rows.items()
    }


def bias(estimator, world, signal, theta_mu, tau=1.0):
    """Relative biases of one surrogate's gradient and Hessian."""
    return biases(world, {"it": [Term(estimator, signal, tau)]}, theta_mu)["it"]


def check_table(table, measured):
    """Unbiased where a row says 0; elsewhere biased, by no more than a factor of 5 from what it says."""
    wrong = {}
    for name, (_, *stated) in table.items():
        for kind, known, found in zip(("gradient", "Hessian"), stated, measured[name], strict=True):
            if known == 0:
                holds = found < UNBIASED
            else:
                holds = found > min(1e-3, known / 5) and known / 5 < found < known * 5
            if not holds:
                wrong[name, kind] = f"{found:.2e}, stated {known:.2e}"
    assert not wrong, wrong


@pytest.mark.slow
def test_every_estimator_on_policy(x64, large_world):
    rows = {name: terms for name, (terms, *_) in ON_POLICY.items()}
    check_table(ON_POLICY, biases(large_world, rows, large_world.theta))


def test_every_estimator_off_policy(x64, large_world):
    world = large_world
    ratio = jnp.exp(jnp.log(world.policy(world.theta)) - jnp.log(world.policy(world.theta_mu)))
    assert ratio.max() < 2.0  # or V-trace (2, 2) would truncate and be biased
    rows = {name: terms for name, (terms, *_) in OFF_POLICY.items()}
    check_table(OFF_POLICY, biases(world, rows, world.theta_mu))


def test_on_policy_any_values_any_tau(world):
    """At τ = 1 no gradient cares for the values; at τ < 1 they must be exact."""
    estimators = {"score": NAIVE, "lvc": LVC, "taypo": TAYPO[2], "dice": DICE, "ppo": ppo_clip}
    estimators |= {f"loaded {x}": LOADED[x] for x in (0.5, 0.95)}
    columns = [("zero", 1.0), ("exact", 1.0), ("wrong", 1.0), ("exact", 0.7), ("wrong", 0.7)]
    rows = {
        (name, *column): [Term(estimator, *column)]
        for name, estimator in estimators.items()
        for column in columns
    }
    found = biases(world, rows, world.theta)
    for (name, values, tau), (gradient, hessian) in found.items():
        row = (name, values, tau)
        if tau == 1.0 or values == "exact":
            assert gradient < UNBIASED, row
            if name in ("dice", "taypo"):
                assert hessian < UNBIASED, row
            else:
                assert hessian > 1e-3, row
        else:
            assert gradient > 1e-3, row
    for values in ("exact", "wrong"):  # the nearer to 1, the less bias of the Hessian
        assert found["loaded 0.5", values, 1.0][1] > found["loaded 0.95", values, 1.0][1]


def test_the_original_maml_s_hessian_vanishes_with_exact_values(world):
    """Softmax-linear: ∇² log π does not depend on the action, so it averages out (first-order MAML and noise)."""
    ((_, hessian),) = measure(world, (Term(NAIVE, "exact"),), world.theta)
    assert jnp.abs(hessian).max() < 1e-14


def test_taypo_s_derivatives_are_unbiased_up_to_its_order(world):
    """The third of order 2 is not, that of order 3 is."""
    delta, log_mu = td_errors(world, world.wrong), world.log_prob(world.theta)
    discount = jnp.full(world.horizon, world.mdp.discount)
    first = jnp.zeros(world.horizon, bool).at[0].set(True)

    def expected(theta, order):
        rows = (world.log_prob(theta), log_mu, delta, discount, first)
        terms = jax.vmap(TAYPO[order], in_axes=(0, 0, 0, None, None))(*rows)
        return world.probabilities(world.theta) @ terms

    @jax.jit
    def third_derivatives(theta):
        functions = (world.objective, partial(expected, order=2), partial(expected, order=3))
        return [jax.jacfwd(jax.jacfwd(jax.grad(f)))(theta) for f in functions]

    third, second_order, third_order = third_derivatives(world.theta)
    assert relative_bias(second_order, third) > 1e-3
    assert relative_bias(third_order, third) < UNBIASED


def check_slopes(taypo, world):
    """Order n errs by ε^n in the gradient and ε^(n-1) in the Hessian."""
    rows = {n: [Term(of(taypo, order=n), "wrong")] for n in (1, 2)}
    direction = world.theta_mu - world.theta
    far, near = (biases(world, rows, world.theta + x * direction) for x in (3e-2, 3e-3))
    for n in (1, 2):
        slopes = np.log10(np.array(far[n]) / np.array(near[n]))
        np.testing.assert_allclose(slopes, [n, n - 1], atol=0.1)


def test_taypo_off_policy_errs_by_its_order_in_the_distance(world):
    check_slopes(taypo, world)


def check_unbiased(estimator, world, theta_mu, *, hessian=True):
    """With values that are wrong, so that nothing is unbiased by their grace."""
    found = bias(estimator, world, "wrong", theta_mu)
    assert max(found if hessian else found[:1]) < UNBIASED, found


def test_truncating_at_the_ratio_itself_halves_the_derivative(world):
    """Why on-policy bars of 1 are refused."""
    one = jnp.ones(1)

    def value(log_prob, bar):
        weights = partial(vtrace, rho_bar=bar, c_bar=2.0, off_policy=True)
        return surrogates.surrogate(log_prob * one, 0 * one, one, one, one > 0, weights=weights)

    assert jax.grad(value)(0.0, 1.0) == 0.5
    assert jax.grad(value)(0.0, 1.5) == 1.0
    for bars in ((1.0, 2.0), (2.0, 1.0), (0.5, 0.5)):
        with pytest.raises(ValueError, match="must exceed 1: on-policy"):
            vtrace(jnp.zeros(3), jnp.zeros(3, bool), rho_bar=bars[0], c_bar=bars[1])


class Path(NamedTuple):
    """Two episodes of any ratios, rewards and values in a stream; the longer has five steps."""

    log_ratio: jax.Array
    reward: jax.Array
    v: jax.Array
    v_next: jax.Array
    first: jax.Array

    def derivatives(self, terms):
        """Gradient and Hessian in the log-ratio, of a sum of terms."""
        discount, nothing = jnp.full(8, 0.9), jnp.zeros(8)
        given = {"zero": self.reward, "-exact": -self.v}
        given["wrong"] = returns.td_errors(self.reward, discount, v=self.v, v_next=self.v_next)

        def value(x):
            return sum(
                term.estimator(x, nothing, given[term.signal], discount, self.first, term.tau)
                for term in terms
            )

        return exact.derivatives(value, self.log_ratio)


def make_path():
    log_ratio, reward, v = (jnp.array(x) for x in np.random.default_rng(0).normal(size=(3, 8)))
    first = jnp.zeros(8, bool).at[0].set(True).at[5].set(True)
    last = jnp.roll(first, -1)
    return Path(log_ratio, reward, v, jnp.where(last, 0.0, jnp.roll(v, -1)), first)


def check_same(*estimators):
    """The same derivatives on a path of any ratios and values: not in expectation alone."""
    found = jax.jit(lambda path: [path.derivatives(terms) for terms in estimators])(make_path())
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def wrong(*estimators):
    return [[Term(x, "wrong")] for x in estimators]


def test_identities_hold_on_every_path(x64):
    check_same(*wrong(LVC, TAYPO[1], LOADED[0.0]))
    check_same(*wrong(DICE, DR, TAYPO[5]), TMAML)  # 5: the longer episode's length


def test_on_policy_all_gradients_are_the_same_on_every_path(x64):
    path = make_path()._replace(log_ratio=jnp.zeros(8))
    estimators = wrong(NAIVE, LVC, DICE, DR, TAYPO[2], LOADED[0.5], VTRACE[2.0, 2.0])
    found = jax.jit(lambda path: [path.derivatives(terms) for terms in estimators])(path)
    for gradient, _ in found[1:]:
        np.testing.assert_allclose(gradient, found[0][0], rtol=1e-12)
    assert relative_bias(found[0][1], found[2][1]) > 0.1  # and the Hessians are not


def stacked_and_separate(estimators):
    """Value and gradient of two episodes in a stream, and of the two as streams, by estimator.

    A row each for an episode that terminated (γ is 0 there, as in a trajectory) and one that was cut,
    and for τ = 1 and below.
    """
    rng = np.random.default_rng(1)
    log_prob, log_mu, delta = (jnp.array(x) for x in rng.normal(size=(3, 2, 4)) * 0.3)
    first = jnp.zeros((2, 4), bool).at[:, 0].set(True)
    end, tau = (jnp.array(x) for x in zip(*itertools.product((0.0, 0.9), (1.0, 0.9)), strict=True))

    def both(estimator, end, tau):
        discount = jnp.full((2, 4), 0.9).at[0, -1].set(end)

        def stacked(log_prob):
            rows = (log_prob, log_mu, delta, discount, first)
            return estimator(*(x.reshape(-1) for x in rows), tau)

        def separate(log_prob):
            rows = (log_prob, log_mu, delta, discount, first)
            return jnp.sum(jax.vmap(estimator, in_axes=(0, 0, 0, 0, 0, None))(*rows, tau))

        return jax.value_and_grad(stacked)(log_prob), jax.value_and_grad(separate)(log_prob)

    @jax.jit
    def found(end, tau):
        return {
            name: jax.vmap(partial(both, estimator))(end, tau)
            for name, estimator in estimators.items()
        }

    return found(end, tau)


def check_two_streams(stacked, separate):
    for x, y in zip(stacked, separate, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


STREAMABLE = {**SURROGATES, "taypo 3": TAYPO[3], "vtrace": VTRACE[1.0, 1.0]}


def test_two_episodes_in_a_stream_are_two_streams(x64):
    for name, found in stacked_and_separate(STREAMABLE).items():
        assert abs(found[0][0]).min() > 1e-6, name
        check_two_streams(*found)


# Planted bugs: each is caught by a check that passes without it.


def test_planted_no_reset_where_an_episode_starts(x64):
    """In the surrogate, and in the weights alone."""

    def unaware(estimator):
        def mutant(log_prob, log_mu, delta, discount, first, tau):
            return estimator(log_prob, log_mu, delta, discount, first.at[1:].set(False), tau)

        return mutant

    def unaware_weights(weights):
        return of(lambda log_ratio, first: weights(log_ratio, first.at[1:].set(False)))

    mutants = {name: unaware(estimator) for name, estimator in STREAMABLE.items()}
    weights = (partial(taypo, order=2), loaded_dice, partial(vtrace, rho_bar=2.0, c_bar=2.0))
    mutants |= {str(x): unaware_weights(x) for x in weights}
    for found in stacked_and_separate(mutants).values():
        with pytest.raises(AssertionError):
            check_two_streams(*found)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda discount, first: jnp.ones_like(discount),
        lambda discount, first: episodes.cumulative_discount(1.0 - discount, first),
    ],
    ids=["no discount factor", "inverted mask"],
)
def test_planted_wrong_discount_factor(mutant, world, monkeypatch):
    """`of` makes a surrogate that was not compiled yet."""
    check_unbiased(of(score), world, world.theta, hessian=False)
    monkeypatch.setattr(surrogates, "cumulative_discount", mutant)
    with pytest.raises(AssertionError):
        check_unbiased(of(score), world, world.theta, hessian=False)


def test_planted_wrong_subtraction_in_loaded_dice(world):
    """exp(u_t) - exp(u_{t-1}): the decay λ of the trace must be in both."""

    def mutant(log_ratio, first, *, lambda_):
        u = linear_recurrence(log_ratio, (1.0 - first) * lambda_)
        return jnp.exp(u) - jnp.concatenate([jnp.ones(1), jnp.exp(u[:-1])])

    check_unbiased(LOADED[0.5], world, world.theta, hessian=False)
    with pytest.raises(AssertionError):
        check_unbiased(of(mutant, lambda_=0.5), world, world.theta, hessian=False)


def test_planted_taypo_off_by_one(world):
    """Products that take an action twice; orders that are one too many or too few."""

    def repeated(log_ratio, first, *, order):
        x, added = jnp.expm1(log_ratio), jnp.ones_like(log_ratio)
        total = jnp.zeros_like(x)
        for _ in range(order):
            total = total + x * added
            added = linear_recurrence(x * added, 1.0 - first)  # up to t, not up to t - 1
        return total

    with pytest.raises(AssertionError):
        check_same(*wrong(DICE, of(repeated, order=5)))
    with pytest.raises(AssertionError):
        check_same(*wrong(DICE, of(taypo, order=5 - 1)))
    with pytest.raises(AssertionError):
        check_slopes(lambda *rows, order: taypo(*rows, order=order + 1), world)


def test_planted_vtrace_with_c_shifted_by_a_step(world):
    """prod_{t<=k} c_t in place of prod_{t<k}, with bars that truncate nothing."""

    def mutant(log_ratio, first):
        w = jnp.exp(linear_recurrence(log_ratio, 1.0 - first) + log_ratio)
        return w - jnp.concatenate([jnp.ones(1), w[:-1]])

    check_unbiased(DR, world, world.theta_mu)
    with pytest.raises(AssertionError):
        check_unbiased(of(mutant), world, world.theta_mu)


# Baselines that are made from the batch itself.


@pytest.mark.parametrize("num_streams", [2, 5])
def test_batch_baselines(num_streams, x64):
    """The batch's mean shrinks the gradient and DiCE's Hessian by exactly 1 - 1/N; what leaves the stream
    itself out does nothing to them; a division by the batch's deviation bends them."""
    world = make_world(0, sizes=(2, 2, 2), num_features=3, initial_state=0)
    first = jnp.zeros((num_streams, 2), bool).at[:, 0].set(True)
    discount = jnp.full((num_streams, 2), world.mdp.discount)

    indices, multiplicity = exact.batches(len(world.states), num_streams)

    def by_baseline(indices):
        """TD errors ``[N, T]`` of the streams ``indices [N]``."""
        whole = signals(world, world.theta)["R"][indices]
        mean = jnp.mean(whole, axis=0, keepdims=True)
        data = Trajectory(
            timestep=TimeStep(jnp.eye(2)[world.states[indices]], None, None, first),
            action=None,
            log_prob=None,
            reward=world.rewards[indices],
            discount=None,
            last=first[:, ::-1],
            next_obs=None,
            memory=None,
        )
        return {
            "mean": whole - mean,
            "leave one out": whole
            - jax.vmap(surrogates.leave_one_out_mean, in_axes=1, out_axes=1)(whole),
            "linear": baselines.baseline_td_errors(data, discount, 2),
            "normalized": (whole - mean) / (jnp.std(whole[:, -1]) + 1e-8),
        }

    @jax.jit
    def found(theta):
        p = multiplicity * jnp.prod(world.probabilities(theta)[indices], axis=1)
        deltas = jax.vmap(by_baseline)(indices)
        log_mu = world.log_prob(theta)

        def expected(theta, delta):
            """Of the mean over N of DiCE, ``delta [C, N, T]``."""
            rows = (world.log_prob(theta)[indices], log_mu[indices], delta)
            dice = jax.vmap(DICE, in_axes=(0, 0, 0, 0, 0))
            terms = jax.vmap(dice, in_axes=(0, 0, 0, None, None))(*rows, discount, first)
            return p @ jnp.mean(terms, axis=1)

        def all_of_them(theta):
            return jnp.stack([expected(theta, delta) for delta in deltas.values()])

        gradient, hessian = jax.jacfwd(all_of_them)(theta), jax.hessian(all_of_them)(theta)
        return [dict(zip(deltas, x, strict=True)) for x in (gradient, hessian)]

    for exactly, kind in zip(truth(world), found(world.theta), strict=True):
        assert relative_bias(kind["mean"], (1 - 1 / num_streams) * exactly) < UNBIASED
        assert relative_bias(kind["leave one out"], exactly) < UNBIASED
        assert relative_bias(kind["linear"], exactly) < UNBIASED
        scale = jnp.sum(kind["normalized"] * exactly) / jnp.sum(exactly**2)
        assert relative_bias(kind["normalized"], scale * exactly) > 1e-4


def test_the_semi_gradient_is_a_td_step_whose_derivative_is_complete(x64):
    """The step of ½ ([target] - v)², and not its derivative: there the target moves with the parameters too."""
    x, x_next, reward = jax.random.normal(jax.random.key(0), (3, 5, 2))
    params = {"w": jnp.array([0.3, -0.7])}

    def value(params):
        return x @ params["w"]

    def target(params):
        return reward[:, 0] + 0.9 * x_next @ params["w"]

    def step(params):
        return surrogates.semi_gradient(value, params, target(params) - value(params))["w"]

    def stopped(params):
        def loss(params):
            return -0.5 * jnp.sum((jax.lax.stop_gradient(target(params)) - value(params)) ** 2)

        return jax.grad(loss)(params)["w"]

    np.testing.assert_allclose(step(params), stopped(params), rtol=1e-13)
    np.testing.assert_allclose(
        jax.jacobian(step)(params)["w"], x.T @ (0.9 * x_next - x), rtol=1e-12
    )
    np.testing.assert_allclose(jax.jacobian(stopped)(params)["w"], -x.T @ x, rtol=1e-12)


def ppo(ratio, advantage):
    one = jnp.ones(1)
    return surrogates.ppo_clip(jnp.log(ratio) * one, 0 * one, advantage * one, one, one > 0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.1, 2.0, 2.2, 2.0),  # inside: ρA
        (1.5, 2.0, 2.4, 0.0),  # too far up, and up is good: clipped
        (1.5, -2.0, -3.0, -2.0),  # too far up, and up is bad: not clipped
        (0.5, 2.0, 1.0, 2.0),
        (0.5, -2.0, -1.6, 0.0),
    ],
)
def test_ppo_clips_only_what_would_go_further(ratio, advantage, value, slope):
    np.testing.assert_allclose(ppo(ratio, advantage), value, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ppo)(ratio, advantage), slope, rtol=1e-5)


def test_ppo_at_ratio_one_has_the_whole_derivative():
    """A minimum of two equal arguments would share the derivative between them, were the clip inactive."""
    for advantage in (2.0, -2.0):
        np.testing.assert_allclose(jax.grad(ppo)(1.0, advantage), advantage, rtol=1e-6)


def test_surrogates_vanish_where_the_policy_acted():
    """Weights are w - 1 where the literature writes w: no derivative changes, and values are zero."""
    rows = (jnp.full(3, -0.7),) * 2
    first = jnp.zeros(3, bool).at[0].set(True)
    for name in ("score", "lvc", "dice"):
        value = SURROGATES[name](*rows, jnp.arange(3.0), jnp.full(3, 0.9), first)
        assert value == 0, name


def test_the_sampling_correction_sums_over_streams_and_steps():
    log_prob = jnp.arange(6.0).reshape(2, 3)
    gain = jnp.array([2.0, -1.0])
    np.testing.assert_allclose(surrogates.sampling_correction(log_prob, gain), 2 * 3 - 12)
    slope = jax.grad(surrogates.sampling_correction)(log_prob, gain)
    np.testing.assert_array_equal(slope, jnp.array([[2.0] * 3, [-1.0] * 3]))


def test_the_leave_one_out_mean_is_of_the_others():
    x = jnp.array([1.0, 2.0, 6.0])
    np.testing.assert_allclose(surrogates.leave_one_out_mean(x), [4.0, 3.5, 1.5])
    # No entry has a part in its own.
    np.testing.assert_allclose(jnp.diag(jax.jacobian(surrogates.leave_one_out_mean)(x)), 0.0)
    np.testing.assert_array_equal(surrogates.leave_one_out_mean(jnp.ones(1)), [0.0])
