"""Which gradient-based algorithm adapts best, and where? Every one on navigation and classic control.

Each algorithm meta-trains on the same number of environment steps of each family (all seeds as one vmap),
then adapts to held-out tasks by one gradient step. Returns are normalised: 0 is the random agent and 1 the
reference agent, which is told the task (optimal in navigation, a good hand-written controller elsewhere).
Settings are the defaults but for the inner step size, which is chosen for a family by MAML's sake and then
everybody's; ES is last to profit from a budget that is measured in environment steps.

    python benchmarks/algorithms.py --output runs/algorithms
    python benchmarks/algorithms.py --families navigation --algorithms MAML ProMP

Each cell is kept in cells/*.json as soon as it is measured; `--resume` keeps those that are there.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import jax
import numpy as np
import study

from jaxmeta import evaluation, plotting, tasks
from jaxmeta.runs import experiments, presets, records
from jaxmeta.runs.experiments import Experiment
from jaxmeta.types import MetaAlgorithm

TITLES = {variant.title: name for name, variant in presets.VARIANTS.items()}
"""Rows of the table, as they are called there, and the variants."""


class Main(study.Study):
    """Gradient-based meta-learning: algorithms × families."""

    resume: bool = False  # Keep the cells that are in the folder and measure the others.
    algorithms: Annotated[study.Names, study.known(TITLES)] = tuple(TITLES)  # Rows of the table.
    families: Annotated[study.Names, study.known(presets.COLUMNS)] = tuple(presets.COLUMNS)
    """Columns of the table."""
    num_seeds: Annotated[int, study.at_least(2)] = 5  # Seeds, trained at once.
    meta_updates: int = 100
    """Meta-updates of MAML on navigation; every algorithm is given the environment steps that these
    take. Families that need fewer get a share of them."""
    num_tasks: int = 10  # Tasks in a meta-batch.
    num_streams: int = 10  # Episodes a task and update.
    eval_tasks: int = 100  # Held-out tasks.
    eval_updates: int = 3  # Gradient steps that each of them is given.


def experiment_of(name: str, family: str, main: Main) -> Experiment:
    """The experiment of one cell of the table."""
    sizes = main.some("meta_updates", "num_tasks", "num_streams")
    return presets.compared(TITLES[name], family, **sizes)


def trained(
    experiment: Experiment, algorithm: MetaAlgorithm, family: tasks.TaskFamily, main: Main
) -> tuple[study.Trained, dict[str, float]]:
    """The runs of all seeds after the budget of environment steps, and the seconds of their training."""
    budget = experiment.plan.meta_updates * main.num_tasks * main.num_streams * family.horizon * 2
    runs = study.seeds(algorithm, main.num_seeds)
    num_tasks = experiment.plan.num_tasks
    train, compiling = study.trainer(runs, algorithm, family, num_tasks=num_tasks, chunk=20)
    first = train(runs, 1)  # which shows how many steps an update takes
    left = math.ceil(budget / int(first.curve["env_steps"][0, 0])) - 1
    learned = first
    if left > 0:
        after = train(first.run, left)
        curve = {k: np.concatenate([x, after.curve[k]], axis=1) for k, x in first.curve.items()}
        learned = study.Trained(after.run, curve, first.seconds + after.seconds)
    return learned, {"compile_seconds": compiling, "train_seconds": learned.seconds}


def measure(name: str, family_name: str, main: Main) -> dict[str, Any]:
    """One cell of the table."""
    experiment = experiment_of(name, family_name, main)
    algorithm, family = experiments.make(experiment)
    learned, seconds = trained(experiment, algorithm, family, main)
    curve = learned.curve
    task_key, key = jax.random.split(jax.random.key(study.EVALUATION_SEED))
    drawn = tasks.sample_tasks(task_key, family, main.eval_tasks, split="test")
    how = dict(drawn=drawn, algorithm=algorithm, family=family, num_updates=main.eval_updates)
    adapted = partial(study.adapted, key, **how, num_streams=main.num_streams)
    returns = np.asarray(jax.jit(jax.vmap(adapted))(learned.meta), np.float64)
    keys = jax.random.split(jax.random.key(study.EVALUATION_SEED + 1))
    random, reference = (x.astype(np.float64) for x in study.references(keys, drawn, family))
    normalized = evaluation.normalized(returns, random, reference)  # [S, M, K + 1]
    means, intervals = study.middles(normalized)
    return {
        "algorithm": name,
        "family": family_name,
        "meta_updates": curve["env_steps"].shape[1],
        "env_steps": int(curve["env_steps"][0].sum()),
        "num_tasks": experiment.plan.num_tasks,
        "step_size": experiment.hyper["step_size"],
        "random": float(random.mean()),
        "reference": float(reference.mean()),
        "returns": [x.mean().item() for x in np.moveaxis(returns, -1, 0)],
        "returns_by_seed": returns.mean(1).tolist(),
        "normalized": means,
        "intervals": intervals,
        "skipped_tasks": int(curve["skipped_tasks"].sum()),
        "curve": {when: curve[f"return/{when}"].tolist() for when in ("before", "after")},
        **seconds,
    }


def updates_to_close(cell: Mapping[str, Any], share: float = 0.8, window: int = 10) -> list[float]:
    """Meta-updates until one lifetime closes ``share`` of the gap from the unadapted policy to the reference.

    By the mean of ``window`` meta-updates on their own (fresh) training tasks; of each seed, infinite
    where it never happens.
    """
    found = []
    window = min(window, cell["meta_updates"])
    mean = np.ones(window) / window
    for before, after in zip(cell["curve"]["before"], cell["curve"]["after"], strict=True):
        before, after = (
            np.convolve(np.asarray(x, float), mean, mode="valid") for x in (before, after)
        )
        closed = (after - before) / (cell["reference"] - before) >= share
        found.append(float(np.argmax(closed) + window) if closed.any() else float("inf"))
    return found


Cells = Mapping[str, Mapping[str, Any]]
"""All that was measured, by `cell_name`."""


def table(cells: Cells, main: Main) -> list[str]:
    """Normalised return after one gradient step (IQM and interval), algorithms by families."""
    rows = []
    for algorithm in main.algorithms:
        mine = [cells[cell_name(algorithm, family)] for family in main.families]
        shown = [(cell["normalized"][1], *cell["intervals"][1]) for cell in mine]
        rows.append((algorithm, *(study.with_interval(*x, digits=3) for x in shown)))
    return study.markdown(("algorithm", *map(spaced, main.families)), rows)


def speed_table(cells: Cells, main: Main) -> list[str]:
    """Meta-updates to 80 % of the gap on dense navigation, and the seconds of a cell."""

    def shown(x: float) -> str:
        return f"{x:.0f}" if math.isfinite(x) else "never"

    rows = []
    for algorithm in main.algorithms:
        if presets.VARIANTS[TITLES[algorithm]].config.get("num_updates") == 0:
            continue  # one lifetime of it has no update in it
        cell = cells[cell_name(algorithm, "navigation")]
        seeds = updates_to_close(cell)
        median = float(np.median(seeds))
        steps = shown(median * cell["env_steps"] / cell["meta_updates"] / 1000)
        found = f"{shown(median)} ({', '.join(map(shown, seeds))})"
        seconds = f"{cell['train_seconds']:.0f}"
        rows.append((algorithm, found, str(cell["meta_updates"]), steps, seconds))
    found = "meta-updates to 80 % of the gap, median (each seed)"
    return study.markdown(("algorithm", found, "of", "env steps, thousands", "seconds"), rows)


def mean_table(cells: Cells, family: str, main: Main) -> list[str]:
    """Mean return on a family after each gradient step, with an interval over seeds.

    Where most tasks earn nothing the interquartile mean is of those.
    """
    rows = []
    for algorithm in main.algorithms:
        by_seed = np.asarray(cells[cell_name(algorithm, family)]["returns_by_seed"], float)
        shown = ((x.mean(), *evaluation.bootstrap_interval(x)) for x in by_seed.T)
        rows.append((algorithm, *(study.with_interval(*x, digits=1) for x in shown)))
    steps = [f"{k} step{'' if k == 1 else 's'}" for k in range(main.eval_updates + 1)]
    return study.markdown((spaced(family), *steps), rows)


def spaced(name: str) -> str:
    """A family's name in words."""
    return name.replace("_", " ")


