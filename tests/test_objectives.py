"""Surrogates against the exact gradient and Hessian, by enumeration in float64: no sampling."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import exact, objectives, returns
from jaxmeta.objectives import SURROGATES, loaded_dice, taypo, vtrace

S, A, H = 2, 2, 3
GAMMA = 0.9


def log_policy(theta):
    """Softmax-linear with one-hot features: π(a|s) ∝ exp(θ_sa)."""
    return jax.nn.log_softmax(theta.reshape(S, A))


@pytest.fixture
def world(x64):
    mdp = exact.random_mdp(jax.random.key(3), num_states=S, num_actions=A, discount=GAMMA)
    theta = jax.random.normal(jax.random.key(4), (S * A,))
    wrong = jax.random.normal(jax.random.key(5), (H + 1, S)).at[H].set(0.0)
    return mdp, theta, wrong, exact.trajectories(S, A, H)


def objective(mdp, theta):
    return exact.expected_return(mdp, jnp.exp(log_policy(theta)), H)


def expectation(surrogate, world, v, theta_mu=None, tau=1.0):
    """``θ -> E_{D ~ μ}`` of the surrogate with values ``v [H + 1, S]``."""
    mdp, theta, _, (states, actions) = world
    theta_mu = theta if theta_mu is None else theta_mu
    p = exact.probabilities(mdp, jnp.exp(log_policy(theta_mu)), states, actions)
    log_mu = log_policy(theta_mu)[states, actions]
    reward = mdp.reward[states, actions]
    now = v[jnp.arange(H)[None, :], states]
    # The successor of the last step has value v[H] = 0, so any state will do.
    following = jnp.concatenate([states[:, 1:], states[:, :1]], axis=1)
    v_next = v[1 + jnp.arange(H)[None, :], following]
    discount = jnp.full((H,), GAMMA)
    delta = jax.vmap(returns.td_errors, in_axes=(0, None, 0, 0))(reward, discount, now, v_next)
    first = jnp.zeros(H, bool).at[0].set(True)

    def expected(theta):
        terms = jax.vmap(surrogate, in_axes=(0, 0, 0, None, None, None))(
            log_policy(theta)[states, actions], log_mu, delta, discount, first, tau
        )
        return p @ terms

    return expected


def expected_derivatives(surrogate, world, v, **settings):
    """The gradient and the Hessian at θ of the `expectation`."""
    expected = expectation(surrogate, world, v, **settings)
    return jax.grad(expected)(world[1]), jax.hessian(expected)(world[1])


def relative_bias(estimate, truth):
    return float(jnp.linalg.norm(estimate - truth) / jnp.linalg.norm(truth))


def of(weights, **settings):
    """The surrogate with these weights."""
    return partial(objectives.surrogate, weights=partial(weights, **settings))


def biases(estimator, world, v, **settings):
    """Relative biases of the gradient and the Hessian of a surrogate, or of the one of that name."""
    mdp, theta, _, _ = world
    estimator = SURROGATES.get(estimator, estimator) if isinstance(estimator, str) else estimator
    gradient, hessian = expected_derivatives(estimator, world, v, **settings)
    truth = (
        jax.grad(objective, argnums=1)(mdp, theta),
        jax.hessian(objective, argnums=1)(mdp, theta),
    )
    return relative_bias(gradient, truth[0]), relative_bias(hessian, truth[1])


def exact_values(world, theta=None):
    mdp, own, _, _ = world
    return exact.values(mdp, jnp.exp(log_policy(own if theta is None else theta)), H)


@pytest.mark.parametrize("values", ["zero", "exact", "wrong"])
def test_on_policy_every_gradient_is_unbiased_and_only_dice_s_hessian_is(world, values):
    v = {"zero": jnp.zeros((H + 1, S)), "exact": exact_values(world), "wrong": world[2]}[values]
    for name in ("score", "lvc", "dice"):
        gradient, hessian = biases(name, world, v)
        assert gradient < 1e-11, name
        if name == "dice":
            assert hessian < 1e-11
        else:
            assert hessian > 1e-2, name
    assert biases("ppo_clip", world, v)[0] < 1e-11


def test_the_original_maml_s_hessian_vanishes_with_exact_values(world):
    """Softmax-linear: ∇² log π does not depend on the action, so it averages out (first-order MAML and noise)."""
    _, hessian = expected_derivatives(SURROGATES["score"], world, exact_values(world))
    assert jnp.abs(hessian).max() < 1e-14


@pytest.mark.parametrize("values", ["exact", "wrong"])
def test_off_policy_only_importance_sampling_is_unbiased(world, values):
    theta_mu = world[1] + 0.3 * jax.random.normal(jax.random.key(6), (S * A,))
    v = exact_values(world, theta_mu) if values == "exact" else world[2]
    gradient, hessian = biases("dice", world, v, theta_mu=theta_mu)
    assert gradient < 1e-11
    assert hessian < 1e-11
    for name in ("score", "lvc"):
        gradient, hessian = biases(name, world, v, theta_mu=theta_mu)
        assert gradient > 1e-3, name
        assert hessian > 1e-2, name


def test_tau_below_one_is_unbiased_with_exact_values_only(world):
    for name in ("score", "lvc", "dice"):
        assert biases(name, world, exact_values(world), tau=0.7)[0] < 1e-11, name
        assert biases(name, world, world[2], tau=0.7)[0] > 1e-3, name
    assert biases("dice", world, exact_values(world), tau=0.7)[1] < 1e-11


@pytest.mark.parametrize("values", ["exact", "wrong"])
def test_loaded_dice_trades_bias_of_the_hessian(world, values):
    """Less of it the nearer λ is to 1; never in the gradient."""
    v = exact_values(world) if values == "exact" else world[2]
    found = [biases(of(loaded_dice, lambda_=x), world, v) for x in (0.5, 0.95, 1.0)]
    assert max(gradient for gradient, _ in found) < 1e-11
    assert found[0][1] > found[1][1] > 1e-3
    assert found[2][1] < 1e-11


@pytest.mark.parametrize("values", ["exact", "wrong"])
def test_taypo_on_policy_is_unbiased_up_to_its_order(world, values):
    mdp, theta, wrong, _ = world
    v = exact_values(world) if values == "exact" else wrong
    third = jax.jacfwd(jax.hessian(objective, argnums=1), argnums=1)(mdp, theta)
    for order, hessian_bias, third_bias in ((1, True, True), (2, False, True), (3, False, False)):
        estimator = of(taypo, order=order)
        gradient, hessian = biases(estimator, world, v)
        assert gradient < 1e-11
        assert (hessian > 1e-2) if hessian_bias else (hessian < 1e-11), order
        estimated = jax.jacfwd(jax.hessian(expectation(estimator, world, v)))(theta)
        bias = relative_bias(estimated, third)
        assert (bias > 1e-3) if third_bias else (bias < 1e-11), order


def test_taypo_off_policy_errs_by_its_order_in_the_distance(world):
    """The gradient's error falls as ε^n: a tenth of the distance, 10^-n of the error (and H = 3 is exact)."""
    direction = jax.random.normal(jax.random.key(6), (S * A,))
    for order in (1, 2):
        far, near = (
            biases(of(taypo, order=order), world, world[2], theta_mu=world[1] + e * direction)[0]
            for e in (1e-2, 1e-3)
        )
        np.testing.assert_allclose(np.log10(far / near), order, atol=0.1)
    off = dict(theta_mu=world[1] + 0.3 * direction)
    gradient, hessian = biases(of(taypo, order=H), world, world[2], **off)
    assert gradient < 1e-11
    assert hessian < 1e-11


