"""Text on any terminal: an output that fails never ends a run.

A standard stream may lack characters, be closed, be missing, be a replacement with a ``write``
only, or be a pipe without a reader.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN = str.maketrans({"→": "->", "×": "x", "–": "-", "━": "-", "…": "...", "²": "2"})
"""Replacements for characters that a stream cannot encode; any other such character becomes "?"."""


class Stream:
    """A stream that accepts any text and never raises. After a failed write it stays silent."""

    def __init__(self, file: Any) -> None:
        self._file = file

    @property
    def encoding(self) -> str:
        """Encoding of the stream; ASCII if it names none."""
        return getattr(self._file, "encoding", None) or "ascii"

    def write(self, text: str) -> int:
        self._try(lambda: self._write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: getattr(self._file, "flush", lambda: None)())

    def isatty(self) -> bool:
        try:
            return bool(self._file.isatty())
        except Exception:
            return False

    def fileno(self) -> int:
        try:
            return self._file.fileno()
        except Exception as error:
            raise OSError("no file descriptor") from error

    def _write(self, text: str) -> None:
        for shown in (text, held(text, self.encoding), held(text, "ascii")):
            with contextlib.suppress(UnicodeEncodeError):
                self._file.write(shown)
                return

    def _try(self, action: Callable[[], object]) -> None:
        if self._file is None:
            return
        try:
            action()
        except Exception as error:
            if isinstance(
                error, BrokenPipeError
            ):  # else the interpreter would write again at its exit
                with contextlib.suppress(Exception):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())
            self._file = None


def console(name: Literal["stdout", "stderr"], *, quiet: bool = False) -> Console:
    """A Rich console on a standard stream of any kind."""
    file = Stream(getattr(sys, name))
    # In a notebook Rich would need ipywidgets, or print escape codes.
    return Console(
        file=file,  # type: ignore[arg-type]
        force_jupyter=False,
        force_terminal=file.isatty(),
        quiet=quiet,
    )


def say(text: str, name: Literal["stdout", "stderr"] = "stdout") -> None:
    """Prints ``text`` and a newline on a standard stream."""
    stream = Stream(getattr(sys, name))
    stream.write(text + "\n")
    stream.flush()


def held(text: str, encoding: str) -> str:
    """``text`` with replacements for characters that ``encoding`` lacks."""

    def character(x: str) -> str:
        try:
            x.encode(encoding)
        except (UnicodeError, LookupError):
            return x.translate(PLAIN).encode("ascii", "replace").decode()
        return x

    return "".join(map(character, text))


@contextlib.contextmanager
def progress(shown_on: Console, done: int, total: int, status: str) -> Iterator["Line"]:
    """A progress line of meta-updates, for the caller to update."""
    bar = Progress(
        TextColumn("meta-update"),
        MofNCompleteColumn(),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[status]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=shown_on,
        auto_refresh=False,  # errors of a refresh thread could not be caught
    )
    streams = sys.stdout, sys.stderr
    line = Line(bar)
    line.attempt(bar.start)
    line.attempt(lambda: bar.add_task("", total=total, completed=done, status=status))
    try:
        yield line
    finally:
        with contextlib.suppress(Exception, SystemExit):
            bar.stop()
        # Rich replaces the standard streams meanwhile, and leaves its replacements if it fails to
        # stop.
        if isinstance(sys.stdout, FileProxy):
            sys.stdout = streams[0]
        if isinstance(sys.stderr, FileProxy):
            sys.stderr = streams[1]


class Line:
    """A progress line. After the first failure it shows nothing more."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._on = True

    def attempt(self, action: Callable[[], object]) -> None:
        """Calls ``action``; an exception turns the line off."""
        if not self._on:
            return
        try:
            action()
        except (Exception, SystemExit):  # Rich exits the program on a broken pipe
            self._on = False

    def update(self, done: int, status: str) -> None:
        """Shows the number of meta-updates done and a status."""
        row = self._bar.task_ids[0] if self._bar.task_ids else None
        if row is not None:
            self.attempt(lambda: self._bar.update(row, completed=done, status=status, refresh=True))

    def say(self, text: str) -> None:
        """Prints a line above the progress line."""
        self.attempt(lambda: self._bar.console.print(text, highlight=False))
