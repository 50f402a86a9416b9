"""XLand-MiniGrid: rooms of objects with hidden production rules and a hidden goal.

Nikulin et al. 2023, "XLand-MiniGrid: scalable meta-reinforcement learning environments in JAX". The
task is a *ruleset*: the goal that ends the episode, the rules by which objects turn into others,
and the objects at the episode's start. The goal may need an object that must first be made, from an
object that must be made in turn.

`xland` has the published settings (layouts of rooms with doors, the generators' rulesets or a file of
them, the time limit), and one of its own, which is smaller: goals and rules without directions, in one
room. There an expert is known. The package steps the environment in both.

Results are published over 25 episodes in each task: the return is summed or averaged over the episodes,
and of the tasks the mean and the 20th percentile are reported.

Needs the package: ``pip install "jaxmeta[xland]"``.
"""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks import xland_edits, xland_rulesets
from jaxmeta.tasks.family import SPLITS, Sampler, TaskFamily
from jaxmeta.tasks.xland_expert import COLORS, FORWARD, LEFT, PICK_UP, PUT_DOWN, RIGHT, seek
from jaxmeta.tasks.xland_rulesets import (
    GENERATORS,
    GOAL_LENGTH,
    RULE_LENGTH,
    SHAPES,
    XLandParams,
    padded,
)

OUTSIDE, WALL = 0, 2
GOAL_TILE, CLOSED_DOOR, OPEN_DOOR = xland_rulesets.GOAL_TILE, 9, 10
OBJECTS = np.array([(shape, color) for shape in SHAPES for color in COLORS], np.uint8)
"""All objects of the rulesets drawn here, ``[36, 2]``: shape and colour."""

GOALS = {1: 1, 3: 1, 4: 2}
"""Number of objects of a goal that is drawn here, by the package's number of the goal: hold one, be
next to one, put one next to another."""
RULES = {1: 1, 2: 1, 3: 2}
"""Number of objects of a rule that is drawn here, by the package's number of the rule. A rule turns
its objects into another one: when one is picked up, when the agent walks up to one, when one is put
next to another."""

ACTIONS = (FORWARD, RIGHT, LEFT, PICK_UP, PUT_DOWN)
NUM_ACTIONS = len(ACTIONS)
OPEN = NUM_ACTIONS
"""The package's sixth action: open or close the door ahead."""

Layout = Literal["R1", "R2", "R4", "R6", "R9"]
"""The number of rooms."""
LEAST_SIZES = {"R1": 3, "R2": 5, "R4": 5, "R6": 9, "R9": 7}
"""The least number of cells along a side."""


