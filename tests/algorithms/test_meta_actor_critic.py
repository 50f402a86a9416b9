"""The actor-critic's updates against the textbook, and their derivatives against finite differences."""

import jax
import numpy as np
import pytest

from jaxmeta import rollouts, tasks
from jaxmeta.algorithms.meta_actor_critic import Config, Hyper, meta_actor_critic
from tests.probes import recorded_lifetime

NUM_STREAMS, HORIZON = 3, 4


def family_and_algorithm(hyper=Hyper(), **settings):
    family = tasks.make("tabular", num_states=3, num_actions=2, horizon=HORIZON)
    config = Config(
        **dict(num_streams=NUM_STREAMS, policy="softmax_linear", hidden_sizes=()) | settings
    )
    return family, meta_actor_critic(family, config, hyper)


def linear_meta(algorithm):
    """With parameters that are not the zeros that a new softmax-linear policy has."""
    meta = jax.jit(algorithm.init)(jax.random.key(0)).meta
    draw = np.random.default_rng(5)
    params = jax.tree.map(lambda x: 0.5 * draw.normal(size=x.shape), meta.params)
    return meta._replace(params=params)


def updating(algorithm, meta):
    """``data [N, T] -> (agent, the agent after an update on them)``, compiled."""

    def updated(data):
        agent = algorithm.learner.init(jax.random.key(0), meta)
        return agent, algorithm.learner.update(jax.random.key(3), meta, agent, data)

    return jax.jit(updated)


def test_softmax_linear_policy_and_linear_value_move_as_the_textbook_says(x64):
    """``∇log π(a|s) = φ(s, a) - sum_b π(b|s) φ(s, b)`` and ``∇V(s) = x(s)`` (Sutton & Barto 2018, eq. 13.9
    and 9.8), on new experience, where ratios are 1; V-trace is TD(λ) there."""
    gamma, lambda_ = 0.9, 0.7
    hyper = Hyper(discount=gamma, trace_lambda=lambda_, step_size=0.3, value_step_size=0.2)
    family, algorithm = family_and_algorithm(hyper, num_batches=1)
    meta = linear_meta(algorithm)
    data = jax.tree.map(
        lambda x: x[0],
        recorded_lifetime(algorithm, family, meta, num_streams=NUM_STREAMS, num_updates=1),
    )
    after = updating(algorithm, meta)(data)[1].params
    data = jax.tree.map(np.asarray, data)

    x = np.concatenate([data.timestep.obs, np.ones((NUM_STREAMS, HORIZON, 1))], axis=-1)
    x_next = np.concatenate([data.next_obs, np.ones((NUM_STREAMS, HORIZON, 1))], axis=-1)
    head = meta.params["value"]["head"]["params"]
    w = np.concatenate([head["kernel"][:, 0], head["bias"]])
    v, v_next, reward = x @ w, x_next @ w, np.asarray(data.reward)
    target = np.zeros_like(v)
    advantage = np.zeros_like(v)
    for t in reversed(range(HORIZON)):
        end = t == HORIZON - 1  # of the time: values go on from what followed
        delta = reward[:, t] + gamma * v_next[:, t] - v[:, t]
        later = 0.0 if end else gamma * lambda_ * (target[:, t + 1] - v[:, t + 1])
        target[:, t] = v[:, t] + delta + later
        to_come = v_next[:, t] if end else target[:, t + 1]
        advantage[:, t] = reward[:, t] + gamma * to_come - v[:, t]
    wanted_w = w + 0.2 * np.einsum("nt,ntf->f", target - v, x) / v.size
    found = after["value"]["head"]["params"]
    np.testing.assert_allclose(
        np.concatenate([found["kernel"][:, 0], found["bias"]]), wanted_w, rtol=1e-10
    )

    theta = np.asarray(meta.params["policy"]["theta"])
    phi = np.einsum("ab,ntf->ntabf", np.eye(2), x).reshape(NUM_STREAMS, HORIZON, 2, -1)
    pi = np.exp(phi @ theta) / np.exp(phi @ theta).sum(-1, keepdims=True)
    score = np.take_along_axis(phi, np.asarray(data.action)[..., None, None], axis=2)[:, :, 0]
    score = score - np.einsum("nta,ntaf->ntf", pi, phi)
    weight = advantage * gamma ** np.arange(HORIZON)
    wanted_theta = theta + 0.3 * np.einsum("nt,ntf->f", weight, score) / v.size
    np.testing.assert_allclose(after["policy"]["theta"], wanted_theta, rtol=1e-10)


