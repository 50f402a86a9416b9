"""Bounds of a `Box`: one definition for policies, random agents, transformations and rollouts.

A side is *unbounded* if its bound is infinite, or the largest number of the space's dtype (for
integers, of a dtype of 32 bits or more), or at least `UNBOUNDED`, so large that the square of a
range's width overflows float32. Every dimension has a *nominal range*. Policies are centred in it
and scaled by it, random agents draw uniformly from it, and transformations mirror and rotate
actions in it:

| bounded     | nominal range    |
|-------------|------------------|
| on both sides | ``[low, high]`` |
| below only  | ``[low, low + 2]``   |
| above only  | ``[high - 2, high]`` |
| on no side  | ``[-1, 1]``      |

The environment gets actions clipped to the finite bounds, never to the nominal range.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

UNBOUNDED = 1e18
"""A bound of this magnitude or more counts as infinite."""


class Range(NamedTuple):
    """Ends of a range, one entry for each dimension, float64 ``[*shape]``."""

    low: np.ndarray
    """``[*shape]``, the lower ends."""
    high: np.ndarray
    """``[*shape]``, the upper ends."""

    @property
    def middle(self) -> np.ndarray:
        """Centres of the ranges, ``[*shape]``."""
        return (self.low + self.high) / 2

    @property
    def half_width(self) -> np.ndarray:
        """Half the widths of the ranges, ``[*shape]``."""
        return (self.high - self.low) / 2


def bounds(space: spaces.Box) -> Range:
    """The bounds of every dimension, ``±inf`` where a side is unbounded.

    Raises:
        ValueError: a bound is NaN, a lower bound exceeds the upper one, or the bounds do not have
            the space's shape.
    """
    shape = tuple(space.shape)
    try:
        low, high = (
            np.broadcast_to(np.asarray(x, np.float64), shape) for x in (space.low, space.high)
        )
    except ValueError:
        raise ValueError(
            f"bounds of shapes {np.shape(space.low)} and {np.shape(space.high)} do not fit a Box of shape {shape}"
        ) from None
    if not np.all(low <= high):  # a NaN fails every comparison
        raise ValueError(f"Box bounds low={space.low}, high={space.high} must have low <= high")
    if np.any(low == np.inf) or np.any(high == -np.inf):
        raise ValueError(
            f"Box bounds low={space.low}, high={space.high} have no number between them"
        )
    if is_integer(space):
        info = jnp.iinfo(space.dtype)
        for bound in (low, high):
            inside = np.isinf(bound) | ((bound >= info.min) & (bound <= info.max))
            if not np.all(inside):
                raise ValueError(
                    f"Box bounds low={space.low}, high={space.high} are no {space.dtype}s"
                )
    largest = min(UNBOUNDED, _largest(space.dtype))
    return Range(np.where(low <= -largest, -np.inf, low), np.where(high >= largest, np.inf, high))


def nominal(space: spaces.Box) -> Range:
    """The nominal range of every dimension, as the module defines it; raises ValueError as `bounds` does."""
    low, high = bounds(space)
    below, above = np.isfinite(low), np.isfinite(high)
    return Range(
        np.where(below, low, np.where(above, high - 2.0, -1.0)),
        np.where(above, high, np.where(below, low + 2.0, 1.0)),
    )


def scaled(name: str, space: spaces.Box) -> Range:
    """The nominal range of a space, checked so that numbers can be scaled by its half widths.

    Raises:
        ValueError: the space has integers, is empty, or has a dimension of width 0; the message
            calls it ``name``.
    """
    if is_integer(space):
        raise ValueError(
            f"{name}={space} is of integers, where real numbers are wanted: use Discrete, or a Box of floats that the "
            "environment rounds"
        )
    found = nominal(space)
    if found.low.size == 0:
        raise ValueError(f"{name}={space} is empty")
    if not np.all(found.half_width > 0):
        raise ValueError(
            f"{name}={space} has low == high in a dimension: leave out what cannot vary"
        )
    return found


def is_integer(space: spaces.Space) -> bool:
    """Whether the numbers of a space are integers."""
    return bool(jnp.issubdtype(space.dtype, jnp.integer))


MAX_CATEGORIES = 4096
"""The most categories, over all entries, of a `Box` of integers from which policies choose."""


def categories(name: str, space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Lowest values and numbers of values of a `Box` of integers ``[D]``, int32 ``[D]`` each.

    Raises:
        ValueError: the space is not of one axis, has no bounds, or has more than `MAX_CATEGORIES` values in all; the
            message calls it ``name``.
    """
    low, high = bounds(space)
    if low.ndim != 1:
        raise ValueError(
            f"{name}={space} must have one axis, not the shape {low.shape}: flatten the action space"
        )
    if not np.all(np.isfinite(low) & np.isfinite(high)):
        raise ValueError(f"{name}={space} is of integers without bounds: give it low and high")
    sizes = high - low + 1
    if np.sum(sizes) > MAX_CATEGORIES:
        raise ValueError(
            f"{name}={space} has {int(np.sum(sizes))} values, of which a policy chooses; at most {MAX_CATEGORIES} are "
            "feasible: use a Box of floats that the environment rounds"
        )
    return low.astype(np.int32), sizes.astype(np.int32)


def sample(key: jax.Array, space: spaces.Box) -> jax.Array:
    """A uniform draw from the nominal range, ``[*shape]``; for integers both ends are included."""
    low, high = nominal(space)
    if is_integer(space):
        drawn = jax.random.randint(key, space.shape, low.astype(int), high.astype(int) + 1)
        return drawn.astype(space.dtype)
    drawn = jax.random.uniform(key, space.shape, minval=_array(low), maxval=_array(high))
    return drawn.astype(space.dtype)


def clip(action: jax.Array, space: spaces.Box) -> jax.Array:
    """``action [*shape]`` clipped to the finite bounds of the space."""
    low, high = bounds(space)
    if not np.any(np.isfinite(low) | np.isfinite(high)):
        return action
    if jnp.issubdtype(action.dtype, jnp.integer):
        info = jnp.iinfo(action.dtype)
        # Bounds stay integers: as floats the largest ones would be rounded.
        low = np.array([info.min if x == -np.inf else int(x) for x in low.flat]).reshape(low.shape)
        high = np.array([info.max if x == np.inf else int(x) for x in high.flat]).reshape(
            high.shape
        )
    return jnp.clip(action, low.astype(action.dtype), high.astype(action.dtype))


def _largest(dtype: Any) -> float:
    """The smallest bound that counts as infinite for this dtype."""
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        return float(info.max) if info.bits >= 32 else np.inf
    return float(jnp.finfo(dtype).max) if jnp.issubdtype(dtype, jnp.floating) else np.inf


def _array(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.result_type(float))
