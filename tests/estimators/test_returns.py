import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta.estimators import exact, returns
from jaxmeta.estimators.returns import vtrace_targets
from jaxmeta.estimators.surrogates import semi_gradient
from tests.estimators.test_surrogates import UNBIASED, make_world, relative_bias
from tests.probes import CounterParams, constant_learner
from tests.rollouts.test_rollout import ENV, act_in

T = 12


def made_up(seed):
    """Random rewards, values and flags; where an episode terminated it also ended."""
    rng = np.random.default_rng(seed)
    last = rng.random(T) < 0.3
    terminated = last & (rng.random(T) < 0.5)
    first = np.concatenate([[True], last[:-1]])
    gamma = rng.uniform(0.5, 1.0)
    columns = dict(
        reward=rng.normal(size=T),
        discount=gamma * (1.0 - terminated),
        v=rng.normal(size=T),
        v_next=rng.normal(size=T),
        last=last,
        first=first,
    )
    return {name: jnp.asarray(x) for name, x in columns.items()}


seeds = st.integers(0, 10_000)


@settings(max_examples=20)
@given(seeds, st.floats(0, 1))
def test_gae_is_its_loop(seed, lambda_):
    s = made_up(seed)
    delta = returns.td_errors(s["reward"], s["discount"], v=s["v"], v_next=s["v_next"])
    expected, advantage = np.zeros(T), 0.0
    for t in reversed(range(T)):
        td = s["reward"][t] + s["discount"][t] * s["v_next"][t] - s["v"][t]
        carried = 0.0 if s["last"][t] else advantage
        advantage = td + s["discount"][t] * lambda_ * carried
        expected[t] = advantage
    result = returns.gae(delta, s["discount"], last=s["last"], lambda_=lambda_)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(seeds, st.floats(0, 1))
def test_advantages_and_targets_are_gae_and_what_it_adds_to_values(seed, lambda_):
    s = made_up(seed)
    columns = {x: s[x] for x in ("reward", "discount", "v", "v_next", "last")}
    advantage, target = returns.advantages_and_targets(**columns, lambda_=lambda_)
    delta = returns.td_errors(s["reward"], s["discount"], v=s["v"], v_next=s["v_next"])
    np.testing.assert_array_equal(
        advantage, returns.gae(delta, s["discount"], last=s["last"], lambda_=lambda_)
    )
    np.testing.assert_array_equal(target, s["v"] + advantage)


@settings(max_examples=20)
@given(seeds)
def test_gae_at_lambda_one_is_the_return_less_the_value(seed):
    """Σ of TD errors telescopes: v cancels between steps when v_next is the next step's v."""
    s = made_up(seed)
    inside = jnp.concatenate([s["v"][1:], s["v_next"][-1:]])
    v_next = jnp.where(s["last"], s["v_next"], inside)
    delta = returns.td_errors(s["reward"], s["discount"], v=s["v"], v_next=v_next)
    g = returns.discounted_returns(s["reward"], s["discount"], v_next=v_next, last=s["last"])
    np.testing.assert_allclose(
        returns.gae(delta, s["discount"], last=s["last"], lambda_=1.0),
        g - s["v"],
        rtol=1e-4,
        atol=1e-4,
    )


@settings(max_examples=20)
@given(seeds, st.sampled_from([(math.inf, math.inf), (1.0, 1.0), (1.5, 0.5), (math.inf, 0.0)]))
def test_vtrace_targets_are_their_sum(seed, bars):
    """Espeholt et al. 2018, eq. 1, up to where the episode ends."""
    s, lambda_ = made_up(seed), 0.9
    rho = np.exp(np.random.default_rng(seed).normal(size=T))
    reward, discount, v, v_next, last = (
        np.asarray(s[x]) for x in ("reward", "discount", "v", "v_next", "last")
    )
    expected = v.copy()
    for t in range(T):
        product = 1.0
        for k in range(t, T):
            delta = reward[k] + discount[k] * v_next[k] - v[k]
            expected[t] += product * min(rho[k], bars[0]) * delta
            product *= discount[k] * lambda_ * min(rho[k], bars[1])
            if last[k]:
                break
    columns = {x: s[x] for x in ("reward", "discount", "v", "v_next", "last")}
    bars_ = dict(rho_bar=bars[0], c_bar=bars[1], lambda_=lambda_)
    result = vtrace_targets(**columns, rho=jnp.asarray(rho), **bars_)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_truncation_bootstraps_and_termination_does_not():
    """The same three rewards of 8, γ = 0.5, and a successor worth 100: by hand."""
    for terminate_at, truncate_at, tail in ((99, 3, 100.0), (3, 99, 0.0), (99, 99, 100.0)):
        task = CounterParams(terminate_at=terminate_at, truncate_at=truncate_at)
        _, data = act_in(ENV, task, constant_learner(), num_steps=3)
        g = returns.discounted_returns(
            data.reward, 0.5 * data.discount, v_next=jnp.full(3, 100.0), last=data.last
        )
        by_hand = [
            8 + 0.5 * (8 + 0.5 * (8 + 0.5 * tail)),
            8 + 0.5 * (8 + 0.5 * tail),
            8 + 0.5 * tail,
        ]
        np.testing.assert_allclose(g, by_hand)


