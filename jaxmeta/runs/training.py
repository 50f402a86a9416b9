"""Training on the host: compilation, reports, checkpoints and interrupts around a meta-algorithm's pure ``step``.

One compiled program does many meta-updates in one call. The number of meta-updates is an argument
of the program, so a run compiles once, and its numbers do not depend on when it reported, stopped
or resumed.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from jaxmeta import checks, curricula, types
from jaxmeta.runs import (
    checkpoints,
    descriptions,
    durations,
    memory,
    processes,
    records,
    sinks,
    terminal,
)
from jaxmeta.runs.interrupts import START_AGAIN, Stopped, deferred_interrupts
from jaxmeta.runs.metric_lines import Outputs, check_metrics, lines_of
from jaxmeta.runs.run_folder import CHECKPOINT_FOLDER, CONFIG_FILE, opened, owned
from jaxmeta.runs.sinks import Sink
from jaxmeta.tasks import keys
from jaxmeta.tasks.family import TaskFamily, sample_tasks
from jaxmeta.tasks.promises import check_promises
from jaxmeta.types import Curriculum, Hyper, MetaAlgorithm, Source


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a training run: its length, its tasks and its seed."""

    meta_updates: int = 500
    """Meta-updates in all. A resumed run may set more than the run before."""
    num_tasks: int = 20
    """Tasks in each meta-update (M)."""
    seed: int = 0
    """Seed of all random keys."""
    checkpoint_every: int = 100
    """Meta-updates between checkpoints. The last meta-update is always checkpointed."""
    report_seconds: float = 1.0
    """Approximate seconds between two reports: a progress line and lines of metrics."""

    def __post_init__(self) -> None:
        checks.at_least("meta_updates", self.meta_updates, 1)
        checks.at_least("num_tasks", self.num_tasks, 1)
        checks.at_least("seed", self.seed, 0, 2**32 - 1)
        checks.at_least("checkpoint_every", self.checkpoint_every, 1)
        checks.between("report_seconds", self.report_seconds, 0, 3600)


MAY_CHANGE = ("training.meta_updates", "training.checkpoint_every", "training.report_seconds")
"""Settings that a resumed run may change. All others must equal the saved ones."""


MAX_UPDATES_PER_CALL = 100
MAX_UPDATES = 2**31 - 1


class Run(NamedTuple):
    """A training run between two meta-updates: everything needed to continue it."""

    key: jax.Array
    """Key of all meta-updates to come."""
    state: Any
    """State of the meta-algorithm; ``state.meta`` is the learner's ``meta``."""
    num_updates: jax.Array
    """``[]``, int32: meta-updates so far."""
    curriculum: Any = ()
    """State of the curriculum; ``()`` without one."""


@checks.arguments
def begin(
    key: jax.Array,
    *,
    algorithm: MetaAlgorithm,
    hyper: Hyper | None = None,
    curriculum: Curriculum | None = None,
    num_tasks: int | None = None,
) -> Run:
    """A run before its first meta-update. ``hyper=None`` means the algorithm's own hyper-parameters.

    A ``curriculum`` needs ``num_tasks``, the tasks in each meta-update.
    """
    init_key, run_key = jax.random.split(key)
    given = () if hyper is None else (hyper,)
    state = _strong(algorithm.init(init_key, *given))
    return Run(run_key, state, jnp.zeros((), jnp.int32), _first_of(curriculum, num_tasks))


def _first_of(curriculum: Curriculum | None, num_tasks: int | None) -> Any:
    """The state of a curriculum before the first meta-update."""
    if curriculum is None:
        return ()
    return _strong(curriculum.init(checks.at_least("num_tasks", num_tasks, 1)))  # type: ignore[arg-type]


def begin_population(
    seeds: Any, hypers: Sequence[Any] | None, *, algorithm: MetaAlgorithm, **curriculum: Any
) -> Run:
    """Runs before their first meta-update, ``[H, S]``: each of H settings with each of ``seeds [S]``.

    ``hypers=None`` means the algorithm's own hyper-parameters, H = 1. ``curriculum`` and ``num_tasks`` are those of `begin`.
    """
    settings = [None] if hypers is None else hypers
    stacked = jax.tree.map(lambda *x: jnp.asarray(x, float), *settings)

    def first(seed: jax.Array, hyper: Hyper | None) -> Run:
        return begin(jax.random.key(seed), algorithm=algorithm, hyper=hyper, **curriculum)

    every = jax.vmap(jax.vmap(first, (0, None)), (None, 0), axis_size=len(settings))
    return every(jnp.asarray(seeds, jnp.uint32), stacked)


