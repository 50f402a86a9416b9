"""The parts that these scripts share: settings, agents measured alike, and one table."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import study

from jaxmeta import evaluation
from jaxmeta.evaluation.trials import Trials
from jaxmeta.runs import experiments, presets, reports
from jaxmeta.tasks import TaskFamily
from jaxmeta.types import Learner, Task


class Reproduction(study.Study):
    """Settings that every script has."""

    full: bool = False
    """All rows of the published table, or longer training, for an accelerator; else what two CPU cores do
    in a quarter of an hour."""
    num_seeds: int = 3  # Runs of each learner.
    meta_updates: int | None = None  # Meta-updates of each learner; None is the preset's own.
    num_tasks: int | None = None  # Trials in a meta-update; None is the preset's own.
    eval_tasks: int = 10_000  # Held-out tasks, the same for all agents.


@dataclasses.dataclass(frozen=True)
class Row:
    """One agent in one setting."""

    setting: str
    agent: str
    scores: np.ndarray | None  # [seeds, tasks]; None where `best` is the exact score
    best: float  # shares are of this
    published: float | None
    training_seconds: float | None = None  # of one run, without compiling
    settings: Any = None  # those that it takes to measure the agent again

    def cells(self, share: str) -> dict[str, Any]:
        """Numbers by column; the interval is over tasks and, of three seeds and more, seeds."""
        mean, low, high, seeds, num_tasks = self.best, None, None, None, None
        if self.scores is not None:
            mean = float(self.scores.mean())
            seeds, num_tasks = self.scores.shape
            # Of two runs resampling knows nothing; their mean is taken as one.
            of = self.scores if seeds > 2 else self.scores.mean(0, keepdims=True)
            low, high = evaluation.mean_interval(of)
        return {
            "setting": self.setting,
            "agent": self.agent,
            "mean": mean,
            "low": low,
            "high": high,
            share: mean / self.best,
            "published": self.published,
            "seeds": seeds,
            "tasks": num_tasks,
            "training_seconds": self.training_seconds,
            "machine": reports.machine(),
        }


def total_reward(task: Task, trials: Trials) -> jax.Array:
    """The sum of each trial's rewards, ``[M]``."""
    return jnp.sum(trials.reward, axis=1)


@dataclasses.dataclass(frozen=True)
class Measure:
    """Agents in the same held-out tasks, by the same score of a trial of ``num_steps``."""

    score: Callable[[Task, Trials], jax.Array]  # (tasks, trials) -> [M]
    family: TaskFamily
    drawn: Task
    num_steps: int

    def of(self, learner: Learner, meta: Any = (), *, env: Any = None, **how: Any) -> np.ndarray:
        """Scores of a learner in one trial of each task, ``[M]``, by `evaluation.trials`."""

        def run(key: jax.Array, meta: Any, drawn: Task) -> jax.Array:
            told = dict(learner=learner, env=env or self.family.env, num_steps=self.num_steps)
            return self.score(drawn, evaluation.trials(key, meta, drawn, **(told | how)))

        key = jax.random.key(study.EVALUATION_SEED + 1)
        return np.asarray(jax.jit(run)(key, meta, self.drawn), np.float64)

    def learned(
        self,
        row: Row,
        told: Reproduction,
        preset: str,
        *,
        family: TaskFamily | None = None,
        meta_updates: int | None = None,
        **config: Any,
    ) -> Row:
        """``row`` with the scores of a preset's learner, trained with one seed after the other.

        ``family`` of None trains on the tasks' own. ``meta_updates`` and ``config`` are in place of
        the preset's; settings that are told come before both.
        """
        family = family or self.family
        experiment = study.with_config(presets.PRESETS[preset], **config)
        plan = experiment.plan
        plan = dataclasses.replace(plan, num_tasks=told.num_tasks or plan.num_tasks)
        updates = told.meta_updates or meta_updates or plan.meta_updates
        experiment = presets.lasting(dataclasses.replace(experiment, plan=plan), updates)
        algorithm, plan = experiments.make_algorithm(experiment, family), experiment.plan
        sizes = dict(num_tasks=plan.num_tasks, chunk=max(1, plan.meta_updates // 10))
        train, _ = study.trainer(study.one(algorithm, 0), algorithm, family, **sizes)
        scores, seconds = [], []
        for seed in range(told.num_seeds):

            def show(done: int, metrics: dict, spent: float, seed: int = seed) -> None:
                study.say(
                    f"{row.agent}, {row.setting}, seed {seed}: {done} of {plan.meta_updates} "
                    f"meta-updates in {spent:.0f} s, "
                    f"training return {metrics['return/trial'].mean():.3f}"
                )

            trained = train(study.one(algorithm, seed), plan.meta_updates, show)
            seconds.append(trained.seconds)
            scores.append(self.of(algorithm.learner, trained.meta, env=family.env))
        found = dict(scores=np.stack(scores), training_seconds=float(np.mean(seconds)))
        return dataclasses.replace(row, **found, settings=experiments.describe(experiment))


def leave(told: Reproduction, rows: list[Row], *, share: str, digits: int) -> None:
    """Prints the table and leaves table.md, table.csv and results.json in the output folder."""
    cells = [row.cells(share) for row in rows]

    def shown(cell: dict[str, Any]) -> dict[str, str]:
        mean = f"{cell['mean']:.{digits}f}"
        if cell["low"] is not None:
            numbers = (cell[name] for name in ("mean", "low", "high"))
            mean = study.with_interval(*numbers, digits=digits)
        forms = {"published": "g", "seeds": "", "training_seconds": ".0f"}
        some = {k: "" if cell[k] is None else format(cell[k], form) for k, form in forms.items()}
        return cell | some | {"mean": mean, "share": cell[share]}

    columns = f"""
        setting = {{setting}} | agent = {{agent}} | mean (95 % interval) = {{mean}} | {share} = {{share:.4f}}
        | published = {{published}} | seeds = {{seeds}} | training, s = {{training_seconds}}
    """
    settings = [cell | {"settings": row.settings} for row, cell in zip(rows, cells, strict=True)]
    study.leave(told, study.table(columns, map(shown, cells)), csv=cells, rows=settings)
