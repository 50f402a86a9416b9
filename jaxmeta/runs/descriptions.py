"""The identity of a run, as plain settings: the algorithm, the family and its tasks."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeta import checks
from jaxmeta.runs import records
from jaxmeta.tasks import time_limit
from jaxmeta.tasks.family import SPLITS, TaskFamily, content_hash
from jaxmeta.types import Curriculum, MetaAlgorithm, Source

_ARRAY = np.ndarray | jax.Array
ADDED = ("algorithm", "arguments", "config", "hyper", "replaced", "tasks")
"""Entries of `of` that versions before 0.2 did not write."""


def of(algorithm: MetaAlgorithm, family: TaskFamily, *, with_tasks: bool) -> dict[str, Any]:
    """The description of a run of ``algorithm`` on ``family``, as `records.plain` takes it.

    It has the family's name and horizon, and the algorithm's name, ``config`` and ``hyper`` if a constructor of
    `algorithms` made it. Objects that the constructor was given, such as a network or an optimiser, are described by
    their names alone, in ``arguments``.

    Args:
        algorithm: The algorithm.
        family: The family.
        with_tasks: Add ``tasks``, the `content_hash` of each split, from a few tasks that are drawn.
    """
    description: dict[str, Any] = {"family": family.name, "horizon": family.horizon}
    made = algorithm.description
    if made is not None:
        description |= {
            "algorithm": made.name,
            "config": _settings(made.config),
            "hyper": _settings(made.hyper),
            "arguments": {name: name_of(value) for name, value in made.arguments.items()},
            "replaced": replaced(algorithm),
        }
    if with_tasks:
        description["tasks"] = hashes(family)
    return description


def hashes(family: TaskFamily) -> dict[str, str]:
    """The `content_hash` of each split."""
    return {split: content_hash(family, split) for split in SPLITS}


def replaced(algorithm: MetaAlgorithm) -> list[str]:
    """The parts of an algorithm that are not its constructor's, as after ``algorithm._replace(step=...)``."""
    made = algorithm.description
    parts = {} if made is None else made.parts
    return [name for name, part in parts.items() if getattr(algorithm, name) is not part]


def _settings(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass or a NamedTuple; an entry that JSON does not hold by its name."""
    if dataclasses.is_dataclass(settings):
        entries = {x.name: getattr(settings, x.name) for x in dataclasses.fields(settings)}
    else:
        entries = settings._asdict()
    for name, value in entries.items():
        if getattr(value, "dtype", None) == np.float32:
            entries[name] = _shortest(value)
        try:
            records.plain(entries[name], name)
        except TypeError:
            entries[name] = name_of(value)
    return entries


def _shortest(value: Any) -> Any:
    """Numbers of single precision as the Python numbers that one would write: 0.005, and not 0.004999999888."""
    try:
        array = np.asarray(value)
    except TypeError:  # traced
        return value
    return np.array([float(str(x)) for x in array.flat]).reshape(array.shape).tolist()


def name_of(value: Any) -> Any:
    """A name for an object: that of the function that it is, or of the function that made it.

    Numbers, strings and tuples of them are returned as they are. A NamedTuple of functions, like the network
    ``gru(64)``, has the name ``"gru"``.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, functools.partial):
        return name_of(value.func)
    if hasattr(value, "_fields"):
        return next(_makers(value), type(value).__name__)
    if isinstance(value, tuple | list):
        return [name_of(x) for x in value]
    return getattr(value, "__qualname__", type(value).__name__)