def advance(
    run: Run,
    num_updates: jax.Array,
    data: Any = (),
    *,
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    num_tasks: int,
    source: Source | None = None,
    curriculum: Curriculum | None = None,
    max_updates: int = MAX_UPDATES_PER_CALL,
    mesh: Mesh | None = None,
) -> tuple[Run, dict[str, jax.Array]]:
    """``(run, metrics [max_updates])`` after ``num_updates []`` meta-updates on fresh training tasks.

    With a ``source`` the batches are drawn from its ``data`` instead; with a ``curriculum`` it draws the tasks, and ``run``
    must hold its state.

    The function is pure: ``jit`` it, and ``vmap`` it over runs for seeds or hyper-parameters.
    ``num_updates`` is traced and at most ``max_updates``; rows of the metrics beyond
    ``num_updates`` are zero. With a ``mesh`` the tasks are spread over its axis ``"tasks"``, and
    the compiler turns their mean into one all-reduce.

    Raises TypeError, while it is traced, if a metric is no scalar or if ``algorithm.step`` returns
    a state whose arrays differ from those that it was given. Raises ValueError if the algorithm does not report what the
    curriculum needs.
    """

    def placed(tree: Any, *axes: str) -> Any:
        if mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(*axes)))

    def spread(tasks: Any) -> Any:
        return placed(tasks, "tasks")

    def update(run: Run) -> tuple[Run, dict[str, jax.Array]]:
        key, task_key, step_key = jax.random.split(run.key, 3)
        if curriculum is not None:
            step = partial(curricula.step, algorithm=algorithm, curriculum=curriculum)
            state, taught, metrics = step(
                task_key, step_key, run.state, run.curriculum, num_tasks=num_tasks, spread=spread
            )
            taught = _strong(taught)
            _check_state("curriculum.update returns", taught, "was given", run.curriculum)
        else:
            if source is None:
                tasks = sample_tasks(task_key, family, num_tasks, split="train")
            else:
                tasks = source.sample(task_key, data, num_tasks)
            state, metrics = algorithm.step(step_key, run.state, spread(tasks))
            taught = run.curriculum
        check_metrics(metrics)
        state = _strong(state)
        _check_state("algorithm.step returns", state, "was given", run.state)
        return Run(key, state, run.num_updates + 1, taught), metrics

    def body(i: jax.Array, carry: tuple) -> tuple:
        run, rows = carry
        run, metrics = update(run)
        return run, jax.tree.map(lambda row, x: row.at[i].set(x), rows, metrics)

    _, shapes = jax.eval_shape(update, run)
    rows = jax.tree.map(lambda x: jnp.zeros((max_updates, *x.shape), x.dtype), shapes)
    run, rows = jax.lax.fori_loop(0, num_updates, body, (run, rows))
    if curriculum is not None:  # whole on every device, as the rest of the run
        run = run._replace(curriculum=placed(run.curriculum))
    return run, rows


def _strong(tree: Any) -> Any:
    """The same numbers as arrays without weak types."""

    def strong(x: Any) -> Any:
        if keys.is_key(x):
            return x
        return jax.lax.convert_element_type(x, jnp.result_type(x))

    return jax.tree.map(strong, tree)


def _check_state(what: str, state: Any, other: str, reference: Any) -> None:
    """Raises TypeError unless ``state`` has the structure, the shapes and the types of ``reference``."""
    different = [
        f"{name or 'the state'} is {here or 'missing'}, and {other} {there or 'no such leaf'}"
        for name, here, there in checkpoints.differences(
            checkpoints.arrays(state), checkpoints.arrays(reference)
        )
    ]
    if not different and str(jax.tree.structure(state)) != str(jax.tree.structure(reference)):
        ours, theirs = checks.structures(state, reference)
        different = [f"it is {ours}, and {other} {theirs}"]
    if different:
        raise TypeError(f"{what} another state: {'; '.join(different[:3])}")


