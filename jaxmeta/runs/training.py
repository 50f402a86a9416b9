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
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from jaxmeta import checks
from jaxmeta.runs import checkpoints, claims, processes, records, sinks, terminal
from jaxmeta.runs.sinks import Sink
from jaxmeta.tasks.family import TaskFamily, sample_tasks
from jaxmeta.tasks.promises import check_promises
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


PLACE = ("update", "seconds", "setting", "seed")
"""What a line of the metrics holds beside them; no metric may be called so."""


class Run(NamedTuple):
    """A training run between two meta-updates: all that it takes to go on."""

    key: jax.Array
    state: Any  # of the meta-algorithm
    num_updates: jax.Array  # [], int32: meta-updates so far


def begin(key: jax.Array, *, algorithm: MetaAlgorithm, hyper: Any = None) -> Run:
    """A run before its first meta-update; ``hyper`` of None is the algorithm's own."""
    init_key, run_key = jax.random.split(key)
    told = () if hyper is None else (hyper,)
    return Run(run_key, _strong(algorithm.init(init_key, *told)), jnp.zeros((), jnp.int32))


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

    Raises TypeError while it is traced where a metric is no scalar, or where ``algorithm.step`` returns a state of
    other arrays than it was given.
    """

    def update(run: Run) -> tuple[Run, dict[str, jax.Array]]:
        key, task_key, step_key = jax.random.split(run.key, 3)
        tasks = sample_tasks(task_key, family, num_tasks, split="train")
        if mesh is not None:
            spread = NamedSharding(mesh, PartitionSpec("tasks"))
            tasks = jax.lax.with_sharding_constraint(tasks, spread)
        state, metrics = algorithm.step(step_key, run.state, tasks)
        _check_metrics(metrics)
        state = _strong(state)
        _check_state("algorithm.step returns", state, "was given", run.state)
        return Run(key, state, run.num_updates + 1), metrics

    def body(i: jax.Array, carry: tuple) -> tuple:
        run, rows = carry
        run, metrics = update(run)
        return run, jax.tree.map(lambda row, x: row.at[i].set(x), rows, metrics)

    _, shapes = jax.eval_shape(update, run)
    rows = jax.tree.map(lambda x: jnp.zeros((max_updates, *x.shape), x.dtype), shapes)
    return jax.lax.fori_loop(0, num_updates, body, (run, rows))


def _strong(tree: Any) -> Any:
    """The same numbers as arrays whose types are their own and do not yield to others'."""

    def strong(x: Any) -> Any:
        if jnp.issubdtype(getattr(x, "dtype", bool), jax.dtypes.prng_key):
            return x
        return jax.lax.convert_element_type(x, jnp.result_type(x))

    return jax.tree.map(strong, tree)


def _check_metrics(metrics: Any) -> None:
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics={metrics!r} must be a dictionary of scalars by name")
    for name, x in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"the metric {name!r} must be called by a string")
        if name in PLACE:
            raise ValueError(
                f"the metric {name!r} must be called otherwise: a line of the metrics has an entry of that name"
            )
        if not isinstance(x, bool | int | float) and not hasattr(x, "dtype"):
            raise TypeError(f"the metric {name!r} is {x!r}; it must be a scalar")
        kind = jnp.result_type(x) if isinstance(x, bool | int | float) else x.dtype
        real = any(jnp.issubdtype(kind, y) for y in (jnp.floating, jnp.integer, jnp.bool_))
        if np.shape(x) != () or not real:
            raise TypeError(
                f"the metric {name!r} has shape {np.shape(x)} and type {kind}; it must be a scalar, a real number "
                "or a boolean: take its mean, or one metric for each entry"
            )


def _check_state(what: str, state: Any, other: str, reference: Any) -> None:
    """Raises TypeError unless ``state`` has the structure, the shapes and the types of ``reference``."""
    different = [
        f"{name or 'the state'} is {here or 'missing'}, and {other} {there or 'no such leaf'}"
        for name, here, there in checkpoints.differences(
            checkpoints.arrays(state), checkpoints.arrays(reference)
        )
    ]
    ours, theirs = (str(jax.tree.structure(x)) for x in (state, reference))
    if not different and ours != theirs:
        different = [f"it is {ours}, and {other} {theirs}"]
    if different:
        raise TypeError(f"{what} another state: {'; '.join(different[:3])}")


