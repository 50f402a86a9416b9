import jax.numpy as jnp
import numpy as np

from jaxmeta.estimators import episodes


def test_cumulative_discount_restarts_with_the_episode():
    first = jnp.array([0, 0, 1, 0, 0], bool)
    discount = jnp.array([0.5, 0.0, 0.5, 0.25, 1.0])
    # The stream's first step counts as a start, also in the middle of an episode.
    g = episodes.cumulative_discount(discount, first)
    np.testing.assert_allclose(g, [1, 0.5, 1, 0.5, 0.125])


def test_episode_step():
    first = jnp.array([0, 0, 1, 0, 0, 1], bool)
    assert episodes.episode_step(first).tolist() == [0, 1, 0, 1, 2, 0]


def test_first_episode_return():
    reward = jnp.array([1.0, 2.0, 4.0, 8.0])
    assert episodes.first_episode_return(reward, jnp.array([0, 1, 0, 1], bool)) == 3
    assert episodes.first_episode_return(reward, jnp.zeros(4, bool)) == 15
    assert episodes.first_episode_return(reward, jnp.array([1, 1, 0, 0], bool)) == 1


def test_only_the_first_episode_is_counted():
    last = jnp.array([0, 0, 1, 0, 1, 0], bool)
    np.testing.assert_array_equal(episodes.in_first_episode(last), [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(episodes.in_first_episode(jnp.zeros(3, bool)), [1, 1, 1])


def test_episodes_are_numbered():
    last = jnp.array([0, 0, 1, 0, 1, 0], bool)
    assert episodes.episode_index(last).tolist() == [0, 0, 0, 1, 1, 2]


def test_sums_so_far_restart_behind_the_end_of_an_episode():
    x = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0])
    last = jnp.array([False, True, False, False, True])
    got = episodes.sum_so_far(x, last, jnp.array(100.0))
    assert got.tolist() == [101.0, 103.0, 4.0, 12.0, 28.0]