def num_cells(layout: str, size: int) -> int:
    """The number of cells without a wall or a door."""
    inside = size - 2
    return {
        "R1": inside**2,
        "R2": inside * (inside - 1),
        "R4": (inside - 1) ** 2,
        "R6": 3 * inside + (inside - 2) * (inside - 5),  # the corridor is 3 cells wide
        "R9": (inside - 2) ** 2,
    }[layout]


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
    row, through walls and doors, but not the object that it carries. Each cell has 13 entries, flat:
    whether it is a wall or beyond one, the object's shape, one-hot, and its colour, one-hot. Actions
    are a step forward, a turn right, a turn left, picking up and putting down. There are no doors, so
    the package's sixth action, to open one, is left out. Reaching the goal at step t earns
    ``1 - 0.9 t / horizon`` and terminates the episode; there is no other reward. The places of the
    objects, of the agent and of the doors are drawn in every episode.

    ``published`` environments have the sixth action. A cell has 20 entries: a shape may also be a goal
    tile, a closed or an open door, and there are 10 colours instead of 6.
    """

    size: int = 9
    """Cells along a side, walls included."""
    view_size: int = 5
    """Cells along a side of the view, odd."""
    horizon: int = 100
    """Time limit of an episode, in steps."""
    layout: Layout = "R1"
    """The number of rooms."""
    published: bool = False
    """Whether observations and actions are those of the published tasks; needed where there are
    doors."""

    def __post_init__(self) -> None:
        if self.layout != "R1" and not self.published:
            raise ValueError(f"layout={self.layout!r} has doors: it needs published=True")

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
        return self._seen(start.observation), XLandState(
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
        return self._seen(after.observation), state, after.reward, after.discount == 0, {}

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
        return spaces.Discrete(NUM_ACTIONS + self.published)

    def observation_space(self, params: XLandParams) -> spaces.Box:
        shapes, colors = self._told_apart
        num_entries = self.view_size**2 * (1 + len(shapes) + len(colors))
        return spaces.Box(0.0, 1.0, (num_entries,), jnp.float32)

    @property
    def _told_apart(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes and colours, in the order of an observation's entries."""
        if self.published:
            return (*SHAPES, GOAL_TILE, CLOSED_DOOR, OPEN_DOOR), xland_rulesets.COLORS
        return SHAPES, COLORS

    def _seen(self, cells: jax.Array) -> jax.Array:
        """The observation of ``cells [V, V, 2]``, flat."""
        shape, color = cells[..., 0, None], cells[..., 1, None]
        shapes, colors = (jnp.array(x)[None, None] for x in self._told_apart)
        is_shape = shape == shapes
        is_color = (color == colors) & is_shape.any(axis=-1, keepdims=True)
        blocked = (shape == OUTSIDE) | (shape == WALL)
        return jnp.concatenate([blocked, is_shape, is_color], axis=-1).astype(float).reshape(-1)

    def _settings(self, task: XLandParams) -> Any:
        types, env = _package()
        return env.default_params(
            height=self.size,
            width=self.size,
            view_size=self.view_size,
            max_steps=self.horizon,
            grid_type=self.layout,
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
    goal = padded([number, *needed.flat], GOAL_LENGTH)
    rules, there = [], []
    for _ in range(depth):
        made = rng.integers(len(needed))
        there.append(np.delete(needed, made, axis=0))
        number = int(rng.choice(list(RULES)))
        product, needed = needed[made], some(RULES[number])
        rules.append(padded([number, *needed.flat, *product], RULE_LENGTH))
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
    horizon: int | None = None,
    depth: int = 1,
    num_distractors: int = 2,
    num_rulesets: int = 1024,
    seed: int = 0,
    layout: Layout = "R1",
    generator: Literal["trivial", "small", "medium", "high"] | None = None,
    rulesets: str | Path | None = None,
) -> TaskFamily:
    """XLand-MiniGrid in one room: the goal, the production rules and the initial objects are drawn.

    Other layouts have more rooms. Rulesets come from one of three places. ``generator`` names a published generator: goals and rules
    of 11 kinds each, 10 colours, and distractor rules (see `xland_rulesets`). ``rulesets`` is the path
    of a published benchmark file. Without both they are drawn here: goals and rules of 3 kinds each,
    6 colours, and a chain of ``depth`` rules.

    No two rulesets have the same goal and rules, in one split or in two. Train and test have one
    distribution. Out of distribution the goal needs one more rule; the main chain of a generator has
    one more level. Of a file these are the rulesets with the most rules.

    An episode earns at most ``1 - 0.9 / horizon``, and 0 if the goal is not reached.

    The expert is only told rulesets that are drawn here, in one room. A published goal may be to stand
    *below* an object, and an agent does not see which way is down. So no action of one observation is
    known to be good, and ``expert_action`` is None.

    ``mutate`` makes small changes (`xland_edits`).

    Args:
        size: Cells along a side, walls included. In layout R4 an odd number, in R9 one more than a
            multiple of three. Published are 9 to 17 for R1, R2 and R4, 13 to 19 for R6, 16 to 25 for R9.
        view_size: Cells along a side of the view, odd, at least 3.
        horizon: Time limit of an episode, in steps. None is the published limit, ``3 size²``; for
            rulesets drawn here in one room it is 100.
        depth: Rules to use one after the other to reach the goal, for rulesets drawn here.
        num_distractors: Objects without use, for rulesets drawn here.
        num_rulesets: Rulesets of each split, drawn uniformly.
        seed: Seed of the rulesets, or of which of a file's are in which split.
        layout: The number of rooms. Between rooms there are closed doors, and a sixth action opens them.
        generator: The published generator.
        rulesets: Path of a published file, for example ``small_1m_v3``. Nothing is downloaded.

    Raises:
        ValueError: a setting has no effect, or contradicts another; ``view_size`` is even; the rooms are
            too small for the objects, or there are too few objects; the file is damaged or has too few
            rulesets.
        FileNotFoundError: there is no such file.
        ImportError: XLand-MiniGrid is not installed.
    """
    size = checks.at_least("size", size, 3)
    checks.at_least("view_size", view_size, 3)
    checks.at_least("depth", depth, 0)
    checks.at_least("num_distractors", num_distractors, 0)
    checks.at_least("num_rulesets", num_rulesets, 1)
    checks.at_least("seed", seed, 0)
    checks.choice("layout", layout, LEAST_SIZES)
    if view_size % 2 == 0:
        raise ValueError(f"view_size={view_size} must be odd: the agent is in the middle of a row")
    is_own = generator is None and rulesets is None
    if not is_own:
        _check_unused(generator, rulesets, depth=(depth, 1), num_distractors=(num_distractors, 2))
    published = not is_own or layout != "R1"
    if horizon is None:
        horizon = 3 * size**2 if published else 100
    checks.at_least("horizon", horizon, 1)
    if is_own:
        # Twice as many cells as objects leave room for the agent to move.
        _check_size(layout, size, 2 * (max_objects(depth + 1, num_distractors) + 1))
    _package()
    if generator is not None:
        drawn = _generated(seed, num_rulesets, generator)
    elif rulesets is not None:
        drawn = _from_file(rulesets, seed, num_rulesets)
    else:
        drawn = _drawn(seed, num_rulesets, depth, num_distractors)
    if not is_own:
        _check_size(layout, size, drawn[0].objects.shape[1] + 1)
    train, test, out_of_distribution = map(_sampler, drawn)
    return TaskFamily(
        name="xland",
        env=XLand(size, view_size, horizon, layout, published),
        horizon=horizon,
        train=train,
        test=test,
        out_of_distribution=out_of_distribution,
        expert_action=None if published else seek,
        disjoint=SPLITS,
        mutate=xland_edits.mutation(drawn[1:], published=not is_own),
    )


