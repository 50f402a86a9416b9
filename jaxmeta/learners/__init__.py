"""The fast loops: how an agent learns within one task.

`gradient` takes policy-gradient steps from a meta-learned start, `recurrent` learns in a network's state, `replay` reuses
off-policy experience, `actor_critic` has meta-learned hyper-parameters, `update_rules` learns by a learned rule. `in_context`
learns to predict actions. `minibatches` takes the outer loop's gradient steps on recorded trials, `buffers` and `trial_replay` keep old
experience for it, and `action_values` learns from trials by λ-returns.
"""

from jaxmeta import types
from jaxmeta.learners import (
    action_values,
    actor_critic,
    buffers,
    gradient,
    in_context,
    minibatches,
    recurrent,
    replay,
    update_rules,
)
from jaxmeta.learners.actor_critic import actor_critic_learner
from jaxmeta.learners.buffers import item_buffer
from jaxmeta.learners.gradient import gradient_learner
from jaxmeta.learners.recurrent import recurrent_learner, trial_learner
from jaxmeta.learners.replay import replay_learner

__all__ = [
    "action_values",
    "actor_critic",
    "actor_critic_learner",
    "buffers",
    "gradient",
    "gradient_learner",
    "in_context",
    "item_buffer",
    "minibatches",
    "recurrent",
    "recurrent_learner",
    "replay",
    "replay_learner",
    "trial_learner",
    "update_rules",
]

types.document_fields()
