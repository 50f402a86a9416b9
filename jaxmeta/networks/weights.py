"""Parameters of networks from files that other programs wrote."""

import os
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import jax.numpy as jnp
import numpy as np

from jaxmeta import checks


def read_arrays(
    name: str, path: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file, by their names, in the order of ``shapes``; nothing in the file is executed.

    Args:
        name: The argument that gave the path, for messages.
        path: The file, as ``numpy.savez`` writes it.
        shapes: The arrays that it must hold, with their shapes.

    Raises:
        ValueError: it is no such file, is damaged, or lacks an array, has one too many, or one of another shape, of numbers
            that are not floating-point, or with numbers that are not finite. The message names the file and the array.
        OSError: there is no such file, or it cannot be read.
    """
    place = checks.path(name, path)
    here = f"{name}={str(place)!r}"
    if place.is_dir():
        raise IsADirectoryError(f"{here} is a folder; name an .npz file")
    if not place.exists():
        raise FileNotFoundError(f"{here} does not exist; name an .npz file")
    with place.open("rb") as stream, _opened(here, stream) as file:
        missing = sorted(shapes.keys() - set(file.files))
        if missing:
            raise ValueError(
                f"{here} lacks the array {missing[0]!r} and {len(missing) - 1} more of {len(shapes)}: it holds other "
                "parameters"
            )
        unknown = sorted(set(file.files) - shapes.keys())
        if unknown:
            raise ValueError(
                f"{here} holds the array {unknown[0]!r}, which is none of the {len(shapes)} that are read: it holds other "
                "parameters"
            )
        return {array: _read(here, file, array, shape) for array, shape in shapes.items()}


def _opened(here: str, stream: BinaryIO) -> np.lib.npyio.NpzFile:
    try:
        file = np.load(stream, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{here} is no .npz file, or is damaged: {_first_line(error)}") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"{here} holds a single array; it must be an .npz file with named ones")
    return file


def _read(here: str, file: np.lib.npyio.NpzFile, array: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        x = file[array]
        if not isinstance(x, np.ndarray):
            raise ValueError("it is no array")
    except Exception as error:  # what a damaged archive raises depends on where the damage is
        raise ValueError(
            f"{here}: the array {array!r} cannot be read ({_first_line(error)}); get the file again"
        ) from error
    if x.shape != shape:
        raise ValueError(f"{here}: the array {array!r} has shape {x.shape}; it must be {shape}")
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"{here}: the array {array!r} has the type {x.dtype}; it must be of floating-point numbers"
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(x.astype(jnp.result_type(float)))
    if not np.all(finite):
        raise ValueError(
            f"{here}: the array {array!r} holds a number that is not finite, or not as {jnp.result_type(float)}"
        )
    return x


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
