"""The expert of XLand-MiniGrid's open room: it is told the ruleset and sees what an agent sees.

An agent sees neither the cells behind it nor the object that it carries, and neither does the expert. It
knows goals and rules without directions, in one room without doors, and rulesets whose rules make one
chain: those that `jaxmeta.tasks.xland` draws without a published generator.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.tasks.xland_rulesets import COLORS as ALL_COLORS
from jaxmeta.tasks.xland_rulesets import SHAPES, XLandParams

COLORS = ALL_COLORS[:6]
"""The package's numbers of red, green, blue, purple, yellow and grey."""

FORWARD, RIGHT, LEFT, PICK_UP, PUT_DOWN = range(5)
"""Actions, by the package's numbers."""

HOLD, NEAR, PAIR = 1, 2, 3
"""Kinds of goals and rules in one numbering; 0 means none."""
AHEAD, RIGHTWARD, LEFTWARD = 0, 1, 3
"""Directions, clockwise from the agent's own."""
STEPS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
"""Steps in the four directions, as rows and columns of the view."""


def _codes(tiles: jax.Array) -> jax.Array:
    """One number for each of ``tiles [..., 2]``; 0 for padding."""
    return 16 * tiles[..., 0].astype(jnp.int32) + tiles[..., 1]


def _demands(task: XLandParams) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """``(kind, subject, partner, product)`` of the goal and then of the rules, ``[1 + R]`` each.

    Rules make a chain: at most one object of a rule is made by another rule. This object is the
    subject. The agent must hold it, walk up to it, or put it next to its partner, which stays in
    its place.
    """
    kind_of_goal = jnp.array([0, HOLD, 0, NEAR, PAIR])[task.goal[0]]
    kind = jnp.append(kind_of_goal, task.rules[:, 0].astype(jnp.int32))
    codes = [_codes(task.rules[:, i : i + 2]) for i in (1, 3, 5)]
    a, b = (
        jnp.append(_codes(task.goal[i : i + 2]), of_rules)
        for i, of_rules in zip((1, 3), codes, strict=False)
    )
    product = jnp.append(0, jnp.where(task.rules[:, 0] == PAIR, codes[2], codes[1]))
    swapped = jnp.isin(b, product)
    subject = jnp.where((kind == PAIR) & swapped, b, a)
    partner = jnp.where(kind == PAIR, jnp.where(swapped, a, b), 0)
    return kind, subject, partner, product


def _landmark(task: XLandParams) -> jax.Array:
    """The code of an unused object ``[]`` to lay a product beside, if a product must be laid down for the next rule; else 0."""
    kind, subject, partner, product = _demands(task)
    is_rule = jnp.arange(len(kind)) > 0
    laid = (kind == NEAR) | ((kind == HOLD) & is_rule)
    in_hand = jnp.where((kind == HOLD) & is_rule, product, -1)
    needed = jnp.any(jnp.isin(in_hand, jnp.where(laid, subject, 0)))
    objects = _codes(task.objects)
    idle = ~jnp.isin(objects, jnp.append(subject, partner))
    return jnp.where(needed, jnp.max(jnp.where(idle, objects, 0)), 0)


