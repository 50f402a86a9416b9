"""Claims: a folder belongs to one run at a time.

A claim is a file that names the process and the machine that work in the folder. It is created
exclusively, so only one of several processes gets it. A claim whose process has ended is stale, and
the next run takes it over.
"""

import contextlib
import datetime
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLAIM_FILE = "claim.json"

UNFINISHED: dict[str, Any] = {}
"""The claim of a process that ended between creating the file and writing it."""

PATIENCE = 2.0
"""Seconds within which a living process writes the claim that it has created."""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[dict[str, Any] | None]:
    """Claims ``folder`` and releases it at the end; yields the stale claim that was taken over, or None.

    The folder is made if it does not exist. Folders that were made here and are empty at the end
    are removed.

    Raises:
        FileExistsError: another run holds the folder, or may hold it; the message names the run.
    """
    folder = folder.absolute()
    made = [x for x in (folder, *folder.parents) if not x.exists()]
    path, mine = folder / CLAIM_FILE, _mine()
    try:
        yield _acquire(path, mine)
    finally:
        with contextlib.suppress(OSError):
            if _read(path) == mine:
                path.unlink()
            for parent in made:
                parent.rmdir()


def holder(claim: dict[str, Any]) -> str:
    """The process that made a claim, in words."""
    if claim == UNFINISHED:
        return "a process that ended while it began"
    return f"process {claim['process']} on {claim['host']}, since {claim['since']}"


def _acquire(path: Path, mine: dict[str, Any]) -> dict[str, Any] | None:
    """Writes the claim ``mine`` to ``path`` exclusively; returns the stale claim that it replaced, or None."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileNotFoundError:  # the previous run removed the folder that it had made
            continue
        except FileExistsError:
            pass
        else:
            try:
                with os.fdopen(file, "w", encoding="utf-8") as opened:
                    opened.write(json.dumps(mine))
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            if _read(path) == mine:  # else another process took it for an unfinished claim
                return None
        there = _read(path)
        if there is None:  # released since
            continue
        if there != UNFINISHED and not _ended(there, path):
            raise FileExistsError(
                f"{path.parent} is held by another run ({holder(there)}): name another folder, or wait for its end"
            )
        # Only the holder of a second claim may replace the first, and only if the first has not
        # changed since it was found stale. The second claim may be stale too.
        second = path.with_name(path.name + ".next")
        _acquire(second, mine)
        if _read(path) == there:
            second.replace(path)
            return there
        second.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """The claim at ``path``, or None."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (IsADirectoryError, UnicodeDecodeError):
            text = "no claim"
        if text:
            break
        if time.monotonic() > end:
            return UNFINISHED
        time.sleep(0.02)
    with contextlib.suppress(ValueError):
        claim = json.loads(text)
        if isinstance(claim, dict) and claim.keys() == _mine().keys():
            return claim
    raise FileExistsError(f"{path} is not a claim of a run: name another folder, or remove it")


def _ended(claim: dict[str, Any], path: Path) -> bool:
    """Whether the process of a claim has ended.

    Raises FileExistsError if this process cannot find out.
    """
    here = _mine()
    if all(claim[name] == here[name] for name in ("host", "boot", "processes")):
        return _start(claim["process"]) not in (claim["start"], "")
    same_machine = all(claim[name] == here[name] != "" for name in ("host", "machine"))
    if same_machine and claim["boot"] != here["boot"]:  # the machine has been restarted since
        return True
    raise FileExistsError(
        f"{path.parent} is held by another run ({holder(claim)}), and {here['host']} cannot see whether that process "
        f"lives: name another folder, or, if it has ended, remove {path}"
    )


def _mine() -> dict[str, Any]:
    """A new claim of this process."""
    return {
        "host": socket.gethostname(),
        "machine": _line("/etc/machine-id"),
        "boot": _line("/proc/sys/kernel/random/boot_id"),
        "processes": _link(
            "/proc/self/ns/pid"
        ),  # containers of one host number their processes separately
        "process": os.getpid(),
        "start": _start(os.getpid()),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "token": secrets.token_hex(8),  # distinguishes two claims of one process
    }


def _start(process: int) -> str | None:
    """The start time of a process as the kernel writes it; None if there is no such process, "" if it is unknown."""
    if os.name == "posix":
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
    # The name in parentheses may contain any characters. The state, 18 numbers and then the start
    # time follow it.
    words = _line(f"/proc/{process}/stat").rpartition(")")[2].split()
    if not words:
        return ""
    return None if words[0] in "ZX" else words[19]


def _line(path: str) -> str:
    """The text of a file; "" if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    """The target of a link; "" if it cannot be read."""
    try:
        return os.readlink(path)
    except OSError:
        return ""
