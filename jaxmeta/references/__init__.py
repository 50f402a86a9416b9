"""References for learners with memory: Bayes-optimal returns, exact posteriors, and classical agents.

A learner with memory is trained to be Bayes-optimal in its family of tasks; `bayes_optimal` has
returns of Bayes-optimal agents. A learner that predicts optimal actions approaches the `posteriors`.
The agents of `bandits`, `mdps` and `dark_rooms` need no meta-learning. They are learners and act in
the same environments; `rollouts.lifetime` and `evaluation.trials` run them. They are never
differentiated, so the log-probability that they report is 0.
"""

from jaxmeta import types
from jaxmeta.references.bandits import (
    Counts,
    dependent_greedy,
    epsilon_greedy,
    gittins,
    gittins_indices,
    greedy,
    posterior_sampling,
    random_agent,
    thompson,
    ucb1,
)
from jaxmeta.references.bayes_optimal import (
    BEAM,
    MAX_SIZE,
    MAX_STATES,
    bayes_optimal_bandit,
    bayes_optimal_dependent_bandit,
    bayes_optimal_gridnavi,
)
from jaxmeta.references.buses import bayes_optimal_bus
from jaxmeta.references.dark_rooms import (
    Searched,
    dark_room_sampling,
    room_prior,
    told_key_to_door,
)
from jaxmeta.references.mdps import (
    Posterior,
    Sampled,
    psrl,
)
from jaxmeta.references.posteriors import (
    posterior_action,
    posterior_best_arm,
    posterior_goal,
)

__all__ = [
    "BEAM",
    "MAX_SIZE",
    "MAX_STATES",
    "Counts",
    "Posterior",
    "Sampled",
    "Searched",
    "bandits",
    "bayes_optimal",
    "bayes_optimal_bandit",
    "bayes_optimal_bus",
    "bayes_optimal_dependent_bandit",
    "bayes_optimal_gridnavi",
    "buses",
    "dark_room_sampling",
    "dark_rooms",
    "dependent_greedy",
    "epsilon_greedy",
    "gittins",
    "gittins_indices",
    "greedy",
    "mdps",
    "posterior_action",
    "posterior_best_arm",
    "posterior_goal",
    "posterior_sampling",
    "posteriors",
    "psrl",
    "random_agent",
    "room_prior",
    "thompson",
    "told_key_to_door",
    "ucb1",
]

types.document_fields()
