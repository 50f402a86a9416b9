"""Prioritized level replay: what is drawn, what is learned from, what the buffer holds."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxmeta import curricula
from jaxmeta.curricula import PLRConfig, levels
from tests.curricula.shared import FAMILY, lived, value_of

HOW = dict(capacity=12, fill=0.5, score="absolute_advantage")


def reward_of(draws):
    return np.asarray(draws.tasks.reward[..., 0, 0])


def test_nothing_is_replayed_until_the_buffer_is_filled():
    curriculum = curricula.plr(FAMILY, PLRConfig(**HOW, replay=1.0))
    _, before, draws, metrics = lived(curriculum, 6)
    replayed = np.asarray(draws.info.replayed)
    # Four new tasks a meta-update: 0, 4, 8 tasks in the buffer; 6 are needed.
    np.testing.assert_array_equal(metrics["curriculum/levels"][:2], [4, 8])
    assert not replayed[:2].any()
    assert replayed[2:].all()
    # What is replayed is what the buffer held at the place.
    for u in range(2, 6):
        held = np.asarray(before.tasks.reward[u, :, 0, 0])
        places = np.asarray(draws.info.places[u])
        np.testing.assert_array_equal(reward_of(draws)[u], held[places])
        assert len(set(places)) == 4


def test_tasks_are_replayed_with_their_probability():
    curriculum = curricula.plr(FAMILY, PLRConfig(**HOW, replay=0.7))
    _, _, draws, metrics = lived(curriculum, 400)
    share = np.asarray(draws.info.replayed)[2:].mean()
    assert abs(share - 0.7) < 4 * np.sqrt(0.21 / 1592)
    np.testing.assert_allclose(
        metrics["curriculum/replayed"], np.mean(draws.info.replayed, axis=1), rtol=1e-6
    )


def test_replay_may_grow_with_the_filled_share():
    config = PLRConfig(capacity=400, fill=0.0, anneals=True, score="absolute_advantage")
    curriculum = curricula.plr(FAMILY, dataclasses.replace(config, replay=0.8))
    _, before, draws, _ = lived(curriculum, 160, num_tasks=10)
    share = np.mean(np.asarray(before.score) > -np.inf, axis=1)
    replayed = np.asarray(draws.info.replayed)
    assert share[-1] == 1.0
    for some in (slice(5, 25), slice(25, 60), slice(110, 160)):
        expected, num = 0.8 * share[some].mean(), replayed[some].size
        assert abs(replayed[some].mean() - expected) < 4 * np.sqrt(0.25 / num)


@pytest.mark.parametrize("learns_from_new", [True, False])
def test_robust_replay_learns_from_replayed_tasks_alone(learns_from_new):
    curriculum = curricula.plr(FAMILY, PLRConfig(**HOW, learns_from_new=learns_from_new))
    _, _, draws, _ = lived(curriculum, 20)
    replayed = np.asarray(draws.info.replayed)
    assert replayed.any()
    assert not replayed.all()
    np.testing.assert_array_equal(draws.learns, replayed | learns_from_new)


def test_a_full_buffer_comes_to_hold_high_scores():
    """The score of a task is the size of a number drawn from N(1, 1)."""
    curriculum = curricula.plr(FAMILY, PLRConfig(**HOW, replay=0.5, staleness=0.0))
    state, _, draws, _ = lived(curriculum, 100)
    score = np.asarray(state.score)
    np.testing.assert_allclose(score, np.abs(value_of(state.tasks)), rtol=1e-6)
    new = np.abs(reward_of(draws)[~np.asarray(draws.info.replayed)])
    assert score.min() > np.quantile(new, 0.8)
    assert state.time == 100


def test_the_best_return_of_a_task_is_remembered():
    curriculum = curricula.plr(FAMILY, PLRConfig(capacity=4, replay=1.0, fill=1.0))
    state, before, _, _ = lived(curriculum, 5)
    np.testing.assert_allclose(state.best, before.best[1], rtol=1e-6)
    assert set(curriculum.needs) == {"best", "reward", "value", "counted"}


def test_a_batch_larger_than_the_buffer_has_new_tasks_too():
    curriculum = curricula.plr(FAMILY, PLRConfig(capacity=3, replay=1.0, fill=1.0))
    _, _, draws, _ = lived(curriculum, 4, num_tasks=5)
    np.testing.assert_array_equal(draws.info.replayed.sum(axis=1), [0, 3, 3, 3])


def test_states_keep_their_types():
    curriculum = curricula.plr(FAMILY, PLRConfig(**HOW))
    state = jax.eval_shape(lambda: curriculum.init(4))
    assert state.score.shape == (12,)
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype, state, lived(curriculum, 1)[0])
    assert all(jax.tree.leaves(same))
    assert curriculum.description["name"] == "plr"
    assert curriculum.description["capacity"] == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(capacity=0), "capacity=0 must be at least 1"),
        (dict(replay=1.5), "replay=1.5 must lie between 0 and 1"),
        (dict(temperature=0.0), "temperature=0.0 must lie between"),
        (dict(score="luck"), "score='luck' is unknown"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PLRConfig(**settings)


def test_settings_of_accel_are_refused():
    with pytest.raises(TypeError, match="config=ACCELConfig.* must be a PLRConfig"):
        curricula.plr(FAMILY, curricula.ACCELConfig(num_edits=7))


def test_priorities_are_the_config_s():
    assert PLRConfig(temperature=0.2, staleness=0.1).priorities == levels.Priorities(0.2, 0.1)
