"""The host's loop: everything around a meta-algorithm's pure ``step``.

Meta-updates are compiled, many at a time, into one program that runs until the host wants to look:
however many it is asked for, the program is the same, so a run compiles once and its numbers do not
depend on where it was looked at, stopped or resumed.
"""

import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxmeta import checkpoints, checks, processes
from jaxmeta.tasks.family import TaskFamily, sample_tasks
from jaxmeta.types import MetaAlgorithm

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.json"
CHECKPOINT_FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Config:
    """How long, on how many tasks and from which seed to train."""

    meta_updates: int = 500
    """Meta-updates in all; a resumed run may ask for more than the first did."""
    num_tasks: int = 20
    """Tasks in each meta-update (M)."""
    seed: int = 0
    """Seed of everything random."""
    checkpoint_every: int = 100
    """Meta-updates between checkpoints; one is written at the end in any case."""
    report_seconds: float = 1.0
    """About how often progress is shown and metrics are written."""

    def __post_init__(self) -> None:
        checks.at_least("meta_updates", self.meta_updates, 1)
        checks.at_least("num_tasks", self.num_tasks, 1)
        checks.at_least("seed", self.seed, 0, 2**32 - 1)
        checks.at_least("checkpoint_every", self.checkpoint_every, 1)
        checks.between("report_seconds", self.report_seconds, 0, 3600)


MAY_CHANGE = ("training.meta_updates", "training.checkpoint_every", "training.report_seconds")
"""Settings that a resumed run may change; all others must be as they were."""

MAX_UPDATES_PER_CALL = 100


Sink = Callable[[Mapping[str, Any]], None]
"""Is given each line of the metrics, a meta-update's numbers by name, as soon as it is known; None stands for
what is not finite."""


class Run(NamedTuple):
    """A training run between two meta-updates: all that it takes to go on."""

    key: jax.Array
    state: Any  # of the meta-algorithm
    num_updates: jax.Array  # [], int32: meta-updates so far


def begin(key: jax.Array, *, algorithm: MetaAlgorithm, hyper: Any = None) -> Run:
    """A run before its first meta-update; ``hyper`` of None is the algorithm's own."""
    init_key, run_key = jax.random.split(key)
    told = () if hyper is None else (hyper,)
    return Run(run_key, algorithm.init(init_key, *told), jnp.zeros((), jnp.int32))


def begin_population(seeds: Any, hypers: Sequence[Any] | None, *, algorithm: MetaAlgorithm) -> Run:
    """Runs before their first meta-update, of each of H settings with each of ``seeds [S]``: ``[H, S]``.

    ``hypers`` of None is the algorithm's own setting, H = 1.
    """
    settings = [None] if hypers is None else hypers
    stacked = jax.tree.map(lambda *x: jnp.asarray(x, float), *settings)

    def first(seed: jax.Array, hyper: Any) -> Run:
        return begin(jax.random.key(seed), algorithm=algorithm, hyper=hyper)

    every = jax.vmap(jax.vmap(first, (0, None)), (None, 0), axis_size=len(settings))
    return every(jnp.asarray(seeds, jnp.uint32), stacked)


def advance(
    run: Run,
    num_updates: jax.Array,
    *,
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    num_tasks: int,
    max_updates: int = MAX_UPDATES_PER_CALL,
    mesh: Mesh | None = None,
) -> tuple[Run, dict[str, jax.Array]]:
    """``num_updates []`` meta-updates on fresh training tasks: ``(run, metrics [max_updates])``.

    A pure function: ``jit`` it, and ``vmap`` it over runs for seeds or hyper-parameters. ``num_updates``
    is traced and at most ``max_updates``; the metrics' rows beyond it are zero. With a ``mesh`` the
    tasks are spread over its axis ``"tasks"``; the compiler turns their mean into one all-reduce.
    """

    def update(run: Run) -> tuple[Run, dict[str, jax.Array]]:
        key, task_key, step_key = jax.random.split(run.key, 3)
        tasks = sample_tasks(task_key, family, num_tasks, split="train")
        if mesh is not None:
            spread = NamedSharding(mesh, PartitionSpec("tasks"))
            tasks = jax.lax.with_sharding_constraint(tasks, spread)
        state, metrics = algorithm.step(step_key, run.state, tasks)
        return Run(key, state, run.num_updates + 1), metrics

    def body(i: jax.Array, carry: tuple) -> tuple:
        run, rows = carry
        run, metrics = update(run)
        return run, jax.tree.map(lambda row, x: row.at[i].set(x), rows, metrics)

    _, shapes = jax.eval_shape(update, run)
    rows = jax.tree.map(lambda x: jnp.zeros((max_updates, *x.shape), x.dtype), shapes)
    return jax.lax.fori_loop(0, num_updates, body, (run, rows))


