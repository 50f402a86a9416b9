"""Bayes-optimal returns, computed on the host in float64 NumPy and exact to rounding.

A learner with memory is trained to be Bayes-optimal in its family of tasks.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxmeta import checks
from jaxmeta.tasks import bandits, gridnavi

MAX_STATES = 3_000_000
"""The most states of knowledge for `bayes_optimal_bandit`, which take seconds and 1 GB."""

MAX_SIZE = 7
"""The most cells along the side of a grid for `bayes_optimal_gridnavi`."""

BEAM = 5_000
"""States that the beam search of `bayes_optimal_gridnavi` keeps at each step."""


def bayes_optimal_bandit(*, num_arms: int, num_pulls: int) -> float:
    """Expected total reward of the Bayes-optimal agent, for Bernoulli arms of means U(0, 1).

    It is computed by backward induction over states of knowledge: the numbers of successes and
    failures of each arm. Arms are exchangeable, so a state is a multiset of these pairs. For 5 arms
    and 10 pulls the result is 6.660.

    Args:
        num_arms: A, at least 1.
        num_pulls: Pulls in all, at least 1.

    Raises:
        ValueError: there are more than `MAX_STATES` states.
    """
    checks.at_least("num_arms", num_arms, 1)
    checks.at_least("num_pulls", num_pulls, 1)
    if num_arms == 1:
        return num_pulls / 2
    num_states = _count_knowledge(num_arms, num_pulls - 1)
    if num_states > MAX_STATES:
        raise ValueError(
            f"num_arms={num_arms} with num_pulls={num_pulls} has {num_states:.2g} states of knowledge "
            f"or more, and at most {MAX_STATES:.2g} are in reach: fewer arms or fewer pulls"
        )
    # A state is a sorted row of arms: s successes and f failures are arm (s + f)(s + f + 1) / 2 +
    # s. At most num_pulls arms are ever pulled, and all arms never pulled are equal.
    pulls = np.repeat(np.arange(num_pulls), np.arange(1, num_pulls + 1))
    successes = np.arange(len(pulls)) - pulls * (pulls + 1) // 2
    mean = (successes + 1) / (pulls + 2)
    states = np.zeros((1, min(num_arms, num_pulls)), np.int32)
    layers = []
    for _ in range(num_pulls - 1):
        fresh = np.ones(states.shape, bool)
        fresh[:, 1:] = states[:, 1:] != states[:, :-1]  # one of each kind of arm is enough to try
        row, column = np.nonzero(fresh)
        arm = states[row, column]
        outcomes = []
        for longer in (pulls[arm] + 2, pulls[arm] + 1):  # it pays, it does not
            after = states[row]
            after[np.arange(len(row)), column] += longer.astype(np.int32)
            outcomes.append(np.sort(after, axis=1))
        states, successor = _distinct(np.concatenate(outcomes))
        layers.append((np.flatnonzero(column == 0), mean[arm], successor.reshape(2, -1)))
    value = mean[states].max(axis=1)  # of the last pull
    for first, p, (paid, unpaid) in reversed(layers):
        value = np.maximum.reduceat(p * (1 + value[paid]) + (1 - p) * value[unpaid], first)
    return float(value[0])


def _count_knowledge(num_arms: int, num_pulls: int) -> float:
    """The number of states of knowledge after at most ``num_pulls``; a lower bound if it is past the limit."""
    of_two_arms = math.comb(num_pulls + 4, 4) / 2
    if of_two_arms > MAX_STATES:
        return of_two_arms
    # Arms pulled m times are of m + 1 kinds, so j of them are one of (m + j choose j) multisets.
    count = np.zeros((num_arms + 1, num_pulls + 1))  # by arms pulled and pulls in all
    count[0, 0] = 1
    for m in range(1, num_pulls + 1):
        without = count.copy()
        for j in range(1, min(num_arms, num_pulls // m) + 1):
            count[j:, m * j :] += math.comb(m + j, j) * without[:-j, : -m * j]
    return float(count.sum())


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ``rows [n, c]`` of small integers, ``[d, c]``, and the index of each row among them, ``[n]``."""
    number, limit = np.zeros(len(rows), np.int64), 1  # of each row, below the limit
    for column in rows.T:
        base = int(column.max()) + 1
        if limit * base >= 2**63:
            number, limit = np.unique(number, return_inverse=True)[1], len(rows)
        number, limit = number * base + column, limit * base
    _, first, place = np.unique(number, return_index=True, return_inverse=True)
    return rows[first], place


