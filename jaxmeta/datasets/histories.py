"""Histories: all that learners did in their tasks, in the order in which they did it.

A history is one stream of a learner's lifetime, from its first step to its last. Episodes follow each other, and the learner
is updated between them. Functions here are pure; `files` keeps histories on disk.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import checks, rollouts
from jaxmeta.rollouts.fits import check_fits
from jaxmeta.tasks import environments, signatures
from jaxmeta.tasks.family import Controller, TaskFamily
from jaxmeta.types import Learner, Task, TimeStep, Trajectory


class Histories(NamedTuple):
    """Streams of experience of M tasks, N in each."""

    tasks: Task
    """``[M]``, the tasks."""
    data: Trajectory
    """``[M, N, T]``, the experience; its ``memory`` is ``()``."""
    length: jax.Array
    """``[M, N]``, int32: the steps of each history, at most T. Steps after them hold nothing to learn from."""


@checks.arguments
def record(
    key: jax.Array,
    meta: Any,
    tasks: Task,
    *,
    setup: rollouts.Setup,
    num_updates: int,
    restart: bool = False,
    tasks_per_chunk: int = 100,
) -> Histories:
    """The lifetimes of a learner in ``tasks [M]``: N histories of ``(K + 1) T`` steps in each task.

    At the start of an episode the previous action and reward are the ones of the step before, also after a restart.

    Args:
        key: A random key.
        meta: The input of the learner.
        tasks: The tasks.
        setup: The learner in its environment, N streams, and T steps between two updates.
        num_updates: K, the updates of each learner.
        restart: Whether all streams begin anew after each update, as gradient-based learners do in training.
        tasks_per_chunk: Tasks that are lived through at a time.

    Raises:
        ValueError: ``meta`` is of a population or of another learner, or the learner does not fit the environment.
    """
    checks.at_least("num_updates", num_updates, 0)
    checks.at_least("tasks_per_chunk", tasks_per_chunk, 1)
    num_tasks = environments.num_tasks("tasks", tasks, setup.env)
    check_fits(meta, tasks, learner=setup.learner, env=setup.env)

    def history(key_and_task: tuple) -> Trajectory:
        key, task = key_and_task
        lived = rollouts.lifetime(
            key, meta, task, setup=setup, num_updates=num_updates, restart=restart
        )
        rounds = jax.tree.map(
            lambda x: jnp.moveaxis(x, 0, 1), lived.trajectories._replace(memory=())
        )  # [N, K + 1, T]
        return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), rounds)

    def whole(key_and_task: tuple) -> Trajectory:
        return jax.vmap(_joined)(history(key_and_task))

    keys = jax.random.split(key, num_tasks)
    data = jax.lax.map(whole, (keys, tasks), batch_size=min(tasks_per_chunk, num_tasks))
    return Histories(tasks, data, _full(data))


@checks.arguments
def mixtures(
    key: jax.Array,
    tasks: Task,
    *,
    family: TaskFamily,
    num_streams: int,
    num_episodes: int,
    expert: Controller | None = None,
    random_steps: float = 0.9,
    draw: Literal["step", "episode"] = "step",
) -> Histories:
    """Histories of an expert that acts at random less and less, N in each of ``tasks [M]``, of E H steps.

    Zisman et al. 2024, "Emergence of in-context reinforcement learning from noise distillation". At each step the action is
    random with probability ε, else the expert's. ε falls from 1 to 0 in a straight line over the share ``random_steps`` of the
    history.

    With ``draw="step"``, as published, poor episodes already lean towards what is good. A network that learns from them
    takes its own early actions for such a hint, and goes on in the direction in which it happened to start (Ortega et al. 2021,
    "Shaking the foundations: delusions in sequence models for interaction and control"). With ``draw="episode"`` an
    episode is random or the expert's as a whole, so actions that earned nothing hint at nothing.

    Args:
        key: A random key.
        tasks: The tasks.
        family: Their family.
        num_streams: N.
        num_episodes: E, of at most H steps, the horizon.
        expert: ``(task, obs) -> action``; None takes the family's ``optimal_action``, or else its ``expert_action``.
        random_steps: The share of the steps at which ε is above 0.
        draw: Whether the dice fall at each ``"step"`` or at the first step of each ``"episode"``.

    Raises:
        ValueError: the family has no expert and none is given; a number is out of range.
        tasks.InvalidEnvironment: ``expert`` gives no action of the family.
    """
    checks.at_least("num_streams", num_streams, 1)
    checks.at_least("num_episodes", num_episodes, 1)
    checks.between("random_steps", random_steps, 0, 1)
    checks.choice("draw", draw, ("step", "episode"))
    best = expert or family.optimal_action or family.expert_action
    if best is None:
        raise ValueError(
            f"family {family.name!r} has no optimal_action and no expert_action: give expert=, (task, obs) -> action"
        )
    if expert is not None:
        signatures.check_controller("expert", expert, family)
    num_steps = num_episodes * family.horizon
    num_tasks = environments.num_tasks("tasks", tasks, family.env)
    learner = _mixture(family, best, random_steps * num_steps, each_step=draw == "step")
    setup = rollouts.Setup(learner, family.env, num_streams, num_steps)

    def history(key: jax.Array, task: Task) -> Trajectory:
        # The learner knows the task, because its `meta` is the task.
        return rollouts.sample(key, task, task, (), setup=setup)._replace(memory=())

    data = jax.vmap(history)(jax.random.split(key, num_tasks), tasks)
    return Histories(tasks, data, _full(data))


def _mixture(
    family: TaskFamily, best: Controller, random_steps: float, *, each_step: bool
) -> Learner:
    """The expert that acts at random less and less. Its ``meta`` is the task; its memory counts steps and keeps the draw."""

    def act(
        key: jax.Array, task: Task, agent: Any, memory: tuple, timestep: TimeStep
    ) -> tuple[jax.Array, jax.Array, tuple]:
        share_key, action_key = jax.random.split(key)
        time, at_random = memory
        past = time.astype(float)
        noise = jnp.where(past < random_steps, 1.0 - past / max(random_steps, 1.0), 0.0)
        drawn = jax.random.uniform(share_key) < noise
        at_random = jnp.where(each_step | timestep.first, drawn, at_random)
        other = family.random_action(action_key)
        known = jnp.asarray(best(task, timestep.obs), other.dtype)
        action = jnp.where(at_random, other, known)
        return action, jnp.zeros(()), (time + 1, at_random)

    return Learner(
        init=lambda key, task: (),
        memory=lambda task: (jnp.zeros((), jnp.int32), jnp.zeros((), bool)),
        act=act,
        update=lambda key, task, agent, trajectories: agent,
    )


@checks.arguments
def thin(histories: Histories, every: int) -> Histories:
    """The histories with only every k-th episode, k = ``every``: the same progress in fewer steps.

    It cannot be compiled, because the arrays become as short as the longest history. The first episode is kept. The previous action and reward of an episode's first step are those of the episode that is
    kept before it.
    """
    checks.at_least("every", every, 1)
    each = jax.vmap(jax.vmap(partial(_thinned, every=every)))
    data, length = each(histories.data, histories.length)
    longest = int(jnp.max(length))
    data = jax.tree.map(lambda x: x[:, :, :longest], data)
    return Histories(histories.tasks, data, length)


def _thinned(data: Trajectory, length: jax.Array, *, every: int) -> tuple[Trajectory, jax.Array]:
    """One history ``[T]`` with the steps of every k-th episode in front."""
    steps = jnp.arange(data.reward.shape[0])
    # By its first step, for a restart may cut an episode off before its last.
    episode = jnp.cumsum(data.timestep.first) - 1
    kept = (episode % every == 0) & (steps < length)
    order = jnp.argsort(~kept, stable=True)
    return _joined(jax.tree.map(lambda x: x[order], data)), jnp.sum(kept, dtype=jnp.int32)


def _joined(data: Trajectory) -> Trajectory:
    """One history ``[T]`` with the previous action and reward of each episode's first step from the step before it."""

    def before(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])

    action, reward = data.timestep.action, data.timestep.reward
    first = data.timestep.first.reshape(-1, *[1] * (action.ndim - 1))
    timestep = data.timestep._replace(
        action=jnp.where(first, before(data.action).astype(action.dtype), action),
        reward=jnp.where(data.timestep.first, before(data.reward), reward),
    )
    return data._replace(timestep=timestep)


