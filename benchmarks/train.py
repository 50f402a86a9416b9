"""Meta-trains an algorithm on a family of tasks and shows how it adapts to tasks it has not met.

    python benchmarks/train.py                      # MAML on 2-D navigation
    python benchmarks/train.py --help               # every setting
    python benchmarks/train.py --family cartpole --output runs/cartpole
    python benchmarks/train.py --algorithm rl2 --family gridnavi --num-episodes 4 --num-tasks 256
    python benchmarks/train.py --preset rl2-gridnavi     # settings whose figures are in the README

`jaxmeta.load` gives back what was learned. Leaves config.json, metrics.jsonl, evaluation.json, checkpoints/, adaptation.png and, for learners that
adapt by gradient steps, trajectories.png in the output folder.
"""

import argparse
import dataclasses
import inspect
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from jaxmeta import (
    checks,
    evaluation,
    experiments,
    memory_learner,
    plotting,
    presets,
    sinks,
    tasks,
    training,
)
from jaxmeta.adaptation import lifetime
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.checkpoints import CheckpointError
from jaxmeta.experiments import Experiment, describe
from jaxmeta.tasks import TaskFamily, sample_tasks
from jaxmeta.types import MetaAlgorithm


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the result is measured."""

    eval_tasks: int = 200
    """Held-out tasks, and as many out of distribution."""
    eval_updates: int = 3
    """Gradient steps that each of them is given; learners with memory have the episodes of a trial."""

    def __post_init__(self) -> None:
        checks.at_least("eval_tasks", self.eval_tasks, 2)
        checks.at_least("eval_updates", self.eval_updates, 1)


def settings(argv: list[str]) -> Any:
    """The command line as one object; algorithm and family decide which settings there are, a preset how they stand."""
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("preset", "algorithm", "family"):
        chooser.add_argument(f"--{name}")
    chosen, _ = chooser.parse_known_args(argv)
    preset = Experiment()
    if chosen.preset is not None:
        checks.choice("preset", chosen.preset, presets.PRESETS)
        preset = presets.PRESETS[chosen.preset]
        for name in ("algorithm", "family"):
            told = getattr(chosen, name)
            if told not in (None, getattr(preset, name)):
                raise ValueError(f"{name}={told!r} is not that of preset={chosen.preset!r}")
    chosen.algorithm = chosen.algorithm or preset.algorithm
    chosen.family = chosen.family or preset.family
    checks.choice("algorithm", chosen.algorithm, ALGORITHMS)
    if chosen.algorithm == "meta_value":
        raise ValueError(
            "algorithm='meta_value' predicts returns and earns none: "
            "benchmarks/off_policy_evaluation.py trains and measures it"
        )
    checks.choice("family", chosen.family, tasks.FAMILIES)
    module = ALGORITHMS[chosen.algorithm]
    constructor = tasks.FAMILIES[chosen.family]
    family_settings = dataclasses.make_dataclass(
        "FamilySettings",
        [
            (
                name,
                parameter.annotation,
                dataclasses.field(default=preset.family_settings.get(name, parameter.default)),
            )
            for name, parameter in inspect.signature(constructor).parameters.items()
        ],
        frozen=True,
    )
    family_settings.__doc__ = constructor.__doc__
    flat = tyro.conf.arg(name="")
    algorithms, families = " | ".join(sorted(ALGORITHMS)), " | ".join(tasks.names())
    fields = [
        (
            "preset",
            Annotated[str | None, tyro.conf.arg(help=", ".join(presets.PRESETS))],
            chosen.preset,
        ),
        ("algorithm", Annotated[str, tyro.conf.arg(help=algorithms)], chosen.algorithm),
        ("family", Annotated[str, tyro.conf.arg(help=families)], chosen.family),
        (
            "output",
            Annotated[
                Path | None,
                tyro.conf.arg(help="folder; default runs/ALGORITHM-FAMILY or runs/PRESET"),
            ],
            None,
        ),
        ("resume", Annotated[bool, tyro.conf.arg(help="go on from its newest checkpoint")], False),
        ("training", Annotated[training.Config, flat], preset.plan),
        ("config", Annotated[module.Config, flat], module.Config(**preset.config)),
        ("hyper", Annotated[module.Hyper, flat], module.Hyper(**preset.hyper)),
        (
            "tensorboard",
            Annotated[Path | None, tyro.conf.arg(help="folder for its event files")],
            None,
        ),
        ("wandb", Annotated[str | None, tyro.conf.arg(help="project of Weights & Biases")], None),
        ("evaluation", Annotated[Evaluation, flat], Evaluation()),
        ("task", family_settings, family_settings()),
    ]
    main = dataclasses.make_dataclass(
        "Main",
        [(name, kind, dataclasses.field(default=default)) for name, kind, default in fields],
        frozen=True,
    )
    main.__doc__ = __doc__
    return tyro.cli(main, args=argv)


def sink_of(args: Any) -> training.Sink | None:
    """Where metrics go beside the folder."""
    if args.tensorboard is not None and args.wandb is not None:
        raise ValueError(
            f"wandb={args.wandb!r} and tensorboard={args.tensorboard}: name one of them"
        )
    if args.tensorboard is not None:
        return sinks.tensorboard(args.tensorboard)
    return None if args.wandb is None else sinks.wandb(project=args.wandb)


def evaluate(
    key: jax.Array,
    meta: Any,
    *,
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    split: str,
    num_tasks: int,
    config: Any,
    num_updates: int,
) -> dict[str, Any]:
    """The adaptation curve on ``num_tasks`` tasks of a split, summarised: returns after each update or,
    for a learner with memory, of each episode of a trial."""
    task_key, adapt_key, random_key, optimal_key = jax.random.split(key, 4)
    drawn = jax.jit(lambda key: sample_tasks(key, family, num_tasks, split=split))(task_key)
    acting: dict[str, Any] = dict(learner=algorithm.learner, env=family.env)

    def adapted(key: jax.Array, meta: Any, drawn: Any) -> jax.Array:
        if isinstance(config, memory_learner.Config):
            num_steps = config.num_episodes * family.horizon
            trials = evaluation.trials(key, meta, drawn, **acting, num_steps=num_steps)
            return evaluation.episode_returns(trials, config.num_episodes)
        return evaluation.adaptation_returns(
            key,
            meta,
            drawn,
            **acting,
            num_streams=config.num_streams,
            num_updates=num_updates,
            num_steps=family.horizon,
        )

    returns = jax.jit(adapted)(adapt_key, meta, drawn)
    random = jax.jit(lambda key, drawn: evaluation.random_returns(key, drawn, family=family))(
        random_key, drawn
    )
    optimal = None
    if family.optimal_action is not None or family.optimal_return is not None:
        optimal = jax.jit(lambda key, drawn: evaluation.optimal_returns(key, drawn, family=family))(
            optimal_key, drawn
        )
    return evaluation.summarize(*jax.device_get((returns, random, optimal)))


def draw_trajectories(
    path: Path,
    key: jax.Array,
    meta: Any,
    *,
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    num_streams: int,
    num_updates: int,
) -> None:
    """Paths of up to five episodes before and after adaptation in six held-out tasks."""
    task_key, key = jax.random.split(key)
    drawn = sample_tasks(task_key, family, 6, split="test")

    def observations(key: jax.Array, task: Any) -> tuple[jax.Array, jax.Array]:
        history = lifetime(
            key,
            meta,
            task,
            learner=algorithm.learner,
            env=family.env,
            num_streams=num_streams,
            num_updates=num_updates,
            num_steps=family.horizon,
            restart=True,
        )
        timestep = history.trajectories.timestep
        return timestep.obs[:, :5], timestep.first[:, :5]

    obs, first = jax.device_get(jax.jit(jax.vmap(observations))(jax.random.split(key, 6), drawn))
    goals = np.asarray(drawn.goal) if hasattr(drawn, "goal") else None
    labels = ("x", "y") if goals is not None else ("observation 0", "observation 1")
    plotting.trajectories(path, obs, first, goals=goals, labels=labels)


def print_table(console: Console, title: str, summary: dict[str, Any], unit: str) -> None:
    table = Table(title=title)
    for heading in (f"{unit}s", "mean return", "95 % interval", "share of the gap closed"):
        table.add_column(heading, justify="right")
    for step, (mean, (low, high)) in enumerate(
        zip(summary["returns"], summary["intervals"], strict=True)
    ):
        closed = summary["gap_closed"] and summary["gap_closed"][step]
        share = "" if closed is None else f"{100 * closed:.1f} %"
        interval = "" if low is None else f"{low:.2f} to {high:.2f}"
        table.add_row(str(step), "diverged" if mean is None else f"{mean:.2f}", interval, share)
    table.add_section()
    table.add_row("random agent", f"{summary['random']:.2f}", "", "")
    if summary["optimal"] is not None:
        table.add_row("optimal agent", f"{summary['optimal']:.2f}", "", "")
    console.print(table)


def main(argv: list[str]) -> None:
    began = time.perf_counter()
    console = Console()
    try:
        args = settings(argv)
        experiment = Experiment(
            args.algorithm,
            args.family,
            config=dataclasses.asdict(args.config),
            hyper=args.hyper._asdict(),
            family_settings=dataclasses.asdict(args.task),
            plan=args.training,
        )
        algorithm, family = experiments.make(experiment)
        training.device_mesh(args.training.num_tasks)
        sink = sink_of(args)
    except (ValueError, TypeError, ImportError) as error:
        sys.exit(f"error: {error}")
    training.enable_compilation_cache()
    output = args.output or Path("runs") / (args.preset or f"{args.algorithm}-{args.family}")
    device = jax.devices()[0]
    console.print(
        f"{args.algorithm} on {args.family}: {args.training.meta_updates} meta-updates on "
        f"{jax.device_count()} × {device.device_kind} ({device.platform}), into {output}"
    )
    try:
        run = training.train(
            algorithm,
            family,
            args.training,
            folder=output,
            resume=args.resume,
            description=describe(experiment),
            console=console,
            sink=sink,
        )
    except (OSError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        sys.exit(f"{stop or 'stopped'}: go on with --resume")
    meta = run.state.meta
    # Training splits the seed's key in two, which are its folds with 0 and 1; 2 is neither.
    test_key, far_key, path_key = jax.random.split(
        jax.random.fold_in(jax.random.key(args.training.seed), 2), 3
    )
    has_memory = isinstance(args.config, memory_learner.Config)
    unit = "earlier episode" if has_memory else "gradient step"
    how: dict[str, Any] = dict(
        algorithm=algorithm, family=family, num_updates=args.evaluation.eval_updates
    )
    measured: dict[str, Any] = how | dict(config=args.config, num_tasks=args.evaluation.eval_tasks)
    test = evaluate(test_key, meta, split="test", **measured)
    far = evaluate(far_key, meta, split="out_of_distribution", **measured)
    streams = 1 if has_memory else args.config.num_streams
    report = test | {"out_of_distribution": far, "num_streams": streams}
    text = json.dumps(report, indent=2, allow_nan=False)
    (output / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    plotting.adaptation(
        output / "adaptation.png", {"held-out tasks": test, "out of distribution": far}, unit=unit
    )
    if not has_memory:
        path = output / "trajectories.png"
        draw_trajectories(path, path_key, meta, num_streams=args.config.num_streams, **how)
    print_table(console, "Held-out tasks", test, unit)
    print_table(console, "Out of distribution", far, unit)
    console.print(f"{output}: done in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"error: {error}")
