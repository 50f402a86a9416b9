"""VariBAD and RL² on GridNavi: Zintgraf et al. 2020, "VariBAD", section 5.1.

    python benchmarks/reproduce/gridnavi.py
    python benchmarks/reproduce/gridnavi.py --full            # more training, for an accelerator

A score is the total reward of a trial of four episodes of 15 steps. Shares are of the Bayes-optimal agent,
computed exactly; *straight to the goal* is what an agent that is told the task can earn at most, and *told
the goal* a feed-forward policy that is told it and trained like the others. All have the same hidden layers
between what they know and what they do. Leaves table.md, table.csv and results.json in the output folder.
"""

import dataclasses
from pathlib import Path

import common
import jax
from common import Row, Study

from jaxmeta import checks, evaluation, references, tasks
from jaxmeta.runs import experiments
from jaxmeta.tasks.informed import informed

EPISODES = 4


@dataclasses.dataclass(frozen=True)
class GridNavi(Study):
    """GridNavi."""

    output: Path = Path("runs/reproduce-gridnavi")
    """Folder for the results; made anew."""
    num_seeds: int = 2
    """Runs of each learner."""
    eval_tasks: int = 2100
    """Held-out tasks; there are 21 goals."""
    meta_updates: int | None = None
    """Meta-updates of each learner; None is 400, or 2 000 with `--full`."""
    num_tasks: int | None = None
    """Trials in a meta-update; None is the presets' 256."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_tasks", "meta_updates"):
            if getattr(self, name) is not None:
                checks.at_least(name, getattr(self, name), 1)


def main(study: GridNavi) -> None:
    family = tasks.make("gridnavi")
    drawn = common.held_out(family, study)
    num_steps = EPISODES * family.horizon
    meta_updates = study.meta_updates or (2000 if study.full else None)
    best = references.bayes_optimal_gridnavi(num_episodes=EPISODES, num_steps=family.horizon)
    learners = {
        "VariBAD": ("varibad-gridnavi", family, {}),
        "RL²": ("rl2-gridnavi", family, {}),
        "told the goal": ("rl2-gridnavi", informed(family), {"memory": "none"}),
    }
    rows = []
    for agent, (preset, its_family, settings) in learners.items():
        experiment = common.preset(preset, meta_updates, study.num_tasks)
        experiment = dataclasses.replace(experiment, config={**experiment.config, **settings})
        scores, seconds = common.train_and_measure(
            common.total_reward,
            experiment,
            drawn,
            study,
            family=its_family,
            num_steps=num_steps,
            name=agent,
        )
        settings = experiments.describe(experiment)
        rows.append(Row("4 episodes", agent, scores, best, None, seconds, settings))
    known = jax.jit(
        lambda drawn: evaluation.optimal_returns(jax.random.key(0), drawn, family=family)
    )(drawn)
    rows.append(Row("4 episodes", "straight to the goal", EPISODES * known[None], best, None))
    rows.append(Row("4 episodes", "Bayes-optimal (exact)", None, best, None))
    common.write(study.output, rows, study, share="share of Bayes-optimal", digits=2)


if __name__ == "__main__":
    common.run(GridNavi, main, __doc__)
