"""Meta-trains an algorithm on a family of tasks and shows how it adapts to tasks it has not met.

    python benchmarks/train.py                           # MAML on 2-D navigation, in two minutes
    python benchmarks/train.py --list                    # presets, algorithms, families
    python benchmarks/train.py --preset rl2-gridnavi     # settings whose figures are in RESULTS.md
    python benchmarks/train.py --algorithm rl2 --family catch --num-episodes 2 --help
    python benchmarks/train.py --resume runs/cartpole    # goes on with the settings in the folder

The output folder holds config.json, metrics.jsonl, evaluation.json, checkpoints/, adaptation.png and, for learners that
adapt by gradient steps and on GridNavi, trajectories.png. `jaxmeta.load` loads it.

The groups "algorithm" and "task" depend on --algorithm and --family. Give both flags to see the settings of your choice.
"""

import argparse
import contextlib
import dataclasses
import inspect
import json
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import study
import tyro
from rich.console import Console
from rich.table import Table

from jaxmeta import checks, evaluation, plotting, tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.rollouts.lifetime import Setup, lifetime
from jaxmeta.runs import experiments, presets, records, sinks, terminal, training
from jaxmeta.runs.checkpoints import differences
from jaxmeta.runs.experiments import Experiment, Trained, describe
from jaxmeta.tasks import sample_tasks


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the result is measured."""

    eval_tasks: int = 200  # Held-out tasks, and as many out of distribution.
    eval_updates: int = 3
    """Gradient steps that each of them is given; learners with memory have the episodes of a trial."""

    def __post_init__(self) -> None:
        checks.at_least("eval_tasks", self.eval_tasks, 2)
        checks.at_least("eval_updates", self.eval_updates, 1)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The algorithm and its tasks. Without any of these flags the preset is maml-navigation-quick."""

    preset: str | None = None
    """Settings by name, whose figures are in RESULTS.md; others may be set beside it."""
    algorithm: str = "maml"
    """Its settings are in the group "algorithm"."""
    family: str = "navigation"
    """The tasks; their settings are in the group "task"."""
    list: bool = False
    """Show the names of all presets, algorithms and families with a line each, and end."""


@dataclasses.dataclass(frozen=True)
class Output:
    """Where results go."""

    output: Path | None = None
    """Folder; default runs/ALGORITHM-FAMILY or runs/PRESET."""
    film: bool = False
    """Also draw adaptation.gif, the paths of trajectories.png step by step."""
    resume: Path | None = None
    """Folder of a run to go on with, from its newest checkpoint and with its settings; without a folder the one of
    --output. Nothing else is needed."""
    tensorboard: Path | None = None
    """Folder for TensorBoard's event files."""
    wandb: str | None = None
    """Project of Weights & Biases."""


LIST = "python benchmarks/train.py --list"
ELSEWHERE = {
    "meta_value": "predicts returns and earns none: benchmarks/off_policy_evaluation.py trains and measures it",
    "algorithm_distillation": "learns from histories, not from tasks: benchmarks/in_context.py makes them and trains on them",
}
"""Algorithms that other scripts train, with the reason."""


def listing() -> str:
    """Names of presets, algorithms and families, with a line each."""
    plans = {
        name: f"{x.algorithm} on {x.family}, {x.plan.meta_updates} meta-updates of {x.plan.num_tasks} tasks"
        for name, x in presets.PRESETS.items()
    }
    listed = {
        "algorithms, for --algorithm": {x: _first_line(y) for x, y in sorted(ALGORITHMS.items())},
        "families of tasks, for --family": {x: tasks.describe(x) for x in tasks.names()},
        "presets, for --preset": plans,
    }
    lines = []
    for title, entries in listed.items():
        width = max(map(len, entries))
        lines += [title, *(f"  {name:<{width}}  {what}" for name, what in entries.items()), ""]
    return "\n".join(lines)


