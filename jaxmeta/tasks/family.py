"""What a family of tasks is."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.types import Task

Sampler = Callable[[jax.Array], Task]
Controller = Callable[[Task, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class TaskFamily:
    """A static gymnax environment and samplers of the parameters that make it one task or another.

    Attributes:
        name: The name under which `jaxmeta.tasks.make` knows it.
        env: A gymnax environment (``reset_env``, ``step_env``, ``is_truncated``; else ``reset`` and ``step``). Everything that tells
            one task from another is a traced leaf of its parameters and nothing of it is drawn in
            ``reset_env``, so an episode's end never changes the task.
        horizon: The time limit of an episode, in steps.
        train: ``key -> task``: the tasks to learn from.
        test: ``key -> task``: held-out tasks of the same distribution.
        out_of_distribution: ``key -> task``: tasks outside the training distribution's support; where
            that is everything, tasks of another law.
        optimal_action: ``(task, obs) -> action`` of an optimal policy told the task, where a closed
            form exists.
        optimal_return: ``task -> expected return`` of an episode under an optimal policy told the task,
            where it is computed exactly; for families whose optimal policy needs more than ``obs``.
        expert_action: ``(task, obs) -> action`` of a good controller told the task, hand-written or searched
            for, where no optimum is known: a mark to measure by, not a bound.
        action_features: ``obs -> φ(s, ·) [A, F]``: what softmax-linear policies, π(a|s) ∝ exp(φ(s, a)·θ), see of
            the A actions; None is the observation in a block of features for each action.
    """

    name: str
    env: Any
    horizon: int
    train: Sampler
    test: Sampler
    out_of_distribution: Sampler
    optimal_action: Controller | None = None
    optimal_return: Callable[[Task], jax.Array] | None = None
    expert_action: Controller | None = None
    action_features: Callable[[jax.Array], jax.Array] | None = None

    @property
    def action_space(self) -> spaces.Space:
        """The action space of the environment's default task."""
        return self.env.action_space(self.env.default_params)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation, ``()`` for a scalar."""
        return tuple(self.env.observation_space(self.env.default_params).shape)

    def random_action(self, key: jax.Array) -> jax.Array:
        """A uniform draw from the action space."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):  # one random number, where `randint` takes four
            return jnp.floor(space.n * jax.random.uniform(key)).astype(space.dtype)
        return space.sample(key)


def steps_without_reset(env: Any) -> bool:
    """Whether an environment has a ``step_env`` and a ``reset_env`` of its own.

    gymnax's wrappers hand on those of what they wrap, as if they were not there; of such only ``step`` and
    ``reset`` are to be called.
    """
    return hasattr(type(env), "step_env") and hasattr(type(env), "reset_env")


SPLITS = ("train", "test", "out_of_distribution")


def sample_tasks(key: jax.Array, family: TaskFamily, num_tasks: int, *, split: str) -> Task:
    """``num_tasks`` independent tasks of a split (one of `SPLITS`): a pytree with leading ``[M]``."""
    checks.choice("split", split, SPLITS)
    checks.at_least("num_tasks", num_tasks, 1)
    return jax.vmap(getattr(family, split))(jax.random.split(key, num_tasks))


def content_hash(family: TaskFamily, split: str, *, num_tasks: int = 4) -> str:
    """Hexadecimal digits that change when the tasks of a split do: of the first few drawn from a fixed key.

    Of each array of real numbers one random projection enters, with four significant digits: compilers that
    round differently agree on it.
    """
    drawn = sample_tasks(jax.random.key(0), family, num_tasks, split=split)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(drawn)):
        digest.update(f"{leaf.dtype} {leaf.shape}".encode())
        if np.issubdtype(leaf.dtype, np.floating):
            weights = np.random.default_rng(0).standard_normal(leaf.shape)
            digest.update(f"{np.vdot(weights, leaf):.3e}".encode())
        else:
            digest.update(leaf.tobytes())
    return digest.hexdigest()[:16]
