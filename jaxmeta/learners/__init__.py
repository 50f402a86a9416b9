"""The fast loops: how an agent learns within one task.

`gradient` takes policy-gradient steps from a meta-learned start, `recurrent` learns in a network's state, `replay` reuses
off-policy experience, `actor_critic` has meta-learned hyper-parameters, `update_rules` learns by a learned rule. `in_context`
learns to predict actions. The outer loop learns from old experience by `buffers`, which keep it, `trial_replay`, which replays whole
trials, `task_replay`, which keeps tasks with their steps, and `soft_actor_critic`, the losses of continuous actions.
"""

from jaxmeta import types
from jaxmeta.learners import (
    actor_critic,
    buffers,
    gradient,
    in_context,
    recurrent,
    replay,
    soft_actor_critic,
    task_replay,
    trial_replay,
    update_rules,
)
from jaxmeta.learners.actor_critic import actor_critic_learner
from jaxmeta.learners.buffers import item_buffer
from jaxmeta.learners.gradient import gradient_learner
from jaxmeta.learners.recurrent import recurrent_learner, trial_learner
from jaxmeta.learners.replay import replay_learner

__all__ = [
    "actor_critic",
    "actor_critic_learner",
    "buffers",
    "gradient",
    "gradient_learner",
    "in_context",
    "item_buffer",
    "recurrent",
    "recurrent_learner",
    "replay",
    "replay_learner",
    "soft_actor_critic",
    "task_replay",
    "trial_learner",
    "trial_replay",
    "update_rules",
]

types.document_fields()
