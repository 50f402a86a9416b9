"""Scores against loops in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.curricula import scores
from jaxmeta.types import TaskResults

M, N, T = 3, 2, 5


@pytest.fixture(scope="module")
def results():
    """Numbers of tasks with streams of several lengths; the last task has no counted step."""
    rng = np.random.default_rng(0)
    counted = np.arange(T)[None, None] < np.array([[5, 3], [1, 4], [0, 0]])[..., None]
    reward, value, advantage = np.where(counted, rng.normal(size=(3, M, N, T)), 0.0)
    # Steps that are not counted hold whatever they hold.
    value, advantage = np.where(counted, [value, advantage], 1e3)
    told = dict(reward=reward, value=value, advantage=advantage, counted=counted)
    return TaskResults(**{name: jnp.asarray(x) for name, x in told.items()})


def by_loops(results, at_step):
    """The mean over counted steps of ``at_step(m, n, t)`` in each task."""
    means = []
    for m in range(M):
        terms = [at_step(m, n, t) for n in range(N) for t in range(T) if results.counted[m, n, t]]
        means.append(np.mean(terms) if terms else np.nan)
    return means


def test_max_monte_carlo_is_the_gap_to_the_best_return(results):
    best = jnp.array([2.0, -1.0, 0.0])

    def gap(m, n, t):
        earned = sum(results.reward[m, n, :t])
        return best[m] - earned - results.value[m, n, t]

    np.testing.assert_allclose(
        scores.max_monte_carlo(results, best), by_loops(results, gap), rtol=1e-5
    )


def test_with_one_reward_at_the_end_it_is_the_paper_s(results):
    """``mean_t (R_max - V(s_t))``."""
    last = jnp.arange(T) == T - 1
    reward = jnp.where(last[None, None], 1.0, jnp.zeros((M, N, T)))
    paid = results._replace(reward=reward, counted=jnp.ones((M, N, T), bool))
    value = results.value
    best = jnp.ones(M)
    np.testing.assert_allclose(
        scores.max_monte_carlo(paid, best), 1.0 - value.mean(axis=(1, 2)), rtol=1e-5
    )


def test_losses_of_the_value(results):
    best = jnp.zeros(M)
    positive = by_loops(results, lambda *at: max(results.advantage[at], 0.0))
    np.testing.assert_allclose(scores.positive_value_loss(results, best), positive, rtol=1e-5)
    size = by_loops(results, lambda *at: abs(results.advantage[at]))
    np.testing.assert_allclose(scores.absolute_advantage(results, best), size, rtol=1e-5)


def test_learnability_is_the_variance_of_success():
    nan = np.nan
    episodes = jnp.array([[[1.0, 0.0], [2.0, nan]], [[0.0, 0.0], [0.0, 0.0]], [[nan, nan]] * 2])
    p = [2 / 3, 0.0, nan]
    np.testing.assert_allclose(scores.solved_share(episodes), p, rtol=1e-6)
    found = scores.SCORES["learnability"].score(TaskResults(episodes=episodes), jnp.zeros(3))
    np.testing.assert_allclose(found, [2 / 9, 0.0, nan], rtol=1e-6)
    above = scores.solved_share(episodes, threshold=1.5)
    np.testing.assert_allclose(above, [1 / 3, 0.0, nan], rtol=1e-6)
