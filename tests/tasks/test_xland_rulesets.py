"""Rulesets by the published rules: counts, kinds, a way to the goal; what rules do; the files."""

import bz2
import functools
import os
import pickle
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.tasks import xland_rulesets
from jaxmeta.tasks.xland_rulesets import (
    ANY,
    CARRIED,
    FLOOR,
    GENERATORS,
    GOALS,
    HOLD,
    NEAR_GOALS,
    PAIR_GOALS,
    PAIR_RULES,
    PLACED,
    RULES,
    Generator,
    Rule,
    Ruleset,
    draw,
    identity,
    is_solvable,
    read,
)

A, B, C, D = CARRIED[0], CARRIED[13], CARRIED[27], CARRIED[41]
GOAL = PLACED[-1]

every_generator = pytest.mark.parametrize("name", GENERATORS)


def drawn(settings, number=1000, seed=0):
    rng = np.random.default_rng(seed)
    return [draw(rng, settings) for _ in range(number)]


@every_generator
def test_counts_of_a_thousand_rulesets(name):
    """Against the branching process in closed form: a goal or a rule has 16/11 objects on average."""
    settings = GENERATORS[name]
    some = drawn(settings)
    fertility = 16 / 11 * (1 - settings.prune)
    chain = sum(fertility**level for level in range(1, settings.depth + 1))
    for counted, mean in (
        ([len(x.goal) for x in some], 16 / 11),
        ([len(x.chain) for x in some], chain),
        ([len(x.distractors) for x in some], settings.num_distractor_rules / 2),
        ([len(x.distractors) == 0 for x in some], 1 / (settings.num_distractor_rules + 1)),
        # Of the chain: objects that nothing makes.
        ([len(x.objects) - laid(x, settings) for x in some], 16 / 11 + chain * 5 / 11),
    ):
        assert abs(np.mean(counted) - mean) <= 4 * np.std(counted) / np.sqrt(1000)
    assert max(len(x.rules) for x in some) <= settings.max_rules
    assert max(len(x.objects) for x in some) <= settings.max_objects
    assert max(x.depth for x in some) == settings.depth


def laid(ruleset, settings):
    return settings.num_distractors + sum(len(rule.inputs) for rule in ruleset.distractors)


def test_the_most_rules_and_objects_are_the_published_benchmarks():
    assert [x.max_rules for x in GENERATORS.values()] == [1, 4, 9, 18]
    assert [x.max_objects for x in GENERATORS.values()] == [5, 10, 16, 25]


@every_generator
def test_kinds_are_uniform(name):
    some = drawn(GENERATORS[name])
    for known, found in (
        (GOALS, [x.kind for x in some]),
        (RULES, [rule.kind for x in some for rule in x.chain]),
        (RULES, [rule.kind for x in some for rule in x.distractors]),
    ):
        if found:
            count = Counter(found)
            assert set(count) == set(known)
            share, spread = len(found) / 11, np.sqrt(len(found) * 10) / 11
            assert all(abs(x - share) < 4.5 * spread for x in count.values())


@every_generator
def test_each_object_of_the_chain_is_made_once_or_lies_there(name):
    for x in drawn(GENERATORS[name]):
        there = Counter(x.objects)
        needed = Counter(x.goal) + Counter(t for rule in x.chain for t in rule.inputs)
        made = Counter(rule.product for rule in x.chain)
        assert not made - needed
        assert not needed - made - there
        inputs = [t for rule in x.chain for t in set(rule.inputs)]
        assert len(set(inputs)) == len(inputs)  # no two rules take one object
        assert not set(inputs) & set(x.goal)
        assert not {rule.product for rule in x.distractors} & set(needed)
        for rule in x.rules:
            assert all(tile in CARRIED for tile in rule.inputs[rule.kind in PAIR_RULES :])
            assert rule.inputs[0] in PLACED