def seek(task: XLandParams, obs: jax.Array) -> jax.Array:
    """The expert: goes to a visible subject and uses it; else goes to a partner and puts down the carried object.

    ``obs [V · V · 13] -> action []``, for a view of V × V cells. There is one subject at a time, so
    a visible subject means that the agent carries nothing. Without a visible subject the agent may
    or may not carry it. The rule assumes that it does; if it does not, it stands before the partner
    forever, which is its most frequent failure. Paths are shortest through the visible cells and
    keep the target in view. Without a target the agent walks straight on and turns two cells from a
    wall; along the walls it comes to see the whole room.
    """
    per_cell = 1 + len(SHAPES) + len(COLORS)
    size = math.isqrt(obs.size // per_cell)
    cells = obs.reshape(size, size, per_cell)
    blocked = cells[..., 0] > 0
    shape, color = jnp.split(cells[..., 1:], [len(SHAPES)], axis=-1)
    tiles = _codes(jnp.stack([shape @ jnp.array(SHAPES), color @ jnp.array(COLORS)], axis=-1))
    free = ~blocked & (tiles == 0)

    kind, subject, partner, _ = _demands(task)
    is_tile = tiles > 0
    is_subject = is_tile & jnp.isin(tiles, subject)
    is_partner = is_tile & jnp.isin(tiles, jnp.append(partner, _landmark(task)))
    empty_handed = jnp.any(is_subject)
    row, column = jnp.mgrid[:size, :size]
    away = jnp.abs(row - (size - 1)) + jnp.abs(column - size // 2)
    targets = jnp.where(empty_handed, is_subject, is_partner)
    target = jnp.argmin(jnp.where(targets, away, size**2))
    is_near = jnp.any((kind == NEAR) & (subject == jnp.ravel(tiles)[target]))
    done_by = jnp.where(empty_handed, jnp.where(is_near, FORWARD, PICK_UP), PUT_DOWN)

    distance, move = _way(free, target, empty_handed)
    approach = jnp.where(distance == 0, done_by, move)
    reachable = jnp.any(targets) & (distance < size**3)
    return jnp.where(reachable, approach, _exploring(free, blocked)).astype(jnp.int32)


def _way(
    free: jax.Array, target: jax.Array, empty_handed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Length ``[]`` of the shortest way to the cell ``target []`` through ``free [V, V]``, and its first move ``[]``.

    The way ends in front of the target, or one step from such a place if the agent carries
    something to put down beside the target. It has length V³ if there is none.
    """
    size = free.shape[0]
    row, column = jnp.mgrid[:size, :size]
    # A pose is a direction and a cell, [4, V, V].
    step_down, step_across = STEPS[:, :1, None], STEPS[:, 1:, None]
    down, across = (target // size - row)[None], (target % size - column)[None]
    ahead = down * step_down + across * step_across
    aside = down * step_across - across * step_down
    in_view = free[None] & (ahead >= 0) & (ahead < size) & (jnp.abs(aside) <= size // 2)
    front = row[None] + step_down + 1, column[None] + step_across + 1  # with a margin of one
    faced = (ahead == 1) & (aside == 0)
    one_off = jnp.abs(down - step_down) + jnp.abs(across - step_across) == 1
    beside = one_off & jnp.pad(free, 1)[front]
    far = size**3
    length = jnp.where(in_view & jnp.where(empty_handed, faced, beside), 0, far)

    def after(length: jax.Array) -> jax.Array:
        """Lengths of the ways after each move (forward, right, left), ``[3, 4, V, V]``."""
        margin = jnp.pad(length, ((0, 0), (1, 1), (1, 1)), constant_values=far)
        forward = margin[jnp.arange(4)[:, None, None], *front]
        return jnp.stack([forward, jnp.roll(length, -1, axis=0), jnp.roll(length, 1, axis=0)])

    def closer(_: int, length: jax.Array) -> jax.Array:
        return jnp.where(in_view, jnp.minimum(length, 1 + jnp.min(after(length), axis=0)), far)

    length = jax.lax.fori_loop(0, 3 * size, closer, length)
    here = (AHEAD, size - 1, size // 2)
    return length[here], jnp.argmin(after(length)[:, *here])


def _exploring(free: jax.Array, blocked: jax.Array) -> jax.Array:
    """The move ``[]`` without a target: straight on, and a turn two cells from a wall; of cells ``[V, V]``."""
    size = free.shape[0]
    me = (size - 1, size // 2)

    def is_open(direction: int) -> jax.Array:
        one, two = (me + i * STEPS[direction] for i in (1, 2))
        return free[*one] & ~blocked[*two]

    # From a lane along the wall the agent sees the middle of the room too.
    turn = jnp.where(is_open(LEFTWARD) & ~is_open(RIGHTWARD), LEFT, RIGHT)
    return jnp.where(is_open(AHEAD), FORWARD, turn)
