"""What several processes of one run (``jax.distributed``) must agree on; with one process all is as usual.

Every process runs the same program on the same seed, so there is little to exchange: what depends on a
clock, on a signal or on a disk.
"""

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
