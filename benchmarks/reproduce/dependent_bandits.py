"""RL² on two-armed dependent bandits: Wang et al. 2016, "Learning to reinforcement learn", section 3.1.

    python benchmarks/reproduce/dependent_bandits.py          # trained on 'easy' and 'uniform'
    python benchmarks/reproduce/dependent_bandits.py --full   # on all five kinds

A score is the expected regret of a trial of 100 pulls: what always pulling the better arm would earn more,
in expected reward. Shares are times the Bayes-optimal regret, which is exact; smaller is better.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
from common import Measure, Reproduction, Row, leave, study

from jaxmeta import references, tasks
from jaxmeta.evaluation.trials import Trials
from jaxmeta.tasks.bandits import BanditParams

KINDS = ("easy", "uniform", "medium", "hard", "independent")
NUM_PULLS = 100


class DependentBandits(Reproduction):
    """Two-armed bandits whose arms inform about each other."""

    kinds: Annotated[study.Names, study.known(KINDS)] = ()
    """Kinds to train and test on; none is `easy` and `uniform`, or all with `--full`."""
    num_seeds: int = 2  # Runs of RL².


def expected_regret(task: BanditParams, trials: Trials) -> jax.Array:
    """The regret in expectation, of each trial, ``[M]``."""
    best = jnp.max(task.mean, axis=1, keepdims=True)
    return jnp.sum(best - jnp.take_along_axis(task.mean, trials.action, axis=1), axis=1)


def main(told: DependentBandits) -> None:
    rows = []
    for kind in told.kinds or (KINDS if told.full else KINDS[:2]):
        family = tasks.make("dependent_bandit", kind=kind, num_pulls=NUM_PULLS)
        drawn = study.held_out(family, told.eval_tasks)
        measure = Measure(expected_regret, family, drawn, NUM_PULLS)
        best = references.bayes_optimal_dependent_bandit(kind=kind, num_pulls=NUM_PULLS)
        scores = measure.of(references.thompson(num_arms=2))
        rows.append(Row(kind, "Thompson, independent priors", scores[None], best, None))
        row = Row(kind, "RL²", None, best, None)
        rows.append(measure.learned(row, told, f"rl2-dependent_bandit-{kind}"))
        rows.append(Row(kind, "Bayes-optimal (exact)", None, best, None))
    leave(told, rows, share="× Bayes-optimal", digits=3)


if __name__ == "__main__":
    study.main({DependentBandits: main}, __doc__)
