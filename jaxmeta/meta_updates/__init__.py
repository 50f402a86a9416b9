"""The slow loop: gradients task by task and their guarded mean, the outer optimiser, evolution, truncated windows."""

from jaxmeta import types
from jaxmeta.meta_updates import evolution, gradients, outer_loop, windows
from jaxmeta.meta_updates.gradients import (
    State,
    finite_tasks,
    guarded_gradient,
    guarded_update,
    map_tasks,
    masked_mean,
    meta_gradient,
    nan_unless,
    optimizer_step,
    reported_gradient,
    tasks_at_once,
)
from jaxmeta.meta_updates.outer_loop import (
    PARAMS,
    Learned,
    Optimizer,
    descend,
    first_state,
    follow_meta_gradient,
    is_applicable,
    outer_optimizer,
)

__all__ = [
    "PARAMS",
    "Learned",
    "Optimizer",
    "State",
    "descend",
    "evolution",
    "finite_tasks",
    "first_state",
    "follow_meta_gradient",
    "gradients",
    "guarded_gradient",
    "guarded_update",
    "is_applicable",
    "map_tasks",
    "masked_mean",
    "meta_gradient",
    "nan_unless",
    "optimizer_step",
    "outer_loop",
    "outer_optimizer",
    "reported_gradient",
    "tasks_at_once",
    "windows",
]

types.document_fields()