def _first_line(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().splitlines()[0]


def chooser() -> argparse.ArgumentParser:
    """The parser of those flags that decide which others there are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("preset", "algorithm", "family"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", type=Path, nargs="?", const=Path())
    return parser


def beginning(chosen: argparse.Namespace) -> Experiment:
    """The experiment that gives the default settings: the preset, or the resumed run.

    Fills in the missing settings of ``chosen``. Raises ValueError if a setting contradicts the experiment.
    """
    if chosen.resume == Path():  # the folder that these flags would train into
        chosen.resume = chosen.output or default_output(
            chosen.preset, chosen.algorithm or "maml", chosen.family or "navigation"
        )
    if chosen.resume is not None and chosen.output not in (None, chosen.resume):
        raise ValueError(
            f"output={str(chosen.output)!r} must be left out, or be resume={str(chosen.resume)!r}"
        )
    nothing = all(getattr(chosen, x) is None for x in ("preset", "algorithm", "family"))
    before = presets.PRESETS["maml-navigation-quick"] if nothing else Experiment()
    told = {name: getattr(chosen, name) for name in ("algorithm", "family")}
    told = {name: value for name, value in told.items() if value is not None}
    if chosen.preset is not None:
        checks.choice("preset", chosen.preset, presets.PRESETS, listed_by=LIST)
        before = presets.PRESETS[chosen.preset]
        for name, value in told.items():
            if value != getattr(before, name):
                raise ValueError(f"{name}={value!r} is not that of preset={chosen.preset!r}")
    if chosen.resume is not None:
        before = experiments.read(chosen.resume)
        for name, value in told.items():
            if value != getattr(before, name):
                has = f"{name}={getattr(before, name)!r}"
                raise ValueError(f"{name}={value!r}, but the run in {chosen.resume} has {has}")
    chosen.algorithm = chosen.algorithm or before.algorithm
    chosen.family = chosen.family or before.family
    checks.choice("algorithm", chosen.algorithm, ALGORITHMS)
    if chosen.algorithm in ELSEWHERE:
        raise ValueError(f"algorithm={chosen.algorithm!r} {ELSEWHERE[chosen.algorithm]}")
    checks.choice("family", chosen.family, tasks.FAMILIES, listed_by=LIST)
    return before


def record(name: str, doc: str | None, fields: list[tuple[str, Any, Any]]) -> type:
    """A frozen dataclass of these names, types and defaults."""
    made = [(field, kind, dataclasses.field(default=x)) for field, kind, x in fields]
    kind = dataclasses.make_dataclass(name, made, frozen=True)
    kind.__doc__ = doc
    return kind


def settings(argv: list[str]) -> Any:
    """The command line as one object with the settings of the algorithm and of the family."""
    chosen, others = chooser().parse_known_args(argv)
    if chosen.list:
        terminal.say(listing())
        sys.exit()
    before = beginning(chosen)
    module, constructor = ALGORITHMS[chosen.algorithm], tasks.FAMILIES[chosen.family]
    parameters = inspect.signature(constructor).parameters.items()
    task = record(
        "Task",
        constructor.__doc__,
        [(k, x.annotation, before.family_settings.get(k, x.default)) for k, x in parameters],
    )
    flat, unnamed = tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")
    algorithm = record(
        "Algorithm",
        None,
        [
            ("config", Annotated[module.Config, unnamed], module.Config(**before.config)),
            ("hyper", Annotated[module.Hyper, unnamed], module.Hyper(**before.hyper)),
        ],
    )
    choice = Choice(chosen.preset, chosen.algorithm, chosen.family)
    fields = [
        ("experiment", Annotated[Choice, flat], choice),
        ("training", Annotated[training.Config, flat], before.plan),
        ("algorithm", Annotated[algorithm, flat], algorithm()),
        ("task", task, task()),
        ("evaluation", Annotated[Evaluation, flat], evaluation_of(chosen.resume)),
        ("output", Annotated[Output, flat], Output(output=chosen.output, resume=chosen.resume)),
    ]
    args = tyro.cli(record("Main", __doc__, fields), args=others)
    if chosen.resume is not None:
        refuse_changes(before, experiment_of(args), chosen.resume)
    return args


def evaluation_of(resumed: Path | None) -> Evaluation:
    """How the resumed run was measured, if it was; else the default."""
    if resumed is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads((resumed / "evaluation.json").read_text(encoding="utf-8"))["settings"]
            return Evaluation(**told)
    return Evaluation()


def default_output(preset: str | None, algorithm: str, family: str) -> Path:
    """The default folder of a run."""
    return Path("runs") / (preset or f"{algorithm}-{family}")


def experiment_of(args: Any) -> Experiment:
    """The experiment that the command line asks for."""
    return Experiment(
        args.experiment.algorithm,
        args.experiment.family,
        config=dataclasses.asdict(args.algorithm.config),
        hyper=args.algorithm.hyper._asdict(),
        family_settings=dataclasses.asdict(args.task),
        plan=args.training,
    )


def refuse_changes(before: Experiment, now: Experiment, folder: Path) -> None:
    """Raises ValueError where a resumed run is told other settings than it had, but for those that may change."""
    there, here = (records.plain(describe(x) | {"training": x.plan}) for x in (before, now))
    changed = [
        f"{name.rpartition('.')[2]} is {ours!r} and was {theirs!r}"
        for name, ours, theirs in differences(here, there)
        if name not in training.MAY_CHANGE
    ]
    if changed:
        raise ValueError(
            f"{'; '.join(changed)}: the run in {folder} goes on with its own settings, of which only "
            f"{', '.join(x.rpartition('.')[2] for x in training.MAY_CHANGE)} may change"
        )


def sink_of(args: Any) -> training.Sink | None:
    """The sink of metrics beside the folder."""
    if args.output.tensorboard is not None and args.output.wandb is not None:
        raise ValueError(
            f"wandb={args.output.wandb!r} and tensorboard={args.output.tensorboard}: name one of them"
        )
    if args.output.tensorboard is not None:
        return sinks.tensorboard(args.output.tensorboard)
    return None if args.output.wandb is None else sinks.wandb(project=args.output.wandb)


def has_memory(trained: Trained) -> bool:
    """Whether the learner learns in its memory, within a trial."""
    lifetime = trained.algorithm.lifetime
    return lifetime is not None and lifetime.trial


def evaluate(key: jax.Array, trained: Trained, split: str, args: Any) -> dict[str, Any]:
    """The adaptation curve on tasks of a split, by update or, with memory, by episode of a trial."""
    family, config, num_tasks = trained.family, args.algorithm.config, args.evaluation.eval_tasks
    task_key, adapt_key, random_key, optimal_key = jax.random.split(key, 4)
    drawn = jax.jit(lambda key: sample_tasks(key, family, num_tasks, split=split))(task_key)
    acting: dict[str, Any] = dict(learner=trained.learner, env=family.env)

    def adapted(key: jax.Array, meta: Any, drawn: Any) -> tuple[jax.Array, jax.Array]:
        """Returns, and how many streams did not count."""
        if has_memory(trained):
            num_steps = config.num_episodes * family.horizon
            trials = evaluation.trials(key, meta, drawn, **acting, num_steps=num_steps)
            return evaluation.episode_returns(trials, config.num_episodes), jnp.sum(~trials.good)
        sizes = dict(num_streams=config.num_streams, num_updates=args.evaluation.eval_updates)
        told = acting | sizes | dict(num_steps=family.horizon)
        curve = evaluation.adaptation_curve(key, meta, drawn, **told)
        return curve.returns, jnp.sum(curve.skipped_streams)

    returns, skipped_streams = jax.jit(adapted)(adapt_key, trained.meta, drawn)
    random = study.returns_of(evaluation.random_returns, random_key, drawn, family)
    optimal = None
    if study.optimum_known(family):
        optimal = study.returns_of(evaluation.optimal_returns, optimal_key, drawn, family)
    summary = evaluation.summarize(np.asarray(returns), random, optimal)
    return summary | {"skipped_streams": int(skipped_streams)}


def draw_trajectories(path: Path, key: jax.Array, trained: Trained, args: Any) -> None:
    """Draws paths before and after adaptation in six held-out tasks; with ``--film`` as a GIF, too."""
    family = trained.family
    task_key, key = jax.random.split(key)
    drawn = sample_tasks(task_key, family, 6, split="test")
    setup = Setup(trained.learner, family.env, args.algorithm.config.num_streams, family.horizon)
    told = dict(setup=setup, num_updates=args.evaluation.eval_updates, restart=True)

    def observations(key: jax.Array, task: Any) -> tuple[jax.Array, jax.Array]:
        timestep = lifetime(key, trained.meta, task, **told).trajectories.timestep
        return timestep.obs[:, :3], timestep.first[:, :3]

    obs, first = jax.device_get(jax.jit(jax.vmap(observations))(jax.random.split(key, 6), drawn))
    goals = np.asarray(drawn.goal) if hasattr(drawn, "goal") else None
    labels = ("x", "y") if goals is not None else ("observation 0", "observation 1")
    plotting.trajectories(path, obs, first, goals=goals, labels=labels)
    if args.output.film:
        film = path.with_name("adaptation.gif")
        plotting.adaptation_film(film, obs, first, goals=goals, labels=labels)


def draw_walks(path: Path, key: jax.Array, trained: Trained, args: Any) -> None:
    """Draws the episodes of a trial in four held-out tasks of GridNavi."""
    family, num_episodes = trained.family, args.algorithm.config.num_episodes
    task_key, key = jax.random.split(key)
    drawn = sample_tasks(task_key, family, 4, split="test")
    setup = Setup(trained.learner, family.env, 1, num_episodes * family.horizon)

    def trial(key: jax.Array, task: Any) -> Any:
        data = lifetime(key, trained.meta, task, setup=setup, num_updates=0).trajectories
        return jax.tree.map(lambda x: x[0, 0], (data.timestep.obs, data.last, data.reward))

    obs, last, reward = jax.device_get(jax.jit(jax.vmap(trial))(jax.random.split(key, 4), drawn))
    size = args.task.size
    returns = reward.reshape(4, num_episodes, -1).sum(-1)
    cells, goals = plotting.cells_of(obs, size), np.asarray(drawn.goal)
    plotting.walks(path, cells, last, size=size, goals=goals, returns=returns)


def table(title: str, summary: dict[str, Any], unit: str) -> Table:
    """A summary of `evaluation.summarize` to look at. Where a number is None there was nothing to count."""
    skipped = [
        f"{summary[name]} {what} left out"
        for name, what in (("skipped_tasks", "tasks"), ("skipped_streams", "broken streams"))
        if summary.get(name)
    ]
    caption = ", ".join([f"{summary['num_tasks']} tasks", *skipped])
    if summary["gap_closed"] is not None:
        caption += "; gap: from unadapted to optimal"
    shown = Table(title=title, caption=caption)
    for heading in (f"{unit}s", "mean return", "95 % interval", "gap closed"):
        shown.add_column(heading, justify="right")
    shares = summary["gap_closed"] or [None] * len(summary["returns"])
    rows = zip(summary["returns"], summary["intervals"], shares, strict=True)
    for step, (mean, interval, share) in enumerate(rows):
        low, high = interval or (None, None)
        shown.add_row(
            str(step),
            "none" if mean is None else f"{mean:.2f}",
            "" if low is None or high is None else f"{low:.2f} to {high:.2f}",
            "" if share is None else f"{100 * share:.1f} %",
        )
    shown.add_section()
    for name in ("random", "optimal"):
        if summary[name] is not None:
            shown.add_row(f"{name} agent", f"{summary[name]:.2f}", "", "")
    return shown


def draw(what: Path, action: Callable[[], object]) -> None:
    """Calls ``action``, which draws ``what``; a figure that cannot be drawn is said, and loses nothing else."""
    try:
        action()
    except Exception as error:
        warnings.warn(f"{what} could not be drawn: {error!r}", stacklevel=2)


def train(args: Any, output: Path, console: Console) -> Trained:
    """The run that the command line asks for, and what it trained."""
    experiment = experiment_of(args)
    algorithm, family = experiments.make(experiment)
    training.device_mesh(args.training.num_tasks)
    sink = sink_of(args)
    training.enable_compilation_cache()
    device = jax.devices()[0]
    console.print(
        f"{args.experiment.algorithm} on {args.experiment.family}: {args.training.meta_updates} meta-updates on "
        f"{jax.device_count()} × {device.device_kind} ({device.platform}), into {output}",
        markup=False,
    )
    try:
        run = training.train(
            algorithm,
            family,
            args.training,
            folder=output,
            resume=args.output.resume is not None,
            description=describe(experiment),
            console=console,
            sink=sink,
        )
    except KeyboardInterrupt as stop:
        study.say(f"{stop or 'stopped'}: go on with --resume {shlex.quote(str(output))}")
        sys.exit(getattr(stop, "exit_code", 1))
    return Trained(experiment, algorithm, family, run)


def report(trained: Trained, output: Path, args: Any, console: Console) -> None:
    """Measures what was learned; leaves evaluation.json and figures."""
    # Training splits the seed's key in two, which are its folds with 0 and 1; 2 is neither.
    key = jax.random.fold_in(jax.random.key(args.training.seed), 2)
    test_key, far_key, path_key = jax.random.split(key, 3)
    remembers = has_memory(trained)
    unit = "earlier episode" if remembers else "gradient step"
    test = evaluate(test_key, trained, "test", args)
    far = evaluate(far_key, trained, "out_of_distribution", args)
    streams = 1 if remembers else args.algorithm.config.num_streams
    settings = dataclasses.asdict(args.evaluation)
    found = test | {"out_of_distribution": far, "num_streams": streams, "settings": settings}
    records.write(output / "evaluation.json", records.measured(found))
    path, there = output / "adaptation.png", output / "trajectories.png"
    curves = {"held-out tasks": test, "out of distribution": far}
    draw(path, lambda: plotting.adaptation(path, curves, unit=unit))
    if not remembers:
        draw(there, lambda: draw_trajectories(there, path_key, trained, args))
    elif args.experiment.family == "gridnavi":
        draw(there, lambda: draw_walks(there, path_key, trained, args))
    console.print(table("Held-out tasks", test, unit))
    console.print(table("Out of distribution", far, unit))


def main(argv: list[str]) -> None:
    began = time.perf_counter()
    console = terminal.console("stdout")
    with study.answered():
        args = settings(argv)
        chosen, told = args.experiment, args.output
        output = told.resume or told.output
        output = output or default_output(chosen.preset, chosen.algorithm, chosen.family)
        report(train(args, output, console), output, args, console)
    console.print(f"{output}: done in {time.perf_counter() - began:.0f} s", markup=False)


if __name__ == "__main__":
    main(sys.argv[1:])
