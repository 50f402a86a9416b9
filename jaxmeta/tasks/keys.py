"""Fast random numbers for acting; on a CPU they are most of the cost of acting."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend import random as extend_random


def typed(key: jax.Array) -> jax.Array:
    """``key`` as an array of keys ``[...]``; words ``[..., 2]``, as of ``jax.random.PRNGKey``, are wrapped."""
    return key if is_key(key) else jax.random.wrap_key_data(key)


def is_key(leaf: Any) -> bool:
    """Whether ``leaf``, an array or the shape of one, holds random keys."""
    return jnp.issubdtype(getattr(leaf, "dtype", bool), jax.dtypes.prng_key)


def words(leaf: Any) -> Any:
    """``leaf`` as numbers: the words of random keys, and anything else as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def at_step(key: jax.Array, t: jax.Array) -> jax.Array:
    """The key ``[]`` of step ``t []``: ``key`` with ``t`` added to its last word.

    ``split`` and ``fold_in`` cost as much as a draw. Keys of a counter-based generator need only be
    different: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    data = jax.random.key_data(key)
    return jax.random.wrap_key_data(
        data.at[-1].add(t.astype(data.dtype)), impl=jax.random.key_impl(key)
    )


def quick(key: jax.Array) -> jax.Array:
    """``key [...]`` with a generator that draws the same numbers faster on a CPU.

    For CPUs jax compiles Threefry as a loop over five groups of rounds, which keeps its words in
    memory. Here the rounds are unrolled, so the words stay in registers. On other devices jax
    unrolls them itself, and the key is returned as it is. Keys of other generators are returned as
    they are, and so are Threefry's if ``jax_threefry_partitionable`` is off. A program compiles in less time, too,
    and so a meta-update makes its key quick before it splits it. Keys that an agent or an environment may keep are made
    `plain` again. Words are made a key, as by `typed`.
    """
    key = typed(key)
    written_out = jax.threefry_partitionable.value and jax.default_backend() == "cpu"
    if not written_out or jax.random.key_impl(key) != "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_QUICK)


def plain(key: jax.Array) -> jax.Array:
    """``key [...]`` with jax's own generator: the inverse of `quick`."""
    if jax.random.key_impl(key) != _QUICK:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl="threefry2x32")


def all_quick(tree: Any) -> Any:
    """``tree`` with every key made `quick`."""
    return jax.tree.map(lambda leaf: quick(leaf) if is_key(leaf) else leaf, tree)


def all_plain(tree: Any) -> Any:
    """``tree`` with every key made `plain`."""
    return jax.tree.map(lambda leaf: plain(leaf) if is_key(leaf) else leaf, tree)


def as_in(like: Any, tree: Any) -> Any:
    """``tree`` with the generators of the keys in ``like``."""

    def one(old: Any, new: Any) -> Any:
        if not is_key(old):
            return new
        return jax.random.wrap_key_data(jax.random.key_data(new), impl=jax.random.key_impl(old))

    return jax.tree.map(one, like, tree)


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _threefry(key: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two words for each of the counters (high, low) under ``key [2]``: Threefry-2x32 with 20
    rounds (Salmon et al. 2011, section 5.2)."""
    words = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = high + words[0], low + words[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << jnp.uint32(rotation)) | (y >> jnp.uint32(32 - rotation)))
        x = x + words[(group + 1) % 3]
        y = y + words[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def _hashes(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Two words for every element of ``shape``; the counter is the element's position."""
    size = math.prod(shape)
    if size > 2**32:
        raise ValueError(f"shape={shape} must have at most 2**32 entries: one word counts them")
    low = jax.lax.iota(jnp.uint32, size).reshape(shape)
    return _threefry(key, jnp.zeros_like(low), low)


def _apart(*static: int) -> Callable[[Callable], Callable]:
    """A decorator that compiles a function on its own, so that its numbers are drawn once.

    XLA considers integer operations cheap and would otherwise repeat all of them for each use of a
    number.
    """

    def decorate(fun: Callable) -> Callable:
        jitted = jax.jit(fun, static_argnums=static)

        @functools.wraps(fun)
        def call(*args: Any) -> Any:
            with set_xla_metadata(inlineable="false"):
                return jitted(*args)

        return call

    return decorate


@_apart(1)
def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.stack(_hashes(key, shape), axis=-1)


@_apart(1, 2)
def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    high, low = _hashes(key, shape)
    if bit_width == 64:
        return (high.astype(jnp.uint64) << jnp.uint64(32)) | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{bit_width}")


@_apart()
def _fold_in(key: jax.Array, data: jax.Array) -> jax.Array:
    return jnp.stack(_threefry(key, jnp.uint32(0), jnp.asarray(data).astype(jnp.uint32)))


def _seed(seed: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


_QUICK = extend_random.define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_written_out",
    tag="fry2",
)
