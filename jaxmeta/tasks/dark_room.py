"""Dark rooms: grids in which the goal, or a key and a door, is felt only by the reward.

Laskin et al. 2023, "In-context reinforcement learning with algorithm distillation", section 4.1:
*Dark Room*, a 9×9 grid, start in the centre, 20 steps; *Dark Key-to-Door*, where a key opens a
door. Lee et al. 2023, "Supervised pretraining can learn in-context reinforcement learning": Dark
Room of 10×10, start in the corner, 100 steps. A share of the goals is held out of training. Actions
are stay, up, right, down and left; a move off the grid does nothing.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks import gridnavi
from jaxmeta.tasks.family import Sampler, TaskFamily

MOVES = gridnavi.MOVES
"""``[A, 2]``, (x, y) of each action: stay, up, right, down, left."""

STARTS = ("centre", "corner")
OBSERVES = ("cell", "coordinates")
TRAIN_SHARE = 0.8
"""The share of the goals, or of the pairs of a key and a door, that are training tasks."""


@struct.dataclass
class DarkRoomParams:
    """The task: the goal's cell, and the cell in which episodes start."""

    goal: jax.Array
    """``[2]``, int32: x and y from the bottom left corner."""
    start: jax.Array
    """``[2]``, int32: x and y; the same in all tasks of train and test."""


