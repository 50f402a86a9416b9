"""Any gymnax environment as a family, and transformations that make a family's tasks differ.

A transformation takes a family and returns one whose tasks have a part more, drawn on its own beside the
rest: which button does what, how observations are shuffled, when rewards are paid. They compose in any
order:

    family = transform.from_gymnax("Breakout-MinAtar", horizon=500)
    family = transform.sticky_actions(transform.permuted_actions(family))

The environment is put into another, its task into `TransformedParams`: the task within, and what was
drawn. A split of the result draws every part from that split, so that out of distribution all of them are
outside. Controllers that are told the task are carried along where the transformation can be undone.
What changes the dynamics leaves an optimal controller a good one: it becomes the ``expert_action``.
"""

from jaxmeta.tasks.transform.actions import (
    FlippedActions,
    RotatedActions,
    flipped_actions,
    permuted_actions,
    remapped_actions,
    rotated_actions,
    sticky_actions,
)
from jaxmeta.tasks.transform.faults import faulty
from jaxmeta.tasks.transform.gymnax_environments import IDENTITY, UNSUPPORTED, from_gymnax
from jaxmeta.tasks.transform.laws import factor
from jaxmeta.tasks.transform.observations import (
    masked_observations,
    permuted_observations,
    projected_observations,
)
from jaxmeta.tasks.transform.parameters import (
    drawn_parameters,
    parameter_fields,
    pinned,
    with_parameters,
)
from jaxmeta.tasks.transform.rewards import delayed_rewards, scaled_rewards, signed_rewards
from jaxmeta.tasks.transform.wrappers import TransformedParams, Wrapper

__all__ = [
    "IDENTITY",
    "UNSUPPORTED",
    "FlippedActions",
    "RotatedActions",
    "TransformedParams",
    "Wrapper",
    "delayed_rewards",
    "drawn_parameters",
    "factor",
    "faulty",
    "flipped_actions",
    "from_gymnax",
    "masked_observations",
    "parameter_fields",
    "permuted_actions",
    "permuted_observations",
    "pinned",
    "projected_observations",
    "remapped_actions",
    "rotated_actions",
    "scaled_rewards",
    "signed_rewards",
    "sticky_actions",
    "with_parameters",
]
