"""The buffer of tasks against numpy and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.curricula import levels
from jaxmeta.curricula.levels import Priorities

INF = np.inf


def buffer(score, drawn_at=None, time=10):
    """A buffer whose tasks are their places."""
    score = jnp.asarray(score, float)
    drawn_at = jnp.zeros(len(score), jnp.int32) if drawn_at is None else jnp.asarray(drawn_at)
    place = jnp.arange(len(score), dtype=float)
    return levels.Levels(place, score, score, drawn_at, jnp.asarray(time, jnp.int32))


def ranked(score, temperature):
    """``rank^(-1/β)``, normalised, by sorting."""
    weight = np.zeros(len(score))
    best_first = sorted((-x, i) for i, x in enumerate(score) if x > -INF)
    for rank, (_, i) in enumerate(best_first, start=1):
        weight[i] = rank ** (-1 / temperature)
    return weight / weight.sum()


def test_ranks_and_staleness_are_mixed():
    score, drawn_at = [0.2, -INF, 1.5, 0.2, -0.3], [3, 0, 9, 10, 7]
    given = buffer(score, drawn_at)
    by_rank = ranked(score, 0.3)
    np.testing.assert_allclose(
        np.exp(levels.log_rank_weights(given.score, 0.3)), by_rank, rtol=1e-5
    )
    age = np.array([7, 0, 1, 0, 3])
    by_age = age / age.sum()
    np.testing.assert_allclose(np.exp(levels.log_staleness_weights(given)), by_age, rtol=1e-5)
    for staleness in (0.0, 0.3, 1.0):
        mixed = (1 - staleness) * by_rank + staleness * by_age
        found = np.exp(levels.log_probabilities(given, Priorities(0.3, staleness)))
        np.testing.assert_allclose(found, mixed, rtol=1e-5, atol=1e-12)


def test_tasks_drawn_just_now_are_equally_stale():
    given = buffer([1.0, -INF, 2.0], drawn_at=[10, 10, 10])
    np.testing.assert_allclose(np.exp(levels.log_staleness_weights(given)), [0.5, 0.0, 0.5])


def test_low_temperatures_do_not_underflow():
    """Rank 4000 at β = 0.05 has the weight 4000^-20."""
    log_weight = levels.log_rank_weights(jnp.arange(4000.0), 0.05)
    assert np.all(np.isfinite(log_weight))
    np.testing.assert_allclose(log_weight[0] - log_weight[-1], -20 * np.log(4000), rtol=1e-5)


def test_draws_are_without_replacement():
    """Against the probabilities of all ordered pairs."""
    given, how = buffer([3.0, 1.0, -INF, 2.0], drawn_at=[0, 5, 0, 9]), Priorities(0.7, 0.4)
    p = np.exp(levels.log_probabilities(given, how))
    keys = jax.random.split(jax.random.key(0), 40_000)
    places, valid = jax.jit(jax.vmap(lambda key: levels.draw(key, given, 2, how)))(keys)
    assert np.all(valid)
    for first, second in itertools.permutations([0, 1, 3], 2):
        exact = p[first] * p[second] / (1 - p[first])
        share = np.mean((places[:, 0] == first) & (places[:, 1] == second))
        assert abs(share - exact) < 4 * np.sqrt(exact / 40_000), (first, second)
    assert not np.any(places == 2)


def test_a_draw_beyond_what_there_is_is_not_valid():
    places, valid = levels.draw(jax.random.key(0), buffer([1.0, -INF, -INF]), 3, Priorities(1, 0.3))
    np.testing.assert_array_equal(valid, [True, False, False])
    assert places[0] == 0
    _, none = levels.draw(jax.random.key(0), buffer([-INF] * 3), 3, Priorities(1, 0.3))
    assert not np.any(none)


def by_hand(score, p, new, which):
    """``{place: new task}`` by a loop."""
    best_first = sorted((-x, i) for i, x in enumerate(new) if which[i] and np.isfinite(x))
    least_first = sorted((p[i], i) for i in range(len(score)))
    return {
        place: i
        for (_, place), (negative, i) in zip(least_first, best_first, strict=False)
        if -negative > score[place]
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num", [3, 9])
def test_new_tasks_replace_the_least_probable_ones(seed, num):
    rng = np.random.default_rng([seed, num])
    score = rng.normal(size=6)
    score[rng.random(6) < 0.3] = -INF
    given, how = buffer(score, rng.integers(0, 10, size=6)), Priorities(0.5, 0.3)
    new, which = rng.normal(size=num), rng.random(num) < 0.7
    new[0] = np.nan
    tasks = 100.0 + jnp.arange(num)
    after = levels.inserted(given, tasks, jnp.asarray(which), jnp.asarray(new), tasks, how)
    enters = by_hand(score, np.exp(levels.log_probabilities(given, how)), new, which)
    for place in range(6):
        i = enters.get(place)
        assert after.tasks[place] == (place if i is None else 100 + i)
        np.testing.assert_allclose(after.score[place], score[place] if i is None else new[i])
        assert after.best[place] == (given.best[place] if i is None else 100 + i)
        assert after.drawn_at[place] == (given.drawn_at[place] if i is None else 10)


def test_replayed_tasks_get_new_scores_and_keep_the_best_return():
    given = buffer([1.0, 2.0, 3.0, 4.0])
    places, which = jnp.array([2, 0, 1]), jnp.array([True, True, False])
    after = levels.rescored(
        given, places, which, jnp.array([0.5, jnp.nan, 9.0]), jnp.array([5.0, 0.5, 9.0])
    )
    np.testing.assert_allclose(after.score, [1.0, 2.0, 0.5, 4.0])
    np.testing.assert_allclose(after.best, [1.0, 2.0, 5.0, 4.0])
    np.testing.assert_array_equal(after.drawn_at, [10, 0, 10, 0])


def test_an_empty_buffer_holds_nothing():
    given = levels.empty(lambda key: {"x": jax.random.normal(key, (2,))}, 3)
    assert given.tasks["x"].shape == (3, 2)
    assert not np.any(levels.filled(given))
    report = levels.report(given)
    assert report["curriculum/levels"] == 0
    assert np.isnan(report["curriculum/score"])
