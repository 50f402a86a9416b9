"""A meta-update under a curriculum: it draws the tasks, the algorithm learns, and the curriculum sees what the tasks gave."""

from collections.abc import Callable
from typing import Any

import jax

from jaxmeta.types import Curriculum, MetaAlgorithm, Source, TaskResults


def check_fits(
    curriculum: Curriculum | None, algorithm: MetaAlgorithm, source: Source | None = None
) -> None:
    """Raises ValueError unless the algorithm can be trained under the curriculum. None fits every algorithm.

    The reports of the algorithm are seen when `step` is traced.
    """
    if curriculum is None:
        return
    if source is not None:
        raise ValueError(
            "curriculum must be None with a source: batches come from a dataset, not from drawn tasks"
        )
    if algorithm.step_with_results is None:
        raise ValueError(
            f"{_named(algorithm, curriculum)}: it has no step_with_results, so that it cannot say what each task gave. "
            "RL², VariBAD, MAML and other algorithms that follow a mean over tasks have one"
        )
    made = algorithm.description
    if made is not None:
        same = [getattr(algorithm, x) is made.parts[x] for x in ("step", "step_with_results")]
        if same == [False, True]:
            raise ValueError(
                f"{_named(algorithm, curriculum)}: its step was replaced, and a curriculum uses step_with_results. Replace "
                "that, too"
            )


def step(
    task_key: jax.Array,
    step_key: jax.Array,
    state: Any,
    taught: Any,
    *,
    algorithm: MetaAlgorithm,
    curriculum: Curriculum,
    num_tasks: int,
    spread: Callable[[Any], Any] = lambda tasks: tasks,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """``(state, taught, metrics)`` after one meta-update on M tasks, ``[M]``.

    Args:
        task_key: The curriculum's key.
        step_key: The algorithm's key.
        state: The algorithm's state.
        taught: The curriculum's state.
        algorithm: The meta-algorithm.
        curriculum: The curriculum.
        num_tasks: M.
        spread: ``tasks -> tasks``: places the tasks on devices.

    Raises:
        ValueError: while it is traced, if the algorithm does not report what the curriculum needs.
    """
    taught, drawn = curriculum.draw(task_key, taught, state.meta, num_tasks)
    assert algorithm.step_with_results is not None
    tasks = spread(drawn.tasks)
    state, metrics, results = algorithm.step_with_results(step_key, state, tasks, drawn.learns)
    _check_reported(results, curriculum, algorithm)
    taught, more = curriculum.update(taught, drawn, results)
    if "env_steps" in more:
        more = {**more, "env_steps": metrics["env_steps"] + more["env_steps"]}
    return state, taught, {**metrics, **more}


def _check_reported(results: TaskResults, curriculum: Curriculum, algorithm: MetaAlgorithm) -> None:
    missing = [name for name in curriculum.needs if getattr(results, name) is None]
    if missing:
        raise ValueError(
            f"{_named(algorithm, curriculum)}: the curriculum needs {', '.join(missing)} of each task, which the algorithm "
            "does not report"
        )


def _named(algorithm: MetaAlgorithm, curriculum: Curriculum) -> str:
    made = algorithm.description
    name = "this algorithm" if made is None else made.name
    return f"{name} cannot be trained under the curriculum {curriculum.description.get('name')!r}"
