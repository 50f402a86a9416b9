"""Small arrays side by side in one row. A program with few arrays compiles in less time than one with many.

In a tree of small leaves every leaf needs its own kernel, mask, copy and transposition. `packed` puts the leaves of one
type into one row, and the row needs each of these once.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

LARGE = 1000
"""A leaf of this many numbers or more has a row of its own, because a copy would cost more than it saves."""


def packed(tree: Any) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Any]]:
    """``(rows, unpack)``: one row ``[D]`` for each type of number in a tree, and the function that takes rows apart.

    A row holds all small leaves of its type. A `LARGE` leaf or a key has a row of its own. ``unpack(rows)`` is the
    tree again. Under ``vmap`` both work on each entry.
    """
    leaves, structure = jax.tree.flatten(tree)
    shapes = [x.shape for x in leaves]
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        alone = x.size >= LARGE or jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)
        groups.setdefault((x.dtype, i if alone else -1), []).append(i)
    places = list(groups.values())

    def unpack(rows: list[jax.Array]) -> Any:
        back: list[Any] = [None] * len(shapes)
        for group, row in zip(places, rows, strict=True):
            start = 0
            for i in group:
                end = start + math.prod(shapes[i])
                back[i] = row[start:end].reshape(shapes[i])
                start = end
        return jax.tree.unflatten(structure, back)

    return [jnp.concatenate([leaves[i].reshape(-1) for i in group]) for group in places], unpack


def all_finite(tree: Any) -> jax.Array:
    """Whether all numbers of a tree are finite, bool ``[]``."""
    numbers = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    rows, _ = packed(numbers)  # flags, integers and keys always are
    # 0 x is NaN where x is not finite. A sum is one kernel, where a conjunction is several.
    finite = (jnp.isfinite(jnp.sum(0 * row)) for row in rows)
    return functools.reduce(jnp.logical_and, finite, jnp.ones((), bool))


def packing(
    function: Callable[..., Any],
) -> tuple[Callable[..., list[jax.Array]], Callable[[list[jax.Array]], Any]]:
    """``(function, unpack)``: the function with `packed` results, and the function that makes a result a tree again.

    ``unpack`` works after the function was called or traced.
    """
    known: list[Callable[[list[jax.Array]], Any]] = []

    def packed_function(*args: Any) -> list[jax.Array]:
        rows, unpack = packed(function(*args))
        known[:] = [unpack]
        return rows

    return packed_function, lambda rows: known[0](rows)
