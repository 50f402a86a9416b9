"""The types of the library.

A *learner* is born into a *task*, acts, learns from its experience and acts again: a lifetime. A
*meta-algorithm* learns ``meta``, the parameters that all learners start from. The rest of the
library takes and returns the types below.

Axes, outermost first: M tasks, K updates in a lifetime, N streams of experience in a task, T steps.
Docstrings give unbatched shapes (``[T]`` for one stream, ``[N, T]`` for one task); callers
``vmap``.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

Params = Any
"""Parameters of a network: nested dicts of arrays."""

Meta = Any
"""The part that the slow loop learns and every learner reads: an algorithm's own NamedTuple, mostly of ``params`` and ``hyper``."""

Hyper = Any
"""An algorithm's own NamedTuple ``Hyper``: numbers that a run may sweep, schedule or learn."""

Task = Any
"""One MDP of a family: a gymnax ``EnvParams`` pytree. Its traced leaves differ from task to
task."""


class Environment(Protocol):
    """A gymnax environment, one's own or gymnax's; `tasks.environments` checks its parts.

    ``params`` is a `Task` in all methods.
    """

    @property
    def default_params(self) -> Any:
        """One task."""

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Any, Any]:
        """``(obs, state)`` at the start of an episode."""

    def step(self, key: jax.Array, state: Any, action: Any, params: Any = None) -> tuple:
        """``(obs, state, reward, terminated, truncated, info)``, after a reset where the episode ended."""

    def action_space(self, params: Any = None) -> Any:
        """A gymnax ``Discrete`` or ``Box``."""

    def observation_space(self, params: Any) -> Any:
        """A gymnax ``Discrete`` or ``Box``."""


