"""Agreement between the processes of one run (``jax.distributed``); with one process nothing is exchanged.

Every process runs the same program from the same seed. Only values that depend on a clock, a signal
or a disk can differ between processes, and the functions below make them agree. Only process 0
prints and writes files.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from jaxmeta.tasks import keys


def is_main_process() -> bool:
    """Whether this is process 0, the process that prints and writes files."""
    return jax.process_index() == 0


def broadcast(number: int) -> int:
    """The ``number`` of process 0, in every process."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.asarray(number, np.int32)))


def any_process(happened: bool) -> bool:
    """Whether ``happened`` is true in at least one process."""
    if jax.process_count() == 1:
        return happened
    return bool(np.any(multihost_utils.process_allgather(np.asarray(happened))))


def on_main_process(action: Callable[[], object]) -> None:
    """Calls ``action`` in process 0 alone. If ``action`` raises, every process raises.

    The other processes raise RuntimeError with the message of process 0.
    """
    if jax.process_count() == 1:
        action()
        return
    failure, text = None, b""
    if is_main_process():
        try:
            action()
        except Exception as error:
            failure, text = error, f"{type(error).__name__}: {error}".encode(errors="replace")
    message = np.zeros(broadcast(len(text)), np.uint8)
    if not message.size:
        return
    message[: len(text)] = np.frombuffer(text, np.uint8)
    message = np.asarray(multihost_utils.broadcast_one_to_all(message))
    if failure is not None:
        raise failure
    raise RuntimeError(f"in the first process: {message.tobytes().decode(errors='replace')}")


def barrier(name: str) -> None:
    """Waits until every process has reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def spread(x: Any, sharding: NamedSharding) -> Any:
    """The pytree ``x``, which every process holds, on devices of all processes: ``jax.device_put``."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)

    def put(leaf: jax.Array) -> jax.Array:
        if keys.is_key(leaf):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        here = np.asarray(leaf)
        return jax.make_array_from_callback(here.shape, sharding, lambda index: here[index])

    return jax.tree.map(put, x)
