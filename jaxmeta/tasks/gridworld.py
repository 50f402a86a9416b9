"""Grid worlds with objects. The reward of an object, and whether it ends the episode, differ by task.

After the tabular grid worlds of Oh et al. 2020, "Discovering reinforcement learning algorithms",
appendix B, but objects do not respawn: entering an object's cell, or staying in it, earns its
reward, and some objects end the episode. An episode starts in any cell.
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
from jaxmeta.tasks.gridnavi import MOVES


@struct.dataclass
class GridWorldParams:
    """The task: the objects in the cells."""

    reward: jax.Array
    """``[C]``, reward of a step that ends in the cell."""
    ends: jax.Array
    """``[C]``, bool: whether a step that ends in the cell ends the episode."""


@struct.dataclass
class GridWorldState:
    """The agent's cell and the steps taken."""

    cell: jax.Array
    """``[]``, int32: the agent's cell."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class GridWorld(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    The cell is observed one-hot, ``[C]`` with ``C = size * size``. A move off the grid does
    nothing.
    """

    size: int = 5
    """Cells along a side."""
    horizon: int = 20
    """Time limit of an episode, in steps."""

    @property
    def default_params(self) -> GridWorldParams:
        num_cells = self.size**2
        goal = jnp.arange(num_cells) == num_cells - 1
        return GridWorldParams(reward=goal.astype(float), ends=goal)

    def reset_env(self, key: jax.Array, params: GridWorldParams) -> tuple[jax.Array, Any]:
        cell = jax.random.randint(key, (), 0, self.size**2, jnp.int32)
        return self._observed(cell, jnp.zeros((), jnp.int32))

    def step_env(
        self, key: jax.Array, state: GridWorldState, action: jax.Array, params: GridWorldParams
    ) -> tuple[jax.Array, GridWorldState, jax.Array, jax.Array, dict]:
        cell = jnp.asarray(successors(self.size))[state.cell, action]
        return *self._observed(cell, state.time + 1), params.reward[cell], params.ends[cell], {}

    def _observed(self, cell: jax.Array, time: jax.Array) -> tuple[jax.Array, GridWorldState]:
        return jax.nn.one_hot(cell, self.size**2), GridWorldState(cell=cell, time=time)

    def is_truncated(self, state: GridWorldState, params: GridWorldParams) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "GridWorld"

    def action_space(self, params: GridWorldParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(len(MOVES))

    def observation_space(self, params: GridWorldParams) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (self.size**2,), jnp.float32)


def successors(size: int) -> np.ndarray:
    """The next cell for each cell and action, int32 ``[C, A]``; (x, y) has index ``x + size * y``."""
    cells = np.arange(size**2, dtype=np.int32)
    position = np.stack([cells % size, cells // size], axis=1)
    x, y = np.moveaxis(np.clip(position[:, None] + MOVES, 0, size - 1), -1, 0)
    return (x + size * y).astype(np.int32)


def optimal_return(task: GridWorldParams, *, size: int, horizon: int) -> jax.Array:
    """Expected return of an episode under the best policy that is told the task, ``[]``, by backward induction.

    That policy depends on the time too, so it is no function of the observation.
    """
    after = jnp.asarray(successors(size))

    def backup(_: int, v: jax.Array) -> jax.Array:
        return jnp.max((task.reward + jnp.where(task.ends, 0.0, v))[after], axis=1)

    return jnp.mean(jax.lax.fori_loop(0, horizon, backup, jnp.zeros_like(task.reward)))


def gridworld(*, size: int = 5, horizon: int = 20, num_objects: int = 4) -> TaskFamily:
    """Grid worlds with objects in distinct uniform cells; each object ends the episode with probability 1/2.

    Rewards are uniform in [-1, 1]. Out of distribution there are twice as many objects.

    Args:
        size: Cells along a side, at least 2.
        horizon: Time limit of an episode, in steps.
        num_objects: Objects in a task, at most half the number of cells.

    Raises:
        ValueError: objects fill more than half of the cells, or a number is out of range.
    """
    checks.at_least("size", size, 2)
    checks.at_least("horizon", horizon, 1)
    checks.at_least("num_objects", num_objects, 1)
    num_cells = size**2
    if 2 * num_objects > num_cells:
        raise ValueError(
            f"num_objects={num_objects} must be at most {num_cells // 2}, half the cells of size={size}"
        )

    def sampler(count: int) -> Sampler:
        def sample(key: jax.Array) -> GridWorldParams:
            cell_key, reward_key, ends_key = jax.random.split(key, 3)
            occupied = jax.random.permutation(cell_key, num_cells) < count
            reward = jax.random.uniform(reward_key, (num_cells,), minval=-1.0, maxval=1.0)
            ends = jax.random.bernoulli(ends_key, shape=(num_cells,))
            return GridWorldParams(reward=jnp.where(occupied, reward, 0.0), ends=occupied & ends)

        return sample

    return TaskFamily(
        name="gridworld",
        env=GridWorld(size, horizon),
        horizon=horizon,
        train=sampler(num_objects),
        test=sampler(num_objects),
        out_of_distribution=sampler(2 * num_objects),
        optimal_return=functools.partial(optimal_return, size=size, horizon=horizon),
    )
