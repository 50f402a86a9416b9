"""The network of a learned optimiser, against a version by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.networks.learned_optimizer import optimizer_network

NETWORK = optimizer_network(5, 3, memory_size=4, hidden_sizes=(6, 3))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def by_hand(params, h, x):
    """``(outputs [P, 3], memory [P, 4])``: a GRU, two layers of ReLU after layer normalisation, and a linear one."""
    cell = params["memory"]
    given = x @ cell["input"]["kernel"] + cell["input"]["bias"]
    recalled = h @ cell["recurrent"]
    forget, keep, candidate = np.split(given, 3, axis=1)
    forget_h, keep_h, candidate_h = np.split(recalled, 3, axis=1)
    keep = sigmoid(keep + keep_h)
    candidate = np.tanh(candidate + sigmoid(forget + forget_h) * candidate_h)
    h = keep * h + (1.0 - keep) * candidate
    y, body = h, params["head"]["body"]["params"]
    for i in range(2):
        y = y @ body[f"Dense_{i}"]["kernel"] + body[f"Dense_{i}"]["bias"]
        y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-6)
        y = np.maximum(y * body[f"LayerNorm_{i}"]["scale"] + body[f"LayerNorm_{i}"]["bias"], 0.0)
    head = params["head"]["head"]["params"]
    return y @ head["kernel"] + head["bias"], h


def moved(params):
    """The parameters of no newborn, of which some are 0."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [x + 0.5 * rng.normal(size=x.shape) for x in leaves])


def test_two_steps_by_hand(x64):
    params = moved(NETWORK.init(jax.random.key(0)))
    memory, x = NETWORK.initial(7), np.random.default_rng(1).normal(size=(2, 7, 5))
    expected_memory = np.zeros((7, 4))
    for at in x:
        outputs, memory = jax.jit(NETWORK.apply)(params, memory, at)
        expected, expected_memory = by_hand(jax.tree.map(np.asarray, params), expected_memory, at)
        np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(memory, expected_memory, rtol=1e-9, atol=1e-12)
    assert np.std(expected) > 0.1


def test_a_new_network_says_nothing_and_hears_everything():
    """Its outputs are 0, but the weights that would change them have a derivative."""
    network = optimizer_network(5, 3)
    params = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (7, 5))

    @jax.jit
    def outputs(params):
        return network.apply(params, network.initial(7), x)[0]

    def total(params):
        return jnp.sum(outputs(params) * jnp.arange(21.0).reshape(7, 3))

    assert not np.any(outputs(params))
    slope = jax.grad(total)(params)["head"]["head"]["params"]["kernel"]
    assert np.all(np.mean(np.abs(slope) > 1e-3, axis=0) > 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(memory_size=0), "memory_size=0 must be at least 1"),
        (dict(hidden_sizes=(0,)), "hidden_sizes=0 must be at least 1"),
    ],
)
def test_bad_sizes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        optimizer_network(5, 3, **settings)
