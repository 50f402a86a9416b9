"""How long does a solution take? Seconds and environment steps of training to a level, algorithm by algorithm.

    JAX_ENABLE_COMPILATION_CACHE=false OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/time_to.py
    python benchmarks/time_to.py --contests gridnavi --learners recurrent_q-gridnavi

Each contest is one family with a level. Each learner is trained by its preset, one seed after the other, and is looked at
so many times in training, on the same held-out tasks. On navigation the level is of the gap from the learner's own return
before adaptation to the optimum, and one inner step closes a share of it. Elsewhere the level is of the Bayes-optimal
agent's return in a trial. *Steps to it* are the environment steps of training up to a look. It is the first look at which
the mean of all seeds reaches the level. *Seconds to it* are of training one seed up to there, without compiling and
without the looks; *from cold* they count the compiling, too. They are of the process's CPU where it is pinned to one core,
as in the first command, else of the clock. That command also keeps compiled programs of earlier runs out.

Each learner is kept in learners/*.json as soon as it is measured; `--resume` keeps those that are there.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import study

from jaxmeta import evaluation, plotting, references
from jaxmeta.runs import experiments, presets, reports
from jaxmeta.tasks import TaskFamily
from jaxmeta.types import MetaAlgorithm, Task

GRIDNAVI = 37.214
"""The return of the Bayes-optimal agent in four episodes of GridNavi."""


PINNED = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1
clock = time.process_time if PINNED else time.perf_counter


def told(family: TaskFamily, drawn: Task) -> float:
    """The mean return of the agent that is told the task."""
    key = jax.random.key(study.EVALUATION_SEED + 2)
    return float(study.returns_of(evaluation.reference_returns, key, drawn, family).mean())


@dataclasses.dataclass(frozen=True)
class Contest:
    """Learners on one family, and the level that they are to reach."""

    presets: tuple[str, ...]
    level: float  # The share of the gap, or of the best return.
    best: Callable[[TaskFamily, Task], float]
    eval_tasks: int  # Held-out tasks of a look.
    inner_steps: int = 0  # Gradient steps before a return counts; 0 are learners with memory.
    length: float = 1.0  # Meta-updates, in units of each preset's own.


CONTESTS = {
    "navigation": Contest(
        (
            "maml-navigation-2m",
            *(
                f"{name}-navigation"
                for name in ("meta_sgd", "promp", "maml_trpo", "imaml", "reptile", "es")
            ),
        ),
        level=0.9,
        best=told,
        eval_tasks=200,
        inner_steps=1,
        length=3.0,
    ),
    "bandit": Contest(
        ("rl2-bandit-5-10",),
        level=0.99,
        best=lambda family, drawn: references.bayes_optimal_bandit(num_arms=5, num_pulls=10),
        eval_tasks=20_000,
    ),
    "gridnavi": Contest(
        ("rl2-gridnavi", "varibad-gridnavi", "recurrent_q-gridnavi"),
        level=0.97,
        best=lambda family, drawn: GRIDNAVI,
        eval_tasks=2100,  # a hundred of each of its 21 goals
    ),
}
LEARNERS = [name for contest in CONTESTS.values() for name in contest.presets]


class Main(study.Study):
    """Learners, contest by contest."""

    resume: bool = False  # Keep the learners that are in the folder and measure the others.
    contests: Annotated[study.Names, study.known(CONTESTS)] = tuple(CONTESTS)
    learners: Annotated[study.Names, study.known(LEARNERS)] = ()
    """Presets to measure; none is all of the contests."""
    num_seeds: int = 3  # Seeds, trained one after the other.
    looks: int = 40  # Looks at each learner in training.
    budget: Annotated[float, study.within(1e-6, 1e6)] = 1.0
    """Meta-updates, in units of what is planned."""
    eval_share: Annotated[float, study.within(1e-6, 1.0)] = 1.0
    """Held-out tasks, in units of each contest's own."""


