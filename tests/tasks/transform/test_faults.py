import jax
import jax.numpy as jnp
import pytest

from jaxmeta import tasks
from jaxmeta.tasks import transform
from tests.tasks.transform.shared import episodes


def test_the_share_of_steps_that_report_what_is_not_finite():
    """Each step reports one such number or none; everything else is what it is without faults."""
    family = tasks.make("navigation", horizon=50)
    task = family.train(jax.random.key(0))
    actions = jnp.zeros((4000, 2))

    def run(rate):
        env = transform.faulty(family, rate=rate).env
        obs, reward, _ = jax.jit(lambda: episodes(jax.random.key(1), task, env, actions))()
        return obs, reward

    obs, reward = run(0.05)
    bad_reward, bad_obs = jnp.isnan(reward), jnp.isinf(obs)
    assert not jnp.any(bad_obs[:, 1])
    assert not jnp.any(bad_reward & bad_obs[:, 0])
    for share in (bad_reward.mean(), bad_obs[:, 0].mean()):
        assert 0.015 < share < 0.035
    sound, paid = run(0.0)
    assert jnp.all(jnp.isfinite(sound))
    assert jnp.array_equal(sound[~bad_obs[:, 0]], obs[~bad_obs[:, 0]])
    assert jnp.array_equal(paid[~bad_reward], reward[~bad_reward])
    with pytest.raises(ValueError, match="rate=1.5 must lie between 0 and 1"):
        transform.faulty(family, rate=1.5)
