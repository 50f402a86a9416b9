"""The fast loops: how an agent learns within one task.

`gradient` takes policy-gradient steps from a meta-learned start, `recurrent` learns in a network's state, `replay` reuses
off-policy experience, `actor_critic` has meta-learned hyper-parameters, `update_rules` learns by a learned rule, `disco` by DiscoRL's. `in_context`
learns to predict actions. `buffers` keeps old experience for the outer loop.
"""

from jaxmeta import types
from jaxmeta.learners import (
    actor_critic,
    buffers,
    disco,
    gradient,
    in_context,
    recurrent,
    replay,
    update_rules,
)
from jaxmeta.learners.actor_critic import actor_critic_learner
from jaxmeta.learners.buffers import item_buffer
from jaxmeta.learners.disco import disco_learner
from jaxmeta.learners.gradient import gradient_learner
from jaxmeta.learners.recurrent import recurrent_learner, trial_learner
from jaxmeta.learners.replay import replay_learner

__all__ = [
    "actor_critic",
    "actor_critic_learner",
    "buffers",
    "disco",
    "disco_learner",
    "gradient",
    "gradient_learner",
    "in_context",
    "item_buffer",
    "recurrent",
    "recurrent_learner",
    "replay",
    "replay_learner",
    "trial_learner",
    "update_rules",
]

types.document_fields()
