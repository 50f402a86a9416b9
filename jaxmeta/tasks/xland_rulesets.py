"""Rulesets of XLand-MiniGrid by the published rules, and the published files of rulesets.

A drawn ruleset has one of 11 kinds of goals and any of 11 kinds of rules. Its *main chain* begins at the
goal: a rule makes each object of the goal, further rules make the inputs of these rules, and so on down
to ``Generator.depth`` levels. A branch ends early with the probability ``Generator.prune``. The inputs
that no rule makes lie in the room from the start. *Distractor rules* make what nobody needs, out of
anything. They may also spoil an object that the goal needs. The published files hold such rulesets, and
in some of them nobody can reach the goal. Here a ruleset is drawn again if `is_solvable` denies it.

Everything here is NumPy and Python, before any program is compiled. Rows of zeros are padding.
"""

import bz2
import os
import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxmeta import checks

Tile = tuple[int, int]
"""A shape and a colour, in the package's numbers."""

SHAPES = (3, 4, 5, 7, 11, 12)
"""The package's numbers of a ball, square, pyramid, key, hexagon and star: the objects that can be
carried."""
GOAL_TILE = 6
"""The package's number of the goal tile, an object that cannot be carried."""
COLORS = (1, 2, 3, 4, 5, 6, 8, 9, 10, 11)
"""The package's numbers of red, green, blue, purple, yellow, grey, orange, white, brown and pink."""
FLOOR: Tile = (1, 7)
CARRIED: tuple[Tile, ...] = tuple((shape, color) for shape in SHAPES for color in COLORS)
"""All objects that can be carried."""
PLACED: tuple[Tile, ...] = (*CARRIED, *((GOAL_TILE, color) for color in COLORS))
"""All objects that can lie in a room."""

UP, RIGHT, DOWN, LEFT = range(4)
ANY = (UP, RIGHT, DOWN, LEFT)

HOLD = 1
"""The package's number of the goal, and of the rule, on an object in the hand."""
NEAR_GOALS = {3: ANY, 11: (UP,), 12: (RIGHT,), 13: (DOWN,), 14: (LEFT,)}
"""Goals that the agent stands next to an object: by number, the directions from the agent to the
object."""
PAIR_GOALS = {4: ANY, 7: (UP,), 8: (RIGHT,), 9: (DOWN,), 10: (LEFT,)}
"""Goals that two objects lie side by side: by number, the directions from the first to the second."""
NEAR_RULES = {2: ANY, 8: (UP,), 9: (RIGHT,), 10: (DOWN,), 11: (LEFT,)}
"""Rules on an object next to the agent."""
LAID_RULES = {kind: where for kind, where in NEAR_RULES.items() if kind != 2}
"""Those that the package applies after putting down, too."""
PAIR_RULES = {3: ANY, 4: (UP,), 5: (RIGHT,), 6: (DOWN,), 7: (LEFT,)}
"""Rules on two objects side by side."""
GOALS = (HOLD, *NEAR_GOALS, *PAIR_GOALS)
"""The numbers of the 11 kinds of goals that are drawn."""
RULES = (HOLD, *NEAR_RULES, *PAIR_RULES)
"""The numbers of the 11 kinds of rules."""
GOAL_LENGTH, RULE_LENGTH = 5, 7
LAST_GOAL, LAST_RULE = 14, 11


@struct.dataclass
class XLandParams:
    """The task: a ruleset in the package's code, uint8. Rows of zeros are padding.

    Shapes: R rules, I initial objects.
    """

    goal: jax.Array
    """``[5]``, the goal."""
    rules: jax.Array
    """``[R, 7]``, the rules."""
    objects: jax.Array
    """``[I, 2]``, shapes and colours of the initial objects."""


