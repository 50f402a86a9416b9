import jax
import numpy as np
import pytest

from jaxmeta import evaluation, tasks


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
