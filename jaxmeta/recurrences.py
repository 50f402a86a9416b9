"""The linear recurrence: returns, traces and the state of a linear recurrent network are all computed by it."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxmeta import checks


def linear_recurrence(
    a: jax.Array, b: jax.Array, *, reverse: bool = False, parallel: bool | None = None
) -> jax.Array:
    """``y_t = a_t + b_t y_{t-1}`` with ``y_{-1} = 0`` (``y_{t+1}``, ``y_T = 0`` in reverse), ``[T, ...]``.

    ``parallel`` runs in O(log T) steps by an associative scan (Blelloch 1990, "Prefix sums"); else
    step by step: on a CPU a MAML update is no slower for it, and compiles in two thirds of the
    time. None is what fits the device.
    """
    checks.shapes("T...", a=a, b=b)
    checks.field("reverse", reverse, bool)
    checks.field("parallel", parallel, bool | None)
    if jax.default_backend() != "cpu" if parallel is None else parallel:
        return checkpoint_name(_at_once(a, b, reverse), KEPT)

    zero = jnp.zeros_like(a, shape=a.shape[1:])
    return checkpoint_name(jax.lax.scan(_step, zero, (a, b), reverse=reverse, unroll=4)[1], KEPT)


KEPT = "kept"
"""The name under which `jax.checkpoint` keeps the values of recurrences. They are few, and slow to compute again."""


def _step(y: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    # No closure: where no program is around it, too, the loop is then compiled once for each shape.
    a, b = at
    y = a + b * y
    return y, y


def _at_once(a: jax.Array, b: jax.Array, reverse: bool) -> jax.Array:
    """The recurrence by an associative scan.

    It solves a bidiagonal system ``(1 - b shift) y = a``, and is declared as that: the reverse pass
    is one solve of the transposed system, the same recurrence the other way, instead of the reverse
    of every level of the associative scan. All higher derivatives follow.
    """
    zero = jnp.zeros_like(b[:1])

    def before(x: jax.Array, reverse: bool) -> jax.Array:
        """The entries one step before, in the recurrence's direction."""
        return jnp.concatenate([x[1:], zero] if reverse else [zero, x[:-1]])

    def compose(earlier: tuple, later: tuple) -> tuple:
        (a0, b0), (a1, b1) = earlier, later
        return a1 + b1 * a0, b1 * b0

    def solve(a: jax.Array, b: jax.Array, reverse: bool) -> jax.Array:
        return jax.lax.associative_scan(compose, (a, b), reverse=reverse)[0]

    return jax.lax.custom_linear_solve(
        lambda y: y - b * before(y, reverse),
        a,
        lambda _, a: solve(a, b, reverse),
        lambda _, a: solve(a, before(b, not reverse), not reverse),
    )
