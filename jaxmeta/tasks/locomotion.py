"""Legged bodies: the direction to run in, the speed, the place to go to, or the body itself differs by task.

The benchmarks of Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep
networks", Rothfuss et al. 2019, "ProMP: proximal meta-policy search", and Zintgraf et al. 2020,
"VariBAD: a very good method for Bayes-adaptive deep RL via meta-learning": half-cheetahs, ants and
walkers of Brax (Freeman et al. 2021, "Brax: a differentiable physics engine for large scale rigid
body simulation"), with the rewards of those papers except the ant's cost of contacts, which Brax
does not measure. The task is never observed; only rewards reveal it.

Each family has an expert for the physics `spring`: a mixture of linear policies that is told the
task (`linear_action`). ``benchmarks/experts.py`` found its weights by augmented random search
(Mania et al. 2018, "Simple random search provides a competitive approach to reinforcement
learning"). No expert is proven optimal.

Needs Brax: ``pip install "jaxmeta[brax]"``.
"""

import contextlib
import copy
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import Controller, Sampler, TaskFamily
from jaxmeta.types import Task

Backend = Literal["spring", "generalized"]
"""Brax's physics. `generalized` has rigid joints, like MuJoCo. `spring` holds links together by
stiff springs; it compiles and runs several times as fast on a CPU. A policy for one does not work
in the other."""

FASTEST, FASTER = 2.0, 3.0
"""Upper ends of target speeds, in metres per second: for train and test, and out of
distribution."""

FARTHEST, FARTHER = 3.0, 4.5
"""Largest distances of goals, in metres: for train and test, and out of distribution."""

OUT_OF_DISTRIBUTION_PROBABILITY = 0.9

NUM_WALKER_LINKS = 7

EXPERTS = Path(__file__).parent / "experts"
"""Folder of the experts' weights, with a file for each family."""


@struct.dataclass
class Direction:
    """The task: the direction to run in along the track."""

    direction: jax.Array
    """``[]``, 1 is forward, -1 is backward."""


@struct.dataclass
class Velocity:
    """The task: the speed to run at."""

    velocity: jax.Array
    """``[]``, metres per second."""


@struct.dataclass
class Heading:
    """The task: the direction to run in across the plane."""

    heading: jax.Array
    """``[2]``, a vector of length 1."""


@struct.dataclass
class Goal:
    """The task: the place to go to."""

    goal: jax.Array
    """``[2]``, position relative to the start, in metres."""


@struct.dataclass
class WalkerBody:
    """The task: factors on the standard walker's physics."""

    mass: jax.Array
    """``[7]``, factors on each link's mass and moment of inertia."""
    friction: jax.Array
    """``[]``, factor on all friction."""


class Motion(NamedTuple):
    """The torso's motion in one step, in the plane."""

    position: jax.Array
    """``[2]``, position after the step, in metres."""
    velocity: jax.Array
    """``[2]``, mean velocity, in metres per second."""


class View(NamedTuple):
    """Inputs of an expert's linear policies, computed from task and observation."""

    mixture: jax.Array
    """``[K]``, weights of the linear policies."""
    obs: jax.Array
    """``[O]``, observation of the linear policies."""
    turn: jax.Array | None = None
    """``[A, A]``, map from their output to actions; None is the identity."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """The settings in which the families differ."""

    body: str
    """Brax's name of the body."""
    task: Callable[[], Any]
    """Makes the default task."""
    earned: Callable[[Any, Motion], jax.Array]
    """``(task, motion) -> reward``, without the two terms below."""
    view: Callable[[Any, jax.Array], View]
    """``(task, obs) -> View``, see `linear_action`."""
    control_cost: float
    """Cost of a step, times the sum of the squared actions."""
    alive: float = 0.0
    """Reward of every step."""
    falls: bool = False
    """Whether a fall ends the episode."""
    sees_position: bool = False
    """Whether the torso's position is observed."""
    altered: Callable[[Any, Any], Any] | None = None
    """``(system, task) -> system``, the task's own physics."""


