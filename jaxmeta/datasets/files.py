"""Datasets on disk: histories in shards, written one by one and read lazily.

A dataset is a folder. Arrays are in the Zarr format, version 3, written by TensorStore, so other programs can read them.

    dataset.json    the format, the family, the description, and the shape and type of each array
    shards.jsonl    a line for each whole shard: its number and the SHA-256 of its part of each array
    arrays/NAME     a Zarr array [S m, N, T, ...]; a shard of m tasks is one chunk, with a CRC-32C

``NAME`` is the path of an array in `Histories`: ``data.timestep.obs``, ``tasks.goal``, ``length``.

A shard counts once its line is in ``shards.jsonl``, which is written last. So whatever interrupts a write, a full disk or a
kill, the shards before it are whole, and ``create(..., resume=True)`` goes on after them. Reading compares each part's
SHA-256. The error names a damaged shard.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmeta
from jaxmeta import checks
from jaxmeta.datasets.histories import Histories, check
from jaxmeta.runs import checkpoints, claims, descriptions, records
from jaxmeta.tasks import environments
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import TimeStep, Trajectory

FORMAT = 1
HEADER_FILE = "dataset.json"
SHARDS_FILE = "shards.jsonl"
ARRAYS_FOLDER = "arrays"


class DatasetError(ValueError):
    """A dataset cannot be used; the message names the place and says what to do."""


@dataclasses.dataclass
class Writer:
    """An open dataset that takes shards; `create` makes one."""

    folder: Path
    """The dataset's folder."""
    family: TaskFamily
    """The family of the tasks."""
    description: Mapping[str, Any]
    """The header's facts of the histories, as `runs.records.plain` gives them."""
    num_shards: int
    """Whole shards so far. A write that resumes begins with this number."""
    header: dict[str, Any] | None
    """The header, once the first shard is written."""
    closed: bool = False
    """Whether the folder has been given back, so that nothing more can be written."""

    def append(self, histories: Histories) -> None:
        """Writes one shard. All shards have the shapes and types of the first.

        Raises:
            DatasetError: the shard cannot be written, does not hold numbers, is not of the family, or differs in shape or type. The
                shards before it stay whole. Or the dataset is closed.
            TypeError: ``histories`` are no `Histories`.
        """
        checks.instance("histories", histories, Histories)
        if self.closed:
            raise DatasetError(
                f"{self.folder} is closed: append within the with block, or go on with create(..., resume=True)"
            )
        _check_of(histories, self.family)
        arrays = _named(histories)
        header = self.header or self._header(arrays)
        _check_like(arrays, header)
        try:
            for name, array in arrays.items():
                _write(self.folder, name, array, self.num_shards)
            if self.header is None:
                records.write(self.folder / HEADER_FILE, header)
            line = {"shard": self.num_shards, "sha256": {x: _sha(y) for x, y in arrays.items()}}
            _append_line(self.folder / SHARDS_FILE, json.dumps(line))
        except Exception as error:
            raise DatasetError(
                f"shard {self.num_shards} of {self.folder} could not be written ({_first_line(error)}); the shards before "
                "it are whole: make room, then go on with resume=True"
            ) from error
        self.header = header
        self.num_shards += 1

    def _header(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "family": _identity(self.family),
            "description": self.description,
            "made_by": f"jaxmeta {jaxmeta.__version__}",
            "arrays": {
                name: {"shape": list(x.shape), "dtype": x.dtype.name} for name, x in arrays.items()
            },
        }


