"""XLand-MiniGrid: a room of objects with hidden production rules and a hidden goal.

Nikulin et al. 2023, "XLand-MiniGrid: scalable meta-reinforcement learning environments in JAX". The
task is a *ruleset*: the goal that ends the episode, the rules by which objects turn into others,
and the objects at the episode's start. The goal may need an object that must first be made, from an
object that must be made in turn. The package's benchmarks of rulesets are downloads; here rulesets
are drawn.

The expert is told the ruleset but has an agent's observations: it sees neither the cells behind it
nor the object that it carries.

Needs the package: ``pip install "jaxmeta[xland]"``.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import Sampler, TaskFamily

OUTSIDE, WALL = 0, 2
SHAPES = (3, 4, 5, 7, 11, 12)
"""The package's numbers of a ball, square, pyramid, key, hexagon and star: the objects that can be
carried."""
COLORS = (1, 2, 3, 4, 5, 6)
"""The package's numbers of red, green, blue, purple, yellow and grey."""
OBJECTS = np.array([(shape, color) for shape in SHAPES for color in COLORS], np.uint8)
"""All objects, ``[36, 2]``: shape and colour."""

GOALS = {1: 1, 3: 1, 4: 2}
"""Number of objects of a goal, by the package's number of the goal: hold one, be next to one, put
one next to another."""
RULES = {1: 1, 2: 1, 3: 2}
"""Number of objects of a rule, by the package's number of the rule. A rule turns its objects into
another one: when one is picked up, when the agent walks up to one, when one is put next to
another."""
GOAL_LENGTH, RULE_LENGTH = 5, 7

NUM_ACTIONS = 5
FORWARD, RIGHT, LEFT, PICK_UP, PUT_DOWN = range(NUM_ACTIONS)

HOLD, NEAR, PAIR = 1, 2, 3
"""Kinds of goals and rules in one numbering; 0 means none."""
AHEAD, RIGHTWARD, LEFTWARD = 0, 1, 3
"""Directions, clockwise from the agent's own."""
STEPS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
"""Steps in the four directions, as rows and columns of the view."""


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


@struct.dataclass
class XLandState:
    """The room, the agent and the steps taken."""

    grid: jax.Array
    """``[size, size, 2]``, uint8: shape and colour in each cell."""
    agent: Any
    """The package's state of the agent: its position, its direction and the object that it
    carries."""
    time: jax.Array
    """``[]``, int32: steps taken in the episode."""


