"""RL² and posterior sampling in random finite MDPs: Duan et al. 2016, "RL²", table 2.

    python benchmarks/reproduce/tabular.py                    # 10 episodes
    python benchmarks/reproduce/tabular.py --full             # 10, 25, 75 and 100 episodes
    python benchmarks/reproduce/tabular.py --memory gru       # the paper's kind of network

A score is the total reward of a trial, in MDPs of 10 states, 5 actions and episodes of 10 steps. Shares are
of the policy that is told the MDP, which nobody can reach. RL² remembers counts and plans on their graph; a
GRU, the paper's network, has to find out what a state is, and wants an accelerator. Leaves table.md,
table.csv and results.json in the output folder.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import common
import jax
import numpy as np
from common import Row, Study

from jaxmeta import checks, evaluation, references, tasks
from jaxmeta.runs import experiments, presets

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
    memory: Literal["counts", "gru"] = "counts"
    """What RL² remembers: `counts`, or what a `gru` makes of the same inputs."""
    meta_updates: int | None = None
    """Meta-updates of RL²; None is about ten minutes of a core, eight times that with `--full`."""
    num_tasks: int | None = None
    """Trials in a meta-update; None is 128, or 1 024 for a GRU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for episodes in self.episodes:
            checks.choice("episodes", episodes, PUBLISHED)
        checks.choice("memory", self.memory, MEMORIES)
        for name in ("meta_updates", "num_tasks"):
            if getattr(self, name) is not None:
                checks.at_least(name, getattr(self, name), 1)


MEMORIES = {"counts": "RL² with counts", "gru": "RL² with a GRU"}


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
            "random": (random, references.random_agent(num_actions=5)),
            "PSRL": (psrl, references.psrl()),
        }
        for agent, (published, learner) in scored.items():
            scores = common.measure(
                common.total_reward, (), drawn, learner=learner, family=family, **lived
            )
            rows.append(Row(setting, agent, scores[None], best.mean(), published))
        if study.learned:
            name = MEMORIES[study.memory]
            preset = f"rl2-tabular-{study.memory}"
            longer = presets.PRESETS[preset].plan.meta_updates * (8 if study.full else 1)
            experiment = common.preset(preset, study.meta_updates or longer, study.num_tasks)
            experiment = dataclasses.replace(
                experiment, config={**experiment.config, "num_episodes": episodes}
            )
            scores, seconds = common.train_and_measure(
                common.total_reward,
                experiment,
                drawn,
                study,
                family=family,
                num_steps=episodes * family.horizon,
                name=f"{name}, {setting}",
            )
            settings = experiments.describe(experiment)
            rows.append(Row(setting, name, scores, best.mean(), learned, seconds, settings))
        rows.append(Row(setting, "told the MDP (exact)", best[None], best.mean(), None))
    common.write(study.output, rows, study, share="share of told", digits=1)


if __name__ == "__main__":
    common.run(Tabular, main, __doc__)
