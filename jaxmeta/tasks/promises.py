"""Checks of a family: the rules of `TaskFamily`, without running it and by random actions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.tasks import boxes, door, environments, signatures, time_limit
from jaxmeta.tasks.environments import InvalidEnvironment
from jaxmeta.tasks.family import SPLITS, TaskFamily, sample_tasks


class Checked(NamedTuple):
    """Findings of `check` on a family, over all splits."""

    num_tasks: int
    """Tasks drawn from each split."""
    distinct_tasks: int
    """The number of training tasks that differ from each other."""
    longest_episode: int
    """Steps of the longest episode."""
    problems: tuple[str, ...]
    """Properties that are allowed but probably not intended, in sentences; empty if there are
    none."""


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
            else f"family={family!r} must be a TaskFamily"
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


def check(family: TaskFamily, *, num_tasks: int = 16, seed: int = 0) -> Checked:
    """Findings on a family: `check_promises`, then an episode of random actions in ``num_tasks`` tasks of each split.

    ``problems`` says whether all tasks are the same, whether observations leave their space or are
    not finite, and which leaves of the state every reset draws anew although they never change
    within an episode. If such a leaf tells one task from another, knowledge from one episode is
    wrong in the next; `transform.pinned` makes the leaf part of the task.

    Raises:
        TypeError: ``family`` is no TaskFamily.
        InvalidEnvironment: a rule is broken (see `check_promises`), or an episode did not end by
            the horizon.
    """
    check_promises(family)
    checks.at_least("num_tasks", num_tasks, 2)
    checks.at_least("seed", seed, 0)
    keys = jax.random.split(jax.random.key(seed), len(SPLITS) + 1)
    drawn = [
        sample_tasks(key, family, num_tasks, split=split)
        for key, split in zip(keys[1:], SPLITS, strict=True)
    ]
    every = jax.tree.map(lambda *x: jnp.concatenate(x), *drawn)
    episode_keys = jax.random.split(keys[0], len(SPLITS) * num_tasks)
    # One program for the tasks of all splits.
    episodes: _Seen = jax.device_get(
        jax.lax.map(lambda x: _episode(family, *x), (episode_keys, every), batch_size=num_tasks)
    )
    problems: dict[str, list[str]] = {}
    longest, distinct = 0, {}
    for number, split in enumerate(SPLITS):
        rows = slice(number * num_tasks, (number + 1) * num_tasks)
        seen: _Seen = jax.tree.map(lambda x, rows=rows: x[rows], episodes)
        if not np.all(np.any(seen.last, axis=1)):
            raise InvalidEnvironment(
                f"family={family.name!r}: an episode of {split} had not ended after horizon={family.horizon} steps, "
                f"although {environments.name_of(family.env)} promises it by ends_by={time_limit.ends_by(family.env)}"
            )
        lived = np.cumsum(seen.last, axis=1) - seen.last == 0  # [M, T], the first episode
        longest = max(longest, int(np.max(np.sum(lived, axis=1))))
        distinct[split] = _num_distinct(drawn[number])
        for problem in _problems(family, seen, lived, distinct[split]):
            problems.setdefault(problem, []).append(split)
    sentences = tuple(f"{', '.join(where)}: {problem}" for problem, where in problems.items())
    return Checked(num_tasks, distinct["train"], longest, sentences)


class _Seen(NamedTuple):
    """An episode of random actions in one task."""

    obs: jax.Array
    """``[T, *obs_shape]``, the true successors."""
    reward: jax.Array
    """``[T]``."""
    last: jax.Array
    """``[T]``, bool."""
    still: Any
    """Bool ``[]`` for each leaf of the state: the leaf never changed in the first episode."""
    redrawn: Any
    """Bool ``[]`` for each leaf of the state: another reset draws another value."""


def _episode(family: TaskFamily, key: jax.Array, task: Any) -> _Seen:
    """``horizon`` steps of random actions in ``task``."""
    reset_key, other_key, key = jax.random.split(key, 3)
    env = family.env
    _, first = door.reset(env, reset_key, task)
    _, other = door.reset(env, other_key, task)

    def same(x: jax.Array, y: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jnp.zeros((), bool)
        return jnp.all((x == y) | ((x != x) & (y != y)))

    def step(carry: tuple, key: jax.Array) -> tuple:
        state, still, ended = carry
        keys = jax.random.split(key, 3)
        after = door.step(env, keys[0], keys[1], state, family.random_action(keys[2]), task)
        ended = ended | after.last
        still = jax.tree.map(lambda s, x, y: s & (ended | same(x, y)), still, first, after.state)
        return (after.state, still, ended), (after.next_obs, after.reward, after.last)

    still = jax.tree.map(lambda x: jnp.ones((), bool), first)
    walked: Any = jax.lax.scan(
        step, (first, still, jnp.zeros((), bool)), jax.random.split(key, family.horizon)
    )
    (_, still, _), (obs, reward, last) = walked
    redrawn = jax.tree.map(lambda x, y: ~same(x, y), first, other)
    return _Seen(obs, reward, last, still, redrawn)


def _problems(family: TaskFamily, seen: _Seen, lived: np.ndarray, num_distinct: int) -> list[str]:
    """The problems of the tasks of one split; ``lived [M, T]`` marks the first episode of each."""
    found = []
    if num_distinct == 1:
        found.append("all tasks are the same")
    obs = seen.obs[lived]
    finite = np.isfinite(obs.reshape(len(obs), -1)).all(1) & np.isfinite(seen.reward[lived])
    if not np.all(finite):
        found.append("numbers of observations or rewards are not finite")
    space = environments.observation_space(family.env)
    if isinstance(space, spaces.Discrete):
        low, high = np.zeros(()), np.asarray(space.n - 1.0)
    else:
        low, high = boxes.bounds(space)
    slack = 1e-5 * np.maximum(1.0, np.where(np.isfinite(high - low), high - low, 1.0))
    outside = (obs < low - slack) | (obs > high + slack)
    if np.any(outside):
        found.append("observations lie outside of the observation space")
    for (path, still), redrawn in zip(
        jax.tree_util.tree_leaves_with_path(seen.still), jax.tree.leaves(seen.redrawn), strict=True
    ):
        if np.all(still) and np.any(redrawn):
            found.append(
                f"state{jax.tree_util.keystr(path)} never changes within an episode and every reset draws it anew: if "
                "it tells one task from another, make it part of the task (transform.pinned)"
            )
    return found


def _num_distinct(tasks: Any) -> int:
    """The number of ``tasks [M]`` that differ from each other."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(jax.device_get(tasks))]
    return len({b"".join(x[m].tobytes() for x in leaves) for m in range(len(leaves[0]))})