def check(histories: Histories) -> None:
    """Raises unless ``data`` and ``length`` of ``histories`` are of M tasks, N streams and T steps, and no length is above T.

    Raises:
        TypeError: ``data`` is no `Trajectory`, or ``length`` no array of integers.
        ValueError: a shape differs, a length is not between 0 and T, or there is nothing in it; the message names the array.
    """
    checks.instance("histories.data", histories.data, Trajectory)
    reward = histories.data.reward
    named = {"histories.data.reward": reward, "histories.length": histories.length}
    checks.shapes("MNT MN", **named)
    if 0 in reward.shape:
        raise ValueError(f"histories.data.reward has shape {reward.shape}; it holds nothing")
    for path, x in jax.tree_util.tree_leaves_with_path(histories.data._replace(memory=())):
        name = f"histories.data{jax.tree_util.keystr(path)}"
        if name != "histories.data.reward":
            checks.shapes("MNT MNT...", **{"histories.data.reward": reward, name: x})
    dtype = histories.length.dtype
    if not jnp.issubdtype(dtype, np.integer):
        raise TypeError(f"histories.length is {dtype}; it must hold numbers, int32")
    length = np.asarray(histories.length)
    if length.min() < 0 or length.max() > reward.shape[2]:
        raise ValueError(
            f"histories.length holds {length.min()} to {length.max()}; it must be between 0 and {reward.shape[2]}, the steps of "
            "the arrays"
        )


def _full(data: Trajectory) -> jax.Array:
    """The length of histories that are as long as their arrays."""
    *batch, num_steps = data.reward.shape
    return jnp.full(batch, num_steps, jnp.int32)
