"""Policies, values and recurrent networks: pure functions over nested dicts of arrays.

They take observations, past actions and rewards, and return distributions, values or a new state.
`recurrent` holds the recurrent networks, `encodings` the encodings of their inputs, and `encoders` the networks that
read images, observations of several parts, or whatever a flax module of your own reads. `heads` end in distributions of
actions, and all dense layers are those of `dense`. `soft_actor_critic` has values of continuous actions, `task_posteriors` what a
context says of its task, `disco` the networks of DiscoRL, and `learned_optimizer` the network of OPEN. `weights` reads published
parameters.
"""

from jaxmeta import types
from jaxmeta.networks import (
    actor_critic,
    dense,
    disco,
    distributions,
    encoders,
    encodings,
    heads,
    learned_optimizer,
    mlp,
    policies,
    recurrent,
    soft_actor_critic,
    task_posteriors,
    values,
    weights,
)
from jaxmeta.networks.actor_critic import ActorCritic, Inputs, joined, recurrent_actor_critic
from jaxmeta.networks.distributions import (
    Categorical,
    DiagGaussian,
    FactoredCategorical,
    TanhGaussian,
)
from jaxmeta.networks.encoders import Encoder, cnn, encoder
from jaxmeta.networks.encodings import encode_action, input_sizes
from jaxmeta.networks.graph_actor_critic import Counts, graph_actor_critic
from jaxmeta.networks.heads import Head, action_head
from jaxmeta.networks.hypernetworks import hyper_head, split_aggregation
from jaxmeta.networks.policies import (
    Policy,
    acting,
    action_distributions,
    action_features,
    categorical_mlp,
    default_policy,
    encoded_policy,
    feed_forward,
    gaussian_mlp,
    log_probs,
    policy_learner,
    softmax_linear,
)
from jaxmeta.networks.soft_actor_critic import recurrent_soft_actor_critic
from jaxmeta.networks.values import Value, encoded_value, value_mlp

__all__ = [
    "ActorCritic",
    "Categorical",
    "Counts",
    "DiagGaussian",
    "Encoder",
    "FactoredCategorical",
    "Head",
    "Inputs",
    "Policy",
    "TanhGaussian",
    "Value",
    "acting",
    "action_distributions",
    "action_features",
    "action_head",
    "actor_critic",
    "categorical_mlp",
    "cnn",
    "default_policy",
    "dense",
    "disco",
    "distributions",
    "encode_action",
    "encoded_policy",
    "encoded_value",
    "encoder",
    "encoders",
    "encodings",
    "feed_forward",
    "gaussian_mlp",
    "graph_actor_critic",
    "heads",
    "hyper_head",
    "hypernetworks",
    "input_sizes",
    "joined",
    "learned_optimizer",
    "log_probs",
    "mlp",
    "policies",
    "policy_learner",
    "recurrent",
    "recurrent_actor_critic",
    "recurrent_soft_actor_critic",
    "soft_actor_critic",
    "softmax_linear",
    "split_aggregation",
    "task_posteriors",
    "value_mlp",
    "values",
    "weights",
]

types.document_fields()
