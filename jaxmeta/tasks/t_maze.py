"""The passive T-maze: a cue at the entrance of a corridor tells which way to turn at its end.

Bakker 2002, "Reinforcement learning with long short-term memory"; in the passive form of Ni et al.
2023, "When do transformers shine in RL? Decoupling memory from credit assignment": the agent moves
along the corridor whatever it does, so the family measures nothing but how long an agent remembers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import Sampler, TaskFamily

OUT_OF_DISTRIBUTION_PROBABILITY = 0.9


@struct.dataclass
class TMazeParams:
    """The task: the side to turn to."""

    side: jax.Array
    """``[]``, int32: the side, 0 or 1."""


@struct.dataclass
class TMazeState:
    """The steps taken, which are also the agent's place."""

    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class TMaze(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    Observations are ``[3]``. The first two entries are the side, one-hot, at an episode's first
    step, and zeros later. The third is 1 at the junction, else 0. Actions are the sides. The action
    at the junction terminates the episode and earns 1 if it is the task's side. Earlier actions
    have no effect.
    """

    length: int = 10
    """Steps from the cue to the junction; an episode has one more, the choice."""

    @property
    def default_params(self) -> TMazeParams:
        return TMazeParams(side=jnp.zeros((), jnp.int32))

    def reset_env(self, key: jax.Array, params: TMazeParams) -> tuple[jax.Array, Any]:
        return self._observed(jnp.zeros((), jnp.int32), params)

    def step_env(
        self, key: jax.Array, state: TMazeState, action: jax.Array, params: TMazeParams
    ) -> tuple[jax.Array, TMazeState, jax.Array, jax.Array, dict]:
        chosen = state.time == self.length
        reward = (chosen & (action == params.side)).astype(float)
        return *self._observed(state.time + 1, params), reward, chosen, {}

    def _observed(self, time: jax.Array, params: TMazeParams) -> tuple[jax.Array, TMazeState]:
        cue = jnp.where(time == 0, jax.nn.one_hot(params.side, 2), 0.0)
        junction = (time == self.length).astype(cue.dtype)
        return jnp.append(cue, junction), TMazeState(time=time)

    def is_truncated(self, state: TMazeState, params: TMazeParams) -> jax.Array:
        return jnp.zeros((), bool)

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.length + 1

    @property
    def name(self) -> str:
        return "TMaze"

    def action_space(self, params: TMazeParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(2)

    def observation_space(self, params: TMazeParams) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (3,), jnp.float32)


def optimal_action(task: TMazeParams, obs: jax.Array) -> jax.Array:
    """The task's side, int32 ``[]``; before the junction all actions are equal."""
    return task.side


def optimal_return(task: TMazeParams) -> jax.Array:
    """1, the reward of the right turn, ``[]``; an agent that remembers the cue earns it too."""
    return jnp.ones_like(task.side, float)


def t_maze(*, length: int = 10) -> TaskFamily:
    """The passive T-maze: either side is as likely for train and test.

    There are only these two tasks. Out of distribution the side is 1 with probability 0.9; an agent
    that remembers the cue is not affected. In a later episode of a task the cue is shown again, and
    earlier rewards reveal the side too. So a trial must be one episode to measure memory.

    Args:
        length: Steps from the cue to the junction, at least 1; an episode has ``length + 1`` steps.
    """
    checks.at_least("length", length, 1)

    def sampler(probability: float) -> Sampler:
        def sample(key: jax.Array) -> TMazeParams:
            return TMazeParams(side=jax.random.bernoulli(key, probability).astype(jnp.int32))

        return sample

    return TaskFamily(
        name="t_maze",
        env=TMaze(length),
        horizon=length + 1,
        train=sampler(0.5),
        test=sampler(0.5),
        out_of_distribution=sampler(OUT_OF_DISTRIBUTION_PROBABILITY),
        optimal_action=optimal_action,
        optimal_return=optimal_return,
    )
