"""RL² on two-armed dependent bandits: Wang et al. 2016, "Learning to reinforcement learn", section 3.1.

    python benchmarks/reproduce/dependent_bandits.py          # trained on 'easy' and 'uniform'
    python benchmarks/reproduce/dependent_bandits.py --full   # on all five kinds

A score is the expected regret of a trial of 100 pulls: what always pulling the better arm would earn more,
in expected reward. Shares are times the Bayes-optimal regret, which is exact; smaller is better. Leaves
table.md, table.csv and results.json in the output folder.
"""

import dataclasses
from pathlib import Path

import common
import jax
import jax.numpy as jnp
from common import Row, Study

from jaxmeta import checks, optimal, tasks
from jaxmeta.algorithms.rl2 import Config, rl2
from jaxmeta.evaluation import Trials
from jaxmeta.memory_learner import Hyper
from jaxmeta.tasks.bandits import BanditParams

KINDS = ("easy", "uniform", "medium", "hard", "independent")
NUM_PULLS = 100


@dataclasses.dataclass(frozen=True)
class DependentBandits(Study):
    """Two-armed bandits whose arms inform about each other."""

    output: Path = Path("runs/reproduce-dependent-bandits")
    """Folder for the results; made anew."""
    kinds: tuple[str, ...] = ()
    """What is trained and tested on; none is `easy` and `uniform`, or all with `--full`."""
    num_seeds: int = 2
    """Runs of RL²."""
    meta_updates: int = 400
    """Meta-updates of RL²."""
    num_tasks: int = 512
    """Trials in a meta-update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.kinds:
            checks.choice("kinds", name, KINDS)
        checks.at_least("meta_updates", self.meta_updates, 1)
        checks.at_least("num_tasks", self.num_tasks, 1)


def expected_regret(task: BanditParams, trials: Trials) -> jax.Array:
    """What the better arm would have earned more in expectation, ``[M]``."""
    best = jnp.max(task.mean, axis=1, keepdims=True)
    return jnp.sum(best - jnp.take_along_axis(task.mean, trials.action, axis=1), axis=1)


def main(study: DependentBandits) -> None:
    rows = []
    for kind in study.kinds or (KINDS if study.full else KINDS[:2]):
        family = tasks.make("dependent_bandit", kind=kind, num_pulls=NUM_PULLS)
        drawn = common.held_out(family, study)
        best = optimal.bayes_optimal_dependent_bandit(kind=kind, num_pulls=NUM_PULLS)
        scores = common.measure(
            expected_regret,
            (),
            drawn,
            learner=optimal.thompson(num_arms=2),
            family=family,
            num_steps=NUM_PULLS,
        )
        rows.append(Row(kind, "Thompson, independent priors", scores[None], best, None))
        hyper = Hyper(
            discount=1.0,
            gae_lambda=0.9,
            learning_rate=3e-3,
            entropy_cost=0.06,
            anneal_updates=study.meta_updates,
        )
        config = Config(memory_size=32)
        scores, seconds = common.train_and_measure(
            expected_regret,
            rl2(family, config, hyper),
            drawn,
            study,
            family=family,
            num_steps=NUM_PULLS,
            meta_updates=study.meta_updates,
            num_tasks=study.num_tasks,
            name=f"RL² on {kind}",
        )
        rows.append(Row(kind, "RL²", scores, best, None, seconds, (config, hyper)))
        rows.append(Row(kind, "Bayes-optimal (exact)", None, best, None))
    common.write(study.output, rows, study, share="× Bayes-optimal", digits=3)


if __name__ == "__main__":
    common.run(DependentBandits, main, __doc__)
