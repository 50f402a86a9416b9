import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.networks.mlp import hidden_activations, mlp, obs_size


@pytest.mark.parametrize("hidden_sizes", [(), (8,), (8, 6)])
def test_a_network_is_layers_of_tanh_and_a_linear_head(hidden_sizes):
    network = mlp(3, hidden_sizes, 2, 1.0)
    params = network.init(jax.random.key(0))
    layers = params["body"].get("params", {})
    assert len(layers) == len(hidden_sizes)
    # Not the biases of a newborn, which are 0 and would not show.
    params = jax.tree.map(lambda x: x + 0.1, params)
    x = jax.random.normal(jax.random.key(1), (5, 4, 3))
    y, by_hand = np.asarray(x), jax.tree.map(np.asarray, params)
    for i in range(len(hidden_sizes)):
        layer = by_hand["body"]["params"][f"Dense_{i}"]
        y = np.tanh(y @ layer["kernel"] + layer["bias"])
    head = by_hand["head"]["params"]
    np.testing.assert_allclose(
        network.apply(params, x), y @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6
    )


def test_hidden_activations_are_what_the_head_reads():
    network = mlp(3, (8, 6), 2, 1.0)
    params = jax.tree.map(lambda x: x + 0.1, network.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (5, 3))
    found = hidden_activations(params, x)
    assert {name: y.shape for name, y in found.items()} == {"Dense_0": (5, 8), "Dense_1": (5, 6)}
    head = params["head"]["params"]
    said = found["Dense_1"] @ head["kernel"] + jnp.broadcast_to(head["bias"], (5, 2))
    np.testing.assert_allclose(network.apply(params, x), said, rtol=1e-5, atol=1e-6)
    assert hidden_activations(mlp(3, (), 2, 1.0).init(jax.random.key(0)), x) == {}


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_weights_are_drawn_by_glorot_and_the_head_s_by_its_scale(scale):
    """The variance is 2 / (inputs + outputs), times the scale's square in the head; biases are 0."""
    params = mlp(100, (200,), 300, scale).init(jax.random.key(0))
    hidden, head = params["body"]["params"]["Dense_0"], params["head"]["params"]
    np.testing.assert_allclose(hidden["kernel"].std(), (2 / 300) ** 0.5, rtol=0.03)
    np.testing.assert_allclose(head["kernel"].std(), scale * (2 / 500) ** 0.5, rtol=0.03)
    assert not jnp.any(hidden["bias"])
    assert not jnp.any(head["bias"])


def test_parameters_have_the_precision_of_the_session(x64):
    for x in jax.tree.leaves(mlp(2, (3,), 1, 1.0).init(jax.random.key(0))):
        assert x.dtype == jnp.float64


def test_sizes():
    assert [obs_size(shape) for shape in ((), (4,), (2, 3))] == [1, 4, 6]
    with pytest.raises(ValueError, match=r"obs_shape=\(2, 0\) must hold at least one number"):
        obs_size((2, 0))
    with pytest.raises(ValueError, match="hidden_sizes=0 must be at least 1"):
        mlp(3, (8, 0), 2, 1.0)
