"""Checks of what a user passes in: each error names the argument, its value and what would be right."""

import difflib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``, naming the nearest of them."""
    known = sorted(choices)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"{name}={value!r} is unknown: {hint}known are {', '.join(map(repr, known))}")


def at_least(name: str, value: int, minimum: int) -> None:
    """Raises unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be an integer of at least {minimum}")
    if value < minimum:
        raise ValueError(f"{name}={value} must be at least {minimum}")


def between(name: str, value: float, low: float, high: float) -> None:
    """Raises unless ``value`` is a number with ``low <= value <= high``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} must be a number between {low} and {high}")
    if not low <= value <= high:
        raise ValueError(f"{name}={value} must lie between {low} and {high}")


def folder(name: str, value: Path) -> None:
    """Raises OSError unless there is a folder ``value`` to write to, or one can be made there."""
    there = value.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"{name}={str(value)!r}: {there} is a file; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{name}={str(value)!r}: {there} may not be written to; name another folder"
        )


def missing(what: str, extra: str) -> ImportError:
    """The error to raise where the package ``what`` is not installed."""
    return ImportError(f'{what} is missing: pip install "jaxmeta[{extra}]"')


def core(name: str, value: int | None) -> None:
    """Raises ValueError unless a process can be pinned to core ``value``; None, which pins none, always is right."""
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if value is not None and value not in there:
        cores = f"one of {', '.join(map(str, there))} or " if there else ""
        raise ValueError(f"{name}={value!r} must be {cores}None")


def hyper(values: Any, **ranges: tuple[float, float]) -> None:
    """Checks the fields of an algorithm's ``Hyper`` that are plain numbers against ``name=(low, high)``; traced ones are
    the caller's. The fields that several share are known."""
    known = {
        "discount": (0, 1),
        "gae_lambda": (0, 1),
        "step_size": (-1e6, 1e6),
        "learning_rate": (0, 1e6),
        "max_grad_norm": (1e-12, math.inf),
        "anneal_updates": (1, math.inf),
        "clip": (1e-6, math.inf),
        "entropy_cost": (0, math.inf),
        "value_cost": (0, math.inf),
        "kl_cost": (0, math.inf),
    }
    for name, value in values._asdict().items():
        if isinstance(value, int | float):
            between(name, value, *(known | ranges)[name])
