"""Checkpoints of a run: orbax, with checks that a checkpoint is whole and belongs to the run.

A checkpoint holds the run's arrays and a JSON record with the run's description and a SHA-256 of
the arrays. Restoring compares both before anything is compiled. A checkpoint holds arrays and JSON
only, so loading it executes no code.
"""

import contextlib
import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from jaxmeta.runs import descriptions, records
from jaxmeta.tasks.keys import words

FORMAT = 1


PLAIN_PATH = re.compile(r"[\w/.-]*", re.ASCII)
"""Paths that orbax and TensorStore read as they are. Both read ``[``, ``\\`` and ``gs:`` as
patterns or protocols."""


LEFTOVERS = ("Metadata file does not exist", "already exists. Removing existing directory")
"""The warnings of orbax about checkpoints that a killed process was writing or deleting; it deals with them itself."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the checkpoint and says what to do."""


@contextlib.contextmanager
def open_manager(folder: Path, *, keep: int = 3) -> Iterator[ocp.CheckpointManager]:
    """A manager of the checkpoints below ``folder`` that keeps the last ``keep``.

    Raises CheckpointError if orbax would misread the folder's name and no link to it can be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False, create=True
    )
    with (
        _without_leftovers(logging.getLogger("absl")),
        plainly_named(folder.absolute()) as path,
        ocp.CheckpointManager(path, options=options) as manager,
    ):
        yield manager


@contextlib.contextmanager
def _without_leftovers(log: logging.Logger) -> Iterator[None]:
    """A context in which ``log`` says nothing of `LEFTOVERS`."""

    def matters(record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in LEFTOVERS)

    log.addFilter(matters)
    try:
        yield
    finally:
        log.removeFilter(matters)


@contextlib.contextmanager
def plainly_named(folder: Path) -> Iterator[Path]:
    """A path to ``folder`` of letters, digits, dots and dashes: its own, or a temporary link to it.

    Raises CheckpointError if no such link can be made.
    """
    if PLAIN_PATH.fullmatch(str(folder)):
        yield folder
        return
    there = next(
        (
            x
            for x in (tempfile.gettempdir(), "/tmp")
            if PLAIN_PATH.fullmatch(str(Path(x).absolute()))
        ),
        None,
    )
    try:
        around = Path(tempfile.mkdtemp(prefix="jaxmeta-", dir=there))
        link = around / "folder"
        link.symlink_to(folder, target_is_directory=True)
        if not PLAIN_PATH.fullmatch(str(link)):
            raise OSError(f"{around} is no plain name")
    except OSError as error:
        odd = sorted(set(PLAIN_PATH.sub("", str(folder))))
        raise CheckpointError(
            f"folder={str(folder)!r} holds {', '.join(map(repr, odd))}, and no link with a plain name can be made to "
            f"it ({error}): name a folder of letters, digits, '.', '-' and '_'"
        ) from error
    try:
        yield link
    finally:
        shutil.rmtree(around, ignore_errors=True)


def save(
    manager: ocp.CheckpointManager, step: int, run: Any, description: Mapping[str, Any]
) -> None:
    """Saves the pytree ``run`` as step ``step``, unless there is a checkpoint of that step already.

    Raises CheckpointError if the checkpoint cannot be written or read back. Earlier checkpoints
    stay as they are.
    """
    if step in manager.all_steps():
        return
    record: dict[str, Any] = {
        "format": FORMAT,
        "description": dict(description),
        "arrays": arrays(run),
        "sha256": digest(run),
    }
    stored = ocp.args.StandardSave(_stored(run))
    args = ocp.args.Composite(run=stored, record=ocp.args.JsonSave(record))
    try:
        manager.save(step, args=args)
        manager.wait_until_finished()
    except Exception as error:
        raise CheckpointError(
            f"{_place(manager, step)} could not be written ({_first_line(error)}); make room, then "
            "resume from the checkpoint before it, or, if there is none, begin again in an empty folder"
        ) from error
    try:
        manager.reload()
        back: Any = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
        there: Any = manager.item_metadata(step)  # opens every array
        if back["record"] != record or step not in manager.all_steps():
            raise ValueError("it is another one")
        if len(jax.tree.leaves(there["run"])) != len(record["arrays"]):
            raise ValueError("arrays are missing")
    except Exception as error:
        raise CheckpointError(
            f"{_place(manager, step)} was written and cannot be read back ({_first_line(error)}); name another folder"
        ) from error


def restore(
    folder: Path, target: Any, description: Mapping[str, Any], *, ignore: tuple[str, ...] = ()
) -> tuple[int, Any]:
    """The newest checkpoint below ``folder``: ``(step, run)``.

    Args:
        folder: Where `open_manager` keeps its checkpoints.
        target: The run's pytree with a ``jax.ShapeDtypeStruct`` for each array.
        description: The description of the run that resumes; it must equal the saved one.
        ignore: Dotted names in the description that may differ.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it belongs to another run.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} does not exist: there is nothing to resume; leave --resume out"
        )
    with open_manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            raise CheckpointError(f"{folder} holds no finished checkpoint to resume from")
        path = folder / str(step)
        advice = f"remove {path} to resume from the checkpoint before it, or start again in an empty folder"
        record = _read_record(manager, step, path, advice)
        _check_same_run(path, description, record["description"], ignore)
        _check_same_arrays(path, target, record["arrays"])
        try:
            run = _read_run(manager, step, target)
        except Exception as error:
            raise CheckpointError(f"{path} is damaged ({_first_line(error)}); {advice}") from error
    # orbax casts silently where types differ.
    if arrays(run) != record["arrays"] or digest(run) != record["sha256"]:
        raise CheckpointError(
            f"{path} is damaged (its contents do not match their checksum); {advice}"
        )
    return step, run


