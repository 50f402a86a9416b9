"""Checkpoints of a run, by orbax, with what orbax leaves open: is this file whole, and is it ours?

A checkpoint holds the run's arrays and a JSON record: the description of the run that made it and a
SHA-256 of the arrays. Restoring compares both before anything is compiled. No code is loaded from a
checkpoint: arrays and JSON only.
"""

import contextlib
import hashlib
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

from jaxmeta.runs import records

FORMAT = 1


PLAIN_PATH = re.compile(r"[\w/.-]*", re.ASCII)
"""Paths that orbax and TensorStore read as they are. Both read ``[``, ``\\`` and ``gs:`` as patterns or protocols."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names it and says what to do."""


@contextlib.contextmanager
def open_manager(folder: Path, *, keep: int = 3) -> Iterator[ocp.CheckpointManager]:
    """A manager of the checkpoints below ``folder``, of which the last ``keep`` stay.

    Raises CheckpointError where the name of the folder cannot be made one that orbax reads as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False, create=True
    )
    with (
        _plainly_named(folder.absolute()) as path,
        ocp.CheckpointManager(path, options=options) as manager,
    ):
        yield manager


@contextlib.contextmanager
def _plainly_named(folder: Path) -> Iterator[Path]:
    """A path to ``folder`` of letters, digits, dots and dashes: its own, or a link for the time being."""
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
        link = around / "checkpoints"
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
    """Saves the pytree ``run`` as step ``step``; does nothing where that step is there already.

    Raises CheckpointError where it cannot be written or be read back; checkpoints before it are as they were.
    """
    if step in manager.all_steps():
        return
    record: dict[str, Any] = {
        "format": FORMAT,
        "description": dict(description),
        "arrays": arrays(run),
        "sha256": digest(run),
    }
    args = ocp.args.Composite(run=ocp.args.StandardSave(run), record=ocp.args.JsonSave(record))
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
        target: A pytree of ``jax.ShapeDtypeStruct`` as the run must be.
        description: Of the run that resumes; it must equal the saved one.
        ignore: Dotted names in the description that may differ.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another run.
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
        try:
            args = ocp.args.Composite(record=ocp.args.JsonRestore())
            record = manager.restore(step, args=args)["record"]
            saved, kept, sha256 = record["description"], record["arrays"], record["sha256"]
        except Exception as error:
            raise CheckpointError(
                f"{path} is not a checkpoint of this library, or it is damaged ({_first_line(error)}); "
                + advice
            ) from error
        if record.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {record.get('format')!r}, this version reads {FORMAT}; {advice}"
            )
        different = [
            f"{name} is {ours!r} and was {theirs!r}"
            for name, ours, theirs in differences(
                dict(description), records.plain(records.read(saved))
            )
            if not name.startswith(ignore or ("\0",))
        ]
        if different:
            raise CheckpointError(
                f"{path} is a checkpoint of another run: {'; '.join(different)}. Resume with the "
                "settings it was made with, or use another folder"
            )
        different = [
            f"{name} is {ours} and was {theirs}"
            for name, ours, theirs in differences(arrays(target), kept)
        ]
        if different:
            raise CheckpointError(
                f"{path} is a checkpoint of another program: {'; '.join(different[:3])}. Resume with "
                "the policy, the optimiser and the floating-point precision it was made with"
            )
        # Onto one device, whatever it was saved from; the caller spreads it.
        sharding = SingleDeviceSharding(jax.local_devices()[0])
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), target
        )
        try:
            args = ocp.args.Composite(run=ocp.args.StandardRestore(placed))
            run = manager.restore(step, args=args)["run"]
        except Exception as error:
            raise CheckpointError(f"{path} is damaged ({_first_line(error)}); {advice}") from error
    # orbax casts where types differ, without a word.
    if arrays(run) != kept or digest(run) != sha256:
        raise CheckpointError(
            f"{path} is damaged (its contents do not match their checksum); {advice}"
        )
    return step, run


def digest(tree: Any) -> str:
    """SHA-256 over the paths, types and bytes of a pytree of arrays (typed keys included)."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        array = np.ascontiguousarray(np.asarray(data))
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def arrays(tree: Any) -> dict[str, str]:
    """Path of each leaf to its type and shape; Python's numbers are of jax's types."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(
            path
        ): f"{getattr(x, 'dtype', None) or jnp.result_type(x)}{list(np.shape(x))}"
        for path, x in leaves
    }


def differences(ours: Any, theirs: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Where two nested mappings differ: ``(dotted name, ours, theirs)``, with None for what is not there."""
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
    """Where a step is, by the folder's own name."""
    return Path(manager.directory).resolve() / str(step)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