def bayes_optimal_dependent_bandit(*, kind: str, num_pulls: int = 100) -> float:
    """Expected regret of the Bayes-optimal agent against always pulling the better arm.

    The arms are the two of Wang et al. 2016 (`jaxmeta.tasks.bandits.dependent_bandit`). If their
    means add up to 1, pulls of both arms carry the same information, so exploring gains nothing:
    the optimal agent pulls the arm that is more likely the better one. In 100 pulls: uniform 1.221,
    easy 0.625, medium 1.000, hard 2.312, independent 1.748.

    Args:
        kind: Kind of the family's arms.
        num_pulls: Pulls in all, at least 1.

    Raises:
        ValueError: the kind is unknown, or independent with too many pulls for
            `bayes_optimal_bandit`.
    """
    checks.choice("kind", kind, bandits.KINDS)
    checks.at_least("num_pulls", num_pulls, 1)
    if kind == "independent":  # the better of two uniform means is 2/3 on average
        return num_pulls * 2 / 3 - bayes_optimal_bandit(num_arms=2, num_pulls=num_pulls)
    if kind == "uniform":
        # After n pulls all numbers k of signs in favour of the first arm are equally likely.
        regret = 0.0
        for n in range(num_pulls):
            mean = (np.arange(n + 1) + 1) / (n + 2)
            regret += 3 / 4 - np.maximum(mean, 1 - mean).mean()
        return float(regret)
    worse = bandits.WORSE_MEAN[kind]
    signs = np.array([1.0])  # distribution of k if the first arm is the better one
    regret = 0.0
    for _ in range(num_pulls):
        wrong = np.minimum(signs, signs[::-1]).sum() / 2
        regret += (1 - 2 * worse) * wrong
        signs = np.append(worse * signs, 0) + np.append(0, (1 - worse) * signs)
    return float(regret)


class _Grid(NamedTuple):
    """A grid whose cells are numbers and whose sets of goals are bits of an integer."""

    successor: np.ndarray
    """``[C, A]``, the next cell for each cell and action."""
    goal: np.ndarray
    """``[C]``, the goal in each cell as a set, or 0."""
    within: np.ndarray
    """``[C, D]``, the set of goals at most d steps away from each cell."""


def bayes_optimal_gridnavi(*, num_episodes: int, num_steps: int, size: int = 5) -> float:
    """Expected total reward of the Bayes-optimal agent in a trial of ``num_episodes`` of ``num_steps``.

    Until the agent finds the goal, it only learns where the goal is not, so it follows a fixed
    path. Once it has found the goal it stays there, and later goes straight back. Compare it with
    an agent that is told the goal. For each goal the path loses a whole number of steps: the steps
    at which the other agent stands on the goal and the path has not yet seen it. The smallest sum
    over goals is found step by step over all pairs (cell, set of goals seen); states that cannot
    beat the best path of a beam search are left out. In the four episodes of 15 steps of Zintgraf
    et al. 2020 the result is 37 + 3/14.

    Args:
        num_episodes: Episodes of the trial, at least 1.
        num_steps: Steps of an episode, the environment's horizon, at least 1.
        size: Cells along a side, 3 to 7; a size of 7 may take a minute.

    Raises:
        ValueError: the grid is too large for its states to be counted in 64 bits.
    """
    checks.at_least("num_episodes", num_episodes, 1)
    checks.at_least("num_steps", num_steps, 1)
    checks.at_least("size", size, 3)
    if size > MAX_SIZE:
        raise ValueError(
            f"size={size} must be at most {MAX_SIZE}: a cell and a set of goals have to fit in 64 bits"
        )
    goals = gridnavi.goals(size)
    distance = goals.sum(axis=1)
    standing = np.maximum(
        num_steps + 1 - distance, 0
    )  # steps on the goal when going straight there
    best = gridnavi.GOAL_REWARD * standing + gridnavi.STEP_REWARD * (num_steps - standing)
    grid = _grid(goals[distance <= num_steps], size)
    good = _search(grid, num_episodes, num_steps, math.inf, BEAM)
    lost = _search(grid, num_episodes, num_steps, good, None)
    missed = (gridnavi.GOAL_REWARD - gridnavi.STEP_REWARD) * lost / len(goals)
    return float(num_episodes * best.mean() - missed)


