"""Shapes and dtypes of everything that an environment returns, found by `jax.eval_shape` and checked once.

A fault is an `InvalidEnvironment` that names the leaf, raised before anything compiles.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.tasks import composite, keys
from jaxmeta.tasks.environments import (
    InvalidEnvironment,
    action_space,
    call,
    check_action,
    declared_observation_space,
    default_task,
    is_one_array,
    kind,
    name_of,
    observation_space,
    summary,
)
from jaxmeta.tasks.time_limit import steps_without_reset, without_limit
from jaxmeta.types import Environment, Task


class Signature(NamedTuple):
    """Shapes and dtypes that resets and steps of an environment return."""

    state: Any
    """Shapes and dtypes of the state, wide enough for resets and steps; its keys are jax's own."""
    quick_keys: bool
    """Whether the environment takes `keys.quick` keys."""


def signature_of(env: Environment, task: Task) -> Signature:
    """The signature of ``env`` on a task of these shapes; equal environments are checked once."""
    leaves, structure = jax.tree.flatten(task)
    shapes = tuple(
        jax.typeof(jnp.asarray(x) if not isinstance(x, jax.Array) else x) for x in leaves
    )
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in shapes)
    args: tuple[Any, ...] = (
        without_limit(env),
        structure,
        shapes,
        jax.config.read("jax_enable_x64"),
    )
    try:
        hash(args)
    except TypeError:  # an environment that cannot be hashed is checked every time
        return _checked(*args)
    return _checked_once(*args)


def _checked(env: Environment, structure: Any, shapes: tuple, x64: bool) -> Signature:
    del x64
    task = jax.tree.unflatten(structure, shapes)
    try:
        return Signature(_state_shapes(env, task, keys.quick), quick_keys=True)
    except InvalidEnvironment:
        # An environment may exchange the key that it is given for one of its own.
        return Signature(_state_shapes(env, task, keys.plain), quick_keys=False)


_checked_once = functools.lru_cache(maxsize=512)(_checked)


def _state_shapes(
    env: Environment, task: Any, kind_of_key: Callable[[jax.Array], jax.Array]
) -> Any:
    """Shapes and dtypes of the environment's states, after all checks, for keys of one kind."""
    name = name_of(env)
    try:
        checks.like("task", task, default_task(env), "env.default_params")
    except ValueError as error:
        raise InvalidEnvironment(f"{name}: {error}") from error
    key = jax.eval_shape(lambda: kind_of_key(jax.random.key(0)))
    methods = _methods(env)
    action = _action_shape(env)
    where = _where(env, methods.reset)
    obs, state = shaped(
        where,
        lambda key, task: _parts(where, getattr(env, methods.reset)(key, task), ("obs", "state")),
        key,
        task,
    )
    observation_space(env)  # raises where it is none
    space = declared_observation_space(env)
    _check_observation(f"{where}'s observation", obs, space)
    _check_state(f"{where}'s state", state)
    return _widest_state(env, methods, (key, _plain(state), action, task), space)


class _Methods(NamedTuple):
    """Names of the methods that reset and step an environment."""

    reset: str
    step: str


def _methods(env: Environment) -> _Methods:
    """The methods to call; raises InvalidEnvironment where the environment lacks one."""
    without_reset = steps_without_reset(env)
    methods = _Methods("reset_env", "step_env") if without_reset else _Methods("reset", "step")
    for method in (*methods, "is_truncated") if without_reset else methods:
        if not callable(getattr(env, method, None)):
            raise InvalidEnvironment(
                f"{name_of(env)} has no method {method}, as gymnax's environments have"
            )
    return methods


