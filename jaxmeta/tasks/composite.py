"""Spaces of several parts: `MultiDiscrete` actions, and observations in a `Dict`, a `Tuple` or a `MultiDiscrete`.

Inside of the library an observation is one array. An observation of several parts is flattened in one order:

| space | entries of the flat observation |
|---|---|
| `Box` | its numbers, row by row |
| `Discrete(n)` | n entries, one-hot |
| `MultiDiscrete(sizes)` | one-hot, part after part |
| `Tuple` | its parts in their order |
| `Dict` | its parts in the alphabetical order of their names |

`flatten` does it, and `unflatten` gives a network of your own the parts back. A `Discrete` or a `Box` that stands alone is
left as it is: a number, or an array of the space's shape.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxmeta import checks
from jaxmeta.tasks import boxes


class MultiDiscrete(spaces.Box):
    """Several choices at once: integers ``[D]``, of which entry i lies in 0 .. ``sizes[i]`` - 1.

    It is a `Box` of integers. Policies draw the D choices independently of each other.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = checks.each_at_least("sizes", sizes, 1)
        checks.some("sizes", self.sizes)
        high = np.asarray(self.sizes, np.int32) - 1
        super().__init__(np.zeros_like(high), high, high.shape, jnp.int32)

    def __repr__(self) -> str:
        return f"MultiDiscrete({self.sizes})"


def is_composite(space: Any) -> bool:
    """Whether observations of ``space`` are flattened."""
    return isinstance(space, spaces.Dict | spaces.Tuple | MultiDiscrete)


def flat_space(space: Any) -> spaces.Box:
    """The space of the flattened observations of a composite ``space``.

    Raises:
        ValueError: a part is neither a `Discrete` nor a `Box` nor composite; the message names it.
    """
    bounds = [_bounds(name, part) for name, part in _parts("", space)]
    low, high = (np.concatenate(x) for x in zip(*bounds, strict=True)) if bounds else ((), ())
    return spaces.Box(low, high, (len(low),), jnp.float32)


def flatten(space: Any, value: Any) -> jax.Array:
    """One observation of a composite ``space`` as one array of floats, ``[O]``."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        rows = [flatten(part, value[name]) for name, part in _children(space)]
        return jnp.concatenate(rows)
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(value, space.n, dtype=float)
    if isinstance(space, MultiDiscrete):
        value = jnp.asarray(value)
        rows = [jax.nn.one_hot(value[i], size, dtype=float) for i, size in enumerate(space.sizes)]
        return jnp.concatenate(rows)
    return jnp.ravel(jnp.asarray(value, float))


def unflatten(space: Any, flat: jax.Array) -> Any:
    """The parts of flattened observations ``flat [..., O]`` of ``space``, in dictionaries and tuples as in the space.

    A `Box` is ``[..., *shape]``, a `Discrete` ``[..., n]``, one-hot, and a `MultiDiscrete` ``[..., sum(sizes)]``. If
    ``space`` is not composite, ``flat`` itself is returned.
    """
    if not is_composite(space):
        return flat
    return _unflatten(space, flat)


def _unflatten(space: Any, flat: jax.Array) -> Any:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts, start = {}, 0
        for name, part in _children(space):
            size = _size(part)
            parts[name] = _unflatten(part, flat[..., start : start + size])
            start += size
        return parts if isinstance(space, spaces.Dict) else tuple(parts.values())
    one_hot = isinstance(space, spaces.Discrete | MultiDiscrete)
    return flat if one_hot else flat.reshape(*flat.shape[:-1], *space.shape)


def entries_of(space: Any, name: str) -> range:
    """The entries of flattened observations of a `Dict` that belong to the part ``name``.

    Raises:
        ValueError: ``space`` is no `Dict`, or has no part of that name.
    """
    if not isinstance(space, spaces.Dict):
        raise ValueError(f"{name!r} names a part, and {space!r} has no parts with names")
    checks.choice("part", name, space.spaces)
    start = 0
    for child, part in _children(space):
        if child == name:
            break
        start += _size(part)
    return range(start, start + _size(space.spaces[name]))


def check(what: str, space: Any, value: Any) -> None:
    """Raises ValueError unless ``value``, or its shapes and dtypes, is an observation of ``space``; names the part."""
    if isinstance(space, spaces.Dict):
        names = sorted(space.spaces)
        if not isinstance(value, Mapping) or sorted(value) != names:
            has = f"of {sorted(value)}" if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"{what} is {has}; it must be a dictionary of {', '.join(names)}")
    elif isinstance(space, spaces.Tuple):
        size = len(space.spaces)
        if not isinstance(value, tuple | list) or len(value) != size:
            parts = f"of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__
            raise ValueError(f"{what} is {parts}; it must be a tuple of {size} parts")
    else:
        shape = getattr(value, "shape", None)
        if shape != tuple(space.shape):
            has = f"of shape {shape}" if shape is not None else type(value).__name__
            raise ValueError(f"{what} is {has}; it must be of shape {tuple(space.shape)}")
        integers = isinstance(space, spaces.Discrete | MultiDiscrete)
        if integers and not jnp.issubdtype(value.dtype, jnp.integer):
            raise ValueError(f"{what} is of {value.dtype}; {space!r} holds integers")
        if not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool) or jnp.iscomplexobj(
            value
        ):
            raise ValueError(f"{what} is of {value.dtype}; it must be of real numbers or booleans")
        return
    for name, part in _children(space):
        check(f"{what}[{name!r}]", part, value[name])


def _children(space: Any) -> list[tuple[Any, Any]]:
    """Names and spaces of the parts of a `Dict` or a `Tuple`, in order."""
    if isinstance(space, spaces.Dict):
        return [(name, space.spaces[name]) for name in sorted(space.spaces)]
    return list(enumerate(space.spaces))


def _parts(name: str, space: Any) -> Iterator[tuple[str, Any]]:
    """Names and spaces of all parts that have none themselves."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for child, part in _children(space):
            yield from _parts(f"{name}[{child!r}]", part)
    else:
        yield name, space


def _bounds(name: str, space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the flattened observations of a space without parts."""
    if isinstance(space, spaces.Discrete | MultiDiscrete):
        size = _size(space)
        if size < 1:
            raise ValueError(f"the part {name} is {space!r}; it must have at least one category")
        return np.zeros(size), np.ones(size)
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"the part {name} is {space!r}; it must be a Discrete, Box, MultiDiscrete, Dict or Tuple"
        )
    low, high = boxes.bounds(space)
    return low.ravel(), high.ravel()


def _size(space: Any) -> int:
    """Entries of a flattened observation of ``space``."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return sum(_size(part) for _, part in _children(space))
    if isinstance(space, MultiDiscrete):
        return sum(space.sizes)
    return space.n if isinstance(space, spaces.Discrete) else math.prod(space.shape)