def test_vtrace_is_biased_where_it_truncates_and_nowhere_else(world):
    off = dict(theta_mu=world[1] + 0.3 * jax.random.normal(jax.random.key(6), (S * A,)))
    v = exact_values(world, off["theta_mu"])
    loose = of(vtrace, rho_bar=2.0, c_bar=2.0)
    assert max(biases(loose, world, world[2])) < 1e-11  # on-policy every ratio is 1
    assert max(biases(of(vtrace, rho_bar=1e9, c_bar=1e9), world, v, **off)) < 1e-11
    for rho_bar, c_bar in ((1.0, 1.0), (1e9, 1.0)):
        truncated = of(vtrace, rho_bar=rho_bar, c_bar=c_bar, off_policy=True)
        gradient, hessian = biases(truncated, world, v, **off)
        assert gradient > 1e-2
        assert hessian > 1e-2


def test_truncating_at_the_ratio_itself_halves_the_derivative(world):
    """Why on-policy bars of 1 are refused."""
    half = of(vtrace, rho_bar=1.0, c_bar=1.0, off_policy=True)
    assert biases(half, world, exact_values(world))[0] > 0.1
    for bars in ((1.0, 2.0), (2.0, 1.0), (0.5, 0.5)):
        with pytest.raises(ValueError, match="must exceed 1: on-policy"):
            vtrace(jnp.zeros(3), jnp.zeros(3, bool), rho_bar=bars[0], c_bar=bars[1])