def test_colours_shapes_and_what_vanishes_all_occur():
    some = drawn(GENERATORS["high"])
    assert {tile for x in some for tile in x.objects} == set(PLACED)
    assert {rule.product for x in some for rule in x.distractors} == {*CARRIED, FLOOR}


def test_a_chain_that_uses_up_all_objects_is_given_up():
    endless = Generator(9, 0.0, 0, 1)
    assert None in drawn(endless, 20)
    assert all(x is None or len(set(x.objects)) <= 70 for x in drawn(endless, 20))


def kept(settings, number=1000):
    """Rulesets that `draw_many` keeps, uncoded."""
    rows = dict(num_rules=settings.max_rules, num_objects=settings.max_objects)
    return xland_rulesets.draw_many(np.random.default_rng(1), settings, number, **rows)


def uncoded(goal, rules, objects):
    def tiles(numbers):
        return tuple((numbers[i], numbers[i + 1]) for i in range(0, len(numbers), 2))

    goal, rules, objects = (np.asarray(x).tolist() for x in (goal, rules, objects))
    count = 2 if goal[0] in PAIR_GOALS else 1
    laws = tuple(
        Rule(kind, *((x[:2], x[2]) if kind in PAIR_RULES else (x[:1], x[1])))
        for kind, *numbers in rules
        if kind
        for x in [tiles(numbers)]
    )
    there = tuple(map(tuple, (x for x in objects if any(x))))
    return Ruleset(goal[0], tiles(goal[1:])[:count], laws, (), there, 0)


@every_generator
def test_every_ruleset_that_is_kept_can_be_solved(name):
    """And none is there twice; without the first rule of the chain few could be solved."""
    found = kept(GENERATORS[name])
    rows = list(zip(*map(np.asarray, (found.goal, found.rules, found.objects)), strict=True))
    some = [uncoded(*row) for row in rows]
    assert all(map(is_solvable, some))
    names = identity(np.asarray(found.goal), np.asarray(found.rules))
    assert len(set(map(bytes, names))) == 1000
    chained = [x for x in some if any(rule.product in x.goal for rule in x.chain)]
    assert (len(chained) > 500) == (name != "trivial")
    without = [
        x._replace(chain=tuple(rule for rule in x.chain if rule.product not in x.goal))
        for x in chained
    ]
    still = [x for x in without if is_solvable(x)]
    assert all(set(x.goal) <= set(x.objects) for x in still)


def test_rulesets_are_drawn_until_there_are_no_more(monkeypatch):
    """There are 60 objects to hold, and many drawn twice."""
    monkeypatch.setattr(xland_rulesets, "GOALS", (HOLD,))
    rng, settings = np.random.default_rng(0), GENERATORS["trivial"]
    rows = dict(num_rules=1, num_objects=5)
    found = xland_rulesets.draw_many(rng, settings, 60, **rows)
    assert {tuple(x[1:3]) for x in np.asarray(found.goal).tolist()} == set(CARRIED)
    with pytest.raises(ValueError, match="61 different rulesets are wanted, .* only 60 were found"):
        xland_rulesets.draw_many(rng, settings, 61, **rows)


def test_encoding_keeps_everything():
    for x in drawn(GENERATORS["medium"], 50):
        again = uncoded(*xland_rulesets.encoded(x, num_rules=9, num_objects=16))
        assert (again.kind, again.goal, again.chain) == (x.kind, x.goal, x.rules)
        assert again.objects == x.objects


