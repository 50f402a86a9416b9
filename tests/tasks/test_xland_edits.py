"""Changed rulesets: what may change, what stays, and that no other split's ruleset is made."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("xminigrid")

from jaxmeta import tasks
from jaxmeta.tasks import xland_edits, xland_rulesets
from jaxmeta.tasks.xland_edits import kinds, mutation, names
from jaxmeta.tasks.xland_rulesets import (
    CARRIED,
    FLOOR,
    GOAL_TILE,
    HOLD,
    PAIR_GOALS,
    PAIR_RULES,
    PLACED,
    Rule,
    Ruleset,
    XLandParams,
    identity,
    is_solvable,
)


def decoded(task):
    """The `Ruleset` of a task without leading axes; all rules are in its chain."""

    def tiles(row, count):
        return tuple(tuple(int(x) for x in row[2 * i : 2 * i + 2]) for i in range(count))

    kind = int(task.goal[0])
    rules = []
    for row in np.asarray(task.rules):
        if row[0]:
            *inputs, product = tiles(row[1:], 2 + (row[0] in PAIR_RULES))
            rules.append(Rule(int(row[0]), tuple(inputs), product))
    objects = tuple(tuple(map(int, x)) for x in np.asarray(task.objects) if x[0])
    goal = tiles(task.goal[1:], 1 + (kind in PAIR_GOALS))
    return Ruleset(kind, goal, tuple(rules), (), objects, 0)


def chains(family, num_tasks=12, num_edits=25):
    """Tasks and what becomes of them, ``[M, 1 + edits]``, by NumPy's arrays."""

    def change(task, key):
        after = family.mutate(key, task)
        return after, after

    drawn = tasks.sample_tasks(jax.random.key(0), family, num_tasks, split="train")
    keys = jax.random.split(jax.random.key(1), (num_tasks, num_edits))
    after = jax.jit(jax.vmap(lambda task, keys: jax.lax.scan(change, task, keys)[1]))(drawn, keys)
    return jax.tree.map(lambda x, y: np.concatenate([x[:, None], y], axis=1), drawn, after)


def each(chained):
    """The rulesets of chains, ``[M][1 + edits]``."""
    shape = chained.goal.shape[:2]
    return [
        [decoded(jax.tree.map(lambda x, i=i, j=j: x[i, j], chained)) for j in range(shape[1])]
        for i in range(shape[0])
    ]


@pytest.mark.parametrize(
    "source", [{}, {"depth": 2}, {"generator": "small"}, {"generator": "high"}]
)
def test_changed_rulesets_are_rulesets_and_none_of_another_split(source):
    family = tasks.make("xland", num_rulesets=30, size=13, **source)
    tasks.check_promises(family)
    chained = chains(family)
    colors = {tile[1] for tile in CARRIED if source.get("generator") or tile[1] in range(1, 7)}
    happened = set()
    for row in each(chained):
        for before, after in itertools.pairwise(row):
            tiles = {*after.goal, *after.objects, *(x for r in after.rules for x in r.inputs)}
            assert tiles <= set(PLACED)
            assert {x[1] for x in tiles} <= colors
            assert {r.product for r in after.rules} <= {*PLACED, FLOOR}
            assert not (after.kind == HOLD and after.goal[0][0] == GOAL_TILE)
            made = {r.product for r in after.rules}
            for tile in (*after.goal, *(x for r in after.rules for x in r.inputs)):
                assert tile in made or tile in after.objects  # nothing that is needed is missing
            if "generator" not in source:
                assert is_solvable(after)
                assert len(after.rules) == len(before.rules)
            happened.add(what_changed(before, after))
    wanted = {"nothing", "kind", "object more", "object less", "names"}
    if "generator" in source:
        wanted |= {"rule more", "rule less"}
    assert wanted - {"nothing"} <= happened <= wanted
    found = identity(
        chained.goal.reshape(-1, 5), chained.rules.reshape(-1, *chained.rules.shape[2:])
    )
    others = [tasks.sample_tasks(jax.random.key(2), family, 300, split=x) for x in tasks.SPLITS[1:]]
    for other in others:
        known = identity(np.asarray(other.goal), np.asarray(other.rules))
        assert not {x.tobytes() for x in found} & {x.tobytes() for x in known}


