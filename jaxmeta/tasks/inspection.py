"""A look at a family: its promises, and the findings of random actions in its tasks."""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.tasks import boxes, door, environments, time_limit
from jaxmeta.tasks.environments import InvalidEnvironment
from jaxmeta.tasks.family import SPLITS, TaskFamily, flat
from jaxmeta.tasks.keys import is_key, words
from jaxmeta.tasks.promises import check_made_tasks, check_promises, check_pure, keys_used_twice

NUM_COMPARED = 512
"""Tasks by which `check_parameters` compares two distributions."""
LARGEST_GAP = 0.205
"""The gap between two empirical distributions of `NUM_COMPARED` numbers each that chance exceeds once in 10⁹ times (Kolmogorov-Smirnov)."""


class Checked(NamedTuple):
    """Findings of `check` on a family, over all splits; as text, and at a prompt or in a notebook, a table."""

    num_tasks: int
    """Tasks drawn from each split."""
    distinct_tasks: int
    """The number of training tasks that differ from each other."""
    longest_episode: int
    """Steps of the longest episode."""
    problems: tuple[str, ...]
    """Properties that are allowed but probably not intended, in sentences; empty if there are
    none."""
    rows: tuple[tuple[str, str], ...] = ()
    """The table: what was looked at, and what was found."""

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        width = max((len(name) for name, _ in self.rows), default=0)
        lines = [f"{name:<{width}}  {found}" for name, found in self.rows]
        return "\n".join([*lines, *(f"probably not meant: {x}" for x in self.problems)])


def check(family: TaskFamily, *, num_tasks: int = 16, seed: int = 0, show: bool = False) -> Checked:
    """Findings on a family: `check_promises`, then an episode of random actions in ``num_tasks`` tasks of each split.

    ``problems`` says whether all tasks are the same, whether a random key is used twice, and which leaves of the state
    every reset draws anew although they never change within an episode. If such a leaf tells one task from another,
    knowledge from one episode is wrong in the next; `transform.pinned` makes the leaf part of the task.

    Args:
        family: The family to try.
        num_tasks: Tasks of each split, at least 2.
        seed: Seed of the tasks and of the actions.
        show: Print the findings as a table, as ``print(check(family))`` does.

    Raises:
        TypeError: ``family`` is no TaskFamily.
        InvalidEnvironment: a promise is broken: one of `check_promises`, or of `check_parameters`; resets and steps are not pure; an episode did
            not end by the horizon; numbers are not finite; observations leave their space; or splits of
            ``family.disjoint`` have a task in common. The message has a line for each.
    """
    check_promises(family)
    checks.at_least("num_tasks", num_tasks, 2)
    checks.at_least("seed", seed, 0)
    check_pure(family)
    if family.parameters is not None:
        check_parameters(family)
    keys = jax.random.split(jax.random.key(seed), len(SPLITS) + 1)
    samplers = {split: getattr(family, split) for split in SPLITS}
    # Compiled, because a sampler may make a world; splits with one sampler share its program.
    programs = {id(sampler): jax.jit(jax.vmap(sampler)) for sampler in samplers.values()}
    drawn = {
        split: programs[id(sampler)](jax.random.split(key, num_tasks))
        for key, (split, sampler) in zip(keys[1:], samplers.items(), strict=True)
    }
    for split, some in drawn.items():
        for (path, x), like in zip(
            jax.tree_util.tree_leaves_with_path(some), jax.tree.leaves(drawn["train"]), strict=True
        ):
            if (x.shape, x.dtype) != (like.shape, like.dtype):
                raise InvalidEnvironment(
                    f"family={family.name!r}: a task of {split}{jax.tree_util.keystr(path)} is {x.dtype} of shape "
                    f"{x.shape[1:]}; in train it is {like.dtype} of shape {like.shape[1:]}"
                )
    every = jax.tree.map(lambda *x: jnp.concatenate(x), *drawn.values())
    episode_keys = jax.random.split(keys[0], len(SPLITS) * num_tasks)
    # One program for the tasks of all splits, run twice to time it.
    lived_in = jax.jit(jax.vmap(lambda key, task: _episode(family, key, task)))
    episodes: _Seen = jax.device_get(lived_in(episode_keys, every))
    began = time.perf_counter()
    jax.block_until_ready(lived_in(episode_keys, every))
    seconds = time.perf_counter() - began
    problems, broken = dict[str, list[str]](), dict[str, list[str]]()
    longest = 0
    for number, split in enumerate(SPLITS):
        rows = slice(number * num_tasks, (number + 1) * num_tasks)
        seen: _Seen = jax.tree.map(lambda x, rows=rows: x[rows], episodes)
        lived = np.cumsum(seen.last, axis=1) - seen.last == 0  # [M, T], the first episode
        longest = max(longest, int(np.max(np.sum(lived, axis=1))))
        for what in _broken(family, seen, lived):
            broken.setdefault(what, []).append(split)
        for what in _problems(family, seen, len(_distinct(drawn[split]))):
            problems.setdefault(what, []).append(split)
    faults = [*_sentences(broken), *_in_common(family, drawn)]
    if faults:
        raise InvalidEnvironment(f"family={family.name!r}: " + "; ".join(faults))
    sentences = (*_sentences(problems), *keys_used_twice(family))
    distinct = len(_distinct(drawn["train"]))
    table = _table(family, drawn["train"], episodes, longest=longest, distinct=distinct)
    found = Checked(
        num_tasks, distinct, longest, sentences, (*table, _cost(family, seconds, len(episode_keys)))
    )
    if show:
        print(found)
    return found


