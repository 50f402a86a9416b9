import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import tasks
from jaxmeta.networks.action_values import (
    check_values_fit,
    epsilon_greedy,
    recurrent_action_values,
    recurrent_outputs,
)
from jaxmeta.networks.actor_critic import Inputs, joined
from jaxmeta.networks.encodings import input_sizes
from jaxmeta.networks.recurrent import feed_forward, gru

FAMILY = tasks.make("gridnavi")


def stream(num_steps=4):
    keys = jax.random.split(jax.random.key(0), 3)
    obs, past, time = (
        jax.random.normal(k, (num_steps, n)) for k, n in zip(keys, input_sizes(FAMILY), strict=True)
    )
    return Inputs(obs, past, time, jnp.arange(num_steps) == 0)


@pytest.mark.parametrize("encoder_sizes", [(), (6,)])
def test_steps_and_unrolls_give_the_same_values(encoder_sizes):
    network = recurrent_action_values(FAMILY, gru(8), encoder_sizes=encoder_sizes)
    params, inputs = network.init(jax.random.key(1)), stream()

    @jax.jit
    def by_steps(params, inputs):
        def body(state, at):
            q, state = network.step(params, state, at)
            return state, q

        return jax.lax.scan(body, network.initial(), inputs)[1]

    q = jax.jit(network.unroll)(params, network.initial(), inputs)
    assert q.shape == (4, 5)
    np.testing.assert_allclose(by_steps(params, inputs), q, rtol=1e-5, atol=1e-6)


def test_the_head_normalises_before_each_relu(x64):
    """By hand in numpy, on a memory that is one tanh layer."""
    network = recurrent_action_values(FAMILY, feed_forward(7), hidden_sizes=(6, 5))
    inputs = stream()
    params = jax.tree.map(np.asarray, network.init(jax.random.key(1)))
    q = network.unroll(params, (), inputs)
    x = np.tanh(np.asarray(joined(inputs)) @ params["memory"]["kernel"] + params["memory"]["bias"])
    body, head = params["q"]["body"]["params"], params["q"]["head"]["params"]
    for i in range(2):
        dense, norm = body[f"Dense_{i}"], body[f"LayerNorm_{i}"]
        x = x @ dense["kernel"] + dense["bias"]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = np.maximum(x * norm["scale"] + norm["bias"], 0)
    np.testing.assert_allclose(q, x @ head["kernel"] + head["bias"], rtol=1e-6, atol=1e-9)
    assert np.std(q) > 1e-4


def test_epsilon_greedy_acts_at_random_as_often_as_it_says():
    q = jnp.array([[0.0, 2.0, 1.0, 2.0], [-1.0, -3.0, -2.0, -9.0]])
    found = jnp.exp(epsilon_greedy(q, 0.2).log_probs())
    expected = [[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]]  # the first of equals
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    soft = jnp.exp(epsilon_greedy(q, 0.2, 0.5).log_probs())
    np.testing.assert_allclose(soft, 0.05 + 0.8 * jax.nn.softmax(2.0 * q), rtol=1e-5)
    greedy = epsilon_greedy(q, 0.0)
    action = greedy.sample(jax.random.key(0))
    assert action.tolist() == [1, 0]
    assert greedy.log_prob(action).tolist() == [0, 0]
    assert jnp.isneginf(greedy.log_prob(jnp.array([0, 1]))).all()
    np.testing.assert_allclose(jnp.exp(epsilon_greedy(q, 1.0).log_probs()), 0.25, rtol=1e-6)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'navigation' has actions in .* needs a Discrete space"):
        recurrent_action_values(tasks.make("navigation"), gru(4))
    with pytest.raises(ValueError, match="encoder_sizes=0 must be at least 1"):
        recurrent_action_values(FAMILY, gru(4), encoder_sizes=(0,))
    network = recurrent_action_values(FAMILY, gru(4))
    check_values_fit(FAMILY, network)
    with pytest.raises(ValueError, match="network does not fit family 'bernoulli_bandit'"):
        check_values_fit(tasks.make("bernoulli_bandit"), network)


def test_outputs_are_as_many_as_asked():
    network = recurrent_outputs(FAMILY, gru(4), 3, encoder_sizes=(6,), scale=1.0)
    params = network.init(jax.random.key(1))
    assert network.unroll(params, network.initial(), stream()).shape == (4, 3)
