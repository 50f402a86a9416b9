import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.networks.actor_critic import Inputs, joined


def test_all_that_is_shown_stands_in_one_row():
    """But for the reset, which no layer reads: it empties the memory."""
    inputs = Inputs(
        obs=jnp.array([1.0, 2.0]),
        past=jnp.array([0.0, 1.0, 0.5]),
        time=jnp.array([1.0, 0.25]),
        reset=jnp.array(True),
    )
    np.testing.assert_array_equal(joined(inputs), [1, 2, 0, 1, 0.5, 1, 0.25])
    stream = jax.tree.map(lambda x: jnp.stack([x, x]), inputs)
    stream = stream._replace(obs=2.0 * stream.obs)
    np.testing.assert_array_equal(joined(stream), [[2, 4, 0, 1, 0.5, 1, 0.25]] * 2)