class Generator(NamedTuple):
    """Settings of a published generator of rulesets."""

    depth: int
    """Levels of the main chain."""
    prune: float
    """The probability that a branch of the chain ends, at each of its objects."""
    num_distractor_rules: int
    """The most rules without use; their number is uniform from 0 on."""
    num_distractors: int
    """Objects without use, besides the inputs of distractor rules."""

    @property
    def max_rules(self) -> int:
        """The most rules of a ruleset; at least 1, because padding needs a row."""
        return max(1, 2 ** (self.depth + 1) - 2 + self.num_distractor_rules)

    @property
    def max_objects(self) -> int:
        """The most initial objects of a ruleset."""
        return 2 ** (self.depth + 1) + self.num_distractors + 2 * self.num_distractor_rules


GENERATORS = {
    "trivial": Generator(0, 0.0, 0, 3),
    "small": Generator(1, 0.3, 2, 2),
    "medium": Generator(2, 0.1, 3, 2),
    "high": Generator(3, 0.1, 4, 1),
}
"""The published generators by name."""


MOST_IN_VAIN = 2000
"""Successive draws without a new ruleset before `draw_many` gives up."""


class Rule(NamedTuple):
    """A production rule."""

    kind: int
    """The package's number."""
    inputs: tuple[Tile, ...]
    """One object, or two."""
    product: Tile
    """The object that takes the place of the input, or of the second of two."""


class Ruleset(NamedTuple):
    """A drawn task, not yet padded."""

    kind: int
    """The package's number of the goal."""
    goal: tuple[Tile, ...]
    """The goal's objects, one or two."""
    chain: tuple[Rule, ...]
    """The main chain, from the goal down."""
    distractors: tuple[Rule, ...]
    """The rules without use."""
    objects: tuple[Tile, ...]
    """The objects at the episode's start; the same one may be there twice."""
    depth: int
    """Levels of the main chain that were reached."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules, in the order in which the package applies them."""
        return self.chain + self.distractors


def draw(rng: np.random.Generator, settings: Generator) -> Ruleset | None:
    """A random ruleset by the published rules, or None if the chain used up all objects.

    It may be unsolvable, see `is_solvable`.
    """
    kind = _one_of(rng, GOALS)
    goal = _inputs(rng, kind in PAIR_GOALS, (), goal_tile=kind != HOLD)
    used, level = set(goal), list(goal)
    chain: list[Rule] = []
    objects: list[Tile] = []
    depth = 0
    for _ in range(settings.depth):
        below: list[Tile] = []
        for product in level:
            if rng.random() < settings.prune:
                objects.append(product)
                continue
            if len(used.intersection(CARRIED)) == len(CARRIED):
                return None
            rule = _rule(rng, product, used)
            used.update(rule.inputs)
            below.extend(rule.inputs)
            chain.append(rule)
        depth += bool(below)
        level = below
    objects += level
    unused = [tile for tile in PLACED if tile not in used]
    if not unused:
        return None
    objects += [_one_of(rng, unused) for _ in range(settings.num_distractors)]
    products = [tile for tile in (*CARRIED, FLOOR) if tile not in used]
    distractors = tuple(
        _rule(rng, _one_of(rng, products), ())
        for _ in range(rng.integers(settings.num_distractor_rules + 1))
    )
    objects += [tile for rule in distractors for tile in rule.inputs]
    return Ruleset(kind, goal, tuple(chain), distractors, tuple(objects), depth)


def _one_of(rng: np.random.Generator, values: Any) -> Any:
    return values[rng.integers(len(values))]


def _inputs(
    rng: np.random.Generator, is_pair: bool, used: Any, *, goal_tile: bool
) -> tuple[Tile, ...]:
    """One object that is not in ``used``, or two, of which the second can be carried.

    ``goal_tile`` says whether the first may be a goal tile.
    """
    first = [tile for tile in (PLACED if goal_tile else CARRIED) if tile not in used]
    second = [tile for tile in CARRIED if tile not in used]
    return (_one_of(rng, first), _one_of(rng, second)) if is_pair else (_one_of(rng, first),)


def _rule(rng: np.random.Generator, product: Tile, used: Any) -> Rule:
    """A random rule that makes ``product`` of objects that are not in ``used``."""
    kind = _one_of(rng, RULES)
    is_pair = kind in PAIR_RULES
    return Rule(kind, _inputs(rng, is_pair, used, goal_tile=is_pair), product)


