"""VariBAD and RL² on GridNavi: Zintgraf et al. 2020, "VariBAD", section 5.1.

    python benchmarks/reproduce/gridnavi.py
    python benchmarks/reproduce/gridnavi.py --full            # more training, for an accelerator

A score is the total reward of a trial of four episodes of 15 steps. Shares are of the Bayes-optimal agent,
computed exactly. *Straight to the goal* is the largest return of an agent that knows the goal. *Told the goal* is
a feed-forward policy that sees the goal and is trained like the others. All networks have the same hidden layers.
"""

import jax
from common import Measure, Reproduction, Row, leave, study, total_reward

from jaxmeta import evaluation, references, tasks
from jaxmeta.tasks.informed import informed

EPISODES = 4


class GridNavi(Reproduction):
    """GridNavi."""

    num_seeds: int = 2  # Runs of each learner.
    eval_tasks: int = 2100  # Held-out tasks; there are 21 goals.
    meta_updates: int | None = None
    """Meta-updates of each learner; None is 400, or 2 000 with `--full`."""


def main(told: GridNavi) -> None:
    family = tasks.make("gridnavi")
    drawn = study.held_out(family, told.eval_tasks)
    measure = Measure(total_reward, family, drawn, EPISODES * family.horizon)
    meta_updates = 2000 if told.full else None
    best = references.bayes_optimal_gridnavi(num_episodes=EPISODES, num_steps=family.horizon)
    learners = {
        "VariBAD": ("varibad-gridnavi", family, {}),
        "RL²": ("rl2-gridnavi", family, {}),
        "told the goal": ("rl2-gridnavi", informed(family), {"memory": "none"}),
    }
    rows = []
    for agent, (name, its_family, config) in learners.items():
        row = Row("4 episodes", agent, None, best, None)
        settings = config | dict(family=its_family, meta_updates=meta_updates)
        rows.append(measure.learned(row, told, name, **settings))
    known = study.returns_of(evaluation.optimal_returns, jax.random.key(0), drawn, family)
    rows.append(Row("4 episodes", "straight to the goal", EPISODES * known[None], best, None))
    rows.append(Row("4 episodes", "Bayes-optimal (exact)", None, best, None))
    leave(told, rows, share="share of Bayes-optimal", digits=2)


if __name__ == "__main__":
    study.main({GridNavi: main}, __doc__)