def looking(
    contest: Contest, algorithm: MetaAlgorithm, family: TaskFamily, drawn: Task
) -> Callable[[Any], jax.Array]:
    """A compiled function of meta-parameters: their share of the gap, or of the best return, in the tasks ``drawn``."""
    key, best = jax.random.key(study.EVALUATION_SEED + 1), contest.best(family, drawn)

    def adapted(meta: Any) -> jax.Array:
        how = dict(num_streams=20, num_updates=contest.inner_steps)
        returns = study.adapted(key, meta, drawn, algorithm, family, **how)
        before, after = jnp.mean(returns[:, 0]), jnp.mean(returns[:, -1])
        return (after - before) / (best - before)

    def remembered(meta: Any) -> jax.Array:
        told = dict(env=family.env, num_steps=algorithm.lifetime.num_steps)
        trials = evaluation.trials(key, meta, drawn, learner=algorithm.learner, **told)
        return jnp.mean(jnp.sum(trials.reward, axis=1)) / best

    return jax.jit(adapted if contest.inner_steps else remembered)


def measure(contest: Contest, name: str, main: Main) -> dict[str, Any]:
    """Shares of a preset's learner at every look, ``[S, looks]``, with the steps and the seconds up to each."""
    experiment = presets.PRESETS[name]
    updates = max(1, round(main.budget * contest.length * experiment.plan.meta_updates))
    experiment = presets.lasting(experiment, updates)
    algorithm, family = experiments.make(experiment)
    chunk = max(1, updates // main.looks)
    drawn = study.held_out(family, max(2, round(main.eval_share * contest.eval_tasks)))
    look = looking(contest, algorithm, family, drawn)
    sizes = dict(num_tasks=experiment.plan.num_tasks, chunk=chunk)
    run = study.one(algorithm, 0)
    began = clock()
    train, _ = study.trainer(run, algorithm, family, **sizes)
    compiling = clock() - began
    shares, seconds = [], []
    for seed in range(main.num_seeds):
        run, curve, spent = study.one(algorithm, seed), [], [0.0]
        for _ in range(updates // chunk):
            began = clock()
            trained = train(run, chunk)
            run = trained.run
            spent.append(spent[-1] + clock() - began)
            curve.append(float(look(trained.meta)))
        shares.append(curve)
        seconds.append(spent[1:])
        study.say(f"{name}, seed {seed}: {spent[-1]:.0f} s, {np.round(curve, 3)}")
    env_steps = chunk * int(trained.curve["env_steps"][0])
    return {
        "env_steps": [env_steps * (i + 1) for i in range(len(shares[0]))],
        "shares": shares,
        "best": contest.best(family, drawn),
        "compiling": compiling,
        "seconds": seconds,
        "settings_of_preset": experiments.describe(experiment),
        "machine": reports.machine(),
    }


def reached(curve: Sequence[float], level: float) -> int | None:
    """The first look at which ``curve`` is at ``level``, or None."""
    return next((i for i, x in enumerate(curve) if x >= level), None)


def row(name: str, contest: Contest, part: dict[str, Any]) -> dict[str, str]:
    """A learner's row of the table."""
    steps, seconds = part["env_steps"], np.mean(part["seconds"], axis=0)

    def shown(curve: Sequence[float]) -> str:
        at = reached(curve, contest.level)
        return f"more than {study.spaced(steps[-1])}" if at is None else study.spaced(steps[at])

    mean = np.mean(part["shares"], axis=0)
    at = reached(mean, contest.level)
    last = [curve[-1] for curve in part["shares"]]
    return {
        "learner": name,
        "level": f"{contest.level:g}",
        "steps to it": shown(mean),
        "each seed": ", ".join(map(shown, part["shares"])),
        "seconds to it": "" if at is None else f"{seconds[at]:.1f}",
        "from cold": "" if at is None else f"{seconds[at] + part['compiling']:.1f}",
        "at the end": f"{np.mean(last):.3f} ({min(last):.3f} to {max(last):.3f})",
        "after steps": study.spaced(steps[-1]),
        "seconds": f"{seconds[-1]:.0f}",
    }


def run(main: Main) -> None:
    told = main.told("output", "resume", "contests", "learners")
    table, rows, panels = [], {}, {}
    for title in main.contests:
        contest = CONTESTS[title]
        parts = {
            name: study.kept(
                main.output / "learners" / f"{name}.json",
                told,
                partial(measure, contest, name, main),
            )
            for name in contest.presets
            if not main.learners or name in main.learners
        }
        table += [row(name, contest, part) for name, part in parts.items()]
        rows |= parts
        if parts:
            panels[title] = {
                name: (part["env_steps"], np.mean(part["shares"], axis=0).tolist())
                for name, part in parts.items()
            }
    study.leave(main, table, csv=table, learners=rows)
    plotting.lines(main.output / "steps.png", panels, x_label="environment steps")


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
