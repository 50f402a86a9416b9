"""Linear equations in the size of the parameters, by products alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree


def conjugate_gradients(
    product: Callable[[Any], Any], target: Any, *, num_steps: int
) -> tuple[Any, Any]:
    """``(x, A x)`` after at most ``num_steps`` steps towards the solution of ``A x = target``, from zero.

    Hestenes and Stiefel 1952. ``A`` is symmetric and positive definite; where it is not, ``x`` may be anything.
    The program holds ``product`` once, in a loop.

    Args:
        product: ``v -> A v``, trees like ``target``.
        target: A tree of floats.
        num_steps: Steps before the search ends; it ends sooner once the error is 1e-10 of ``target``'s norm.
    """
    target, tree = ravel_pytree(target)
    enough = 1e-20 * jnp.sum(target**2)

    def goes_on(search: tuple) -> jax.Array:
        count, square = search[:2]
        return (count < num_steps) & (square > enough)

    def step(search: tuple) -> tuple:
        count, square, x, error, direction = search
        curved, _ = ravel_pytree(product(tree(direction)))
        size = square / jnp.sum(direction * curved)
        x, error = x + size * direction, error - size * curved
        square, before = jnp.sum(error**2), square
        return count + 1, square, x, error, error + square / before * direction

    start = (jnp.zeros((), jnp.int32), jnp.sum(target**2), jnp.zeros_like(target), target, target)
    _, _, x, error, _ = jax.lax.while_loop(goes_on, step, start)
    return tree(x), tree(target - error)