class SteppedEnvironment(Environment, Protocol):
    """An environment with a step that does not reset where the episode ends, as gymnax's own have; wrappers of gymnax have none."""

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """``(obs, state)`` at the start of an episode."""

    def step_env(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple:
        """``(obs, state, reward, terminated, info)``."""

    def is_truncated(self, state: Any, params: Any) -> Any:
        """Whether the episode ends at this state, by a limit of time."""

    def observe(self, key: jax.Array, state: Any, action: Any, params: Any) -> Any:
        """The observation of a state."""


class TimeStep(NamedTuple):
    """The inputs of a policy at one step."""

    obs: jax.Array
    """``[*obs_shape]``, float: the observation."""
    action: jax.Array
    """``[*action_shape]``, the previous action, also across episodes; zeros at a stream's first
    step."""
    reward: jax.Array
    """``[]``, the previous reward, also across episodes; 0 at a stream's first step."""
    first: jax.Array
    """``[]``, bool: first step of an episode."""


class Stream(NamedTuple):
    """The state of one stream of experience between two steps."""

    env_state: Any
    """State of the environment."""
    timestep: TimeStep
    """Inputs of the policy at the next step."""
    memory: Any
    """Memory of the learner."""


class Trajectory(NamedTuple):
    """T steps of one stream; every leaf but ``memory`` has a leading ``[T]``."""

    timestep: TimeStep
    """Inputs of the policy at each step."""
    action: jax.Array
    """``[T, *action_shape]``, the action as the policy drew it."""
    log_prob: jax.Array
    """``[T]``, log-probability of the action under the policy that acted."""
    reward: jax.Array
    """``[T]``."""
    discount: jax.Array
    """``[T]``, 0 at termination, else 1; a time limit is no termination."""
    last: jax.Array
    """``[T]``, bool: the episode ended with this step, by termination or truncation."""
    next_obs: jax.Array
    """``[T, *obs_shape]``, the true successor, before any reset."""
    memory: Any
    """The memory before the first step."""


class History(NamedTuple):
    """The rounds of a lifetime; every leaf has a leading ``[K]``."""

    agent: Any
    """The agent that acted in each round, before its update."""
    trajectories: Trajectory
    """``[K, N, T]``, the agent's experience, on which it was then updated."""


class Learner(NamedTuple):
    """The fast loop: how an agent acts and learns in one lifetime. ``meta`` is learned by the slow loop."""

    init: Callable[[jax.Array, Meta], Any]
    """``(key, meta) -> agent``, once per task."""
    memory: Callable[[Meta], Any]
    """``(meta) -> memory``, once per stream."""
    act: Callable[[jax.Array, Meta, Any, Any, TimeStep], tuple[jax.Array, jax.Array, Any]]
    """``(key, meta, agent, memory, timestep) -> (action, log_prob, memory)``, at every step."""
    update: Callable[[jax.Array, Meta, Any, Trajectory], Any]
    """``(key, meta, agent, trajectories [N, T]) -> agent``."""


class Lifetime(NamedTuple):
    """How a learner collects experience between two updates in meta-training."""

    num_streams: int
    """N, parallel streams of a task."""
    num_steps: int
    """T, the steps of a stream between two updates."""
    restart: bool = False
    """Whether each update is followed by new episodes with new memories. The learner then learns from the first episode
    of a stream alone."""
    trial: bool = False
    """Whether a stream is a trial of T steps, in whose memory the learner learns."""


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: settings may be arrays
class Description:
    """The constructor of `algorithms` that made an algorithm, and what the constructor was given."""

    name: str
    """Name of the constructor, in `algorithms.ALGORITHMS`."""
    family: Any
    """The family that the algorithm was made for."""
    config: Any
    """The algorithm's ``Config``."""
    hyper: Any
    """The algorithm's ``Hyper``."""
    arguments: Mapping[str, Any]
    """Other arguments that the constructor was given, by name: a network, an optimiser."""
    parts: Mapping[str, Any]
    """The fields of the `MetaAlgorithm` as the constructor made them."""


class TaskResults(NamedTuple):
    """The results of each task of a meta-update, ``[M]``. A field is None if the algorithm does not report it.

    N are the streams of a task, E their episodes and T their steps.
    """

    returns: Any = None
    """``[M]``, mean undiscounted return of the adapted agent, or of a whole trial without episodes that only explore; NaN without
    a good stream."""
    best: Any = None
    """``[M]``, the highest undiscounted return of a trial; -inf without a good one."""
    episodes: Any = None
    """``[M, N, E]``, undiscounted returns of episodes; NaN where an episode did not end, or is of a broken stream."""
    reward: Any = None
    """``[M, N, T]``; 0 at steps that are not ``counted``."""
    value: Any = None
    """``[M, N, T]``, the predicted return to come at each step, in the unit of rewards."""
    advantage: Any = None
    """``[M, N, T]``, generalised advantages in the unit of rewards."""
    counted: Any = None
    """``[M, N, T]``, bool: the steps of whole episodes of good streams."""


class MetaAlgorithm(NamedTuple):
    """The slow loop: optimises ``meta``, the parameters that all learners start from."""

    init: Callable[..., Any]
    """``(key) -> state``; ``state.meta`` is the learner's ``meta``."""
    step: Callable[[jax.Array, Any, Task], tuple[Any, dict[str, jax.Array]]]
    """``(key, state, tasks [M]) -> (state, metrics)``: one meta-update; metrics are scalars. Algorithms that learn from a
    dataset take windows of it, ``Trajectory [M, T]``, instead of tasks."""
    learner: Learner
    """The learner that is trained."""
    lifetime: Lifetime | None = None
    """How the learner collects experience in meta-training; `deployment.Session` does the same in one real task."""
    description: Description | None = None
    """The parts that the algorithm was made of; None for an algorithm of your own. `training.train` records it and compares it on
    resuming."""
    step_with_results: Callable[..., tuple[Any, dict[str, jax.Array], TaskResults]] | None = None
    """``(key, state, tasks [M], learns [M]) -> (state, metrics, results [M])``: a meta-update as ``step``, for a `Curriculum`.
    It learns from the tasks in ``learns`` (bool) alone, and reports what each task gave. None where the algorithm has none."""


class Source(NamedTuple):
    """Where the batches of meta-updates come from, if not from a family's training tasks: see `datasets.windows`."""

    sample: Callable[[jax.Array, Any, int], Any]
    """``(key, data, num) -> batch [num]``: what ``step`` gets in place of tasks. It is pure and compiled."""
    load: Callable[[int], tuple[Any, int]]
    """``(update) -> (data, end)``: the arrays that meta-updates ``update .. end - 1`` sample from. It runs on the host and
    depends on ``update`` alone, so that a resumed run gets the same batches."""
    description: Mapping[str, Any]
    """The identity of the data; ``config.json`` holds it, and a resumed run compares it."""


class Draw(NamedTuple):
    """The tasks of one meta-update, as a `Curriculum` drew them."""

    tasks: Task
    """``[M]``."""
    learns: jax.Array
    """``[M]``, bool: the tasks to learn from. The others are only tried."""
    info: Any
    """The facts of the draw that `Curriculum.update` needs."""


@dataclasses.dataclass(
    frozen=True, eq=False
)  # hashed by identity, as a description is a dictionary
class Curriculum:
    """How training tasks are drawn, where the draw depends on what the tasks gave before: see `curricula`.

    All functions are pure. The state is a part of the run: it is compiled, saved and resumed with it.
    """

    init: Callable[[int], Any]
    """``(num_tasks) -> state``, for meta-updates of M = ``num_tasks`` tasks."""
    draw: Callable[[jax.Array, Any, Meta, int], tuple[Any, Draw]]
    """``(key, state, meta, num_tasks) -> (state, draw [M])``; ``meta`` is what the learner reads."""
    update: Callable[[Any, Draw, TaskResults], tuple[Any, dict[str, jax.Array]]]
    """``(state, draw [M], results [M]) -> (state, metrics)``. A metric ``env_steps`` counts steps of the environment that
    the curriculum took itself."""
    needs: tuple[str, ...]
    """The fields of `TaskResults` that ``update`` reads."""
    description: Mapping[str, Any]
    """The identity of the curriculum; ``config.json`` holds it, and a resumed run compares it."""
    family: Any = None
    """The family whose tasks are drawn, for a check that a run trains on it; None is not checked."""


class _Documented:
    """The ``__doc__`` of a class: its docstring, and the strings below its fields under ``Attributes:``.

    The strings are read from the source when somebody asks, because reading them all would make every import slow.
    """

    def __init__(self, docstring: str) -> None:
        self.docstring = docstring
        self.whole: str | None = None

    def __get__(self, instance: Any, owner: type) -> str:
        if self.whole is None:
            docs: dict[str, str] = {}
            for kind in reversed(owner.__mro__):
                docs |= _field_docs(kind)
            parts = [f"    {name}: {doc.replace(NEWLINE, INDENTED)}" for name, doc in docs.items()]
            lines = ["", "", "Attributes:", *parts] if parts else []
            self.whole = inspect.cleandoc(self.docstring) + NEWLINE.join(lines)
            for name in getattr(owner, "_fields", ()):
                if name in docs:
                    getattr(owner, name).__doc__ = docs[name]
        return self.whole


NEWLINE, INDENTED = "\n", "\n        "


def _field_docs(kind: type) -> dict[str, str]:
    """The strings below the fields of a class of this library, by the fields' names."""
    if not kind.__module__.startswith("jaxmeta."):
        return {}
    try:
        body = _class_bodies(kind.__module__)[kind.__name__]
    except (KeyError, OSError):  # made by a function; or there is no source
        return {}
    found = {}
    for field, below in itertools.pairwise(body):
        text = getattr(getattr(below, "value", None), "value", None)
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(below, ast.Expr)
            and isinstance(text, str)
        ):
            found[ast.unparse(field.target)] = inspect.cleandoc(text)
    return found


@functools.cache
def _class_bodies(module: str) -> dict[str, list[ast.stmt]]:
    """The statements in the classes of a module, by the classes' names."""
    parsed = ast.parse(inspect.getsource(sys.modules[module])).body
    return {node.name: node.body for node in parsed if isinstance(node, ast.ClassDef)}


def document_fields() -> None:
    """Makes `help` show the strings below the fields of all classes of this library that are imported so far."""
    for name, module in list(sys.modules.items()):
        if not name.startswith("jaxmeta."):
            continue
        for kind in list(vars(module).values()):
            if isinstance(kind, type) and kind.__module__ == name:
                docstring = vars(kind).get("__doc__")
                if isinstance(docstring, str) and not issubclass(kind, Exception):
                    kind.__doc__ = _Documented(docstring)  # type: ignore[assignment]


document_fields()
