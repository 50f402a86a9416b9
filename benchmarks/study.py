"""The skeleton of these scripts: settings, command line, training, tasks, statistics, results.

A script has a question and its own parts. It derives its settings from `Study`, and ends with

    if __name__ == "__main__":
        study.main({Settings: run}, __doc__)
"""

import contextlib
import dataclasses
import inspect
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, dataclass_transform, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxmeta import checks, evaluation, tasks
from jaxmeta.runs import claims, records, reports, training
from jaxmeta.tasks import TaskFamily
from jaxmeta.types import MetaAlgorithm, Task

HERE = Path(__file__).resolve().parent
EVALUATION_SEED = 10**6  # no run has it
LEAST = {"eval_tasks": 2, "scratch_tasks": 2, "seed": 0, "core": 0}
"""The least values of whole numbers, by their names; all others are at least 1."""

SPLITS = {"test": "held-out", "out_of_distribution": "out of distribution"}
"""The splits that learners are measured on, and their names in tables."""

Names = tuple[str, ...]
Numbers = tuple[float, ...]
HELP = "Folder for results.json, tables and figures; made anew."
Output = Annotated[Path, tyro.conf.arg(help=HELP)]


def known(choices: Iterable[Any]) -> partial:
    """An annotation of a setting: it, or each of its entries, is one of these."""
    return partial(checks.choice, choices=choices)


def within(low: float, high: float) -> partial:
    """An annotation of a setting: it, or each of its entries, is a number between these."""
    return partial(checks.between, low=low, high=high)


def at_least(least: int) -> partial:
    """An annotation of a setting: it, or each of its entries, is a whole number from this on."""
    return partial(checks.at_least, minimum=least)


def multiple_of(number: int) -> partial:
    """An annotation of a setting: it, or each of its entries, is a multiple of this."""

    def check(name: str, value: int) -> None:
        if value % number:
            raise ValueError(f"{name}={value} must be a multiple of {number}")

    return partial(check)


Core = Annotated[int | None, partial(checks.core)]
"""A core that a process is pinned to; None pins none."""


@dataclass_transform(frozen_default=True)
class Study:
    """Settings of a script: a frozen dataclass, checked by annotations as `known` and `within`.

    Whole numbers are checked by `LEAST`. Tuples are not empty, unless they are by default. The
    folder is called by the script and, where this has several kinds of settings, by the kind.
    """

    output: Output

    def __init_subclass__(cls, **options: Any) -> None:
        if "output" not in vars(cls):
            script = Path(inspect.getfile(cls)).resolve().relative_to(HERE)
            words = list(script.with_suffix("").parts)
            if cls.__name__.lower() not in ("main", words[-1].replace("_", "")):
                words.append(cls.__name__.lower())
            cls.output = Path("runs") / "-".join(words).replace("_", "-")
            cls.__annotations__ = {"output": Output} | vars(cls).get("__annotations__", {})
        dataclasses.dataclass(frozen=True, **options)(cls)

    def __post_init__(self) -> None:
        checks.fields(self)
        hints = get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and field.default != ():
                checks.some(field.name, value)
            if isinstance(value, tuple) and any(isinstance(x, str) for x in value):
                checks.distinct(field.name, value)
            annotations = getattr(hints[field.name], "__metadata__", ())
            for x in value if isinstance(value, tuple) else [value]:
                for annotation in annotations:
                    if isinstance(annotation, partial):
                        annotation(field.name, x)
                if isinstance(x, int) and not isinstance(x, bool):
                    most = 2**32 - 1 if field.name == "seed" else 2**31 - 1
                    checks.at_least(field.name, x, LEAST.get(field.name, 1), most)

    def some(self, *names: str) -> dict[str, Any]:
        """These settings by their names."""
        return {name: getattr(self, name) for name in names}

    def told(self, *left_out: str) -> dict[str, Any]:
        """The settings as JSON gives them back, without those that are named."""
        settings = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return {name: x for name, x in settings.items() if name not in left_out}


def say(text: object) -> None:
    """Shows a line of progress."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """A context in which an error that the user can mend ends the script with its message alone."""
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


def main(kinds: Mapping[type, Callable[[Any], None]], doc: str | None, *, new: bool = True) -> None:
    """Runs a script by its command line.

    ``kinds`` has functions by the class of their settings. Several classes are subcommands.
    The output folder must be ``new``, or empty, unless the script resumes. Until the script ends no other may write to it.
    """
    with answered():
        if len(kinds) > 1:
            commands = {kind.__name__.lower(): kind for kind in kinds}
            settings = tyro.extras.subcommand_cli_from_dict(commands, description=doc)
        else:
            settings = tyro.cli(next(iter(kinds)), description=doc)
        checks.folder("output", settings.output)
        if new and not getattr(settings, "resume", False):
            reports.refuse_to_overwrite(settings.output)
        with claims.claimed(settings.output):
            training.enable_compilation_cache()
            kinds[type(settings)](settings)


class Program(NamedTuple):
    """A compiled function."""

    call: Any
    seconds: float  # of compiling

    @property
    def memory(self) -> int:
        """Bytes of its intermediate values."""
        return self.call.memory_analysis().temp_size_in_bytes


def compiled(function: Callable, *arguments: Any, **options: Any) -> Program:
    """``function`` compiled for the shapes of ``arguments``; ``options`` go to `jax.jit`."""
    began = time.perf_counter()
    call = jax.jit(function, **options).lower(*arguments).compile()
    return Program(call, time.perf_counter() - began)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of ``call()``, and its seconds."""
    began = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - began


