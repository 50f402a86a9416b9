import json

import numpy as np
import pytest
import scipy.stats

from jaxmeta import evaluation


def test_normalized():
    random, reference = np.array([-50.0, -30.0]), np.array([0.0, 20.0])
    returns = np.array([[-40.0, 10.0, 60.0], [-15.0, -90.0, 0.0]])
    expected = [[0, 1, 2], [0.5, -1, 0.8]]
    np.testing.assert_allclose(evaluation.normalized(returns, random, reference), expected)
    with pytest.raises(ValueError, match="mean reference return -40.0 must exceed the random"):
        evaluation.normalized(returns, random, random)


def test_gap_closed():
    returns = np.array([[-10.0, -4.0, -1.0], [-20.0, -6.0, 1.0]])
    closed = evaluation.gap_closed(returns, np.array([0.0, 0.0]))
    np.testing.assert_allclose(closed, [0, 10 / 15, 1.0])


def test_interquartile_mean_ignores_the_outer_quarters():
    x = np.array([1e9, 1.0, 2.0, 3.0, 4.0, -1e9, 2.0, 3.0])
    assert evaluation.interquartile_mean(x) == 2.5
    assert evaluation.interquartile_mean(x.reshape(2, 4), axis=None) == 2.5


@pytest.mark.slow
def test_interquartile_interval_covers():
    """Agents and tasks that differ: about 95 % of the intervals contain the truth, which is 0. Those
    that resample seeds task by task contain it in less than two thirds: they forget that all entries
    of a row are one agent's."""
    rng = np.random.default_rng(0)
    hits = too_narrow = 0
    for i in range(80):
        seeds, tasks = rng.normal(size=(10, 1)), rng.normal(size=(1, 20))
        x = seeds + tasks + 0.5 * rng.normal(size=(10, 20))
        low, high = evaluation.interquartile_interval(x, num_resamples=100, seed=i)
        hits += low < 0 < high
        rows = rng.integers(10, size=(100, 10, 20))
        means = [evaluation.interquartile_mean(np.take_along_axis(x, r, 0), None) for r in rows]
        low, high = np.quantile(means, [0.025, 0.975])
        too_narrow += low < 0 < high
    assert 0.88 <= hits / 80 <= 0.99
    assert too_narrow / 80 < 0.66


def test_interquartile_interval_is_reproducible_and_survives_bad_data():
    x = np.random.default_rng(0).normal(size=(3, 8))
    low, high = evaluation.interquartile_interval(x)
    assert (low, high) == evaluation.interquartile_interval(x)
    assert low < evaluation.interquartile_mean(x, axis=None) < high
    assert np.isnan(evaluation.interquartile_interval(np.where(x > 1, np.nan, x))).all()
    assert np.isnan(evaluation.interquartile_interval(x[:1, :1])).all()
    one_seed = evaluation.interquartile_interval(x[:1])
    assert x[0].min() < one_seed[0] < one_seed[1] < x[0].max()
    with pytest.raises(ValueError, match=r"x has shape \(8,\); it must be \[seeds, tasks\]"):
        evaluation.interquartile_interval(x[0])


def test_bootstrap_interval_covers():
    """95 % intervals of a mean of 50 normals: over 300 samples, close to 95 % contain the truth, and
    they agree with the textbook's."""
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        x = rng.normal(size=50)
        low, high = evaluation.bootstrap_interval(x, seed=i)
        hits += low < 0 < high
    assert 0.90 < hits / 300 < 0.98
    student = scipy.stats.t.interval(0.95, 49, x.mean(), x.std(ddof=1) / 50**0.5)
    np.testing.assert_allclose((low, high), student, atol=0.03)


def test_bootstrap_interval_is_reproducible_and_survives_bad_data():
    x = np.arange(10.0)
    assert evaluation.bootstrap_interval(x) == evaluation.bootstrap_interval(x)
    assert evaluation.bootstrap_interval(np.ones(5)) == (1.0, 1.0)
    assert np.isnan(evaluation.bootstrap_interval(np.array([1.0, np.nan]))).all()
    assert np.isnan(evaluation.bootstrap_interval(np.array([1.0]))).all()


def test_summary():
    returns = np.array([[-10.0, -4.0], [-20.0, -6.0], [-12.0, -5.0]])
    summary = evaluation.summarize(returns, np.full(3, -50.0), np.zeros(3))
    assert summary["num_tasks"] == 3
    np.testing.assert_allclose(summary["returns"], [-14, -5])
    np.testing.assert_allclose(summary["gap_closed"], [0, 9 / 14])
    assert summary["random"] == -50
    for mean, (low, high) in zip(summary["returns"], summary["intervals"], strict=True):
        assert low <= mean <= high
    unknown = evaluation.summarize(returns, np.full(3, -50.0), None)
    assert unknown["optimal"] is unknown["gap_closed"] is None


def test_what_diverged_is_null_in_json():
    returns = np.array([[-10.0, np.nan], [-20.0, -6.0]])
    summary = evaluation.summarize(returns[:1], np.full(1, -50.0), np.zeros(1))
    assert (summary["num_tasks"], summary["skipped_tasks"]) == (0, 1)
    assert summary["returns"] == summary["interquartile_means"] == [None, None]
    assert summary["intervals"] == [[None, None]] * 2
    assert summary["random"] is summary["optimal"] is summary["gap_closed"] is None
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_mean_interval_covers_new_seeds_and_new_tasks():
    """In 95 % of studies, about, with effects of seeds and of tasks; of tasks alone where seeds agree."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        x = rng.normal(size=(12, 1)) + rng.normal(size=(1, 40)) + rng.normal(size=(12, 40))
        low, high = evaluation.mean_interval(x, num_resamples=200)
        assert low < x.mean() < high
        covered += low < 0 < high
    assert 85 <= covered <= 100
    x = np.repeat(rng.normal(size=(1, 400)), 3, axis=0)
    low, high = evaluation.mean_interval(x)
    assert high - low == pytest.approx(2 * 1.96 * x[0].std() / 20, rel=0.1)
    assert np.isnan(evaluation.mean_interval(np.array([[1.0, np.nan]]))).all()
    with pytest.raises(ValueError, match="must be .seeds, tasks."):
        evaluation.mean_interval(np.ones(3))


def test_tasks_without_a_return_are_left_out_of_every_number_and_counted():
    rng = np.random.default_rng(0)
    returns, random, optimal = rng.normal(size=(6, 2)), np.full(6, -5.0), np.full(6, 5.0)
    whole = evaluation.summarize(returns[3:], random[3:], optimal[3:])
    returns[0, 1] = random[1] = optimal[2] = np.nan
    summary = evaluation.summarize(returns, random, optimal)
    assert summary == whole | {"skipped_tasks": 3}
    assert whole["skipped_tasks"] == 0
    np.testing.assert_allclose(evaluation.normalized(np.array([0.0]), random, optimal), [0.5])
    with pytest.raises(ValueError, match="no task in which both are finite"):
        evaluation.normalized(returns, np.full(6, np.nan), optimal)
