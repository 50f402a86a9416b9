"""ACCEL: small changes of tasks that taught much.

Parker-Holder et al. 2022, "Evolving curricula with regret-based environment design". It is robust PLR, and each replayed
task is changed a little, by the family's ``mutate``. The changed task is tried in the next meta-update, without learning from it.
If its score is high, it enters the buffer. So tasks grow harder with the agent, often from a simple start.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.curricula import levels as buffers
from jaxmeta.curricula.levels import Levels
from jaxmeta.curricula.replay import PLRConfig, Replayed, ScoreName, as_dict, mixed, needs, scored
from jaxmeta.tasks import signatures
from jaxmeta.tasks.family import Sampler, TaskFamily
from jaxmeta.tasks.keys import as_in, quick
from jaxmeta.types import Curriculum, Draw, Meta, Task, TaskResults


@dataclasses.dataclass(frozen=True)
class ACCELConfig(PLRConfig):
    """Settings of ACCEL: those of PLR, and the number of changes."""

    replay: float = 0.8
    """Probability that a task of a batch is one from the buffer, if it is not a changed one."""
    score: ScoreName = "positive_value_loss"
    """The score of a task, one of `scores.SCORES`."""
    learns_from_new: bool = False
    """Whether to learn from new and changed tasks too; ACCEL does not."""
    num_edits: int = 5
    """Small changes, one after the other, that make a new task from a replayed one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("num_edits", self.num_edits, 1)


class ACCELState(NamedTuple):
    """The buffer, and the tasks to change next."""

    levels: Levels
    """The buffer."""
    parents: Task
    """``[M]``, the tasks of the last meta-update."""
    replayed: jax.Array
    """``[M]``, bool: the task was a replayed one, so that a changed one follows."""


@checks.arguments
def accel(
    family: TaskFamily, config: ACCELConfig = ACCELConfig(), *, start: Sampler | None = None
) -> Curriculum:
    """ACCEL on the training tasks of a family with a ``mutate``.

    Each place of the batch is a chain of its own: after a replayed task comes a changed one; else a replayed one or a new one.

    Args:
        family: The family whose training tasks are drawn and changed.
        config: The buffer's size, the score, the probabilities and the number of changes.
        start: ``key -> task``: the new tasks, for example empty mazes; None is the family's training tasks.

    Raises:
        ValueError: the family has no ``mutate``.
        tasks.InvalidEnvironment: ``start`` makes tasks that are not like the family's training tasks.
    """
    mutate, sample = family.mutate, start or family.train
    if mutate is None:
        raise ValueError(
            f"family={family.name!r} has no mutate; accel needs one: dataclasses.replace(family, mutate=...)"
        )

    if start is not None:
        signatures.check_sampler("start", start, family.train)

    def init(num_tasks: int) -> ACCELState:
        levels = buffers.empty(family.train, config.capacity)
        parents = jax.tree.map(
            lambda x: jnp.zeros((num_tasks, *x.shape[1:]), x.dtype), levels.tasks
        )
        return ACCELState(levels, parents, jnp.zeros(num_tasks, bool))

    def changed(key: jax.Array, task: Task) -> Task:
        keys = jax.random.split(key, config.num_edits)
        return jax.lax.scan(lambda task, key: (as_in(task, mutate(key, task)), None), task, keys)[0]

    def draw(
        key: jax.Array, state: ACCELState, meta: Meta, num_tasks: int
    ) -> tuple[ACCELState, Draw]:
        new_key, edit_key, key = jax.random.split(key, 3)
        new = jax.vmap(sample)(jax.random.split(new_key, num_tasks))
        tasks, (places, replayed) = mixed(key, state.levels, new, config)
        children = where(changed, edit_key, state.parents, state.replayed)
        tasks = buffers.choose(state.replayed, children, tasks)
        replayed &= ~state.replayed
        learns = replayed | config.learns_from_new
        state = state._replace(parents=tasks, replayed=replayed)
        return state, Draw(tasks, learns, Replayed(places, replayed))

    def update(state: ACCELState, drawn: Draw, results: TaskResults) -> tuple[ACCELState, dict]:
        levels = scored(state.levels, drawn, results, config)
        share = jnp.mean(drawn.info.replayed.astype(float))
        metrics = {"curriculum/replayed": share} | buffers.report(levels)
        return state._replace(levels=levels), metrics

    told = {"name": "accel", **as_dict(config)}
    if start is not None:
        told["start"] = getattr(start, "__qualname__", type(start).__name__)
    return Curriculum(init, draw, update, needs(config), told, family)


def where(
    changed: Callable[[jax.Array, Task], Task], key: jax.Array, tasks: Task, which: jax.Array
) -> Task:
    """``changed(key, task)`` of ``which`` (bool ``[M]``) of ``tasks [M]``; some of the others stay as they are.

    The work is done in quarters of M tasks, those of ``which`` first, and ends when all of them are done.
    """
    num_tasks = len(which)
    size = math.ceil(num_tasks / 4)
    key = quick(key)
    order = jnp.argsort(~which, stable=True)
    groups = (jnp.sum(which, dtype=jnp.int32) + size - 1) // size

    def quarter(i: jax.Array, done: Task) -> Task:
        at = jax.lax.dynamic_slice_in_dim(order, i * size, size)
        # Of keys that a loop takes from an array it cannot be shown that none is used twice.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, at)
        some = jax.vmap(changed)(keys, jax.tree.map(lambda x: x[at], tasks))
        return jax.tree.map(lambda x, y: x.at[at].set(y), done, some)

    return jax.lax.fori_loop(0, groups, quarter, tasks)
