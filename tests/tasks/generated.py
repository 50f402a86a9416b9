"""Environments as people write them, drawn at random: spaces, dtypes, shapes, limits, and planted faults."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta.tasks import TaskFamily

INF, BIG = float("inf"), float(np.finfo(np.float32).max)


@struct.dataclass
class Params:
    drift: Any
    goal: Any


@struct.dataclass
class State:
    x: Any  # a number, in some floating-point dtype
    time: Any
    more: Any  # whatever else an environment keeps


class Steps(environment.Environment):
    """Deterministic: what happens depends on the state, the action and the task alone."""

    def __init__(self, plan):
        super().__init__()
        self.plan = plan

    @property
    def default_params(self):
        return Params(jnp.zeros(()), jnp.zeros(2))

    def action_space(self, params=None):
        return self.plan.action_space

    def observation_space(self, params=None):
        return self.plan.observation_space

    def reset_env(self, key, params):
        state = self.plan.begin(key, params)
        return self.plan.observe(state, params), state

    def step_env(self, key, state, action, params):
        plan = self.plan
        push = jnp.sum(jnp.asarray(action, jnp.float32))
        x = (0.5 * state.x + 0.25 * push + params.drift + jnp.sin(1.0 * state.time)).astype(
            plan.float_dtype
        )
        after = plan.after(state.replace(x=x, time=state.time + 1), state)
        terminated = plan.flag(jnp.abs(x) > plan.bound)
        return plan.values(
            (plan.observe(after, params), after, plan.reward(x, params), terminated, {})
        )

    def is_truncated(self, state, params):
        return self.plan.truncated(state.time)


class Resetting:
    """As wrappers of gymnax are: ``reset`` and ``step`` alone are its own, the rest is what it wraps has."""

    def __init__(self, env, five_values=False, final_observation=True):
        self._env, self._five, self._final = env, five_values, final_observation

    def __getattr__(self, name):
        return getattr(self._env, name)

    def reset(self, key, params=None):
        return self._env.reset(key, params)

    def step(self, key, state, action, params=None):
        obs, state, reward, terminated, truncated, info = self._env.step(key, state, action, params)
        info = info if self._final else {}
        if self._five:
            return obs, state, reward, terminated | truncated, info
        return obs, state, reward, terminated, truncated, info


@dataclasses.dataclass
class Plan:
    """What a drawn environment is like; see `drawn`."""

    action_space: Any
    observation_space: Any
    obs_dtype: Any
    float_dtype: Any
    time: Any  # what counts the steps, at the start
    more: Any
    limit: int | None
    bound: float
    horizon: int
    resetting: bool
    scale: float
    fault: str | None = None

    def begin(self, key, params):
        if self.fault == "reset raises":
            raise RuntimeError("the simulator is not licensed")
        x = {"state of integers": 0, "state of a vector": jnp.zeros(2)}.get(
            self.fault, jnp.zeros((), self.float_dtype)
        )
        return State(x, self.time, self.more)

    def after(self, state, before):
        if self.fault == "state of another structure":
            return state.replace(more={"extra": state.x})
        if self.fault == "state of a vector":
            return state.replace(x=jnp.mean(state.x))
        if self.fault == "state of a flag":
            return state.replace(time=state.time > 3)
        if self.fault == "Python's if":
            return state if state.x > 0 else before
        return state

    def observe(self, state, params):
        space, fault = self.observation_space, self.fault
        shape = () if isinstance(space, spaces.Discrete) else getattr(space, "shape", (1,))
        if fault == "observation of another shape":
            shape = (*shape, 2)
        x = jnp.mean(state.x)
        obs = jnp.full(shape, 3.0 + 2.0 * jnp.tanh(x)) + 0.1 * jnp.arange(
            max(int(np.prod(shape)), 1)
        ).reshape(shape if 0 not in shape else (1,))[..., None].reshape(
            shape if 0 not in shape else (1,)
        )
        obs = obs.astype(self.obs_dtype)
        if fault == "observation of complex numbers":
            return obs + 1j
        if fault == "observation of a list":
            return [obs, 2.0]
        if fault == "observation of a dict":
            return {"x": obs}
        if fault == "observation of None":
            return None
        return obs

    def reward(self, x, params):
        r = self.scale * (params.goal[0] - jnp.mean(x)).astype(jnp.float32)
        if self.fault == "reward of two":
            return jnp.stack([r, r])
        if self.fault == "reward of None":
            return None
        if self.fault == "reward of complex numbers":
            return r + 1j
        return r

    def flag(self, ended):
        ended = jnp.any(ended)
        if self.fault == "flag of floats":
            return ended.astype(jnp.float32)
        if self.fault == "flag of integers":
            return ended.astype(jnp.int32)
        if self.fault == "flag of two":
            return jnp.stack([ended, ended])
        return ended

    def truncated(self, time):
        if self.limit is None:
            return False
        late = jnp.asarray(time, jnp.float32) >= self.limit
        return late.astype(jnp.float32) if self.fault == "truncated of floats" else late

    def values(self, values):
        if self.fault == "step of four values":
            return values[:4]
        if self.fault == "step raises":
            return values[0][17]["nothing"]
        return values


FAULTS = (
    *("reset raises", "state of integers", "state of a vector", "state of another structure"),
    *("state of a flag", "Python's if", "observation of another shape"),
    *("observation of complex numbers", "observation of a list", "observation of a dict"),
    *("observation of None", "reward of two", "reward of None", "reward of complex numbers"),
    *("flag of floats", "flag of integers", "flag of two", "truncated of floats"),
    *("step of four values", "step raises", "five values", "no final observation"),
    *("space of a dict", "space of a tuple", "space of nothing", "space of bounds crossed"),
    *("space of gymnasium", "space of actions in a tuple", "tasks of another shape"),
    *("tasks of another structure", "no actions"),
)
"""Each of them, alone, is an error of the library's before anything compiles."""