def _grid(goals: np.ndarray, size: int) -> _Grid:
    """The grid of ``goals [G, 2]``."""
    index = np.arange(size**2)
    cells = np.stack([index % size, index // size], axis=1)
    moved = np.clip(cells[:, None] + gridnavi.MOVES, 0, size - 1)
    goal = np.zeros(len(cells), np.int64)
    goal[goals @ np.array([1, size])] = 1 << np.arange(len(goals))
    distance = np.abs(cells[:, None] - cells).sum(axis=-1)
    within = [np.where(distance <= d, goal, 0).sum(axis=1) for d in range(2 * size - 1)]
    return _Grid(moved @ np.array([1, size]), goal, np.stack(within, axis=1))


def _search(
    grid: _Grid, num_episodes: int, num_steps: int, bound: float, beam: int | None
) -> float:
    """The smallest loss of a path if it is below ``bound``, else ``bound``.

    With ``beam`` only that many of the most promising states are kept at each step.
    """
    num_moves = grid.successor.shape[1]
    cell = seen = loss = np.zeros(1, np.int64)
    for episode in range(num_episodes):
        cell = np.zeros_like(cell)
        for step in range(num_steps):
            cell = grid.successor[cell].ravel()
            seen = np.repeat(seen, num_moves) | grid.goal[cell]
            loss = np.repeat(loss, num_moves) + _lost(grid, seen, step)
            if step == num_steps - 1:  # where an episode ended does not matter to the next
                cell = np.zeros_like(cell)
            state = seen * len(grid.goal) + cell
            order = np.lexsort((loss, state))
            best = order[np.diff(state[order], prepend=-1) != 0]
            least = loss[best]
            after = (episode, step + 1) if step < num_steps - 1 else (episode + 1, 0)
            if after[0] < num_episodes:
                least = least + _still_to_lose(
                    grid, cell[best], seen[best], *after, num_episodes, num_steps
                )
            best, least = best[least < bound], least[least < bound]
            if len(best) == 0:
                return bound
            if beam is not None and len(best) > beam:
                best = best[np.argpartition(least, beam)[:beam]]
            cell, seen, loss = cell[best], seen[best], loss[best]
    return int(loss.min())


def _lost(grid: _Grid, seen: np.ndarray, step: int) -> np.ndarray:
    """The number of unseen goals on which an agent that is told the goal stands at the end of ``step``, ``[n]``."""
    return np.bitwise_count(_reachable(grid, step) & ~seen).astype(np.int64)


def _reachable(grid: _Grid, step: int) -> np.int64:
    """The goals at most ``step + 1`` steps from the start."""
    return grid.within[0, min(step + 1, grid.within.shape[1] - 1)]


def _still_to_lose(
    grid: _Grid,
    cell: np.ndarray,
    seen: np.ndarray,
    episode: int,
    step: int,
    num_episodes: int,
    num_steps: int,
) -> np.ndarray:
    """A lower bound of the loss from ``step`` of ``episode`` on, ``[n]``.

    A step finds at most one goal, only goals near enough can be found, and an episode's first step
    finds none.
    """
    total = np.zeros(len(cell), np.int64)
    for moves in range(1, num_steps - step + 1):
        there = _reachable(grid, step + moves - 1) & ~seen
        near = there & grid.within[cell, min(moves, grid.within.shape[1] - 1)]
        total += np.bitwise_count(there) - np.minimum(np.bitwise_count(near).astype(int), moves)
    found = num_steps - step
    for _ in range(episode + 1, num_episodes):
        if found >= len(grid.goal):
            break
        for step in range(num_steps):
            total += np.maximum(_lost(grid, seen, step) - found - step, 0)
        found += num_steps - 1
    return total
