"""A buffer of the last items of experience, for learners that learn from old ones again.

An item is any tree of arrays of fixed shapes: a whole trial of a learner with memory, or one step. The buffer
is pure functions over a state of arrays, by flashbax's item buffer: the state belongs into an algorithm's state, so that a
checkpoint holds it and a resumed run is bit-equal. Items are drawn uniformly and with replacement.

Flashbax is imported where a buffer is made: ``pip install "jaxmeta[replay]"``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import checks
from jaxmeta.checks import device_memory


class Buffer(NamedTuple):
    """The functions of a buffer. Its ``state`` is a tree of arrays."""

    init: Callable[[], Any]
    """``() -> state``, empty."""
    add: Callable[[Any, Any, jax.Array], Any]
    """``(state, items [B], good [B]) -> state`` with B more items in the place of the oldest. Items that are not
    ``good`` (bool) are not kept: copies of good ones are put into their places. Without a good one the state stays."""
    sample: Callable[[jax.Array, Any], Any]
    """``(key, state) -> items [num_sampled]``; all zeros while the buffer is empty."""
    size: Callable[[Any], jax.Array]
    """``(state) -> []``, int32: the number of items in it."""


def check_sizes(replay_trials: int, replayed_trials: int) -> None:
    """Raises ValueError unless a minibatch can draw ``replayed_trials`` of ``replay_trials`` kept ones, both at least 1."""
    checks.at_least("replay_trials", replay_trials, 1)
    checks.at_least("replayed_trials", replayed_trials, 1)
    if replayed_trials > replay_trials:
        raise ValueError(
            f"replayed_trials={replayed_trials} must be at most replay_trials={replay_trials}"
        )


def item_buffer(item: Any, capacity: int, num_sampled: int, *, name: str = "capacity") -> Buffer:
    """A buffer of the last ``capacity`` items, of which ``num_sampled`` are drawn at a time.

    Args:
        item: One item, arrays or their shapes and dtypes (`jax.eval_shape`).
        capacity: The number of items that it holds.
        num_sampled: The number of items in a draw, at most ``capacity``.
        name: The setting of the capacity, for messages.

    Raises:
        ImportError: flashbax is not installed.
        ValueError: the items take more memory than the device has (`check_memory`).
    """
    checks.at_least(name, capacity, 1)
    checks.at_least("num_sampled", num_sampled, 1, capacity)
    check_memory(item, capacity, name=name)
    buffer = _flashbax_buffer(capacity, num_sampled)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), item)

    def init() -> Any:
        return buffer.init(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))

    def add(state: Any, items: Any, good: jax.Array) -> Any:
        if good.shape[0] > capacity:
            raise ValueError(
                f"{name}={capacity} must be at least {good.shape[0]}, the number of items that are added at once"
            )
        # Good items first, and then again from the first on.
        order = jnp.argsort(~good, stable=True)
        rows = order[jnp.arange(good.shape[0]) % jnp.maximum(jnp.sum(good), 1)]
        kept = jax.tree.map(lambda x: x[rows], items)
        return jax.lax.cond(jnp.any(good), buffer.add, lambda state, _: state, state, kept)

    def sample(key: jax.Array, state: Any) -> Any:
        # Flashbax adds a row of indices to a column of them.
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return buffer.sample(state, key).experience

    def size(state: Any) -> jax.Array:
        return jnp.where(state.is_full, capacity, state.current_index).astype(jnp.int32)

    return Buffer(init, add, sample, size)


def predicted_bytes(item: Any, capacity: int) -> int:
    """The bytes of a buffer of ``capacity`` items, before it is made.

    A checkpoint takes as many on disk, before compression. A program that does not overwrite its state, such as a plain
    ``jax.jit(algorithm.step)``, holds the buffer twice.
    """
    return capacity * sum(
        int(np.prod(x.shape, dtype=np.int64)) * jnp.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(item)
    )


def check_memory(item: Any, capacity: int, *, name: str = "capacity") -> None:
    """Raises ValueError if a buffer of ``capacity`` items takes more memory than the device has."""
    takes, there = predicted_bytes(item, capacity), device_memory()
    if there is not None and takes > there:
        most = int(capacity * there / takes)
        raise ValueError(
            f"{name}={capacity} takes {takes / 1e9:.1f} GB, {takes / capacity / 1e6:.3g} MB for each, and the device "
            f"has {there / 1e9:.1f} GB: set it to at most {most}"
        )


def _flashbax_buffer(capacity: int, num_sampled: int) -> Any:
    """Flashbax's item buffer of batches of items."""
    try:
        import flashbax
    except ImportError as error:
        raise checks.missing("flashbax", "replay") from error
    return flashbax.make_item_buffer(
        max_length=capacity,
        min_length=1,
        sample_batch_size=num_sampled,
        add_sequences=False,
        add_batches=True,
    )
