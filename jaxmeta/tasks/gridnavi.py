"""GridNavi: search a grid for a hidden goal, then return to it in every later episode.

Zintgraf et al. 2020, "VariBAD: a very good method for Bayes-adaptive deep RL via meta-learning",
section 5.1: a 5×5 grid, start in the bottom left corner, 15 steps an episode, +1 for every step
that ends on the goal and -0.1 for every other step; a trial is four episodes. Goals are uniform
over the cells outside the start's 2×2 block.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import Sampler, TaskFamily

MOVES = np.array([[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]], np.int32)
"""``[A, 2]``, (x, y) of each action: stay, up, right, down, left."""

GOAL_REWARD = 1.0
STEP_REWARD = -0.1

START_BLOCK = 2


@struct.dataclass
class GridNaviParams:
    """The task: the goal's cell."""

    goal: jax.Array
    """``[2]``, int32: x and y from the bottom left corner."""


@struct.dataclass
class GridNaviState:
    """The agent's cell and the steps taken."""

    position: jax.Array
    """``[2]``, int32: x and y from the bottom left corner."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class GridNavi(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    The cell is observed one-hot, ``[size * size]``; (x, y) has index ``x + size * y``. A move off
    the grid does nothing. An episode never terminates: it is cut off at the horizon.
    """

    size: int = 5
    """Cells along a side."""
    horizon: int = 15
    """Time limit of an episode, in steps."""

    @property
    def default_params(self) -> GridNaviParams:
        return GridNaviParams(goal=jnp.full(2, self.size - 1, jnp.int32))

    def reset_env(self, key: jax.Array, params: GridNaviParams) -> tuple[jax.Array, Any]:
        return self._observed(jnp.zeros(2, jnp.int32), jnp.zeros((), jnp.int32))

    def step_env(
        self, key: jax.Array, state: GridNaviState, action: jax.Array, params: GridNaviParams
    ) -> tuple[jax.Array, GridNaviState, jax.Array, jax.Array, dict]:
        position = jnp.clip(state.position + jnp.asarray(MOVES)[action], 0, self.size - 1)
        arrived = jnp.all(position == params.goal)
        reward = jnp.where(arrived, GOAL_REWARD, STEP_REWARD).astype(float)
        return *self._observed(position, state.time + 1), reward, jnp.zeros((), bool), {}

    def _observed(self, position: jax.Array, time: jax.Array) -> tuple[jax.Array, GridNaviState]:
        x, y = position
        obs = jax.nn.one_hot(x + self.size * y, self.size**2)
        return obs, GridNaviState(position=position, time=time)

    def is_truncated(self, state: GridNaviState, params: GridNaviParams) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "GridNavi"

    def action_space(self, params: GridNaviParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(len(MOVES))

    def observation_space(self, params: GridNaviParams) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (self.size**2,), jnp.float32)


def goals(size: int) -> np.ndarray:
    """The cells of possible goals, (x, y) in the observation's order, int32 ``[G, 2]``."""
    cells = _cells(size)
    return cells[~_near_start(cells)]


def optimal_action(task: GridNaviParams, obs: jax.Array, *, size: int) -> jax.Array:
    """A step towards the goal, first along x, then along y; on the goal the action is to stay; int32 ``[]``."""
    return towards(task.goal, jnp.argmax(obs), size=size)


def towards(goal: jax.Array, cell: jax.Array, *, size: int) -> jax.Array:
    """The step from the cell of index ``cell []`` towards ``goal [2]``, first along x, then along y; int32 ``[]``."""
    across, along = goal[0] - cell % size, goal[1] - cell // size
    stay, up, right, down, left = range(len(MOVES))
    moves = [across > 0, across < 0, along > 0, along < 0]
    return jnp.select(moves, [right, left, up, down], stay).astype(jnp.int32)


def optimal_return(task: GridNaviParams, *, horizon: int) -> jax.Array:
    """Return of an episode that goes straight to the goal and stays, ``[]``.

    The step that arrives already earns 1, so all steps but ``distance - 1`` earn 1.
    """
    distance = jnp.maximum(jnp.sum(task.goal), 1)  # from the start, where the first step may stay
    there = jnp.maximum(horizon + 1 - distance, 0).astype(float)
    return GOAL_REWARD * there + STEP_REWARD * (horizon - there)


def gridnavi(*, size: int = 5, horizon: int = 15) -> TaskFamily:
    """GridNavi: goals uniform over the cells outside the start's 2×2 block for train and test.

    Out of distribution goals are uniform over the three cells of that block beside the start. They
    are near, but no training goal lies there, so a trained agent has no reason to look.

    Args:
        size: Cells along a side, at least 3.
        horizon: Time limit of an episode, in steps.
    """
    checks.at_least("size", size, START_BLOCK + 1)
    checks.at_least("horizon", horizon, 1)
    cells = _cells(size)
    return TaskFamily(
        name="gridnavi",
        env=GridNavi(size, horizon),
        horizon=horizon,
        train=_sampler(goals(size)),
        test=_sampler(goals(size)),
        out_of_distribution=_sampler(cells[_near_start(cells) & cells.any(axis=1)]),
        optimal_action=functools.partial(optimal_action, size=size),
        optimal_return=functools.partial(optimal_return, horizon=horizon),
    )


def _cells(size: int) -> np.ndarray:
    """Every cell (x, y) in the observation's order, int32 ``[size * size, 2]``."""
    index = np.arange(size**2, dtype=np.int32)
    return np.stack([index % size, index // size], axis=1)


def _near_start(cells: np.ndarray) -> np.ndarray:
    return np.all(cells < START_BLOCK, axis=1)


def _sampler(candidates: np.ndarray) -> Sampler:
    """Uniform over ``candidates [G, 2]``."""

    def sample(key: jax.Array) -> GridNaviParams:
        return GridNaviParams(goal=jax.random.choice(key, jnp.asarray(candidates)))

    return sample