@struct.dataclass
class LocomotionState:
    """Brax's state of the body, and the steps taken."""

    body: Any
    """Brax's state of the body."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class Locomotion(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    Observations are Brax's: joint positions and velocities, ``[O]``. Actions are torques in [-1,
    1], ``[A]``; actions outside are clipped, and the cost is of the clipped action. An episode
    starts near the standing pose.
    """

    kind: Kind
    """The body and its reward."""
    backend: Backend = "spring"
    """Brax's physics, see `Backend`."""
    horizon: int = 200
    """Time limit of an episode, in steps."""

    @property
    def default_params(self) -> Any:
        return self.kind.task()

    def reset_env(self, key: jax.Array, params: Task) -> tuple[jax.Array, LocomotionState]:
        with _brax_at_work():
            start = self._body(params).reset(key)
        return start.obs, LocomotionState(start.pipeline_state, jnp.zeros((), jnp.int32))

    def step_env(
        self, key: jax.Array, state: LocomotionState, action: jax.Array, params: Task
    ) -> tuple[jax.Array, LocomotionState, jax.Array, jax.Array, dict]:
        action = jnp.clip(action, -1.0, 1.0)
        body = self._body(params)
        none = jnp.zeros(())
        with _brax_at_work():
            after = body.step(_brax().State(state.body, none, none, none), action)
        position, before = after.pipeline_state.x.pos[0, :2], state.body.x.pos[0, :2]
        motion = Motion(position, (position - before) / body.dt)
        cost = self.kind.control_cost * jnp.sum(action**2)
        reward = self.kind.earned(params, motion) + self.kind.alive - cost
        terminated = (after.done > 0) if self.kind.falls else jnp.zeros((), bool)
        return (
            after.obs,
            LocomotionState(after.pipeline_state, state.time + 1),
            reward,
            terminated,
            {},
        )

    def is_truncated(self, state: LocomotionState, params: Task) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "Locomotion"

    def action_space(self, params: Task | None = None) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (self._standard_body().action_size,), jnp.float32)

    def observation_space(self, params: Task) -> spaces.Box:
        obs, _ = jax.eval_shape(self.reset_env, jax.random.key(0), params)
        return spaces.Box(-math.inf, math.inf, obs.shape, jnp.float32)

    def _standard_body(self) -> Any:
        return _brax_environment(self.kind.body, self.backend, self.kind.sees_position)

    def _body(self, task: Task) -> Any:
        body = self._standard_body()
        if self.kind.altered is not None:
            body = copy.copy(body)
            body.sys = self.kind.altered(body.sys, task)
        return body


@contextlib.contextmanager
def _brax_at_work() -> Iterator[None]:
    """A context for Brax's code, which broadcasts over missing axes and warns of its own deprecated code."""
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Brax System, piplines and environments", UserWarning)
        yield


def _brax() -> Any:
    try:
        with _brax_at_work():
            from brax import envs
    except ImportError as error:
        raise checks.missing("brax", "brax") from error
    return envs


@functools.cache
def _brax_environment(body: str, backend: Backend, sees_position: bool) -> Any:
    """Brax's environment; its arrays are concrete even if a trace makes it first."""
    envs = _brax()
    import mujoco

    # MuJoCo reads the body's description and would write warnings to a file in the working
    # directory.
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with _brax_at_work(), jax.ensure_compile_time_eval():
            return envs.get_environment(
                body, backend=backend, exclude_current_positions_from_observation=not sees_position
            )
    finally:
        mujoco.set_mju_user_warning(None)


def _with_physics(system: Any, task: WalkerBody) -> Any:
    """The walker's system with masses, moments of inertia and friction multiplied."""
    inertia = system.link.inertia
    return system.replace(
        link=system.link.replace(
            inertia=inertia.replace(
                mass=inertia.mass * task.mass, i=inertia.i * task.mass[:, None, None]
            )
        ),
        geom_friction=system.geom_friction * task.friction,
    )