def in_turns(calls: Mapping[Any, Callable[[], Any]], repeats: int) -> dict[Any, list[float]]:
    """Seconds of every call, taken in turns, so that a busy machine is so for all.

    Each call is made twice and the second is timed: the first pays for the memory it needs.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            jax.block_until_ready(call())
            seconds[name].append(timed(call)[1])
    return seconds


class Trained(NamedTuple):
    """Runs after their training."""

    run: training.Run
    curve: dict[str, np.ndarray]  # metrics [..., U] of all meta-updates
    seconds: float  # without compiling

    @property
    def meta(self) -> Any:
        """The parameters that were learned."""
        return self.run.state.meta


Show = Callable[[int, dict[str, np.ndarray], float], None]
"""A function of the meta-updates so far, of the last ones' metrics, and of the seconds so far."""
Train = Callable[..., Trained]
"""``(run, meta_updates, show=None)``: a program that trains and shows each chunk of meta-updates."""


def with_config(experiment: Any, **config: Any) -> Any:
    """The same `Experiment` with other settings of its algorithm."""
    return dataclasses.replace(experiment, config={**experiment.config, **config})


def with_hyper(meta: Any, **hyper: Any) -> Any:
    """The same parameters with other hyper-parameters."""
    return meta._replace(hyper=meta.hyper._replace(**hyper))


def seeds(algorithm: MetaAlgorithm, num_seeds: int) -> training.Run:
    """The runs of seeds 0, 1, ... before their first meta-update, ``[S]``."""
    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    return jax.jit(jax.vmap(lambda key: training.begin(key, algorithm=algorithm)))(keys)


def one(algorithm: MetaAlgorithm, seed: int) -> training.Run:
    """The run of one seed before its first meta-update."""
    return jax.jit(lambda key: training.begin(key, algorithm=algorithm))(jax.random.key(seed))


def advancing(
    algorithm: MetaAlgorithm, family: TaskFamily, *, num_tasks: int, most: int = 1, **how: Any
) -> Callable:
    """``(run, count=most) -> (run, metrics [most])`` after ``count`` meta-updates, by `training.advance`."""
    told = dict(algorithm=algorithm, family=family, num_tasks=num_tasks, max_updates=most, **how)
    return lambda run, count=most: training.advance(run, jnp.asarray(count), **told)


def trainer(
    run: training.Run, algorithm: MetaAlgorithm, family: TaskFamily, *, num_tasks: int, chunk: int
) -> tuple[Train, float]:
    """The compiled program that trains runs like ``run``, and the seconds of compiling.

    It maps over the leading axes of ``run``, for seeds and settings. It overwrites its run.
    """
    mapped = advancing(algorithm, family, num_tasks=num_tasks, most=chunk)
    for _ in range(run.num_updates.ndim):
        mapped = jax.vmap(mapped, in_axes=(0, None))
    program = compiled(mapped, run, jnp.zeros((), jnp.int32), donate_argnums=0)

    def train(run: training.Run, meta_updates: int, show: Show | None = None) -> Trained:
        began, rows = time.perf_counter(), []
        for done in range(0, meta_updates, chunk):
            count = min(chunk, meta_updates - done)
            run, metrics = program.call(run, jnp.asarray(count, jnp.int32))
            rows.append({k: np.asarray(x)[..., :count] for k, x in jax.device_get(metrics).items()})
            if show is not None:
                show(done + count, rows[-1], time.perf_counter() - began)
        curve = {name: np.concatenate([row[name] for row in rows], axis=-1) for name in rows[0]}
        return Trained(run, curve, time.perf_counter() - began)

    return train, program.seconds


def held_out(family: TaskFamily, count: int) -> Task:
    """The held-out tasks that every agent is measured on, ``[count]``."""
    key = jax.random.key(EVALUATION_SEED)
    return jax.jit(lambda key: tasks.sample_tasks(key, family, count, split="test"))(key)


def adapted(
    key: jax.Array, meta: Any, drawn: Task, algorithm: MetaAlgorithm, family: TaskFamily, **how: Any
) -> jax.Array:
    """Returns after 0 ... K gradient steps in each task, ``[M, K + 1]``, by `evaluation`."""
    told = dict(learner=algorithm.learner, env=family.env, num_steps=family.horizon)
    return evaluation.adaptation_returns(key, meta, drawn, **told, **how)


