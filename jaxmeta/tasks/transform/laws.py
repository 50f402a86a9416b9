"""Laws of what is drawn, in distribution and out of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def factor(key: jax.Array, scale: float, split: str) -> jax.Array:
    """A factor, ``[]``: log-uniform in ``[1 / scale, scale]``, or up to sqrt(scale) outside of that."""
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
    """A number ``[]`` in the range, or outside of it by up to a quarter of its width, within the limits."""
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
    """An integer ``[]`` of the range, ends included, or outside of it by up to a quarter of its width."""
    candidates = np.arange(low, high + 1)
    if split == "out_of_distribution":
        margin = math.ceil((high - low) / 4)
        around = np.arange(low - margin, high + margin + 1)
        around = around[(around < low) | (around > high)]
        candidates = around[around > 0] if low > 0 else around[around < 0] if high < 0 else around
    return jax.random.choice(key, jnp.asarray(candidates))


def assignment(key: jax.Array, num_values: int, num_places: int, split: str) -> jax.Array:
    """Values for places, each at least once, int32 ``[num_places]``, uniform over those of the split.

    Out of distribution the last place has value 0, else another one; in training the order in which
    the values come first is an even permutation of them, in testing an odd one. Below three values all
    splits are the same.
    """
    shuffle_key, extra_key, last_key = jax.random.split(key, 3)
    extra = jax.random.randint(extra_key, (num_places - num_values,), 0, num_values, jnp.int32)
    values = jnp.append(jnp.arange(num_values, dtype=jnp.int32), extra)
    drawn = jax.random.permutation(shuffle_key, values)
    if num_values < 3:
        return drawn
    # Renaming values maps assignments one to one, so what was uniform stays so.
    if split == "out_of_distribution":
        return _exchanged(drawn, drawn[-1], 0)
    drawn = _exchanged(drawn, drawn[-1], jax.random.randint(last_key, (), 1, num_values))
    first = jnp.argmax(drawn[None, :] == jnp.arange(num_values)[:, None], axis=1)
    inversions = jnp.sum(jnp.triu(first[:, None] > first[None, :]))
    odd = inversions % 2 == 1
    return jnp.where(odd == (split == "test"), drawn, _exchanged(drawn, 1, 2))


def _exchanged(x: jax.Array, a: jax.Array | int, b: jax.Array | int) -> jax.Array:
    """``x`` with the values a and b in each other's places."""
    return jnp.where(x == a, b, jnp.where(x == b, a, x)).astype(x.dtype)
