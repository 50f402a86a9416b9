"""Mazes: find the goal of an unknown maze, then return to it by the shortest way.

After the maze of Miconi et al. 2018, "Differentiable plasticity: training plastic neural networks
with backpropagation", section 4.5: entering the goal's cell earns 1 and moves the agent to a random
cell. An agent that has learned the goal's place then goes straight back. Here the walls are part of
the task too.
"""

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import Sampler, TaskFamily
from jaxmeta.tasks.gridworld import successors

OBSERVATIONS = ("view", "position")


@struct.dataclass
class MazeParams:
    """The task: the walls and the goal."""

    walls: jax.Array
    """``[size, size]``, bool, indexed by y and x."""
    goal: jax.Array
    """``[]``, int32: the cell (x, y) has index x + size * y."""


@struct.dataclass
class MazeState:
    """The agent's cell and the steps taken."""

    cell: jax.Array
    """``[]``, int32: the agent's cell."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class Maze(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    Actions are up, right, down and left; a move into a wall does nothing. An episode starts in a
    uniform free cell other than the goal; arriving at the goal moves the agent to such a cell
    again. The goal is never observed.
    """

    size: int = 7
    """Cells along a side, cells of walls included."""
    horizon: int = 100
    """Time limit of an episode, in steps; nothing else ends one."""
    observation: str = "view"
    """``"view"``: the walls within ``radius`` of the agent, ``[(2 radius + 1)²]``, the walls around
    the maze included; ``"position"``: the cell, one-hot, ``[size²]``."""
    radius: int = 1
    """The distance that the agent sees."""

    @property
    def default_params(self) -> MazeParams:
        return MazeParams(
            walls=jnp.zeros((self.size, self.size), bool), goal=jnp.zeros((), jnp.int32)
        )

    def reset_env(self, key: jax.Array, params: MazeParams) -> tuple[jax.Array, MazeState]:
        return self._observed(_start(key, params), jnp.zeros((), jnp.int32), params)

    def step_env(
        self, key: jax.Array, state: MazeState, action: jax.Array, params: MazeParams
    ) -> tuple[jax.Array, MazeState, jax.Array, jax.Array, dict]:
        moved = _successors(params)[state.cell, action]
        arrived = moved == params.goal
        cell = jnp.where(arrived, _start(key, params), moved)
        obs, state = self._observed(cell, state.time + 1, params)
        return obs, state, arrived.astype(float), jnp.zeros((), bool), {}

    def _observed(
        self, cell: jax.Array, time: jax.Array, params: MazeParams
    ) -> tuple[jax.Array, MazeState]:
        if self.observation == "position":
            obs = jax.nn.one_hot(cell, self.size**2)
        else:
            around = jnp.pad(params.walls, self.radius, constant_values=True)
            corner, side = (cell // self.size, cell % self.size), 2 * self.radius + 1
            obs = jax.lax.dynamic_slice(around, corner, (side, side)).reshape(-1).astype(float)
        return obs, MazeState(cell=cell, time=time)

    def is_truncated(self, state: MazeState, params: MazeParams) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "Maze"

    def action_space(self, params: MazeParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(4)

    def observation_space(self, params: MazeParams | None = None) -> spaces.Box:
        length = self.size if self.observation == "position" else 2 * self.radius + 1
        return spaces.Box(0.0, 1.0, (length**2,), jnp.float32)


def _starts(task: MazeParams) -> jax.Array:
    """Possible first cells of an episode, bool ``[C]``."""
    free = ~task.walls.reshape(-1)
    return free & (jnp.arange(free.size) != task.goal)


def _start(key: jax.Array, task: MazeParams) -> jax.Array:
    logits = jnp.where(_starts(task), 0.0, -jnp.inf)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def _successors(task: MazeParams) -> jax.Array:
    """The next cell for each cell and action, int32 ``[C, A]``."""
    after = jnp.asarray(successors(task.walls.shape[0]))[:, 1:]  # the grid world's first is to stay
    return jnp.where(task.walls.reshape(-1)[after], jnp.arange(after.shape[0])[:, None], after)


def distances(task: MazeParams) -> jax.Array:
    """Steps from each cell to the goal, int32 ``[C]``; meaningless in walls."""
    after = _successors(task)
    far = after.shape[0]
    start = jnp.full(far, far, jnp.int32).at[task.goal].set(0)
    return jax.lax.fori_loop(
        0, far, lambda _, d: jnp.minimum(d, 1 + jnp.min(d[after], axis=1)), start
    )


def optimal_action(task: MazeParams, obs: jax.Array) -> jax.Array:
    """A step on a shortest way to the goal from the observed position, int32 ``[]``."""
    return jnp.argmin(distances(task)[_successors(task)[jnp.argmax(obs)]]).astype(jnp.int32)


def optimal_return(task: MazeParams, *, horizon: int) -> jax.Array:
    """Expected return of an episode of shortest ways to the goal, ``[]``, by backward induction."""
    after, starts = _successors(task), _starts(task)

    def backup(_: int, v: jax.Array) -> jax.Array:
        again = jnp.mean(v, where=starts)
        return jnp.max(jnp.where(after == task.goal, 1.0 + again, v[after]), axis=1)

    v = jax.lax.fori_loop(0, horizon, backup, jnp.zeros(starts.shape))
    return jnp.mean(v, where=starts)


def maze(
    *,
    size: int = 7,
    horizon: int = 100,
    observation: Literal["view", "position"] = "view",
    radius: int = 1,
    unsolvable: float = 0.0,
) -> TaskFamily:
    """Mazes without loops, the goal in any free cell, for train and test.

    Rooms lie two cells apart and are joined by a minimum spanning tree of random weights. All
    possible passages are numbered. The numbers of a training maze's passages add up to an even
    number, those of a test maze to an odd number, so train and test have no layout in common. Out
    of distribution half of the remaining walls between rooms are open too, which makes loops.

    Args:
        size: Cells along a side, odd and at least 3: 7 make 4×4 rooms.
        horizon: Time limit of an episode, in steps.
        observation: ``"view"``, the walls around the agent, or ``"position"``, the agent's cell.
        radius: Cells that the agent sees in each direction.
        unsolvable: Share of the training mazes in which walls surround the goal, so that nothing can be earned. The other
            splits have no such mazes. It is for the study of curricula, which can leave these mazes out.

    Raises:
        ValueError: ``size`` is even, or a number is out of range.
    """
    checks.at_least("size", size, 3)
    checks.at_least("horizon", horizon, 1)
    checks.at_least("radius", radius, 1)
    checks.choice("observation", observation, OBSERVATIONS)
    checks.between("unsolvable", unsolvable, 0.0, 1.0)
    if size % 2 == 0:
        raise ValueError(f"size={size} must be odd: every second cell is a room")

    def sampler(split: str) -> Sampler:
        def sample(key: jax.Array) -> MazeParams:
            walls_key, goal_key = jax.random.split(key)
            walls = _layout(walls_key, size, split)
            goal = jax.random.categorical(goal_key, jnp.where(walls.reshape(-1), -jnp.inf, 0.0))
            return MazeParams(walls=walls, goal=goal.astype(jnp.int32))

        return sample

    def some_unsolvable(key: jax.Array) -> MazeParams:
        key, coin_key = jax.random.split(key)
        task = sampler("train")(key)
        return jax.tree.map(
            partial(jnp.where, jax.random.bernoulli(coin_key, unsolvable)), _walled_in(task), task
        )

    return TaskFamily(
        name="maze",
        env=Maze(size, horizon, observation, radius),
        horizon=horizon,
        train=some_unsolvable if unsolvable else sampler("train"),
        test=sampler("test"),
        out_of_distribution=sampler("out_of_distribution"),
        optimal_action=optimal_action if observation == "position" else None,
        optimal_return=partial(optimal_return, horizon=horizon),
        mutate=mutate,
    )


def _walled_in(task: MazeParams) -> MazeParams:
    """The task with walls in all cells around the goal."""
    around = jnp.sum(jax.nn.one_hot(_successors(task)[task.goal], task.walls.size), axis=0) > 0
    around = around & (jnp.arange(task.walls.size) != task.goal)
    return MazeParams(walls=task.walls | around.reshape(task.walls.shape), goal=task.goal)


def mutate(key: jax.Array, task: MazeParams) -> MazeParams:
    """The task with a wall added, a wall removed, or the goal moved to another free cell, with probability 1/3 each.

    The change is undone where it would cut a free cell off the goal, leave no other free cell, or make a test maze. (The
    agent's first cell is no part of the task.)
    """
    kind_key, free_key, wall_key = jax.random.split(key, 3)
    walls = task.walls.reshape(-1)
    free = jax.random.categorical(free_key, jnp.where(_starts(task), 0.0, -jnp.inf))
    wall = jax.random.categorical(wall_key, jnp.where(walls, 0.0, -jnp.inf))
    kind = jax.random.randint(kind_key, (), 0, 3)
    added = walls.at[free].set(True)
    removed = walls.at[wall].set(False)
    layout = jnp.where(kind == 0, added, jnp.where(kind == 1, removed, walls))
    goal = jnp.where(kind == 2, free.astype(jnp.int32), task.goal)
    changed = MazeParams(walls=layout.reshape(task.walls.shape), goal=goal)
    whole = _leads_to_the_goal(changed) & jnp.any(_starts(changed))
    kept = whole & ~_is_test_maze(changed.walls)
    return jax.tree.map(lambda new, old: jnp.where(kept, new, old), changed, task)


def _leads_to_the_goal(task: MazeParams) -> jax.Array:
    """Whether every free cell is joined to the goal, bool ``[]``: cells are reached from the goal, a step at a time."""
    free = ~task.walls
    goal = (jnp.arange(free.size) == task.goal).reshape(free.shape)

    def spread(steps: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, reached = steps
        around = jnp.pad(reached, 1)
        near = around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:]
        return reached, free & (reached | near)

    steps = jnp.zeros_like(goal), goal
    _, reached = jax.lax.while_loop(lambda steps: jnp.any(steps[0] != steps[1]), spread, steps)
    return jnp.all(reached == free)


def _is_test_maze(walls: jax.Array) -> jax.Array:
    """Whether a connected layout ``[size, size]`` is one that the test split draws, bool ``[]``."""
    size = walls.shape[0]
    ends, cells = _passages(size)
    rooms = np.arange(size) % 2 == 0
    is_room, is_pillar = rooms[:, None] & rooms[None, :], ~rooms[:, None] & ~rooms[None, :]
    regular = ~jnp.any(walls & is_room) & jnp.all(walls | ~is_pillar)
    opened = ~walls[cells[:, 0], cells[:, 1]]
    is_tree = jnp.sum(opened) == int(ends.max())
    is_odd = jnp.sum(jnp.where(opened, jnp.arange(len(ends)), 0)) % 2 == 1
    return regular & is_tree & is_odd


def _passages(size: int) -> tuple[np.ndarray, np.ndarray]:
    """All possible passages: their two rooms ``[E, 2]`` and their cells (y, x) ``[E, 2]``."""
    rooms = np.arange(((size + 1) // 2) ** 2).reshape((size + 1) // 2, -1)
    y, x = 2 * np.indices(rooms.shape)
    across = np.stack([rooms[:, :-1], rooms[:, 1:]], -1), np.stack([y, x + 1], -1)[:, :-1]
    along = np.stack([rooms[:-1], rooms[1:]], -1), np.stack([y + 1, x], -1)[:-1]
    ends, cells = (
        [part.reshape(-1, 2) for part in parts] for parts in zip(across, along, strict=True)
    )
    return np.concatenate(ends), np.concatenate(cells)


def _spanning_tree(key: jax.Array, ends: np.ndarray) -> jax.Array:
    """The passages of a minimum spanning tree of uniform weights, bool ``[E]``, by Prim's algorithm."""
    weights = jax.random.uniform(key, (len(ends),))
    first, second = jnp.asarray(ends).T
    num_rooms = int(ends.max()) + 1

    def grow(_: int, tree: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        opened, reached = tree
        leads_on = reached[first] != reached[second]
        best = jnp.argmin(jnp.where(leads_on, weights, jnp.inf))
        reached = reached.at[first[best]].set(True).at[second[best]].set(True)
        return opened.at[best].set(True), reached

    start = jnp.zeros(len(ends), bool), jnp.arange(num_rooms) == 0
    return jax.lax.fori_loop(0, num_rooms - 1, grow, start)[0]


def _layout(key: jax.Array, size: int, split: str) -> jax.Array:
    """Walls of a maze of the split, bool ``[size, size]``."""
    ends, cells = _passages(size)

    def another(drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        key, tree_key = jax.random.split(drawn[0])
        return key, _spanning_tree(tree_key, ends)

    def of_the_other_split(drawn: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.sum(jnp.where(drawn[1], jnp.arange(len(ends)), 0)) % 2 == (split == "train")

    key, opened = another((key, jnp.zeros(len(ends), bool)))
    if split == "out_of_distribution":
        num_loops = (((size - 1) // 2) ** 2 + 1) // 2
        rank = jnp.where(opened, 2.0, jax.random.uniform(key, (len(ends),)))
        opened = opened | (rank <= jnp.sort(rank)[num_loops - 1])
    else:
        _, opened = jax.lax.while_loop(of_the_other_split, another, (key, opened))
    rooms = np.arange(size) % 2 == 0
    walls = jnp.asarray(~(rooms[:, None] & rooms[None, :]))
    return walls.at[cells[:, 0], cells[:, 1]].set(~opened)