def _action_shape(env: Environment) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one action."""
    space = action_space(env)
    dtype = space.dtype if kind(jnp.dtype(space.dtype)) == "int" else jnp.result_type(float)
    return jax.ShapeDtypeStruct(tuple(space.shape), dtype)


class _Step(NamedTuple):
    """Everything that one step returns."""

    obs: Any
    final_obs: Any
    """The true successor, before any reset."""
    state: Any
    reward: Any
    terminated: Any
    truncated: Any


def _step(env: Any, methods: _Methods, key: Any, state: Any, action: Any, task: Task) -> _Step:
    """One step by the environment's own method, its values told apart."""
    where = _where(env, methods.step)
    if methods.step == "step_env":
        obs, after, reward, terminated, _ = _parts(
            where, env.step_env(key, state, action, task), STEP_ENV
        )
        return _Step(obs, obs, after, reward, terminated, env.is_truncated(after, task))
    obs, after, reward, terminated, truncated, info = _parts(
        where, env.step(key, state, action, task), STEP
    )
    if not isinstance(info, dict) or "final_observation" not in info:
        raise InvalidEnvironment(
            f"{where}'s info must be a dict with 'final_observation', the true successor before any reset, "
            "as in gymnax's own step"
        )
    return _Step(obs, info["final_observation"], after, reward, terminated, truncated)


def _widest_state(
    env: Environment, methods: _Methods, inputs: tuple[Any, Any, Any, Any], space: Any
) -> Any:
    """The state's shapes, with dtypes that steps keep; ``inputs`` are ``(key, state, action, task)`` of a step."""
    key, state, action, task = inputs
    name, where = name_of(env), _where(env, methods.step)
    for _ in range(4):  # a wider leaf may widen another one in the next step
        after = shaped(where, functools.partial(_step, env, methods), key, state, action, task)
        _check_step(env, methods, after, space)
        wide = _widened(name, methods, state, _plain(after.state))
        if jax.tree.map(_dtype, wide) == jax.tree.map(_dtype, state):
            return wide
        state = wide
    raise InvalidEnvironment(
        f"{where}'s state grows wider with every step; it must keep its dtypes"
    )


def _where(env: object, method: str) -> str:
    """A method of an environment, for messages, under the name that the user gave it."""
    told_as = getattr(env, "told_as", None)
    return f"{name_of(env)}.{told_as(method) if callable(told_as) else method}"


def _check_step(env: Environment, methods: _Methods, after: _Step, space: Any) -> None:
    """Raises InvalidEnvironment unless all that a step returns, the state apart, is as it must be."""
    where = _where(env, methods.step)
    _check_observation(f"{where}'s observation", after.obs, space)
    _check_observation(f"{where}'s final_observation", after.final_obs, space)
    _check_number(f"{where}'s reward", after.reward)
    _check_flag(f"{where}'s terminated", after.terminated)
    is_step_env = methods.step == "step_env"
    _check_flag(
        f"{name_of(env)}.is_truncated" if is_step_env else f"{where}'s truncated", after.truncated
    )


STEP_ENV = ("obs", "state", "reward", "terminated", "info")
STEP = ("obs", "state", "reward", "terminated", "truncated", "info")


def _parts(where: str, values: Any, names: tuple[str, ...]) -> tuple:
    if not isinstance(values, tuple | list) or len(values) != len(names):
        returned = (
            f"{len(values)} values" if isinstance(values, tuple | list) else type(values).__name__
        )
        raise InvalidEnvironment(
            f"{where} returned {returned}; it must return {len(names)}: {', '.join(names)} (as gymnax 1.0 does)"
        )
    return tuple(values)


def shaped(where: str, function: Callable[..., Any], *args: Any) -> Any:
    """Shapes and dtypes of ``function(*args)``; leaves that are no arrays are returned as they are.

    Raises InvalidEnvironment, with ``where`` in its message, if the function raises.
    """
    others: dict[int, Any] = {}

    def arrays(*args: Any) -> Any:
        values = call(where, function, *args)
        # Leaves that jax would refuse are taken out, so that an error can name them.
        leaves, structure = jax.tree.flatten(values)
        others.update({i: x for i, x in enumerate(leaves) if not _is_array(x)})
        return jax.tree.unflatten(
            structure, [0 if i in others else x for i, x in enumerate(leaves)]
        )

    shapes = jax.eval_shape(arrays, *args)
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [others.get(i, x) for i, x in enumerate(leaves)])


