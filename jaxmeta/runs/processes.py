"""What several processes of one run (``jax.distributed``) must agree on; with one process all is as usual.

Every process runs the same program on the same seed, so there is little to exchange: what depends on a
clock, on a signal or on a disk.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding


def first() -> bool:
    """Is this the process that writes and shows?"""
    return jax.process_index() == 0


def of_first(number: int) -> int:
    """``number``, as the first process has it."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.asarray(number, np.int32)))


def anywhere(happened: bool) -> bool:
    """Has it happened in any of them?"""
    if jax.process_count() == 1:
        return happened
    return bool(np.any(multihost_utils.process_allgather(np.asarray(happened))))


def by_first(action: Callable[[], object]) -> None:
    """Lets the first process call ``action``; where that raises, every process raises.

    The other processes raise RuntimeError with the first one's message.
    """
    if jax.process_count() == 1:
        action()
        return
    failure, text = None, b""
    if first():
        try:
            action()
        except Exception as error:
            failure, text = error, f"{type(error).__name__}: {error}".encode(errors="replace")
    told = np.zeros(of_first(len(text)), np.uint8)
    if not told.size:
        return
    told[: len(text)] = np.frombuffer(text, np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(told))
    if failure is not None:
        raise failure
    raise RuntimeError(f"in the first process: {told.tobytes().decode(errors='replace')}")


def wait(where: str) -> None:
    """Until all are at the place of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def spread(x: Any, sharding: NamedSharding) -> Any:
    """``jax.device_put`` of a pytree that every process holds, onto devices of all of them."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)

    def put(leaf: jax.Array) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        here = np.asarray(leaf)
        return jax.make_array_from_callback(here.shape, sharding, lambda index: here[index])

    return jax.tree.map(put, x)
