"""Action values that adapt: their updates by hand, and the derivative through them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import networks, rollouts, tasks
from jaxmeta.algorithms.meta_q import Config, Hyper, meta_q, trace_factor
from tests.probes import recorded_lifetime, thorough

NUM_STREAMS, HORIZON = 3, 4


def family_and_algorithm(hyper=Hyper(), **settings):
    family = tasks.make("tabular", num_states=3, num_actions=2, horizon=HORIZON)
    config = Config(**dict(num_streams=NUM_STREAMS, hidden_sizes=()) | settings)
    return family, meta_q(family, config, hyper)


def table(params):
    """Q of the three states, ``[S, A]``."""
    head = params["head"]["params"]
    return np.asarray(head["kernel"]) + np.asarray(head["bias"])


@pytest.mark.parametrize("trace", ["retrace", "tree_backup"])
def test_an_update_is_the_paper_s(trace, x64):
    """Experience of another policy; the step written out for a table."""
    gamma, lambda_, temperature, alpha = 0.9, 0.8, 0.5, 0.4
    hyper = Hyper(discount=gamma, trace_lambda=lambda_, temperature=temperature, step_size=alpha)
    family, algorithm = family_and_algorithm(hyper, trace=trace, num_batches=1)
    meta = jax.jit(algorithm.init)(jax.random.key(0)).meta
    data = jax.tree.map(
        lambda x: x[0],
        recorded_lifetime(algorithm, family, meta, num_streams=NUM_STREAMS, num_updates=1),
    )
    data = jax.tree.map(np.asarray, data)
    other = 0.7 * np.random.default_rng(5).normal(size=data.log_prob.shape)
    data = data._replace(log_prob=data.log_prob + other)

    @jax.jit
    def updated(data):
        agent = algorithm.learner.init(jax.random.key(0), meta)
        return algorithm.learner.update(jax.random.key(3), meta, agent, data).params

    after = jax.tree.map(np.asarray, updated(data))

    q = table(meta.params)
    pi = np.exp(q / temperature)
    pi /= pi.sum(-1, keepdims=True)
    s, s_next = (np.argmax(x, axis=-1) for x in (data.timestep.obs, data.next_obs))
    a, reward, mu = (np.asarray(x) for x in (data.action, data.reward, np.exp(data.log_prob)))
    error = np.zeros_like(reward)
    for t in reversed(range(HORIZON)):
        expected = np.sum(pi[s_next[:, t]] * q[s_next[:, t]], axis=1)
        delta = reward[:, t] + gamma * expected - q[s[:, t], a[:, t]]
        later = 0.0
        if t < HORIZON - 1:
            chosen = pi[s[:, t + 1], a[:, t + 1]]
            cut = np.minimum(1.0, chosen / mu[:, t + 1]) if trace == "retrace" else chosen
            later = gamma * lambda_ * cut * error[:, t + 1]
        error[:, t] = delta + later
    x = np.eye(3)[s]
    by_action = np.eye(2)[a]
    kernel = alpha * np.einsum("nt,nts,nta->sa", error, x, by_action) / error.size
    bias = alpha * np.einsum("nt,nta->a", error, by_action) / error.size
    moved = jax.tree.map(np.subtract, after, meta.params)["head"]["params"]
    np.testing.assert_allclose(moved["kernel"], kernel, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(moved["bias"], bias, rtol=1e-10, atol=1e-14)


def test_it_acts_by_the_softmax_of_its_values():
    family, algorithm = family_and_algorithm(Hyper(temperature=0.2))
    meta = jax.jit(algorithm.init)(jax.random.key(0)).meta
    data = recorded_lifetime(algorithm, family, meta, num_streams=NUM_STREAMS, num_updates=0)
    log_pi = jax.nn.log_softmax(table(meta.params) / 0.2)
    s = np.argmax(data.timestep.obs, axis=-1)
    np.testing.assert_allclose(data.log_prob, np.asarray(log_pi)[s, data.action], rtol=1e-4)


@pytest.mark.parametrize("trace", thorough(["retrace", "tree_backup"], ("retrace",)))
def test_the_meta_gradient_goes_through_the_updates(trace, x64):
    """As finite differences do, where Retrace's traces, which are data, are the same at all points."""
    family, algorithm = family_and_algorithm(num_batches=2, hidden_sizes=(3,), trace=trace)
    meta = jax.jit(algorithm.init)(jax.random.key(0)).meta
    data = recorded_lifetime(algorithm, family, meta, num_streams=NUM_STREAMS, num_updates=2)
    # Experience as if of a policy to which it was all unlikely: every ratio is above 1 and cut to it.
    data = data._replace(log_prob=np.asarray(data.log_prob) - 30.0)
    flat, unravel = jax.flatten_util.ravel_pytree((meta.params, meta.hyper.step_size))
    flat, draw = np.asarray(flat), np.random.default_rng(0)
    out = draw.normal(size=flat.size - 1)

    def adapted(flat):
        params, step_size = unravel(flat)
        moved = meta._replace(params=params, hyper=meta.hyper._replace(step_size=step_size))
        history = rollouts.replay(jax.random.key(1), moved, data, learner=algorithm.learner)
        last = jax.tree.map(lambda x: x[-1], history.agent.params)
        return jax.flatten_util.ravel_pytree(last)[0] @ out

    moves = [*draw.choice(flat.size, 12, replace=False).tolist(), -1]
    steps = 1e-5 * np.eye(flat.size)[moves]

    @jax.jit
    def derivatives(points):
        return jax.grad(adapted)(flat), jax.vmap(adapted)(points)

    gradient, values = map(np.asarray, derivatives(flat + np.concatenate([steps, -steps])))
    high, low = values.reshape(2, -1)
    np.testing.assert_allclose(gradient[moves], (high - low) / 2e-5, rtol=1e-5, atol=1e-7)


def test_retrace_s_factors_are_data_and_tree_backup_s_are_not(x64):
    log_prob, log_prob_mu = jnp.log(jnp.array([[0.2, 0.5, 0.9]])), jnp.log(jnp.array([[0.4] * 3]))

    def factor(log_prob, trace):
        return jnp.sum(trace_factor(log_prob, log_prob_mu, trace))

    np.testing.assert_array_equal(jax.grad(factor)(log_prob, "retrace"), jnp.zeros((1, 3)))
    np.testing.assert_allclose(jax.grad(factor)(log_prob, "tree_backup"), jnp.exp(log_prob))
    cut = trace_factor(log_prob, log_prob_mu, "retrace")
    np.testing.assert_allclose(cut, [[0.5, 1.0, 1.0]])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="trace='q_lambda' is unknown"):
        Config(trace="q_lambda")
    with pytest.raises(ValueError, match="family 'navigation' has actions in .*Discrete"):
        meta_q(tasks.make("navigation"))
    family = tasks.make("tabular")
    q = networks.value_mlp(family.observation_shape, (3,), family.action_space.n)
    with pytest.raises(ValueError, match=r"hidden_sizes=\(\) has no effect beside a q= of your"):
        meta_q(family, Config(hidden_sizes=()), q=q)
    with pytest.raises(ValueError, match="adapts='haed' is unknown: did you mean 'head'"):
        meta_q(family, Config(adapts="haed"))
    with pytest.raises(ValueError, match="temperature=0 must lie between"):
        meta_q(tasks.make("tabular"), hyper=Hyper(temperature=0))
