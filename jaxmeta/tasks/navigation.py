"""2-D navigation: a point in the plane moves to a hidden goal.

Finn et al. 2017, "Model-agnostic meta-learning", appendix A.2: goals uniform in [-0.5, 0.5]², the
agent starts at the origin, observes its position, moves by an action clipped to ±0.1 per axis and
earns minus the squared distance to the goal; episodes last 100 steps. The released code differs
between versions (squared distance or distance; some end an episode within 0.01 of the goal): both
are settings. `half_circle` is the point robot of Rakelly et al. 2019, "Efficient off-policy
meta-reinforcement learning via probabilistic context variables".
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import Sampler, TaskFamily

MAX_MOVE = 0.1
GOAL_RANGE = 0.5
OUT_OF_DISTRIBUTION_RANGE = 0.8

REWARDS = ("squared_distance", "distance", "sparse", "near")
TRAIN_SHARE = 0.8
"""The share of the goals on the half circle that are training tasks."""


@struct.dataclass
class NavigationParams:
    """The task: the goal's position."""

    goal: jax.Array
    """``[2]``, the goal's position."""


@struct.dataclass
class NavigationState:
    """The agent's position and the steps taken."""

    position: jax.Array
    """``[2]``, the agent's position."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class Navigation(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs."""

    horizon: int = 100
    """Time limit of an episode, in steps."""
    reward: str = "squared_distance"
    """``"squared_distance"`` and ``"distance"`` are minus the (squared) distance to the goal after
    the move; ``"sparse"`` is ``1 - distance / radius`` within ``radius`` of the goal and 0
    elsewhere (the shape of Gupta et al. 2018's sparse point task), so standing on the goal earns
    1; ``"near"`` is ``1 - distance`` within ``radius``, that distance included, and 0 elsewhere
    (Rakelly et al. 2019)."""
    radius: float = 0.2
    """Distance from the goal within which the sparse rewards are positive."""
    goal_tolerance: float = 0.0
    """An episode terminates within this distance of the goal, per axis; with 0 it never does."""

    @property
    def default_params(self) -> NavigationParams:
        return NavigationParams(goal=jnp.zeros(2))

    def reset_env(self, key: jax.Array, params: NavigationParams) -> tuple[jax.Array, Any]:
        state = NavigationState(position=jnp.zeros(2), time=jnp.zeros((), jnp.int32))
        return state.position, state

    def step_env(
        self, key: jax.Array, state: NavigationState, action: jax.Array, params: NavigationParams
    ) -> tuple[jax.Array, NavigationState, jax.Array, jax.Array, dict]:
        position = state.position + jnp.clip(action, -MAX_MOVE, MAX_MOVE)
        offset = position - params.goal
        squared_distance = jnp.sum(offset**2)
        if self.reward == "squared_distance":
            reward = -squared_distance
        elif self.reward == "distance":
            reward = -jnp.sqrt(squared_distance)
        elif self.reward == "near":
            distance = jnp.sqrt(squared_distance)
            reward = jnp.where(distance <= self.radius, 1.0 - distance, 0.0)
        else:
            reward = jnp.maximum(1.0 - jnp.sqrt(squared_distance) / self.radius, 0.0)
        terminated = jnp.all(jnp.abs(offset) < self.goal_tolerance)
        state = NavigationState(position=position, time=state.time + 1)
        return position, state, reward, terminated, {}

    def is_truncated(self, state: NavigationState, params: NavigationParams) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "Navigation"

    def action_space(self, params: NavigationParams | None = None) -> spaces.Box:
        return spaces.Box(-MAX_MOVE, MAX_MOVE, (2,), jnp.float32)

    def observation_space(self, params: NavigationParams) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, (2,), jnp.float32)


def optimal_action(task: NavigationParams, obs: jax.Array) -> jax.Array:
    """The move that ends nearest to the goal, ``[2]``.

    Moves are bounded per axis, and each reward falls with the distance along either axis. So at
    every step and for every reward it is optimal to go as far towards the goal as allowed on each
    axis.
    """
    return jnp.clip(task.goal - obs, -MAX_MOVE, MAX_MOVE)


def dense_reward(
    task: NavigationParams, obs: jax.Array, action: jax.Array, next_obs: jax.Array
) -> jax.Array:
    """Minus the distance to the goal after a move, ``[]``: what ``reward="distance"`` pays.

    Rakelly et al. 2019 train the values of the sparse point robot by it (`algorithms.pearl`).
    """
    del obs, action
    return -jnp.sqrt(jnp.sum((next_obs - task.goal) ** 2))


