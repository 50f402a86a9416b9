"""Interrupts that wait until a run's state can be saved."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

START_AGAIN = 75
"""The exit code of a run that was stopped by SIGTERM, EX_TEMPFAIL of sysexits.h: start the same command again."""


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal, after its checkpoint was saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        """The code to end the program with: `START_AGAIN` after SIGTERM, 130 after SIGINT."""


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Callable[[], int | None]]:
    """Delays a first SIGINT or SIGTERM; yields a function that tells which one has arrived, if any.

    The compiled call in flight owns the state, so it must end before the state can be saved.
    """
    noted: list[int] = []

    def first() -> int | None:
        return noted[0] if noted else None

    if threading.current_thread() is not threading.main_thread():
        yield first
        return

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        if len(noted) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield first
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
