"""Windows of histories: what algorithms that learn from a dataset get in each meta-update.

`windows` holds all histories in the device's memory. `stream` holds a few shards of a dataset on disk at a time, for
datasets that are larger than the memory. Both are a `types.Source`, the argument ``source`` of `runs.training.train`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import checks
from jaxmeta.datasets.files import Dataset
from jaxmeta.datasets.histories import Histories, check
from jaxmeta.runs import checkpoints
from jaxmeta.types import Source, Trajectory

STARTS = ("step", "episode")
FOREVER = 2**31 - 1
"""The end of data that serve all meta-updates."""


@checks.arguments
def windows(
    histories: Histories, length: int, *, starts: str = "step", description: Any = None
) -> Source:
    """A source of windows of T = ``length`` steps, ``Trajectory [M, T]``.

    Each window lies within one history, so it never mixes tasks or learners. All histories are equally probable, and so are
    all places of one where a window can start.

    Args:
        histories: The histories. All of them are in the device's memory while a run trains on them.
        length: T.
        starts: The windows start at any ``"step"``, or only at the first step of an ``"episode"``.
        description: What ``config.json`` says of the data, as `runs.records.plain` takes it.

    Raises:
        ValueError: a history is shorter than ``length``, or arrays of ``histories`` do not fit together.
    """
    checks.at_least("length", length, 1)
    checks.choice("starts", starts, STARTS)
    _check(histories, length)
    data = histories.data, histories.length
    told = {"windows": length, "starts": starts, "sha256": checkpoints.digest(data)}
    return Source(
        sample=_sampler(length, starts),
        load=lambda update: (data, FOREVER),
        description=told | ({} if description is None else {"of": description}),
    )


@checks.arguments
def stream(
    dataset: Dataset,
    length: int,
    *,
    num_shards: int,
    updates_per_load: int,
    starts: str = "step",
    seed: int = 0,
) -> Source:
    """A source of windows, as `windows`, that holds ``num_shards`` shards of a dataset in memory at a time.

    Every ``updates_per_load`` meta-updates training waits while the next shards are read. The shards come in a random order that depends on
    ``seed`` and on the number of the pass alone, so a resumed run reads the same ones.

    Raises:
        ValueError: a number is out of range; a history is shorter than ``length``.
        DatasetError: when it is read, a shard is damaged.
    """
    checks.at_least("length", length, 1)
    checks.at_least("num_shards", num_shards, 1, dataset.num_shards)
    checks.at_least("updates_per_load", updates_per_load, 1)
    checks.at_least("seed", seed, 0, 2**32 - 1)
    checks.choice("starts", starts, STARTS)
    loads_per_pass = math.ceil(dataset.num_shards / num_shards)

    def load(update: int) -> tuple[Any, int]:
        number = update // updates_per_load
        a_pass, place = divmod(number, loads_per_pass)
        order = np.random.default_rng([seed, a_pass]).permutation(dataset.num_shards)
        # The last load of a pass is filled with the pass's first shards, for arrays keep their shapes.
        chosen = np.resize(order, loads_per_pass * num_shards)
        histories = dataset.read(chosen[place * num_shards : (place + 1) * num_shards].tolist())
        _check(histories, length)
        return (histories.data, histories.length), (number + 1) * updates_per_load

    told = {"windows": length, "starts": starts, "shards_at_a_time": num_shards, "seed": seed}
    told |= {"updates_per_load": updates_per_load, "dataset": dataset.description}
    return Source(_sampler(length, starts), load, told)


def _check(histories: Histories, length: int) -> None:
    """Raises unless the histories fit together and each has at least ``length`` steps."""
    check(histories)
    lengths = np.asarray(histories.length)
    m, n = np.unravel_index(np.argmin(lengths), lengths.shape)
    if lengths[m, n] < length:
        raise ValueError(
            f"length={length} must be at most {lengths[m, n]}: history {n} of task {m} has {lengths[m, n]} steps"
        )


def _sampler(length: int, starts: str) -> Any:
    """`Source.sample` of windows."""

    def one(key: jax.Array, data: Trajectory, lengths: jax.Array) -> Trajectory:
        task_key, stream_key, start_key = jax.random.split(key, 3)
        m = jax.random.randint(task_key, (), 0, lengths.shape[0])
        n = jax.random.randint(stream_key, (), 0, lengths.shape[1])
        steps = jnp.arange(data.reward.shape[2])
        possible = steps <= lengths[m, n] - length
        if starts == "episode":
            possible &= data.timestep.first[m, n]
        start = jax.random.categorical(start_key, jnp.where(possible, 0.0, -jnp.inf))

        def cut(x: jax.Array) -> jax.Array:
            begin: Any = (m, n, start, *[0] * (x.ndim - 3))
            return jax.lax.dynamic_slice(x, begin, (1, 1, length, *x.shape[3:]))[0, 0]

        return jax.tree.map(cut, data)

    def sample(key: jax.Array, data: Any, num: int) -> Trajectory:
        return jax.vmap(lambda key: one(key, *data))(jax.random.split(key, num))

    return sample
