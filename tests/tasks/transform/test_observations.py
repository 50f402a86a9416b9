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


def test_hidden_entries_are_gone_in_every_task():
    inner = tasks.make("gridnavi")
    family = transform.hidden(inner, [0, 7])
    task = family.train(KEY)
    kept = [i for i in range(25) if i not in (0, 7)]
    for cell in (0, 7, 8):
        obs = jnp.eye(25)[cell]
        np.testing.assert_array_equal(family.env.see(obs, task), obs[np.array(kept)])
    assert family.observation_shape == (23,)
    assert family.name == "hidden_gridnavi"
    assert family.optimal_action is None
    assert family.optimal_return(task) == inner.optimal_return(task)
    tasks.check_promises(family)


def test_slices_may_be_hidden():
    family = transform.hidden(tasks.make("breakout", horizon=4), (1, 2), axis=2)
    assert family.observation_shape == (10, 10, 2)
    tasks.check_promises(family)


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        ((25,), {}, r"entries=\(25,\) must be below 25"),
        ((1, 1), {}, "must name 1 once"),
        ((), {}, "must hold at least one"),
        (range(25), {}, "would leave nothing"),
        ((0,), dict(axis=1), "axis=1 must be one of the 1"),
        (3, {}, "entries=3 must be a tuple"),
    ],
)
def test_entries_that_are_not_there(entries, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        transform.hidden(tasks.make("gridnavi"), entries, **options)