@pytest.mark.parametrize(
    ("kind", "goal", "rules", "solvable"),
    [
        (HOLD, (A,), [], True),
        (HOLD, (C,), [], False),  # there is none
        # What is picked up, or walked up to, turns into another object before the goal is checked.
        (HOLD, (A,), [Rule(HOLD, (A,), D)], False),
        (HOLD, (A,), [Rule(2, (A,), D)], False),
        (HOLD, (A,), [Rule(8, (A,), D)], True),  # from another side
        (HOLD, (A,), [Rule(kind, (A,), D) for kind in (8, 9, 10, 11)], False),
        (3, (A,), [Rule(HOLD, (A,), D)], True),  # need not be picked up
        (3, (A,), [Rule(10, (A,), D)], True),
        (11, (A,), [Rule(8, (A,), D)], False),
        (12, (A,), [Rule(8, (A,), D)], True),
        (11, (A,), [Rule(2, (A,), FLOOR)], False),  # no way to pick it up and lay it down
        (4, (A, B), [Rule(3, (B, A), D)], False),
        (4, (A, B), [Rule(4, (A, B), D)], True),
        (7, (A, B), [Rule(4, (A, B), D)], False),
        (7, (A, B), [Rule(6, (B, A), D)], False),  # B above A is A below B
        (7, (A, B), [Rule(4, (B, A), D)], True),
        (4, (A, GOAL), [], True),
        (4, (A, GOAL), [Rule(HOLD, (A,), D)], False),  # the other one cannot be carried
        # Chains.
        (HOLD, (C,), [Rule(HOLD, (A,), C)], True),
        (HOLD, (C,), [Rule(HOLD, (D,), C), Rule(HOLD, (A,), D)], True),
        (HOLD, (C,), [Rule(5, (A, B), C), Rule(HOLD, (B,), D)], True),  # A is carried
        (HOLD, (C,), [Rule(5, (A, B), C), Rule(HOLD, (B,), D), Rule(HOLD, (A,), D)], False),
        (HOLD, (C,), [Rule(5, (A, B), C), Rule(3, (A, B), FLOOR)], True),  # the first counts
        (HOLD, (C,), [Rule(3, (A, B), FLOOR), Rule(5, (A, B), C)], False),
        (3, (C,), [Rule(2, (A,), C), Rule(2, (C,), D)], False),
    ],
)
def test_goals_that_rules_spoil_and_those_they_leave(kind, goal, rules, solvable):
    task = Ruleset(kind, goal, tuple(rules), (), (A, B, GOAL), 0)
    assert is_solvable(task) == solvable


def test_a_ruleset_that_may_be_spoilt_is_tried():
    """Those that are not tried are all solvable."""
    some = drawn(GENERATORS["high"], 300, seed=2)
    tried = [x for x in some if not xland_rulesets._is_unspoilt(x)]
    assert 20 < len(tried) < 150
    assert all(is_solvable(x) for x in some if x not in tried)


def test_rulesets_are_one_however_they_are_written():
    def named(kind, goal, *rules):
        arrays = xland_rulesets.encoded(
            Ruleset(kind, goal, tuple(rules), (), (A,), 0), num_rules=3, num_objects=2
        )
        return identity(*(x[None] for x in arrays[:2])).tobytes()

    for kind, turned in ((7, 9), (8, 10)):  # up and down, right and left
        assert named(kind, (A, B)) == named(turned, (B, A))
        assert named(kind, (A, B)) != named(turned, (A, B))
        assert named(kind, (A, B)) != named(kind, (B, A))
    for kind, turned in ((4, 6), (5, 7)):
        same = named(1, (C,), Rule(kind, (A, B), D)), named(1, (C,), Rule(turned, (B, A), D))
        assert same[0] == same[1]
        assert same[0] != named(1, (C,), Rule(turned, (A, B), D))
    assert named(4, (A, B)) == named(4, (B, A))
    assert named(1, (C,), Rule(3, (A, B), D)) == named(1, (C,), Rule(3, (B, A), D))
    one, other = Rule(1, (A,), D), Rule(11, (B,), C)
    assert named(1, (C,), one, other) == named(1, (C,), other, one) != named(1, (C,), one)
    # The first of a goal's numbers means another thing than a rule's.
    assert named(9, (A,)) != named(7, (A,))
    assert named(1, (C,), Rule(9, (A,), D)) != named(1, (C,), Rule(7, (A,), D))


