"""Which gradient-based algorithm adapts best, and where? Every one on navigation and classic control.

Each algorithm meta-trains on the same number of environment steps of each family (all seeds as one vmap),
then adapts to held-out tasks by one gradient step. Returns are normalised: 0 is the random agent and 1 the
reference agent, which is told the task (optimal in navigation, a good hand-written controller elsewhere).
Settings are the defaults but for the inner step size, which is chosen for a family by MAML's sake and then
everybody's; ES is last to profit from a budget that is measured in environment steps.

    python benchmarks/algorithms.py --output runs/algorithms
    python benchmarks/algorithms.py --families navigation --algorithms MAML ProMP

Leaves cells/*.json (one an algorithm and family, written as soon as it is measured; `--resume` keeps those
that are there), results.json, table.md and learning.png in the output folder.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from jaxmeta import checks, evaluation, plotting, tasks
from jaxmeta.runs import experiments, presets, records, reports, training
from jaxmeta.runs.experiments import Experiment
from jaxmeta.tasks import sample_tasks

TITLES = {variant.title: name for name, variant in presets.VARIANTS.items()}
"""Rows of the table, as they are called there, and the variants."""


@dataclasses.dataclass(frozen=True)
class Main:
    """Gradient-based meta-learning: algorithms × families."""

    output: Path = Path("runs/algorithms")
    """Folder for the results; made anew, unless resumed."""
    resume: bool = False
    """Keep the cells that are in the folder and measure the others."""
    algorithms: tuple[str, ...] = tuple(TITLES)
    """Rows of the table."""
    families: tuple[str, ...] = tuple(presets.COLUMNS)
    """Columns of the table."""
    num_seeds: int = 5
    """Seeds, trained at once."""
    meta_updates: int = 100
    """Meta-updates of MAML on navigation; every algorithm is given the environment steps that these
    take. Families that need fewer get a share of them."""
    num_tasks: int = 10
    """Tasks in a meta-batch."""
    num_streams: int = 10
    """Episodes a task and update."""
    eval_tasks: int = 100
    """Held-out tasks."""
    eval_updates: int = 3
    """Gradient steps that each of them is given."""

    def __post_init__(self) -> None:
        checks.fields(self)
        checks.some("algorithms", self.algorithms)
        checks.some("families", self.families)
        for name in ("num_seeds", "meta_updates", "num_tasks", "num_streams", "eval_updates"):
            checks.at_least(name, getattr(self, name), 1)
        checks.at_least("num_seeds", self.num_seeds, 2)
        checks.at_least("eval_tasks", self.eval_tasks, 2)
        for name in self.algorithms:
            checks.choice("algorithms", name, TITLES)
        for name in self.families:
            checks.choice("families", name, presets.COLUMNS)


def experiment_of(name: str, family: str, main: Main) -> Experiment:
    """One cell of the table."""
    return presets.compared(
        TITLES[name],
        family,
        meta_updates=main.meta_updates,
        num_tasks=main.num_tasks,
        num_streams=main.num_streams,
    )


def measure(name: str, family_name: str, main: Main) -> dict[str, Any]:
    """One cell of the table."""
    experiment = experiment_of(name, family_name, main)
    algorithm, family = experiments.make(experiment)
    num_tasks, meta_updates = experiment.plan.num_tasks, experiment.plan.meta_updates
    budget = meta_updates * main.num_tasks * main.num_streams * family.horizon * 2
    keys = jax.vmap(jax.random.key)(jnp.arange(main.num_seeds))
    runs = jax.jit(jax.vmap(lambda key: training.begin(key, algorithm=algorithm)))(keys)

    def advance(run: training.Run, count: jax.Array) -> tuple[training.Run, dict]:
        return training.advance(
            run, count, algorithm=algorithm, family=family, num_tasks=num_tasks, max_updates=20
        )

    began = time.perf_counter()
    count = jnp.zeros((), jnp.int32)
    call = jax.jit(jax.vmap(advance, in_axes=(0, None)), donate_argnums=0)
    call = call.lower(runs, count).compile()
    compiled = time.perf_counter()
    rows: list[dict[str, np.ndarray]] = []
    env_steps = 0
    while env_steps < budget:
        chunk = 20
        if rows:
            per_update = int(rows[0]["env_steps"][0, 0])
            chunk = min(20, -(-(budget - env_steps) // per_update))
        else:
            chunk = 1
        runs, metrics = call(runs, count + chunk)
        metrics = {key: np.asarray(x)[:, :chunk] for key, x in jax.device_get(metrics).items()}
        env_steps += int(metrics["env_steps"][0].sum())
        rows.append(metrics)
    trained = time.perf_counter()
    curve = {key: np.concatenate([row[key] for row in rows], axis=1) for key in rows[0]}

    task_key, key = jax.random.split(jax.random.key(10**6))
    drawn = sample_tasks(task_key, family, main.eval_tasks, split="test")

    def adapted(meta: Any) -> jax.Array:
        return evaluation.adaptation_returns(
            key,
            meta,
            drawn,
            learner=algorithm.learner,
            env=family.env,
            num_streams=main.num_streams,
            num_updates=main.eval_updates,
            num_steps=family.horizon,
        )

    returns = np.asarray(jax.jit(jax.vmap(adapted))(runs.state.meta), np.float64)
    random, reference = references(family_name, main)
    normalized = evaluation.normalized(returns, random, reference)  # [S, M, K + 1]
    updates = range(main.eval_updates + 1)
    return {
        "algorithm": name,
        "family": family_name,
        "meta_updates": curve["env_steps"].shape[1],
        "env_steps": env_steps,
        "num_tasks": num_tasks,
        "step_size": experiment.hyper["step_size"],
        "random": float(random.mean()),
        "reference": float(reference.mean()),
        "returns": [returns[..., k].mean().item() for k in updates],
        "returns_by_seed": returns.mean(1).tolist(),
        "normalized": [
            float(evaluation.interquartile_mean(normalized[..., k], axis=None)) for k in updates
        ],
        "intervals": [list(evaluation.interquartile_interval(normalized[..., k])) for k in updates],
        "skipped_tasks": int(curve["skipped_tasks"].sum()),
        "curve": {when: curve[f"return/{when}"].tolist() for when in ("before", "after")},
        "compile_seconds": compiled - began,
        "train_seconds": trained - compiled,
    }


def references(family_name: str, main: Main) -> tuple[np.ndarray, np.ndarray]:
    """Returns of the random and of the reference agent on the held-out tasks, ``[M]`` each."""
    family = tasks.make(family_name, **presets.COLUMNS[family_name].settings)
    task_key, _ = jax.random.split(jax.random.key(10**6))
    drawn = sample_tasks(task_key, family, main.eval_tasks, split="test")
    keys = jax.random.split(jax.random.key(10**6 + 1))
    random = jax.jit(lambda key: evaluation.random_returns(key, drawn, family=family))(keys[0])
    reference = jax.jit(lambda key: evaluation.reference_returns(key, drawn, family=family))(
        keys[1]
    )
    return np.asarray(random, np.float64), np.asarray(reference, np.float64)


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


def table(cells: Mapping[str, Mapping[str, Any]], main: Main) -> list[str]:
    """Normalised return after one gradient step (IQM and interval), algorithms by families."""
    names = {name: name.replace("_", " ") for name in main.families}
    lines = [
        f"| algorithm | {' | '.join(names.values())} |",
        f"|---|{'---|' * len(names)}",
    ]
    for algorithm in main.algorithms:
        row = []
        for family in main.families:
            cell = cells[cell_name(algorithm, family)]
            numbers = [cell["normalized"][1], *cell["intervals"][1]]
            mean, low, high = ("diverged" if x is None else f"{x:.3f}" for x in numbers)
            row.append(f"{mean} ({low}, {high})")
        lines.append(f"| {algorithm} | {' | '.join(row)} |")
    return lines


def speed_table(cells: Mapping[str, Mapping[str, Any]], main: Main) -> list[str]:
    """Meta-updates to 80 % of the gap on dense navigation, and what a cell took."""
    lines = [
        "| algorithm | meta-updates to 80 % of the gap, median (each seed) | of | env steps, thousands | seconds |",
        "|---|---|---|---|---|",
    ]
    for algorithm in main.algorithms:
        if presets.VARIANTS[TITLES[algorithm]].config.get("num_updates") == 0:
            continue  # one lifetime of it has no update in it
        cell = cells[cell_name(algorithm, "navigation")]
        seeds = updates_to_close(cell)
        shown = ", ".join("never" if x == float("inf") else f"{x:.0f}" for x in seeds)
        median = np.median(seeds)
        middle = "never" if median == float("inf") else f"{median:.0f}"
        steps = median * cell["env_steps"] / cell["meta_updates"] / 1000
        thousands = "never" if median == float("inf") else f"{steps:.0f}"
        lines.append(
            f"| {algorithm} | {middle} ({shown}) | {cell['meta_updates']} | {thousands} "
            f"| {cell['train_seconds']:.0f} |"
        )
    return lines


def finite(tree: Any) -> Any:
    """The same with None for the numbers of a run that diverged, which JSON cannot hold."""
    if isinstance(tree, dict):
        return {name: finite(x) for name, x in tree.items()}
    if isinstance(tree, list):
        return [finite(x) for x in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def mean_table(cells: Mapping[str, Mapping[str, Any]], family: str, main: Main) -> list[str]:
    """Mean return on a family after each gradient step, with an interval over seeds.

    Where most tasks earn nothing the interquartile mean is of those.
    """
    steps = " | ".join(f"{k} step{'' if k == 1 else 's'}" for k in range(main.eval_updates + 1))
    lines = [
        f"| {family.replace('_', ' ')} | {steps} |",
        f"|---|{'---|' * (main.eval_updates + 1)}",
    ]
    for algorithm in main.algorithms:
        by_seed = np.asarray(cells[cell_name(algorithm, family)]["returns_by_seed"], float)
        row = []
        for column in by_seed.T:
            low, high = evaluation.bootstrap_interval(column)
            row.append(f"{column.mean():.1f} ({low:.1f}, {high:.1f})")
        lines.append(f"| {algorithm} | {' | '.join(row)} |")
    return lines


def cell_name(algorithm: str, family: str) -> str:
    return f"{algorithm}-{family}".replace(",", "").replace(" ", "_").lower()


def main(main: Main) -> None:
    if not main.resume:
        reports.refuse_to_overwrite(main.output)
    training.enable_compilation_cache()
    console = Console(stderr=True)
    settings = json.loads(json.dumps(dataclasses.asdict(main), default=str))
    for name in ("output", "resume", "algorithms", "families"):
        del settings[name]
    folder = main.output / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    cells: dict[str, dict[str, Any]] = {}
    for family in main.families:
        for algorithm in main.algorithms:
            name = cell_name(algorithm, family)
            path = folder / f"{name}.json"
            experiment = experiments.describe(experiment_of(algorithm, family, main))
            described = settings | {"experiment": records.plain(experiment)}
            if path.exists():
                cell = json.loads(path.read_text())
                if cell["settings"] != described:
                    raise FileExistsError(
                        f"{path} was measured with other settings: {cell['settings']}"
                    )
            else:
                cell = finite(measure(algorithm, family, main) | {"settings": described})
                text = json.dumps(cell, allow_nan=False)
                temporary = path.with_suffix(".tmp")
                temporary.write_text(text + "\n")
                temporary.replace(path)
            cells[name] = cell
            console.print(
                f"{algorithm} on {family}: normalised return after 0, 1, ... steps "
                f"{np.round(np.asarray(cell['normalized'], float), 3).tolist()}, {cell['meta_updates']} meta-updates in "
                f"{cell['train_seconds']:.0f} s"
            )
    lines = table(cells, main)
    if "navigation" in main.families:
        lines += ["", *speed_table(cells, main)]
    if "sparse_navigation" in main.families:
        lines += ["", *mean_table(cells, "sparse_navigation", main)]
    reports.leave(main.output, settings, lines, cells=cells)
    plotting.learning(
        main.output / "learning.png",
        {
            family.replace("_", " "): {
                algorithm: cells[cell_name(algorithm, family)] for algorithm in main.algorithms
            }
            for family in main.families
        },
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Main, description=__doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
