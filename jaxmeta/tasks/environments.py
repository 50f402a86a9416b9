"""Parts of a gymnax environment: its spaces, its name and its tasks.

Each function raises `InvalidEnvironment` where the environment is not as it must be. The message
names the part and what would be right.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.tasks import boxes, composite
from jaxmeta.types import Environment, Task


class InvalidEnvironment(ValueError):
    """An environment or a family breaks a rule of `TaskFamily`; the message names the part and what would be right."""


def check_is_environment(env: object) -> None:
    """Raises InvalidEnvironment unless ``env`` has the parts of a gymnax environment; calls none of them."""
    parts = ("default_params", "action_space", "observation_space")
    missing = [x for x in parts if not hasattr(type(env), x) and not hasattr(env, x)]
    if missing or isinstance(env, type):
        if hasattr(env, "env") and hasattr(env, "horizon"):
            raise InvalidEnvironment(
                f"env is a {type(env).__name__}; it must be its environment: family.env"
            )
        given = f"the class {env.__name__}" if isinstance(env, type) else f"a {summary(env)}"
        raise InvalidEnvironment(
            f"env is {given}; it must be a gymnax environment: an object with default_params, action_space, "
            "observation_space, and reset_env, step_env and is_truncated (or reset and step); of what gymnax.make returns "
            "it is the first"
        )


def default_task(env: Environment) -> Task:
    """``env.default_params``; every task has its structure and shapes."""
    check_is_environment(env)
    with jax.ensure_compile_time_eval():
        return env.default_params


def name_of(env: object) -> str:
    """The environment's name, for messages."""
    named = getattr(env, "name", None)
    return named if isinstance(named, str) else type(env).__name__


def action_space(env: Environment) -> spaces.Discrete | spaces.Box:
    """The action space of the environment's default task.

    Raises InvalidEnvironment unless it is a `Discrete` of at least one action or a `Box` of at
    least one number.
    """
    return _space(env, "action_space")


def observation_space(env: Environment) -> spaces.Discrete | spaces.Box:
    """The space of one observation of the default task, flattened where it has several parts (see `composite`).

    Raises InvalidEnvironment as `action_space` does.
    """
    return _space(env, "observation_space")


def declared_observation_space(env: Environment) -> spaces.Space:
    """The observation space as the environment declares it, with its parts."""
    return _declared(env, "observation_space")


def flat_observation(env: Environment, obs: Any) -> Any:
    """An observation of ``env`` as one array: flattened where its space has several parts (see `composite`)."""
    if is_one_array(obs) and kind(obs.dtype) != "int":  # a space may be costly to make
        return obs
    space = declared_observation_space(env)
    return composite.flatten(space, obs) if composite.is_composite(space) else obs


def _declared(env: Environment, what: str) -> Any:
    default = default_task(env)
    # Bounds must be concrete numbers, also inside a caller's trace.
    with jax.ensure_compile_time_eval():
        return call(f"{name_of(env)}.{what}", getattr(env, what), default)


def _space(env: Environment, what: str) -> spaces.Discrete | spaces.Box:
    space, where = _declared(env, what), f"{name_of(env)}.{what}"
    if isinstance(space, spaces.Discrete):
        return _discrete(where, space)
    if composite.is_composite(space) and what == "observation_space":
        try:
            space = composite.flat_space(space)
        except ValueError as error:
            raise InvalidEnvironment(f"{where}: {error}") from error
    if isinstance(space, spaces.Dict | spaces.Tuple):
        raise InvalidEnvironment(
            f"{where} is {space!r}; it must be one Discrete or one Box. Several choices at once are a "
            "tasks.MultiDiscrete"
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
    if shape != space.shape and not isinstance(space, composite.MultiDiscrete):
        space = spaces.Box(space.low, space.high, shape, space.dtype)
    if what == "action_space" and kind(jnp.dtype(space.dtype)) not in ("float", "int"):
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


def check_action(what: str, action: Any, space: spaces.Discrete | spaces.Box) -> None:
    """Raises InvalidEnvironment unless ``action`` has the space's shape and kind; ``action`` may be traced."""
    integers = isinstance(space, spaces.Discrete) or boxes.is_integer(space)
    right = "int" if integers else "float"
    if jnp.shape(action) != tuple(space.shape) or kind(jnp.result_type(action)) != right:
        raise InvalidEnvironment(
            f"{what} is {summary(action)}; the action space {space!r} takes {right}s of shape {tuple(space.shape)}"
        )


def num_tasks(name: str, tasks: Task, env: Environment) -> int:
    """The number M of ``tasks [M]``; raises ValueError unless they are a batch of tasks of ``env`` (`checks.batch`).

    Where the environment's default task has an array, tasks have numbers of its kind: a float that stands for an integer
    is another task, and equals none. A Python number says less, for ``gravity=10`` may become 9.8.
    """
    one = default_task(env)
    count = checks.batch(name, tasks, one, f"a task of {name_of(env)}")
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(tasks), jax.tree.leaves(one), strict=True
    ):
        given, right = jnp.result_type(x), jnp.result_type(y)
        kinds = {kind(given), kind(right)}
        if is_one_array(y) and len(kinds) > 1 and kinds != {"int", "uint"}:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} holds {given}; in a task of {name_of(env)} it is {right}"
            )
    return count


def call(where: str, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``; an exception becomes an InvalidEnvironment that names ``where``, with the cause behind it.

    Raises:
        InvalidEnvironment: the function raised an exception, unless it was an ImportError.
    """
    try:
        return function(*args)
    except (InvalidEnvironment, ImportError):
        raise
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        hint = ""
        if isinstance(
            error, jax.errors.ConcretizationTypeError | jax.errors.TracerBoolConversionError
        ):
            hint = (
                " (Python's if and while cannot see traced values: use jnp.where, or jax.lax.cond)"
            )
        raise InvalidEnvironment(
            f"{where} raised {type(error).__name__}: {first_line}{hint}"
        ) from error


def kind(dtype: Any) -> str:
    """The kind of a dtype: no value may be cast silently from one kind to another."""
    kinds = {
        "bool": jnp.bool_,
        "int": jnp.signedinteger,
        "uint": jnp.unsignedinteger,
        "float": jnp.floating,
        "complex": jnp.complexfloating,
        "key": jax.dtypes.prng_key,
    }
    return next((name for name, x in kinds.items() if jnp.issubdtype(dtype, x)), "other")


def is_one_array(x: Any) -> bool:
    """Whether ``x`` has a shape and a dtype."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def summary(x: Any) -> str:
    """A few words on ``x`` for messages: its dtype and shape, or its type and value."""
    if is_one_array(x):
        return f"{x.dtype} of shape {tuple(x.shape)}"
    return f"{type(x).__name__} {str(x)[:60]}"