def save(path, content):
    with bz2.open(path, "wb") as file:
        pickle.dump(content, file)
    return path


WHOLE = {
    "goals": np.ones((3, 5), np.uint8),
    "rules": np.ones((3, 2, 7), np.uint8),
    "init_tiles": np.tile(np.array(A, np.uint8), (3, 4, 1)),
    "num_rules": np.ones((3, 1), np.uint8),
}


def test_files_of_jax_s_and_of_numpy_s_arrays_are_read(tmp_path):
    for number, convert in enumerate((jnp.asarray, np.asarray, np.asfortranarray)):
        path = save(tmp_path / str(number), {name: convert(x) for name, x in WHOLE.items()})
        np.testing.assert_array_equal(read(path).rules, WHOLE["rules"])
        np.testing.assert_array_equal(read(str(path)).objects, WHOLE["init_tiles"])


class Foreign:
    def __reduce__(self):
        return os.mkdir, ("was_run",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"goals": None}, "no benchmark file"),
        ({"goals": Foreign()}, "holds a (posix|nt).mkdir, which is no array"),
        ({"goals": WHOLE["goals"][:2]}, r"'rules' is of shape \(3, 2, 7\)"),
        ({"goals": WHOLE["goals"][:, :4]}, r"'goals' is of shape \(3, 4\) and must be \[N, 5\]"),
        ({"rules": WHOLE["goals"]}, r"'rules' is of shape .* must be \[N, any, 7\]"),
        ({"rules": WHOLE["rules"].astype(float)}, "'rules' must hold integers"),
        ({"rules": WHOLE["rules"] - 2.0}, "'rules' must hold integers"),
        ({"rules": 12 * WHOLE["rules"]}, "'rules' has the kind 12, and kinds are 0 to 11"),
        ({"goals": 15 * WHOLE["goals"]}, "'goals' has the kind 15, and kinds are 0 to 14"),
        ({"init_tiles": WHOLE["init_tiles"] + 5}, "'init_tiles' has an object that is none of"),
    ],
)
def test_foreign_files_are_named(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "some", WHOLE | change)
    with pytest.raises(ValueError, match=rf"rulesets='.*some' is .*{message}"):
        read(path)
    assert os.listdir() == ["some"]


