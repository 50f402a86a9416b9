"""Distributions of drawn parts of a task, in distribution and out of distribution."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def factor(key: jax.Array, scale: float, split: str) -> jax.Array:
    """A factor, ``[]``: log-uniform in ``[1 / scale, scale]``; out of distribution outside, by up to sqrt(scale)."""
    return number(key, 1 / scale, scale, split, law="log_uniform")


def number(
    key: jax.Array,
    low: float,
    high: float,
    split: str,
    *,
    law: str = "uniform",
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> jax.Array:
    """A number ``[]`` in ``[low, high]``; out of distribution outside, by up to a quarter of the width and within limits."""
    measure, back = (math.log, jnp.exp) if law == "log_uniform" else (float, jnp.asarray)
    start, end = measure(low), measure(high)
    if split != "out_of_distribution":
        return back(jax.random.uniform(key, minval=start, maxval=end))
    margin = (end - start) / 4
    if law == "uniform":
        least, most = max(start - margin, limits[0]), min(end + margin, limits[1])
    else:
        least, most = start - margin, end + margin
    below, above = start - least, most - end
    drawn = jax.random.uniform(key, maxval=below + above)
    return back(jnp.where(drawn < below, least + drawn, end + drawn - below))


def integer(key: jax.Array, low: int, high: int, split: str) -> jax.Array:
    """An integer ``[]`` from low to high; out of distribution outside, by up to a quarter of the width."""
    candidates = np.arange(low, high + 1)
    if split == "out_of_distribution":
        margin = math.ceil((high - low) / 4)
        around = np.arange(low - margin, high + margin + 1)
        around = around[(around < low) | (around > high)]
        candidates = around[around > 0] if low > 0 else around[around < 0] if high < 0 else around
    return jax.random.choice(key, jnp.asarray(candidates))


def assignment(key: jax.Array, num_values: int, num_places: int, split: str) -> jax.Array:
    """Values for places, each value at least once, int32 ``[num_places]``, uniform over the assignments of a split.

    Out of distribution the last place has value 0; in train and test it has another value. In train
    the order in which the values first occur is an even permutation, in test an odd one. With fewer
    than three values all splits are the same.
    """
    order_key, places_key, last_key = jax.random.split(key, 3)
    # An assignment is a partition of the places by value, and the order in which the values first
    # occur. Each partition has the same number of orders in a split, so the two are drawn
    # independently.
    group = _groups(places_key, num_values, num_places)
    order = jax.random.permutation(order_key, jnp.arange(num_values, dtype=jnp.int32))
    if num_values < 3:
        return order[group]
    # Exchanging two values is a bijection of orders, so a uniform order stays uniform.
    last = order[group[-1]]
    if split == "out_of_distribution":
        return _exchanged(order, last, 0)[group]
    order = _exchanged(order, last, jax.random.randint(last_key, (), 1, num_values))
    inversions = jnp.sum(jnp.triu(order[:, None] > order[None, :]))
    odd = inversions % 2 == 1
    return jnp.where(odd == (split == "test"), order, _exchanged(order, 1, 2))[group]


def _groups(key: jax.Array, num_groups: int, num_places: int) -> jax.Array:
    """The group of each place, int32 ``[num_places]``, uniform over all partitions into ``num_groups`` groups.

    Groups are numbered by first occurrence. At each place a new group begins with the probability
    that the number of partitions which continue this way gives.
    """
    if num_groups == num_places:
        return jnp.arange(num_places, dtype=jnp.int32)

    def place(begun: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        probability, number = inputs
        begins = number[0] < probability[begun]
        group = jnp.where(begins, begun, jnp.floor(number[1] * begun).astype(begun.dtype))
        return begun + begins, group

    numbers = jax.random.uniform(key, (num_places, 2))
    probabilities = jnp.asarray(_begins(num_groups, num_places), numbers.dtype)
    return jax.lax.scan(place, jnp.zeros((), jnp.int32), (probabilities, numbers))[1]


@functools.cache
def _begins(num_groups: int, num_places: int) -> np.ndarray:
    """The probability that a place begins a group, by the number of groups so far, ``[num_places, num_groups + 1]``."""
    ways = [0] * num_groups + [
        1
    ]  # ways to continue from each number of groups, after the last place
    rows = []
    for _ in range(num_places):
        begin = [*ways[1:], 0]
        total = [groups * ways[groups] + begin[groups] for groups in range(num_groups + 1)]
        rows.append([x / n if n else 0.0 for x, n in zip(begin, total, strict=True)])
        ways = total
    return np.asarray(rows[::-1])


def _exchanged(x: jax.Array, a: jax.Array | int, b: jax.Array | int) -> jax.Array:
    """``x [...]`` with the values a and b exchanged."""
    return jnp.where(x == a, b, jnp.where(x == b, a, x)).astype(x.dtype)
