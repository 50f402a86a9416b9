"""What a dataset's learners earn and see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import datasets, tasks
from jaxmeta.datasets.histories import Histories
from jaxmeta.types import TimeStep, Trajectory


def hand_made(rewards, lasts, cells, lengths):
    reward, last = jnp.asarray(rewards, float)[None], jnp.asarray(lasts, bool)[None]
    obs = jax.nn.one_hot(jnp.asarray(cells), 9)[None]
    first = jnp.concatenate([jnp.ones_like(last[..., :1]), last[..., :-1]], axis=-1)
    timestep = TimeStep(obs, jnp.zeros(reward.shape, jnp.int32), reward, first)
    data = Trajectory(timestep, timestep.action, reward, reward, reward, last, obs, ())
    family = tasks.make("dark_room", size=3, horizon=3)
    one = tasks.sample_tasks(jax.random.key(0), family, 1, split="train")
    return family, Histories(one, data, jnp.asarray(lengths, jnp.int32)[None])


def test_figures_by_hand():
    family, histories = hand_made(
        rewards=[[0, 1, 1, 0, 2, 9], [1, 1, 0, 3, 5, 5]],
        lasts=[[0, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]],
        cells=[[4, 4, 5, 4, 4, 4], [4, 1, 0, 3, 4, 4]],
        lengths=[6, 4],
    )
    got = datasets.quality(jax.random.key(0), histories, family=family)
    # Returns 2, 2, (9 of an episode that does not end) and 2, 3; steps beyond the length do not count.
    np.testing.assert_allclose(got.returns, [2.0, 2.5])
    # Of the cells {0, 1, 3, 4, 5}, one history saw 2 and the other 4.
    assert got.coverage == pytest.approx((2 / 5 + 4 / 5) / 2)
    assert got.reference == float(
        family.optimal_return(jax.tree.map(lambda x: x[0], histories.tasks))
    )
    np.testing.assert_allclose(
        got.normalized, (got.returns - got.random) / (got.reference - got.random)
    )
    assert "| first tenth of the episodes | 2.000 |" in got.table()


def test_an_expert_earns_1_at_last():
    family = tasks.make("dark_room", size=3, horizon=6)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 6, split="train")
    mixed = datasets.mixtures(
        jax.random.key(1), drawn, family=family, num_streams=20, num_episodes=20
    )
    got = datasets.quality(jax.random.key(2), mixed, family=family)
    assert got.normalized[-1] == pytest.approx(1)
    assert abs(got.normalized[0]) < 0.25


def test_without_an_episode_there_is_no_figure():
    family, histories = hand_made([[0, 0]], [[0, 0]], [[4, 4]], [2])
    with pytest.raises(ValueError, match="holds no episode that ends"):
        datasets.quality(jax.random.key(0), histories, family=family)


def test_a_broken_history_is_left_out_and_counted():
    made = dict(
        rewards=[[0, 1, 1, 0, 2, np.nan], [1, np.inf, 0, 3, 5, 5], [1, 1, 0, 3, 5, 5]],
        lasts=[[0, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1], [0, 1, 0, 1, 0, 1]],
        cells=[[4, 4, 5, 4, 4, 4], [8, 8, 8, 8, 8, 8], [4, 1, 0, 3, 4, 4]],
    )
    family, histories = hand_made(**made, lengths=[5, 4, 4])
    got = datasets.quality(jax.random.key(0), histories, family=family)
    # A NaN beyond a history's length is no part of it.
    assert got.skipped == 1
    np.testing.assert_allclose(got.returns, [2.0, 2.5])
    assert got.coverage == pytest.approx((2 / 5 + 4 / 5) / 2)
    family, histories = hand_made(**made, lengths=[6, 4, 0])
    with pytest.raises(ValueError, match="holds no episode that ends"):
        datasets.quality(jax.random.key(0), histories, family=family)