def test_returns_do_not_cross_episodes():
    _, data = act_in(ENV, CounterParams(terminate_at=2), constant_learner(), num_steps=4)
    g = returns.discounted_returns(
        data.reward, 1.0 * data.discount, v_next=jnp.zeros(4), last=data.last
    )
    assert g.tolist() == [16, 8, 16, 8]


def columns_of_streams(seed, num_streams, num_steps):
    """Rewards, discounts, values of successors, ratios and ends by name, ``[N, T]``."""
    keys = jax.random.split(jax.random.key(seed), 5)
    shape = (num_streams, num_steps)
    last = jax.random.bernoulli(keys[2], 0.3, shape)
    terminated = last & jax.random.bernoulli(keys[3], 0.5, shape)
    return dict(
        reward=jax.random.normal(keys[0], shape),
        discount=0.9 * (1.0 - terminated),
        v_next=jax.random.normal(keys[1], shape),
        rho=jnp.exp(jax.random.normal(keys[4], shape)),
        last=last,
    )


def one_stream(columns):
    """The first of the streams."""
    return {name: x[0] for name, x in columns.items()}


def test_importance_returns_without_a_difference_are_returns(x64):
    columns = one_stream(columns_of_streams(0, 1, 9)) | dict(rho=jnp.ones(9))
    found = returns.importance_returns(**columns)
    del columns["rho"]
    plain = returns.discounted_returns(**columns)
    np.testing.assert_allclose(found, plain, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_importance_returns_are_their_loop(seed, x64):
    """Ratios weight what is bootstrapped, too."""
    columns = one_stream(columns_of_streams(seed, 1, 9))
    reward, discount, v_next, rho, last = columns.values()
    wanted = np.zeros(9)
    for t in reversed(range(9)):
        to_come = v_next[t] if last[t] or t == 8 else wanted[t + 1]
        wanted[t] = rho[t] * (reward[t] + discount[t] * to_come)
    found = returns.importance_returns(**columns)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_importance_returns_are_their_sum(seed, x64):
    columns = columns_of_streams(seed, 4, 6)
    r, d, after, ratio, ends = map(np.asarray, columns.values())
    ends = ends.copy()
    ends[:, -1] = True
    wanted = np.zeros((4, 6))
    for t in range(6):
        goes_on, w, factor = np.ones(4, bool), np.ones(4), np.ones(4)
        for k in range(t, 6):
            w = w * ratio[:, k]
            mean = w[goes_on].mean() if goes_on.any() else 1.0
            term = r[:, k] + np.where(ends[:, k], d[:, k] * after[:, k], 0.0)
            wanted[:, t] += np.where(goes_on, w / mean * factor * term, 0.0)
            goes_on, factor = goes_on & ~ends[:, k], factor * d[:, k]
    found = returns.weighted_importance_returns(**columns)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)


def test_one_stream_weighted_returns_what_it_saw(x64):
    """The normalisation leaves nothing of the ratios: the value of μ, not of π."""
    columns = columns_of_streams(0, 1, 9)
    found = returns.weighted_importance_returns(**columns)
    del columns["rho"]
    plain = returns.discounted_returns(**one_stream(columns))
    np.testing.assert_allclose(found[0], plain, rtol=1e-10)