def test_damaged_files_are_named(tmp_path):
    whole = save(tmp_path / "whole", WHOLE).read_bytes()
    for content in (whole[:-20], whole[:40] + b"!" + whole[41:], b"", b"no archive"):
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(ValueError, match=r"rulesets='.*damaged' is damaged or is no benchmark"):
            read(tmp_path / "damaged")
    with pytest.raises(FileNotFoundError, match=r"rulesets='.*other': there is no such file"):
        read(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read(tmp_path)


STEPS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
SOME = (A, B, C, D, GOAL)
MIDDLE = np.array([3, 3])


class Situation(NamedTuple):
    """An empty room with an agent in its middle that looks ``ahead``, and what an action leaves there."""

    laws: tuple[Rule, ...]
    kind: int
    goal: tuple
    placed: list
    """Cells and their objects before the action."""
    pocket: tuple
    ahead: int
    action: int
    expected: dict
    """Cells and their objects after it; None is the agent's hand."""
    reached: bool


def walking(laws, kind, goal, one, other, ahead, side):
    place = tuple(MIDDLE + STEPS[ahead] + STEPS[side])
    after = xland_rulesets.after_walking(laws, one, side)
    reached = kind in NEAR_GOALS and after == goal[0] and side in NEAR_GOALS[kind]
    return Situation(laws, kind, goal, [(place, one)], (0, 0), ahead, 0, {place: after}, reached)


def picking_up(laws, kind, goal, one, other, ahead, side):
    one, place = D if one == GOAL else one, tuple(MIDDLE + STEPS[ahead])
    after = xland_rulesets.after_picking_up(laws, one)
    expected = {place: FLOOR, None: after}
    reached = kind == HOLD and after == goal[0]
    return Situation(laws, kind, goal, [(place, one)], (0, 0), ahead, 3, expected, reached)


def putting(laws, kind, goal, one, other, ahead, side):
    place = tuple(MIDDLE + STEPS[ahead])
    beside = tuple(MIDDLE + STEPS[ahead] + STEPS[side])
    here, there = xland_rulesets.after_putting(laws, one, ahead, other, side)
    expected = {place: here, beside: there, None: (0, 0)}
    if kind in PAIR_GOALS:
        reached = xland_rulesets.is_pair(PAIR_GOALS[kind], goal, here, there, side)
    else:
        # The package asks for a step before 3, and for picking up before 1.
        reached = kind in NEAR_GOALS and kind != 3
        reached = reached and here == goal[0] and ahead in NEAR_GOALS[kind]
    return Situation(laws, kind, goal, [(beside, other)], one, ahead, 4, expected, reached)


@functools.cache
def played():
    """Steps the environment from ``(grid, pocket, ahead, action, goal, rules)``; a compiled program."""
    from jaxmeta.tasks.xland import XLand, XLandParams

    env = XLand(7, published=True)
    _, blank = env.reset_env(jax.random.key(0), env.default_params)

    def play(grid, pocket, ahead, action, goal, rules):
        agent = blank.agent.replace(position=jnp.array(MIDDLE), direction=ahead, pocket=pocket)
        _, state, _, ended, _ = env.step_env(
            jax.random.key(0),
            blank.replace(grid=grid, agent=agent),
            action,
            XLandParams(goal, rules, env.default_params.objects),
        )
        return state.grid, state.agent.pocket, ended

    return jax.jit(jax.vmap(play))


@pytest.mark.parametrize("act", [walking, picking_up, putting])
def test_what_rules_do_is_what_the_package_does(act):
    """Of random rules, and of random goals, after a step to an object, picking one up, and laying one beside another."""
    pytest.importorskip("xminigrid")
    rng = np.random.default_rng(0)
    situations = []
    for _ in range(400):
        laws = tuple(_law(rng) for _ in range(6))
        one, other = (SOME[i] for i in rng.integers(len(SOME), size=2))
        ahead, kind = int(rng.integers(4)), int(rng.choice(GOALS))
        side = int(rng.choice([x for x in ANY if x != (ahead + 2) % 4]))  # where the agent is not
        goal = (one, other) if kind in PAIR_GOALS else (one,)
        situations.append(act(laws, kind, goal, one, other, ahead, side))
    grid = np.zeros((400, 7, 7, 2), np.uint8)
    grid[:, 1:-1, 1:-1] = FLOOR
    rows = []
    for number, x in enumerate(situations):
        for place, tile in x.placed:
            grid[(number, *place)] = tile
        task = Ruleset(x.kind, x.goal, x.laws, (), (A,), 0)
        goal, rules, _ = xland_rulesets.encoded(task, num_rules=6, num_objects=1)
        rows.append((np.array(x.pocket, np.uint8), x.ahead, x.action, goal, rules))
    after, pocket, ended = jax.device_get(played()(grid, *map(np.stack, zip(*rows, strict=True))))
    for number, x in enumerate(situations):
        found = {p: tuple(after[(number, *p)].tolist()) for p in x.expected if p is not None}
        if None in x.expected:
            found[None] = tuple(pocket[number].tolist())
        assert found == x.expected, x
        assert ended[number] == x.reached, x
    assert 15 < sum(x.reached for x in situations) < 300


def _law(rng):
    kind = int(rng.choice(RULES))
    inputs = tuple(SOME[i] for i in rng.integers(len(SOME), size=1 + (kind in PAIR_RULES)))
    return Rule(kind, inputs, (*SOME, FLOOR)[rng.integers(len(SOME) + 1)])
