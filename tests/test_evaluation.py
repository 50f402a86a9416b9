import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxmeta import evaluation, tasks
from jaxmeta.algorithms.maml import Config, maml
from jaxmeta.tasks import transform
from tests.probes import Counter, CounterParams, constant_learner


def test_returns_are_first_episode_s_in_task_order():
    """Rewards of 1 + number, 4 steps an episode, rollouts of 10 steps."""
    drawn = jax.vmap(lambda n: CounterParams(number=n))(jnp.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    returns = evaluation.adaptation_returns(
        jax.random.key(0),
        None,
        drawn,
        learner=constant_learner(),
        env=Counter(),
        num_streams=3,
        num_updates=2,
        num_steps=10,
        tasks_per_chunk=2,
    )
    np.testing.assert_allclose(returns, np.tile(4 * np.arange(1, 6)[:, None], (1, 3)))


def test_the_first_column_is_the_newborn_s():
    """Without restarts of parameters leaking: evaluating twice gives the same first column."""
    family = tasks.make("navigation", horizon=5)
    algorithm = maml(family, Config(num_streams=4, hidden_sizes=(4,)))
    meta = algorithm.init(jax.random.key(0)).meta
    drawn = tasks.sample_tasks(jax.random.key(1), family, 3, split="test")

    def returns(num_updates):
        return evaluation.adaptation_returns(
            jax.random.key(2),
            meta._replace(hyper=meta.hyper._replace(step_size=jnp.array(5.0))),
            drawn,
            learner=algorithm.learner,
            env=family.env,
            num_streams=4,
            num_updates=num_updates,
            num_steps=5,
        )

    one, two = returns(1), returns(2)
    assert one.shape == (3, 2)
    np.testing.assert_allclose(one[:, 0], two[:, 0], rtol=1e-5)
    assert not np.allclose(two[:, 0], two[:, 1])


@pytest.mark.parametrize("reward", ["squared_distance", "distance"])
def test_optimal_return_of_navigation_in_closed_form(reward):
    """Each axis is walked at 0.1 a step; what is left after k steps is max(|goal| - 0.1 k, 0)."""
    family = tasks.make("navigation", reward=reward, horizon=20)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 50, split="out_of_distribution")
    left = np.maximum(np.abs(drawn.goal)[:, None] - 0.1 * np.arange(1, 21)[None, :, None], 0)
    squared = (left**2).sum(-1)
    expected = -(squared if reward == "squared_distance" else np.sqrt(squared)).sum(1)
    optimal = evaluation.optimal_returns(jax.random.key(1), drawn, family=family)
    np.testing.assert_allclose(optimal, expected, rtol=1e-4, atol=1e-5)


def test_no_one_beats_the_optimum():
    family = tasks.make("sparse_navigation", horizon=20)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 20, split="test")
    optimal = evaluation.optimal_returns(jax.random.key(1), drawn, family=family)
    random = evaluation.random_returns(jax.random.key(1), drawn, family=family)
    assert np.all(optimal >= random)
    assert optimal.mean() > 10


def test_random_return_is_that_of_a_random_walk():
    """E|position - goal|² after t clipped uniform steps is |goal|² + 2 t var, var = 0.1² / 3."""
    family = tasks.make("navigation", horizon=10)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 200, split="test")
    random = evaluation.random_returns(jax.random.key(1), drawn, family=family, num_streams=50)
    goal = (np.asarray(drawn.goal) ** 2).sum(1)
    expected = -(10 * goal + 2 * 0.01 / 3 * np.arange(1, 11).sum())
    np.testing.assert_allclose(random.mean(), expected.mean(), rtol=0.02)


def test_families_without_an_optimum_say_so():
    with pytest.raises(ValueError, match="'cartpole' has no optimal_action"):
        evaluation.optimal_returns(jax.random.key(0), None, family=tasks.make("cartpole"))


def test_families_without_an_expert_say_so():
    with pytest.raises(ValueError, match="'navigation' has no expert_action"):
        evaluation.expert_returns(jax.random.key(0), None, family=tasks.make("navigation"))


