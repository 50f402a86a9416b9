"""References for learners with memory."""

from jaxmeta import types
from jaxmeta.references.agents import (
    BEAM,
    MAX_SIZE,
    MAX_STATES,
    Counts,
    Posterior,
    Sampled,
    bayes_optimal_bandit,
    bayes_optimal_dependent_bandit,
    bayes_optimal_gridnavi,
    dependent_greedy,
    epsilon_greedy,
    gittins,
    gittins_indices,
    greedy,
    psrl,
    random_agent,
    thompson,
    ucb1,
)
from jaxmeta.references.posteriors import posterior_best_arm

__all__ = [
    "BEAM",
    "MAX_SIZE",
    "MAX_STATES",
    "Counts",
    "Posterior",
    "Sampled",
    "bayes_optimal_bandit",
    "bayes_optimal_dependent_bandit",
    "bayes_optimal_gridnavi",
    "dependent_greedy",
    "epsilon_greedy",
    "gittins",
    "gittins_indices",
    "greedy",
    "posterior_best_arm",
    "psrl",
    "random_agent",
    "thompson",
    "ucb1",
]

types.document_fields()
