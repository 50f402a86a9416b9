"""Classic control with the physics drawn per task: gymnax's CartPole, Pendulum, MountainCar, Acrobot.

A task multiplies chosen physical constants by independent factors, log-uniform in [1/scale, scale]
for train and test. Out of distribution every factor lies outside that range, on either side of it,
up to a factor of sqrt(scale) further. The dynamics are gymnax's; tests compare CartPole and
Pendulum with gymnasium.

Each family has an ``expert_action``: a short classical controller that is told the task. No expert
is proven optimal, but CartPole's reaches the horizon, which is the maximum, in all but the hardest
tasks.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import gymnax
import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.tasks.derived import with_derived
from jaxmeta.tasks.family import Controller, Parameters, TaskFamily


@functools.cache
def _environment(name: str) -> Any:
    """The environment of a name, made once: gymnax environments hash by identity, so a new one would compile again."""
    return gymnax.make(name)[0]


def _factors(key: jax.Array, fields: tuple[str, ...], scale: float, outside: bool) -> jax.Array:
    """One factor per field, ``[F]``: log-uniform in [1/scale, scale] or just outside."""
    size_key, sign_key = jax.random.split(key)
    shape, log_scale = (len(fields),), math.log(scale)
    if outside:
        size = jax.random.uniform(size_key, shape, minval=log_scale, maxval=1.5 * log_scale)
        return jnp.exp(size * jax.random.rademacher(sign_key, shape, size.dtype))
    return jnp.exp(jax.random.uniform(size_key, shape, minval=-log_scale, maxval=log_scale))


def _family(
    name: str,
    env_name: str,
    fields: tuple[str, ...],
    *,
    expert_action: Controller,
    horizon: int,
    scale: float,
) -> TaskFamily:
    checks.at_least("horizon", horizon, 1)
    checks.between("scale", scale, 1, 1e6)  # 1 is the one standard task
    env = _environment(env_name)
    defaults = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.asarray(x).dtype),
        env.default_params.replace(max_steps_in_episode=horizon),
    )

    def made(factors: jax.Array) -> Any:
        drawn = {field: getattr(defaults, field) * factors[i] for i, field in enumerate(fields)}
        return with_derived(defaults.replace(**drawn), fields)

    def sampler(outside: bool) -> Callable[[jax.Array], Any]:
        return lambda key: made(_factors(key, fields, scale, outside))

    def inside(x: jax.Array) -> Any:
        return made(jnp.exp((2 * x - 1) * math.log(scale)))

    return TaskFamily(
        name=name,
        env=env,
        horizon=horizon,
        train=sampler(False),
        test=sampler(False),
        out_of_distribution=sampler(True),
        expert_action=expert_action,
        parameters=Parameters(len(fields), inside),
    )


def balance(task: Any, obs: jax.Array) -> jax.Array:
    """Expert of CartPole: pushes to the side where the pole will fall, and leans it slightly to the middle of the track.

    ``obs [4] -> action []``: the sign of a linear feedback. The unit of time is sqrt(length /
    gravity) of the pole.
    """
    x, x_dot, theta, theta_dot = obs
    time = jnp.sqrt(task.length / task.gravity)
    fall = theta + time * theta_dot
    drift = (x + 2 * time * x_dot) / task.length
    return (fall + 0.02 * drift > 0).astype(jnp.int32)


def swing_up(task: Any, obs: jax.Array) -> jax.Array:
    """Expert of Pendulum, ``[1]``: pumps energy up to the energy of standing upright; near the top, linear feedback.

    Energy shaping after Åström and Furuta 2000, "Swinging up a pendulum by energy control". Near
    the top the closed loop is critically damped at the rate sqrt(3 g / 2 l), at which the free rod
    falls. In about a sixth of the tasks out of distribution (large gravity, short rod) the speed
    limit keeps the top out of reach, and the rod swings on below.
    """
    cos, sin, theta_dot = obs
    fall = 1.5 * task.g / task.l  # upright, acceleration = fall * theta + torque / inertia
    inertia = task.m * task.l**2 / 3
    energy = theta_dot**2 / 2 + fall * (cos - 1)  # per inertia; 0 standing upright
    swing = jnp.where((theta_dot < 0) == (energy < 0), -task.max_torque, task.max_torque)
    hold = -2 * inertia * (fall * sin + jnp.sqrt(fall) * theta_dot)
    torque = jnp.where(cos > 0.9, hold, swing)
    return jnp.clip(torque, -task.max_torque, task.max_torque)[None]


def rock(task: Any, obs: jax.Array) -> jax.Array:
    """Expert of MountainCar: full throttle in the direction in which the idling car would move four steps from now.

    ``obs [2] -> action []``. A push along the velocity adds energy. Looking ahead reverses the
    engine in time.
    """
    position, velocity = obs
    return 2 * (velocity > 4 * task.gravity * jnp.cos(3 * position)).astype(jnp.int32)


def pump(task: Any, obs: jax.Array) -> jax.Array:
    """Expert of Acrobot: full torque on the joint against the swing of the first link.

    ``obs [6] -> action []``. The joint's torque does work at the rate torque × velocity_2. While
    the arm swings, the two velocities mostly have opposite signs. Timing by the first link keeps
    the second from spinning on its own.
    """
    return 2 * (obs[4] < 0).astype(jnp.int32)


def cartpole_task(
    *,
    gravity: float = 9.8,
    masscart: float = 1.0,
    masspole: float = 0.1,
    length: float = 0.5,
    force_mag: float = 10.0,
    horizon: int = 200,
) -> Any:
    """One CartPole with the given physics: a task of ``cartpole(horizon=horizon)``.

    gymnax's parameters hold ``total_mass`` and ``polemass_length`` beside their factors, so
    ``default_params.replace(length=...)`` alone gives another physics than the length says. Here both follow. The
    numbers may be traced: ``jax.vmap(lambda x: cartpole_task(length=x))(lengths)`` are tasks ``[M]``, for example for
    `tasks.from_list`.

    Args:
        gravity: In m/s².
        masscart: In kg.
        masspole: In kg.
        length: Half of the pole's length, in m.
        force_mag: The push of an action, in N.
        horizon: Time limit of an episode, in steps.

    Raises:
        ValueError: a number is not positive, or the horizon below 1.
        TypeError: a number is none.
    """
    checks.at_least("horizon", horizon, 1)
    physics = dict(
        gravity=gravity, masscart=masscart, masspole=masspole, length=length, force_mag=force_mag
    )
    for name, value in physics.items():
        if not isinstance(value, jax.core.Tracer):
            checks.between(name, value, 1e-6, 1e6)
    params = _environment("CartPole-v1").default_params
    params = params.replace(**physics, max_steps_in_episode=horizon)
    return jax.tree.map(
        lambda x: jnp.asarray(
            x, jnp.result_type(float) if isinstance(x, float) else jnp.asarray(x).dtype
        ),
        with_derived(params, physics),
    )


def cartpole(*, horizon: int = 200, scale: float = 2.0) -> TaskFamily:
    """CartPole with gravity, both masses, the pole's length and the force drawn per task."""
    fields = ("gravity", "masscart", "masspole", "length", "force_mag")
    return _family(
        "cartpole",
        "CartPole-v1",
        fields,
        expert_action=balance,
        horizon=horizon,
        scale=scale,
    )


def pendulum(*, horizon: int = 200, scale: float = 1.5) -> TaskFamily:
    """Pendulum with gravity, mass and length drawn per task; actions are torques in [-2, 2]."""
    return _family(
        "pendulum",
        "Pendulum-v1",
        ("g", "m", "l"),
        expert_action=swing_up,
        horizon=horizon,
        scale=scale,
    )


def mountain_car(*, horizon: int = 200, scale: float = 1.2) -> TaskFamily:
    """MountainCar with gravity and the engine's force drawn per task."""
    return _family(
        "mountain_car",
        "MountainCar-v0",
        ("force", "gravity"),
        expert_action=rock,
        horizon=horizon,
        scale=scale,
    )


def acrobot(*, horizon: int = 500, scale: float = 1.3) -> TaskFamily:
    """Acrobot with both links' lengths and masses and their inertia drawn per task."""
    fields = ("link_length_1", "link_length_2", "link_mass_1", "link_mass_2", "link_moi")
    return _family(
        "acrobot",
        "Acrobot-v1",
        fields,
        expert_action=pump,
        horizon=horizon,
        scale=scale,
    )