def cell_name(algorithm: str, family: str) -> str:
    """The name of a cell's file."""
    return f"{algorithm}-{family}".replace(",", "").replace(" ", "_").lower()


def run(main: Main) -> None:
    settings = main.told("output", "resume", "algorithms", "families")
    cells: dict[str, dict[str, Any]] = {}
    for family in main.families:
        for algorithm in main.algorithms:
            name = cell_name(algorithm, family)
            experiment = records.plain(experiments.describe(experiment_of(algorithm, family, main)))
            path, told = main.output / "cells" / f"{name}.json", {"experiment": experiment}
            measured = partial(measure, algorithm, family, main)
            cell = cells[name] = study.kept(path, settings | told, measured)
            scores = np.round(np.asarray(cell["normalized"], float), 3).tolist()
            study.say(
                f"{algorithm} on {family}: normalised return after 0, 1, ... steps {scores}, "
                f"{cell['meta_updates']} meta-updates in {cell['train_seconds']:.0f} s"
            )
    lines = table(cells, main)
    if "navigation" in main.families:
        lines += ["", *speed_table(cells, main)]
    if "sparse_navigation" in main.families:
        lines += ["", *mean_table(cells, "sparse_navigation", main)]
    study.leave(main, lines, settings=settings, cells=cells)
    panels = {
        spaced(family): {x: cells[cell_name(x, family)] for x in main.algorithms}
        for family in main.families
    }
    plotting.learning(main.output / "learning.png", panels)


if __name__ == "__main__":
    study.main({Main: run}, __doc__)
