import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import networks


def by_hand(params, x):
    """One hidden layer of tanh, then the head."""
    params = jax.tree.map(np.asarray, params)
    hidden, head = params["body"]["params"]["Dense_0"], params["head"]["params"]
    return np.tanh(x @ hidden["kernel"] + hidden["bias"]) @ head["kernel"] + head["bias"]


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_observations_of_any_shape(shape):
    value = networks.value_mlp(shape, (8,))
    params = value.init(jax.random.key(0))
    assert value.apply(params, jnp.zeros(shape)).shape == ()
    assert value.apply(params, jnp.zeros((6, 5, *shape))).shape == (6, 5)


@pytest.mark.parametrize("num_outputs", [None, 2])
def test_a_value_is_its_network_of_the_flat_observation(num_outputs):
    value = networks.value_mlp((2, 3), (8,), num_outputs)
    params = value.init(jax.random.key(0))
    obs = jax.random.normal(jax.random.key(1), (5, 2, 3))
    expected = by_hand(params, np.asarray(obs).reshape(5, 6))
    found = value.apply(params, obs)
    np.testing.assert_allclose(
        found, expected[:, 0] if num_outputs is None else expected, rtol=1e-5, atol=1e-6
    )
    assert jnp.std(found) > 0.1  # a newborn's values differ


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"obs_shape=\(2, 0\) must hold at least one number"):
        networks.value_mlp((2, 0))
    with pytest.raises(ValueError, match="num_outputs=0 must be at least 1"):
        networks.value_mlp((3,), (8,), 0)
    value = networks.value_mlp((3,), (8,))
    params = value.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"obs has shape \(3, 2\); its last axes must be \(3,\)"):
        value.apply(params, jnp.zeros((3, 2)))
