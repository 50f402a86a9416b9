"""RL² and posterior sampling in random finite MDPs: Duan et al. 2016, "RL²", table 2.

    python benchmarks/reproduce/tabular.py                    # 10 episodes
    python benchmarks/reproduce/tabular.py --full             # 10, 25, 75 and 100 episodes
    python benchmarks/reproduce/tabular.py --memory gru       # the paper's kind of network

A score is the total reward of a trial, in MDPs of 10 states, 5 actions and episodes of 10 steps. Shares are
of the policy that knows the MDP, which no learner can reach. RL² remembers counts and plans on their graph. The
paper's network is a GRU. It must learn to recognise states and needs an accelerator.
"""

from typing import Annotated, Literal

import jax
import numpy as np
from common import Measure, Reproduction, Row, leave, study, total_reward

from jaxmeta import evaluation, references, tasks
from jaxmeta.runs import presets

PUBLISHED = {  # episodes: random, PSRL, RL²
    10: (100.1, 138.1, 156.2),
    25: (250.2, 408.8, 445.7),
    75: (749.9, 1417.1, 1428.8),
    100: (999.4, 1939.5, 1913.7),
}


class Tabular(Reproduction):
    """Random finite MDPs."""

    num_seeds: int = 1  # Runs of RL².
    episodes: Annotated[tuple[int, ...], study.known(PUBLISHED)] = ()
    """Episodes in a trial; none is 10, or all with `--full`."""
    learned: bool = True  # Train RL²; else measure the classical agents alone.
    memory: Literal["counts", "gru"] = "counts"
    """The memory of RL²: `counts`, or a `gru` of the same inputs."""
    meta_updates: int | None = None
    """Meta-updates of RL²; None is about ten minutes of a core, eight times that with `--full`."""


MEMORIES = {"counts": "RL² with counts", "gru": "RL² with a GRU"}


def main(told: Tabular) -> None:
    rows = []
    family = tasks.make("tabular")
    drawn = study.held_out(family, told.eval_tasks)
    known = study.returns_of(evaluation.optimal_returns, jax.random.key(0), drawn, family)
    for episodes in told.episodes or (tuple(PUBLISHED) if told.full else (10,)):
        setting = f"{episodes} episodes"
        random, psrl, learned = PUBLISHED[episodes]
        best = episodes * np.asarray(known, np.float64)
        lived = dict(num_steps=family.horizon, num_updates=episodes - 1)
        measure = Measure(total_reward, family, drawn, episodes * family.horizon)
        for agent, published, learner in (
            ("random", random, references.random_agent(num_actions=5)),
            ("PSRL", psrl, references.psrl()),
        ):
            scores = measure.of(learner, **lived)
            rows.append(Row(setting, agent, scores[None], best.mean(), published))
        if told.learned:
            name = f"rl2-tabular-{told.memory}"
            updates = presets.PRESETS[name].plan.meta_updates * (8 if told.full else 1)
            row = Row(setting, MEMORIES[told.memory], None, best.mean(), learned)
            config = dict(num_episodes=episodes, meta_updates=updates)
            rows.append(measure.learned(row, told, name, **config))
        rows.append(Row(setting, "told the MDP (exact)", best[None], best.mean(), None))
    leave(told, rows, share="share of told", digits=1)


if __name__ == "__main__":
    study.main({Tabular: main}, __doc__)