def test_discount_and_lambda_can_be_learned_through_returns(x64):
    """A stop hidden in here would make the derivative exactly zero."""
    s = made_up(0)

    def loss(gamma_scale, lambda_):
        discount = gamma_scale * s["discount"]
        delta = returns.td_errors(s["reward"], discount, v=s["v"], v_next=s["v_next"])
        return returns.gae(delta, discount, last=s["last"], lambda_=lambda_)[0]

    by_gamma, by_lambda = jax.grad(loss, argnums=(0, 1))(1.0, 0.9)
    h = 1e-6
    np.testing.assert_allclose(by_gamma, (loss(1 + h, 0.9) - loss(1 - h, 0.9)) / (2 * h), rtol=1e-6)
    np.testing.assert_allclose(
        by_lambda, (loss(1, 0.9 + h) - loss(1, 0.9 - h)) / (2 * h), rtol=1e-6
    )
    assert abs(by_gamma) > 1e-3
    assert abs(by_lambda) > 1e-3


# The value side, by enumeration: what targets say on average, and what a meta-gradient through the
# updates that are made of them says.
UNTRUNCATED = dict(rho_bar=math.inf, c_bar=math.inf)


TD = dict(rho_bar=math.inf, c_bar=0.0)


@pytest.fixture(scope="module")
def off_policy():
    """Three steps from any of two states; μ is some way from π."""
    with jax.enable_x64(True):
        world = make_world(0, sizes=(2, 2, 3), num_features=3)
        return world._replace(theta_mu=world.theta + 3.0 * (world.theta_mu - world.theta))


def columns(world, v, path):
    """What `vtrace_targets` takes of one path ``[H]``, which terminates at H; values ``v [H]``."""
    ratio = jnp.exp(world.log_prob(world.theta)[path] - world.log_prob(world.theta_mu)[path])
    last = jnp.zeros(world.horizon, bool).at[-1].set(True)
    discount = world.mdp.discount * (1.0 - last)
    # Nothing but its discount of 0 keeps out what is said to follow the last step.
    v_next = jnp.append(v[1:], 100.0)
    return dict(
        reward=world.rewards[path], discount=discount, v=v, v_next=v_next, rho=ratio, last=last
    )


def expected_targets(world, v, targets):
    """``E_μ[target_t | s_t = s]``, ``[H, S]``, for values ``v [H + 1, S]``."""
    time, num_paths = np.arange(world.horizon), len(world.states)

    @jax.jit
    def found(world, v):
        def on(path):
            return targets(**columns(world, v[time, world.states[path]], path))

        there = jax.nn.one_hot(world.states, v.shape[1])
        p = world.probabilities(world.theta_mu)
        sums = jnp.einsum("p,pts,pt->ts", p, there, jax.vmap(on)(jnp.arange(num_paths)))
        return sums / jnp.einsum("p,pts->ts", p, there)

    return found(world, v)


def check_unbiased_targets(world, targets):
    """The values of π, whatever values the targets are made with."""
    v = exact.values(world.mdp, world.policy(world.theta), world.horizon)[:-1]
    for guess in (world.wrong, jnp.zeros_like(world.wrong)):
        np.testing.assert_allclose(expected_targets(world, guess, targets), v, rtol=1e-12)


def test_untruncated_targets_are_unbiased(x64, off_policy):
    check_unbiased_targets(off_policy, partial(vtrace_targets, **UNTRUNCATED))


def test_importance_returns_are_unbiased(x64, off_policy):
    def targets(v, **columns):
        return returns.importance_returns(**columns)

    check_unbiased_targets(off_policy, targets)


