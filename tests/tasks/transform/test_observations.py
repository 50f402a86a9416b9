"""What is seen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import tasks
from jaxmeta.tasks import transform
from jaxmeta.tasks.transform.wrappers import replaced
from tests.tasks.transform.shared import (
    KEY,
)


def test_permuted_observations_by_element_and_by_axis():
    inner = tasks.make("catch")
    task = inner.test(KEY)
    obs, _ = inner.env.reset_env(KEY, task)
    for axis, size in ((None, 50), (0, 10), (1, 5)):
        family = transform.permuted_observations(inner, axis=axis)
        drawn = family.train(jax.random.key(1))
        order = np.asarray(drawn.drawn)
        assert sorted(order.tolist()) == list(range(size))
        seen, _ = family.env.reset_env(KEY, drawn)
        expected = np.take(np.asarray(obs), order, axis=axis).reshape(obs.shape)
        np.testing.assert_array_equal(seen, expected)
        assert family.optimal_action(drawn, seen) == inner.optimal_action(task, obs)


def test_a_state_s_number_is_permuted():
    inner = transform.from_gymnax("FrozenLake-misc", horizon=9)
    inner = dataclasses.replace(inner, expert_action=lambda task, obs: obs.astype(jnp.int32) % 4)
    family = transform.permuted_observations(inner)
    task = family.train(KEY)
    assert family.env.observation_space().n == 16
    _, state = family.env.reset_env(KEY, task)
    for position in range(16):
        seen = family.env.observe(
            KEY, replaced(state, {"position": jnp.array(position)}), None, task
        )
        assert seen == task.drawn[position]
        assert family.expert_action(task, seen.astype(float)) == position % 4


def test_masks_hide_as_many_as_they_say_and_differ_between_splits():
    family = transform.masked_observations(tasks.make("catch"), num_hidden=3)
    sums = {}
    for split in tasks.SPLITS:
        mask = np.asarray(tasks.sample_tasks(jax.random.key(0), family, 200, split=split).drawn)
        assert mask.shape == (200, 10, 5)
        hidden = ~mask.reshape(200, 50)
        assert np.all(hidden.sum(1) == (6 if split == "out_of_distribution" else 3))
        sums[split] = (hidden @ np.arange(50)) % 2
        assert np.all(hidden.any(0))
    assert np.all(sums["train"] == 0)
    assert np.all(sums["test"] == 1)
    task = family.train(KEY)
    task = task.replace(drawn=jnp.ones((10, 5), bool).at[9, 2].set(False))
    obs, _ = family.env.reset_env(KEY, task)
    assert obs.sum() == 1.0  # the ball; the paddle is hidden


@pytest.mark.parametrize("size", [20, 50, 60])
def test_projections_are_orthonormal_and_controllers_see_through_them(size):
    inner = tasks.make("catch")
    family = transform.projected_observations(inner, size=size)
    for split in tasks.SPLITS:
        task = getattr(family, split)(KEY)
        matrix = np.asarray(task.drawn)
        assert matrix.shape == (size, 50)
        gram = matrix @ matrix.T if size < 50 else matrix.T @ matrix
        np.testing.assert_allclose(gram, np.eye(min(size, 50)), atol=1e-5)
        assert (matrix[0, 0] < 0) == (split == "out_of_distribution")
        obs, _ = inner.env.reset_env(KEY, task.inner)
        seen, _ = family.env.reset_env(KEY, task)
        np.testing.assert_allclose(seen, matrix @ np.ravel(obs), atol=1e-5)
        if size >= 50:
            assert family.optimal_action(task, seen) == inner.optimal_action(task.inner, obs)
    assert (family.optimal_action is None) == (size < 50)
