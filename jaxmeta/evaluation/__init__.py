"""Evaluation of adaptation on held-out tasks, with intervals.

Functions of keys and tasks are pure; statistics use SciPy. Streams with a number that is not finite
are left out and counted. A task or an episode without a return is NaN; `summarize` leaves out such
tasks and counts them.
"""

from jaxmeta import types
from jaxmeta.evaluation import agents, curves, statistics
from jaxmeta.evaluation.agents import (
    controller_learner,
    expert_returns,
    optimal_returns,
    random_returns,
    reference_returns,
)
from jaxmeta.evaluation.curves import AdaptationCurve, adaptation_curve, adaptation_returns
from jaxmeta.evaluation.statistics import (
    bootstrap_interval,
    gap_closed,
    interquartile_interval,
    interquartile_mean,
    mean_interval,
    normalized,
    summarize,
)
from jaxmeta.evaluation.trials import Trials, episode_returns, trials

__all__ = [
    "AdaptationCurve",
    "Trials",
    "adaptation_curve",
    "adaptation_returns",
    "agents",
    "bootstrap_interval",
    "controller_learner",
    "curves",
    "episode_returns",
    "expert_returns",
    "gap_closed",
    "interquartile_interval",
    "interquartile_mean",
    "mean_interval",
    "normalized",
    "optimal_returns",
    "random_returns",
    "reference_returns",
    "statistics",
    "summarize",
    "trials",
]

types.document_fields()
