"""The one door through which environments come in.

Every rollout resets and steps its environment here. What an environment hands over is looked at once, by
`jax.eval_shape`, so that a fault is an error that names the leaf, before anything compiles:

* observations are one array of the observation space's shape, of numbers or booleans, which become floats; a reward
  is one such number, a flag one boolean;
* a state keeps its structure, its shapes and the kinds of its numbers from step to step. Of two widths of one kind it
  has the wider from the start;
* actions have the action space's shape and kind. The environment gets them clipped to the bounds of a `Box`; what is
  recorded is what was drawn;
* an episode ends by the family's horizon, whatever the environment's own limit is (`TimeLimit`).
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks import boxes, keys
from jaxmeta.types import Task


class InvalidEnvironment(ValueError):
    """An environment or a family breaks what `TaskFamily` asks of it; the message says where and what is right."""


# Spaces


def action_space(env: Any) -> spaces.Discrete | spaces.Box:
    """The action space of the environment's default task.

    Raises InvalidEnvironment unless it is a `Discrete` of at least one action or a `Box` of at least one number.
    """
    return _space(env, "action_space")


def observation_space(env: Any) -> spaces.Discrete | spaces.Box:
    """The observation space of the environment's default task; raises InvalidEnvironment as `action_space` does."""
    return _space(env, "observation_space")


def check_is_environment(env: Any) -> None:
    """Raises InvalidEnvironment unless ``env`` has the parts of a gymnax environment; none of them is called."""
    parts = ("default_params", "action_space", "observation_space")
    missing = [x for x in parts if not hasattr(type(env), x) and not hasattr(env, x)]
    if missing or isinstance(env, type):
        raise InvalidEnvironment(
            f"env={env!r} must be a gymnax environment: an object with default_params, action_space, observation_space, "
            "and reset_env, step_env and is_truncated (or reset and step); of a family it is family.env, and of what "
            "gymnax.make returns the first"
        )


def default_task(env: Any) -> Task:
    """``env.default_params``: every task has its structure and shapes."""
    check_is_environment(env)
    with jax.ensure_compile_time_eval():
        return env.default_params


def _space(env: Any, what: str) -> spaces.Discrete | spaces.Box:
    default, where = default_task(env), f"{name_of(env)}.{what}"
    # Bounds are numbers to compute with, also where somebody else's trace is under way.
    with jax.ensure_compile_time_eval():
        space = _called(where, getattr(env, what), default)
        if isinstance(space, spaces.Discrete):
            return _discrete(where, space)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        raise InvalidEnvironment(
            f"{where} is {space!r}; it must be one Discrete or one Box: let the environment flatten its parts"
        )
    if not isinstance(space, spaces.Box):
        raise InvalidEnvironment(
            f"{where} is {space!r}; it must be a Discrete or a Box of gymnax.environments.spaces"
        )
    try:
        shape = tuple(operator.index(n) for n in space.shape)
    except TypeError:
        raise InvalidEnvironment(
            f"{where} has shape={space.shape!r}; it must be a tuple of integers, () for one number"
        ) from None
    if math.prod(shape) < 1:
        raise InvalidEnvironment(f"{where} has shape {shape}; it must hold a number")
    if shape != space.shape:
        space = spaces.Box(space.low, space.high, shape, space.dtype)
    if what == "action_space" and _kind(jnp.dtype(space.dtype)) not in ("float", "int"):
        raise InvalidEnvironment(
            f"{where} has dtype {jnp.dtype(space.dtype)}; it must be floating-point or a signed integer"
        )
    try:
        boxes.bounds(space)
    except ValueError as error:
        raise InvalidEnvironment(f"{where}: {error}") from error
    return space


def _discrete(where: str, space: spaces.Discrete) -> spaces.Discrete:
    try:
        n = operator.index(space.n)
    except TypeError:
        n = 0
    if n < 1:
        raise InvalidEnvironment(f"{where} has n={space.n!r}; it must be an integer of at least 1")
    return space if n is space.n else spaces.Discrete(n, dtype=space.dtype)


# Time limits


@struct.dataclass
class TimedState:
    """The state within, and the steps taken in the episode."""

    inner: Any
    time: jax.Array  # [], int32