@struct.dataclass
class DarkRoomState:
    """The agent's cell and the steps taken."""

    position: jax.Array
    """``[2]``, int32: x and y from the bottom left corner."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class DarkRoom(environment.Environment[Any, Any]):
    """The environment of Dark Room. Environments with equal settings are equal and share compiled programs.

    The cell is observed one-hot, ``[size * size]``; (x, y) has index ``x + size * y``. With ``observes="coordinates"`` x and y
    are observed one-hot, each by itself, ``[2 size]``. Every step that ends on the goal earns 1, every other step 0. An episode never terminates: it is cut off at
    the horizon.
    """

    size: int = 9
    """Cells along a side."""
    horizon: int = 20
    """Time limit of an episode, in steps."""
    observes: str = "cell"
    """One of `OBSERVES`."""

    @property
    def default_params(self) -> DarkRoomParams:
        corner = jnp.full(2, self.size - 1, jnp.int32)
        return DarkRoomParams(goal=corner, start=jnp.zeros(2, jnp.int32))

    def reset_env(self, key: jax.Array, params: DarkRoomParams) -> tuple[jax.Array, Any]:
        state = DarkRoomState(position=params.start, time=jnp.zeros((), jnp.int32))
        return self._seen(state.position), state

    def step_env(
        self, key: jax.Array, state: DarkRoomState, action: jax.Array, params: DarkRoomParams
    ) -> tuple[jax.Array, DarkRoomState, jax.Array, jax.Array, dict]:
        position = _moved(state.position, action, self.size)
        reward = jnp.all(position == params.goal).astype(float)
        state = DarkRoomState(position=position, time=state.time + 1)
        return self._seen(position), state, reward, jnp.zeros((), bool), {}

    def _seen(self, position: jax.Array) -> jax.Array:
        if self.observes == "cell":
            return _seen(position, self.size)
        return jax.nn.one_hot(position, self.size).reshape(-1)

    def is_truncated(self, state: DarkRoomState, params: DarkRoomParams) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "DarkRoom"

    def action_space(self, params: DarkRoomParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(len(MOVES))

    def observation_space(self, params: DarkRoomParams) -> spaces.Box:
        number = self.size**2 if self.observes == "cell" else 2 * self.size
        return spaces.Box(0.0, 1.0, (number,), jnp.float32)


@struct.dataclass
class KeyToDoorParams:
    """The task: the cells of the key and of the door."""

    key: jax.Array
    """``[2]``, int32: x and y of the key from the bottom left corner."""
    door: jax.Array
    """``[2]``, int32: x and y of the door."""


@struct.dataclass
class KeyToDoorState:
    """The agent's cell, whether it holds the key, and the steps taken."""

    position: jax.Array
    """``[2]``, int32: x and y from the bottom left corner."""
    held: jax.Array
    """``[]``, bool: whether the agent holds the key."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class KeyToDoor(environment.Environment[Any, Any]):
    """The environment of Dark Key-to-Door. Environments with equal settings are equal and share compiled programs.

    The cell is observed one-hot, ``[size * size]``; (x, y) has index ``x + size * y``. Whether the
    agent holds the key is not observed. An episode starts in a uniform cell other than the key's.
    The first step that ends on the key earns 1. From then on, that step included, a step that ends
    on the door earns 1 and terminates the episode.
    """

    size: int = 9
    """Cells along a side."""
    horizon: int = 40
    """Time limit of an episode, in steps."""

    @property
    def default_params(self) -> KeyToDoorParams:
        zeros = jnp.zeros(2, jnp.int32)
        return KeyToDoorParams(key=zeros, door=zeros + self.size - 1)

    def reset_env(self, key: jax.Array, params: KeyToDoorParams) -> tuple[jax.Array, Any]:
        taken = params.key[0] + self.size * params.key[1]
        other = jax.random.randint(key, (), 0, self.size**2 - 1, jnp.int32)
        cell = other + (other >= taken)  # the key's cell is left out
        state = KeyToDoorState(
            position=jnp.stack([cell % self.size, cell // self.size]),
            held=jnp.zeros((), bool),
            time=jnp.zeros((), jnp.int32),
        )
        return _seen(state.position, self.size), state

    def step_env(
        self, key: jax.Array, state: KeyToDoorState, action: jax.Array, params: KeyToDoorParams
    ) -> tuple[jax.Array, KeyToDoorState, jax.Array, jax.Array, dict]:
        position = _moved(state.position, action, self.size)
        takes = ~state.held & jnp.all(position == params.key)
        held = state.held | takes
        opens = held & jnp.all(position == params.door)
        state = KeyToDoorState(position=position, held=held, time=state.time + 1)
        return _seen(position, self.size), state, takes.astype(float) + opens, opens, {}

    def is_truncated(self, state: KeyToDoorState, params: KeyToDoorParams) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "KeyToDoor"

    def action_space(self, params: KeyToDoorParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(len(MOVES))

    def observation_space(self, params: KeyToDoorParams) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (self.size**2,), jnp.float32)


def goals(*, size: int = 9, split: Literal["train", "test"], split_seed: int = 0) -> np.ndarray:
    """The goals of a split of `dark_room`, (x, y) in the observation's order, int32 ``[G, 2]``.

    Train and test have no goal in common and together have all cells.
    """
    checks.at_least("size", size, 2)
    checks.choice("split", split, ("train", "test"))
    checks.at_least("split_seed", split_seed, 0)
    return _cells(size)[_part(size**2, split, split_seed)]


def pairs(*, size: int = 9, split: Literal["train", "test"], split_seed: int = 0) -> np.ndarray:
    """The keys and doors of a split of `dark_key_to_door`, int32 ``[P, 2, 2]``: (key, door), (x, y).

    Train and test have no pair in common and together have all pairs of two different cells.
    """
    checks.at_least("size", size, 2)
    checks.choice("split", split, ("train", "test"))
    checks.at_least("split_seed", split_seed, 0)
    first, second = np.nonzero(~np.eye(size**2, dtype=bool))
    part = _part(len(first), split, split_seed)
    cells = _cells(size)
    return np.stack([cells[first[part]], cells[second[part]]], axis=1)


def optimal_action(task: DarkRoomParams, obs: jax.Array, *, size: int) -> jax.Array:
    """A step towards the goal, first along x, then along y; on the goal the action is to stay; int32 ``[]``."""
    return gridnavi.towards(task.goal, cell_of(obs, size=size), size=size)


def cell_of(obs: jax.Array, *, size: int) -> jax.Array:
    """The index ``x + size * y`` of the cell that is observed, of either kind of `OBSERVES`, int32 ``[]``."""
    if obs.shape[-1] == size**2:
        return jnp.argmax(obs).astype(jnp.int32)
    x, y = jnp.argmax(obs.reshape(2, size), axis=1).astype(jnp.int32)
    return x + size * y


def optimal_return(task: DarkRoomParams, *, horizon: int) -> jax.Array:
    """Return of an episode that goes straight to the goal and stays, ``[]``.

    The step that arrives already earns 1, so it is ``horizon + 1 - distance``; where the episode
    starts on the goal, the first step already stays there.
    """
    distance = jnp.maximum(jnp.sum(jnp.abs(task.goal - task.start)), 1)
    return jnp.maximum(horizon + 1 - distance, 0).astype(float)


def key_to_door_optimal_return(task: KeyToDoorParams, *, size: int, horizon: int) -> jax.Array:
    """Expected return of an episode that goes straight to the key and then to the door, ``[]``.

    It is the mean over the starts. It is 2 if the horizon is at least ``4 (size - 1)``, the longest
    way. The policy depends on whether the key is held, so it is no function of the observation.
    """
    cells = jnp.asarray(_cells(size))
    to_key = jnp.sum(jnp.abs(cells - task.key[None]), axis=1)
    to_door = to_key + jnp.sum(jnp.abs(task.key - task.door))
    earned = (to_key <= horizon).astype(float) + (to_door <= horizon)
    return jnp.mean(earned, where=to_key > 0)


def dark_room(
    *,
    size: int = 9,
    horizon: int = 20,
    start: Literal["centre", "corner"] = "centre",
    observes: Literal["cell", "coordinates"] = "cell",
    split_seed: int = 0,
) -> TaskFamily:
    """Dark Room: goals uniform over four fifths of the cells for train, over the other cells for test.

    The defaults are those of algorithm distillation. Those of the decision-pretrained transformer
    are ``size=10, horizon=100, start="corner"``. Out of distribution, goals are uniform over all
    cells and episodes start in a cell, drawn with the task, in which no training episode starts.

    Args:
        size: Cells along a side, at least 2.
        horizon: Time limit of an episode, in steps.
        start: Where an episode starts in train and test: ``"centre"``, the cell (size // 2, size //
            2), or ``"corner"``, the cell (0, 0).
        observes: ``"cell"``, one-hot, in which no cell is like another: what is learned with one goal says nothing of a
            held-out one. ``"coordinates"``, x and y one-hot, each by itself.
        split_seed: Seed of the permutation of the cells that tells training goals from held-out
            ones.
    """
    checks.at_least("size", size, 2 if observes == "cell" else 3)
    checks.at_least("horizon", horizon, 1)
    checks.choice("start", start, STARTS)
    checks.choice("observes", observes, OBSERVES)
    first = np.full(2, size // 2 if start == "centre" else 0, np.int32)
    cells = _cells(size)

    def sampler(candidates: np.ndarray, starts: np.ndarray) -> Sampler:
        def sample(key: jax.Array) -> DarkRoomParams:
            goal_key, start_key = jax.random.split(key)
            return DarkRoomParams(
                goal=jax.random.choice(goal_key, jnp.asarray(candidates)),
                start=jax.random.choice(start_key, jnp.asarray(starts)),
            )

        return sample

    return TaskFamily(
        name="dark_room",
        env=DarkRoom(size, horizon, observes),
        horizon=horizon,
        train=sampler(goals(size=size, split="train", split_seed=split_seed), first[None]),
        test=sampler(goals(size=size, split="test", split_seed=split_seed), first[None]),
        out_of_distribution=sampler(cells, cells[np.any(cells != first, axis=1)]),
        optimal_action=functools.partial(optimal_action, size=size),
        optimal_return=functools.partial(optimal_return, horizon=horizon),
        disjoint=("train", "test", "out_of_distribution"),
    )


def dark_key_to_door(*, size: int = 9, horizon: int = 40, split_seed: int = 0) -> TaskFamily:
    """Dark Key-to-Door: a key's and a door's cell, four fifths of the pairs for train, the others for test.

    The two cells are different. Out of distribution, the key lies in the door's cell, so that one step earns 2 and ends the
    episode.

    Args:
        size: Cells along a side, at least 2.
        horizon: Time limit of an episode, in steps.
        split_seed: Seed of the permutation of the pairs that tells training tasks from held-out
            ones.
    """
    checks.at_least("size", size, 2)
    checks.at_least("horizon", horizon, 1)
    cells = _cells(size)

    def sampler(candidates: np.ndarray) -> Sampler:
        def sample(key: jax.Array) -> KeyToDoorParams:
            chosen = jax.random.choice(key, jnp.asarray(candidates))
            return KeyToDoorParams(key=chosen[0], door=chosen[1])

        return sample

    return TaskFamily(
        name="dark_key_to_door",
        env=KeyToDoor(size, horizon),
        horizon=horizon,
        train=sampler(pairs(size=size, split="train", split_seed=split_seed)),
        test=sampler(pairs(size=size, split="test", split_seed=split_seed)),
        out_of_distribution=sampler(np.stack([cells, cells], axis=1)),
        optimal_return=functools.partial(key_to_door_optimal_return, size=size, horizon=horizon),
        disjoint=("train", "test", "out_of_distribution"),
    )


def _cells(size: int) -> np.ndarray:
    """Every cell (x, y) in the observation's order, int32 ``[size * size, 2]``."""
    index = np.arange(size**2, dtype=np.int32)
    return np.stack([index % size, index // size], axis=1)


def _seen(position: jax.Array, size: int) -> jax.Array:
    """The observation in the cell ``position [2]``, ``[size * size]``."""
    return jax.nn.one_hot(position[0] + size * position[1], size**2)


def _moved(position: jax.Array, action: jax.Array, size: int) -> jax.Array:
    """The cell after an action, ``[2]``."""
    return jnp.clip(position + jnp.asarray(MOVES)[action], 0, size - 1)


def _part(count: int, split: str, split_seed: int) -> np.ndarray:
    """The numbers below ``count`` that belong to a split, sorted."""
    order = np.random.default_rng(split_seed).permutation(count)
    num_train = round(TRAIN_SHARE * count)
    return np.sort(order[:num_train] if split == "train" else order[num_train:])
