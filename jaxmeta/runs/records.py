"""Strict JSON for the files of runs and studies.

JSON has no infinite numbers. They are written as the strings ``"Infinity"`` and ``"-Infinity"``,
and `read` turns these strings into floats again. A NaN among results is written as ``null``; a NaN
among settings is an error.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

INFINITIES = {"Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any, name: str = "") -> Any:
    """Settings as JSON values: dictionaries, lists, strings, finite numbers, booleans and None.

    Named tuples and dataclasses become dictionaries. Numbers and arrays of NumPy and jax become
    numbers and lists. Paths become strings, and infinite numbers become the strings of
    `INFINITIES`.

    Raises:
        TypeError, ValueError: an entry cannot be written, or would be read back differently; the
            message names it.
    """
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, np.generic | np.ndarray | jax.Array):
        value = _numbers(value, name)
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{_within(name, key)}: the key {key!r} must be a string")
        return {key: plain(x, _within(name, key)) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x, f"{name}[{i}]") for i, x in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            raise ValueError(f"{name}=nan must be a number: JSON holds no NaN")
        return _infinity(value)
    if isinstance(value, str) and value in INFINITIES:
        raise ValueError(f"{name}={value!r} would be read as a number: use another word")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{name}={value!r} is a {type(value).__name__}, which JSON does not hold: give numbers, strings, "
        "booleans, None, and lists or dictionaries of them"
    )


def read(value: Any) -> Any:
    """``value`` with the strings of `INFINITIES` as numbers: the inverse of `plain`."""
    if isinstance(value, dict):
        return {key: read(x) for key, x in value.items()}
    if isinstance(value, list):
        return [read(x) for x in value]
    return INFINITIES.get(value, value) if isinstance(value, str) else value


def measured(value: Any) -> Any:
    """Results as JSON values: as `plain`, but NaN is None, and other keys and objects become strings.

    It never raises, so that no result is lost.
    """
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif isinstance(value, np.generic | np.ndarray | jax.Array):
        with contextlib.suppress(TypeError):
            value = _numbers(value, "")
    if isinstance(value, Mapping):
        return {str(key): measured(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [measured(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else _infinity(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def dumps(content: Any, **layout: Any) -> str:
    """The strict JSON text of a result of `plain` or `measured`."""
    return json.dumps(content, allow_nan=False, **layout)


def write(path: Path, content: Any) -> None:
    """Writes ``content`` as strict JSON; the file is written completely or not at all."""
    replace(path, dumps(content, indent=2, sort_keys=True) + "\n")


def replace(path: Path, text: str) -> None:
    """Writes ``text``; the file is written completely or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _infinity(value: float) -> str:
    return next(text for text, number in INFINITIES.items() if number == value)


def _numbers(value: Any, name: str) -> Any:
    """An array as nested lists of numbers."""
    try:
        return np.asarray(value).tolist()
    except TypeError as error:  # typed keys, traced arrays
        raise TypeError(f"{name} is an array that holds no numbers ({value!r})") from error


def _within(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