@functools.cache
def _quarter_turns() -> tuple[np.ndarray, np.ndarray]:
    """Maps ``([4, 29, 29], [4, 8, 8])`` of the ant's observation and action for 0 to 3 counter-clockwise quarter turns.

    After a quarter turn each leg stands in the place of the next one, so the turned ant is the old
    one with its joints renamed. The ankles of neighbouring legs bend about opposite axes.
    """
    legs = np.kron(np.roll(np.eye(4), 1, axis=0), np.eye(2))  # each of a hip and an ankle
    joints = np.diag([1, 1, 1, -1, 1, 1, 1, -1]) @ legs
    vector = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    # Position and the quaternion's scalar, its vector, joints; velocities of all three.
    seen = scipy.linalg.block_diag(vector, 1, vector, joints, vector, vector, joints)
    motors = np.roll(joints, 2, axis=(0, 1))  # Brax lists the last leg's first
    turned = (
        np.stack([np.linalg.matrix_power(turn, k) for k in range(4)]) for turn in (seen, motors)
    )
    return next(turned), next(turned)


def _ant_view(direction: jax.Array, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``obs [29]`` of the ant turned so that the axis nearest to ``direction [2]`` is x, and its `View.turn`."""
    seen, motors = (jnp.asarray(turns, float) for turns in _quarter_turns())
    angle = jnp.arctan2(direction[1], direction[0])
    turns = jnp.round(angle / (math.pi / 2)).astype(int)
    return seen[-turns % 4] @ obs, motors[turns % 4]


def _view_of_heading(task: Heading, obs: jax.Array) -> View:
    """The view of one policy that runs along x."""
    seen, turn = _ant_view(task.heading, jnp.concatenate([jnp.zeros(2), obs]))
    return View(jnp.ones(1), seen[2:], turn)


def _view_of_goal(task: Goal, obs: jax.Array) -> View:
    """The view of two policies, to go and to stay; instead of the position they see the way to the goal, up to 1 metre."""
    left = task.goal - obs[:2]
    seen, turn = _ant_view(left, obs.at[:2].set(left))
    near = jnp.clip(seen[:2], -1.0, 1.0)
    return View(jnp.stack([near[0], 1.0 - near[0]]), seen.at[:2].set(near), turn)


HALF_CHEETAH_DIRECTION = Kind(
    body="halfcheetah",
    task=lambda: Direction(jnp.ones(())),
    earned=lambda task, motion: task.direction * motion.velocity[0],
    view=lambda task, obs: View(jnp.stack([task.direction > 0, task.direction < 0]), obs),
    control_cost=0.05,
)

HALF_CHEETAH_VELOCITY = Kind(
    body="halfcheetah",
    task=lambda: Velocity(jnp.ones(())),
    earned=lambda task, motion: -jnp.abs(motion.velocity[0] - task.velocity),
    view=lambda task, obs: View(jnp.stack([jnp.ones(()), task.velocity - FASTEST / 2]), obs),
    control_cost=0.05,
)

ANT_DIRECTION = Kind(
    body="ant",
    task=lambda: Heading(jnp.array([1.0, 0.0])),
    earned=lambda task, motion: jnp.sum(task.heading * motion.velocity),
    view=_view_of_heading,
    control_cost=0.5,
    alive=1.0,
    falls=True,
)

ANT_GOAL = Kind(
    body="ant",
    task=lambda: Goal(jnp.array([FARTHEST, 0.0])),
    earned=lambda task, motion: -jnp.sum(jnp.abs(motion.position - task.goal)),
    view=_view_of_goal,
    control_cost=0.1,
    sees_position=True,
)

WALKER_PARAMS = Kind(
    body="walker2d",
    task=lambda: WalkerBody(mass=jnp.ones(NUM_WALKER_LINKS), friction=jnp.ones(())),
    earned=lambda task, motion: motion.velocity[0],
    view=lambda task, obs: View(jnp.ones(1), obs),
    control_cost=1e-3,
    alive=1.0,
    falls=True,
    altered=_with_physics,
)


def linear_action(weights: jax.Array, task: Task, obs: jax.Array, *, kind: Kind) -> jax.Array:
    """A mixture of K linear policies, ``clip(Σ_k c_k (W_k o + b_k))``, ``[A]``.

    Args:
        weights: ``[K, A, O + 1]``, the last column is b.
        task: The task, on which the mixture c depends.
        obs: ``[O]``.
        kind: The settings with the `View`.
    """
    view = kind.view(task, obs)
    action = jnp.einsum("k,kao,o->a", view.mixture, weights, jnp.append(view.obs, 1.0))
    if view.turn is not None:
        action = view.turn @ action
    return jnp.clip(action, -1.0, 1.0)


def _expert(name: str, kind: Kind, backend: Backend) -> Controller | None:
    """The expert with the shipped weights; None for the physics without weights."""
    if backend != "spring":
        return None
    weights = np.load(EXPERTS / f"{name}.npy")
    return lambda task, obs: linear_action(weights, task, obs, kind=kind)


def _family(
    name: str,
    kind: Kind,
    train: Sampler,
    out_of_distribution: Sampler,
    *,
    horizon: int,
    backend: Backend,
) -> TaskFamily:
    checks.at_least("horizon", horizon, 1)
    checks.choice("backend", backend, ("spring", "generalized"))
    _brax()
    return TaskFamily(
        name=name,
        env=Locomotion(kind, backend, horizon),
        horizon=horizon,
        train=train,
        test=train,
        out_of_distribution=out_of_distribution,
        expert_action=_expert(name, kind, backend),
    )


def half_cheetah_direction(*, horizon: int = 200, backend: Backend = "spring") -> TaskFamily:
    """The half-cheetah must run forward or backward, with equal probabilities for train and test.

    A step earns the velocity in that direction, in metres per second, minus 0.05 times the sum of
    the squared actions. There are only these two tasks. Out of distribution the direction is
    forward with probability 0.9. The expert has a linear policy for each direction.

    Args:
        horizon: Time limit of an episode, in steps of 0.05 seconds.
        backend: Brax's physics, see `Backend`.
    """

    def sampler(probability: float) -> Sampler:
        def sample(key: jax.Array) -> Direction:
            forward = jax.random.bernoulli(key, probability)
            return Direction(jnp.where(forward, 1.0, -1.0).astype(float))

        return sample

    return _family(
        "half_cheetah_direction",
        HALF_CHEETAH_DIRECTION,
        sampler(0.5),
        sampler(OUT_OF_DISTRIBUTION_PROBABILITY),
        horizon=horizon,
        backend=backend,
    )


def half_cheetah_velocity(*, horizon: int = 200, backend: Backend = "spring") -> TaskFamily:
    """The half-cheetah must run at a given speed, uniform in [0, 2] metres per second for train and test.

    A step earns minus the difference from that speed, minus 0.05 times the sum of the squared
    actions. Out of distribution the speed is uniform in [2, 3]. The expert's weights are linear in
    the speed.

    Args:
        horizon: Time limit of an episode, in steps of 0.05 seconds.
        backend: Brax's physics, see `Backend`.
    """

    def sampler(low: float, high: float) -> Sampler:
        return lambda key: Velocity(jax.random.uniform(key, minval=low, maxval=high))

    return _family(
        "half_cheetah_velocity",
        HALF_CHEETAH_VELOCITY,
        sampler(0.0, FASTEST),
        sampler(FASTEST, FASTER),
        horizon=horizon,
        backend=backend,
    )


def ant_direction(*, horizon: int = 200, backend: Backend = "spring") -> TaskFamily:
    """The ant must run forward or backward, with equal probabilities for train and test.

    A step earns 1 plus the velocity in that direction, in metres per second, minus 0.5 times the
    sum of the squared actions. A fall ends the episode. Out of distribution the direction is
    uniform over the circle. The expert is one linear policy that runs along x, for the ant turned
    as in `ant_goal`.

    Args:
        horizon: Time limit of an episode, in steps of 0.05 seconds.
        backend: Brax's physics, see `Backend`.
    """

    def along(key: jax.Array) -> Heading:
        return Heading(jnp.stack([jax.random.rademacher(key, (), float), jnp.zeros(())]))

    def anywhere(key: jax.Array) -> Heading:
        angle = jax.random.uniform(key, maxval=2 * math.pi)
        return Heading(jnp.stack([jnp.cos(angle), jnp.sin(angle)]))

    return _family(
        "ant_direction", ANT_DIRECTION, along, anywhere, horizon=horizon, backend=backend
    )


def ant_goal(*, horizon: int = 200, backend: Backend = "spring") -> TaskFamily:
    """The ant must go to a place, uniform within 3 metres of its start for train and test.

    A step earns minus the distance to the goal (along x plus along y, in metres) minus 0.1 times
    the sum of the squared actions. Only the horizon ends an episode. The ant's position is
    observed. Out of distribution places are uniform between 3 and 4.5 metres from the start. The
    expert mixes two linear policies: one goes, and one stays, with more weight near the goal. The
    ant has four legs, so it is turned by quarter turns until x is the axis nearest to the goal's
    direction.

    Args:
        horizon: Time limit of an episode, in steps of 0.05 seconds.
        backend: Brax's physics, see `Backend`.
    """

    def sampler(nearest: float, farthest: float) -> Sampler:
        def sample(key: jax.Array) -> Goal:
            distance_key, angle_key = jax.random.split(key)
            square = jax.random.uniform(distance_key, minval=nearest**2, maxval=farthest**2)
            angle = jax.random.uniform(angle_key, maxval=2 * math.pi)
            return Goal(jnp.sqrt(square) * jnp.stack([jnp.cos(angle), jnp.sin(angle)]))

        return sample

    return _family(
        "ant_goal",
        ANT_GOAL,
        sampler(0.0, FARTHEST),
        sampler(FARTHEST, FARTHER),
        horizon=horizon,
        backend=backend,
    )


def walker_params(
    *, horizon: int = 200, scale: float = 2.0, backend: Backend = "spring"
) -> TaskFamily:
    """The walker must run forward; its links' masses and the friction are drawn per task.

    A step earns 1 plus the forward velocity, in metres per second, minus 0.001 times the sum of the
    squared actions. A fall ends the episode. Each link has a factor on its mass and moment of
    inertia (which is 1 for all links in `spring`), and friction has one: log-uniform in [1/scale,
    scale] for train and test. Out of distribution every factor lies outside that range, on either
    side, by up to a factor of sqrt(scale). The expert is one linear policy for all bodies.

    Args:
        horizon: Time limit of an episode, in steps of 0.008 seconds.
        scale: Scale of the factors, above 1. Rothfuss et al. 2019 use 1.5³, at which the most
            uneven bodies become NaN in `generalized`.
        backend: Brax's physics, see `Backend`.

    Raises:
        ValueError: ``scale`` is not above 1.
        ImportError: Brax is not installed.
    """
    checks.between("scale", scale, 1, 1e6)
    if scale == 1:
        raise ValueError(f"scale={scale} must be above 1 (1 is the one standard walker)")
    log_scale = math.log(scale)

    def within(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (NUM_WALKER_LINKS + 1,), minval=-log_scale, maxval=log_scale)

    def outside(key: jax.Array) -> jax.Array:
        size_key, sign_key = jax.random.split(key)
        shape = (NUM_WALKER_LINKS + 1,)
        size = jax.random.uniform(size_key, shape, minval=log_scale, maxval=1.5 * log_scale)
        return size * jax.random.rademacher(sign_key, shape, size.dtype)

    def sampler(log_factors: Callable[[jax.Array], jax.Array]) -> Sampler:
        def sample(key: jax.Array) -> WalkerBody:
            factors = jnp.exp(log_factors(key))
            return WalkerBody(mass=factors[:-1], friction=factors[-1])

        return sample

    return _family(
        "walker_params",
        WALKER_PARAMS,
        sampler(within),
        sampler(outside),
        horizon=horizon,
        backend=backend,
    )