def test_optimal_return_is_the_family_s_own_where_it_has_one():
    family = tasks.make("tabular", num_states=3, horizon=4)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 3, split="test")
    optimal = evaluation.optimal_returns(jax.random.key(1), drawn, family=family)
    each = [family.optimal_return(jax.tree.map(lambda x, m=m: x[m], drawn)) for m in range(3)]
    np.testing.assert_allclose(optimal, each, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("navigation", "optimal"), ("tabular", "optimal"), ("mountain_car", "expert")],
)
def test_the_reference_is_the_optimum_or_else_the_expert(name, kind):
    family = tasks.make(name, horizon=3)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 2, split="test")
    expected = getattr(evaluation, f"{kind}_returns")(jax.random.key(1), drawn, family=family)
    reference = evaluation.reference_returns(jax.random.key(1), drawn, family=family)
    np.testing.assert_array_equal(reference, expected)


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


def test_trials_are_one_stream_from_birth_to_end():
    """Nothing begins anew in it but episodes: memory counts all steps, and the learner its updates."""
    learner = constant_learner()
    drawn = jax.vmap(lambda n: CounterParams(number=n, terminate_at=3))(jnp.array([7.0, 1.0]))
    memory_as_action = learner._replace(
        act=lambda key, meta, agent, memory, timestep: (
            memory + 100 * agent.astype(jnp.int32),
            jnp.zeros(()),
            memory + 1,
        )
    )
    found = evaluation.trials(
        jax.random.key(0),
        None,
        drawn,
        learner=memory_as_action,
        env=Counter(),
        num_steps=4,
        num_updates=1,
        tasks_per_chunk=1,
    )
    expected = [0, 1, 2, 3, 104, 105, 106, 107]
    assert found.action.tolist() == [expected, expected]
    assert found.reward.tolist() == [[x + n for x in expected] for n in (7, 1)]


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


def test_broken_streams_are_left_out_and_counted():
    """Rewards are NaN in some streams: their means are those of the others."""
    family = transform.faulty(tasks.make("navigation", horizon=10), rate=5e-3)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 8, split="test")
    how = dict(num_streams=20, num_updates=0, num_steps=10, env=family.env)
    right = evaluation.controller_learner(lambda key, task, obs: jnp.full(2, 0.05))
    curve = jax.jit(
        jax.vmap(
            lambda key, task: evaluation.adaptation_curve(
                key, task, jax.tree.map(lambda x: x[None], task), learner=right, **how
            )
        )
    )(jax.random.split(jax.random.key(1), 8), drawn)
    assert 8 <= curve.skipped_streams.sum() <= 40  # 5 % of 160 streams, NaN or infinite
    sound = dataclasses.replace(family, env=family.env.env)
    expected = evaluation._controller_returns(
        jax.random.key(1), drawn, lambda key, task, obs: jnp.full(2, 0.05), sound, 1
    )
    np.testing.assert_allclose(curve.returns[:, 0, 0], expected, rtol=1e-5)
    broken = transform.faulty(tasks.make("navigation", horizon=10), rate=1.0)
    assert np.isnan(evaluation.random_returns(jax.random.key(1), drawn, family=broken)).all()


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


def test_an_episode_that_is_cut_or_never_began_has_no_return():
    reward, last = jnp.ones((2, 5)), jnp.array([[0, 1, 0, 1, 0]] * 2, bool)
    trials = evaluation.Trials(reward, reward, last, jnp.array([True, False]))
    found = np.asarray(evaluation.episode_returns(trials, 4))
    np.testing.assert_array_equal(found[0], [2.0, 2.0, np.nan, np.nan])
    assert np.isnan(found[1]).all()  # a number of that trial is not finite


def test_what_is_measured_covers_an_episode_of_tasks_with_a_leading_axis():
    family = tasks.make("navigation", horizon=10)
    one = family.test(jax.random.key(0))
    how = dict(learner=constant_learner(), env=family.env, num_streams=1, num_updates=0)
    many = jax.tree.map(lambda x: x[None], one)
    with pytest.raises(ValueError, match="num_steps=9 must be at least 10, the horizon"):
        evaluation.adaptation_returns(jax.random.key(0), None, many, num_steps=9, **how)
    for measure in (
        lambda: evaluation.adaptation_returns(jax.random.key(0), None, one, num_steps=10, **how),
        lambda: evaluation.random_returns(jax.random.key(0), one, family=family),
        lambda: evaluation.trials(
            jax.random.key(0), None, one, learner=constant_learner(), env=family.env, num_steps=10
        ),
    ):
        with pytest.raises(
            ValueError, match=r"tasks.goal has shape \(2,\); it must be like \[M, 2\]"
        ):
            measure()