@pytest.mark.parametrize("trace", ["retrace", "tree-backup", "importance sampling", "none"])
def test_action_value_targets_have_their_fixed_point(trace, x64, off_policy):
    """``E_μ[target_t | s_t, a_t] = Q^π`` at Q = Q^π for every trace; for importance sampling at any Q."""
    world = off_policy
    pi, mu = world.policy(world.theta), world.policy(world.theta_mu)
    v = exact.values(world.mdp, pi, world.horizon)
    to_come = jnp.einsum("sat,ht->hsa", world.mdp.transition, v[1:])
    q_pi = world.mdp.reward[None] + world.mdp.discount * to_come
    time = np.arange(world.horizon)
    states, actions, rewards = map(jnp.asarray, (world.states, world.actions, world.rewards))
    p = world.probabilities(world.theta_mu)
    wrong = q_pi + jax.random.normal(jax.random.key(3), q_pi.shape)

    @jax.jit
    def expected(q):
        def on(path):
            s, a = states[path], actions[path]
            rho = pi[s, a] / mu[s, a]
            last = jnp.zeros(world.horizon, bool).at[-1].set(True)
            after = jnp.sum(pi[s] * q[time, s], axis=1)
            c = {
                "retrace": 0.9 * jnp.minimum(1.0, rho),
                "tree-backup": 0.9 * pi[s, a],
                "importance sampling": rho,
                "none": jnp.zeros_like(rho),
            }[trace]
            return returns.action_value_targets(
                rewards[path],
                world.mdp.discount * (1.0 - last),
                q=q[time, s, a],
                v_next=jnp.append(after[1:], 100.0),
                c=c,
                last=last,
            )

        there = jax.nn.one_hot(states * pi.shape[1] + actions, pi.size)
        sums = jnp.einsum("p,ptx,pt->tx", p, there, jax.vmap(on)(jnp.arange(len(states))))
        return (sums / jnp.einsum("p,ptx->tx", p, there)).reshape(q.shape)

    np.testing.assert_allclose(expected(q_pi), q_pi, rtol=1e-12, atol=1e-12)
    moved = jnp.abs(expected(wrong) - q_pi).max()
    assert (moved < 1e-12) if trace == "importance sampling" else (moved > 1e-2)


@pytest.mark.parametrize("bug", ["c of the step before", "inverted mask", "no correction"])
def test_planted_wrong_targets(bug, x64, off_policy):
    def mutant(reward, discount, v, v_next, rho, last):
        if bug == "inverted mask":
            discount = 1.0 - discount
        if bug == "no correction":
            rho = jnp.ones_like(rho)
        delta = returns.td_errors(reward, discount, v=v, v_next=v_next)
        c = jnp.roll(rho, 1).at[0].set(1.0) if bug == "c of the step before" else rho
        return v + returns.gae(rho * delta, discount * c, last=last, lambda_=1.0)

    with pytest.raises(AssertionError):
        check_unbiased_targets(off_policy, mutant)


@pytest.mark.parametrize(
    ("rho_bar", "c_bar", "lambda_"),
    [(1.0, 1.0, 1.0), (1.0, 0.3, 0.9), (1.1, 1.0, 1.0), (math.inf, 1.0, 0.9), (math.inf, 0.0, 1.0)],
)
def test_the_fixed_point_of_truncated_targets(rho_bar, c_bar, lambda_, x64, off_policy):
    """The values of π̄ ∝ min(ρ̄ μ, π), whatever c̄ and λ: those of π without a bar, and else not."""
    world = off_policy
    policy, mu = world.policy(world.theta), world.policy(world.theta_mu)
    bounded = jnp.minimum(rho_bar * mu, policy)
    bounded = bounded / bounded.sum(axis=1, keepdims=True)
    targets = partial(vtrace_targets, rho_bar=rho_bar, c_bar=c_bar, lambda_=lambda_)
    fixed, v = (exact.values(world.mdp, x, world.horizon) for x in (bounded, policy))
    np.testing.assert_allclose(expected_targets(world, fixed, targets), fixed[:-1], rtol=1e-12)
    moved = jnp.abs(expected_targets(world, v, targets) - v[:-1]).max()
    assert (moved < 1e-12) if rho_bar == math.inf else (moved > 1e-3)