def _read_record(
    manager: ocp.CheckpointManager, step: int, path: Path, advice: str
) -> dict[str, Any]:
    """The JSON record of a step; raises CheckpointError unless it is whole and of this format."""
    try:
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        record: dict[str, Any] = manager.restore(step, args=args)["record"]
        for name in ("description", "arrays", "sha256"):
            record[name]
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of this library, or it is damaged ({_first_line(error)}); "
            + advice
        ) from error
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {record.get('format')!r}, this version reads {FORMAT}; {advice}"
        )
    return record


def _check_same_run(
    path: Path, description: Mapping[str, Any], saved: Any, ignore: tuple[str, ...]
) -> None:
    """Raises CheckpointError unless the description equals the ``saved`` one, names in ``ignore`` apart."""
    before = records.plain(records.read(saved))
    different = [
        descriptions.difference(name, ours, theirs)
        for name, ours, theirs in differences(descriptions.comparable(description, before), before)
        if not name.startswith(ignore or ("\0",))
    ]
    if different:
        raise CheckpointError(
            f"{path} is a checkpoint of another run: {'; '.join(different)}. Resume with the "
            "settings it was made with, or use another folder"
        )


def _check_same_arrays(path: Path, target: Any, saved: Mapping[str, str]) -> None:
    """Raises CheckpointError unless ``target`` has the types and shapes of the ``saved`` arrays."""
    different = [
        f"{name} is {ours} and was {theirs}"
        for name, ours, theirs in differences(arrays(target), saved)
    ]
    if different:
        raise CheckpointError(
            f"{path} is a checkpoint of another program: {'; '.join(different[:3])}. Resume with "
            "the policy, the optimiser and the floating-point precision it was made with"
        )


def _read_run(manager: ocp.CheckpointManager, step: int, target: Any) -> Any:
    """The arrays of a step on one device, whatever devices saved them; the caller spreads them."""
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _stored(target)
    )
    args = ocp.args.Composite(run=ocp.args.StandardRestore(placed))
    run = manager.restore(step, args=args)["run"]
    return target._replace(**run) if isinstance(run, dict) else run


def _stored(run: Any) -> Any:
    """``run`` without those of its fields that are ``()``.

    A field that a later version adds is not in older checkpoints, and orbax refuses a tree with one more.
    """
    fields = {name: getattr(run, name) for name in getattr(run, "_fields", ())}
    full = {name: x for name, x in fields.items() if not (isinstance(x, tuple) and not x)}
    return run if len(full) == len(fields) else full


def digest(tree: Any) -> str:
    """SHA-256 over the paths, types and bytes of a pytree of arrays (typed keys included)."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(np.asarray(words(leaf)))
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def arrays(tree: Any) -> dict[str, str]:
    """Type and shape of each leaf by its path; Python's numbers have jax's types."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(
            path
        ): f"{getattr(x, 'dtype', None) or jnp.result_type(x)}{list(np.shape(x))}"
        for path, x in leaves
    }


def differences(ours: Any, theirs: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Differences of two nested mappings: ``(dotted name, ours, theirs)``, None for an entry that is missing."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = sorted({*ours, *theirs})
        prefix = f"{name}." if name else ""
        return [
            difference
            for key in keys
            for difference in differences(ours.get(key), theirs.get(key), f"{prefix}{key}")
        ]
    return [] if ours == theirs else [(name, ours, theirs)]


def _place(manager: ocp.CheckpointManager, step: int) -> Path:
    """The path of a step by the folder's own name, not a link's."""
    return Path(manager.directory).resolve() / str(step)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