def check_parameters(family: TaskFamily) -> None:
    """Raises InvalidEnvironment where the family's ``parameters`` do not give the distribution of ``train``.

    So it is after ``dataclasses.replace(family, train=...)``. `NUM_COMPARED` tasks of each are drawn: an entry has another
    distribution, or ``train`` has far fewer different tasks.
    """
    assert family.parameters is not None
    size = checks.at_least("parameters.size", family.parameters.size, 1)
    key = jax.eval_shape(lambda: jax.random.key(0))
    check_made_tasks(family, f"family={family.name!r}:", key, jax.eval_shape(family.train, key))
    made, train = family.parameters.task, family.train

    @jax.jit
    def drawn(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        train_key, key = jax.random.split(key)
        x = jax.random.uniform(key, (NUM_COMPARED, size))
        both = jax.vmap(train)(jax.random.split(train_key, NUM_COMPARED)), jax.vmap(made)(x)
        rows = jax.vmap(lambda task: flat(jax.tree.map(words, task)))
        return rows(both[0]), rows(both[1])

    ours, theirs = (np.sort(np.asarray(x), axis=0) for x in drawn(jax.random.key(0)))
    gap = 0.0
    for one, other in zip(ours.T, theirs.T, strict=True):
        places = np.concatenate([one, other])
        below = [np.searchsorted(x, places, side="right") for x in (one, other)]
        gap = max(gap, float(np.max(np.abs(below[0] - below[1]))) / NUM_COMPARED)
    distinct = [max(len(np.unique(x)) for x in rows.T) for rows in (ours, theirs)]
    if gap > LARGEST_GAP or 2 * distinct[0] < distinct[1]:
        raise InvalidEnvironment(
            f"family={family.name!r}: parameters give other tasks than train. Uniform numbers must give the training tasks: "
            "dataclasses.replace(family, parameters=...), or parameters=None"
        )


def _sentences(found: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(f"{', '.join(where)}: {what}" for what, where in found.items())


class _Seen(NamedTuple):
    """An episode of random actions in one task."""

    resets: jax.Array
    """``[2, *obs_shape]``, observations of two resets."""
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
    first_obs, first = door.reset(env, reset_key, task)
    other_obs, other = door.reset(env, other_key, task)

    def same(x: jax.Array, y: jax.Array) -> jax.Array:
        if is_key(x):
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
    return _Seen(jnp.stack([first_obs, other_obs]), obs, reward, last, still, redrawn)


def _broken(family: TaskFamily, seen: _Seen, lived: np.ndarray) -> list[str]:
    """Broken promises in the tasks of one split; ``lived [M, T]`` marks the first episode of each."""
    found = []
    if not np.all(np.any(seen.last, axis=1)):
        found.append(
            f"an episode had not ended after horizon={family.horizon} steps, although "
            f"{environments.name_of(family.env)} promises it by ends_by={time_limit.ends_by(family.env)}"
        )
    if not np.all(np.isfinite(seen.obs[lived])) or not np.all(np.isfinite(seen.reward[lived])):
        found.append("numbers of observations or rewards are not finite")
    if not np.all(np.isfinite(seen.resets)):
        found.append("numbers of a reset's observation are not finite")
    space = environments.observation_space(family.env)
    if isinstance(space, spaces.Discrete):
        low, high = np.zeros(()), np.asarray(space.n - 1.0)
    else:
        low, high = boxes.bounds(space)
    slack = 1e-5 * np.maximum(1.0, np.where(np.isfinite(high - low), high - low, 1.0))
    resets = seen.resets.reshape(-1, *family.observation_shape)
    for what, obs in (("observations", seen.obs[lived]), ("a reset's observations", resets)):
        outside = (obs < low - slack) | (obs > high + slack)
        if np.any(outside):
            place = [int(i) for i in np.argwhere(outside)[0]][1:]
            found.append(
                f"{what} lie outside of the observation space {space}, for example entry {place}"
            )
    return found


def _problems(family: TaskFamily, seen: _Seen, num_distinct: int) -> list[str]:
    """The problems of the tasks of one split."""
    found = []
    timed = isinstance(family.env, time_limit.TimeLimit)  # whose state has the environment's within
    if num_distinct == 1:
        found.append("all tasks are the same")
    for (path, still), redrawn in zip(
        jax.tree_util.tree_leaves_with_path(seen.still), jax.tree.leaves(seen.redrawn), strict=True
    ):
        if np.all(still) and np.any(redrawn):
            name = jax.tree_util.keystr(path).removeprefix(".inner" if timed else "")
            found.append(
                f"state{name} never changes within an episode and every reset draws it anew: if it tells one task from "
                "another, make it part of the task (transform.pinned, where the state is a dataclass)"
            )
    return found


def _in_common(family: TaskFamily, drawn: dict[str, Any]) -> list[str]:
    """A sentence for each split of ``family.disjoint`` that has a task in common with another split."""
    tasks = {split: _distinct(some) for split, some in drawn.items()}
    return [
        f"{split} and {other} have a task in common, and disjoint={family.disjoint!r} promises that they have none"
        for split in family.disjoint
        for other in SPLITS
        if other != split
        and tasks[split] & tasks[other]
        and not (other in family.disjoint and other < split)
    ]


def _distinct(tasks: Any) -> set[bytes]:
    """The different ones among ``tasks [M]``, as bytes."""
    leaves = [np.asarray(words(x)) for x in jax.tree.leaves(jax.device_get(tasks))]
    return {b"".join(x[m].tobytes() for x in leaves) for m in range(len(leaves[0]))}


def _table(
    family: TaskFamily, tasks: Any, episodes: _Seen, *, longest: int, distinct: int
) -> tuple[tuple[str, str], ...]:
    """Facts of the family, and how random actions fare, for the table of `Checked`."""
    num_tasks = len(jax.tree.leaves(tasks)[0])
    lived = np.cumsum(episodes.last, axis=1) - episodes.last == 0
    returns = np.sum(np.where(lived, episodes.reward, 0.0), axis=1)
    space = environments.declared_observation_space(family.env)
    return (
        ("family", f"{family.name}, episodes of at most {family.horizon} steps"),
        ("observations", f"{space}, as one array of shape {family.observation_shape}"),
        ("actions", str(family.action_space)),
        ("training tasks", f"{distinct} different ones among {num_tasks}"),
        ("random actions", f"longest episode {longest} steps, mean return {np.mean(returns):.4g}"),
    )


def _cost(family: TaskFamily, seconds: float, num_streams: int) -> tuple[str, str]:
    """The speed of steps and the size of a state, for the table."""
    key, task = jax.random.key(0), family.train(jax.random.key(0))
    _, state = jax.eval_shape(lambda: door.reset(family.env, key, task))
    size = sum(math.prod(x.shape) * _item_size(x.dtype) for x in jax.tree.leaves(state))
    speed = num_streams * family.horizon / seconds
    return (
        "cost",
        f"{speed:,.0f} steps a second in {num_streams} streams; {size} bytes of state a stream",
    )


def _item_size(dtype: Any) -> int:
    return dtype.itemsize if hasattr(dtype, "itemsize") else 8
