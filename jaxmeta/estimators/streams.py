"""Streams that count: those in which every number is finite; means and counts over them."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta.estimators.rows import all_finite, packing
from jaxmeta.types import Trajectory


def unless(flag: jax.Array, like: jax.Array) -> jax.Array:
    """``1 - flag``, of any shape, in the dtype of ``like``: 0 where a recurrence must not go on."""
    return 1.0 - jnp.asarray(flag, jnp.result_type(like))


def is_first(steps: jax.Array) -> jax.Array:
    """True at the first entry of ``steps [T]``, bool ``[T]``. (An assignment ``.at[0]`` would not be fused.)"""
    return jnp.arange(steps.shape[0]) == 0


def is_last(steps: jax.Array) -> jax.Array:
    """True at the last entry of ``steps [T]``, bool ``[T]``."""
    return jnp.arange(steps.shape[0]) == steps.shape[0] - 1


def count(flags: jax.Array, like: jax.Array, **axes: Any) -> jax.Array:
    """The number of true ``flags``, at least 1, in the dtype of ``like``: the divisor of a mean over them, ``[]``.

    ``axes`` are those of ``jnp.sum``.
    """
    return jnp.maximum(jnp.sum(flags, **axes), 1).astype(like.dtype)


def finite_streams(data: Trajectory) -> jax.Array:
    """A mask of the streams of ``data [N, T]`` that hold finite numbers alone, bool ``[N]``; memories do not count."""
    return jax.vmap(all_finite)(data._replace(memory=()))


def without_broken_streams(data: Trajectory) -> tuple[Trajectory, jax.Array]:
    """``data [N, T]`` and which of its streams to count, bool ``[N]``: `finite_streams`.

    A broken stream is left out whole: what an environment did before a number that is not finite is no
    fair draw of what it does. In its place is a copy of the first good one (zeros without any), because a NaN
    that is only masked comes back through the derivative. The copy keeps numbers finite and stands for
    nothing: every sum, mean, scale or fit over streams takes the mask too.
    """
    good = finite_streams(data)
    first, some = jnp.argmax(good), jnp.any(good)
    pack, unpack = packing(lambda stream: stream)

    def mended(rows: jax.Array) -> jax.Array:
        spare = jnp.where(some, rows[first], jnp.zeros_like(rows[0]))
        return jnp.where(good[:, None], rows, spare[None])

    return jax.vmap(unpack)([mended(x) for x in jax.vmap(pack)(data)]), good


def mean_over_streams(x: jax.Array, good: jax.Array) -> jax.Array:
    """Mean of those rows of ``x [N, ...]`` that are ``good`` (bool ``[N]``), over all axes, ``[]``; NaN
    without any. Both may have more axes in front."""
    where = good.reshape(*good.shape, *[1] * (x.ndim - good.ndim))
    return jnp.mean(x, where=where)
