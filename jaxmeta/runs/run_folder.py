"""The folder of a run: who holds it, and the files in it.

``config.json`` is the run's description, ``metrics.jsonl`` has a line for each meta-update, and ``checkpoints`` holds
the newest checkpoints. Only process 0 writes the first two.
"""

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from orbax.checkpoint import CheckpointManager

from jaxmeta.runs import checkpoints, claims, processes, records

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.json"
CHECKPOINT_FOLDER = "checkpoints"


class Files(NamedTuple):
    """The open files of a run's folder."""

    manager: CheckpointManager
    """The checkpoints."""
    metrics: TextIO | None
    """``metrics.jsonl``; None in all processes but process 0."""
    described: Mapping[str, Any]
    """The run's description, which every checkpoint holds."""

    def append(self, lines: list[dict]) -> None:
        """Appends lines to ``metrics.jsonl``."""
        if self.metrics is not None:
            _append(self.metrics, "".join(records.dumps(x, sort_keys=True) + "\n" for x in lines))

    def save(self, done: int, run: Any) -> None:
        """Writes the checkpoint after ``done`` meta-updates."""
        checkpoints.save(self.manager, done, run, self.described)


@contextlib.contextmanager
def opened(output: Path, done: int, run: Any, described: Mapping[str, Any]) -> Iterator[Files]:
    """The files of a run's folder, with ``config.json`` and the first checkpoint written."""
    with contextlib.ExitStack() as stack:
        if processes.is_main_process():
            records.write(output / CONFIG_FILE, described)
        manager = stack.enter_context(checkpoints.open_manager(output / CHECKPOINT_FOLDER))
        checkpoints.save(manager, done, run, described)
        metrics = None
        if processes.is_main_process():
            path = output / METRICS_FILE
            cut_metrics(path, done)
            metrics = stack.enter_context(path.open("a", encoding="utf-8"))
        yield Files(manager, metrics, described)


@contextlib.contextmanager
def owned(folder: Path, resume: bool) -> Iterator[None]:
    """Holds the folder for this run: claimed, and empty unless the run resumes.

    A run that ends before its first checkpoint leaves no files in the folder.
    """
    if resume and not folder.is_dir():  # nothing to claim; restoring raises the error
        yield
        return
    with contextlib.ExitStack() as stack:

        def refuse_if_full() -> None:
            if any(x.name != claims.CLAIM_FILE for x in folder.iterdir()):
                raise FileExistsError(
                    f"{folder} is not empty: name another folder, or resume the run that is in it"
                )

        def claim() -> None:
            # Before claiming, refuse a full folder without a claim: if this process were killed,
            # its stale claim would mark a user's own files as a run's, and the next run would
            # remove them.
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
    """Removes the files of a run that ended before its first checkpoint; keeps all files if there is a checkpoint."""
    kept = folder / CHECKPOINT_FOLDER
    if kept.is_dir() and any(x.name.isdigit() for x in kept.iterdir()):
        return
    shutil.rmtree(kept, ignore_errors=True)
    for name in (CONFIG_FILE, METRICS_FILE):
        for path in (folder / name, folder / f"{name}.tmp"):
            path.unlink(missing_ok=True)


def _append(file: TextIO, text: str) -> None:
    """Appends and flushes; an OSError says what to do."""
    try:
        file.write(text)
        file.flush()
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}; make room, then resume from the last checkpoint, which is whole",
            file.name,
        ) from error


def cut_metrics(path: Path, done: int) -> None:
    """Drops lines after meta-update ``done``, which are computed again, and lines that a crash left broken."""
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, LookupError, TypeError):
                if json.loads(line)["update"] <= done:
                    kept.append(line + "\n")
    records.replace(path, "".join(kept))