def _makers(functions: Iterable[Any], depth: int = 0) -> Iterator[str]:
    """Names of the public functions in which ``functions`` were made; then those of the functions that they use."""
    used = []
    for function in functions:
        name, inside, _ = getattr(function, "__qualname__", "").partition(".<locals>")
        if inside and not name.startswith("_"):
            yield name
        used += [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    if depth < 2:
        yield from _makers(filter(callable, used), depth + 1)


def check_made_for(algorithm: MetaAlgorithm, family: TaskFamily, num_tasks: int) -> None:
    """Raises ValueError if ``algorithm`` was made for a family of another horizon or environment, or does not take ``num_tasks``.

    An algorithm acts in the environment of the family that it was made for, for that family's horizon. The samplers of
    tasks may differ. Algorithms that no constructor of `algorithms` made are not checked. A warning says where settings keep
    the devices from sharing the work.
    """
    made = algorithm.description
    if made is None:
        return
    if hasattr(made.config, "check_num_tasks"):
        made.config.check_num_tasks(num_tasks)
    if hasattr(made.config, "check_devices"):
        made.config.check_devices(jax.device_count())
    if made.family is family:
        return
    fault = ""
    theirs, ours = time_limit.without_limit(made.family.env), time_limit.without_limit(family.env)
    if made.family.horizon != family.horizon:
        fault = f"horizon={made.family.horizon} of family {made.family.name!r}, and family={family.name!r} has horizon={family.horizon}"
    elif other := different(theirs, ours):
        fault = f"the environment of family {made.family.name!r}, and that of family={family.name!r} differs: {other}"
    if fault:
        raise ValueError(
            f"algorithm was made for {fault}. Make it for the family that it trains on: {made.name}(family, ...)"
        )


def check_draws_from(curriculum: Curriculum | None, family: TaskFamily) -> None:
    """Raises ValueError if ``curriculum`` draws the training tasks of another family: the run would not be of ``family``.

    Another object with the same training tasks is the same family. A few of them are drawn to find out.
    """
    theirs = None if curriculum is None else curriculum.family
    if theirs is None or theirs is family:
        return
    assert curriculum is not None
    same = theirs.horizon == family.horizon and not different(
        time_limit.without_limit(theirs.env), time_limit.without_limit(family.env)
    )
    if not same or content_hash(theirs, "train") != content_hash(family, "train"):
        name = curriculum.description.get("name")
        raise ValueError(
            f"curriculum {name!r} draws the training tasks of another family, {theirs.name!r}, than family={family.name!r}: "
            "make it for the family that the run trains on"
        )


def different(ours: Any, theirs: Any, name: str = "env", depth: int = 0) -> str:
    """How the environment ``theirs`` differs from ``ours``, in words; empty if no difference is found.

    Types, numbers, strings and arrays are compared, in the objects within too. Functions are not.
    """
    ours, theirs = checks.plain(ours), checks.plain(theirs)
    if ours is theirs or callable(ours) or depth > 8:
        return ""
    if isinstance(ours, _ARRAY) and isinstance(theirs, _ARRAY):
        if any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in (ours, theirs)):
            return ""
        real = all(jax.dtypes.issubdtype(x.dtype, np.inexact) for x in (ours, theirs))
        return "" if np.array_equal(ours, theirs, equal_nan=real) else f"{name} is another array"
    if type(ours) is not type(theirs):
        return f"{name} is a {type(theirs).__name__}, and was a {type(ours).__name__}"
    if isinstance(ours, bool | int | float | complex | str | bytes | type(None)):
        nan = ours != ours and theirs != theirs
        return "" if ours == theirs or nan else f"{name} is {theirs!r}, and was {ours!r}"
    if isinstance(ours, tuple | list) and len(ours) != len(theirs):
        return f"{name} has {len(theirs)} entries, and had {len(ours)}"
    return next(
        filter(
            None, (different(*both, place, depth + 1) for place, both in _parts(ours, theirs, name))
        ),
        "",
    )


def _parts(ours: Any, theirs: Any, name: str) -> list[tuple[str, tuple[Any, Any]]]:
    """The parts of two objects of one type by name."""
    if isinstance(ours, tuple | list):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [(f"{name}[{i}]", both) for i, both in pairs]
    if not isinstance(ours, Mapping):
        # What only one of them has is kept from a call, and no part.
        ours, theirs = (getattr(x, "__dict__", {}) for x in (ours, theirs))
        return [(f"{name}.{key}", (x, theirs[key])) for key, x in ours.items() if key in theirs]
    return [(f"{name}[{key!r}]", (x, theirs[key])) for key, x in ours.items() if key in theirs]


def difference(name: str, ours: Any, theirs: Any) -> str:
    """A sentence's part on an entry that differs between two descriptions."""
    if name.startswith("tasks."):
        return f"the family draws other tasks in its split {name.removeprefix('tasks.')!r}"
    short, long = [
        [f"{x:.6g}" if isinstance(x, float) else repr(x) for x in (ours, theirs)],
        [repr(ours), repr(theirs)],
    ]
    here, there = short if short[0] != short[1] else long
    return f"{name} is {here} and was {there}"


def comparable(description: Mapping[str, Any], saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``description`` without the entries that a version which did not write them left out of ``saved``."""
    if "tasks" in saved or "tasks" not in description:
        return description
    return {name: x for name, x in description.items() if name not in ADDED or name in saved}


def described(
    description: Mapping[str, Any] | None,
    algorithm: MetaAlgorithm,
    family: TaskFamily,
    source: Source | None,
    curriculum: Curriculum | None,
    *,
    with_tasks: bool,
) -> dict[str, Any]:
    """The description as a dictionary, with the source's and the curriculum's; without one, `of` the algorithm and the family.

    Raises:
        TypeError: ``description`` is no dictionary.
        ValueError: it has an entry that the run itself writes.
    """
    data = {} if source is None else {"data": dict(source.description)}
    if curriculum is not None:
        data["curriculum"] = dict(curriculum.description)
    if description is None:
        # Only files are compared with other runs, and drawing tasks can take long.
        return of(algorithm, family, with_tasks=with_tasks) | data
    if not isinstance(description, Mapping):
        raise TypeError(f"description={description!r} must be a dictionary of settings by name")
    for name in ("training", "population", "initial", "data", "curriculum"):
        if name in description:
            raise ValueError(
                f"description has {name!r}, which the run itself writes: use another name"
            )
    return dict(description) | data


def with_its_beginning(description: dict[str, Any], config: Path) -> dict[str, Any]:
    """A resumed run's description, with the digest of its ``initial`` if the file ``config`` of the run has one."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        begun = json.loads(config.read_text(encoding="utf-8"))["initial"]
        return {**description, "initial": begun}
    return description