def check_sampler(where: str, sample: Callable[[jax.Array], Task], train: Callable) -> None:
    """Raises InvalidEnvironment unless ``sample(key)`` makes tasks with the structure, the shapes and the types of ``train``'s."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    found, right = shaped(where, sample, key), shaped("train", train, key)
    if not same_arrays(found, right):
        raise InvalidEnvironment(
            f"{where} makes {found}; it must make a task like those of train, {right}"
        )


def same_arrays(found: Any, right: Any) -> bool:
    """Whether two trees, of arrays or of their shapes and types, have one structure, and the same shapes and types."""
    if str(jax.tree.structure(found)) != str(jax.tree.structure(right)):
        return False
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True)
    of = [[(getattr(x, "shape", None), getattr(x, "dtype", None)) for x in pair] for pair in pairs]
    return all(one == other for one, other in of)


def check_controller(where: str, controller: Callable, family: Any) -> None:
    """Raises InvalidEnvironment unless ``controller(task, obs)`` is an action of the family's kind and shape.

    An action of another kind would be cut to a whole number.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    task = shaped("train", family.train, key)
    obs = jax.ShapeDtypeStruct(family.observation_shape, jnp.result_type(float))
    action = shaped(where, controller, task, obs)
    check_action(where, action, family.action_space)


def _is_array(x: Any) -> bool:
    try:
        jnp.asarray(x)
    except (TypeError, ValueError):
        return False
    return True


def _check_observation(what: str, obs: Any, space: Any) -> None:
    if composite.is_composite(space):
        try:
            composite.check(what, space, obs)
        except ValueError as error:
            raise InvalidEnvironment(str(error)) from error
        return
    shape = tuple(space.shape)
    if not is_one_array(obs):
        raise InvalidEnvironment(f"{what} is {summary(obs)}; it must be one array of shape {shape}")
    _check_kind(what, obs)
    if obs.shape != shape:
        raise InvalidEnvironment(
            f"{what} has shape {obs.shape}; the observation space's is {shape}"
        )


def _check_number(what: str, x: Any) -> None:
    if not is_one_array(x) or math.prod(x.shape) != 1:
        raise InvalidEnvironment(f"{what} is {summary(x)}; it must be one number, of shape ()")
    _check_kind(what, x)


def _check_flag(what: str, x: Any) -> None:
    if not is_one_array(x) or math.prod(x.shape) != 1 or kind(x.dtype) != "bool":
        raise InvalidEnvironment(f"{what} is {summary(x)}; it must be one boolean, of shape ()")


def _check_kind(what: str, x: Any) -> None:
    if kind(x.dtype) not in ("bool", "int", "uint", "float"):
        raise InvalidEnvironment(f"{what} is of {x.dtype}; it must be of real numbers or booleans")


def _check_state(what: str, state: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not is_one_array(leaf):
            raise InvalidEnvironment(
                f"{what}{jax.tree_util.keystr(path)} is {summary(leaf)}; a state's leaves must be arrays"
            )


def _widened(name: str, methods: _Methods, before: Any, after: Any) -> Any:
    """The state's shapes with the wider of two dtypes of a kind; raises InvalidEnvironment where
    the two differ in structure, shape or kind."""
    _check_state(f"{name}.{methods.step}'s state", after)
    if str(jax.tree.structure(before)) != str(jax.tree.structure(after)):
        first, later = checks.structures(before, after)
        raise InvalidEnvironment(
            f"{name}.{methods.step}'s state has the structure {later}; {methods.reset} gives {first}, and it must stay that"
        )

    def wider(path: Any, old: Any, new: Any) -> Any:
        where = f"state{jax.tree_util.keystr(path)} of {name} is {{}} after {methods.reset} and {{}} after {methods.step}"
        if old.shape != new.shape:
            raise InvalidEnvironment(where.format(old.shape, new.shape) + "; shapes must stay")
        if kind(old.dtype) != kind(new.dtype):
            raise InvalidEnvironment(
                where.format(old.dtype, new.dtype)
                + f"; it must be of one kind from the start: let {methods.reset} write {new.dtype}"
            )
        if kind(old.dtype) in ("key", "other"):
            return old
        return jax.ShapeDtypeStruct(old.shape, jnp.promote_types(old.dtype, new.dtype))

    return jax.tree_util.tree_map_with_path(wider, before, after)


def _plain(state: Any) -> Any:
    """The shapes of a state, with jax's own keys in place of `keys.quick` ones."""

    def plain(x: Any) -> Any:
        is_key = is_one_array(x) and kind(x.dtype) == "key"
        return jax.eval_shape(keys.plain, x) if is_key else x

    return jax.tree.map(plain, state)


def _dtype(x: Any) -> str:
    return str(x.dtype)
