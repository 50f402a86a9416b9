"""MuJoCo Playground: bodies of the DeepMind Control Suite whose masses, friction, motors and gravity are the task.

Zakka et al. 2025, "MuJoCo Playground", which runs the tasks of Tassa et al. 2018, "DeepMind Control Suite", in MJX.
The physics are never observed; only how the body answers reveals them. The posture that an episode begins in, and a
target where there is one, are a part of the task too, so nothing is drawn at a reset.

Needs MuJoCo Playground: ``pip install "jaxmeta[playground]"``.
"""

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.tasks.family import Sampler, TaskFamily
from jaxmeta.tasks.functions import from_functions
from jaxmeta.tasks.transform import laws


def _suite() -> Any:
    try:
        from mujoco_playground import dm_control_suite
    except ImportError as error:
        raise checks.missing("playground", "playground") from error
    return dm_control_suite


def _with_physics(env: Any, physics: dict[str, jax.Array]) -> Any:
    """``env`` with the factors ``physics`` on its model."""
    model = env.mjx_model
    mass = model.body_mass * physics["mass"]
    subtree = np.eye(model.nbody)  # [body, other]: whether the other hangs on the body
    for body in range(model.nbody - 1, 0, -1):  # a parent has a lower number than its children
        subtree[model.body_parentid[body]] += subtree[body]
    strength = physics["strength"][:, None]
    altered = copy.copy(env)
    altered._mjx_model = model.replace(
        body_mass=mass,
        body_subtreemass=jnp.asarray(subtree, mass.dtype) @ mass,
        body_inertia=model.body_inertia * physics["mass"][:, None],
        geom_friction=model.geom_friction * physics["friction"],
        actuator_gainprm=model.actuator_gainprm * strength,
        actuator_biasprm=model.actuator_biasprm * strength,
        opt=model.opt.replace(gravity=model.opt.gravity * physics["gravity"]),
    )
    return altered


@functools.cache
def _family(name: str, horizon: int, scale: float) -> TaskFamily:
    env = _suite().load(name, config_overrides={"impl": "jax"})
    with jax.numpy_rank_promotion("allow"):
        first = jax.eval_shape(env.reset, jax.random.PRNGKey(0))
    structure = jax.tree.structure(first)  # which two calls make unequal: it holds arrays
    num_bodies = env.mjx_model.nbody
    num_factors = num_bodies + env.mjx_model.nu + 2

    def sampler(split: str) -> Sampler:
        def body(key: jax.Array) -> dict[str, Any]:
            start_key, *keys = jax.random.split(key, 1 + num_factors)
            factors = jax.vmap(lambda key: laws.factor(key, scale, split))(jnp.stack(keys))
            mass, strength = factors[:num_bodies], factors[num_bodies:-2]
            physics = dict(mass=mass, strength=strength, friction=factors[-2], gravity=factors[-1])
            with jax.numpy_rank_promotion("allow"):
                start = _with_physics(env, physics).reset(jax.random.key_data(start_key))
            leaves = tuple(map(jnp.asarray, jax.tree.leaves(start)))
            return {"physics": physics, "obs": start.obs, "start": leaves}

        return body

    def reset(key: jax.Array, task: dict[str, Any]) -> tuple[jax.Array, Any]:
        return task["obs"], task["start"]

    def step(key: jax.Array, state: Any, action: jax.Array, task: dict[str, Any]) -> tuple:
        with jax.numpy_rank_promotion("allow"):
            state = jax.tree.unflatten(structure, state)
            after = _with_physics(env, task["physics"]).step(state, action)
        # Physics that diverge end the episode; their numbers must not reach a learner.
        obs, reward = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (after.obs, after.reward))
        diverged = ~(jnp.all(jnp.isfinite(after.obs)) & jnp.isfinite(after.reward))
        return obs, tuple(jax.tree.leaves(after)), reward, (after.done > 0) | diverged

    return from_functions(
        reset,
        step,
        observation_space=spaces.Box(-jnp.inf, jnp.inf, first.obs.shape, jnp.float32),
        action_space=spaces.Box(-1.0, 1.0, (env.action_size,), jnp.float32),
        horizon=horizon,
        train=sampler("train"),
        out_of_distribution=sampler("out_of_distribution"),
        name="playground",
    )


def playground(body: str = "CheetahRun", *, horizon: int = 200, scale: float = 1.5) -> TaskFamily:
    """A body of MuJoCo Playground's Control Suite: its physics and its start are drawn per task.

    ``CheetahRun``, ``HopperHop``, ``WalkerWalk`` and others are locomotion; ``FingerSpin`` and ``FingerTurnEasy`` are
    manipulation, where a finger of two links turns a body on a hinge. A step earns between 0 and 1. Every link has a
    factor on its mass and inertia, every motor one on its strength, and friction and gravity have one each:
    log-uniform in [1/scale, scale] for train and test. Out of distribution every factor lies outside that range, on
    either side, by up to a factor of sqrt(scale). The constants by which MuJoCo scales its constraints stay those of
    the standard body. There is no expert.

    Playground's robots outside of the Control Suite are not here: it downloads their models when they are first used.

    Args:
        body: A name of ``mujoco_playground.dm_control_suite.ALL_ENVS``.
        horizon: Time limit of an episode, in steps of the body's ``ctrl_dt``, 0.01 to 0.04 seconds.
        scale: Scale of the factors, above 1.

    Raises:
        ValueError: the name is unknown, the horizon is below 1, or ``scale`` is not above 1.
        ImportError: MuJoCo Playground is not installed.
    """
    checks.at_least("horizon", horizon, 1)
    checks.between("scale", scale, 1, 10)
    if scale == 1:
        raise ValueError(f"scale={scale} must be above 1 (1 is the one standard body)")
    checks.choice("body", body, _suite().ALL_ENVS)
    return _family(body, horizon, float(scale))