@contextlib.contextmanager
def create(
    folder: str | os.PathLike,
    family: TaskFamily,
    *,
    description: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> Iterator[Writer]:
    """A new dataset in ``folder``, open for shards of histories of ``family``; the folder is its own until it is closed.

        with datasets.create("histories", family, resume=True) as writer:
            for shard in range(writer.num_shards, 10):
                writer.append(datasets.record(jax.random.fold_in(key, shard), ...))

    Args:
        folder: A folder that is empty or does not exist, or, with ``resume``, one with a dataset.
        family: The family of the tasks.
        description: How the histories were made: the learner, its settings, seeds. The header keeps it, and a write that
            resumes must give the same.
        resume: Go on after the last whole shard, if there is any.

    Raises:
        FileExistsError: ``folder`` is not empty and ``resume`` is off, or another process writes to it.
        DatasetError: with ``resume``, the dataset in the folder has another family or description, or is damaged.
    """
    path = checks.path("folder", folder)
    checks.instance("family", family, TaskFamily)
    checks.field("resume", resume, bool)
    if description is not None:
        checks.instance("description", description, Mapping)
    described = records.plain(description or {})
    checks.folder("folder", path)
    with claims.claimed(path):
        others = [x.name for x in path.iterdir() if x.name != claims.CLAIM_FILE]
        if others and not resume:
            raise FileExistsError(
                f"{path} is not empty: name another folder, or go on with the dataset in it by resume=True"
            )
        writer = Writer(path, family, described, 0, None)
        if (path / HEADER_FILE).exists():
            writer.header = _read_header(path)
            _check_same(path, writer.header, writer._header({}))
            writer.num_shards = len(_read_shards(path, mend=True))
        elif set(others) - {ARRAYS_FOLDER, SHARDS_FILE}:
            raise DatasetError(f"{path} holds no dataset to go on with: name another folder")
        try:
            yield writer
        finally:
            writer.closed = True


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset on disk; `load` opens one. Nothing is in memory until it is read."""

    folder: Path
    """Its folder."""
    family: TaskFamily
    """The family of its tasks."""
    header: Mapping[str, Any]
    """``dataset.json``."""
    shards: tuple[Mapping[str, str], ...]
    """The SHA-256 of each array's part, for each whole shard."""

    @property
    def num_shards(self) -> int:
        """Whole shards."""
        return len(self.shards)

    @property
    def shard_bytes(self) -> int:
        """Bytes of one shard in memory."""
        sizes = (
            np.prod(x["shape"]) * np.dtype(x["dtype"]).itemsize
            for x in self.header["arrays"].values()
        )
        return int(sum(sizes))

    @property
    def description(self) -> dict[str, Any]:
        """The identity of the data: the description, the family, and a digest of all shards."""
        digest = hashlib.sha256(json.dumps(self.shards, sort_keys=True).encode()).hexdigest()
        told = {x: records.read(self.header[x]) for x in ("family", "description")}
        return told | {"sha256": digest}

    def read(self, shards: Sequence[int] | None = None) -> Histories:
        """The histories of some shards, one after the other; None is all. Arrays are NumPy's.

        Raises:
            DatasetError: a shard is damaged; the message names it.
            TypeError: ``shards`` is no sequence.
            ValueError: there is no shard of such a number.
        """
        numbers = range(self.num_shards) if shards is None else shards
        if not isinstance(numbers, Sequence | np.ndarray):
            raise TypeError(f"shards={shards!r} must be a list of numbers of shards")
        for number in numbers:
            if not 0 <= checks.at_least("shards", number, 0) < self.num_shards:
                raise ValueError(f"shards holds {number}; there are {self.num_shards} shards")
        if not len(numbers):
            raise ValueError("shards=[] must name at least one shard")
        names = self.header["arrays"]
        parts = {x: np.concatenate([self._part(x, i) for i in numbers]) for x in names}
        return _tree(parts, self.family, self.folder)

    def verify(self) -> None:
        """Reads every shard; raises DatasetError at the first one that is damaged."""
        for number in range(self.num_shards):
            for name in self.header["arrays"]:
                self._part(name, number)

    def _part(self, name: str, shard: int) -> np.ndarray:
        """One array of one shard, compared with its SHA-256."""
        size = self.header["arrays"][name]["shape"][0]
        try:
            with _opened(self.folder, name) as store:
                part = store[shard * size : (shard + 1) * size].read().result()
            if _sha(part) != self.shards[shard][name]:
                raise ValueError("its contents do not match their SHA-256")
        except Exception as error:
            raise DatasetError(
                f"shard {shard} of {self.folder} is damaged: {name} cannot be read ({_first_line(error)}); read other "
                "shards, or write the dataset again"
            ) from error
        return part


def load(folder: str | os.PathLike, family: TaskFamily) -> Dataset:
    """The dataset in ``folder``, opened for reading. ``family`` gives the tasks their type.

    Raises:
        DatasetError: there is no dataset with a whole shard, it is damaged, or it is of another family.
    """
    path = checks.path("folder", folder)
    checks.instance("family", family, TaskFamily)
    header = _read_header(path)
    if header["family"] != (ours := _identity(family)):
        raise DatasetError(
            f"{path} holds histories of the family {header['family']}; family is {ours}"
        )
    shards = tuple(_read_shards(path))
    if not shards:
        raise DatasetError(f"{path} holds no whole shard: go on with create(..., resume=True)")
    return Dataset(path, family, header, shards)


def _identity(family: TaskFamily) -> dict[str, Any]:
    """The identity of a family: its name, its horizon, and hashes of its tasks."""
    return {
        "name": family.name,
        "horizon": family.horizon,
        "tasks": descriptions.hashes(family),
    }


def _check_of(histories: Histories, family: TaskFamily) -> None:
    """Raises DatasetError unless histories fit together and hold tasks, observations and actions of the family."""
    try:
        check(histories)
        data, batch = histories.data, histories.data.reward.shape
        num_tasks = environments.num_tasks("histories.tasks", histories.tasks, family.env)
        if num_tasks != batch[0]:
            raise ValueError(
                f"histories.tasks holds {num_tasks} tasks, and the data are of {batch[0]}"
            )
        for name, x, shape in (
            ("timestep.obs", data.timestep.obs, family.observation_shape),
            ("action", data.action, tuple(family.action_space.shape)),
        ):
            if x.shape != (*batch, *shape):
                raise ValueError(
                    f"histories.data.{name} has shape {x.shape}; with family {family.name!r} it must be {(*batch, *shape)}"
                )
    except (TypeError, ValueError) as error:
        raise DatasetError(str(error)) from error


def _named(histories: Histories) -> dict[str, np.ndarray]:
    """The arrays of histories by their names in the dataset."""
    leaves = jax.tree_util.tree_leaves_with_path(histories)
    for path, x in leaves:
        if not jnp.issubdtype(x.dtype, np.number) and x.dtype != bool:
            raise DatasetError(f"histories.{_name(path)} is {x.dtype}; it must hold numbers")
    return {_name(path): np.ascontiguousarray(jax.device_get(x)) for path, x in leaves}


def _name(path: Any) -> str:
    """``data.timestep.obs`` for the path of an array."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _tree(arrays: Mapping[str, Any], family: TaskFamily, folder: Path) -> Histories:
    """The histories of arrays by name."""

    def field(name: str) -> Any:
        return arrays[f"data.{name}"]

    leaves, structure = jax.tree_util.tree_flatten_with_path(family.env.default_params)
    names = [".".join(filter(None, ("tasks", _name(path)))) for path, _ in leaves]
    missing = [x for x in names if x not in arrays]
    if missing:
        raise DatasetError(f"{folder} has no array {missing[0]!r}, which tasks of the family have")
    of_step = [f"timestep.{x}" for x in TimeStep._fields]
    of_data = [x for x in Trajectory._fields if x not in ("timestep", "memory")]
    missing = [x for x in ("length", *(f"data.{x}" for x in of_step + of_data)) if x not in arrays]
    if missing:
        raise DatasetError(f"{folder} is damaged: {HEADER_FILE} has no array {missing[0]!r}")
    timestep = TimeStep(**{x: field(f"timestep.{x}") for x in TimeStep._fields})
    others = {x: field(x) for x in Trajectory._fields if x not in ("timestep", "memory")}
    return Histories(
        tasks=jax.tree.unflatten(structure, [arrays[x] for x in names]),
        data=Trajectory(timestep=timestep, memory=(), **others),
        length=arrays["length"],
    )


@contextlib.contextmanager
def _opened(folder: Path, name: str, metadata: dict[str, Any] | None = None) -> Iterator[Any]:
    """The array of a name, open for reading and writing; with ``metadata`` a new one."""
    import tensorstore

    # TensorStore reads some characters of a path as patterns.
    with checkpoints.plainly_named(folder.absolute()) as place:
        path = f"{place / ARRAYS_FOLDER / name}/"
        spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
        if metadata is not None:  # an interrupted write may have left one
            new = spec | {"metadata": metadata}
            yield tensorstore.open(new, create=True, delete_existing=True).result()
        else:
            yield tensorstore.open(spec, open=True).result()


def _write(folder: Path, name: str, array: np.ndarray, shard: int) -> None:
    """Writes ``array`` as chunk ``shard``; the Zarr array is made, or grows."""
    size, *rest = array.shape
    metadata = {
        "shape": [size, *rest],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.shape)}},
        "chunk_key_encoding": {"name": "default"},
        "data_type": array.dtype.name,
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 1}},
            {"name": "crc32c"},
        ],
    }
    with _opened(folder, name, metadata if shard == 0 else None) as store:
        store = store.resize(exclusive_max=[(shard + 1) * size, *rest]).result()
        store[shard * size : (shard + 1) * size].write(array).result()


def _check_like(arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """Raises DatasetError unless arrays have the shapes and types of the header."""
    ours = {x: {"shape": list(y.shape), "dtype": y.dtype.name} for x, y in arrays.items()}
    for name in sorted({*ours, *header["arrays"]}):
        here, there = ours.get(name), header["arrays"].get(name)
        if here != there:
            raise DatasetError(
                f"histories.{name} is {here}; in the shards before it is {there}: all shards are alike"
            )


def _check_same(path: Path, header: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises DatasetError unless the dataset there has our family and description."""
    for name in ("family", "description"):
        if header[name] != ours[name]:
            raise DatasetError(
                f"{path} holds a dataset of another {name}: {header[name]}, and not {ours[name]}; name another folder"
            )


def _read_header(path: Path) -> dict[str, Any]:
    """``dataset.json``; raises DatasetError unless it is whole and of this format."""
    try:
        header = json.loads((path / HEADER_FILE).read_text(encoding="utf-8"))
        for name in ("family", "description"):
            header[name]
        for array in header["arrays"].values():
            array["shape"], np.dtype(array["dtype"])
    except FileNotFoundError as error:
        raise DatasetError(f"{path} holds no dataset: it has no {HEADER_FILE}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path / HEADER_FILE} is damaged ({_first_line(error)})") from error
    if header.get("format") != FORMAT:
        raise DatasetError(
            f"{path} has format {header.get('format')!r}; this version reads {FORMAT}"
        )
    return header


def _read_shards(path: Path, *, mend: bool = False) -> list[dict[str, str]]:
    """The hashes of the whole shards. A last line without an end is of an interrupted write, and does not count.

    ``mend`` removes such a line from the file.
    """
    file = path / SHARDS_FILE
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    *lines, broken = text.split("\n")
    found = []
    for number, line in enumerate(lines):
        try:
            record = json.loads(line)
            if record["shard"] != number:
                raise ValueError(f"it is of shard {record['shard']}")
            found.append(record["sha256"])
        except (ValueError, LookupError, TypeError) as error:
            raise DatasetError(
                f"line {number + 1} of {file} is damaged ({_first_line(error)})"
            ) from error
    if mend and broken:
        records.replace(file, "".join(f"{line}\n" for line in lines))
    return found


def _append_line(path: Path, line: str) -> None:
    """Appends a line and waits until it is on the disk; a failure leaves the file as it was."""
    with path.open("ab") as file:
        end = file.tell()
        try:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            raise


def _sha(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
