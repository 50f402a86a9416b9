"""Evaluation of adaptation on held-out tasks, with intervals.

Functions of keys and tasks are pure; statistics use SciPy. Streams with a number that is not finite
are left out and counted. A task or an episode without a return is NaN; `summarize` leaves out such
tasks and counts them.
"""

from jaxmeta import types
from jaxmeta.evaluation import agents, curves, protocols, statistics, tails
from jaxmeta.evaluation.agents import (
    controller_learner,
    expert_returns,
    optimal_returns,
    random_returns,
    reference_returns,
)
from jaxmeta.evaluation.curves import AdaptationCurve, adaptation_curve, adaptation_returns
from jaxmeta.evaluation.protocols import META_WORLD, XLAND, Protocol, Tested, run_protocol
from jaxmeta.evaluation.statistics import (
    bootstrap_interval,
    gap_closed,
    interquartile_interval,
    interquartile_mean,
    mean_interval,
    normalized,
    summarize,
)
from jaxmeta.evaluation.tails import (
    by_episode,
    cvar,
    improvement_interval,
    probability_of_improvement,
    solve_rate,
    tail_summary,
)
from jaxmeta.evaluation.trials import Trials, episode_returns, trials

__all__ = [
    "META_WORLD",
    "XLAND",
    "AdaptationCurve",
    "Protocol",
    "Tested",
    "Trials",
    "adaptation_curve",
    "adaptation_returns",
    "agents",
    "bootstrap_interval",
    "by_episode",
    "controller_learner",
    "curves",
    "cvar",
    "episode_returns",
    "expert_returns",
    "gap_closed",
    "improvement_interval",
    "interquartile_interval",
    "interquartile_mean",
    "mean_interval",
    "normalized",
    "optimal_returns",
    "probability_of_improvement",
    "protocols",
    "random_returns",
    "reference_returns",
    "run_protocol",
    "solve_rate",
    "statistics",
    "summarize",
    "tail_summary",
    "tails",
    "trials",
]

types.document_fields()
