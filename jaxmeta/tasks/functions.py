"""A family of two functions, or of a list of tasks: no class to write.

from gymnax.environments import spaces

family = tasks.from_functions(
    reset=lambda key, task: (jnp.zeros(2), jnp.zeros(2)),
    step=lambda key, x, action, task: (x + action, x + action, -jnp.sum((x + action - task) ** 2), False),
    observation_space=spaces.Box(-jnp.inf, jnp.inf, (2,)),
    action_space=spaces.Box(-0.1, 0.1, (2,)),
    horizon=20,
    train=lambda key: jax.random.uniform(key, (2,)),
)
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks import environments
from jaxmeta.tasks.environments import InvalidEnvironment
from jaxmeta.tasks.family import Sampler, TaskFamily
from jaxmeta.types import Task

Reset = Callable[[jax.Array, Task], tuple[Any, Any]]
"""``(key, task) -> (obs, state)`` at the start of an episode."""
Step = Callable[[jax.Array, Any, Any, Task], tuple[Any, Any, Any, Any]]
"""``(key, state, action, task) -> (obs, state, reward, terminated)``, one step without a reset."""


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionEnvironment(environment.Environment[Any, Any]):
    """The environment of `from_functions`. No other environment equals it: functions cannot be compared."""

    reset_function: Reset
    """The function that begins an episode."""
    step_function: Step
    """The function of one step."""
    declared: tuple[spaces.Space, spaces.Space]
    """The spaces of observations and of actions."""
    first_task: Sampler
    """``key -> task``; the default task is drawn by it with a fixed key."""
    title: str
    """The name for messages."""

    @functools.cached_property
    def default_params(self) -> Task:
        with jax.ensure_compile_time_eval():  # in a loop of one round, which is compiled as a whole
            tasks = jax.lax.map(self.first_task, jax.random.key(0)[None])
            return jax.tree.map(lambda x: x[0], tasks)

    @property
    def name(self) -> str:
        return self.title

    def reset_env(self, key: jax.Array, params: Task) -> tuple[Any, Any]:
        made = self.reset_function(key, params)
        if not isinstance(made, tuple) or len(made) != 2:
            raise InvalidEnvironment(
                f"{self.title}: reset returned {_told(made)}; it must return two: obs, state"
            )
        return made

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Task
    ) -> tuple[Any, Any, Any, Any, dict]:
        made = self.step_function(key, state, action, params)
        if not isinstance(made, tuple) or len(made) != 4:
            raise InvalidEnvironment(
                f"{self.title}: step returned {_told(made)}; it must return four: obs, state, reward, terminated"
            )
        obs, state, reward, terminated = made
        return obs, state, reward, jnp.asarray(terminated), {}

    def told_as(self, method: str) -> str:
        """The name under which the user wrote a method, for messages."""
        return method.removesuffix("_env")

    def is_truncated(self, state: Any, params: Task) -> jax.Array:
        return jnp.zeros((), bool)

    def observation_space(self, params: Task | None = None) -> spaces.Space:
        return self.declared[0]

    def action_space(self, params: Task | None = None) -> spaces.Space:
        return self.declared[1]


KEYS = ("key", "rng", "rng_key", "prng_key")
"""Names by which a random key is known in an argument list."""
ORDERS = {"reset": "(key, task)", "step": "(key, state, action, task)", "train": "(key)"}


def _check_key_is_first(argument: str, function: Callable) -> None:
    """Raises TypeError if a function names a random key after its first argument, as ``reset(task, key)`` does."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # it has none
        return
    if any(name in KEYS for name in names[1:]) and names[0] not in KEYS:
        raise TypeError(f"{argument} takes ({', '.join(names)}); it must take {ORDERS[argument]}")


def _told(made: Any) -> str:
    return f"{len(made)} values" if isinstance(made, tuple) else type(made).__name__