def train(
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    config: Config = Config(),
    *,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    description: Mapping[str, Any] | None = None,
    console: Console | None = None,
    sink: Sink | None = None,
) -> Run:
    """Meta-trains and returns the run; ``run.state.meta`` is what was learned.

    Args:
        algorithm: What to train.
        family: Where its tasks come from.
        config: How long, on how many tasks, from which seed.
        folder: Where to leave ``config.json``, ``metrics.jsonl`` (a line per meta-update) and
            checkpoints; None leaves nothing.
        resume: Go on from the newest checkpoint in ``folder``; the result is bit-equal to that of a run
            that was never stopped.
        description: JSON-able settings that identify the algorithm and the family, kept in
            ``config.json`` and in each checkpoint, and compared on resuming; needed with a ``folder``.
        console: Where progress is shown; None shows it on standard error.
        sink: Where else metrics go: any function of a line; see `sinks`. What it raises ends the run, once the
            state is checkpointed in ``folder``. A resumed run begins anew at its checkpoint, so a sink may see
            an ``update`` twice.

    Raises:
        FileExistsError: ``folder`` is not empty and ``resume`` is off.
        checkpoints.CheckpointError: nothing to resume from, a damaged checkpoint or one of another run,
            or the run has gone further than ``config.meta_updates``.
        KeyboardInterrupt: after an interrupt (or SIGTERM), once the state is checkpointed in ``folder``
            (without one it is gone); a second interrupt stops at once.
        ValueError: the number of devices does not divide ``config.num_tasks``; a ``folder`` without a
            ``description``.
    """
    mesh = device_mesh(config.num_tasks)

    def newborn() -> Run:
        key = jax.random.key(config.seed)
        return jax.jit(begin, static_argnames="algorithm")(key, algorithm=algorithm)

    return _train(
        newborn,
        _meta_updates(algorithm, family, config, mesh),
        config,
        members=[{}],
        mesh=mesh,
        folder=folder,
        resume=resume,
        description=description,
        console=console,
        sink=sink,
    )


def train_population(
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    config: Config = Config(),
    *,
    num_seeds: int = 1,
    hypers: Sequence[Any] | None = None,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    description: Mapping[str, Any] | None = None,
    console: Console | None = None,
    sink: Sink | None = None,
) -> Run:
    """Meta-trains every setting with every seed in one program: `train`, mapped. The runs, ``[H, S]``.

    A member is the run that `train` would be with its seed and its settings, to rounding.

    Args:
        algorithm: What to train.
        family: Where its tasks come from.
        config: As of `train`; ``config.seed`` is the first of the seeds.
        num_seeds: S, seeds of each setting, one after the other.
        hypers: H settings, as ``algorithm.init(key, hyper)`` takes them; None is the algorithm's own.
        folder: As of `train`; a line of ``metrics.jsonl`` is one member's meta-update and names its
            ``setting`` (the place in ``hypers``) and ``seed``.
        resume: As of `train`.
        description: As of `train`; seeds and settings are added to it.
        console: As of `train`.
        sink: As of `train`.

    Raises:
        ValueError: no seeds or no settings; and what `train` raises.
    """
    checks.at_least("num_seeds", num_seeds, 1)
    if hypers is not None and not hypers:
        raise ValueError("hypers=[] must hold at least one setting, or be None")
    seeds = [config.seed + i for i in range(num_seeds)]
    checks.between("seed", seeds[-1], 0, 2**32 - 1)
    mesh = device_mesh(config.num_tasks)
    num_settings = 1 if hypers is None else len(hypers)

    def newborn() -> Run:
        numbers = jnp.asarray(seeds, jnp.uint32)
        return jax.jit(begin_population, static_argnames="algorithm")(
            numbers, hypers, algorithm=algorithm
        )

    if description is not None:
        told = [] if hypers is None else [jax.tree.map(float, _named(hyper)) for hyper in hypers]
        description = {**description, "population": {"num_seeds": num_seeds, "hypers": told}}
    one = _meta_updates(algorithm, family, config, mesh)
    return _train(
        newborn,
        jax.vmap(jax.vmap(one, (0, None)), (0, None)),
        config,
        members=[{"setting": i, "seed": seed} for i in range(num_settings) for seed in seeds],
        mesh=mesh,
        folder=folder,
        resume=resume,
        description=description,
        console=console,
        sink=sink,
    )