@dataclasses.dataclass(frozen=True)
class TimeLimit(environment.Environment[Any, Any]):
    """Cuts an episode off after ``horizon`` steps, unless the environment within has ended it before.

    Attributes:
        env: The environment within.
        horizon: Time limit of an episode, in steps.
    """

    env: Any
    horizon: int

    @property
    def ends_by(self) -> int:
        return self.horizon

    @property
    def default_params(self) -> Task:
        return self.env.default_params

    @property
    def name(self) -> str:
        return name_of(self.env)

    def reset_env(self, key: jax.Array, params: Task) -> tuple[Any, TimedState]:
        obs, state = self.env.reset_env(key, params)
        return obs, TimedState(state, jnp.zeros((), jnp.int32))

    def step_env(
        self, key: jax.Array, state: TimedState, action: jax.Array, params: Task
    ) -> tuple[Any, TimedState, jax.Array, jax.Array, dict]:
        obs, inner, *rest = self.env.step_env(key, state.inner, action, params)
        return obs, TimedState(inner, state.time + 1), *rest

    def is_truncated(self, state: TimedState, params: Task) -> jax.Array:
        return self.env.is_truncated(state.inner, params) | (state.time >= self.horizon)

    def observe(
        self, key: jax.Array, state: TimedState, action: jax.Array | None, params: Task
    ) -> Any:
        return self.env.observe(key, state.inner, action, params)

    def action_space(self, params: Task | None = None) -> spaces.Space:
        return self.env.action_space(params)

    def observation_space(self, params: Task | None = None) -> spaces.Space:
        return self.env.observation_space(params)


def limited(env: Any, horizon: int) -> Any:
    """``env``, with episodes that end after at most ``horizon`` steps.

    It is ``env`` itself where that promises as much by an attribute ``ends_by``, the step by which each of its
    episodes has ended: the environments of this library do, and it spares the rollout a counter. An environment around
    another may have a method ``limited`` that puts the limit within, so that it sees where episodes end.
    """
    if ends_by(env) == horizon:
        return env
    if hasattr(type(env), "limited"):
        within = env.limited(horizon)
        if ends_by(within) == horizon:
            return within
    return TimeLimit(env.env if isinstance(env, TimeLimit) else env, horizon)


def ends_by(env: Any) -> int | None:
    """The step by which every episode has ended, by the environment's promise; None without one.

    A class that overrides ``reset_env``, ``step_env`` or ``is_truncated`` does not inherit its parents' promise.
    """
    for parent in type(env).__mro__:
        if "ends_by" in vars(parent):
            promised = env.ends_by
            return promised if type(promised) is int else None
        if {"reset_env", "step_env", "is_truncated"} & set(vars(parent)):
            return None
    return None


def steps_without_reset(env: Any) -> bool:
    """Whether an environment has a ``step_env`` and a ``reset_env`` of its own.

    gymnax's wrappers hand on the two methods of what they wrap, as if they themselves were not there; of such an
    environment only ``step`` and ``reset`` are to be called.
    """
    if isinstance(env, TimeLimit):
        return steps_without_reset(env.env)
    return hasattr(type(env), "step_env") and hasattr(type(env), "reset_env")


# Resetting and stepping


class Transition(NamedTuple):
    """One step, and what follows it."""

    next_obs: jax.Array  # [*obs_shape], float: the true successor, before any reset
    reward: jax.Array  # [], float
    terminated: jax.Array  # [], bool
    last: jax.Array  # [], bool: terminated or truncated
    obs: jax.Array  # [*obs_shape], float: what follows; after an end, that of a new episode
    state: Any


def reset(env: Any, key: jax.Array, task: Task) -> tuple[jax.Array, Any]:
    """``(obs, state)`` at the start of an episode.

    Raises InvalidEnvironment where the environment breaks what the module says.
    """
    signature = _signature(env, task)
    key = key if signature.quick_keys else keys.plain(key)
    obs, state = _alike(_first(_within(env), key, task), signature)
    return obs, TimedState(state, jnp.zeros((), jnp.int32)) if isinstance(env, TimeLimit) else state


