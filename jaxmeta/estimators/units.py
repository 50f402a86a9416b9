"""Scales of rewards and advantages, so that learning does not depend on the unit of rewards."""

import jax
import jax.numpy as jnp

from jaxmeta import checks


def advantage_scale(advantage: jax.Array, counted: jax.Array | None = None) -> jax.Array:
    """Root mean square of ``advantage [N, T]`` where ``counted`` (bool ``[N, T]``; None is all), ``[]``, never zero.

    Dividing by it keeps the direction of this batch's gradient; subtracting the batch's mean would
    bend it. Where all are 0 it is 1.
    """
    told = {} if counted is None else dict(counted=counted)
    checks.shapes("NT", advantage=advantage, **told)
    square = jnp.mean(advantage**2, where=counted)
    return jnp.sqrt(jnp.where(square > 0, square, 1.0))


def in_units(x: jax.Array, scale: jax.Array) -> jax.Array:
    """``x / scale``, of any shape; 0 where the scale ``[]`` is 0, not known yet: then nothing can be said in
    units."""
    checks.shapes("... ?", x=x, scale=scale)
    known = scale > 0
    return jnp.where(known, x / jnp.where(known, scale, 1.0), 0.0)


def running(mean: jax.Array, batch: jax.Array, known: jax.Array) -> jax.Array:
    """A running mean, of any shape, after another batch's: the first batch's, then a tenth of each batch's.

    ``known`` (bool ``[]``) says whether there was a batch before.
    """
    checks.shapes("... ... ?", mean=mean, batch=batch, known=known)
    return jnp.where(known, mean + 0.1 * (batch - mean), batch)


def running_reward_scale(scale: jax.Array, reward: jax.Array, counted: jax.Array) -> jax.Array:
    """The `running` mean of batches' largest rewards, in magnitude, after another batch, ``[]``.

    0 is a scale that is not known yet. Not the root mean square, which grows as rare rewards become frequent: a network that
    sees rewards in units of it learns from inputs that shrink as it learns.

    Args:
        scale: ``[]``, before.
        reward: Of any shape; finite where ``counted``.
        counted: Of the same shape, bool.
    """
    checks.shapes("? ... ...", scale=scale, reward=reward, counted=counted)
    largest = jnp.max(jnp.abs(reward), where=jnp.asarray(counted, bool), initial=0.0)
    return jnp.where(largest > 0, running(scale, largest, scale > 0), scale)
