"""RL² and posterior sampling in random finite MDPs: Duan et al. 2016, "RL²", table 2.

    python benchmarks/reproduce/tabular.py                    # 10 episodes
    python benchmarks/reproduce/tabular.py --full             # 10, 25, 75 and 100 episodes

A score is the total reward of a trial, in MDPs of 10 states, 5 actions and episodes of 10 steps. Shares are
of the policy that is told the MDP, which nobody can reach. Leaves table.md, table.csv and results.json in
the output folder.
"""

import dataclasses
from pathlib import Path

import common
import jax
import numpy as np
from common import Row, Study

from jaxmeta import checks, evaluation, optimal, tasks
from jaxmeta.algorithms.rl2 import Config, rl2
from jaxmeta.memory_learner import Hyper

PUBLISHED = {  # episodes: random, PSRL, RL²
    10: (100.1, 138.1, 156.2),
    25: (250.2, 408.8, 445.7),
    75: (749.9, 1417.1, 1428.8),
    100: (999.4, 1939.5, 1913.7),
}


@dataclasses.dataclass(frozen=True)
class Tabular(Study):
    """Random finite MDPs."""

    output: Path = Path("runs/reproduce-tabular")
    """Folder for the results; made anew."""
    num_seeds: int = 1
    """Runs of RL²."""
    episodes: tuple[int, ...] = ()
    """Episodes in a trial; none is 10, or all with `--full`."""
    learned: bool = True
    """Train RL²; else measure the classical agents alone."""
    meta_updates: int | None = None
    """Meta-updates of RL²; None is 600, or 5 000 with `--full`."""
    num_tasks: int = 512
    """Trials in a meta-update."""
    memory_size: int = 64
    """Width of the GRU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for episodes in self.episodes:
            checks.choice("episodes", episodes, PUBLISHED)
        checks.at_least("num_tasks", self.num_tasks, 1)
        checks.at_least("memory_size", self.memory_size, 1)
        if self.meta_updates is not None:
            checks.at_least("meta_updates", self.meta_updates, 1)


def main(study: Tabular) -> None:
    rows = []
    family = tasks.make("tabular")
    drawn = common.held_out(family, study)
    episode_best = jax.jit(
        lambda drawn: evaluation.optimal_returns(jax.random.key(0), drawn, family=family)
    )(drawn)
    for episodes in study.episodes or (tuple(PUBLISHED) if study.full else (10,)):
        setting = f"{episodes} episodes"
        random, psrl, learned = PUBLISHED[episodes]
        best = episodes * np.asarray(episode_best, np.float64)
        lived = dict(num_steps=family.horizon, num_updates=episodes - 1)
        scored = {
            "random": (random, optimal.random_agent(num_actions=5)),
            "PSRL": (psrl, optimal.psrl()),
        }
        for agent, (published, learner) in scored.items():
            scores = common.measure(
                common.total_reward, (), drawn, learner=learner, family=family, **lived
            )
            rows.append(Row(setting, agent, scores[None], best.mean(), published))
        if study.learned:
            meta_updates = study.meta_updates or (5000 if study.full else 600)
            hyper = Hyper(
                discount=0.99,
                gae_lambda=0.9,
                learning_rate=2e-3,
                entropy_cost=0.01,
                anneal_updates=meta_updates,
            )
            config = Config(num_episodes=episodes, memory_size=study.memory_size)
            scores, seconds = common.train_and_measure(
                common.total_reward,
                rl2(family, config, hyper),
                drawn,
                study,
                family=family,
                num_steps=episodes * family.horizon,
                meta_updates=meta_updates,
                num_tasks=study.num_tasks,
                name=f"RL² on {setting}",
            )
            rows.append(Row(setting, "RL²", scores, best.mean(), learned, seconds, (config, hyper)))
        rows.append(Row(setting, "told the MDP (exact)", best[None], best.mean(), None))
    common.write(study.output, rows, study, share="share of told", digits=1)


if __name__ == "__main__":
    common.run(Tabular, main, __doc__)
