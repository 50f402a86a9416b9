"""Agents for bandits against published figures and exact values."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import references, tasks
from jaxmeta.types import TimeStep
from tests.references.living import assert_mean, live, total_rewards

# Gittins indices


def test_published_gittins_indices():
    """Gittins 1989, for Beta(s + 1, f + 1)."""
    table = references.gittins_indices(num_pulls=10, discount=0.9)
    published = {(0, 0): 0.7029, (1, 0): 0.8001, (0, 1): 0.5001, (1, 1): 0.6346, (2, 2): 0.6010}
    for (successes, failures), index in {**published, (9, 1): 0.8695}.items():
        np.testing.assert_allclose(table[successes, failures], index, atol=6e-5)


@pytest.mark.parametrize(("successes", "failures"), [(0, 0), (3, 1), (2, 7)])
def test_an_index_is_where_switching_for_good_is_worth_as_much(successes, failures):
    """By bisection, for one arm at a time, to where rewards are discounted by 1e-8."""
    discount = 0.5

    def advantage(sure):
        @functools.cache
        def go_on(s, f):
            p = (s + 1) / (s + f + 2)
            if s + f == successes + failures + 26:
                return p / (1 - discount)
            after = [max(sure / (1 - discount), go_on(*x)) for x in ((s + 1, f), (s, f + 1))]
            return p + discount * (p * after[0] + (1 - p) * after[1])

        return go_on(successes, failures) - sure / (1 - discount)

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if advantage(middle) > 0 else (low, middle)
    table = references.gittins_indices(num_pulls=10, discount=discount)
    np.testing.assert_allclose(table[successes, failures], low, atol=1e-6)


def test_indices_without_a_future_are_means():
    table = references.gittins_indices(num_pulls=4, discount=0.0)
    successes, failures = np.indices((5, 5))
    np.testing.assert_allclose(table, (successes + 1) / (successes + failures + 2), atol=1e-12)
    table = references.gittins_indices(num_pulls=4, discount=0.9)
    known = successes + failures <= 4
    assert (table > (successes + 1) / (successes + failures + 2))[known].all()


# Agents


@pytest.mark.parametrize(
    ("learner", "expected"),
    [
        (references.random_agent(num_actions=5), 5.0),
        (references.greedy(num_arms=5), 6.56),
        (references.epsilon_greedy(num_arms=5, epsilon=0.0), 6.56),
        (references.epsilon_greedy(num_arms=5, epsilon=1.0), 5.0),
        (references.thompson(num_arms=5), 5.8333),
        (references.posterior_sampling(num_arms=5, num_nodes=16), 5.8333),
        (references.posterior_sampling(num_arms=5, num_nodes=16, greedy=True), 6.6551),
        (references.ucb1(num_arms=5, exploration=0.1), 6.65),
        (references.gittins(num_arms=5, num_pulls=10, discount=0.9), 6.64),
    ],
    ids=[
        "random",
        "greedy",
        "epsilon=0",
        "epsilon=1",
        "thompson",
        "posterior",
        "probable",
        "ucb1",
        "gittins",
    ],
)
def test_five_arms_and_ten_pulls(learner, expected):
    family = tasks.make("bernoulli_bandit", num_arms=5, num_pulls=10)
    totals = total_rewards(learner, family, num_tasks=4000, num_steps=10)
    assert_mean(totals, expected, rounding=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
@pytest.mark.parametrize(
    ("learner", "expected"),
    [
        (references.greedy(num_arms=50), 78.4),
        (references.thompson(num_arms=50), 64.5),
        (references.ucb1(num_arms=50, exploration=0.2), 84.8),
        (references.gittins(num_arms=50, num_pulls=100, discount=0.98), 85.2),
    ],
    ids=["greedy", "thompson", "ucb1", "gittins"],
)
@pytest.mark.usefixtures("in_earnest")
def test_fifty_arms_and_a_hundred_pulls(learner, expected):
    family = tasks.make("bernoulli_bandit", num_arms=50, num_pulls=100)
    totals = total_rewards(learner, family, num_tasks=4000, num_steps=100)
    assert_mean(totals, expected, exact=False, rounding=0.05)


@pytest.mark.parametrize("kind", ["uniform", "easy", "hard"])
def test_the_greedy_agent_is_optimal_for_dependent_arms(kind):
    family = tasks.make("dependent_bandit", kind=kind, num_pulls=30)
    drawn, _, data = live(references.dependent_greedy(), family, num_tasks=4000, num_steps=30)
    pulled = jnp.take_along_axis(drawn.mean, data.action[:, 0], axis=1)
    regret = jnp.sum(jnp.max(drawn.mean, axis=1)[:, None] - pulled, axis=1)
    assert_mean(regret, references.bayes_optimal_dependent_bandit(kind=kind, num_pulls=30))


def test_counts_are_those_of_the_stream():
    """Whatever episodes begin in it; a pull counts at once, its reward when it is seen."""
    seen = []
    learner = references.thompson(num_arms=3)
    step = jax.jit(learner.act)
    counts = learner.memory(())
    timestep = TimeStep(jnp.ones(1), jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.ones((), bool))
    rng = np.random.default_rng(0)
    for t in range(10):
        action, log_prob, counts = step(jax.random.key(t), (), (), counts, timestep)
        assert log_prob == 0
        for arm in range(3):
            assert counts.pulls[arm] == [a for a, _ in seen].count(arm) + (arm == action)
            assert counts.reward[arm] == seen.count((arm, 1))
        reward = int(rng.integers(2))
        seen.append((int(action), reward))
        timestep = TimeStep(jnp.ones(1), action, jnp.array(float(reward)), jnp.array(t % 4 == 3))


def choose(learner, reward, pulls):
    """The arm pulled by one who remembers these, and was paid nothing just now."""
    counts = references.Counts(jnp.array(reward, float), jnp.array(pulls, float))
    timestep = TimeStep(jnp.ones(1), jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros((), bool))
    return learner.act(jax.random.key(0), (), (), counts, timestep)[0]


def test_choices_by_hand():
    # Means 5/8, 2/3, 1/2: greedy takes the highest; enough exploration, the least tried.
    remembered = ([4, 1, 0], [6, 1, 0])
    assert choose(references.greedy(num_arms=3), *remembered) == 1
    assert choose(references.ucb1(num_arms=3, exploration=0.0), *remembered) == 1
    assert choose(references.ucb1(num_arms=3, exploration=2.0), *remembered) == 2
    # 1/2 + c sqrt(2 log 8 / 2) overtakes 2/3 + c sqrt(2 log 8 / 3) where c (1.442 - 1.177) > 1/6.
    for c, arm in ((0.62, 1), (0.64, 2)):
        assert choose(references.ucb1(num_arms=3, exploration=c), *remembered) == arm
    # Untried is worth 0.7029, seven successes of ten 0.7107 (> 2/3) at a discount of 0.9.
    gittins = references.gittins(num_arms=2, num_pulls=10, discount=0.9)
    assert choose(gittins, [3, 0], [5, 0]) == 1
    assert choose(references.greedy(num_arms=2), [3, 0], [5, 0]) == 0
    # Three failures of the first arm and a success of the second speak for the second.
    assert choose(references.dependent_greedy(), [1, 1], [4, 1]) == 1
    assert choose(references.dependent_greedy(), [1, 0], [2, 1]) == 0


def test_thompson_sampling_draws_from_the_posterior():
    """Beta(4, 2) exceeds Beta(1, 1) with its mean as the probability, 2/3."""
    counts = references.Counts(jnp.array([3.0, 0.0]), jnp.array([4.0, 0.0]))
    timestep = TimeStep(jnp.ones(1), jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros((), bool))

    def draws(learner):
        act = jax.jit(jax.vmap(lambda key: learner.act(key, (), (), counts, timestep)[0]))
        return act(jax.random.split(jax.random.key(0), 20_000))

    assert_mean(draws(references.thompson(num_arms=2)), 1 / 3)
    # Optimistic: the first is at least 2/3 and the second loses where that is, or the first's draw, is more.
    u = np.random.default_rng(0).beta(4, 2, 20_000)
    share = 1 - np.maximum(u, 2 / 3).mean()
    assert_mean(draws(references.thompson(num_arms=2, optimistic=True)), share, exact=False)


def total_of(choose, num_arms, num_pulls):
    """Expected total reward of a rule ``(reward [S, A], pulls) -> π [S, A]``, over all states of knowledge.

    A state is a sorted tuple of (reward, pulls): the rule must treat arms alike.
    """
    layer, total = {((0, 0),) * num_arms: 1.0}, 0.0
    for _ in range(num_pulls):
        reward, pulls = np.moveaxis(np.array(list(layer), float), -1, 0)
        mean, policy = (reward + 1) / (pulls + 2), choose(reward, pulls)
        total += np.array(list(layer.values())) @ (policy * mean).sum(1)
        after = collections.defaultdict(float)
        for (state, p), row, means in zip(layer.items(), policy, mean, strict=True):
            for arm in range(num_arms):
                for paid, q in ((1, means[arm]), (0, 1 - means[arm])):
                    seen = list(state)
                    seen[arm] = (seen[arm][0] + paid, seen[arm][1] + 1)
                    after[tuple(sorted(seen))] += p * row[arm] * q
        layer = after
    return total


def best_arm(reward, pulls):
    return np.asarray(jax.vmap(references.posterior_best_arm)(reward, pulls), float)


def most_probable(reward, pulls):
    best = best_arm(reward, pulls)
    return np.eye(best.shape[1])[best.round(6).argmax(1)]


@pytest.mark.parametrize("greedy", [False, True])
def test_posterior_sampling_earns_what_enumeration_says(greedy):
    exact = total_of(most_probable if greedy else best_arm, 3, 4)
    family = tasks.make("bernoulli_bandit", num_arms=3, num_pulls=4)
    learner = references.posterior_sampling(num_arms=3, num_nodes=8, greedy=greedy)
    assert_mean(total_rewards(learner, family, num_tasks=4000, num_steps=4), exact)


@pytest.mark.slow
def test_posterior_sampling_of_five_arms_exactly():
    np.testing.assert_allclose(total_of(best_arm, 5, 10), 5.83330, atol=1e-5)
    np.testing.assert_allclose(total_of(most_probable, 5, 10), 6.65508, atol=1e-5)


def test_posterior_sampling_of_gaussian_arms():
    """Two arms of four and two pulls and of means 0.7 and 0.4: the first is the better one with 0.87125."""
    learner = references.posterior_sampling(num_arms=2, reward_noise=0.3)
    counts = references.Counts(jnp.array([2.8, 0.0]), jnp.array([4.0, 2.0]))
    # The reward of the last pull, of the second arm, is seen now.
    timestep = TimeStep(jnp.ones(1), jnp.array(1), jnp.array(0.8), jnp.zeros((), bool))
    act = jax.jit(jax.vmap(lambda key: learner.act(key, (), (), counts, timestep)[0]))
    assert_mean(act(jax.random.split(jax.random.key(0), 20_000)), 1 - 0.87125)
    family = tasks.make("gaussian_bandit", reward_noise=0.3, means="uniform")
    earned = total_rewards(
        references.posterior_sampling(num_arms=5, reward_noise=0.3),
        family,
        num_tasks=1000,
        num_steps=10,
    )
    assert 6.0 < earned.mean() < 10 * 5 / 6  # more than at random, less than the best arm
