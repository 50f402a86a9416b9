"""ACCEL: a replayed task is followed by a changed one, which is tried and not learned from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import curricula, tasks
from jaxmeta.curricula import ACCELConfig, edits
from tests.curricula.shared import FAMILY, lived

HOW = dict(capacity=12, fill=0.5, score="absolute_advantage")


def marked(key, task):
    """The task with 100 added to the number that names it."""
    return task.replace(reward=task.reward.at[0, 0].add(100.0))


MARKING = dataclasses.replace(FAMILY, mutate=marked)


def test_a_changed_task_follows_each_replayed_one():
    curriculum = curricula.accel(MARKING, ACCELConfig(**HOW, replay=0.6, num_edits=3))
    state, _, draws, _ = lived(curriculum, 40)
    replayed, x = np.asarray(draws.info.replayed), np.asarray(draws.tasks.reward[..., 0, 0])
    assert replayed.any()
    np.testing.assert_array_equal(draws.learns, replayed)
    follows = np.zeros_like(replayed)
    follows[1:] = replayed[:-1]
    assert not np.any(follows & replayed)
    np.testing.assert_allclose(x[1:][follows[1:]], x[:-1][replayed[:-1]] + 300.0, rtol=1e-5)
    # A task of the buffer has been changed 0, 3, 6, ... times. All others are new.
    new = x[~follows & ~replayed]
    assert np.abs(new).max() < 50
    # Changed tasks score higher here, so that they fill the buffer.
    assert np.asarray(state.levels.score).min() > 250


@pytest.mark.parametrize("num", [0, 1, 3, 4, 7, 10])
def test_only_as_many_quarters_are_changed_as_are_needed(num):
    """Of 10 tasks, in groups of 3; the last group reaches back."""
    which = jnp.isin(jnp.arange(10), jax.random.permutation(jax.random.key(num), 10)[:num])
    calls = []

    def changed(key, task):
        jax.debug.callback(lambda x: calls.append(int(x)), task)
        return task + 100 + jax.random.randint(key, (), 0, 50)

    tasks = jnp.arange(10)
    after = edits.where(changed, jax.random.key(0), tasks, which)
    jax.effects_barrier()
    every = edits.where(changed, jax.random.key(0), tasks, jnp.ones(10, bool))
    jax.effects_barrier()
    np.testing.assert_array_equal(after[which], every[which])
    assert np.all(np.asarray(every) >= 100)
    assert len(np.unique(np.asarray(every) - np.arange(10))) > 5
    assert len(calls) == 3 * -(-num // 3) + 12


def test_new_tasks_come_from_the_start():
    def start(key):
        return FAMILY.train(key).replace(reward=jnp.full((2, 2), -7.0))

    curriculum = curricula.accel(MARKING, ACCELConfig(**HOW), start=start)
    _, _, draws, _ = lived(curriculum, 1)
    np.testing.assert_array_equal(draws.tasks.reward[0, :, 0, 0], -7.0)
    assert "start" in curriculum.description["start"]


def test_a_family_without_changes_is_refused():
    family = dataclasses.replace(FAMILY, mutate=None)
    with pytest.raises(ValueError, match="family='tabular' has no mutate"):
        curricula.accel(family)
    with pytest.raises(ValueError, match="num_edits=0 must be at least 1"):
        ACCELConfig(num_edits=0)


@pytest.mark.parametrize(
    "start",
    [
        lambda key: FAMILY.train(key).replace(reward=jnp.zeros(())),
        lambda key: FAMILY.train(key).replace(reward=jnp.zeros((2, 2), jnp.int32)),
        lambda key: {"reward": jnp.zeros((2, 2))},
    ],
)
def test_a_start_of_other_tasks_is_refused(start):
    """Tasks of another shape or type would be broadcast or cast, so the buffer would hold others than were tried."""
    with pytest.raises(tasks.InvalidEnvironment, match="start makes .* like those of train"):
        curricula.accel(MARKING, ACCELConfig(**HOW), start=start)