def is_solvable(ruleset: Ruleset) -> bool:
    """Whether an agent with room enough can reach the goal, in spite of the distractor rules.

    Exact for rulesets of `draw`, up to what lies next to the agent by chance when an episode begins: there
    an object may be picked up without a step towards it.

    The function collects all objects that can come to lie on the floor and into the hand. That is enough
    because no rule of `draw` takes an object that two others need.
    """
    rules, kind, goal = ruleset.rules, ruleset.kind, ruleset.goal
    floor, hand = set(ruleset.objects), set[Tile]()
    pairs = [rule.inputs for rule in rules if rule.kind in PAIR_RULES]
    while True:
        known = len(floor) + len(hand)
        for tile in tuple(floor):
            seen = {after_walking(rules, tile, direction) for direction in ANY}
            floor |= seen
            if tile in seen and tile[0] in SHAPES:
                hand.add(after_picking_up(rules, tile))
        for tile in tuple(hand):
            hand.add(after_picking_up(rules, tile))  # also tried with the hand full
            floor |= {after_putting(rules, tile, direction)[0] for direction in ANY}
        for put, partner, direction, side in _pairings(pairs, floor, hand):
            floor |= set(after_putting(rules, put, direction, partner, side))
        if len(floor) + len(hand) == known:
            break
    if kind == HOLD:
        return goal[0] in hand
    if kind in NEAR_GOALS:
        where = NEAR_GOALS[kind]
        walked = goal[0] in floor and any(
            after_walking(rules, goal[0], x) == goal[0] for x in where
        )
        # The goals of a direction count after putting down, too.
        laid = kind != 3 and goal[0] in hand
        return walked or (laid and after_putting(rules, goal[0], where[0])[0] == goal[0])
    return any(
        is_pair(PAIR_GOALS[kind], goal, *after_putting(rules, put, direction, partner, side), side)
        for put, partner, direction, side in _pairings([goal], floor, hand)
    )


def _pairings(
    pairs: list[tuple[Tile, ...]], floor: set[Tile], hand: set[Tile]
) -> Iterator[tuple[Tile, Tile, int, int]]:
    """All ``(put, partner, direction, side)`` by which one of a pair can be put next to the other."""
    for one, other in pairs:
        for put, partner in ((one, other), (other, one)):
            if put in hand and partner in floor:
                for direction in ANY:
                    # The agent itself stands on the fourth side.
                    yield from (
                        (put, partner, direction, side)
                        for side in ANY
                        if side != (direction + 2) % 4
                    )


def after_walking(rules: tuple[Rule, ...], tile: Tile, direction: int) -> Tile:
    """The object that ``tile`` turns into when the agent steps next to it and sees it in ``direction``."""
    for rule in rules:
        if rule.kind in NEAR_RULES and direction in NEAR_RULES[rule.kind]:
            tile = rule.product if rule.inputs[0] == tile else tile
    return tile


def after_picking_up(rules: tuple[Rule, ...], tile: Tile) -> Tile:
    """The object that is in the hand after picking up ``tile``, or trying to with ``tile`` in the hand."""
    for rule in rules:
        if rule.kind == HOLD and rule.inputs[0] == tile:
            tile = rule.product
    return tile


def after_putting(
    rules: tuple[Rule, ...], put: Tile, direction: int, partner: Tile = FLOOR, side: int = UP
) -> tuple[Tile, Tile]:
    """The objects in the places of ``put``, which the agent lays in ``direction``, and of ``partner``, on its ``side``."""
    for rule in rules:
        if rule.kind in PAIR_RULES:
            if is_pair(PAIR_RULES[rule.kind], rule.inputs, put, partner, side):
                put, partner = FLOOR, rule.product
        elif direction in LAID_RULES.get(rule.kind, ()) and rule.inputs[0] == put:
            put = rule.product
    return put, partner


