"""The search against lists of every plan, and against returns that a few lines of arithmetic give."""

import functools
import itertools

import numpy as np
import pytest

from jaxmeta.references import bayes_optimal_bus
from jaxmeta.tasks import bus

STEPS = [(-1, 0), (0, 1), (1, 0), (0, -1)]


def of_actions(world, horizon):
    """The best return of an episode by search over single actions and sets of tasks, each with equal probability."""
    lines = bus.lines(world=world)
    joined = []
    for order in lines:
        pairs = dict(zip(bus.STOPS, map(tuple, order.tolist()), strict=True))
        joined.append(pairs | {end: stop for stop, end in pairs.items()})

    @functools.cache
    def value(cell, possible, left, goal):
        if left == 0:
            return 0.0
        found = []
        for move in [*STEPS, None]:
            if move is not None:
                x, y = np.clip(np.add(cell, move), 0, 8)
                outcomes = {(int(x), int(y)): possible}
            else:
                outcomes = {}
                for i in possible:
                    there = joined[i].get(cell, cell)
                    outcomes[there] = (*outcomes.get(there, ()), i)
            if world == "map" and bus.MAP in outcomes:
                seen = [(bus.MAP, (i,)) for i in outcomes.pop(bus.MAP)]
            else:
                seen = []
            total = 0.0
            for there, left_possible in [*outcomes.items(), *seen]:
                share = len(left_possible) / len(possible)
                if there == goal:
                    total += share
                else:
                    total += share * (-0.1 + value(there, left_possible, left - 1, goal))
            found.append(total)
        return max(found)

    every = tuple(range(len(lines)))
    return np.mean([value(bus.START, every, horizon, goal) for goal in bus.CORNERS])


@pytest.mark.parametrize(
    ("world", "horizon"), [("plain", 3), ("map", 5), ("plain", 6), ("plain", 9)]
)
def test_the_search_is_that_over_all_actions(world, horizon):
    expected = of_actions(world, horizon)
    np.testing.assert_allclose(bayes_optimal_bus(world=world, horizon=horizon), expected)


def test_three_steps_are_one_ride():
    """Of four goals one is a ride away, and it is hit by chance: 1/4 (0.8) - 3/4 (0.3)."""
    np.testing.assert_allclose(bayes_optimal_bus(horizon=3), 0.25 * 0.8 - 0.75 * 0.3)


@pytest.mark.parametrize("world", ["plain", "map"])
def test_one_episode_walks_and_exploration_pays_in_the_next(world):
    np.testing.assert_allclose(bayes_optimal_bus(world=world), 0.3)
    told = bayes_optimal_bus(world=world, num_episodes=2, explore_episodes=1)
    np.testing.assert_allclose(told, 0.8)
    steps = 4 if world == "map" else 10  # to the map; two rides back and forth, and a third
    enough = dict(world=world, num_episodes=2, explore_episodes=1)
    assert bayes_optimal_bus(**enough, horizon=steps + 1) > 0.8 - 1e-6
    assert bayes_optimal_bus(**enough, horizon=steps - 1) < 0.8 - 1e-6


def test_rewards_of_both_episodes_are_weighed():
    """Better than to walk twice, and than to explore for nothing in the first."""
    both = bayes_optimal_bus(num_episodes=2)
    assert 0.6 < both < 0.3 + 0.8
    np.testing.assert_allclose(both, 0.9)
    assert bayes_optimal_bus(world="map", num_episodes=2) > both


@pytest.mark.slow
def test_idle_buses_change_nothing():
    np.testing.assert_allclose(bayes_optimal_bus(world="distraction"), 0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(world="city"), "world='city' is unknown"),
        (dict(num_episodes=0), "num_episodes=0 must be at least 1"),
        (dict(explore_episodes=1), "explore_episodes=1 must be"),
        (dict(horizon=0), "horizon=0 must be at least 1"),
    ],
)
def test_settings_that_are_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        bayes_optimal_bus(**settings)


def test_the_last_line_of_a_group_follows():
    from jaxmeta.references.buses import _filled

    assert _filled((-1, 0, -1, 3), 0, 2) == (2, 0, 1, 3)
    for order in itertools.permutations(range(4)):
        assert _filled((*order[:2], -1, -1), 2, order[2]) == order