def step(
    env: Any, step_key: jax.Array, reset_key: jax.Array, state: Any, action: jax.Array, task: Task
) -> Transition:
    """One step; where it ends the episode, the environment is reset into the same task.

    Raises InvalidEnvironment as `reset` does, and where the action is not of the action space's shape and kind.
    """
    within, signature = _within(env), _signature(env, task)
    if not signature.quick_keys:
        step_key, reset_key = keys.plain(step_key), keys.plain(reset_key)
    space = action_space(env)
    check_action("the learner's action", action, space)
    if isinstance(space, spaces.Box):
        action = boxes.clip(action, space)
    inner, late = state, jnp.zeros((), bool)
    if isinstance(env, TimeLimit):
        inner, time = state.inner, state.time + 1
        late = time >= env.horizon
    if steps_without_reset(within):
        next_obs, after, reward, terminated, _ = within.step_env(step_key, inner, action, task)
        obs, truncated = next_obs, within.is_truncated(after, task)
    else:
        obs, after, reward, terminated, truncated, info = within.step(step_key, inner, action, task)
        next_obs = info["final_observation"]
    terminated, ended = _flag(terminated), _flag(terminated) | _flag(truncated)
    last = ended | late
    begins_anew = last if steps_without_reset(within) else late & ~ended
    if steps_without_reset(within) or isinstance(env, TimeLimit):
        # At every step: under a vmap nothing can be left out for most. It is drawn here and not for all
        # steps beforehand, for that much memory to write and read is slower than drawing.
        anew = _first(within, reset_key, task)
        obs, after = jax.tree.map(
            lambda new, old: jnp.where(begins_anew, new, old),
            *(_alike(x, signature) for x in (anew, (obs, after))),
        )
    obs, after = _alike((obs, after), signature)
    if isinstance(env, TimeLimit):
        after = TimedState(after, jnp.where(last, 0, time))
    return Transition(
        next_obs=_as_float(next_obs),
        reward=_number(reward),
        terminated=terminated,
        last=last,
        obs=obs,
        state=after,
    )


def check_action(what: str, action: Any, space: spaces.Discrete | spaces.Box) -> None:
    """Raises InvalidEnvironment unless an action has the space's shape and kind; it may be traced."""
    kind = "int" if isinstance(space, spaces.Discrete) or boxes.is_integer(space) else "float"
    if jnp.shape(action) != tuple(space.shape) or _kind(jnp.result_type(action)) != kind:
        raise InvalidEnvironment(
            f"{what} is {_told(action)}; the action space {space!r} takes {kind}s of shape {tuple(space.shape)}"
        )


def num_tasks(name: str, tasks: Task, env: Any) -> int:
    """M, of ``tasks [M]`` for ``env``; raises ValueError where they are no batch of its tasks (`checks.batch`)."""
    return checks.batch(name, tasks, default_task(env), f"a task of {name_of(env)}")


# What an environment hands over


class _Signature(NamedTuple):
    """What resets and steps of an environment hand over, as shapes and dtypes."""

    state: Any  # wide enough for resets and steps; its keys are jax's own
    quick_keys: bool  # whether it can be handed `keys.quick` ones


def _signature(env: Any, task: Task) -> _Signature:
    """Checks an environment on a task of these shapes; once for equal ones."""
    leaves, structure = jax.tree.flatten(task)
    shapes = tuple(
        jax.typeof(jnp.asarray(x) if not isinstance(x, jax.Array) else x) for x in leaves
    )
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in shapes)
    args = (_within(env), structure, shapes, jax.config.read("jax_enable_x64"))
    try:
        hash(args)
    except TypeError:  # an environment that cannot be hashed is looked at every time
        return _looked_at(*args)
    return _remembered(*args)


def _looked_at(env: Any, structure: Any, shapes: tuple, x64: bool) -> _Signature:
    del x64
    task = jax.tree.unflatten(structure, shapes)
    try:
        return _Signature(_state_of(env, task, keys.quick), quick_keys=True)
    except InvalidEnvironment:
        # It may be one that lets a key of its own take the place of the one it is handed.
        return _Signature(_state_of(env, task, keys.plain), quick_keys=False)


