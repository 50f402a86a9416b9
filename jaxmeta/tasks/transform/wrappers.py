"""Wrappers of environments, and the families that they make."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta.tasks import composite, environments, keys, time_limit
from jaxmeta.tasks.family import SPLITS, Controller, Sampler, TaskFamily
from jaxmeta.types import Environment, SteppedEnvironment, Task

Draw = Callable[[jax.Array, Task, str], Any]
"""``(key, task within, split) -> part that the transformation adds to the task``."""


@dataclasses.dataclass(frozen=True)
class Wrapper(environment.Environment[Any, Any]):
    """An environment around another one. By itself it changes nothing; subclasses override what they change.

    Wrappers of equal environments are equal and share compiled programs.
    """

    env: SteppedEnvironment
    """The environment within. Its observations are one array: those of several parts are `Flattened`."""

    def __post_init__(self) -> None:
        if not time_limit.steps_without_reset(self.env):
            raise TypeError(
                f"env={self.env!r} must have a step_env and a reset_env of its own: gymnax's wrappers have none and "
                "cannot be wrapped"
            )
        if not isinstance(self, Flattened):
            object.__setattr__(self, "env", flattened(self.env))

    @property
    def ends_by(self) -> int | None:
        """The step by which every episode has ended, if the environment within promises one."""
        return time_limit.ends_by(self.env)

    def limited(self, horizon: int) -> Any:
        """This wrapper around an environment whose episodes end by ``horizon``."""
        return dataclasses.replace(self, env=time_limit.limited(self.env, horizon))

    @property
    def default_params(self) -> Task:
        return self.env.default_params

    def within(self, params: Task) -> Task:
        """The task of the environment within."""
        return params

    def state_within(self, state: Any) -> Any:
        """The state of the environment within."""
        return state

    def act(self, action: jax.Array, params: Task) -> jax.Array:
        """The action of the environment within, ``[*action_shape]``."""
        return action

    def see(self, obs: jax.Array, params: Task) -> jax.Array:
        """The observation ``[*obs_shape]`` for an observation of the environment within."""
        return obs

    def earn(self, reward: jax.Array, params: Task) -> jax.Array:
        """The reward ``[]`` for a reward of the environment within."""
        return reward

    def reset_env(self, key: jax.Array, params: Task) -> tuple[jax.Array, Any]:
        obs, state = self.env.reset_env(key, self.within(params))
        return self.see(obs, params), state

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Task
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, dict]:
        obs, state, reward, terminated, info = self.env.step_env(
            key, state, self.act(action, params), self.within(params)
        )
        return self.see(obs, params), state, self.earn(reward, params), terminated, info

    def observe(
        self, key: jax.Array, state: Any, action: jax.Array | None, params: Task
    ) -> jax.Array:
        obs = self.env.observe(key, self.state_within(state), action, self.within(params))
        return self.see(obs, params)

    def is_truncated(self, state: Any, params: Task) -> jax.Array:
        return self.env.is_truncated(self.state_within(state), self.within(params))

    @property
    def name(self) -> str:
        return f"{type(self).__name__}{environments.name_of(self.env)}"

    # Spaces are those of the default task: a batch of tasks would count as larger. They are made
    # concretely, also inside a trace, because their bounds are read.
    def action_space(self, params: Task | None = None) -> spaces.Space:
        with jax.ensure_compile_time_eval():
            return self.env.action_space(self.env.default_params)

    def observation_space(self, params: Task | None = None) -> spaces.Space:
        return observations(self.env)


@dataclasses.dataclass(frozen=True)
class Flattened(Wrapper):
    """Observations of several parts as one array (see `composite`)."""

    def see(self, obs: Any, params: Task) -> jax.Array:
        return environments.flat_observation(self.env, obs)


def flattened(env: Environment) -> Environment:
    """``env``, or if its observations have several parts `Flattened` around it."""
    if isinstance(env, Wrapper):
        return env
    declared = environments.declared_observation_space(env)
    return Flattened(env) if composite.is_composite(declared) else env


@struct.dataclass
class TransformedParams:
    """The task: the task within and the part that the transformation adds."""

    inner: Task
    """The task of the environment within."""
    drawn: Any
    """The part that the transformation adds."""


@dataclasses.dataclass(frozen=True)
class Transformed(Wrapper):
    """A `Wrapper` whose task has its own part, in `TransformedParams`."""

    @property
    def default_params(self) -> TransformedParams:
        return TransformedParams(self.env.default_params, self.nothing)

    @property
    def nothing(self) -> Any:
        """The part of a task with which the wrapper changes nothing."""
        raise NotImplementedError

    def within(self, params: TransformedParams) -> Task:
        return params.inner


def transformed(
    family: TaskFamily,
    env: Transformed,
    draw: Draw,
    *,
    prefix: str,
    optimal_action: Controller | None = None,
    optimal_return: Callable[[Task], jax.Array] | None = None,
    expert_action: Controller | None = None,
) -> TaskFamily:
    """The family with every task in `TransformedParams`, which controllers are told."""

    def sampler(split: str) -> Sampler:
        def sample(key: jax.Array) -> TransformedParams:
            inner_key, key = jax.random.split(key)
            inner = getattr(family, split)(inner_key)
            return TransformedParams(inner, jax.tree.map(strong, draw(key, inner, split)))

        return sample

    return TaskFamily(
        name=f"{prefix}_{family.name}",
        env=env,
        horizon=family.horizon,
        **for_each_split(sampler),
        optimal_action=optimal_action,
        optimal_return=optimal_return,
        expert_action=expert_action,
    )


def warn_of_no_variety(family: TaskFamily, why: str) -> None:
    """Warns that all training tasks are the same after a transformation of ``family``."""
    warnings.warn(
        f"family={family.name!r} would have no variety, all tasks would be the same: {why}",
        UserWarning,
        stacklevel=4,  # past the transformation and the checks of its arguments
    )


def all_equal(draw: Callable[[jax.Array], Any], num_drawn: int = 16) -> bool:
    """Whether ``draw(key)`` is equal for ``num_drawn`` keys."""

    def drawn(seed: int) -> list[np.ndarray]:
        leaves = jax.tree.leaves(draw(jax.random.key(seed)))
        return [np.asarray(keys.words(leaf)) for leaf in leaves]

    with jax.ensure_compile_time_eval():
        first = drawn(0)
        return all(
            np.array_equal(x, y)
            for seed in range(1, num_drawn)
            for x, y in zip(first, drawn(seed), strict=True)
        )


def for_each_split(sampler: Callable[[str], Sampler]) -> dict[str, Any]:
    """``sampler(split)`` of each split, by the split's name."""
    return {split: sampler(split) for split in SPLITS}