def navigation(
    *,
    horizon: int = 100,
    reward: Literal["squared_distance", "distance"] = "squared_distance",
    goal_tolerance: float = 0.0,
) -> TaskFamily:
    """Dense 2-D navigation: goals in [-0.5, 0.5]² for train and test.

    Out of distribution goals are in the surrounding frame, up to [-0.8, 0.8]².

    Args:
        horizon: Time limit of an episode, in steps.
        reward: ``"squared_distance"`` (the paper) or ``"distance"``, negated.
        goal_tolerance: End an episode within this distance of the goal per axis (0.01 in one
            release of the paper's code); 0 never ends early. It must be 0 or positive.
    """
    checks.choice("reward", reward, ("squared_distance", "distance"))
    return _family("navigation", Navigation(horizon, reward, goal_tolerance=goal_tolerance))


def sparse_navigation(*, horizon: int = 100, radius: float = 0.2) -> TaskFamily:
    """2-D navigation with a reward only within ``radius`` of the goal; splits as in `navigation`."""
    checks.between("radius", radius, 1e-6, 1e6)
    return _family("sparse_navigation", Navigation(horizon, "sparse", radius))


def half_circle(
    *,
    horizon: int = 20,
    reward: Literal["distance", "sparse"] = "distance",
    radius: float = 0.2,
    num_goals: int = 100,
    split_seed: int = 0,
) -> TaskFamily:
    """The point robot of PEARL: goals on the upper half of the unit circle, four fifths of them for train.

    The other goals are for test. The goals have equal distances along the half circle. The agent
    starts at the centre and moves by at most 0.1 per axis and step. Out of distribution, goals are
    uniform on the lower half of the circle.

    Args:
        horizon: Time limit of an episode, in steps.
        reward: ``"distance"``, negated, or ``"sparse"``: ``1 - distance`` within ``radius`` of the
            goal and 0 elsewhere.
        radius: Distance from the goal within which the sparse reward is paid, positive.
        num_goals: Goals of train and test together, at least 5.
        split_seed: Seed of the permutation of the goals that tells training goals from held-out
            ones.
    """
    checks.choice("reward", reward, ("distance", "sparse"))
    checks.between("radius", radius, 1e-6, 1e6)
    checks.at_least("num_goals", num_goals, 5)
    checks.at_least("split_seed", split_seed, 0)
    order = np.random.default_rng(split_seed).permutation(num_goals)
    angles = np.linspace(0.0, np.pi, num_goals)[order]
    goals = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    num_train = round(TRAIN_SHARE * num_goals)

    def sampler(candidates: np.ndarray) -> Sampler:
        return lambda key: NavigationParams(
            goal=jax.random.choice(key, jnp.asarray(candidates, float))
        )

    def lower_half(key: jax.Array) -> NavigationParams:
        # Neither end, where train and test may have goals.
        angle = -jnp.pi * jax.random.uniform(key, minval=1e-3, maxval=1 - 1e-3)
        return NavigationParams(goal=jnp.stack([jnp.cos(angle), jnp.sin(angle)]))

    env = Navigation(horizon, "near" if reward == "sparse" else reward, radius)
    return dataclasses.replace(
        _family("half_circle", env),
        train=sampler(goals[:num_train]),
        test=sampler(goals[num_train:]),
        out_of_distribution=lower_half,
        disjoint=("train", "test", "out_of_distribution"),
    )


def _family(name: str, env: Navigation) -> TaskFamily:
    checks.at_least("horizon", env.horizon, 1)
    checks.between("goal_tolerance", env.goal_tolerance, 0, 1e6)
    return TaskFamily(
        name=name,
        env=env,
        horizon=env.horizon,
        train=_uniform_goal,
        test=_uniform_goal,
        out_of_distribution=_frame_goal,
        optimal_action=optimal_action,
    )


def _uniform_goal(key: jax.Array) -> NavigationParams:
    return NavigationParams(
        goal=jax.random.uniform(key, (2,), minval=-GOAL_RANGE, maxval=GOAL_RANGE)
    )


def _frame_goal(key: jax.Array) -> NavigationParams:
    """A task with a uniform goal in the larger square outside the training square."""
    far_key, along_key, side_key = jax.random.split(key, 3)
    # The frame is four equal rectangles, each [-a, b] × [a, b] turned by a multiple of 90 degrees.
    far = jax.random.uniform(far_key, minval=GOAL_RANGE, maxval=OUT_OF_DISTRIBUTION_RANGE)
    along = jax.random.uniform(along_key, minval=-GOAL_RANGE, maxval=OUT_OF_DISTRIBUTION_RANGE)
    turns = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    cos, sin = turns[jax.random.randint(side_key, (), 0, 4)]
    return NavigationParams(goal=jnp.stack([cos * far - sin * along, sin * far + cos * along]))
