"""Families of tasks: an environment with samplers of its parameters."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.tasks import boxes, environments, time_limit
from jaxmeta.types import Environment, Task

SPLITS = ("train", "test", "out_of_distribution")

Sampler = Callable[[jax.Array], Task]
Controller = Callable[[Task, jax.Array], jax.Array]


class Parameters(NamedTuple):
    """Training tasks as a function of independent numbers, for curricula that move the distribution of tasks."""

    size: int
    """D, how many numbers a task follows from."""
    task: Callable[[jax.Array], Task]
    """``x [D] -> task``; independent uniform numbers between 0 and 1 give the training distribution."""


@dataclasses.dataclass(frozen=True)
class TaskFamily:
    """A static gymnax environment with samplers of its tasks, which are parameters of the environment."""

    name: str
    """The name for `jaxmeta.tasks.make`."""
    env: Environment
    """A gymnax environment (``reset_env``, ``step_env``, ``is_truncated``; else ``reset`` and
    ``step``). Tasks may differ only in traced leaves of the parameters. ``reset_env`` must not draw
    any part of the task, so that the end of an episode never changes the task. An environment may
    promise by an attribute ``ends_by`` that its episodes end by the horizon. Without that promise
    it is put into a `time_limit.TimeLimit`, and ``family.env.env`` is the given environment."""
    horizon: int
    """The time limit of an episode, in steps. An environment may end its episodes sooner."""
    train: Sampler
    """``key -> task``: training tasks."""
    test: Sampler
    """``key -> task``: held-out tasks of the same distribution."""
    out_of_distribution: Sampler
    """``key -> task``: tasks outside the support of the training distribution; if that support is
    everything, tasks of another distribution."""
    optimal_action: Controller | None = None
    """``(task, obs) -> action`` of an optimal policy that is told the task, if a closed form
    exists."""
    optimal_return: Callable[[Task], jax.Array] | None = None
    """``task -> expected return`` of an episode under an optimal policy that is told the task, if
    it is computed exactly; for families whose optimal policy needs more than ``obs``."""
    expert_action: Controller | None = None
    """``(task, obs) -> action`` of a good controller that is told the task, hand-written or found
    by search. It is a reference to measure against, not a bound."""
    action_features: Callable[[jax.Array], jax.Array] | None = None
    """``obs -> φ(s, ·) [A, F]``, features of the A actions for softmax-linear policies, π(a|s) ∝
    exp(φ(s, a)·θ); None means the observation in a block of features for each action."""
    identity: Callable[[Task], jax.Array] | None = None
    """``task -> [P]``, a task as a vector of numbers near 1; None means all parameters, flattened. It is what a network
    is told (`task_vector`): in `informed` families, and where an algorithm knows tasks in training."""
    disjoint: tuple[str, ...] = ()
    """Splits that promise to have no task in common with any other split; `tasks.check` tries it."""
    mutate: Callable[[jax.Array, Task], Task] | None = None
    """``(key, task) -> task``: a small random change of a training task, for `curricula.accel`."""
    parameters: Parameters | None = None
    """How training tasks follow from independent uniform numbers, for `curricula.roml`."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name={self.name!r} must be a string")
        checks.at_least("horizon", self.horizon, 1)
        for split in SPLITS:
            if not callable(getattr(self, split)):
                raise TypeError(f"{split}={getattr(self, split)!r} must be a function, key -> task")
        for name in (
            "optimal_action",
            "optimal_return",
            "expert_action",
            "action_features",
            "identity",
            "mutate",
        ):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise TypeError(f"{name}={getattr(self, name)!r} must be a function, or None")
        if not isinstance(self.parameters, Parameters | None):
            raise TypeError(f"parameters={self.parameters!r} must be a tasks.Parameters, or None")
        object.__setattr__(self, "disjoint", tuple(self.disjoint))
        for split in self.disjoint:
            checks.choice("disjoint", split, SPLITS)
        environments.check_is_environment(self.env)
        promised = time_limit.ends_by(self.env)
        if self.optimal_return is not None and promised not in (None, self.horizon):
            raise ValueError(
                f"optimal_return is of the horizon {promised} that the environment has, and horizon={self.horizon}: make "
                "the family with that horizon, or set optimal_return to None"
            )
        object.__setattr__(self, "env", time_limit.limited(self.env, self.horizon))

    @property
    def action_space(self) -> spaces.Discrete | spaces.Box:
        """The action space of the environment's default task; raises `InvalidEnvironment` unless it is one."""
        return environments.action_space(self.env)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation, ``()`` for a scalar; raises `InvalidEnvironment` unless observations are one array."""
        return tuple(environments.observation_space(self.env).shape)

    def task_vector(self, task: Task) -> jax.Array:
        """``task`` as a vector: its ``identity``, or all its parameters in the order of ``jax.tree.leaves``, ``[P]`` float."""
        return (self.identity or flat)(task)

    def random_action(self, key: jax.Array) -> jax.Array:
        """A uniform draw from the action space; for a `Box`, from its nominal range (see `boxes`)."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):  # one random number, where `randint` takes four
            return jnp.floor(space.n * jax.random.uniform(key)).astype(space.dtype)
        return boxes.sample(key, space)


def flat(tree: Task) -> jax.Array:
    """All leaves of ``tree`` in one float vector ``[P]``."""
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([jnp.ravel(jnp.asarray(leaf, float)) for leaf in leaves])


@checks.arguments
def sample_tasks(key: jax.Array, family: TaskFamily, num_tasks: int, *, split: str) -> Task:
    """M = ``num_tasks`` independent tasks of a split (one of `SPLITS`): a pytree with leading ``[M]``."""
    checks.choice("split", split, SPLITS)
    checks.at_least("num_tasks", num_tasks, 1)
    return jax.vmap(getattr(family, split))(jax.random.split(key, num_tasks))


@checks.arguments
def content_hash(family: TaskFamily, split: str, *, num_tasks: int = 4) -> str:
    """Hexadecimal digits that change when the tasks of a split change, from a few tasks drawn with a fixed key.

    Each array of real numbers enters as one random projection, rounded to four significant digits.
    So compilers that round differently give the same digits.
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
