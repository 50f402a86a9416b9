"""Small changes of XLand-MiniGrid's rulesets, for `curricula.accel`.

A change is one of four: an object takes the place of another one wherever the goal, the rules and the episode's start name it; the
goal or a rule becomes one of another kind on the same objects; a rule that makes what nobody needs is added or taken away; an object
is added at the start, or one that is not needed is taken away. The first two leave the main chain as it is, so that a goal that can be
reached without what distractor rules do still can. Distractor rules may spoil it, as in the published files.

A change that would make a ruleset of another split is undone.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.tasks.xland_expert import COLORS as OWN_COLORS
from jaxmeta.tasks.xland_rulesets import (
    CARRIED,
    COLORS,
    FLOOR,
    GOAL_LENGTH,
    GOAL_TILE,
    HOLD,
    NEAR_GOALS,
    NEAR_RULES,
    PAIR_GOALS,
    PAIR_RULES,
    PLACED,
    RULE_LENGTH,
    RULES,
    XLandParams,
)

Tiles = jax.Array
"""Objects as numbers ``[...]``, int32: 256 times the shape and the colour; 0 is padding."""


class Kinds(NamedTuple):
    """The goals, rules and objects that a changed ruleset may have."""

    goals: np.ndarray
    """bool ``[15, 15]``: whether a goal of one kind may become one of another."""
    rules: np.ndarray
    """bool ``[12, 12]``: whether a rule of one kind may become one of another."""
    carried: np.ndarray
    """``[C]``: all objects that can be carried."""
    placed: np.ndarray
    """``[P]``: all objects that can lie in a room."""
    adds_rules: bool
    """Whether rules without use are added and taken away."""


def numbers(tiles: Iterable[tuple[int, int]]) -> np.ndarray:
    """Shapes and colours as `Tiles`."""
    return np.array([256 * shape + color for shape, color in tiles], np.int32)


def kinds(*, published: bool) -> Kinds:
    """The goals, rules and objects of published rulesets, or of those without directions."""
    one_goals, two_goals = (HOLD, *NEAR_GOALS), tuple(PAIR_GOALS)
    one_rules, two_rules = (HOLD, *NEAR_RULES), tuple(PAIR_RULES)
    colors: tuple[int, ...] = COLORS
    if not published:
        one_goals, two_goals, one_rules, two_rules = (HOLD, 3), (4,), (HOLD, 2), (3,)
        colors = OWN_COLORS
    return Kinds(
        goals=_within((one_goals, two_goals), 15),
        rules=_within((one_rules, two_rules), 12),
        carried=numbers(tile for tile in CARRIED if tile[1] in colors),
        placed=numbers(tile for tile in PLACED if tile[1] in colors),
        adds_rules=published,
    )


def _within(groups: tuple[tuple[int, ...], ...], size: int) -> np.ndarray:
    """Whether two different numbers are in one group, bool ``[size, size]``."""
    same = np.zeros((size, size), bool)
    for group in groups:
        same[np.ix_(group, group)] = True
    return same & ~np.eye(size, dtype=bool)


def mutation(
    others: Iterable[XLandParams], *, published: bool
) -> Callable[[jax.Array, XLandParams], XLandParams]:
    """``(key, task) -> task``: a small random change, which makes no ruleset of ``others``.

    Args:
        others: The rulesets of the other splits, with a leading axis.
        published: Whether the rulesets are published ones, with all kinds and with distractor rules.
    """
    of = kinds(published=published)
    taken = [names(np.asarray(x.goal), np.asarray(x.rules), np) for x in others]
    forbidden = np.concatenate(taken)
    changes = [renamed, with_another_kind, with_another_object]
    changes += [with_another_rule] if of.adds_rules else []

    def mutate(key: jax.Array, task: XLandParams) -> XLandParams:
        which_key, key = jax.random.split(key)
        which = jax.random.randint(which_key, (), 0, len(changes))
        parts = _Parts(task.goal, task.rules, task.objects)
        after = jax.lax.switch(which, [lambda k, x, f=f: f(k, x, of) for f in changes], key, parts)
        name = names(after.goal[None], after.rules[None], jnp)[0]
        is_new = ~jnp.any(jnp.all(name[None] == forbidden, axis=1))
        kept = jax.tree.map(lambda new, old: jnp.where(is_new, new, old), after, parts)
        return XLandParams(*kept)

    return mutate


class _Parts(NamedTuple):
    goal: jax.Array
    rules: jax.Array
    objects: jax.Array


class _Named(NamedTuple):
    """The objects that a ruleset names, as `Tiles`."""

    goal: jax.Array
    """``[2]``."""
    inputs: jax.Array
    """``[R, 2]``."""
    products: jax.Array
    """``[R]``."""
    objects: jax.Array
    """``[I]``."""


def _named(x: _Parts) -> _Named:
    goal, rules = x.goal.astype(jnp.int32), x.rules.astype(jnp.int32)
    slots = 256 * rules[:, 1::2] + rules[:, 2::2]
    is_pair = _is_pair(rules[:, 0])
    products = jnp.where(is_pair, slots[:, 2], slots[:, 1])
    inputs = slots[:, :2].at[:, 1].set(jnp.where(is_pair, slots[:, 1], 0))
    objects = x.objects.astype(jnp.int32)
    return _Named(
        256 * goal[1::2] + goal[2::2], inputs, products, 256 * objects[:, 0] + objects[:, 1]
    )


def _is_pair(rule_kind: jax.Array) -> jax.Array:
    return (rule_kind >= min(PAIR_RULES)) & (rule_kind <= max(PAIR_RULES))


def _all_of(named: _Named) -> Tiles:
    return jnp.concatenate([jnp.ravel(x) for x in named])


def _one_of(key: jax.Array, some: jax.Array) -> jax.Array:
    """A uniform draw of an index at which ``some [N]`` (bool) is true, int32 ``[]``; any index without one."""
    return jnp.argmax(jnp.where(some, jax.random.uniform(key, some.shape), -1.0)).astype(jnp.int32)


def renamed(key: jax.Array, x: _Parts, of: Kinds) -> _Parts:
    """With an object that the ruleset names, and that can be carried, replaced everywhere by one that it does not name."""
    old_key, new_key = jax.random.split(key)
    tiles = jnp.asarray(of.carried)
    used = jnp.any(_all_of(_named(x))[None] == tiles[:, None], axis=1)
    old, new = tiles[_one_of(old_key, used)], tiles[_one_of(new_key, ~used)]
    possible = jnp.any(used) & jnp.any(~used)

    def put(pairs: jax.Array) -> jax.Array:
        number = 256 * pairs[..., 0].astype(jnp.int32) + pairs[..., 1]
        bytes_ = jnp.stack([new // 256, new % 256]).astype(pairs.dtype)
        bytes_ = jnp.broadcast_to(bytes_, pairs.shape)
        return jnp.where((possible & (number == old))[..., None], bytes_, pairs)

    def put_in_row(row: jax.Array) -> jax.Array:
        pairs = put(row[..., 1:].reshape(*row.shape[:-1], -1, 2))
        return jnp.concatenate([row[..., :1], pairs.reshape(*row.shape[:-1], -1)], axis=-1)

    return _Parts(put_in_row(x.goal), put_in_row(x.rules), put(x.objects))


def with_another_kind(key: jax.Array, x: _Parts, of: Kinds) -> _Parts:
    """With the goal or a rule of another kind on the same objects. A goal tile cannot be held."""
    row_key, goal_key, rule_key = jax.random.split(key, 3)
    row = _one_of(row_key, jnp.concatenate([jnp.ones(1, bool), x.rules[:, 0] > 0]))

    def another(key: jax.Array, same: np.ndarray, first: jax.Array) -> jax.Array:
        kind = first[0]
        can = jnp.asarray(same)[kind] & ((jnp.arange(len(same)) != HOLD) | (first[1] != GOAL_TILE))
        return jnp.where(jnp.any(can), _one_of(key, can).astype(kind.dtype), kind)

    goal = x.goal.at[0].set(another(goal_key, of.goals, x.goal))
    at = jnp.maximum(row - 1, 0)
    rules = x.rules.at[at, 0].set(another(rule_key, of.rules, x.rules[at]))
    return x._replace(
        goal=jnp.where(row == 0, goal, x.goal), rules=jnp.where(row > 0, rules, x.rules)
    )


def with_another_object(key: jax.Array, x: _Parts, of: Kinds) -> _Parts:
    """With an object more at the start, which the ruleset does not name; or, as likely, with one less that it does not need."""
    coin_key, tile_key, place_key = jax.random.split(key, 3)
    named, tiles = _named(x), jnp.asarray(of.carried)
    new = ~jnp.any(_all_of(named)[None] == tiles[:, None], axis=1)
    tile = tiles[_one_of(tile_key, new)]
    needed = jnp.concatenate([named.goal, jnp.ravel(named.inputs)])
    spare = (named.objects > 0) & ~jnp.any(named.objects[:, None] == needed[None], axis=1)
    adds = jax.random.bernoulli(coin_key)
    places = jnp.where(adds, (named.objects == 0) & jnp.any(new), spare)
    tile = jnp.where(adds, jnp.stack([tile // 256, tile % 256]), 0).astype(x.objects.dtype)
    objects = x.objects.at[_one_of(place_key, places)].set(tile)
    return x._replace(objects=jnp.where(jnp.any(places), objects, x.objects))


def with_another_rule(key: jax.Array, x: _Parts, of: Kinds) -> _Parts:
    """With a rule more that makes what nobody needs, and its inputs at the start; or, as likely, with such a rule less."""
    coin_key, drop_key, key = jax.random.split(key, 3)
    named = _named(x)
    needed = jnp.concatenate([named.goal, jnp.ravel(named.inputs)])
    there = x.rules[:, 0] > 0
    idle = there & ~jnp.any(named.products[:, None] == needed[None], axis=1)
    dropped = x.rules.at[_one_of(drop_key, idle)].set(0)
    fewer = x._replace(rules=jnp.where(jnp.any(idle), dropped, x.rules))
    adds = jax.random.bernoulli(coin_key)
    more = _with_rule(key, x, named, of)
    return jax.tree.map(lambda more, fewer: jnp.where(adds, more, fewer), more, fewer)


def _with_rule(key: jax.Array, x: _Parts, named: _Named, of: Kinds) -> _Parts:
    """With a new rule without use, where there are rows for it and for its inputs at the start."""
    kind_key, product_key, first_key, carried_key, second_key = jax.random.split(key, 5)
    kind = jnp.asarray(RULES)[jax.random.randint(kind_key, (), 0, len(RULES))]
    is_pair = _is_pair(kind)
    carried, placed = jnp.asarray(of.carried), jnp.asarray(of.placed)
    products = jnp.concatenate([carried, jnp.asarray(numbers([FLOOR]))])
    unused = ~jnp.any(_all_of(named)[None] == products[:, None], axis=1)
    unused = unused.at[-1].set(True)
    product = products[_one_of(product_key, unused)]
    some = jnp.ones(len(carried), bool)
    first = jnp.where(
        is_pair,
        placed[_one_of(first_key, jnp.ones(len(placed), bool))],
        carried[_one_of(carried_key, some)],
    )
    second = carried[_one_of(second_key, some)]
    tiles = jnp.where(is_pair, jnp.stack([first, second, product]), jnp.stack([first, product, 0]))
    bytes_ = jnp.stack([tiles // 256, tiles % 256], axis=-1).reshape(-1)
    row = jnp.concatenate([kind[None], bytes_]).astype(x.rules.dtype)
    free = named.objects == 0
    places = jnp.argsort(~free, stable=True)[:2]
    inputs = jnp.where(jnp.asarray([True, False]) | is_pair, jnp.stack([first, second]), 0)
    inputs = jnp.stack([inputs // 256, inputs % 256], axis=-1).astype(x.objects.dtype)
    there = x.rules[:, 0] > 0
    possible = ~jnp.all(there) & (jnp.sum(free) >= 1 + is_pair)
    # Without a second input nothing is put into the second place.
    objects = x.objects.at[places[0]].set(inputs[0])
    objects = objects.at[places[1]].set(jnp.where(is_pair, inputs[1], objects[places[1]]))
    after = x._replace(rules=x.rules.at[jnp.argmin(there)].set(row), objects=objects)
    return jax.tree.map(lambda new, old: jnp.where(possible, new, old), after, x)


def names(goals: Any, rules: Any, xp: Any) -> Any:
    """Two words that name each goal with its rules, ``[N, 5]`` and ``[N, R, 7]`` to uint32 ``[N, 2]``.

    They are equal where `xland_rulesets.identity` is, and almost never elsewhere: they do not depend on the order of the rules, on
    rows of zeros, nor on how a pair is written.
    """
    goals = xp.pad(goals, ((0, 0), (0, RULE_LENGTH - GOAL_LENGTH)))
    rows = xp.concatenate([goals[:, None], rules], axis=1).astype(xp.uint32)
    kind, one, other = rows[..., 0], rows[..., 1:3], rows[..., 3:5]
    is_goal = xp.arange(rows.shape[1])[None] == 0
    turned = xp.where(is_goal, (kind == 9) | (kind == 10), (kind == 6) | (kind == 7))
    free = xp.where(is_goal, kind == 4, kind == 3)
    larger = 256 * one[..., 0] + one[..., 1] > 256 * other[..., 0] + other[..., 1]
    swap = (turned | (free & larger))[..., None]
    first, second = xp.where(swap, other, one), xp.where(swap, one, other)
    kind = xp.where(turned, kind - xp.uint32(2), kind)
    bytes_ = xp.concatenate([kind[..., None], first, second, rows[..., 5:]], axis=-1)
    there = rows[..., :1] > 0
    return xp.sum(
        xp.where(there, _mixed(bytes_, is_goal, xp), xp.uint32(0)), axis=1, dtype=xp.uint32
    )


def _mixed(bytes_: Any, is_goal: Any, xp: Any) -> Any:
    """Two words of the digits ``[..., D]`` of each row and of whether it is the goal, ``[..., 2]``."""
    words = []
    for factor in (0x01000193, 0x9E3779B1):
        word = xp.zeros(bytes_.shape[:-1], xp.uint32) + is_goal.astype(xp.uint32)
        for digit in range(bytes_.shape[-1]):
            word = (word ^ bytes_[..., digit]) * xp.uint32(factor)
            word = word ^ (word >> xp.uint32(15))
        words.append(word * xp.uint32(0x85EBCA6B))
    return xp.stack(words, axis=-1)