def what_changed(before, after):
    """Which of the changes made one ruleset of another."""
    more = len(after.rules) - len(before.rules)
    if more:
        return "rule more" if more == 1 else "rule less"
    if len(after.objects) != len(before.objects):
        return "object more" if len(after.objects) > len(before.objects) else "object less"
    kinds_of = [[x.kind, *(r.kind for r in x.rules)] for x in (before, after)]
    if kinds_of[0] != kinds_of[1]:
        assert sum(x != y for x, y in zip(*kinds_of, strict=True)) == 1
        return "kind"
    if before == after:
        return "nothing"
    # One object has taken the place of another one everywhere.
    tiles = [
        [*x.goal, *x.objects, *(y for r in x.rules for y in (*r.inputs, r.product))]
        for x in (before, after)
    ]
    pairs = {(x, y) for x, y in zip(*tiles, strict=True) if x != y}
    assert len(pairs) == 1
    ((old, new),) = pairs
    assert old not in tiles[1]
    assert new not in tiles[0]
    return "names"


@pytest.mark.parametrize("generator", ["trivial", "medium"])
def test_names_are_equal_where_identities_are(generator):
    """Of rulesets, of the same with rules in another order, and of all pairs written the other way."""
    rng = np.random.default_rng(0)
    settings = xland_rulesets.GENERATORS[generator]
    drawn = xland_rulesets.draw_many(rng, settings, 60, num_rules=9, num_objects=16)
    goal, rules = np.asarray(drawn.goal), np.asarray(drawn.rules)
    other_goal, other_rules = goal.copy(), rules[:, rng.permutation(9)]
    for rows, turns in (
        (other_goal, {4: 4, 7: 9, 9: 7, 8: 10, 10: 8}),
        (other_rules.reshape(-1, 7), {3: 3, 4: 6, 6: 4, 5: 7, 7: 5}),
    ):
        for row in rows:
            if row[0] in turns:
                row[:5] = [turns[row[0]], *row[3:5], *row[1:3]]
    assert np.any(other_goal != goal)
    changed_goal, changed_rules = goal.copy(), rules.copy()
    changed_goal[:, 2] = np.where(goal[:, 2] == 1, 2, 1)
    goals = np.concatenate([goal, other_goal, changed_goal])
    rules = np.concatenate([rules, other_rules, changed_rules])
    by_identity = identity(goals, rules)
    by_name = names(goals, rules, np)
    np.testing.assert_array_equal(by_name, names(jnp.asarray(goals), jnp.asarray(rules), jnp))

    def same(x):
        return np.all(x[:, None] == x[None], axis=-1)

    np.testing.assert_array_equal(same(by_name), same(by_identity))
    assert same(by_name).sum() >= 240


def test_a_goal_and_a_rule_on_the_same_objects_have_other_names():
    """A name does not mix up goals and rules, and counts a rule that is there twice."""
    rule = np.array([[3, 3, 1, 4, 1, 5, 1]], np.uint8)
    nothing = np.zeros((1, 7), np.uint8)
    goal = np.array([[1, 3, 1, 0, 0]], np.uint8)
    rulesets = [np.stack([*x]) for x in ((rule, nothing), (rule, rule), (nothing, nothing))]
    rows = np.stack(rulesets)[:, :, 0]
    named = names(np.repeat(goal, 3, axis=0), rows, np)
    assert len(np.unique(named, axis=0)) == 3


def test_a_change_that_makes_a_held_out_ruleset_is_undone():
    family = tasks.make("xland", num_rulesets=8)
    task = family.train(jax.random.key(0))
    far = XLandParams(*(jnp.zeros_like(x)[None] for x in (task.goal, task.rules, task.objects)))
    key = jax.random.key(3)
    changed = jax.jit(mutation([far], published=False))(key, task)
    assert jnp.any(changed.goal != task.goal) | jnp.any(changed.rules != task.rules)
    one = jax.tree.map(lambda x: x[None], changed)
    kept = jax.jit(mutation([far, one], published=False))(key, task)
    jax.tree.map(np.testing.assert_array_equal, kept, task)


def test_kinds_stay_among_those_of_as_many_objects():
    for published in (False, True):
        of = kinds(published=published)
        for same, pairs in ((of.goals, PAIR_GOALS), (of.rules, PAIR_RULES)):
            for i, j in np.argwhere(same):
                assert i != j
                assert (i in pairs) == (j in pairs)
            count = (same.sum(axis=1) > 0).sum()
            assert count == (11 if published else 2)
    assert len(of.carried) == 60
    assert len(of.placed) == 70
    assert xland_edits.numbers([(3, 1)]) == [769]
