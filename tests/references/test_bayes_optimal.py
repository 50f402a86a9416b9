"""Optima against recursions over every history, exactly."""

import functools
import math
from fractions import Fraction

import numpy as np
import pytest

from jaxmeta import references
from jaxmeta.tasks import gridnavi


def beta_integral(successes, failures):
    """``∫ p^s (1 - p)^f dp``."""
    s, f = successes, failures
    return Fraction(math.factorial(s) * math.factorial(f), math.factorial(s + f + 1))


def likelihood(history, kind, num_arms=2):
    """Probability of what the pulls ``(arm, reward)`` showed, means integrated out."""
    counts = [[history.count((a, r)) for r in (1, 0)] for a in range(num_arms)]
    if kind == "independent":
        return math.prod(beta_integral(*arm) for arm in counts)
    for_first = counts[0][0] + counts[1][1]  # signs that the first arm is the better
    against = len(history) - for_first
    if kind == "uniform":
        return beta_integral(for_first, against)
    p = {"easy": Fraction(1, 10), "medium": Fraction(1, 4), "hard": Fraction(2, 5)}[kind]
    return (p**for_first * (1 - p) ** against + (1 - p) ** for_first * p**against) / 2


def best_total(history, num_pulls, kind, num_arms=2):
    """What the best policy earns after ``history``, times the probability of that."""
    if len(history) == num_pulls:
        return Fraction(0)
    totals = []
    for arm in range(num_arms):
        paid, unpaid = (*history, (arm, 1)), (*history, (arm, 0))
        total = likelihood(paid, kind, num_arms)
        total += best_total(paid, num_pulls, kind, num_arms)
        totals.append(total + best_total(unpaid, num_pulls, kind, num_arms))
    return max(totals)


@pytest.mark.parametrize(("num_arms", "num_pulls"), [(2, 1), (2, 3), (2, 5), (3, 4), (4, 3)])
def test_the_best_policy_of_independent_arms(num_arms, num_pulls):
    expected = best_total((), num_pulls, "independent", num_arms)
    value = references.bayes_optimal_bandit(num_arms=num_arms, num_pulls=num_pulls)
    np.testing.assert_allclose(value, float(expected), rtol=1e-14)


def test_known_values_of_independent_arms():
    value = references.bayes_optimal_bandit
    assert value(num_arms=1, num_pulls=7) == 3.5
    np.testing.assert_allclose(value(num_arms=5, num_pulls=10), 6.660, atol=0.001)
    # The more arms the better, though none of them after the tenth can be pulled.
    assert value(num_arms=5, num_pulls=10) < value(num_arms=10, num_pulls=10)
    assert value(num_arms=10, num_pulls=10) == value(num_arms=50, num_pulls=10)


@pytest.mark.parametrize("kind", ["uniform", "easy", "medium", "hard", "independent"])
def test_the_best_policy_of_dependent_arms(kind):
    best_mean = {
        "uniform": Fraction(3, 4),
        "easy": Fraction(9, 10),
        "medium": Fraction(3, 4),
        "hard": Fraction(3, 5),
        "independent": Fraction(2, 3),
    }
    for num_pulls in (1, 2, 4, 5):
        expected = num_pulls * best_mean[kind] - best_total((), num_pulls, kind)
        regret = references.bayes_optimal_dependent_bandit(kind=kind, num_pulls=num_pulls)
        np.testing.assert_allclose(regret, float(expected), rtol=1e-13)


@pytest.mark.parametrize(
    ("kind", "regret"),
    [
        ("uniform", 1.221),
        ("easy", 0.625),
        ("medium", 1.000),
        ("hard", 2.312),
        ("independent", 1.748),
    ],
)
def test_regret_in_a_hundred_pulls(kind, regret):
    np.testing.assert_allclose(
        references.bayes_optimal_dependent_bandit(kind=kind), regret, atol=0.0005
    )


def best_trial(num_episodes, num_steps, size):
    """Value of GridNavi as a Bayes-adaptive MDP: by position, time and the set of goals still possible."""

    @functools.cache
    def value(time, x, y, possible):
        if time == num_episodes * num_steps:
            return 0.0
        if time % num_steps == 0:
            x = y = 0
        values = []
        for move_x, move_y in gridnavi.MOVES.tolist():
            here = (
                min(max(x + move_x, 0), size - 1),
                min(max(y + move_y, 0), size - 1),
            )
            p = (here in possible) / len(possible)
            total = 0.0
            if p > 0:
                total += p * (1.0 + value(time + 1, *here, frozenset([here])))
            if p < 1:
                total += (1 - p) * (-0.1 + value(time + 1, *here, possible - {here}))
            values.append(total)
        return max(values)

    return value(0, 0, 0, frozenset(map(tuple, gridnavi.goals(size).tolist())))


@pytest.mark.parametrize(
    ("num_episodes", "num_steps", "size"),
    # In 1, 2 and 3 steps not every goal can be reached; in 4 all of size 3 can.
    [
        (2, 1, 3),
        (3, 2, 3),
        (3, 3, 3),
        (1, 9, 3),
        (2, 4, 3),
        (4, 5, 3),
        (3, 4, 4),
        (1, 8, 4),
        (2, 6, 4),
    ],
)
def test_the_best_trial_of_gridnavi(num_episodes, num_steps, size):
    value = references.bayes_optimal_gridnavi(
        num_episodes=num_episodes, num_steps=num_steps, size=size
    )
    expected = best_trial(num_episodes, num_steps, size)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


def test_the_trial_of_four_episodes():
    """All that is lost is lost in the first episode: what it leaves lies on one straight way."""
    value = functools.partial(references.bayes_optimal_gridnavi, num_steps=15)
    told = np.mean([15 + 1.1 - 1.1 * sum(goal) for goal in gridnavi.goals(5).tolist()])
    np.testing.assert_allclose(4 * told, 44.286, atol=0.0005)
    np.testing.assert_allclose(value(num_episodes=4), 37 + 3 / 14, rtol=1e-12)
    np.testing.assert_allclose(value(num_episodes=1), 4.0, rtol=1e-12)
    np.testing.assert_allclose(value(num_episodes=4), value(num_episodes=1) + 3 * told, rtol=1e-12)