@dataclasses.dataclass(frozen=True)
class XLand(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    The agent sees ``view_size`` by ``view_size`` cells in front of it, from the middle of the last
    row, but not the object that it carries. Each cell has 13 entries, flat: whether it is a wall or
    beyond one, the object's shape, one-hot, and its colour, one-hot. Actions are a step forward, a
    turn right, a turn left, picking up and putting down. There are no doors, so the package's sixth
    action, to open one, is left out. Reaching the goal at step t earns ``1 - 0.9 t / horizon`` and
    terminates the episode; there is no other reward. The places of the objects and of the agent are
    drawn in every episode.
    """

    size: int = 9
    """Cells along a side, walls included."""
    view_size: int = 5
    """Cells along a side of the view, odd."""
    horizon: int = 100
    """Time limit of an episode, in steps."""

    @property
    def default_params(self) -> XLandParams:
        return XLandParams(
            goal=jnp.array([1, *OBJECTS[0], 0, 0], jnp.uint8),
            rules=jnp.zeros((1, RULE_LENGTH), jnp.uint8),
            objects=jnp.asarray(OBJECTS[:1]),
        )

    def reset_env(self, key: jax.Array, params: XLandParams) -> tuple[jax.Array, XLandState]:
        _, env = _package()
        start = env.reset(self._settings(params), key)
        return _seen(start.observation), XLandState(
            start.state.grid, start.state.agent, jnp.zeros((), jnp.int32)
        )

    def step_env(
        self, key: jax.Array, state: XLandState, action: jax.Array, params: XLandParams
    ) -> tuple[jax.Array, XLandState, jax.Array, jax.Array, dict]:
        types, env = _package()
        before = types.State(
            key=key,
            step_num=state.time,
            grid=state.grid,
            agent=state.agent,
            goal_encoding=params.goal,
            rule_encoding=params.rules,
            carry=types.EnvCarry(),
        )
        timestep = types.TimeStep(
            before, types.StepType.MID, jnp.zeros(()), jnp.ones(()), observation=()
        )
        after = env.step(self._settings(params), timestep, action)
        state = XLandState(after.state.grid, after.state.agent, after.state.step_num)
        return _seen(after.observation), state, after.reward, after.discount == 0, {}

    def is_truncated(self, state: XLandState, params: XLandParams) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "XLand"

    def action_space(self, params: XLandParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(NUM_ACTIONS)

    def observation_space(self, params: XLandParams) -> spaces.Box:
        num_entries = self.view_size**2 * (1 + len(SHAPES) + len(COLORS))
        return spaces.Box(0.0, 1.0, (num_entries,), jnp.float32)

    def _settings(self, task: XLandParams) -> Any:
        types, env = _package()
        return env.default_params(
            height=self.size,
            width=self.size,
            view_size=self.view_size,
            max_steps=self.horizon,
            grid_type="R1",
            ruleset=types.RuleSet(goal=task.goal, rules=task.rules, init_tiles=task.objects),
        )


@functools.cache
def _package() -> tuple[Any, Any]:
    """The package's types and its environment."""
    try:
        # The modules hold arrays, which must be concrete even if a trace imports them first.
        with jax.ensure_compile_time_eval():
            from xminigrid import types
            from xminigrid.envs.xland import XLandMiniGrid
    except ImportError as error:
        raise checks.missing("xminigrid", "xland") from error
    return types, XLandMiniGrid()


def _seen(cells: jax.Array) -> jax.Array:
    """The observation of ``cells [V, V, 2]``, flat."""
    shape, color = cells[..., 0, None], cells[..., 1, None]
    is_shape = shape == jnp.array(SHAPES)[None, None]
    is_color = (color == jnp.array(COLORS)[None, None]) & is_shape.any(axis=-1, keepdims=True)
    blocked = (shape == OUTSIDE) | (shape == WALL)
    return jnp.concatenate([blocked, is_shape, is_color], axis=-1).astype(float).reshape(-1)


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


def draw_ruleset(
    rng: np.random.Generator, *, depth: int, num_distractors: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random ruleset ``(goal [5], rules [depth, 7], objects [I, 2])``, uint8.

    The goal has one or two objects. One of them must be made by a rule from one or two others, one
    of those by another rule, and so on, ``depth`` times. The objects that no rule makes are there
    from the start, with ``num_distractors`` more. All objects are different.
    """
    objects = OBJECTS[rng.permutation(len(OBJECTS))]

    def some(count: int) -> np.ndarray:
        nonlocal objects
        taken, objects = objects[:count], objects[count:]
        return taken[np.lexsort(taken.T)]  # the order of two objects has no meaning

    number = int(rng.choice(list(GOALS)))
    needed = some(GOALS[number])
    goal = _padded([number, *needed.flat], GOAL_LENGTH)
    rules, there = [], []
    for _ in range(depth):
        made = rng.integers(len(needed))
        there.append(np.delete(needed, made, axis=0))
        number = int(rng.choice(list(RULES)))
        product, needed = needed[made], some(RULES[number])
        rules.append(_padded([number, *needed.flat, *product], RULE_LENGTH))
    there += [needed, some(num_distractors)]
    return goal, np.array(rules, np.uint8).reshape(depth, RULE_LENGTH), np.concatenate(there)


def draw_rulesets(
    seed: int, num_rulesets: int, *, depth: int, num_distractors: int, num_rules: int
) -> XLandParams:
    """``num_rulesets`` different random rulesets, padded to ``num_rules`` rules; leading ``[num_rulesets]``.

    Raises:
        ValueError: there are fewer rulesets, or random draws do not find enough of them.
    """
    rng = np.random.default_rng([seed, depth])
    found: dict[bytes, tuple[np.ndarray, ...]] = {}
    for _ in range(20 * num_rulesets):
        goal, rules, objects = draw_ruleset(rng, depth=depth, num_distractors=num_distractors)
        rows = (num_rules - len(rules), max_objects(num_rules, num_distractors) - len(objects))
        padded = [np.pad(x, ((0, n), (0, 0))) for x, n in zip((rules, objects), rows, strict=True)]
        found.setdefault(goal.tobytes() + rules.tobytes(), (goal, *padded))
        if len(found) == num_rulesets:
            goals, rules, objects = map(np.stack, zip(*found.values(), strict=True))
            return XLandParams(*map(jnp.asarray, (goals, rules, objects)))
    raise ValueError(
        f"{num_rulesets} different rulesets are wanted (twice num_rulesets, for train and test), but at "
        f"depth={depth} only {len(found)} were found"
    )


def max_objects(num_rules: int, num_distractors: int) -> int:
    """The most initial objects of a ruleset: two of the goal, one more for each rule, and the distractors."""
    return 2 + num_rules + num_distractors


def xland(
    *,
    size: int = 9,
    view_size: int = 5,
    horizon: int = 100,
    depth: int = 1,
    num_distractors: int = 2,
    num_rulesets: int = 1024,
    seed: int = 0,
) -> TaskFamily:
    """XLand-MiniGrid in one room: the goal, the production rules and the initial objects are drawn.

    Rulesets of train and test have one distribution, and no two have the same goal and rules. Out
    of distribution the goal needs one more rule.

    An episode earns at most ``1 - 0.9 / horizon``, and 0 if the goal is not reached.

    Args:
        size: Cells along a side of the room, walls included.
        view_size: Cells along a side of the view, odd, at least 3.
        horizon: Time limit of an episode, in steps.
        depth: Rules to use one after the other to reach the goal.
        num_distractors: Objects without use.
        num_rulesets: Rulesets of each split, drawn uniformly.
        seed: Seed of the rulesets.

    Raises:
        ValueError: ``view_size`` is even, or there are too few objects for the distractors.
        ImportError: XLand-MiniGrid is not installed.
    """
    checks.at_least("horizon", horizon, 1)
    checks.at_least("view_size", view_size, 3)
    checks.at_least("depth", depth, 0)
    checks.at_least("num_distractors", num_distractors, 0)
    checks.at_least("num_rulesets", num_rulesets, 1)
    checks.at_least("seed", seed, 0)
    if view_size % 2 == 0:
        raise ValueError(f"view_size={view_size} must be odd: the agent is in the middle of a row")
    num_rules = depth + 1
    # Twice as many cells as objects leave room for the agent to move.
    num_cells = 2 * (max_objects(num_rules, num_distractors) + 1)
    least_size = 2 + int(np.ceil(np.sqrt(num_cells)))
    checks.at_least("size", size, least_size)
    most = len(OBJECTS) - 2 - 2 * num_rules
    if num_distractors > most:
        raise ValueError(
            f"num_distractors={num_distractors} must be at most {most} at depth={depth}: "
            f"there are {len(OBJECTS)} objects in all"
        )
    _package()
    drawn = functools.partial(
        draw_rulesets, seed, num_distractors=num_distractors, num_rules=num_rules
    )
    both = drawn(2 * num_rulesets, depth=depth)
    return TaskFamily(
        name="xland",
        env=XLand(size, view_size, horizon),
        horizon=horizon,
        train=_sampler(jax.tree.map(lambda x: x[:num_rulesets], both)),
        test=_sampler(jax.tree.map(lambda x: x[num_rulesets:], both)),
        out_of_distribution=_sampler(drawn(num_rulesets, depth=depth + 1)),
        expert_action=seek,
    )


def _padded(row: list[Any], length: int) -> np.ndarray:
    """``row`` with zeros up to ``length``, uint8."""
    return np.array([*row, *[0] * (length - len(row))], np.uint8)


def _sampler(rulesets: XLandParams) -> Sampler:
    """A sampler that is uniform over ``rulesets``, which have a leading axis."""
    num_rulesets = len(rulesets.goal)

    def sample(key: jax.Array) -> XLandParams:
        index = jax.random.randint(key, (), 0, num_rulesets)
        return jax.tree.map(lambda x: x[index], rulesets)

    return sample
