"""RL² and classical agents on Bernoulli bandits: Duan et al. 2016, "RL²", table 1.

    python benchmarks/reproduce/bandits.py                    # 5 arms, 10 pulls
    python benchmarks/reproduce/bandits.py --full             # all six settings
    python benchmarks/reproduce/bandits.py --settings 5,10 5,100 --no-learned

Means of arms are U(0, 1); a score is the sum of the means of the arms that were pulled in a trial. Shares
are of the Bayes-optimal agent, where that can be computed, else of the Gittins index, which can be outdone;
the last row of a setting says which. UCB1's constant and the discount of the Gittins index were chosen on
tasks of other draws.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from common import Measure, Reproduction, Row, leave, study

from jaxmeta import references, tasks
from jaxmeta.evaluation.trials import Trials
from jaxmeta.tasks.bandits import BanditParams
from jaxmeta.types import Learner


class Setting(NamedTuple):
    """A row of the published table; RL² is trained by the preset of its name."""

    published: tuple[float, ...]  # in the order of AGENTS
    exploration: float  # UCB1's c; up to 100 pulls the best of 0.1, 0.2 and 0.3
    discount: float  # of the Gittins index, for which a trial has no end; likewise


AGENTS = ("random", "Gittins", "Thompson", "UCB1", "greedy", "RL²")


SETTINGS = {
    "5,10": Setting((5.0, 6.6, 5.7, 6.7, 6.6, 6.7), 0.1, 0.8),
    "50,10": Setting((5.1, 6.5, 5.2, 6.6, 6.5, 6.8), 0.1, 0.8),
    "5,100": Setting((49.9, 78.3, 74.7, 78.0, 74.8, 78.7), 0.2, 0.98),
    "50,100": Setting((49.8, 85.2, 64.5, 84.3, 78.0, 84.9), 0.2, 0.98),
    "10,500": Setting((249.0, 437.8, 429.5, 437.1, 395.0, 432.5), 0.3, 0.995),
    "50,500": Setting((249.6, 463.7, 427.2, 457.6, 402.8, 438.9), 0.3, 0.995),
}


class Bandits(Reproduction):
    """Bernoulli bandits."""

    settings: Annotated[study.Names, study.known(SETTINGS)] = ()
    """Arms and pulls, as in `5,10`; none is the smallest, or all with `--full`."""
    learned: bool = True  # Train RL²; else measure the classical agents alone.


def expected_total(task: BanditParams, trials: Trials) -> jax.Array:
    """Means of the arms that were pulled, their sum, ``[M]``: less noisy than what they happened to pay."""
    return jnp.sum(jnp.take_along_axis(task.mean, trials.action, axis=1), axis=1)


def best_total(num_arms: int, num_pulls: int) -> float | None:
    """Of the Bayes-optimal agent; None where that is out of reach."""
    try:
        return references.bayes_optimal_bandit(num_arms=num_arms, num_pulls=num_pulls)
    except ValueError as error:
        if "states of knowledge" not in str(error):
            raise
        return None


def classical(setting: Setting, num_arms: int, num_pulls: int) -> dict[str, Learner]:
    """The agents that are not trained, by their names."""
    arms = dict(num_arms=num_arms)
    return {
        "random": references.random_agent(num_actions=num_arms),
        "Gittins": references.gittins(**arms, num_pulls=num_pulls, discount=setting.discount),
        "Thompson": references.thompson(**arms),
        "UCB1": references.ucb1(**arms, exploration=setting.exploration),
        "greedy": references.greedy(**arms),
    }


def main(told: Bandits) -> None:
    rows = []
    for name in told.settings or (tuple(SETTINGS) if told.full else ("5,10",)):
        setting = SETTINGS[name]
        num_arms, num_pulls = map(int, name.split(","))
        family = tasks.make("bernoulli_bandit", num_arms=num_arms, num_pulls=num_pulls)
        drawn = study.held_out(family, told.eval_tasks)
        measure = Measure(expected_total, family, drawn, num_pulls)
        published = dict(zip(AGENTS, setting.published, strict=True))
        agents = classical(setting, num_arms, num_pulls)
        scored = {agent: measure.of(learner) for agent, learner in agents.items()}
        best = best_total(num_arms, num_pulls)
        mark = best or float(scored["Gittins"].mean())
        rows += [
            Row(name, agent, scores[None], mark, published[agent], settings=setting._asdict())
            for agent, scores in scored.items()
        ]
        if told.learned:
            row = Row(name, "RL²", None, mark, published["RL²"])
            rows.append(measure.learned(row, told, f"rl2-bandit-{num_arms}-{num_pulls}"))
        exact = "Bayes-optimal (exact)" if best is not None else "Gittins, what shares are of"
        rows.append(Row(name, exact, None, mark, None))
    leave(told, rows, share="share of best", digits=3)


if __name__ == "__main__":
    study.main({Bandits: main}, __doc__)
