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

from jaxmeta import checks, evaluation, optimal, tasks
from jaxmeta.algorithms import rl2, varibad
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
    num_tasks: int = 256
    """Trials in a meta-update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("num_tasks", self.num_tasks, 1)
        if self.meta_updates is not None:
            checks.at_least("meta_updates", self.meta_updates, 1)


def main(study: GridNavi) -> None:
    family = tasks.make("gridnavi")
    drawn = common.held_out(family, study)
    num_steps = EPISODES * family.horizon
    meta_updates = study.meta_updates or (2000 if study.full else 400)
    best = optimal.bayes_optimal_gridnavi(num_episodes=EPISODES, num_steps=family.horizon)
    trained = dict(
        discount=0.99,
        gae_lambda=0.9,
        learning_rate=3e-3,
        entropy_cost=0.06,
        anneal_updates=meta_updates,
    )
    shared = dict(num_episodes=EPISODES, hidden_sizes=(128, 64))
    told = informed(family)
    learners = {
        "VariBAD": (family, varibad, varibad.Config(**shared)),
        "RL²": (family, rl2, rl2.Config(**shared)),
        "told the goal": (told, rl2, rl2.Config(**shared, memory="none")),
    }
    rows = []
    for agent, (its_family, module, config) in learners.items():
        hyper = module.Hyper(**trained)
        constructor = {varibad: varibad.varibad, rl2: rl2.rl2}[module]
        algorithm = constructor(its_family, config, hyper)
        scores, seconds = common.train_and_measure(
            common.total_reward,
            algorithm,
            drawn,
            study,
            family=its_family,
            num_steps=num_steps,
            meta_updates=meta_updates,
            num_tasks=study.num_tasks,
            name=agent,
        )
        rows.append(Row("4 episodes", agent, scores, best, None, seconds, (config, hyper)))
    known = jax.jit(
        lambda drawn: evaluation.optimal_returns(jax.random.key(0), drawn, family=family)
    )(drawn)
    rows.append(Row("4 episodes", "straight to the goal", EPISODES * known[None], best, None))
    rows.append(Row("4 episodes", "Bayes-optimal (exact)", None, best, None))
    common.write(study.output, rows, study, share="share of Bayes-optimal", digits=2)


if __name__ == "__main__":
    common.run(GridNavi, main, __doc__)
