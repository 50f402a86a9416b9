"""Checks of what a user passes in: each error names the argument, its value and what would be right."""

import difflib
import math
import os
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np


def choice(name: str, value: object, choices: Iterable[str] | Iterable[int]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``, naming the nearest of them."""
    known = sorted(choices)
    if any(isinstance(value, type(x)) and value == x for x in known):
        return
    near = difflib.get_close_matches(str(value), map(str, known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"{name}={value!r} is unknown: {hint}known are {', '.join(map(repr, known))}")


def at_least(name: str, value: int, minimum: int, maximum: int = 2**31 - 1) -> None:
    """Raises unless ``value`` is an integer of at least ``minimum``, which an int32 counts to."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be an integer of at least {minimum}")
    if value < minimum:
        raise ValueError(f"{name}={value} must be at least {minimum}")
    if value > maximum:
        raise ValueError(f"{name}={value} must be at most {maximum}")


def each_at_least(name: str, values: Iterable[int], minimum: int) -> None:
    """Raises unless ``values`` is a tuple or a list of integers of at least ``minimum``."""
    if not isinstance(values, tuple | list):
        raise TypeError(f"{name}={values!r} must be a tuple of integers of at least {minimum}")
    for value in values:
        at_least(name, value, minimum)


def some(name: str, values: Iterable[Any]) -> None:
    """Raises ValueError where ``values`` are none at all."""
    if not list(values):
        raise ValueError(f"{name}={values!r} must hold at least one")


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


def shapes(expected: str, /, **arrays: Any) -> None:
    """Raises unless the ``arrays`` have the ``expected`` shapes: a word for each, in order, or one for all of them.

    A letter is an axis, of the same size wherever it stands, and a digit one of that size: ``"NTF NT"``. ``...`` are
    any number of axes, the same wherever they stand. A word that ends in ``?`` may also be a number, or of
    shape ``[]``; ``?`` alone must be. Only shapes are looked at, so arguments may be traced. Without it an array of
    one axis too many or of size 1 is broadcast, and the result is of something else than was asked.
    """
    words = expected.split()
    known: dict[str, tuple[Any, str]] = {}  # an axis: its size, and the first argument that has it
    for word, (name, array) in zip(
        words * len(arrays) if len(words) == 1 else words, arrays.items(), strict=True
    ):
        axes, or_scalar = re.findall(r"\.{3}|\w", word), word.endswith("?")
        wanted = " or ".join([f"[{', '.join(axes)}]"] * (word != "?") + ["a scalar"] * or_scalar)
        number = isinstance(array, int | float) and not isinstance(array, bool)
        if not hasattr(array, "shape") and not (or_scalar and number):
            raise TypeError(f"{name} is {_short(array)}; it must be {wanted}")
        sizes = shape = tuple(np.shape(array))
        if or_scalar and not shape:
            continue
        if "..." in axes and len(shape) >= len(axes) - 1:
            at, end = axes.index("..."), len(shape) - len(axes) + axes.index("...") + 1
            sizes = (*shape[:at], shape[at:end], *shape[end:])
        if len(sizes) != len(axes):
            raise ValueError(f"{name} has shape {shape}; it must be {wanted}")
        for axis, size in zip(axes, sizes, strict=True):
            right, where = known.setdefault(axis, (int(axis) if axis.isdigit() else size, name))
            if size != right:
                raise ValueError(
                    f"{name} has shape {shape}; it must be {wanted}, {axis} = {right} as in {where}"
                )


def _short(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def numbers(expected: str, /, **values: Any) -> list[np.ndarray]:
    """The ``values`` as arrays of float64, of the ``expected`` shapes (see `shapes`)."""
    arrays = {}
    for name, value in values.items():
        try:
            array = np.asarray(value)
        except ValueError:  # rows of several lengths
            array = np.asarray(None)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} is {_short(value)}; it must be an array of numbers")
        arrays[name] = array.astype(np.float64)
    shapes(expected, **arrays)
    return list(arrays.values())


def alike(**trees: Any) -> None:
    """Raises ValueError unless all ``trees`` have the structure of the first, and its shapes leaf by leaf."""
    (first, tree), *others = trees.items()
    for name, other in others:
        here, there = str(jax.tree.structure(tree)), str(jax.tree.structure(other))
        if here != there:
            raise ValueError(
                f"{name} has the structure {there}; it must be that of {first}, {here}"
            )
        for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
            if np.shape(x) != np.shape(y):
                raise ValueError(
                    f"{name} has a leaf of shape {np.shape(y)}; in {first} it is {np.shape(x)}"
                )


def fields(settings: Any) -> None:
    """Raises unless every field of a dataclass is of the type that it is annotated with, and no number is NaN.

    Lists may stand for tuples, and what is in a mapping is not looked at.
    """
    for name, kind in typing.get_type_hints(type(settings)).items():
        field(name, getattr(settings, name), kind)


def field(name: str, value: Any, kind: Any) -> None:
    """Raises unless ``value`` is of the type ``kind`` (see `fields`)."""
    if typing.get_origin(kind) is Literal:
        choice(name, value, typing.get_args(kind))
    elif not _is_a(value, kind):
        told = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else kind
        raise TypeError(f"{name}={value!r} must be of type {told}")
    numbers = value if isinstance(value, tuple | list) else [value]
    if any(isinstance(x, float) and math.isnan(x) for x in numbers):
        raise ValueError(f"{name}={value!r} must not be NaN")


def _is_a(value: Any, kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_is_a(value, x) for x in arguments)
    if origin is tuple and arguments[1:] == (...,):
        return isinstance(value, tuple | list) and all(_is_a(x, arguments[0]) for x in value)
    if kind in (int, float):
        return not isinstance(value, bool) and isinstance(
            value, int if kind is int else int | float
        )
    kind = origin or kind
    return isinstance(value, kind) if isinstance(kind, type) else True


def hyper(values: Any, **ranges: tuple[float, float]) -> None:
    """Checks the fields of an algorithm's ``Hyper`` that are plain numbers against ``name=(low, high)``; traced ones are
    the caller's, if they are scalars. The fields that several share are known."""
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
        if hasattr(value, "shape") and not isinstance(value, float):
            shapes("?", **{name: value})
        else:
            between(name, value, *(known | ranges)[name])
