"""Exact returns of Bayes-optimal agents in bus worlds, by search over what an agent can know."""

import functools
import itertools
from typing import Literal, NamedTuple

from jaxmeta import checks
from jaxmeta.tasks import bus

Cell = tuple[int, int]
Known = tuple[int, ...]
"""The number of the far stop that each stop's bus goes to, or -1."""


class _World(NamedTuple):
    """The facts of a world that the search needs."""

    stops: tuple[Cell, ...]
    ends: tuple[Cell, ...]
    has_map: bool
    horizon: int
    counts: tuple[bool, ...]
    """Whether an episode's rewards count, one for each episode."""

    def possible(self, known: Known, stop: int) -> list[int]:
        """The ends to which the bus of a stop may go."""
        if known[stop] >= 0:
            return [known[stop]]
        group = range(4) if stop < 4 else range(4, len(self.ends))
        return [end for end in group if end not in known]

    def stops_of(self, known: Known, end: int) -> list[int]:
        """The stops to which the bus of an end may go."""
        if end in known:
            return [known.index(end)]
        group = range(4) if end < 4 else range(4, len(self.stops))
        return [stop for stop in group if known[stop] < 0]


def bayes_optimal_bus(
    *,
    world: Literal["plain", "distraction", "map"] = "plain",
    num_episodes: int = 1,
    explore_episodes: int = 0,
    horizon: int = 20,
) -> float:
    """Expected return of a trial of E episodes of the best agent that is not told the task of `tasks.bus`.

    The rewards of the first ``explore_episodes`` do not count. One episode earns 0.3 in every world, by walking. If one
    may explore first, it earns 0.8, as much as an agent that is told the task. The agent walks to a
    stop and rides, to the map, or to the goal, or it lets the episode end; it knows what it has seen, but for what
    the last step of an episode led to. Several episodes of ``distraction`` take minutes.

    Args:
        world: As in `tasks.bus`; the prior is uniform over all its orders.
        num_episodes: E, at least 1.
        explore_episodes: Episodes at the start whose rewards do not count, fewer than E.
        horizon: Time limit of an episode, in steps.
    """
    checks.choice("world", world, bus.WORLDS)
    checks.at_least("num_episodes", num_episodes, 1)
    checks.at_least("explore_episodes", explore_episodes, 0, num_episodes - 1)
    checks.at_least("horizon", horizon, 1)
    more = world == "distraction"
    counts = tuple(episode >= explore_episodes for episode in range(num_episodes))
    parts = _World(
        stops=bus.STOPS + bus.IDLE_STOPS * more,
        ends=bus.ENDS + bus.IDLE_ENDS * more,
        has_map=world == "map",
        horizon=horizon,
        counts=counts,
    )
    return _Search(parts).of_trial(0, (-1,) * len(parts.stops))


class _Search:
    """The values of states of knowledge, each computed once."""

    def __init__(self, world: _World) -> None:
        self.world = world
        self.of_trial = functools.cache(self._of_trial)
        self.of_state = functools.cache(self._of_state)

    def _of_trial(self, episode: int, known: Known) -> float:
        """The value of the episodes from ``episode`` on."""
        if episode == len(self.world.counts):
            return 0.0
        goals = bus.CORNERS if self.world.counts[episode] else bus.CORNERS[:1]
        told = (episode, known, bus.START, self.world.horizon)
        return sum(self.of_state(*told, goal) for goal in goals) / len(goals)

    def most(self, episode: int) -> float:
        """A bound of the value of the episodes from ``episode`` on: no goal is nearer than three steps."""
        return sum(self.world.counts[episode:]) * (bus.GOAL_REWARD + 2 * bus.STEP_REWARD)

    def _of_state(self, episode: int, known: Known, cell: Cell, left: int, goal: Cell) -> float:
        """The value of a state with ``left`` steps in the episode: of the best way to go on."""
        world = self.world
        counts = float(world.counts[episode])

        def cost(steps: int) -> float:
            return counts * bus.STEP_REWARD * steps

        later = functools.partial(self.of_trial, episode + 1)
        best = cost(left) + later(known)
        walk = _distance(cell, goal)
        if walk <= left:
            best = max(best, cost(walk - 1) + counts * bus.GOAL_REWARD + later(known))
        bound = self.most(episode + 1)

        def worth(steps: int) -> bool:
            """Whether it may be better to go on after so many steps, at least one from the goal."""
            gain = cost(steps) + counts * bus.GOAL_REWARD + bound
            return left > steps and gain > best + 1e-9

        if world.has_map and -1 in known and worth(steps := _distance(cell, bus.MAP)):
            orders = [x for x in itertools.permutations(range(4)) if _agrees(x, known)]
            values = [self.of_state(episode, x, bus.MAP, left - steps, goal) for x in orders]
            best = max(best, cost(steps) + sum(values) / len(values))
        for place in (*world.stops, *world.ends):
            steps = _distance(cell, place) + 1
            if worth(steps):
                values = [
                    self.of_state(episode, after, there, left - steps, goal)
                    for after, there in self._rides(known, place)
                ]
                best = max(best, cost(steps) + sum(values) / len(values))
        return best

    def _rides(self, known: Known, place: Cell) -> list[tuple[Known, Cell]]:
        """The knowledge after a ride from a stop, and the place where it ends; all are as likely."""
        world = self.world
        if place in world.stops:
            stop = world.stops.index(place)
            pairs = [(stop, end, world.ends[end]) for end in world.possible(known, stop)]
        else:
            end = world.ends.index(place)
            pairs = [(stop, end, world.stops[stop]) for stop in world.stops_of(known, end)]
        return [(_filled(known, stop, end), there) for stop, end, there in pairs]


def _filled(known: Known, stop: int, end: int) -> Known:
    """The knowledge when one more line is known; the last line of a group follows from the others."""
    after = [*known[:stop], end, *known[stop + 1 :]]
    for first in range(0, len(after), 4):
        group = after[first : first + 4]
        if group.count(-1) == 1:
            (rest,) = set(range(first, first + 4)) - set(group)
            after[first + group.index(-1)] = rest
    return tuple(after)


def _agrees(order: Known, known: Known) -> bool:
    return all(y in (-1, x) for x, y in zip(order, known, strict=True))


def _distance(a: Cell, b: Cell) -> int:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])