def test_the_meta_gradient_of_values_that_are_learned_from_off_policy_data(x64, off_policy):
    """Three TD(0) updates on a path D, the squared error after them on another path D'.

    Unbiased for the error to V^π where μ goes, if the targets of D' are (given D) and if nothing is
    stopped in the updates.
    """
    world, num_updates, step_size = off_policy, 3, 0.5
    horizon, num_paths = world.horizon, len(world.states)
    x = jax.random.normal(jax.random.key(8), (horizon, 2, 4))  # features of time and state
    w = jax.random.normal(jax.random.key(9), (4,))

    def values(w, path):
        return x[np.arange(horizon), world.states[path]] @ w

    def targets(w, path, **bars):
        return vtrace_targets(**columns(world, values(w, path), path), **bars)

    def td_update(w, path):
        error = targets(w, path, **TD) - values(w, path)
        return w + step_size * semi_gradient(partial(values, path=path), w, error) / horizon

    def planted_td_update(w, path):
        """The same step as the gradient of a loss with a stop in it."""
        goal = jax.lax.stop_gradient(targets(w, path, **TD))
        loss = jax.grad(lambda w: 0.5 * jnp.mean((goal - values(w, path)) ** 2))
        return w - step_size * loss(w)

    def first_order_td_update(w, path):
        return w + jax.lax.stop_gradient(td_update(w, path) - w)

    def squared_error(w, path, goal, weight=1.0):
        return 0.5 * jnp.mean(weight * (values(w, path) - jax.lax.stop_gradient(goal)) ** 2)

    def with_targets(w, path, **bars):
        return squared_error(w, path, targets(w, path, **bars))

    def per_decision(w, path):
        return squared_error(w, path, targets(jnp.zeros_like(w), path, **UNTRUNCATED))

    def weighted(w, path, correct=True):
        """Returns as they are; the error weighted by the ratio of all that led to them."""
        reward, discount, _, v_next, rho, last = columns(world, values(w, path), path).values()
        weight = jnp.cumprod(rho[::-1])[::-1] if correct else 1.0
        goal = returns.discounted_returns(reward, discount, v_next=v_next, last=last)
        return squared_error(w, path, goal, weight)

    doubly_robust = partial(with_targets, **UNTRUNCATED)
    unbiased = {
        "per-decision importance sampling": (td_update, per_decision),
        "doubly robust": (td_update, doubly_robust),
        "weighted error": (td_update, weighted),
    }
    biased = {
        "V-trace (1, 1)": (td_update, partial(with_targets, rho_bar=1.0, c_bar=1.0)),
        "bootstrapped": (td_update, partial(with_targets, **TD)),
        "uncorrected": (td_update, partial(weighted, correct=False)),
        "stopped inner targets": (planted_td_update, per_decision),
        "first-order": (first_order_td_update, per_decision),
    }
    same_path = {"per-decision": (td_update, per_decision), "DR": (td_update, doubly_robust)}

    def adapted(update, w, path):
        for _ in range(num_updates):
            w = update(w, path)
        return w

    p = world.probabilities(world.theta_mu)
    paths = jnp.arange(num_paths)

    @jax.jit
    def meta_gradients(w):
        def independent(row, w):
            update, loss = row
            after = jax.vmap(partial(adapted, update, w))(paths)
            return p @ jax.vmap(lambda w: jax.vmap(partial(loss, w))(paths))(after) @ p

        def dependent(row, w):
            update, loss = row
            return p @ jax.vmap(lambda path: loss(adapted(update, w, path), path))(paths)

        rows = [partial(independent, row) for row in (*unbiased.values(), *biased.values())]
        rows += [partial(dependent, row) for row in same_path.values()]
        return jax.jacrev(lambda w: jnp.stack([row(w) for row in rows]))(w)

    # The truth in closed form: updates are affine in w.
    v = exact.values(world.mdp, world.policy(world.theta), horizon)[:-1]
    there = jax.nn.one_hot(world.states, 2)  # [P, H, S]
    visits = jnp.einsum("p,pts->ts", p, there) / horizon
    rho = np.exp(world.log_prob(world.theta) - world.log_prob(world.theta_mu))
    truth = np.zeros(4)
    for path in range(num_paths):
        now = np.asarray(x[np.arange(horizon), world.states[path]])
        after = 0.95 * np.vstack([now[1:], np.zeros(4)])
        a = np.einsum("t,tf,tg->fg", rho[path], now, now - after) / horizon
        b = (rho[path] * world.rewards[path]) @ now / horizon
        once = np.eye(4) - step_size * a
        w_k = np.asarray(w)
        for _ in range(num_updates):
            w_k = once @ w_k + step_size * b
        error = visits * (x @ w_k - v)
        pulled_back = np.linalg.matrix_power(once.T, num_updates)
        truth += p[path] * pulled_back @ np.einsum("tsf,ts->f", x, error)

    found = [relative_bias(gradient, truth) for gradient in meta_gradients(w)]
    for name, bias in zip(unbiased, found, strict=False):
        assert bias < UNBIASED, name
    for name, bias in zip((*biased, *same_path), found[len(unbiased) :], strict=True):
        assert bias > 1e-2, name