def _check_unused(
    generator: str | None, rulesets: str | Path | None, **settings: tuple[int, int]
) -> None:
    """Raises ValueError unless one source of rulesets is named and ``settings``, value and default, are not."""
    if generator is not None and rulesets is not None:
        raise ValueError(
            f"generator={generator!r} has no effect with rulesets={str(rulesets)!r}: leave one out"
        )
    for name, (value, default) in settings.items():
        if value != default:
            source = f"generator={generator!r}" if rulesets is None else "rulesets="
            raise ValueError(
                f"{name}={value} has no effect with {source}; leave it at its default {default}"
            )


def _check_size(layout: str, size: int, least_cells: int) -> None:
    """Raises ValueError unless the rooms are connected and have ``least_cells`` cells."""
    sizes = (x for x in itertools.count(LEAST_SIZES[layout]) if num_cells(layout, x) >= least_cells)
    checks.at_least("size", size, next(sizes))
    if layout == "R4" and size % 2 == 0:
        raise ValueError(f"size={size} must be odd with layout='R4', so that all rooms are equal")
    if layout == "R9" and size % 3 != 1:
        raise ValueError(
            f"size={size} must be one more than a multiple of 3 with layout='R9', for example "
            f"{size - (size - 1) % 3 + 3}"
        )


def _drawn(seed: int, num_rulesets: int, depth: int, num_distractors: int) -> list[XLandParams]:
    """Rulesets of the three splits, of `draw_rulesets`."""
    num_rules = depth + 1
    most = len(OBJECTS) - 2 - 2 * num_rules
    if num_distractors > most:
        raise ValueError(
            f"num_distractors={num_distractors} must be at most {most} at depth={depth}: "
            f"there are {len(OBJECTS)} objects in all"
        )
    drawn = functools.partial(
        draw_rulesets, seed, num_distractors=num_distractors, num_rules=num_rules
    )
    both = drawn(2 * num_rulesets, depth=depth)
    return [*_cut(both, num_rulesets), drawn(num_rulesets, depth=depth + 1)]


def _generated(seed: int, num_rulesets: int, generator: str) -> list[XLandParams]:
    """Rulesets of the three splits, of a published generator."""
    checks.choice("generator", generator, GENERATORS)
    settings = GENERATORS[generator]
    deeper = settings._replace(depth=settings.depth + 1)
    # Few rulesets are larger than the largest of the generators' may be; they are drawn again.
    largest = GENERATORS["high"]
    draw = functools.partial(
        xland_rulesets.draw_many,
        num_rules=min(deeper.max_rules, largest.max_rules),
        num_objects=min(deeper.max_objects, largest.max_objects),
    )
    number = list(GENERATORS).index(generator)
    rng = np.random.default_rng([seed, number, 0])
    both = draw(rng, settings, 2 * num_rulesets)
    rng = np.random.default_rng([seed, number, 1])
    beyond = draw(rng, deeper, num_rulesets, least_depth=deeper.depth)
    return [*_cut(both, num_rulesets), beyond]


def _from_file(path: str | Path, seed: int, num_rulesets: int) -> list[XLandParams]:
    """Rulesets of the three splits, of a published file."""
    found = xland_rulesets.read(path)
    rules = np.asarray(found.rules)
    names = xland_rulesets.identity(np.asarray(found.goal), rules)
    _, first = np.unique(names, axis=0, return_index=True)
    if len(first) < 3 * num_rulesets:
        raise ValueError(
            f"rulesets={str(path)!r} holds {len(first)} different rulesets, and three splits of "
            f"num_rulesets={num_rulesets} need {3 * num_rulesets}"
        )
    order = np.random.default_rng(seed).permutation(np.sort(first))
    count = np.count_nonzero(rules[order, :, 0], axis=1)
    order = order[np.argsort(count, kind="stable")]
    order, most = order[:-num_rulesets], order[-num_rulesets:]
    order = np.random.default_rng(seed).permutation(order)
    rows = (order[:num_rulesets], order[num_rulesets : 2 * num_rulesets], most)
    return [jax.tree.map(lambda x, i=i: x[i], found) for i in rows]


def _cut(both: XLandParams, num_rulesets: int) -> tuple[XLandParams, XLandParams]:
    """The first ``num_rulesets``, and the others."""
    return jax.tree.map(lambda x: x[:num_rulesets], both), jax.tree.map(
        lambda x: x[num_rulesets:], both
    )


def _sampler(rulesets: XLandParams) -> Sampler:
    """A sampler that is uniform over ``rulesets``, which have a leading axis."""
    num_rulesets = len(rulesets.goal)

    def sample(key: jax.Array) -> XLandParams:
        index = jax.random.randint(key, (), 0, num_rulesets)
        return jax.tree.map(lambda x: x[index], rulesets)

    return sample