def returns_of(agent: Callable, key: jax.Array, drawn: Task, family: TaskFamily) -> np.ndarray:
    """Returns of an agent of `evaluation` that needs no training, ``[M]``."""
    call = jax.jit(lambda key, drawn: agent(key, drawn, family=family))
    return np.asarray(call(key, drawn))


def optimum_known(family: TaskFamily) -> bool:
    """Whether the best return in each of the family's tasks is known."""
    return family.optimal_return is not None or family.optimal_action is not None


def has_reference(family: TaskFamily) -> bool:
    """Whether the family has an optimal action or an expert: an agent that knows the task."""
    return optimum_known(family) or family.expert_action is not None


def references(
    keys: jax.Array, drawn: Task, family: TaskFamily, *, num_streams: int = 20
) -> list[np.ndarray]:
    """Returns of the random agent and, where the family has one, of the reference agent, ``[M]`` each."""
    agents: list[Callable] = [partial(evaluation.random_returns, num_streams=num_streams)]
    if has_reference(family):
        agents.append(evaluation.reference_returns)
    return [returns_of(agent, key, drawn, family) for agent, key in zip(agents, keys, strict=False)]


def with_interval(mean: Any, low: Any, high: Any, *, digits: int = 2) -> str:
    """A mean and its interval as a cell of a table; numbers of a run that diverged are None."""
    shown = ["diverged" if x is None else f"{x:.{digits}f}" for x in (mean, low, high)]
    return f"{shown[0]} ({shown[1]}, {shown[2]})"


def middle(scores: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The interquartile mean over ``scores [S, M]``, and its interval."""
    mean = float(evaluation.interquartile_mean(scores, axis=None))
    return mean, evaluation.interquartile_interval(scores)


def middles(scores: np.ndarray) -> tuple[list[float], list[tuple[float, float]]]:
    """`middle` at each look, ``[S, M, C]``: the means, and the intervals."""
    found = [middle(x) for x in np.moveaxis(scores, -1, 0)]
    return [mean for mean, _ in found], [interval for _, interval in found]


def finite(tree: Any) -> Any:
    """The same numbers with None for those that JSON cannot hold."""
    if isinstance(tree, dict):
        return {name: finite(x) for name, x in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(x) for x in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def kept(path: Path, settings: Mapping[str, Any], measure: Callable[[], dict]) -> dict[str, Any]:
    """The part of a study in the file ``path``; it is measured and written where there is none.

    Numbers that JSON cannot hold are None. Raises FileExistsError where it was measured with other settings, and ValueError
    where the file is damaged.
    """
    if path.exists():
        try:
            part = json.loads(path.read_text(encoding="utf-8"))
            there = part["settings"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path} is damaged: remove it, and it is measured again") from error
        if there != settings:
            raise FileExistsError(f"{path} was measured with other settings: name another folder")
        return part
    part = finite(measure()) | {"settings": settings}
    path.parent.mkdir(parents=True, exist_ok=True)
    records.replace(path, records.dumps(records.measured(part)) + "\n")
    return part


def spaced(number: int) -> str:
    """A large whole number as a cell of a table."""
    return f"{number:,}".replace(",", " ")


def table(columns: str, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A table's rows by its columns, as in ``time, s = {seconds:.2f} | memory = {memory}``."""
    pairs = [column.partition(" = ")[::2] for column in columns.split("|")]
    return [{name.strip(): form.strip().format(**row) for name, form in pairs} for row in rows]


def panels(
    rows: Iterable[Mapping[str, Any]], line: str, x: str, ys: Mapping[str, str]
) -> dict[str, dict[str, tuple[list, list]]]:
    """Panels of `plotting.lines`: by its label the entry ``y`` of the rows against ``x``, a line for each ``line``."""
    found: dict[str, dict[str, tuple[list, list]]] = {label: {} for label in ys}
    for row, (label, y) in itertools.product(rows, ys.items()):
        of_x, of_y = found[label].setdefault(row[line], ([], []))
        of_x.append(row[x])
        of_y.append(row[y])
    return found


def markdown(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; unlike in `reports.markdown`, a name may stand twice."""
    cells = [f"| {' | '.join(row)} |" for row in (names, *rows)]
    return [cells[0], "|" + "---|" * len(names), *cells[1:]]


def leave(
    study: Study,
    table: Sequence[Mapping[str, str]] | Sequence[str],
    *,
    settings: Mapping[str, Any] | None = None,
    csv: Sequence[Mapping[str, Any]] = (),
    **results: Any,
) -> None:
    """Leaves table.md, results.json and, of rows ``csv``, table.csv; shows the table.

    ``settings`` of None are all of the study's. This file always is one of the sources.
    """
    sources: Any = reports.provenance()["sources"]
    mine = {"benchmarks/study.py": reports.digest(Path(__file__).read_text(encoding="utf-8"))}
    told = dataclasses.asdict(study) if settings is None else settings
    reports.leave(study.output, told, table, **results, sources=sources | mine)
    if csv:
        reports.write_csv(study.output / "table.csv", csv)
