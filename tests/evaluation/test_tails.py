"""Tails by loops over sorted tasks."""

import json

import numpy as np
import pytest

from jaxmeta import evaluation


def test_cvar_is_the_mean_of_the_worst_tasks():
    x = np.array([5.0, 1.0, 3.0, np.nan, 2.0, 4.0])
    assert evaluation.cvar(x, 0.4) == pytest.approx(1.5)  # two of five
    assert evaluation.cvar(x, 1.0) == pytest.approx(3.0)
    # Half of a task: 1 whole and half of 2.
    assert evaluation.cvar(x, 0.3) == pytest.approx((1.0 + 0.5 * 2.0) / 1.5)
    assert evaluation.cvar(x, 0.01) == pytest.approx(1.0)
    assert np.isnan(evaluation.cvar(np.array([np.nan]), 0.1))
    with pytest.raises(ValueError, match="share=0 must lie between"):
        evaluation.cvar(x, 0)


def test_the_worst_tasks_may_be_found_by_another_measurement():
    x, other = np.array([5.0, 1.0, 3.0]), np.array([0.0, 2.0, 1.0])
    assert evaluation.cvar(x, 2 / 3, ranked_by=other) == pytest.approx(4.0)
    rng = np.random.default_rng(0)
    noisy = rng.normal(size=(2, 10_000))  # all tasks are alike
    assert evaluation.cvar(noisy[0], 0.1) < -1.5
    assert abs(evaluation.cvar(noisy[0], 0.1, ranked_by=noisy[1])) < 0.1


def test_shares_of_solved_episodes():
    episodes = np.array([[1.0, 0.0, np.nan], [2.0, 3.0, 0.5], [np.nan] * 3])
    np.testing.assert_allclose(evaluation.solve_rate(episodes), [0.5, 1.0, np.nan])
    np.testing.assert_allclose(evaluation.solve_rate(episodes, threshold=1.0), [0, 2 / 3, np.nan])


def test_a_summary_is_ready_for_json():
    x = np.append(np.arange(100.0), np.inf)
    found = evaluation.tail_summary(x)
    assert found == pytest.approx(
        {
            "mean": 49.5,
            "percentile_20": 19.8,
            "cvar_1": 0.0,
            "cvar_5": 2.0,
            "cvar_10": 4.5,
            "num_tasks": 100,
            "skipped_tasks": 1,
        }
    )
    json.dumps(found, allow_nan=False)
    assert evaluation.tail_summary(np.array([np.nan]))["cvar_1"] is None


def test_return_by_episode():
    episodes = np.array([[1.0, 4.0], [3.0, np.nan], [5.0, 6.0]])
    means, intervals = evaluation.by_episode(episodes)
    assert means == [3.0, 5.0]
    for mean, (low, high) in zip(means, intervals, strict=True):
        assert low < mean < high


def test_probability_of_improvement_by_counting():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, (3, 5)) * 1.0, rng.integers(0, 4, (2, 5)) * 1.0
    wins = [
        (x[i, m] > y[j, m]) + 0.5 * (x[i, m] == y[j, m])
        for i in range(3)
        for j in range(2)
        for m in range(5)
    ]
    assert evaluation.probability_of_improvement(x, y) == pytest.approx(np.mean(wins))
    assert evaluation.probability_of_improvement(x, x) == pytest.approx(0.5)
    assert evaluation.probability_of_improvement(y + 10, x) == 1.0
    low, high = evaluation.improvement_interval(x, y)
    assert low < np.mean(wins) < high
    assert evaluation.improvement_interval(y + 10, x) == (1.0, 1.0)


def test_a_return_that_is_not_known_beats_nothing_and_loses_to_nothing():
    known, unknown = np.ones((2, 3)), np.array([[1.0, np.nan, 1.0]])
    for x, y in ((known, unknown), (unknown, known), (np.ones((0, 3)), known)):
        assert np.isnan(evaluation.probability_of_improvement(x, y))
        assert np.all(np.isnan(evaluation.improvement_interval(x, y)))
    assert evaluation.probability_of_improvement(known, np.full((1, 3), -np.inf)) == 1.0
