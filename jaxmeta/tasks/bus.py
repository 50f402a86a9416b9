"""Bus worlds: a grid in which buses are the quick way to every corner, if one knows where each bus goes.

Liu et al. 2021, "Decoupling exploration and exploitation for meta-reinforcement learning without
sacrifices" (DREAM), section 6: the bus environments. An episode starts in the centre of a 9×9 grid,
and its goal, a corner drawn anew for each episode, is observed. Stops around the centre are joined
with stops near the corners; the task is which with which. Finding out costs more than it brings within
one episode, so that an agent has to explore in one episode for the sake of the next.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import Sampler, TaskFamily

WORLDS = ("plain", "distraction", "map")
SIZE = 9
"""Cells along a side."""
START = (4, 4)
"""The cell in which an episode starts."""
CORNERS = ((0, 0), (8, 8), (0, 8), (8, 0))
"""The goals."""
STOPS = ((4, 5), (5, 4), (3, 4), (4, 3))
"""Stops around the centre, whose buses go near the corners."""
ENDS = ((0, 1), (0, 7), (8, 1), (8, 7))
"""The stops near the corners."""
IDLE_STOPS = ((5, 5), (3, 3), (3, 5), (5, 3))
"""Stops around the centre in the world `distraction`, whose buses are of little use."""
IDLE_ENDS = ((0, 4), (4, 0), (8, 4), (4, 8))
"""The other ends of `IDLE_STOPS`."""
MAP = (7, 3)
"""The cell in the world `map` that shows which task it is."""
MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]], np.int32)
"""(x, y) of the first four actions: left, up, right, down. Then come: stay, ride, end, and two that stay, too."""
NUM_ACTIONS = 9
RIDE, END = 5, 6
"""The actions that ride the bus of a stop and end the episode."""
GOAL_REWARD = 1.0
STEP_REWARD = -0.1
TRAIN_EVERY = 11
"""In the world `distraction` every so-manieth task is a training task."""


@struct.dataclass
class BusParams:
    """The task: where the buses of the stops around the centre go."""

    ends: jax.Array
    """``[S, 2]``, int32: x and y of the other end of each line, in the order of `STOPS` and `IDLE_STOPS`."""


@struct.dataclass
class BusState:
    """The agent's cell, the episode's goal and the steps taken."""

    position: jax.Array
    """``[2]``, int32: x and y from the bottom left corner."""
    goal: jax.Array
    """``[]``, int32: the goal's number in `CORNERS`."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class Bus(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    Observations are one-hot and joined: x, y, whether the cell has a stop, the goal among `CORNERS`, and in the world
    `map`, in the cell `MAP`, the number of the task. A step costs 0.1. A step that ends on the goal earns 1 instead and
    terminates the episode. The action `END` terminates it, too, and costs 0.1 for each step that was left. ``RIDE``
    goes from a stop to the other end of its line, either way, and does nothing elsewhere.
    """

    world: str = "plain"
    """One of `WORLDS`."""
    horizon: int = 20
    """Time limit of an episode, in steps."""

    @property
    def stops(self) -> tuple[tuple[int, int], ...]:
        """The stops around the centre."""
        return (*STOPS, *IDLE_STOPS) if self.world == "distraction" else STOPS

    @property
    def default_params(self) -> BusParams:
        ends = (*ENDS, *IDLE_ENDS) if self.world == "distraction" else ENDS
        return BusParams(ends=jnp.asarray(ends, jnp.int32))

    def reset_env(self, key: jax.Array, params: BusParams) -> tuple[jax.Array, Any]:
        state = BusState(
            position=jnp.asarray(START, jnp.int32),
            goal=jax.random.randint(key, (), 0, len(CORNERS), jnp.int32),
            time=jnp.zeros((), jnp.int32),
        )
        return self._seen(state, params), state

    def step_env(
        self, key: jax.Array, state: BusState, action: jax.Array, params: BusParams
    ) -> tuple[jax.Array, BusState, jax.Array, jax.Array, dict]:
        position = moved(state.position, action, params, self.stops)
        state = BusState(position=position, goal=state.goal, time=state.time + 1)
        at_goal = jnp.all(position == jnp.asarray(CORNERS)[state.goal])
        ends = action == END
        left = jnp.where(ends, self.horizon - state.time, 0).astype(float)
        reward = jnp.where(at_goal, GOAL_REWARD, STEP_REWARD * (1.0 + left))
        return self._seen(state, params), state, reward, at_goal | ends, {}

    def _seen(self, state: BusState, params: BusParams) -> jax.Array:
        cell = jax.nn.one_hot(state.position, SIZE).reshape(-1)
        stops = jnp.concatenate([jnp.asarray(self.stops), params.ends])
        at_stop = jnp.any(jnp.all(state.position[None] == stops, axis=1))
        parts = [cell, at_stop[None].astype(float), jax.nn.one_hot(state.goal, len(CORNERS))]
        if self.world == "map":
            shown = jax.nn.one_hot(number(params), math.factorial(len(STOPS)))
            at_map = jnp.all(state.position == jnp.asarray(MAP))
            parts.append(jnp.where(at_map, shown, 0.0))
        return jnp.concatenate(parts)

    def is_truncated(self, state: BusState, params: BusParams) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "Bus"

    def action_space(self, params: BusParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(NUM_ACTIONS)

    def observation_space(self, params: BusParams) -> spaces.Box:
        shown = math.factorial(len(STOPS)) if self.world == "map" else 0
        return spaces.Box(0.0, 1.0, (2 * SIZE + 1 + len(CORNERS) + shown,), jnp.float32)


def moved(
    position: jax.Array, action: jax.Array, task: BusParams, stops: tuple[tuple[int, int], ...]
) -> jax.Array:
    """The cell after an action in the cell ``position [2]``, int32 ``[2]``."""
    moves = jnp.zeros((NUM_ACTIONS, 2), jnp.int32).at[: len(MOVES)].set(MOVES)
    walked = jnp.clip(position + moves[action], 0, SIZE - 1)
    near = jnp.asarray(stops, jnp.int32)
    start = jnp.concatenate([near, task.ends])
    other = jnp.concatenate([task.ends, near])
    here = jnp.all(position[None] == start, axis=1)
    rides = (action == RIDE) & jnp.any(here)
    return jnp.where(rides, other[jnp.argmax(here)], walked)


def number(task: BusParams) -> jax.Array:
    """The number of a task among the orders of the `STOPS`, int32 ``[]``, as ``itertools.permutations`` counts them.

    Of an end it takes the corner that it is near to.
    """
    beyond = (task.ends[: len(STOPS)] > jnp.asarray(START, jnp.int32)[None]).astype(jnp.int32)
    corner = 2 * beyond[:, 0] + beyond[:, 1]
    later = jnp.triu(jnp.ones((len(STOPS), len(STOPS)), jnp.int32), 1)
    smaller = (corner[None, :] < corner[:, None]).astype(jnp.int32)
    weights = [math.factorial(len(STOPS) - 1 - i) for i in range(len(STOPS))]
    return jnp.sum(jnp.sum(later * smaller, axis=1) * jnp.asarray(weights, jnp.int32))


def identity(task: BusParams) -> jax.Array:
    """A task as a vector: the ends of all lines, from the centre, in units of half a side, ``[2 S]``."""
    x = task.ends - jnp.asarray(START, jnp.int32)[None]
    return (x.astype(float) / START[0]).reshape(-1)


def lines(
    *,
    world: Literal["plain", "distraction", "map"] = "plain",
    split: Literal["train", "test"] = "train",
) -> np.ndarray:
    """The tasks of a split: the other end of each line, int32 ``[M, S, 2]``.

    ``distraction`` has 576 tasks, of which every eleventh, 53 in all, is for training and the others are for test. The
    other worlds have 24, for train and test alike.
    """
    checks.choice("world", world, WORLDS)
    checks.choice("split", split, ("train", "test"))
    near = list(itertools.permutations(ENDS))
    if world != "distraction":
        return np.asarray(near, np.int32)
    both = [(*ends, *idle) for idle in itertools.permutations(IDLE_ENDS) for ends in near]
    training = np.arange(len(both)) % TRAIN_EVERY == 0
    return np.asarray(both, np.int32)[training if split == "train" else ~training]


def successors(task: BusParams, stops: tuple[tuple[int, int], ...]) -> jax.Array:
    """The next cell for each cell and action, int32 ``[C, A]``; (x, y) has index ``x + SIZE * y``."""
    index = np.arange(SIZE**2, dtype=np.int32)
    cells = np.stack([index % SIZE, index // SIZE], axis=1)
    after = jax.vmap(
        jax.vmap(lambda cell, action: moved(cell, action, task, stops), (None, 0)), (0, None)
    )(jnp.asarray(cells), jnp.arange(NUM_ACTIONS))
    return after[..., 0] + SIZE * after[..., 1]


def optimal_return(
    task: BusParams, *, stops: tuple[tuple[int, int], ...], horizon: int
) -> jax.Array:
    """Expected return of an episode under the best policy that is told the task, ``[]``, by backward induction."""
    after = successors(task, stops)

    def of(goal: jax.Array) -> jax.Array:
        at_goal = jnp.arange(SIZE**2) == goal
        reward = jnp.where(at_goal, GOAL_REWARD, STEP_REWARD)

        def backup(_: int, v: jax.Array) -> jax.Array:
            return jnp.max((reward + jnp.where(at_goal, 0.0, v))[after], axis=1)

        # To end an episode costs as much as to wait for its end.
        v = jax.lax.fori_loop(0, horizon, backup, jnp.zeros_like(reward))
        return v[START[0] + SIZE * START[1]]

    x, y = jnp.asarray(CORNERS).T
    return jnp.mean(jax.vmap(of)(x + SIZE * y))


def bus(
    *, world: Literal["plain", "distraction", "map"] = "plain", horizon: int = 20
) -> TaskFamily:
    """Bus worlds: which bus goes to which corner is hidden; each order is as likely.

    In ``plain`` and ``map`` there are 24 tasks, and test has the same as train: it asks for exploration, not for
    generalisation. In ``distraction`` 53 of 576 tasks are for training and the others are held out. Out of
    distribution, the far stops lie on the other side of their corners, at (1, 0) instead of (0, 1).

    Args:
        world: ``"plain"``; ``"distraction"``, with four more buses that go to the middles of the sides; ``"map"``,
            with a cell that shows which task it is.
        horizon: Time limit of an episode, in steps.
    """
    checks.choice("world", world, WORLDS)
    checks.at_least("horizon", horizon, 1)

    def sampler(candidates: np.ndarray) -> Sampler:
        return lambda key: BusParams(ends=jax.random.choice(key, jnp.asarray(candidates)))

    test = lines(world=world, split="test")
    mirrored = np.concatenate([test[:, : len(STOPS), ::-1], test[:, len(STOPS) :]], axis=1)
    env = Bus(world, horizon)
    return TaskFamily(
        name="bus",
        env=env,
        horizon=horizon,
        train=sampler(lines(world=world, split="train")),
        test=sampler(test),
        out_of_distribution=sampler(mirrored),
        optimal_return=functools.partial(optimal_return, stops=env.stops, horizon=horizon),
        identity=identity,
        disjoint=("train", "test", "out_of_distribution")
        if world == "distraction"
        else ("out_of_distribution",),
    )
