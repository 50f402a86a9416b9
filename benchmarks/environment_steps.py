"""How many environment steps does a return take? Off-policy learners with memory beside RL² by PPO.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/environment_steps.py
    python benchmarks/environment_steps.py --learners recurrent_q-gridnavi

Each learner of a contest is trained by its preset, one seed after the other, and is looked at so many times in
training, on the same held-out tasks. *Steps to it* are the environment steps of training up to a look. It is the first
look at which the mean of all seeds reaches the contest's level. Seconds are of training up to there, of one seed, without
compiling and without the looks.

Each learner is kept in learners/*.json as soon as it is measured; `--resume` keeps those that are there.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import study

from jaxmeta import evaluation, plotting
from jaxmeta.runs import experiments, presets, reports


@dataclasses.dataclass(frozen=True)
class Contest:
    """Learners on one family, and the return of a trial that they are to reach."""

    presets: tuple[str, ...]
    level: float
    optimum: float
    steps: (
        int  # Environment steps of the whole preset of RL² by PPO; it may be at the level sooner.
    )


CONTESTS = {
    # The level is what RL² by PPO earned at the end of its preset (reproduce/gridnavi.py), after 400 meta-updates of 256
    # trials of 60 steps; the optimum is the Bayes-optimal agent's.
    "gridnavi": Contest(
        ("rl2-gridnavi", "recurrent_q-gridnavi"), level=36.3, optimum=37.214, steps=400 * 256 * 60
    ),
}


LEARNERS = [name for contest in CONTESTS.values() for name in contest.presets]


class Main(study.Study):
    """Learners with memory, contest by contest."""

    resume: bool = False  # Keep the learners that are in the folder and measure the others.
    contests: Annotated[study.Names, study.known(CONTESTS)] = tuple(CONTESTS)
    learners: Annotated[study.Names, study.known(LEARNERS)] = ()
    """Presets to measure; none is all of the contests."""
    num_seeds: int = 3  # Seeds, trained one after the other.
    looks: int = 40  # Looks at each learner in training.
    budget: Annotated[float, study.within(1e-6, 1e6)] = 1.0
    """Meta-updates, in units of each preset's own."""
    eval_tasks: int = 2100  # Held-out tasks; GridNavi has 21 goals.


def measure(name: str, main: Main) -> dict[str, Any]:
    """Held-out returns of a preset's learner at every look, ``[S, looks]``, with the steps and the seconds up to each."""
    experiment = presets.PRESETS[name]
    planned = experiment.plan.meta_updates
    experiment = presets.lasting(experiment, max(1, round(main.budget * planned)))
    algorithm, family = experiments.make(experiment)
    plan = experiment.plan
    chunk = max(1, plan.meta_updates // main.looks)
    drawn = study.held_out(family, main.eval_tasks)

    @jax.jit
    def look(meta: Any) -> jax.Array:
        told = dict(env=family.env, num_steps=algorithm.lifetime.num_steps)
        key = jax.random.key(study.EVALUATION_SEED + 1)
        trials = evaluation.trials(key, meta, drawn, learner=algorithm.learner, **told)
        return jnp.mean(jnp.sum(trials.reward, axis=1))

    sizes = dict(num_tasks=plan.num_tasks, chunk=chunk)
    train, _ = study.trainer(study.one(algorithm, 0), algorithm, family, **sizes)
    returns, seconds = [], []
    for seed in range(main.num_seeds):
        run, curve, spent = study.one(algorithm, seed), [], [0.0]
        for _ in range(plan.meta_updates // chunk):
            trained = train(run, chunk)
            run = trained.run
            spent.append(spent[-1] + trained.seconds)
            curve.append(float(look(trained.meta)))
        returns.append(curve)
        seconds.append(spent[1:])
        study.say(f"{name}, seed {seed}: {spent[-1]:.0f} s, {np.round(curve, 2)}")
    env_steps = chunk * int(trained.curve["env_steps"][0])
    return {
        "env_steps": [env_steps * (i + 1) for i in range(len(returns[0]))],
        "returns": returns,
        "seconds": seconds,
        "settings_of_preset": experiments.describe(experiment),
        "machine": reports.machine(),
    }


def reached(curve: Sequence[float], level: float) -> int | None:
    """The first look at which ``curve`` is at ``level``, or None."""
    return next((i for i, x in enumerate(curve) if x >= level), None)


def row(name: str, contest: Contest, part: dict[str, Any]) -> dict[str, str]:
    """A learner's row of the table."""

    def steps(curve: Sequence[float]) -> int | None:
        at = reached(curve, contest.level)
        return None if at is None else part["env_steps"][at]

    def shown(count: int | None) -> str:
        return (
            f"more than {study.spaced(part['env_steps'][-1])}"
            if count is None
            else study.spaced(count)
        )

    mean = np.mean(part["returns"], axis=0)
    mine, at = steps(mean), reached(mean, contest.level)
    seeds = ", ".join(shown(steps(curve)) for curve in part["returns"])
    last = [curve[-1] for curve in part["returns"]]
    return {
        "learner": name,
        "level": f"{contest.level:g} of {contest.optimum:g}",
        "steps to it": shown(mine),
        "each seed": seeds,
        "share of PPO's whole preset": "" if mine is None else f"{mine / contest.steps:.2f}",
        "training to it, s": "" if at is None else f"{np.mean(part['seconds'], axis=0)[at]:.0f}",
        "return at the end": f"{np.mean(last):.2f} ({min(last):.2f} to {max(last):.2f})",
        "after steps": study.spaced(part["env_steps"][-1]),
        "training, s": f"{np.mean(part['seconds'], axis=0)[-1]:.0f}",
    }


def run(main: Main) -> None:
    told = main.told("output", "resume", "contests", "learners")
    table, rows, panels = [], {}, {}
    for family in main.contests:
        contest = CONTESTS[family]
        parts = {
            name: study.kept(
                main.output / "learners" / f"{name}.json", told, partial(measure, name, main)
            )
            for name in contest.presets
            if not main.learners or name in main.learners
        }
        table += [row(name, contest, part) for name, part in parts.items()]
        rows |= parts
        panels[family] = {
            name: (part["env_steps"], np.mean(part["returns"], axis=0).tolist())
            for name, part in parts.items()
        }
    study.leave(main, table, csv=table, learners=rows)
    plotting.lines(main.output / "steps.png", panels, x_label="environment steps")


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