Call = Callable[[Run, jax.Array], tuple[Run, dict[str, jax.Array]]]


def _meta_updates(
    algorithm: MetaAlgorithm, family: TaskFamily, config: Config, mesh: Mesh | None
) -> Call:
    return partial(
        advance, algorithm=algorithm, family=family, num_tasks=config.num_tasks, mesh=mesh
    )


def _named(hyper: Any) -> Any:
    """A NamedTuple by its names."""
    return hyper._asdict() if hasattr(hyper, "_asdict") else hyper


def _train(
    newborn: Callable[[], Run],
    call: Call,
    config: Config,
    *,
    members: Sequence[dict[str, Any]],
    mesh: Mesh | None,
    folder: str | os.PathLike | None,
    resume: bool,
    description: Mapping[str, Any] | None,
    console: Console | None,
    sink: Sink | None,
) -> Run:
    """The loop of `train` and `train_population`; ``members`` are told apart by what their lines hold."""
    if folder is not None and description is None:
        raise ValueError(
            "description=None: a folder needs the settings of its algorithm and family, or a resumed "
            "run could not be told from another"
        )
    description = {**(description or {}), "training": dataclasses.asdict(config)}
    description = json.loads(json.dumps(description))  # as it will be read back
    output = None if folder is None else Path(folder)
    if output is not None:
        checks.folder("folder", output)
    if output is None:
        if resume:
            raise ValueError("resume=True needs the folder to resume from")
        run = newborn()
    elif resume:
        target = jax.eval_shape(newborn)
        done, run = checkpoints.restore(
            output / CHECKPOINT_FOLDER, target, description, ignore=MAY_CHANGE
        )
        if done > config.meta_updates:
            raise checkpoints.CheckpointError(
                f"meta_updates={config.meta_updates}, but the run in {output} has done {done}"
            )
    else:
        if output.is_dir() and any(output.iterdir()):
            raise FileExistsError(
                f"{output} is not empty: name another folder, or resume the run that is in it"
            )
        run = newborn()
    processes.wait("before anything is written")
    if mesh is not None:
        run = processes.spread(run, NamedSharding(mesh, PartitionSpec()))

    done = int(jnp.max(run.num_updates))
    if done >= config.meta_updates:
        return run
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(_progress(console, done, config.meta_updates))
        interrupted = stack.enter_context(_deferred_interrupts())
        # Donated: the run's buffers are written in place, and only the new run is ever referred to.
        program = jax.jit(call, donate_argnums=0).lower(run, jnp.zeros((), jnp.int32)).compile()
        manager = metrics_file = None
        if output is not None:
            # Only now is the folder written to, and first with something to resume from.
            output.mkdir(parents=True, exist_ok=True)
            manager = stack.enter_context(checkpoints.open_manager(output / CHECKPOINT_FOLDER))
            checkpoints.save(manager, done, run, description)
            if processes.first():
                _write_json(output / CONFIG_FILE, description)
                _cut_metrics(output / METRICS_FILE, done)
                path = output / METRICS_FILE
                metrics_file = stack.enter_context(path.open("a", encoding="utf-8"))
        seconds_per_update = None
        while done < config.meta_updates:
            next_checkpoint = (done // config.checkpoint_every + 1) * config.checkpoint_every
            limit = min(config.meta_updates, next_checkpoint)
            count = 1
            if seconds_per_update is not None:
                count = int(config.report_seconds / max(seconds_per_update, 1e-6))
            count = processes.of_first(max(1, min(count, MAX_UPDATES_PER_CALL, limit - done)))
            began = time.perf_counter()
            run, rows = program(run, jnp.asarray(count, jnp.int32))
            rows = {name: x.reshape(len(members), -1) for name, x in jax.device_get(rows).items()}
            seconds = time.perf_counter() - began
            seconds_per_update = seconds / count
            lines = [
                {name: _number(column[place, i]) for name, column in rows.items()}
                | {"update": done + i + 1, "seconds": round(seconds_per_update, 6)}
                | member
                for i in range(count)
                for place, member in enumerate(members)
            ]
            done += count
            if metrics_file is not None:
                text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
                _append(metrics_file, text)
            report(done, lines, seconds)
            failure = None
            if sink is not None and processes.first():
                try:
                    for line in lines:
                        sink(line)
                except Exception as error:
                    failure = error
            stop = processes.anywhere(interrupted() or failure is not None)
            if manager is not None and (done == limit or stop):
                checkpoints.save(manager, done, run, description)
            if failure is not None:
                raise failure
            if stop:
                raise KeyboardInterrupt(f"stopped after {done} meta-updates")
    return run


def enable_compilation_cache(folder: str | os.PathLike | None = None) -> None:
    """Keeps compiled programs on disk, so that a second start of the same program is quick.

    ``folder`` defaults to ``$JAX_COMPILATION_CACHE_DIR``, else ``~/.cache/jaxmeta``.
    """
    if folder is None:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", Path.home() / ".cache" / "jaxmeta")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def device_mesh(num_tasks: int) -> Mesh | None:
    """All devices on one axis, ``"tasks"``; None where there is just one.

    Raises ValueError where the number of devices does not divide ``num_tasks``.
    """
    devices = len(jax.devices())
    if devices == 1:
        return None
    if num_tasks % devices:
        raise ValueError(f"num_tasks={num_tasks} must be a multiple of the {devices} devices")
    return jax.make_mesh((devices,), ("tasks",), axis_types=(AxisType.Auto,))


@contextlib.contextmanager
def _deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Within it, a first SIGINT or SIGTERM is only noted: the compiled call in flight owns the state."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set
        return

    def note(number: int, frame: Any) -> None:
        if noted.is_set():
            raise KeyboardInterrupt
        noted.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress(
    console: Console | None, done: int, total: int
) -> Iterator[Callable[[int, list[dict], float], None]]:
    if console is None:
        # In a notebook Rich would ask for ipywidgets, or fill the page with escape codes.
        console = Console(
            file=sys.stderr,
            force_jupyter=False,
            force_terminal=sys.stderr.isatty(),
            quiet=not processes.first(),
        )
    bar = Progress(
        TextColumn("meta-update"),
        MofNCompleteColumn(),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[returns]}"),
        TextColumn("{task.fields[speed]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        row = bar.add_task("", total=total, completed=done, returns="compiling", speed="")

        def report(done: int, lines: list[dict], seconds: float) -> None:
            before, after = (_mean(lines, f"return/{when}") for when in ("before", "after"))
            steps = sum(line.get("env_steps") or 0 for line in lines)
            bar.update(
                row,
                completed=done,
                returns=f"return {before:.2f} → {after:.2f}",
                speed=f"{steps / seconds / 1000:,.0f}k env steps/s",
            )

        yield report


def _mean(lines: list[dict], name: str) -> float:
    values = [line[name] for line in lines if line.get(name) is not None]
    return sum(values) / len(values) if values else math.nan


def _number(x: Any) -> float | int | None:
    """A JSON number; None for what JSON cannot hold."""
    value = x.item()
    return value if math.isfinite(value) else None


def _append(file: TextIO, text: str) -> None:
    try:
        file.write(text)
        file.flush()
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}; make room, then resume from the last checkpoint, which is whole",
            file.name,
        ) from error


def _cut_metrics(path: Path, done: int) -> None:
    """Drops lines past meta-update ``done``: they are about to be computed again."""
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                if json.loads(line)["update"] <= done:
                    kept.append(line + "\n")
    _replace(path, "".join(kept))


def _write_json(path: Path, content: Any) -> None:
    _replace(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _replace(path: Path, text: str) -> None:
    """Writes all of a file or nothing of it."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
