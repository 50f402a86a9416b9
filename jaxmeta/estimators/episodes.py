"""Where episodes begin and end in a stream, and the discounts and returns that follow from it."""

import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.estimators.streams import is_first, unless
from jaxmeta.recurrences import linear_recurrence


def cumulative_discount(discount: jax.Array, first: jax.Array) -> jax.Array:
    """``g_t = prod_{i<t} discount_i``, restarted at 1 where an episode starts, ``[T]``.

    The factor γ^t of the policy gradient of a discounted objective.
    """
    checks.shapes("T", discount=discount, first=first)
    start = jnp.where(is_first(first), 1.0, jnp.asarray(first, discount.dtype))
    previous = jnp.concatenate([jnp.ones_like(discount[:1]), discount[:-1]])
    return linear_recurrence(start, (1.0 - start) * previous)


def episode_step(first: jax.Array) -> jax.Array:
    """Steps since the episode started (since the stream's first step where that is later), ``[T]``."""
    checks.shapes("T", first=first)
    ones = jnp.ones(first.shape)
    return linear_recurrence(ones, unless(first, ones)) - 1.0


def sum_so_far(x: jax.Array, last: jax.Array, start: jax.Array) -> jax.Array:
    """Sums of ``x [T]`` over the steps of an episode up to each step, ``[T]``; ``start []`` is the sum before the first step."""
    checks.shapes("T T ?", x=x, last=last, start=start)
    keep = unless(jnp.concatenate([jnp.zeros_like(last[:1]), last[:-1]]), x)
    return linear_recurrence(x.at[0].add(start), keep)


def first_episode_return(reward: jax.Array, last: jax.Array) -> jax.Array:
    """Undiscounted return of the stream's first episode, ``[T] -> []``.

    Evaluation reports it: averaging over however many episodes fit into T steps would favour the
    short ones.
    """
    checks.shapes("T", reward=reward, last=last)
    return jnp.sum(jnp.where(in_first_episode(last), reward, 0.0))


def in_first_episode(last: jax.Array) -> jax.Array:
    """A mask of the steps of a stream's first episode, bool ``[T]``.

    Counting that one alone keeps a stream one draw of an episode: what begins after it begins the
    sooner the earlier it ended, so a sum over all of them is the rate of reward and not the return.
    """
    checks.shapes("T", last=last)
    step = jnp.arange(last.shape[0])
    return step <= jnp.min(jnp.where(jnp.asarray(last, bool), step, last.shape[0]))


def episode_index(last: jax.Array) -> jax.Array:
    """The number of each step's episode in its stream, from 0, int32 ``[T]``."""
    checks.shapes("T", last=last)
    ended = last.astype(jnp.int32)
    return jnp.cumsum(ended) - ended
