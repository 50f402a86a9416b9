"""Policies, values and recurrent networks: pure functions over nested dicts of arrays.

They take observations, past actions and rewards, and return distributions, values or a new state.
`recurrent` holds the recurrent networks, `encodings` the encodings of their inputs.
"""

from jaxmeta.networks import (
    actor_critic,
    distributions,
    encodings,
    mlp,
    policies,
    recurrent,
    values,
)
from jaxmeta.networks.actor_critic import ActorCritic, Inputs, joined, recurrent_actor_critic
from jaxmeta.networks.distributions import Categorical, DiagGaussian
from jaxmeta.networks.encodings import encode_action, input_sizes
from jaxmeta.networks.graph_actor_critic import Counts, graph_actor_critic
from jaxmeta.networks.policies import (
    Head,
    Policy,
    acting,
    action_distributions,
    action_features,
    action_head,
    categorical_mlp,
    default_policy,
    feed_forward,
    gaussian_mlp,
    log_probs,
    policy_learner,
    softmax_linear,
)
from jaxmeta.networks.values import Value, value_mlp

__all__ = [
    "ActorCritic",
    "Categorical",
    "Counts",
    "DiagGaussian",
    "Head",
    "Inputs",
    "Policy",
    "Value",
    "acting",
    "action_distributions",
    "action_features",
    "action_head",
    "actor_critic",
    "categorical_mlp",
    "default_policy",
    "distributions",
    "encode_action",
    "encodings",
    "feed_forward",
    "gaussian_mlp",
    "graph_actor_critic",
    "input_sizes",
    "joined",
    "log_probs",
    "mlp",
    "policies",
    "policy_learner",
    "recurrent",
    "recurrent_actor_critic",
    "softmax_linear",
    "value_mlp",
    "values",
]
