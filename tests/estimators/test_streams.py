import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.estimators import streams
from jaxmeta.types import TimeStep, Trajectory


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
def test_broken_streams_are_found_and_replaced_by_a_good_one(dtype):
    """Memories may hold anything (masks of attention are infinite); integers are always finite."""
    reward = jnp.arange(12.0).reshape(4, 3)
    data = Trajectory(
        timestep=TimeStep(reward[..., None], reward, reward, reward == 0),
        action=reward.astype(dtype),
        log_prob=reward.at[2, 1].set(-jnp.inf),
        reward=reward.at[0, 2].set(jnp.nan),
        discount=reward,
        last=reward == 0,
        next_obs=reward[..., None],
        memory=jnp.full((4, 2), -jnp.inf),
    )
    clean, good = streams.without_broken_streams(data)
    assert good.tolist() == [False, True, False, True]
    np.testing.assert_array_equal(streams.finite_streams(data), good)
    for before, after in zip(*map(jax.tree.leaves, (data, clean)), strict=True):
        np.testing.assert_array_equal(after, before[jnp.array([1, 1, 1, 3])])
    assert streams.mean_over_streams(reward, good) == reward[jnp.array([1, 3])].mean()
    assert streams.mean_over_streams(reward[:, 0], good) == 6
    both = jnp.stack([good, ~good])
    assert streams.mean_over_streams(jnp.stack([reward, reward + 1]), both) == reward.mean() + 0.5
    hopeless = data._replace(reward=jnp.full((4, 3), jnp.nan))
    clean, good = streams.without_broken_streams(hopeless)
    assert not jnp.any(good)
    assert all(jnp.all(x == 0) for x in jax.tree.leaves(clean._replace(memory=())))
    assert jnp.isnan(streams.mean_over_streams(clean.reward, good))


def test_flags_are_numbers_of_the_type_that_is_worked_in(x64):
    like = jnp.zeros(2, jnp.float32)
    assert float(streams.unless(jnp.asarray(True), like)) == 0
    assert float(streams.unless(jnp.asarray(False), like)) == 1
    flags = jnp.array([[True, False, True], [True, True, True]])
    assert streams.count(flags, like).item() == 5
    assert streams.count(flags, like, axis=1).tolist() == [2, 3]
    assert streams.count(~flags, like, axis=1).tolist() == [1, 1]  # what a mean can be divided by
    for x in (streams.unless(flags, like), streams.count(flags, like)):
        assert x.dtype == jnp.float32