@checks.arguments
def train(
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    config: Config = Config(),
    *,
    initial: Any = None,
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
        initial: A `Run`, or the state of one, to begin from in place of ``algorithm.init``: what another run has
            learned, say, to go on with other settings. The seed still gives the keys, and meta-updates count from 0.
            ``config.json`` holds its SHA-256.
        folder: Where to leave ``config.json``, ``metrics.jsonl`` (a line per meta-update) and
            checkpoints; None leaves nothing. From before compiling the folder is this run's alone. A run that was
            killed before its first checkpoint may be begun again in the same folder.
        resume: Go on from the newest checkpoint in ``folder``; the result is bit-equal to that of a run
            that was never stopped.
        description: Settings that identify the algorithm and the family, as `records.plain` takes them. They are kept
            in ``config.json`` and in each checkpoint, and compared on resuming. None is the family's name and horizon;
            `experiments.load` then needs the algorithm and the family.
        console: Where progress is shown; None shows it on standard error.
        sink: Where else metrics go: any function of a line, or what `sinks` has. What it raises ends the run, once the
            state is checkpointed in ``folder``. A resumed run begins anew at its checkpoint, so a sink may see
            an ``update`` twice.

    Raises:
        FileExistsError: ``folder`` is not empty and ``resume`` is off, or another run holds it.
        checkpoints.CheckpointError: nothing to resume from, a damaged checkpoint or one of another run,
            or the run has gone further than ``config.meta_updates``.
        KeyboardInterrupt: after an interrupt (or SIGTERM), once the state is checkpointed in ``folder``
            (without one it is gone); a second interrupt stops at once.
        ValueError: the number of devices does not divide ``config.num_tasks``; ``initial`` while resuming.
        TypeError: a metric is no scalar; ``initial``, or the state after a meta-update, has other arrays than
            ``algorithm.init`` makes.
        tasks.InvalidEnvironment: the family breaks a promise (see `tasks.check_promises`).
    """
    check_promises(family)
    mesh = device_mesh(config.num_tasks)
    description = _described(description, family)
    begun = jax.jit(begin, static_argnames="algorithm")
    key = jax.random.key(config.seed)

    def newborn() -> Run:
        return begun(key, algorithm=algorithm)

    if initial is not None:
        if resume:
            raise ValueError(
                "initial must be None where resume=True: a resumed run goes on from its checkpoint"
            )
        first = initial.state if isinstance(initial, Run) else initial
        _check_state("initial is", first, "algorithm.init makes", jax.eval_shape(newborn).state)
        description = {
            **description,
            "initial": checkpoints.digest(jax.tree.map(jnp.asarray, first)),
        }

        def newborn() -> Run:
            # Copied, for the run's buffers are written in place.
            copied = jax.tree.map(partial(jnp.array, copy=True), first)
            return Run(jax.random.split(key)[1], _strong(copied), jnp.zeros((), jnp.int32))

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


@checks.arguments
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
    _check_hypers(hypers)
    seeds = [config.seed + i for i in range(num_seeds)]
    checks.between("seed", seeds[-1], 0, 2**32 - 1)
    check_promises(family)
    mesh = device_mesh(config.num_tasks)
    num_settings = 1 if hypers is None else len(hypers)

    def newborn() -> Run:
        numbers = jnp.asarray(seeds, jnp.uint32)
        return jax.jit(begin_population, static_argnames="algorithm")(
            numbers, hypers, algorithm=algorithm
        )

    description = _described(description, family)
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
    description: Mapping[str, Any],
    console: Console | None,
    sink: Sink | None,
) -> Run:
    """The loop of `train` and `train_population`; ``members`` are told apart by what their lines hold."""
    described: dict[str, Any] = records.plain({**description, "training": config})
    output = None if folder is None else checks.path("folder", folder)
    checks.field("resume", resume, bool)
    if sink is not None:
        sinks.check(sink)
    if resume and output is None:
        raise ValueError("resume=True needs the folder to resume from")
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(_deferred_interrupts())
        if output is not None:
            checks.folder("folder", output)
            stack.enter_context(_owned(output, resume))
        if console is None:
            console = terminal.console("stderr", quiet=not processes.is_main_process())
        began = time.perf_counter()
        if resume:
            assert output is not None
            described = _with_its_beginning(described, output)
            done, run = checkpoints.restore(
                output / CHECKPOINT_FOLDER, jax.eval_shape(newborn), described, ignore=MAY_CHANGE
            )
            if done > config.meta_updates:
                raise checkpoints.CheckpointError(
                    f"meta_updates={config.meta_updates}, but the run in {output} has done {done}"
                )
            if done == config.meta_updates:
                return run
        else:
            done, run = 0, newborn()
        processes.barrier("before anything is written")
        if mesh is not None:
            run = processes.spread(run, NamedSharding(mesh, PartitionSpec()))
        line = stack.enter_context(
            terminal.progress(
                console, done, config.meta_updates, "compiling (this can take a minute)"
            )
        )
        # Donated: the run's buffers are written in place, and only the new run is ever referred to.
        traced = jax.jit(call, donate_argnums=0).lower(run, jnp.zeros((), jnp.int32))
        write: sinks.Write | None = None
        if sink is not None and processes.is_main_process():
            write = stack.enter_context(sinks.opened(sink))
        program = traced.compile()
        line.say(f"compiled in {time.perf_counter() - began:.0f} s")
        manager = metrics_file = None
        if output is not None:
            if processes.is_main_process():
                records.write(output / CONFIG_FILE, described)
            manager = stack.enter_context(checkpoints.open_manager(output / CHECKPOINT_FOLDER))
            checkpoints.save(manager, done, run, described)
            if processes.is_main_process():
                path = output / METRICS_FILE
                _cut_metrics(path, done)
                metrics_file = stack.enter_context(path.open("a", encoding="utf-8"))
        seconds_per_update = None
        while done < config.meta_updates:
            next_checkpoint = (done // config.checkpoint_every + 1) * config.checkpoint_every
            limit = min(config.meta_updates, next_checkpoint)
            count = 1
            if seconds_per_update is not None:
                count = int(config.report_seconds / max(seconds_per_update, 1e-6))
            count = processes.broadcast(max(1, min(count, MAX_UPDATES_PER_CALL, limit - done)))
            began = time.perf_counter()
            run, rows = program(run, jnp.asarray(count, jnp.int32))
            rows = {name: x.reshape(len(members), -1) for name, x in jax.device_get(rows).items()}
            seconds = time.perf_counter() - began
            seconds_per_update = seconds / count
            lines = [
                _numbers({name: column[place, i] for name, column in rows.items()})
                | {"update": done + i + 1, "seconds": round(seconds_per_update, 6)}
                | member
                for i in range(count)
                for place, member in enumerate(members)
            ]
            done += count
            if metrics_file is not None:
                text = "".join(records.dumps(x, sort_keys=True) + "\n" for x in lines)
                _append(metrics_file, text)
            line.update(done, terminal.held(_status(lines, seconds), console.encoding))
            failure = None
            if write is not None:
                try:
                    for x in lines:
                        write(x)
                except BaseException as error:  # whatever it is, what was learned is saved first
                    failure = error
            stop = processes.any_process(interrupted() or failure is not None)
            if manager is not None and (done == limit or stop):
                checkpoints.save(manager, done, run, described)
            if failure is not None:
                raise failure
            if stop:
                raise KeyboardInterrupt(f"stopped after {done} meta-updates")
    return run


def _check_hypers(hypers: Any) -> None:
    """Raises unless ``hypers`` are settings of one structure, of numbers, in a list; or None."""
    if hypers is None:
        return
    if not isinstance(hypers, list | tuple) or hasattr(hypers, "_fields"):
        raise TypeError(f"hypers={hypers!r} must be a list of settings: [Hyper(...), ...]")
    if not hypers:
        raise ValueError("hypers=[] must hold at least one setting, or be None")
    checks.same_structure(**{f"hypers[{i}]": hyper for i, hyper in enumerate(hypers)})
    for i, hyper in enumerate(hypers):
        for path, x in jax.tree_util.tree_leaves_with_path(hyper):
            checks.between(f"hypers[{i}]{jax.tree_util.keystr(path)}", x, -math.inf, math.inf)


def _described(description: Mapping[str, Any] | None, family: TaskFamily) -> dict[str, Any]:
    """What is known of a run whose algorithm and family nobody describes."""
    if description is None:
        return {"family": family.name, "horizon": family.horizon}
    if not isinstance(description, Mapping):
        raise TypeError(f"description={description!r} must be a dictionary of settings by name")
    for name in ("training", "population", "initial"):
        if name in description:
            raise ValueError(
                f"description has {name!r}, which the run itself writes: name it otherwise"
            )
    return dict(description)


def _with_its_beginning(description: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A resumed run's description, with the digest of what the run began from, if it was given something."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        begun = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["initial"]
        return {**description, "initial": begun}
    return description


@contextlib.contextmanager
def _owned(folder: Path, resume: bool) -> Iterator[None]:
    """Within it the folder is this run's: claimed, and empty unless the run resumes.

    A run that ends before its first checkpoint leaves nothing in the folder.
    """
    if resume and not folder.is_dir():  # nothing to claim; restoring says so
        yield
        return
    with contextlib.ExitStack() as stack:

        def refuse_if_full() -> None:
            if any(x.name != claims.CLAIM_FILE for x in folder.iterdir()):
                raise FileExistsError(
                    f"{folder} is not empty: name another folder, or resume the run that is in it"
                )

        def claim() -> None:
            # First without a claim: one that outlived its process would make what a user keeps here a run's.
            if not resume and folder.is_dir() and not (folder / claims.CLAIM_FILE).exists():
                refuse_if_full()
            stale = stack.enter_context(claims.claimed(folder))
            if stale is not None:
                warnings.warn(
                    f"{folder} was held by {claims.holder(stale)}, which has ended: this run takes it over",
                    stacklevel=2,
                )
                if not resume:
                    _clear(folder)
            if not resume:
                refuse_if_full()

        processes.on_main_process(claim)
        try:
            yield
        except BaseException:
            if not resume and processes.is_main_process():
                _clear(folder)
            raise


def _clear(folder: Path) -> None:
    """Removes what a run left that ended before its first checkpoint; does nothing where there is one."""
    kept = folder / CHECKPOINT_FOLDER
    if kept.is_dir() and any(x.name.isdigit() for x in kept.iterdir()):
        return
    shutil.rmtree(kept, ignore_errors=True)
    for name in (CONFIG_FILE, METRICS_FILE):
        for path in (folder / name, folder / f"{name}.tmp"):
            path.unlink(missing_ok=True)


def enable_compilation_cache(folder: str | os.PathLike | None = None) -> None:
    """Keeps compiled programs on disk, so that a second start of the same program is quick.

    ``folder`` defaults to ``$JAX_COMPILATION_CACHE_DIR``, else ``~/.cache/jaxmeta``. Nothing is kept where there is no
    home, or where that variable is empty.
    """
    if folder is None:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        try:
            folder = Path.home() / ".cache" / "jaxmeta"
        except RuntimeError:  # a user whom the system does not know
            return
    if not os.fspath(folder):
        return
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


def _status(lines: list[dict], seconds: float) -> str:
    """The returns and the speed of some meta-updates, in words."""
    before, after = (_mean(lines, f"return/{when}") for when in ("before", "after"))
    steps = sum(line.get("env_steps") or 0 for line in lines)
    return f"return {before} → {after} {steps / seconds / 1000:,.0f}k env steps/s"


def _mean(lines: list[dict], name: str) -> str:
    values = [line[name] for line in lines if line.get(name) is not None]
    return f"{sum(values) / len(values):.2f}" if values else "none"


def _numbers(metrics: dict[str, Any]) -> dict[str, float | int | bool | None]:
    """JSON numbers; None for what is not finite, and for a mean return over no episodes at all.

    Of a mean ``return/X``, ``episodes/X`` is the number of episodes, where it is there.
    """
    numbers = {name: _number(x) for name, x in metrics.items()}
    for name in numbers:
        if name.startswith("return/") and numbers.get(f"episodes/{name[7:]}") == 0:
            numbers[name] = None
    return numbers


def _number(x: Any) -> float | int | bool | None:
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
    records.replace(path, "".join(kept))