def drawn(seed: int) -> tuple[TaskFamily, Plan]:
    """A family of a random environment and its plan; every other has a planted fault (`plan.fault`)."""
    rng = np.random.default_rng(seed)
    fault = FAULTS[(seed // 2) % len(FAULTS)] if seed % 2 else None

    def pick(*options):
        return options[rng.integers(len(options))]

    shape = pick((), (1,), (3,), (2, 2), (2, 2, 3))
    obs_dtype = pick(jnp.float32, jnp.float16, jnp.int32, jnp.uint8, jnp.int8, jnp.bool_)
    observation_space = pick(
        spaces.Box(0.0, 10.0, shape, obs_dtype),
        spaces.Box(-INF, INF, shape),
        spaces.Box(np.zeros(shape), np.full(shape, BIG), shape),
        spaces.Box(0.0, 10.0, tuple(np.int64(n) for n in shape)),
        spaces.Discrete(6),
    )
    size = (int(rng.integers(1, 4)),)
    action_space = pick(
        spaces.Discrete(int(rng.integers(1, 5))),
        spaces.Box(*pick((-1.0, 1.0), (0.0, INF), (-INF, INF), (-BIG, BIG), (-INF, -0.5)), size),
        spaces.Box(*pick((-1e30, 1e30), (0.25, 0.5), (2.0, 30.0)), pick((), size, (2, 2))),
        spaces.Box(np.full(size, -0.5), np.where(np.arange(*size) % 2, INF, 2.0), size),
        spaces.Box(-2, 3, pick((), size), jnp.int32),
    )
    plan = Plan(
        action_space=action_space,
        observation_space=observation_space,
        obs_dtype=obs_dtype,
        float_dtype=pick(jnp.float32, jnp.float32, jnp.float16),
        time=pick(0, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int8), 0.0),
        more=pick(
            (), {"a": jnp.ones(2), "b": (jnp.zeros((), bool),)}, jax.random.key(3), np.uint8(7)
        ),
        limit=pick(None, 1, 3, 100),
        bound=pick(0.5, 2.0, INF),
        horizon=int(rng.integers(1, 7)),
        resetting=bool(rng.integers(4) == 0) and fault is None,
        scale=pick(1.0, 1000.0, 1e-3),
        fault=fault,
    )
    if fault == "truncated of floats":
        plan.limit = 2
    if isinstance(plan.time, float) and fault is None:
        plan.limit = None
    boxed = {
        "space of a dict": spaces.Dict({"a": spaces.Discrete(2)}),
        "space of a tuple": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))),
        "space of nothing": spaces.Box(0.0, 1.0, (0,)),
        "space of bounds crossed": spaces.Box(1.0, 0.0, (2,)),
        "space of gymnasium": __import__("gymnasium").spaces.Box(0.0, 1.0, (2,)),
    }
    plan.observation_space = boxed.get(fault, plan.observation_space)
    if fault == "space of actions in a tuple":
        plan.action_space = boxed["space of a tuple"]
    if fault == "no actions":
        plan.action_space = spaces.Discrete(0)
    env = Steps(plan)
    if plan.resetting or fault in ("five values", "no final observation"):
        env = Resetting(env, fault == "five values", fault != "no final observation")

    def sample(key):
        drift, goal = jax.random.uniform(key, (3,))[:1].reshape(()), jax.random.uniform(key, (2,))
        if fault == "tasks of another shape":
            return Params(drift[None], goal)
        if fault == "tasks of another structure":
            return {"drift": drift, "goal": goal}
        return Params(drift, goal)

    return TaskFamily(f"drawn {seed}", env, plan.horizon, sample, sample, sample), plan