def _state_of(env: Any, task: Any, kind_of_key: Callable[[jax.Array], jax.Array]) -> Any:
    """The shapes of its states, after all checks, where it is handed keys of a kind."""
    name = name_of(env)
    try:
        checks.like("task", task, default_task(env), "env.default_params")
    except ValueError as error:
        raise InvalidEnvironment(f"{name}: {error}") from error
    key = jax.eval_shape(lambda: kind_of_key(jax.random.key(0)))
    without_reset = steps_without_reset(env)
    begin, go = ("reset_env", "step_env") if without_reset else ("reset", "step")
    for method in (begin, go, "is_truncated") if without_reset else (begin, go):
        if not callable(getattr(env, method, None)):
            raise InvalidEnvironment(
                f"{name} has no method {method}, as gymnax's environments have"
            )
    space = action_space(env)
    dtype = space.dtype if _kind(jnp.dtype(space.dtype)) == "int" else jnp.result_type(float)
    action = jax.ShapeDtypeStruct(tuple(space.shape), dtype)
    first = shaped(
        f"{name}.{begin}",
        lambda key, task: _parts(
            f"{name}.{begin}", getattr(env, begin)(key, task), ("obs", "state")
        ),
        key,
        task,
    )
    obs_shape = tuple(observation_space(env).shape)
    _check_observation(f"{name}.{begin}'s observation", first[0], obs_shape)
    _check_state(f"{name}.{begin}'s state", first[1])

    def follow(key: Any, state: Any, action: Any, task: Task) -> tuple:
        where = f"{name}.{go}"
        if not without_reset:
            obs, after, reward, terminated, truncated, info = _parts(
                where, getattr(env, go)(key, state, action, task), STEP
            )
            if not isinstance(info, dict) or "final_observation" not in info:
                raise InvalidEnvironment(
                    f"{where}'s info must be a dict with 'final_observation', the true successor before any reset, "
                    "as that of gymnax's own step"
                )
            return obs, info["final_observation"], after, reward, terminated, truncated
        obs, after, reward, terminated, _ = _parts(
            where, env.step_env(key, state, action, task), STEP_ENV
        )
        return obs, obs, after, reward, terminated, env.is_truncated(after, task)

    state, where = _plain(first[1]), f"{name}.{go}"
    for _ in range(4):  # widening may widen what follows from it
        obs, final, after, reward, terminated, truncated = shaped(
            where, follow, key, state, action, task
        )
        _check_observation(f"{where}'s observation", obs, obs_shape)
        _check_observation(f"{where}'s final_observation", final, obs_shape)
        _check_number(f"{where}'s reward", reward)
        _check_flag(f"{where}'s terminated", terminated)
        _check_flag(
            f"{where}'s truncated" if not without_reset else f"{name}.is_truncated", truncated
        )
        wide = _widened(name, begin, go, state, _plain(after))
        if jax.tree.map(_dtype, wide) == jax.tree.map(_dtype, state):
            return wide
        state = wide
    raise InvalidEnvironment(
        f"{where}'s state grows wider with every step; it must keep its dtypes"
    )


_remembered = functools.lru_cache(maxsize=512)(_looked_at)

STEP_ENV = ("obs", "state", "reward", "terminated", "info")
STEP = ("obs", "state", "reward", "terminated", "truncated", "info")


def _parts(where: str, values: Any, names: tuple[str, ...]) -> tuple:
    if not isinstance(values, tuple | list) or len(values) != len(names):
        told = (
            f"{len(values)} values" if isinstance(values, tuple | list) else type(values).__name__
        )
        raise InvalidEnvironment(
            f"{where} returned {told}; it must return {len(names)}: {', '.join(names)} (as gymnax 1.0 does)"
        )
    return tuple(values)