@checks.arguments
def train(
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    config: Config = Config(),
    *,
    source: Source | None = None,
    curriculum: Curriculum | None = None,
    initial: Any = None,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    description: Mapping[str, Any] | None = None,
    console: Console | None = None,
    sink: Sink | None = None,
) -> Run:
    """The meta-trained run; ``run.state.meta`` holds the learned parameters.

    Args:
        algorithm: The meta-algorithm to train.
        family: The family whose training tasks are drawn.
        config: The run's length, its tasks and its seed.
        source: Where batches come from, for algorithms that learn from a dataset: `datasets.windows`. Then ``num_tasks`` is
            the number of windows in a batch. None draws training tasks of the family.
        curriculum: How training tasks are drawn, if that depends on what tasks gave before: one of `curricula`. The run then
            holds its state. None draws independent training tasks (domain randomisation).
        initial: A `Run`, or the state of one, to start from instead of ``algorithm.init``; for
            example to continue another run with other settings. Keys still come from the seed, and
            meta-updates count from 0. A curriculum begins anew. ``config.json`` holds the SHA-256 of ``initial``.
        folder: Folder for ``config.json``, ``metrics.jsonl`` (a line per meta-update) and
            checkpoints; None writes no files. The run holds the folder from before compilation to
            its end. A run that was killed before its first checkpoint may be started again in the
            same folder.
        resume: Continue from the newest checkpoint in ``folder``. The result is bit-equal to the
            result of a run without a stop.
        description: Settings that identify the algorithm and the family, as `records.plain` takes
            them. They are kept in ``config.json`` and in each checkpoint, and compared on resuming.
            None means `descriptions.of`: the algorithm's name, ``config`` and ``hyper`` if a
            constructor of `algorithms` made it, and the family's name, horizon and a hash of a few
            of its tasks.
        console: Console for progress; None means standard error.
        sink: A second destination of the metrics: any function of a line, or a sink of `sinks`. An
            exception in the sink ends the run, after a checkpoint is saved in ``folder``. A resumed
            run repeats the meta-updates since its checkpoint, so a sink may get an ``update``
            twice.

    Raises:
        FileExistsError: ``folder`` is not empty and ``resume`` is off, or another run holds it.
        checkpoints.CheckpointError: there is no checkpoint to resume from; it is damaged or belongs
        to another run; or
            the run has done more than ``config.meta_updates``.
        Stopped: a KeyboardInterrupt, after an interrupt or SIGTERM, once a checkpoint is saved in
            ``folder``; without a folder the state is lost. It has the code to exit with. A second interrupt stops at once.
        ValueError: the number of devices does not divide ``config.num_tasks``; ``initial`` while
            resuming; ``algorithm`` was made for a family of another horizon or environment, or does not report what
            ``curriculum`` needs; ``curriculum`` draws tasks of another family; or there are both a source and a curriculum.
        TypeError: a metric is no scalar; or the arrays of ``initial``, or of the state after a
            meta-update, differ from those that ``algorithm.init`` makes.
        tasks.InvalidEnvironment: the family breaks a promise (see `tasks.check_promises`).
    """
    check_promises(family)
    descriptions.check_made_for(algorithm, family, config.num_tasks)
    curricula.check_fits(curriculum, algorithm, source)
    descriptions.check_draws_from(curriculum, family)
    mesh = device_mesh(config.num_tasks)
    description = descriptions.described(
        description, algorithm, family, source, curriculum, with_tasks=folder is not None
    )
    taught = dict(curriculum=curriculum, num_tasks=config.num_tasks)
    begun = jax.jit(begin, static_argnames=("algorithm", "curriculum", "num_tasks"))
    key = jax.random.key(config.seed)

    def newborn() -> Run:
        return begun(key, algorithm=algorithm, **taught)

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
            # A copy, because training overwrites the run's buffers.
            copied = _strong(jax.tree.map(partial(jnp.array, copy=True), first))
            begins = jnp.zeros((), jnp.int32), _first_of(curriculum, config.num_tasks)
            return Run(jax.random.split(key)[1], copied, *begins)

    return _train(
        newborn,
        _meta_updates(algorithm, family, source, curriculum, config, mesh),
        config,
        algorithm=algorithm,
        load=_loader(source, mesh),
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
    source: Source | None = None,
    curriculum: Curriculum | None = None,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    description: Mapping[str, Any] | None = None,
    console: Console | None = None,
    sink: Sink | None = None,
) -> Run:
    """The meta-trained runs of every setting with every seed, ``[H, S]``, trained in one program.

    Up to rounding, a member equals the run that `train` returns for its seed and its setting.

    Args:
        algorithm: The meta-algorithm to train.
        family: The family whose training tasks are drawn.
        config: As in `train`; ``config.seed`` is the first seed.
        num_seeds: S, the number of consecutive seeds of each setting.
        hypers: H settings, as ``algorithm.init(key, hyper)`` takes them; None means the algorithm's
            own.
        source: As in `train`.
        curriculum: As in `train`; each member has a state of its own.
        folder: As in `train`. A line of ``metrics.jsonl`` is one member's meta-update and names its
            ``setting`` (the place in ``hypers``) and ``seed``.
        resume: As in `train`.
        description: As in `train`; seeds and settings are added to it.
        console: As in `train`.
        sink: As in `train`.

    Raises:
        ValueError: there are no seeds or no settings. Errors of `train` are raised too.
    """
    checks.at_least("num_seeds", num_seeds, 1)
    _check_hypers(hypers, algorithm)
    seeds = [config.seed + i for i in range(num_seeds)]
    checks.between("seed", seeds[-1], 0, 2**32 - 1)
    check_promises(family)
    descriptions.check_made_for(algorithm, family, config.num_tasks)
    curricula.check_fits(curriculum, algorithm, source)
    descriptions.check_draws_from(curriculum, family)
    mesh = device_mesh(config.num_tasks)
    num_settings = 1 if hypers is None else len(hypers)

    taught = dict(curriculum=curriculum, num_tasks=config.num_tasks)
    begun = jax.jit(begin_population, static_argnames=("algorithm", "curriculum", "num_tasks"))

    def newborn() -> Run:
        return begun(jnp.asarray(seeds, jnp.uint32), hypers, algorithm=algorithm, **taught)

    no_own = description is not None or hypers is None
    description = descriptions.described(
        description, algorithm, family, source, curriculum, with_tasks=folder is not None
    )
    if not no_own:
        description.pop("hyper", None)  # no member has the algorithm's own
    settings = [] if hypers is None else [jax.tree.map(float, _named(hyper)) for hyper in hypers]
    description = {**description, "population": {"num_seeds": num_seeds, "hypers": settings}}
    one = _meta_updates(algorithm, family, source, curriculum, config, mesh)
    return _train(
        newborn,
        jax.vmap(jax.vmap(one, (0, None, None)), (0, None, None)),
        config,
        algorithm=algorithm,
        load=_loader(source, mesh),
        members=[{"setting": i, "seed": seed} for i in range(num_settings) for seed in seeds],
        mesh=mesh,
        folder=folder,
        resume=resume,
        description=description,
        console=console,
        sink=sink,
    )