def is_pair(
    directions: tuple[int, ...], pair: tuple[Tile, ...], put: Tile, partner: Tile, side: int
) -> bool:
    """Whether ``put`` with ``partner`` on its ``side`` is the ``pair`` with its second in one of ``directions``."""
    found = (put, partner) == pair and side in directions
    return found or ((partner, put) == pair and (side + 2) % 4 in directions)


def draw_many(
    rng: np.random.Generator,
    settings: Generator,
    num_rulesets: int,
    *,
    num_rules: int,
    num_objects: int,
    least_depth: int = 0,
) -> XLandParams:
    """``num_rulesets`` different solvable rulesets, padded to ``num_rules`` rules and ``num_objects`` objects.

    Two rulesets are the same if they have the same goal and rules, however written (see `identity`). A
    ruleset that was drawn before, is too large, or has a main chain of less than ``least_depth`` levels is
    drawn again.

    Raises:
        ValueError: random draws do not find enough of them.
    """
    found: dict[bytes, tuple[np.ndarray, ...]] = {}
    in_vain = 0
    while len(found) < num_rulesets:
        in_vain += 1
        if in_vain > MOST_IN_VAIN:
            raise ValueError(
                f"{num_rulesets} different rulesets are wanted, of which train and test have num_rulesets each, but only "
                f"{len(found)} were found: set num_rulesets lower"
            )
        drawn = draw(rng, settings)
        if drawn is None or drawn.depth < least_depth:
            continue
        if len(drawn.rules) > num_rules or len(drawn.objects) > num_objects:
            continue
        arrays = encoded(drawn, num_rules=num_rules, num_objects=num_objects)
        name = identity(arrays[0][None], arrays[1][None])[0].tobytes()
        if name in found or not (_is_unspoilt(drawn) or is_solvable(drawn)):
            continue
        found[name] = arrays
        in_vain = 0
    return XLandParams(*(jnp.asarray(np.stack(x)) for x in zip(*found.values(), strict=True)))


def _is_unspoilt(ruleset: Ruleset) -> bool:
    """Whether no distractor rule takes only what the goal needs. Then the main chain leads to the goal."""
    needed = {*ruleset.goal, *(tile for rule in ruleset.chain for tile in rule.inputs)}
    return not any(needed.issuperset(rule.inputs) for rule in ruleset.distractors)


def encoded(ruleset: Ruleset, *, num_rules: int, num_objects: int) -> tuple[np.ndarray, ...]:
    """A ruleset in the package's code, ``(goal [5], rules [num_rules, 7], objects [num_objects, 2])``, uint8."""
    goal = padded([ruleset.kind, *np.ravel(ruleset.goal)], GOAL_LENGTH)
    rules = np.zeros((num_rules, RULE_LENGTH), np.uint8)
    for row, rule in zip(rules, ruleset.rules, strict=False):
        row[:] = padded([rule.kind, *np.ravel(rule.inputs), *rule.product], RULE_LENGTH)
    objects = np.zeros((num_objects, 2), np.uint8)
    objects[: len(ruleset.objects)] = ruleset.objects
    return goal, rules, objects


def padded(row: list[Any], length: int) -> np.ndarray:
    """``row`` with zeros up to ``length``, uint8."""
    return np.array([*row, *[0] * (length - len(row))], np.uint8)


def identity(goals: np.ndarray, rules: np.ndarray) -> np.ndarray:
    """A name of each goal with its rules, ``[N, 5]`` and ``[N, R, 7]`` to ``[N, 1 + R]``, uint64.

    It does not depend on the order of rules, nor on how a pair is written: 'a below b' is 'b above a',
    and the order of a pair without direction has no meaning.
    """
    goals = np.pad(goals, ((0, 0), (0, RULE_LENGTH - GOAL_LENGTH)))
    rows = np.concatenate([goals[:, None], rules], axis=1).astype(np.uint64)
    kind, one, other = rows[..., 0], rows[..., 1:3], rows[..., 3:5]
    is_goal = np.arange(rows.shape[1]) == 0
    turned = np.where(is_goal, (kind == 9) | (kind == 10), (kind == 6) | (kind == 7))
    free = np.where(is_goal, kind == 4, kind == 3)
    swap = turned | (free & (_number(one) > _number(other)))
    pair = np.where(swap[..., None], rows[..., [3, 4, 1, 2]], rows[..., 1:5])
    kind = np.where(turned, kind - np.uint64(2), kind)
    names = _number(np.concatenate([kind[..., None], pair, rows[..., 5:]], axis=-1))
    return np.concatenate([names[:, :1], np.sort(names[:, 1:], axis=1)], axis=1)


