"""The fast loops: how an agent learns within one task.

`gradient` takes policy-gradient steps from a meta-learned start, `recurrent` learns in a network's state, `replay` reuses
off-policy experience, `actor_critic` has meta-learned hyper-parameters, `update_rules` learns by a learned rule. `in_context`
learns to predict actions, and `disco` by the rule that DiscoRL published. `learned_optimizers` are for the agents of `update_rules`.

The outer loop learns from recorded trials: `minibatches` takes gradient steps on them, `trial_gradients` follows policy
gradients, `action_values` learns values of discrete actions
by λ-returns, and `soft_actor_critic` of continuous ones. `buffers` keep old experience for it: `trial_replay` replays
whole trials, `auxiliary_steps` learn from them beside a policy, and `task_replay` keeps tasks with their steps. The policies of
VariBAD act on `beliefs`.
"""

from jaxmeta import types
from jaxmeta.learners import (
    action_values,
    actor_critic,
    auxiliary_steps,
    beliefs,
    buffers,
    disco,
    gradient,
    in_context,
    learned_optimizers,
    minibatches,
    recurrent,
    replay,
    soft_actor_critic,
    task_replay,
    trial_gradients,
    trial_replay,
    update_rules,
)
from jaxmeta.learners.actor_critic import actor_critic_learner
from jaxmeta.learners.buffers import item_buffer
from jaxmeta.learners.disco import disco_learner
from jaxmeta.learners.gradient import gradient_learner
from jaxmeta.learners.recurrent import recurrent_learner, trial_learner
from jaxmeta.learners.replay import replay_learner

__all__ = [
    "action_values",
    "actor_critic",
    "actor_critic_learner",
    "auxiliary_steps",
    "beliefs",
    "buffers",
    "disco",
    "disco_learner",
    "gradient",
    "gradient_learner",
    "in_context",
    "item_buffer",
    "learned_optimizers",
    "minibatches",
    "recurrent",
    "recurrent_learner",
    "replay",
    "replay_learner",
    "soft_actor_critic",
    "task_replay",
    "trial_gradients",
    "trial_learner",
    "trial_replay",
    "update_rules",
]

types.document_fields()