def carried(
    controller: Controller | None,
    *,
    act: Callable[[Any, jax.Array], jax.Array] = lambda drawn, action: action,
    see: Callable[[Any, jax.Array], jax.Array] = lambda drawn, obs: obs,
) -> Controller | None:
    """The controller for a transformed task; ``see`` and ``act`` undo the transformation of observations and actions."""
    if controller is None:
        return None
    return lambda task, obs: act(task.drawn, controller(task.inner, see(task.drawn, obs)))


def inner_return(family: TaskFamily) -> Callable[[Task], jax.Array] | None:
    """The family's ``optimal_return`` for a transformation that does not change returns."""
    optimal_return = family.optimal_return
    return None if optimal_return is None else lambda task: optimal_return(task.inner)


def strong(x: Any) -> jax.Array:
    """``x [...]`` as an array without a weak type."""
    return jnp.asarray(x, jnp.asarray(x).dtype)


def innermost(x: Any) -> Any:
    """The parameters, or the state, of the environment inside all wrappers."""
    while hasattr(x, "inner"):
        x = x.inner
    return x


def replaced(x: Any, fields: dict[str, Any]) -> Any:
    """``x`` with fields of its `innermost` replaced."""
    if hasattr(x, "inner"):
        return x.replace(inner=replaced(x.inner, fields))
    return x.replace(**fields)


def box(space: spaces.Space, family: TaskFamily, what: str) -> spaces.Box:
    """The space itself; raises ValueError unless it is a Box that is not empty. The message names the family and ``what``."""
    if not isinstance(space, spaces.Box):
        raise ValueError(f"family={family.name!r} has {what} in {space}, where a Box is needed")
    if math.prod(space.shape) == 0:
        raise ValueError(f"family={family.name!r} has {what} in {space}, which is empty")
    return space


def observations(env: Environment) -> spaces.Space:
    """The observation space of the environment's default task, flattened, with concrete bounds."""
    return environments.observation_space(env)
