"""What the scripts of this folder share: seeds trained one after the other, agents measured alike, one table."""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxmeta import checks, evaluation, tasks
from jaxmeta.evaluation.trials import Trials
from jaxmeta.runs import experiments, presets, reports, training
from jaxmeta.runs.experiments import Experiment
from jaxmeta.tasks import TaskFamily
from jaxmeta.types import Learner, Task

EVALUATION_SEED = 10**6  # not that of a run


@dataclasses.dataclass(frozen=True)
class Study:
    """What every script can be told."""

    full: bool = False
    """All rows of the published table, or longer training, for an accelerator; else what two CPU cores do
    in a quarter of an hour."""
    num_seeds: int = 3
    """Runs of each learner."""
    eval_tasks: int = 10_000
    """Held-out tasks, the same for all agents."""

    def __post_init__(self) -> None:
        checks.at_least("num_seeds", self.num_seeds, 1)
        checks.at_least("eval_tasks", self.eval_tasks, 2)


@dataclasses.dataclass(frozen=True)
class Row:
    """One agent in one setting."""

    setting: str
    agent: str
    scores: np.ndarray | None  # [seeds, tasks]; None for what is exact, which is `best` itself
    best: float  # what shares are of
    published: float | None
    training_seconds: float | None = (
        None  # of one run, without compiling; None for what is not trained
    )
    settings: Any = None  # what one needs to know to measure it again

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


def preset(name: str, meta_updates: int | None, num_tasks: int | None = None) -> Experiment:
    """A preset, shorter or longer where it is said."""
    experiment = presets.PRESETS[name]
    plan = dataclasses.replace(experiment.plan, num_tasks=num_tasks or experiment.plan.num_tasks)
    experiment = dataclasses.replace(experiment, plan=plan)
    return presets.lasting(experiment, meta_updates or plan.meta_updates)


def held_out(family: TaskFamily, study: Study) -> Task:
    """The tasks that every agent is measured on."""
    key = jax.random.key(EVALUATION_SEED)
    return jax.jit(lambda key: tasks.sample_tasks(key, family, study.eval_tasks, split="test"))(key)


def total_reward(task: Task, trials: Trials) -> jax.Array:
    """``[M]``."""
    return jnp.sum(trials.reward, axis=1)


def measure(
    score: Callable[[Task, Trials], jax.Array],
    meta: Any,
    drawn: Task,
    *,
    learner: Learner,
    family: TaskFamily,
    num_steps: int,
    num_updates: int = 0,
) -> np.ndarray:
    """``score(tasks, trials) [M]`` of one trial in each task."""

    def run(key: jax.Array, meta: Any, drawn: Task) -> jax.Array:
        trials = evaluation.trials(
            key,
            meta,
            drawn,
            learner=learner,
            env=family.env,
            num_steps=num_steps,
            num_updates=num_updates,
        )
        return score(drawn, trials)

    key = jax.random.key(EVALUATION_SEED + 1)
    return np.asarray(jax.jit(run)(key, meta, drawn), np.float64)


def train_and_measure(
    score: Callable[[Task, Trials], jax.Array],
    experiment: Experiment,
    drawn: Task,
    study: Study,
    *,
    family: TaskFamily,
    num_steps: int,
    name: str,
) -> tuple[np.ndarray, float]:
    """Scores ``[seeds, M]`` of trained learners, and the mean seconds of a training run without compiling."""
    algorithm = experiments.make_algorithm(experiment, family)
    meta_updates, num_tasks = experiment.plan.meta_updates, experiment.plan.num_tasks
    begin = jax.jit(lambda key: training.begin(key, algorithm=algorithm))
    run = begin(jax.random.key(0))
    chunk = max(1, meta_updates // 10)

    def advance(run: training.Run, count: jax.Array) -> tuple[training.Run, dict]:
        return training.advance(
            run,
            count,
            algorithm=algorithm,
            family=family,
            num_tasks=num_tasks,
            max_updates=chunk,
        )

    call = jax.jit(advance, donate_argnums=0).lower(run, jnp.zeros((), jnp.int32)).compile()
    scores, seconds = [], []
    for seed in range(study.num_seeds):
        run = jax.block_until_ready(begin(jax.random.key(seed)))
        began = time.perf_counter()
        done = 0
        while done < meta_updates:
            count = min(chunk, meta_updates - done)
            run, metrics = call(run, jnp.asarray(count, jnp.int32))
            done += count
            earned = float(np.mean(np.asarray(metrics["return/trial"])[:count]))
            spent = time.perf_counter() - began
            print(
                f"{name}, seed {seed}: {done} of {meta_updates} meta-updates in {spent:.0f} s, "
                f"training return {earned:.3f}",
                file=sys.stderr,
                flush=True,
            )
        seconds.append(time.perf_counter() - began)
        scores.append(
            measure(
                score,
                run.state.meta,
                drawn,
                learner=algorithm.learner,
                family=family,
                num_steps=num_steps,
            )
        )
    return np.stack(scores), float(np.mean(seconds))


def write(output: Path, rows: list[Row], study: Study, *, share: str, digits: int) -> None:
    """Prints the table and leaves table.md, table.csv and results.json in ``output``."""
    cells = [row.cells(share) for row in rows]
    shown = []
    for row, cell in zip(rows, cells, strict=True):
        published = cell["published"]
        interval = ""
        if cell["low"] is not None:
            interval = f" ({cell['low']:.{digits}f}, {cell['high']:.{digits}f})"
        shown.append(
            {
                "setting": cell["setting"],
                "agent": cell["agent"],
                "mean (95 % interval)": f"{cell['mean']:.{digits}f}{interval}",
                share: f"{cell[share]:.4f}",
                "published": "" if published is None else f"{published:g}",
                "seeds": "" if cell["seeds"] is None else str(cell["seeds"]),
                "training, s": ""
                if row.training_seconds is None
                else f"{row.training_seconds:.0f}",
            }
        )
    settings = [cell | {"settings": row.settings} for row, cell in zip(rows, cells, strict=True)]
    reports.leave(output, dataclasses.asdict(study), shown, rows=settings)
    reports.write_csv(output / "table.csv", cells)


def run(kind: type, main: Callable[[Any], None], description: str | None) -> None:
    """The command line of a script."""
    try:
        study = tyro.cli(kind, description=description)
        reports.refuse_to_overwrite(study.output)
        training.enable_compilation_cache()
        main(study)
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