def from_functions(
    reset: Reset,
    step: Step,
    *,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    horizon: int,
    train: Sampler,
    test: Sampler | None = None,
    out_of_distribution: Sampler | None = None,
    name: str = "from_functions",
    **controllers: Callable[..., Any] | None,
) -> TaskFamily:
    """The family of an environment that is two pure functions.

    The result is a `TaskFamily` as any other: transform it, `check` it, train on it. Functions must be pure:
    everything that changes belongs into ``state``, and all randomness comes from ``key``.

    Args:
        reset: ``(key, task) -> (obs, state)`` at the start of an episode.
        step: ``(key, state, action, task) -> (obs, state, reward, terminated)``. Do not reset: the rollout does.
        observation_space: A space of ``gymnax.environments.spaces``; `Dict` and `Tuple` are flattened in the
            order of `composite`. The state is any pytree of arrays.
        action_space: A `Discrete`; a `Box` of floats; or for several choices at once `MultiDiscrete` or a `Box`
            of integers with bounds.
        horizon: Time limit of an episode, in steps. ``step`` may end it sooner.
        train: ``key -> task``, a pytree of arrays.
        test: ``key -> task`` of held-out tasks; None draws from ``train``.
        out_of_distribution: ``key -> task``; None draws from ``test``.
        name: The family's name, for messages and records.
        controllers: ``optimal_action``, ``optimal_return``, ``expert_action`` or ``action_features`` of
            `TaskFamily`; they are given flat observations.

    Raises:
        TypeError: a function is none, or takes its random key in another place than the first.
        ValueError: the horizon is below 1, or a controller's name is unknown.
        InvalidEnvironment: the spaces or what the functions return are not as above. Some of these errors are
            raised when the family is first used; `check_promises` tries all.
    """
    for argument, function in {"reset": reset, "step": step, "train": train}.items():
        if not callable(function):
            raise TypeError(f"{argument}={function!r} must be a function")
        _check_key_is_first(argument, function)
    known = ("optimal_action", "optimal_return", "expert_action", "action_features")
    for controller in controllers:
        checks.choice("argument of from_functions", controller, known)
    for argument, space in {
        "observation_space": observation_space,
        "action_space": action_space,
    }.items():
        if not isinstance(space, spaces.Space):
            raise TypeError(f"{argument}={space!r} must be a space of gymnax.environments.spaces")
    test = train if test is None else test
    family = TaskFamily(
        name=name,
        env=FunctionEnvironment(reset, step, (observation_space, action_space), train, name),
        horizon=horizon,
        train=train,
        test=test,
        out_of_distribution=test if out_of_distribution is None else out_of_distribution,
        **controllers,  # type: ignore[arg-type]
    )
    family.action_space, family.observation_shape  # noqa: B018
    return family


@checks.arguments
def from_list(
    family: TaskFamily,
    train: Task,
    *,
    test: Task | None = None,
    out_of_distribution: Task | None = None,
) -> TaskFamily:
    """The family whose tasks are those of a list, each with equal probability.

    A batch of tasks is one pytree with a leading axis, as `sample_tasks` returns it. Stack a list of single tasks by
    ``jax.tree.map(lambda *x: jnp.stack(x), *tasks)``. A task that is made by ``default_params.replace`` must have all
    parameters replaced that follow from others; `control.cartpole_task` does so for CartPole.

    Args:
        family: The family whose environment has these tasks.
        train: Training tasks, ``[M]``.
        test: Held-out tasks, ``[M']``; None keeps the family's own.
        out_of_distribution: Tasks outside of the training distribution, ``[M'']``; None keeps the family's own.

    Raises:
        ValueError: a list is no batch of tasks of the family's environment; the message names the leaf.
    """
    lists = {"train": train, "test": test, "out_of_distribution": out_of_distribution}
    samplers = {
        split: _drawn_from(split, many, family) for split, many in lists.items() if many is not None
    }
    size = environments.num_tasks("train", train, family.env)
    changes: dict[str, Any] = dict(name=f"{family.name}_of_{size}", mutate=None, parameters=None)
    return dataclasses.replace(family, **changes, **samplers)  # type: ignore[arg-type]


def _drawn_from(split: str, many: Task, family: TaskFamily) -> Sampler:
    if isinstance(many, list):
        raise ValueError(
            f"{split} is a list of {len(many)}; it must be one pytree with a leading axis: "
            "jax.tree.map(lambda *x: jnp.stack(x), *tasks)"
        )
    size = environments.num_tasks(split, many, family.env)
    many = jax.tree.map(jnp.asarray, many)
    one = jax.eval_shape(family.train, jax.random.key(0))
    for (path, x), like in zip(
        jax.tree_util.tree_leaves_with_path(many), jax.tree.leaves(one), strict=True
    ):
        where = f"{split}{jax.tree_util.keystr(path)}"
        right = environments.kind(x.dtype) == environments.kind(like.dtype)
        if x.shape[1:] != like.shape or not right:
            raise ValueError(
                f"{where} is {environments.summary(x)}; a task of the family has {like.dtype} of shape {like.shape}"
            )
        if environments.kind(x.dtype) == "float" and bool(jnp.any(jnp.isnan(x))):
            raise ValueError(f"{where} has a NaN; tasks are numbers")

    def sample(key: jax.Array) -> Task:
        chosen = jax.random.randint(key, (), 0, size)
        return jax.tree.map(lambda x: x[chosen], many)

    return sample