def test_identities_hold_on_every_path(x64):
    """Not in expectation: for any ratios, any values, two episodes in a stream."""
    rng = np.random.default_rng(0)
    log_ratio, delta = (jnp.array(x) for x in rng.normal(size=(2, 8)))
    first = jnp.zeros(8, bool).at[0].set(True).at[5].set(True)
    rows = (jnp.zeros(8), delta, jnp.full(8, GAMMA), first)

    def derivatives(estimator):
        def value(x):
            return estimator(x, *rows)

        return jax.grad(value)(log_ratio), jax.hessian(value)(log_ratio)

    groups = [
        [SURROGATES["lvc"], of(taypo, order=1), of(loaded_dice, lambda_=0.0)],
        [
            SURROGATES["dice"],
            of(loaded_dice, lambda_=1.0),
            of(taypo, order=5),  # the longer episode's length
            of(vtrace, rho_bar=math.inf, c_bar=math.inf),
        ],
    ]
    for same, *others in groups:
        for other in others:
            for x, y in zip(derivatives(same), derivatives(other), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def test_leaving_out_the_discount_factor_biases_the_gradient(world, monkeypatch):
    monkeypatch.setattr(objectives, "cumulative_discount", lambda discount, first: jnp.ones(H))
    assert biases("score", world, exact_values(world))[0] > 1e-2


@pytest.mark.parametrize("name", sorted(SURROGATES))
@pytest.mark.parametrize("tau", [1.0, 0.9])
def test_two_episodes_in_a_stream_are_two_streams(name, tau, x64):
    rng = np.random.default_rng(0)
    log_prob, log_mu, delta = (jnp.array(x) for x in rng.normal(size=(3, 2, H)) * 0.3)
    # γ is 0 where the first episode terminated, as in a trajectory; a truncated one keeps it.
    for end in (0.0, GAMMA):
        discount = jnp.full((2, H), GAMMA).at[0, -1].set(end)
        first = jnp.zeros((2, H), bool).at[:, 0].set(True)

        def one(log_prob, episode, discount=discount, first=first):
            rows = (log_mu[episode], delta[episode], discount[episode], first[episode])
            return SURROGATES[name](log_prob[episode], *rows, tau)

        def stacked(log_prob, discount=discount, first=first):
            rows = (log_prob, log_mu, delta, discount, first)
            return SURROGATES[name](*(x.reshape(-1) for x in rows), tau)

        def separate(log_prob, one=one):
            return one(log_prob, 0) + one(log_prob, 1)

        np.testing.assert_allclose(stacked(log_prob), separate(log_prob), rtol=1e-12)
        np.testing.assert_allclose(
            jax.grad(stacked)(log_prob), jax.grad(separate)(log_prob), rtol=1e-12
        )


def ppo(ratio, advantage):
    one = jnp.ones(1)
    return objectives.ppo_clip(jnp.log(ratio) * one, 0 * one, advantage * one, one, one > 0)


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
    rows = (jnp.full(H, -0.7),) * 2
    first = jnp.zeros(H, bool).at[0].set(True)
    for name in ("score", "lvc", "dice"):
        value = SURROGATES[name](*rows, jnp.arange(3.0), jnp.full(H, GAMMA), first)
        assert value == 0, name
