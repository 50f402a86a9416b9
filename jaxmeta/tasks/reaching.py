"""Reaching for a hidden goal: an arm and a swimmer, after gymnax's Reacher and Swimmer.

Both move by forces without friction, and the reward grows as they come near the goal, so rewards
alone tell where it is. gymnax draws the goal in every episode and shows it; here the goal is part
of the task. Actions are clipped to their range, which gymnax does not do.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks import transform
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.transform import TransformedParams, Wrapper

REACH = 1.5
"""The largest distance of a training goal from the arm's shoulder; the arm has length 2."""

GOAL_RANGE = 1.0
OUT_OF_DISTRIBUTION_RANGE = 1.5
"""Range of the swimmer's goals out of distribution, per axis; `GOAL_RANGE` is for train and
test."""


@dataclasses.dataclass(frozen=True)
class Arm(Wrapper):
    """gymnax's Reacher with actions clipped, and without the goal, the last two entries of its observation."""

    goal_visible: bool
    """Keep the goal in the observation."""

    def act(self, action: jax.Array, params: Any) -> jax.Array:
        return jnp.clip(action, -1.0, 1.0)

    def see(self, obs: jax.Array, params: Any) -> jax.Array:
        return obs if self.goal_visible else obs[:-2]

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, (8 if self.goal_visible else 6,), jnp.float32)


def reach(task: TransformedParams, obs: jax.Array) -> jax.Array:
    """The arm's expert, ``[2]``: turns both joints to the angles at which the hand is at the goal.

    Angles are measured from the x-axis, so the hand is at the sum of two unit vectors that lean to
    either side of the goal's direction. Of the two solutions the expert takes the one that needs
    less turning.
    """
    angle = jnp.arctan2(obs[2:4], obs[:2])
    x, y = task.drawn["goal_xy"]
    lean = jnp.arccos(jnp.minimum(jnp.hypot(x, y) / 2, 1.0)) * jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    ways = jnp.arctan2(y, x) + lean - angle[None]
    ways = (ways + jnp.pi) % (2 * jnp.pi) - jnp.pi
    turn = ways[jnp.argmin(jnp.max(jnp.abs(ways), axis=1))]
    return arrive(turn, obs[4:6], task.inner.torque_scale, task.inner.dt)


def arrive(
    distance: jax.Array, velocity: jax.Array, strength: jax.Array, dt: jax.Array | float
) -> jax.Array:
    """The action in [-1, 1] that covers ``distance`` quickly and stops there, elementwise ``[...]``.

    The target speed is the fastest that can still be braked at 0.8 of ``strength``, the
    acceleration of an action of 1. Near the end the target speed is proportional to the distance.
    """
    braking = jnp.sqrt(1.6 * strength * jnp.abs(distance))
    speed = jnp.minimum(braking, jnp.abs(distance) / (3 * dt))
    return jnp.clip((jnp.sign(distance) * speed - velocity) / (strength * dt), -1.0, 1.0)


def reacher(*, horizon: int = 100, goal_visible: bool = False, scale: float = 1.0) -> TaskFamily:
    """Reacher: an arm with two joints turned by torques; goals lie within 1.5 of its shoulder.

    Goals are uniform over that disc for train and test, and over the ring around it, as far as the
    arm reaches, out of distribution. A step earns exp(-squared distance). An episode starts with
    random angles and velocities.

    Args:
        horizon: Time limit of an episode, in steps.
        goal_visible: Show the goal.
        scale: The torque's scale and a step's time are multiplied by factors, log-uniform in ``[1 /
            scale, scale]`` and just outside that range out of distribution; 1 changes neither.
    """
    _check_scale(scale)

    def ring(least: float, most: float) -> Callable[[jax.Array], dict[str, jax.Array]]:
        def draw(key: jax.Array) -> dict[str, jax.Array]:
            distance_key, direction_key = jax.random.split(key)
            squared = jax.random.uniform(distance_key, minval=least**2, maxval=most**2)
            direction = jax.random.uniform(direction_key, maxval=2 * jnp.pi)
            unit = jnp.stack([jnp.cos(direction), jnp.sin(direction)])
            return {"goal_xy": jnp.sqrt(squared) * unit}

        return draw

    family = transform.from_gymnax("Reacher-misc", horizon=horizon)
    family = dataclasses.replace(family, env=Arm(family.env, goal_visible))
    if scale > 1:
        standard = family.env.default_params
        ranges = {
            field: (getattr(standard, field) / scale, getattr(standard, field) * scale)
            for field in ("torque_scale", "dt")
        }
        family = transform.drawn_parameters(family, ranges)
    family = transform.pinned(family, "goal_xy", inside=ring(0.0, REACH), outside=ring(REACH, 2.0))
    return dataclasses.replace(family, name="reacher", expert_action=reach)


@struct.dataclass
class SwimmerParams:
    """The task: the goal, the urchins and the swimmer's strength."""

    goal: jax.Array
    """``[2]``, the goal's position."""
    urchins: jax.Array
    """``[U, 2]``, positions of the urchins."""
    strength: jax.Array
    """``[]``, the acceleration of an action of 1."""