Call = Callable[[Run, jax.Array, Any], tuple[Run, dict[str, jax.Array]]]
"""``(run, num_updates [], data) -> (run, metrics)``."""
Load = Callable[[int], tuple[Any, int]]
"""`Source.load`."""


def _meta_updates(
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    source: Source | None,
    curriculum: Curriculum | None,
    config: Config,
    mesh: Mesh | None,
) -> Call:
    return partial(
        advance,
        algorithm=algorithm,
        family=family,
        num_tasks=config.num_tasks,
        source=source,
        curriculum=curriculum,
        mesh=mesh,
    )


def _loader(source: Source | None, mesh: Mesh | None) -> Load:
    """The source's ``load`` with its arrays on the devices; it keeps those of the last call, which serve many meta-updates."""
    if source is None:
        return lambda update: ((), MAX_UPDATES)
    data, begin, end = None, 0, 0

    def load(update: int) -> tuple[Any, int]:
        nonlocal data, begin, end
        if not begin <= update < end:
            data = None  # before the next arrays come, so that both are never in memory
            begin, (data, end) = update, source.load(update)
            if mesh is None:
                data = jax.device_put(data)
            else:
                data = processes.spread(data, NamedSharding(mesh, PartitionSpec()))
            if end <= update:
                raise ValueError(f"source.load({update}) ends at {end}; it must end later")
        return data, end

    return load


def _named(hyper: Hyper) -> Any:
    """A NamedTuple as a dictionary; anything else as it is."""
    return hyper._asdict() if hasattr(hyper, "_asdict") else hyper


