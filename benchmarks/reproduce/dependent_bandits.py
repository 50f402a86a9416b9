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

from jaxmeta import checks, references, tasks
from jaxmeta.evaluation.trials import Trials
from jaxmeta.runs import experiments
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
    meta_updates: int | None = None
    """Meta-updates of RL²; None is the presets' 400."""
    num_tasks: int | None = None
    """Trials in a meta-update; None is the presets' 512."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.kinds:
            checks.choice("kinds", name, KINDS)
        for name in ("meta_updates", "num_tasks"):
            if getattr(self, name) is not None:
                checks.at_least(name, getattr(self, name), 1)


def expected_regret(task: BanditParams, trials: Trials) -> jax.Array:
    """What the better arm would have earned more in expectation, ``[M]``."""
    best = jnp.max(task.mean, axis=1, keepdims=True)
    return jnp.sum(best - jnp.take_along_axis(task.mean, trials.action, axis=1), axis=1)


def main(study: DependentBandits) -> None:
    rows = []
    for kind in study.kinds or (KINDS if study.full else KINDS[:2]):
        family = tasks.make("dependent_bandit", kind=kind, num_pulls=NUM_PULLS)
        drawn = common.held_out(family, study)
        best = references.bayes_optimal_dependent_bandit(kind=kind, num_pulls=NUM_PULLS)
        scores = common.measure(
            expected_regret,
            (),
            drawn,
            learner=references.thompson(num_arms=2),
            family=family,
            num_steps=NUM_PULLS,
        )
        rows.append(Row(kind, "Thompson, independent priors", scores[None], best, None))
        preset = f"rl2-dependent_bandit-{kind}"
        experiment = common.preset(preset, study.meta_updates, study.num_tasks)
        scores, seconds = common.train_and_measure(
            expected_regret,
            experiment,
            drawn,
            study,
            family=family,
            num_steps=NUM_PULLS,
            name=f"RL² on {kind}",
        )
        settings = experiments.describe(experiment)
        rows.append(Row(kind, "RL²", scores, best, None, seconds, settings))
        rows.append(Row(kind, "Bayes-optimal (exact)", None, best, None))
    common.write(study.output, rows, study, share="× Bayes-optimal", digits=3)


if __name__ == "__main__":
    common.run(DependentBandits, main, __doc__)