@struct.dataclass
class SwimmerState:
    """The swimmer's position and velocity, and the steps taken."""

    position: jax.Array
    """``[2]``, the swimmer's position."""
    velocity: jax.Array
    """``[2]``, the swimmer's velocity."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class Swimmer(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    Observations are the urchins' positions, the swimmer's position and velocity and, if visible,
    the goal, ``[2 U + 4]`` or ``[2 U + 6]``. A step earns exp(-squared distance / 2) by its
    distance from the goal; near an urchin the reward falls to 0. An episode starts at rest,
    uniformly in [-1, 1]².
    """

    horizon: int = 200
    """Time limit of an episode, in steps."""
    num_urchins: int = 5
    """U."""
    goal_visible: bool = False
    """Show the goal."""
    dt: float = 0.05
    """Time of a step."""

    @property
    def default_params(self) -> SwimmerParams:
        return SwimmerParams(
            goal=jnp.zeros(2), urchins=jnp.ones((self.num_urchins, 2)), strength=jnp.ones(())
        )

    def reset_env(self, key: jax.Array, params: SwimmerParams) -> tuple[jax.Array, SwimmerState]:
        position = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return self._observed(position, jnp.zeros(2), jnp.zeros((), jnp.int32), params)

    def step_env(
        self, key: jax.Array, state: SwimmerState, action: jax.Array, params: SwimmerParams
    ) -> tuple[jax.Array, SwimmerState, jax.Array, jax.Array, dict]:
        velocity = state.velocity + self.dt * params.strength * jnp.clip(action, -1.0, 1.0)
        position = state.position + self.dt * velocity
        reward = swimmer_reward(position, params)
        obs, state = self._observed(position, velocity, state.time + 1, params)
        return obs, state, reward, jnp.zeros((), bool), {}

    def _observed(
        self, position: jax.Array, velocity: jax.Array, time: jax.Array, params: SwimmerParams
    ) -> tuple[jax.Array, SwimmerState]:
        seen = [params.urchins.reshape(-1), position, velocity]
        obs = jnp.concatenate([*seen, params.goal] if self.goal_visible else seen)
        return obs, SwimmerState(position=position, velocity=velocity, time=time)

    def is_truncated(self, state: SwimmerState, params: SwimmerParams) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "Swimmer"

    def action_space(self, params: SwimmerParams | None = None) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (2,), jnp.float32)

    def observation_space(self, params: SwimmerParams | None = None) -> spaces.Box:
        size = 2 * self.num_urchins + (6 if self.goal_visible else 4)
        return spaces.Box(-jnp.inf, jnp.inf, (size,), jnp.float32)


def swimmer_reward(position: jax.Array, task: SwimmerParams) -> jax.Array:
    """The reward ``[]`` at ``position [2]``, in [0, 1]."""
    near_goal = jnp.exp(-0.5 * jnp.sum((position - task.goal) ** 2))
    stings = jnp.exp(-30 * jnp.sum((position[None] - task.urchins) ** 2, axis=1))
    return near_goal * jnp.prod(1 - stings)


def swim(task: SwimmerParams, obs: jax.Array, *, dt: float) -> jax.Array:
    """The swimmer's expert, ``[2]``: swims straight to the place near the goal with the highest reward."""
    offsets = jnp.linspace(-0.4, 0.4, 17)
    places = jnp.stack(jnp.meshgrid(offsets, offsets), axis=-1).reshape(-1, 2) + task.goal[None]
    best = places[jnp.argmax(jax.vmap(swimmer_reward, (0, None))(places, task))]
    start = 2 * task.urchins.shape[0]
    position, velocity = obs[start : start + 2], obs[start + 2 : start + 4]
    return arrive(best - position, velocity, task.strength, dt)


def swimmer(
    *,
    horizon: int = 200,
    num_urchins: int = 5,
    goal_visible: bool = False,
    scale: float = 1.0,
) -> TaskFamily:
    """Swimmer: forces push a body through the plane, past visible urchins, to a hidden goal.

    Goals and urchins are uniform in [-1, 1]² for train and test. Out of distribution goals lie in
    the surrounding frame, up to [-1.5, 1.5]².

    Args:
        horizon: Time limit of an episode, in steps.
        num_urchins: Number of urchins, at least 1.
        goal_visible: Show the goal.
        scale: The swimmer's strength is log-uniform in ``[1 / scale, scale]`` and just outside that
            range out of distribution; 1 makes all swimmers equal.
    """
    checks.at_least("horizon", horizon, 1)
    checks.at_least("num_urchins", num_urchins, 1)
    _check_scale(scale)
    env = Swimmer(horizon, num_urchins, goal_visible)

    def sampler(split: str) -> Callable[[jax.Array], SwimmerParams]:
        def sample(key: jax.Array) -> SwimmerParams:
            goal_key, urchin_key, strength_key = jax.random.split(key, 3)
            urchins = jax.random.uniform(urchin_key, (num_urchins, 2), minval=-1.0, maxval=1.0)
            strength = transform.factor(strength_key, scale, split)
            return SwimmerParams(_goal(goal_key, split), urchins, strength)

        return sample

    return TaskFamily(
        name="swimmer",
        env=env,
        horizon=horizon,
        train=sampler("train"),
        test=sampler("test"),
        out_of_distribution=sampler("out_of_distribution"),
        expert_action=lambda task, obs: swim(task, obs, dt=env.dt),
    )


def _goal(key: jax.Array, split: str) -> jax.Array:
    if split != "out_of_distribution":
        return jax.random.uniform(key, (2,), minval=-GOAL_RANGE, maxval=GOAL_RANGE)
    far_key, along_key, turn_key = jax.random.split(key, 3)
    far = jax.random.uniform(far_key, minval=GOAL_RANGE, maxval=OUT_OF_DISTRIBUTION_RANGE)
    along = jax.random.uniform(along_key, minval=-GOAL_RANGE, maxval=OUT_OF_DISTRIBUTION_RANGE)
    # The frame is four equal rectangles, each turned by a right angle.
    turns = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    cos, sin = turns[jax.random.randint(turn_key, (), 0, 4)]
    return jnp.stack([cos * far - sin * along, sin * far + cos * along])


def _check_scale(scale: float) -> None:
    checks.between("scale", scale, 1, 1e6)  # 1 makes all bodies equal