def _number(bytes_: np.ndarray) -> np.ndarray:
    """The number ``[...]`` with the digits ``[..., D]`` in base 256."""
    number = np.zeros(bytes_.shape[:-1], np.uint64)
    for digit in np.moveaxis(bytes_, -1, 0):
        number = number * np.uint64(256) + digit
    return number


def read(path: str | os.PathLike) -> XLandParams:
    """All rulesets of a published benchmark file, in its order: a bzip2 of a pickled dictionary of arrays.

    Nothing but arrays and plain values is unpickled, so a foreign file cannot run code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or is no benchmark of XLand-MiniGrid; the message names it and the fault.
    """
    where = f"rulesets={str(path)!r}"
    checks.path("rulesets", path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{where}: there is no such file")
    try:
        with bz2.open(path, "rb") as file:
            content = _Arrays(file).load()
        arrays = [np.asarray(content[x]) for x in ("goals", "rules", "init_tiles")]
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(
            f"{where} is damaged or is no benchmark file of XLand-MiniGrid, which is a bzip2 of a pickled dictionary with "
            f"'goals', 'rules' and 'init_tiles': {type(error).__name__}: {error}"
        ) from error
    fault = _fault(*arrays)
    if fault is not None:
        raise ValueError(f"{where} is no benchmark file of XLand-MiniGrid: {fault}")
    return XLandParams(*(jnp.asarray(x, jnp.uint8) for x in arrays))


def _fault(goals: np.ndarray, rules: np.ndarray, objects: np.ndarray) -> str | None:
    """The fault of the arrays of a file, if there is one."""
    for name, x, shape in (
        ("goals", goals, (GOAL_LENGTH,)),
        ("rules", rules, (None, RULE_LENGTH)),
        ("init_tiles", objects, (None, 2)),
    ):
        fits = x.ndim == 1 + len(shape) and x.size and len(x) == len(goals)
        if not fits or any(n not in (None, m) for n, m in zip(shape, x.shape[1:], strict=True)):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            return (
                f"{name!r} is of shape {x.shape} and must be [N, {wanted}], with the N of 'goals'"
            )
        if not np.issubdtype(x.dtype, np.integer) or x.min() < 0 or x.max() > 255:
            return f"{name!r} must hold integers from 0 to 255, and is {x.dtype}"
    for name, x, last in (("goals", goals, LAST_GOAL), ("rules", rules, LAST_RULE)):
        if x[..., 0].max() > last:
            return f"{name!r} has the kind {x[..., 0].max()}, and kinds are 0 to {last}"
    known = np.zeros((256, 256), bool)
    known[tuple(np.transpose([(0, 0), FLOOR, *PLACED]))] = True
    if not known[objects[..., 0], objects[..., 1]].all():
        return "'init_tiles' has an object that is none of the 7 shapes in 10 colours"
    return None


class _Arrays(pickle.Unpickler):
    """Unpickles arrays of NumPy and of jax, as NumPy's, and plain values; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        package = module.split(".")[0]
        if package == "numpy" and name in ("ndarray", "dtype", "_reconstruct", "_frombuffer"):
            return super().find_class(module, name)
        if (module, name) == ("jax._src.array", "_reconstruct_array"):
            return _array
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is no array")


def _array(make: Any, args: tuple, state: Any, _: Any) -> np.ndarray:
    """The array within a pickled array of jax, of any of its versions."""
    array = make(*args)
    array.__setstate__(state)
    return array