def test_old_experience_is_weighted_by_its_ratios(x64):
    """What an update adds for a batch of another policy is ``min(ρ, ρ̄)`` times what it would for its own
    (λ = 0: a step at a time)."""
    hyper = Hyper(trace_lambda=0.0, step_size=1.0, value_step_size=1.0)
    family, algorithm = family_and_algorithm(hyper, num_batches=1, rho_bar=1.5)
    meta = linear_meta(algorithm)
    data = jax.tree.map(
        lambda x: x[0],
        recorded_lifetime(algorithm, family, meta, num_streams=NUM_STREAMS, num_updates=1),
    )
    updated = updating(algorithm, meta)

    def moved(log_ratio):
        given = data._replace(log_prob=np.asarray(data.log_prob) - log_ratio)
        values = (jax.tree.leaves(agent.params["value"]) for agent in updated(given))
        before, after = (np.concatenate([np.ravel(x) for x in leaves]) for leaves in values)
        return after - before

    plain = moved(0.0)
    for log_ratio, factor in ((np.log(1.2), 1.2), (np.log(3.0), 1.5), (np.log(0.2), 0.2)):
        np.testing.assert_allclose(moved(log_ratio), factor * plain, rtol=1e-8)


def checked_derivatives(algorithm, data, meta, *, of):
    """Gradients, each held to the differences, of what adaptation on ``data`` leads to, in both beginnings
    and both step sizes; each of ``of`` are the entries of the adapted parameters that count."""
    sizes = (meta.hyper.step_size, meta.hyper.value_step_size)
    flat, unravel = jax.flatten_util.ravel_pytree((meta.params, sizes))
    flat, draw = np.asarray(flat), np.random.default_rng(0)
    out = draw.normal(size=flat.size - 2)

    def adapted(flat, out):
        params, (step_size, value_step_size) = unravel(flat)
        sizes = dict(step_size=step_size, value_step_size=value_step_size)
        moved = meta._replace(params=params, hyper=meta.hyper._replace(**sizes))
        history = rollouts.replay(jax.random.key(1), moved, data, learner=algorithm.learner)
        last = jax.tree.map(lambda x: x[-1], history.agent.params)
        return jax.flatten_util.ravel_pytree(last)[0] @ out

    moves = [*draw.choice(flat.size, 12, replace=False).tolist(), -2, -1]
    steps = 1e-5 * np.eye(flat.size)[moves]
    points = flat + np.concatenate([steps, -steps])

    @jax.jit
    def derivatives(out):
        return jax.grad(adapted)(flat, out), jax.vmap(adapted, (0, None))(points, out)

    gradients = []
    for entries in of:
        counts = np.zeros_like(out)
        counts[entries] = out[entries]
        gradient, values = map(np.asarray, derivatives(counts))
        high, low = values.reshape(2, -1)
        np.testing.assert_allclose(gradient[moves], (high - low) / 2e-5, rtol=1e-5, atol=1e-7)
        gradients.append(gradient)
    return gradients


def test_the_meta_gradient_goes_through_both_updates(x64):
    """Two updates, the second on two batches, on experience that was so unlikely to its policy that every
    ratio is at its bound: those in the targets are data, and must not move for differences to be right."""
    family, algorithm = family_and_algorithm(num_batches=2, hidden_sizes=(3,))
    meta = jax.jit(algorithm.init)(jax.random.key(0)).meta
    data = recorded_lifetime(algorithm, family, meta, num_streams=NUM_STREAMS, num_updates=2)
    data = data._replace(log_prob=np.asarray(data.log_prob) - 30.0)
    size = sum(x.size for x in jax.tree.leaves(meta.params["policy"]))
    of_policy, of_all = slice(size), slice(None)
    _, gradient = checked_derivatives(algorithm, data, meta, of=[of_all, of_policy])
    # What becomes of the policy depends on where the values began, and on their step size.
    assert np.abs(gradient[size:-2]).max() > 1e-4
    assert np.abs(gradient[-1]) > 1e-6


def test_the_policy_s_own_ratio_is_live(x64):
    """One update on its own experience, where ρ = 1. Episodes of one step, so that nothing but the
    policy's weight is a function of a ratio."""
    family = tasks.make("tabular", num_states=3, num_actions=2, horizon=1)
    config = Config(num_streams=NUM_STREAMS, policy="softmax_linear", hidden_sizes=())
    algorithm = meta_actor_critic(family, config)
    meta = linear_meta(algorithm)
    data = recorded_lifetime(algorithm, family, meta, num_streams=NUM_STREAMS, num_updates=1)
    size = sum(x.size for x in jax.tree.leaves(meta.params["policy"]))
    checked_derivatives(algorithm, data, meta, of=[slice(size)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(rho_bar=1.0), "rho_bar=1.0 must exceed 1"),
        (dict(c_bar=-0.5), "c_bar=-0.5 must lie between 0 and inf"),
        (dict(adapts="head"), "adapts='head' is unknown"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_bad_numbers_are_refused():
    family = tasks.make("tabular")
    with pytest.raises(ValueError, match="trace_lambda=-0.1 must lie between 0 and 1"):
        meta_actor_critic(family, hyper=Hyper(trace_lambda=-0.1))


def test_the_step_size_of_what_is_not_adapted_is_refused():
    family = tasks.make("tabular")
    for adapts, name in (("policy", "value_step_size"), ("value", "step_size")):
        with pytest.raises(ValueError, match=f"^{name}=0.3 has no effect with adapts='{adapts}'"):
            meta_actor_critic(family, Config(adapts=adapts), Hyper(**{name: 0.3}))
