"""Any gymnax environment as a family, and transformations that make a family's tasks differ.

A transformation takes a family and returns a family whose tasks have one more part, drawn
independently: the mapping of the buttons, the order of the observations, the delay of the rewards.
Transformations compose in any order:

    family = transform.from_gymnax("Breakout-MinAtar", horizon=500)
    family = transform.sticky_actions(transform.permuted_actions(family))

The environment is put into a wrapper, and its task into `TransformedParams`: the task within and
the drawn part. A split of the result draws every part from that split, so out of distribution all
parts are out of distribution. Controllers that are told the task are kept if the transformation can
be undone. If a transformation changes the dynamics, an optimal controller becomes the
``expert_action``.
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
    hidden,
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
    "hidden",
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