def _train(
    newborn: Callable[[], Run],
    call: Call,
    config: Config,
    *,
    algorithm: MetaAlgorithm,
    load: Load,
    members: Sequence[dict[str, Any]],
    mesh: Mesh | None,
    folder: str | os.PathLike | None,
    resume: bool,
    description: Mapping[str, Any],
    console: Console | None,
    sink: Sink | None,
) -> Run:
    """The trained run of `train` or `train_population`.

    ``members`` are the entries by which the lines of two members differ.
    """
    described: dict[str, Any] = records.plain({**description, "training": config})
    output = _checked_output(folder, resume, sink)
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(deferred_interrupts())
        if output is not None:
            checks.folder("folder", output)
            stack.enter_context(owned(output, resume))
        if console is None:
            console = terminal.console("stderr", quiet=not processes.is_main_process())
        began = time.perf_counter()
        if resume:
            assert output is not None
            described = descriptions.with_its_beginning(described, output / CONFIG_FILE)
            done, run = _restored(newborn, config, output, described)
            if done == config.meta_updates:
                return run
        else:
            done, run = 0, newborn()
        processes.barrier("before anything is written")
        if mesh is not None:
            run = processes.spread(run, NamedSharding(mesh, PartitionSpec()))
        program_key = durations.key_of(_program(described))
        status = _compiling(described, durations.recalled(program_key))
        line = stack.enter_context(terminal.progress(console, done, config.meta_updates, status))
        # The run is donated: its buffers are overwritten, and only the new run may be used
        # afterwards.
        jitted = jax.jit(call, donate_argnums=0)
        traced = jitted.trace(run, jnp.zeros((), jnp.int32), load(done)[0])
        memory.check(algorithm, traced.jaxpr.jaxpr, config.num_tasks)
        lowered = traced.lower()
        write: sinks.Write | None = None
        if sink is not None and processes.is_main_process():
            write = stack.enter_context(sinks.opened(sink))
        program = lowered.compile()
        seconds = time.perf_counter() - began
        durations.remember(program_key, seconds)
        line.say(f"compiled {_title(described)} in {seconds:.0f} s")
        files = None
        if output is not None:
            files = stack.enter_context(opened(output, done, run, described))
        outputs = Outputs(line, console.encoding, write, files)
        told: dict[str, Any] = dict(members=members, outputs=outputs, interrupted=interrupted)
        return _updated(program, run, done, config, load, **told)


def _compiling(described: Mapping[str, Any], last_time: float | None) -> str:
    """The program that is compiled, and how long that took ``last_time``, if that is known."""
    known = "this can take a minute" if last_time is None else f"{last_time:.0f} s last time"
    return f"compiling {_title(described)} ({known})"


def _title(described: Mapping[str, Any]) -> str:
    """The program that is compiled, in a few words."""
    family, num_tasks = described.get("family"), described["training"]["num_tasks"]
    what = f"{described['algorithm']} on {family}" if "algorithm" in described else f"{family}"
    return f"{what}, {num_tasks} tasks"


