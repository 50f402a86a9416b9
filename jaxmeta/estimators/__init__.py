"""Estimators on streams of experience: returns and advantages, surrogates of the policy gradient, the linear baseline.

`exact` computes the same quantities by enumeration, for tests and for studies of bias.
"""

from jaxmeta import types
from jaxmeta.estimators import baselines, episodes, exact, returns, streams, surrogates, units
from jaxmeta.estimators.baselines import (
    baseline_td_errors,
    linear_baseline,
    linear_features,
    sees_observations,
)
from jaxmeta.estimators.episodes import (
    cumulative_discount,
    episode_index,
    episode_step,
    first_episode_return,
    in_first_episode,
)
from jaxmeta.estimators.returns import (
    action_value_targets,
    advantages_and_targets,
    discounted_returns,
    gae,
    importance_returns,
    td_errors,
    vtrace_targets,
    weighted_importance_returns,
)
from jaxmeta.estimators.streams import (
    count,
    finite_streams,
    mean_over_streams,
    unless,
    without_broken_streams,
)
from jaxmeta.estimators.units import advantage_scale, in_units, running, running_reward_scale

__all__ = [
    "action_value_targets",
    "advantage_scale",
    "advantages_and_targets",
    "baseline_td_errors",
    "baselines",
    "count",
    "cumulative_discount",
    "discounted_returns",
    "episode_index",
    "episode_step",
    "episodes",
    "exact",
    "finite_streams",
    "first_episode_return",
    "gae",
    "importance_returns",
    "in_first_episode",
    "in_units",
    "linear_baseline",
    "linear_features",
    "mean_over_streams",
    "returns",
    "running",
    "running_reward_scale",
    "sees_observations",
    "streams",
    "surrogates",
    "td_errors",
    "units",
    "unless",
    "vtrace_targets",
    "weighted_importance_returns",
    "without_broken_streams",
]

types.document_fields()