def _called(where: str, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``; what it raises is told with the place, and its own trace follows."""
    try:
        return function(*args)
    except (InvalidEnvironment, ImportError):
        raise
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise InvalidEnvironment(f"{where} raised {type(error).__name__}: {first_line}") from error


def shaped(where: str, function: Callable[..., Any], *args: Any) -> Any:
    """The shapes and dtypes of ``function(*args)``; what is no array stays what it is.

    Raises InvalidEnvironment, which names ``where``, where the function raises.
    """
    others: dict[int, Any] = {}

    def arrays(*args: Any) -> Any:
        values = _called(where, function, *args)
        # Only a look: leaves that jax would refuse are taken out, so that the error can name them.
        leaves, structure = jax.tree.flatten(values)
        others.update({i: x for i, x in enumerate(leaves) if not _is_array(x)})
        return jax.tree.unflatten(
            structure, [0 if i in others else x for i, x in enumerate(leaves)]
        )

    shapes = jax.eval_shape(arrays, *args)
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [others.get(i, x) for i, x in enumerate(leaves)])


def _is_array(x: Any) -> bool:
    try:
        jnp.asarray(x)
    except (TypeError, ValueError):
        return False
    return True


def _check_observation(what: str, obs: Any, shape: tuple[int, ...]) -> None:
    if not _is_one_array(obs):
        raise InvalidEnvironment(f"{what} is {_told(obs)}; it must be one array of shape {shape}")
    _check_kind(what, obs)
    if obs.shape != shape:
        raise InvalidEnvironment(
            f"{what} has shape {obs.shape}; the observation space's is {shape}"
        )


def _check_number(what: str, x: Any) -> None:
    if not _is_one_array(x) or math.prod(x.shape) != 1:
        raise InvalidEnvironment(f"{what} is {_told(x)}; it must be one number, of shape ()")
    _check_kind(what, x)


def _check_flag(what: str, x: Any) -> None:
    if not _is_one_array(x) or math.prod(x.shape) != 1 or _kind(x.dtype) != "bool":
        raise InvalidEnvironment(f"{what} is {_told(x)}; it must be one boolean, of shape ()")


def _check_kind(what: str, x: Any) -> None:
    if _kind(x.dtype) not in ("bool", "int", "uint", "float"):
        raise InvalidEnvironment(f"{what} is of {x.dtype}; it must be of real numbers or booleans")


def _check_state(what: str, state: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not _is_one_array(leaf):
            raise InvalidEnvironment(
                f"{what}{jax.tree_util.keystr(path)} is {_told(leaf)}; a state's leaves must be arrays"
            )


def _widened(name: str, begin: str, go: str, before: Any, after: Any) -> Any:
    """The state's shapes with the wider of two dtypes of a kind; raises where the two are no states of one kind."""
    _check_state(f"{name}.{go}'s state", after)
    first, later = str(jax.tree.structure(before)), str(jax.tree.structure(after))
    if first != later:
        raise InvalidEnvironment(
            f"{name}.{go}'s state has the structure {later}; {begin} gives {first}, and it must stay that"
        )

    def wider(path: Any, old: Any, new: Any) -> Any:
        where = (
            f"state{jax.tree_util.keystr(path)} of {name} is {{}} after {begin} and {{}} after {go}"
        )
        if old.shape != new.shape:
            raise InvalidEnvironment(where.format(old.shape, new.shape) + "; shapes must stay")
        if _kind(old.dtype) != _kind(new.dtype):
            raise InvalidEnvironment(
                where.format(old.dtype, new.dtype)
                + f"; it must be of one kind from the start: let {begin} write {new.dtype}"
            )
        if _kind(old.dtype) in ("key", "other"):
            return old
        return jax.ShapeDtypeStruct(old.shape, jnp.promote_types(old.dtype, new.dtype))

    return jax.tree_util.tree_map_with_path(wider, before, after)


def _plain(state: Any) -> Any:
    """The shapes of a state whose keys are jax's own."""

    def plain(x: Any) -> Any:
        is_key = _is_one_array(x) and _kind(x.dtype) == "key"
        return jax.eval_shape(keys.plain, x) if is_key else x

    return jax.tree.map(plain, state)


def _kind(dtype: Any) -> str:
    """What cannot become one another without a word."""
    kinds = {
        "bool": jnp.bool_,
        "int": jnp.signedinteger,
        "uint": jnp.unsignedinteger,
        "float": jnp.floating,
        "complex": jnp.complexfloating,
        "key": jax.dtypes.prng_key,
    }
    return next((name for name, x in kinds.items() if jnp.issubdtype(dtype, x)), "other")


def _dtype(x: Any) -> str:
    return str(x.dtype)


def _is_one_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _told(x: Any) -> str:
    if _is_one_array(x):
        return f"{x.dtype} of shape {tuple(x.shape)}"
    return f"{type(x).__name__} {str(x)[:60]}"


def name_of(env: Any) -> str:
    """An environment's name, for messages."""
    named = getattr(env, "name", None)
    return named if isinstance(named, str) else type(env).__name__


def _within(env: Any) -> Any:
    return env.env if isinstance(env, TimeLimit) else env


def _first(env: Any, key: jax.Array, task: Task) -> tuple[Any, Any]:
    return (env.reset_env if steps_without_reset(env) else env.reset)(key, task)


def _alike(obs_and_state: tuple[Any, Any], signature: _Signature) -> tuple[jax.Array, Any]:
    """An observation as floats, and a state as wide as it gets, whose keys are jax's own."""
    obs, state = obs_and_state
    found, known = str(jax.tree.structure(state)), str(jax.tree.structure(signature.state))
    if found != known:
        raise InvalidEnvironment(f"the state has the structure {found}, and had {known}; {CHANGED}")

    def cast(x: Any, like: Any) -> jax.Array:
        x = jnp.asarray(x)
        if _kind(like.dtype) == "key":
            return keys.plain(x)
        fits = x.shape == like.shape and _kind(x.dtype) == _kind(like.dtype)
        if not fits or jnp.promote_types(x.dtype, like.dtype) != like.dtype:
            raise InvalidEnvironment(
                f"the state has a leaf that is {_told(x)}, and was {_told(like)}; {CHANGED}"
            )
        return x.astype(like.dtype)

    return _as_float(obs), jax.tree.map(cast, state, signature.state)


CHANGED = (
    "the environment is not what it was when it was first looked at: it must not change, and environments that "
    "are equal must do the same"
)


def _flag(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    if x.size != 1 or x.dtype != bool:
        raise InvalidEnvironment(f"a flag is {_told(x)}, and was one boolean; {CHANGED}")
    return x.reshape(())


def _number(x: Any) -> jax.Array:
    x = _as_float(x)
    if x.size != 1:
        raise InvalidEnvironment(f"the reward is {_told(x)}, and was one number; {CHANGED}")
    return x.reshape(())


def _as_float(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.result_type(float))