def _program(described: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a description that says which program is compiled."""
    left_out = ("hyper", "initial", "training")
    program = {name: x for name, x in described.items() if name not in left_out}
    return program | {"num_tasks": described["training"]["num_tasks"]}


def _checked_output(
    folder: str | os.PathLike | None, resume: bool, sink: Sink | None
) -> Path | None:
    """The folder to write to, or None; raises unless ``folder``, ``resume`` and ``sink`` are right."""
    output = None if folder is None else checks.path("folder", folder)
    checks.field("resume", resume, bool)
    if sink is not None:
        sinks.check(sink)
    if resume and output is None:
        raise ValueError("resume=True needs the folder to resume from")
    return output


def _restored(
    newborn: Callable[[], Run], config: Config, output: Path, described: Mapping[str, Any]
) -> tuple[int, Run]:
    """``(meta-updates done, run)`` of the newest checkpoint; raises CheckpointError where the run is past ``config``."""
    done, run = checkpoints.restore(
        output / CHECKPOINT_FOLDER, jax.eval_shape(newborn), described, ignore=MAY_CHANGE
    )
    if done > config.meta_updates:
        raise checkpoints.CheckpointError(
            f"meta_updates={config.meta_updates}, but the run in {output} has done {done}"
        )
    return done, run


def _updated(
    program: Call,
    run: Run,
    done: int,
    config: Config,
    load: Load,
    *,
    members: Sequence[dict[str, Any]],
    outputs: Outputs,
    interrupted: Callable[[], int | None],
) -> Run:
    """The run after ``config.meta_updates``: calls the program until then, with reports and checkpoints between calls."""
    seconds_per_update = None
    while done < config.meta_updates:
        next_checkpoint = (done // config.checkpoint_every + 1) * config.checkpoint_every
        limit = min(config.meta_updates, next_checkpoint)
        data, end = load(done)
        count = _num_updates(config, min(limit, end) - done, seconds_per_update)
        began = time.perf_counter()
        run, rows = program(run, jnp.asarray(count, jnp.int32), data)
        del data  # `load` drops what it holds before it reads on
        rows = {name: x.reshape(len(members), -1) for name, x in jax.device_get(rows).items()}
        seconds = time.perf_counter() - began
        seconds_per_update = seconds / count
        lines = lines_of(rows, members, done, count, seconds_per_update)
        done += count
        failure = outputs.report(lines, done, seconds)
        signalled = interrupted()
        stop = processes.any_process(signalled is not None or failure is not None)
        if outputs.files is not None and (done == limit or stop):
            outputs.files.save(done, run)
        if failure is not None:
            raise failure
        if stop:
            again = processes.any_process(signalled == SIGTERM)
            code = START_AGAIN if again else 128 + SIGINT
            raise Stopped(f"stopped after {done} meta-updates", code)
    return run


def _num_updates(config: Config, most: int, seconds_per_update: float | None) -> int:
    """Meta-updates of the next call: those of ``report_seconds``, at most ``most``; 1 in the first call."""
    count = 1
    if seconds_per_update is not None:
        count = int(config.report_seconds / max(seconds_per_update, 1e-6))
    return processes.broadcast(max(1, min(count, MAX_UPDATES_PER_CALL, most)))


def _check_hypers(hypers: Any, algorithm: MetaAlgorithm) -> None:
    """Raises unless ``hypers`` is None or a list of settings of one structure that ``algorithm.init`` takes."""
    if hypers is None:
        return
    if not isinstance(hypers, list | tuple) or hasattr(hypers, "_fields"):
        raise TypeError(f"hypers={hypers!r} must be a list of settings: [Hyper(...), ...]")
    if not hypers:
        raise ValueError("hypers=[] must hold at least one setting, or be None")
    checks.same_structure(**{f"hypers[{i}]": hyper for i, hyper in enumerate(hypers)})
    for i, hyper in enumerate(hypers):
        wanted = algorithm.description and type(algorithm.description.hyper)
        if wanted:
            checks.instance(f"hypers[{i}]", hyper, wanted)
        for path, x in jax.tree_util.tree_leaves_with_path(hyper):
            checks.between(f"hypers[{i}]{jax.tree_util.keystr(path)}", x, -math.inf, math.inf)
        # One by one, for later they are traced together, and their values are not seen.
        try:
            jax.eval_shape(lambda key, hyper=hyper: algorithm.init(key, hyper), jax.random.key(0))
        except (TypeError, ValueError) as error:
            raise type(error)(f"hypers[{i}]: {error}") from error


def can_resume(folder: str | os.PathLike) -> bool:
    """Whether ``folder`` has a checkpoint to resume from, so that one command begins a run and goes on with it.

    ``training.train(..., folder=folder, resume=training.can_resume(folder))`` does so in all processes if all see the folder.
    """
    kept = checks.path("folder", folder) / CHECKPOINT_FOLDER
    found = kept.is_dir() and any(x.name.isdigit() for x in kept.iterdir())
    return bool(processes.broadcast(int(found)))


def enable_compilation_cache(folder: str | os.PathLike | None = None) -> None:
    """Turns on jax's cache of compiled programs on disk, so that a program starts faster the second time.

    ``folder`` defaults to ``$JAX_COMPILATION_CACHE_DIR``, else ``~/.cache/jaxmeta``. Without a home
    directory, or with an empty variable, the cache stays off.
    """
    if folder is None:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        try:
            folder = Path.home() / ".cache" / "jaxmeta"
        except RuntimeError:  # a user without an entry in the system
            return
    if not os.fspath(folder):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def device_mesh(num_tasks: int) -> Mesh | None:
    """All devices on one axis, ``"tasks"``; None with a single device.

    Raises ValueError if the number of devices does not divide ``num_tasks``.
    """
    devices = len(jax.devices())
    if devices == 1:
        return None
    if num_tasks % devices:
        raise ValueError(f"num_tasks={num_tasks} must be a multiple of the {devices} devices")
    return jax.make_mesh((devices,), ("tasks",), axis_types=(AxisType.Auto,))


types.document_fields()
