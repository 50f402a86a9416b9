"""The promises of a family: the rules of `TaskFamily` that are checked on its traced functions, without running them."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.tasks import door, environments, keys, signatures, time_limit
from jaxmeta.tasks.environments import InvalidEnvironment
from jaxmeta.tasks.family import SPLITS, TaskFamily


def check_promises(family: TaskFamily) -> None:
    """Raises unless a family keeps all rules that can be checked without compiling anything.

    The function checks the spaces, the tasks of every split, resets and steps (see `door`), and the
    controllers.

    Raises:
        TypeError: ``family`` is no TaskFamily.
        InvalidEnvironment: a part is wrong; the message names it and what would be right.
    """
    if not isinstance(family, TaskFamily):
        raise TypeError(
            f"family={family!r} must be a TaskFamily, as tasks.make({family!r}) returns"
            if isinstance(family, str)
            else f"family is a {environments.summary(family)}; it must be a TaskFamily"
        )
    family.action_space, family.observation_shape  # noqa: B018
    where = f"family={family.name!r}:"
    key = jax.eval_shape(lambda: jax.random.key(0))
    for split in SPLITS:
        drawn = signatures.shaped(f"{where} {split}", getattr(family, split), key)
        try:
            checks.like(
                f"a task of {split}",
                drawn,
                environments.default_task(family.env),
                "env.default_params",
            )
        except ValueError as error:
            raise InvalidEnvironment(f"{where} {error}") from error
    task = signatures.shaped(f"{where} train", family.train, key)
    obs, state = jax.eval_shape(lambda key, task: door.reset(family.env, key, task), key, task)
    action = jax.eval_shape(family.random_action, key)
    jax.eval_shape(lambda *inputs: door.step(family.env, *inputs), key, key, state, action, task)
    for name in ("optimal_action", "expert_action"):
        if getattr(family, name) is not None:
            action = signatures.shaped(f"{where} {name}", getattr(family, name), task, obs)
            environments.check_action(f"{where} {name}", action, family.action_space)
    check_made_tasks(family, where, key, task)
    if family.optimal_return is not None:
        found = signatures.shaped(f"{where} optimal_return", family.optimal_return, task)
        if getattr(found, "shape", None) != ():
            raise InvalidEnvironment(
                f"{where} optimal_return is {found}; it must be one number, of shape ()"
            )
    if family.action_features is not None:
        space = family.action_space
        found = signatures.shaped(f"{where} action_features", family.action_features, obs)
        of_actions = isinstance(space, spaces.Discrete) and getattr(found, "ndim", 0) == 2
        if not of_actions or found.shape[0] != space.n:
            raise InvalidEnvironment(
                f"{where} action_features is {found}; it must be features [A, F] of the A actions of a Discrete space, "
                f"and the action space is {space!r}"
            )


def check_made_tasks(family: TaskFamily, where: str, key: jax.Array, task: Any) -> None:
    """Raises InvalidEnvironment unless ``mutate`` and ``parameters`` make tasks like the training tasks."""
    made = {}
    if family.mutate is not None:
        made["mutate"] = signatures.shaped(f"{where} mutate", family.mutate, key, task)
    if family.parameters is not None:
        size = checks.at_least("parameters.size", family.parameters.size, 1)
        x = jax.eval_shape(lambda: jnp.zeros(size))
        made["parameters"] = signatures.shaped(f"{where} parameters", family.parameters.task, x)
    for name, found in made.items():
        if not signatures.same_arrays(found, task):
            raise InvalidEnvironment(
                f"{where} {name} makes {found}; it must make a task like those of train, {task}"
            )


def check_pure(family: TaskFamily) -> None:
    """Raises InvalidEnvironment where a function gives another program when it is traced again.

    A function that draws from NumPy's generator, or that counts its calls, does.
    """
    key, task = jax.random.key(0), family.train(jax.random.key(0))
    _, state = jax.eval_shape(lambda: door.reset(family.env, key, task))
    action = jax.eval_shape(family.random_action, key)
    functions = {
        **{split: (getattr(family, split), (key,)) for split in SPLITS},
        "reset": (lambda key, task: door.reset(family.env, key, task), (key, task)),
        "step": (
            lambda key, state, action, task: door.step(family.env, key, key, state, action, task),
            (key, state, action, task),
        ),
    }
    for name, (function, inputs) in functions.items():
        if _traced(function, inputs) != _traced(function, inputs):
            raise InvalidEnvironment(
                f"family={family.name!r}: {name} is not pure: traced twice, it gave two programs. It must take all "
                "randomness from its key and keep nothing between calls"
            )


def _traced(function: Callable[..., Any], inputs: tuple) -> tuple[str, list[bytes]]:
    """The program of ``function`` as text without addresses, and its constants."""
    # A new function each time: jax would return the program that it traced before.
    program = jax.make_jaxpr(lambda *args: function(*args))(*inputs)
    constants = [np.asarray(x).tobytes() for x in program.consts if not keys.is_key(x)]
    return re.sub(r"0x[0-9a-f]+", "", str(program)), constants


def keys_used_twice(family: TaskFamily) -> tuple[str, ...]:
    """A sentence if the family uses one random key twice, found by jax's checker of programs."""
    try:
        from jax.experimental.key_reuse import _core as checker
    except ImportError:
        return ()

    def begun(key: jax.Array) -> Any:
        task_key, key, other, last = jax.random.split(key, 4)
        task = family.train(task_key)
        env = time_limit.without_limit(family.env)
        if not time_limit.steps_without_reset(env):
            return task
        _, state = env.reset_env(key, task)
        return env.step_env(other, state, family.random_action(last), task)[:3]

    try:
        checker.check_key_reuse(begun, jax.random.key(0))
    except jax.errors.KeyReuseError as error:
        first = str(error).splitlines()[0]
        return (f"a random key is used twice, so that its draws depend on each other ({first})",)
    except Exception:  # the checker is jax's own experiment: what it does not know is no fault
        return ()
    return ()
