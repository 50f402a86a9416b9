"""The package's dynamics through this library's environment, and the rulesets that are drawn."""

import functools
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, rollouts, tasks
from jaxmeta.tasks import xland
from jaxmeta.tasks.xland import (
    FORWARD,
    LEFT,
    OBJECTS,
    PICK_UP,
    PUT_DOWN,
    RIGHT,
    XLand,
    XLandParams,
)

pytest.importorskip("xminigrid")

from xminigrid.core import goals, rules
from xminigrid.core.constants import NUM_ACTIONS, PICKABLE, Tiles
from xminigrid.envs.xland import XLandMiniGrid
from xminigrid.types import RuleSet

A, B, C = (jnp.asarray(OBJECTS[i]) for i in (0, 8, 16))

family = functools.cache(lambda **settings: tasks.make("xland", num_rulesets=48, **settings))


def ruleset(goal, *laws, objects=(A,)):
    nothing = rules.EmptyRule()
    return XLandParams(
        goal=goal.encode(),
        rules=jnp.stack([law.encode() for law in laws or (nothing,)]),
        objects=jnp.stack(objects),
    )


def test_numbers_are_the_package_s():
    assert xland.NUM_ACTIONS == NUM_ACTIONS - 1
    assert set(xland.SHAPES) == set(PICKABLE.tolist())
    assert (xland.OUTSIDE, xland.WALL) == (Tiles.EMPTY, Tiles.WALL)
    for number, count in xland.GOALS.items():
        kind = {1: goals.AgentHoldGoal, 3: goals.AgentNearGoal, 4: goals.TileNearGoal}[number]
        code = xland._padded([number, *OBJECTS[:count].flat], xland.GOAL_LENGTH)
        np.testing.assert_array_equal(kind(*OBJECTS[:count]).encode(), code)
    for number, count in xland.RULES.items():
        kind = {1: rules.AgentHoldRule, 2: rules.AgentNearRule, 3: rules.TileNearRule}[number]
        code = xland._padded([number, *OBJECTS[: count + 1].flat], xland.RULE_LENGTH)
        np.testing.assert_array_equal(kind(*OBJECTS[: count + 1]).encode(), code)


def test_steps_are_the_package_s():
    """Of random actions in three tasks: the same rooms, views, rewards and ends."""
    env, package = XLand(7, 5, horizon=150), XLandMiniGrid()

    def compare(key, task):
        reset_key, act_key = jax.random.split(key)
        rulesets = RuleSet(goal=task.goal, rules=task.rules, init_tiles=task.objects)
        params = package.default_params(
            height=7, width=7, max_steps=150, grid_type="R1", ruleset=rulesets
        )
        start = package.reset(params, reset_key)
        obs, state = env.reset_env(reset_key, task)

        def step(carry, key):
            timestep, state = carry
            action = jax.random.randint(key, (), 0, xland.NUM_ACTIONS)
            timestep = package.step(params, timestep, action)
            obs, state, reward, terminated, _ = env.step_env(key, state, action, task)
            ours = obs, state.grid, state.agent, reward, terminated
            ours = *ours, terminated | env.is_truncated(state, task)
            seen = xland._seen(timestep.observation)
            inner = timestep.state
            ended, last = timestep.discount == 0, timestep.last()
            theirs = seen, inner.grid, inner.agent, timestep.reward, ended, last
            return (timestep, state), (ours, theirs)

        _, both = jax.lax.scan(step, (start, state), jax.random.split(act_key, 150))
        return (obs, xland._seen(start.observation)), both

    drawn = jax.tree.map(
        lambda *x: jnp.stack(x),
        ruleset(goals.AgentNearGoal(C), rules.TileNearRule(B, C, A), objects=(B, C)),
        ruleset(goals.AgentNearGoal(A), rules.AgentHoldRule(B, A), objects=(B, C)),
        ruleset(goals.TileNearGoal(B, C), rules.AgentNearRule(B, A), objects=(B, C)),
    )
    (ours, theirs), (all_ours, all_theirs) = jax.jit(jax.vmap(compare))(
        jax.random.split(jax.random.key(0), 3), drawn
    )
    np.testing.assert_array_equal(ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, all_ours, all_theirs)
    assert np.any(all_ours[3] > 0)


def test_what_is_seen_of_a_cell():
    cells = jnp.array([[[1, 7], [2, 6]], [[0, 0], [11, 4]]], jnp.uint8)  # floor, wall, beyond, hex
    floor, wall, beyond, hexagon = xland._seen(cells).reshape(4, 13)
    assert not np.any(floor)
    for blocked in (wall, beyond):
        assert blocked.tolist() == [1] + 12 * [0]
    assert hexagon.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]


def facing(env, task, *placed):
    """In the middle of an empty room but for these, side by side: the agent looks at the first of them."""
    _, state = env.reset_env(jax.random.key(0), task)
    middle = env.size // 2
    grid = state.grid.at[1:-1, 1:-1].set(jnp.array([1, 7], jnp.uint8)[None, None])
    for i, tile in enumerate(placed):
        grid = grid.at[middle - 1, middle + i].set(tile)
    agent = state.agent.replace(
        position=jnp.array([middle, middle]), direction=jnp.zeros_like(state.agent.direction)
    )
    return state.replace(grid=grid, agent=agent)


@pytest.mark.parametrize(
    ("goal", "law", "plan"),
    [
        (goals.AgentHoldGoal(A), rules.EmptyRule(), [PICK_UP]),
        (goals.AgentNearGoal(A), rules.EmptyRule(), [FORWARD]),
        (goals.TileNearGoal(A, B), rules.EmptyRule(), [PICK_UP, PUT_DOWN]),
        (goals.AgentHoldGoal(C), rules.AgentNearRule(A, C), [FORWARD, PICK_UP]),
        (goals.AgentHoldGoal(C), rules.AgentHoldRule(A, C), [PICK_UP]),
        # What is made takes the place of the one that lay there, so there is room for a step.
        (goals.AgentNearGoal(C), rules.TileNearRule(A, B, C), [PICK_UP, PUT_DOWN, FORWARD]),
    ],
)
def test_plans_reach_their_goals(goal, law, plan):
    """Each goal and rule does what its number is said to mean; the step that arrives is rewarded, no other."""
    env, task = XLand(7, 5, horizon=20), ruleset(goal, law)
    state = facing(env, task, A, B)
    step = jax.jit(env.step_env)
    for t, action in enumerate(plan, start=1):
        _, state, reward, terminated, _ = step(jax.random.key(t), state, jnp.array(action), task)
        arrived = t == len(plan)
        assert bool(terminated) == arrived
        np.testing.assert_allclose(reward, arrived * (1 - 0.9 * t / 20), rtol=1e-6)


def view(*placed, size=5, walls=()):
    """What is seen: floor but for ``(row, column, object)``, and walls in rows ``walls``."""
    cells = jnp.tile(jnp.array([1, 7], jnp.uint8), (size, size, 1))
    for row in walls:
        cells = cells.at[row].set(jnp.array([2, 6], jnp.uint8))
    for row, column, tile in placed:
        cells = cells.at[row, column].set(tile)
    return xland._seen(cells)


HOLD_A, NEAR_A = goals.AgentHoldGoal(A), goals.AgentNearGoal(A)
MAKES_A, MAKES_C = rules.TileNearRule(B, C, A), rules.AgentNearRule(A, C)


@pytest.mark.parametrize(
    ("goal", "law", "seen", "action"),
    [
        # Face the object, then do with it what is asked; ways lead around others.
        (HOLD_A, None, [(3, 2, A)], PICK_UP),
        (NEAR_A, None, [(3, 2, A)], FORWARD),
        (HOLD_A, None, [(0, 2, A)], FORWARD),
        (HOLD_A, None, [(4, 3, A)], RIGHT),
        (HOLD_A, None, [(4, 0, A)], LEFT),
        (HOLD_A, None, [(1, 2, A), (2, 2, B)], FORWARD),
        (HOLD_A, None, [(2, 3, A), (3, 2, B)], RIGHT),
        (HOLD_A, None, [(2, 1, A), (3, 2, B)], LEFT),
        # One of two is picked up and put next to the other.
        (goals.TileNearGoal(A, B), None, [(3, 2, A), (2, 2, B)], PICK_UP),
        (goals.TileNearGoal(A, B), None, [(2, 2, B)], PUT_DOWN),
        (goals.TileNearGoal(A, B), None, [(3, 3, B)], PUT_DOWN),
        (goals.TileNearGoal(A, B), None, [(3, 2, B)], RIGHT),
        (goals.TileNearGoal(A, B), None, [(4, 0, A), (2, 2, B)], LEFT),
        # The one that is made is carried, not the one that lies there from the start.
        (goals.TileNearGoal(A, B), rules.AgentHoldRule(C, B), [(3, 2, C)], PICK_UP),
        (goals.TileNearGoal(A, B), rules.AgentHoldRule(C, B), [(2, 2, A)], PUT_DOWN),
        # What is made is sought by way of what it is made of.
        (goals.AgentHoldGoal(C), MAKES_C, [(3, 2, A)], FORWARD),
        (goals.AgentHoldGoal(C), MAKES_C, [(3, 2, C)], PICK_UP),
        (HOLD_A, MAKES_A, [(3, 2, B)], PICK_UP),
        (HOLD_A, MAKES_A, [(2, 2, C)], PUT_DOWN),
        # Made in the hand but wanted on the floor: laid down by an object of no use, here B.
        (goals.AgentNearGoal(C), rules.AgentHoldRule(A, C), [(2, 2, B)], PUT_DOWN),
        (goals.AgentHoldGoal(C), rules.AgentHoldRule(A, C), [(2, 2, B)], FORWARD),
    ],
)
def test_the_expert_s_next_step_in_situations_with_a_right_one(goal, law, seen, action):
    task = ruleset(goal, *([law] if law else []), objects=(A, B, C))
    assert xland.seek(task, view(*seen)) == action


@pytest.mark.parametrize("size", [3, 5, 7])
def test_the_expert_turns_two_cells_from_a_wall_to_where_there_is_room(size):
    task = ruleset(HOLD_A)
    assert xland.seek(task, view(size=size)) == FORWARD
    end = view(size=size, walls=[size - 3])
    assert xland.seek(task, end) == RIGHT
    beside = view((size - 1, size // 2 + 1, B), size=size, walls=[size - 3])
    assert xland.seek(task, beside) == LEFT
    assert xland.seek(task, view((size - 2, size // 2, B), size=size)) == RIGHT


@pytest.mark.parametrize(
    ("goal", "law"),
    [
        (NEAR_A, rules.EmptyRule()),
        (goals.AgentHoldGoal(C), rules.AgentHoldRule(A, C)),
        (goals.AgentHoldGoal(C), rules.AgentNearRule(A, C)),
    ],
)
def test_the_expert_finds_what_need_not_be_put_anywhere(goal, law):
    """In nearly every room: it need not guess what it carries."""
    env, task = XLand(), ruleset(goal, law, objects=(A, B))

    def reached(key):
        obs, state = env.reset_env(key, task)

        def step(carry, key):
            obs, state = carry
            obs, state, reward, *_ = env.step_env(key, state, xland.seek(task, obs), task)
            return (obs, state), reward > 0

        return jnp.any(jax.lax.scan(step, (obs, state), jax.random.split(key, env.horizon))[1])

    rooms = jax.jit(jax.vmap(reached))(jax.random.split(jax.random.key(0), 100))
    assert np.mean(rooms) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("split", "least"), [("test", 0.5), ("out_of_distribution", 0.35)])
def test_the_expert_is_far_better_than_random(split, least):
    """Random agents earn about 0.06."""
    made = tasks.make("xland")
    drawn = tasks.sample_tasks(jax.random.key(0), made, 100, split=split)
    expert, random = (
        jax.jit(lambda key, drawn, returns=returns: returns(key, drawn, family=made))(
            jax.random.key(1), drawn
        )
        for returns in (
            functools.partial(evaluation.expert_returns, num_streams=5),
            functools.partial(evaluation.random_returns, num_streams=5),
        )
    )
    assert np.mean(expert) > least
    assert np.mean(random) < 0.25 * least


def reachable(task, without=None):
    """All objects that there may be, by their rules, but for one of them; as if each could be made at will."""
    there = Counter(map(tuple, np.asarray(task.objects).tolist()))
    laws = [law for i, law in enumerate(np.asarray(task.rules).tolist()) if i != without and law[0]]
    for _ in laws:
        for number, *tiles in laws:
            count = xland.RULES[number]
            needed, made = _tiles(tiles, count), _tiles(tiles, count + 1)[-1]
            if all(there[tile] for tile in needed):
                there[made] = 1
    return there


def is_reached(task, **settings):
    number, *tiles = np.asarray(task.goal).tolist()
    return all(reachable(task, **settings)[x] for x in _tiles(tiles, xland.GOALS[number]))


def _tiles(numbers, count):
    return [tuple(numbers[2 * i : 2 * i + 2]) for i in range(count)]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_every_rule_is_needed_and_together_they_are_enough(depth):
    made = family(depth=depth)
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), made, 30, split=split)
        for i in range(30):
            task = jax.tree.map(lambda x, i=i: x[i], drawn)
            num_rules = np.count_nonzero(task.rules[:, 0])
            assert num_rules == depth + (split == "out_of_distribution")
            assert is_reached(task)
            for law in range(num_rules):
                assert not is_reached(task, without=law)
            there = [tuple(x) for x in np.asarray(task.objects).tolist() if any(x)]
            assert len(set(there)) == len(there) >= 3  # one that is needed, and two that are not


def test_splits_share_no_goal_with_its_rules():
    made = family()
    known = {}
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), made, 1000, split=split)
        codes = np.concatenate([drawn.goal, drawn.rules.reshape(1000, -1)], axis=1)
        known[split] = set(map(bytes, codes))
        assert len(known[split]) == 48
    assert len(set.union(*known.values())) == 3 * 48


def test_the_seed_draws_others():
    one, two = (
        tasks.sample_tasks(jax.random.key(0), family(seed=seed), 20, split="train")
        for seed in (0, 1)
    )
    assert np.any(one.goal != two.goal)


def test_an_episode_begins_with_the_ruleset_s_objects_wherever_they_lie():
    """Also after the end of one before: the room is another, the task is the same."""
    made = family(horizon=5)
    drawn = tasks.sample_tasks(jax.random.key(0), made, 4, split="train")
    learner = evaluation.controller_learner(lambda key, *_: made.random_action(key))

    def lived(key, task, num_steps):
        begin_key, act_key = jax.random.split(key)
        setup = rollouts.Setup(learner, made.env, num_streams=3, num_steps=num_steps)
        streams = rollouts.begin_streams(begin_key, task, task, setup=setup)
        after, data = rollouts.collect(act_key, task, task, (), streams, setup=setup)
        return streams.env_state, after.env_state, data.last, data.reward

    keys = jax.random.split(jax.random.key(1), 4)
    first, again, last, reward = jax.jit(jax.vmap(functools.partial(lived, num_steps=10)))(
        keys, drawn
    )
    whole = np.all(last[..., 4] & last[..., 9], axis=-1) & np.all(reward == 0, axis=(-1, -2))
    assert whole.sum() >= 2
    for task in np.flatnonzero(whole):
        there = Counter(map(tuple, np.asarray(drawn.objects[task]).tolist()))
        del there[(0, 0)]
        for stream in range(3):
            rooms = [np.asarray(state.grid[task, stream]) for state in (first, again)]
            assert np.any(rooms[0] != rooms[1])
            for room in rooms:
                tiles = Counter(map(tuple, room.reshape(-1, 2).tolist()))
                assert {tile: tiles[tile] for tile in there} == there
                assert sum(tiles.values()) - tiles[(1, 7)] - tiles[(2, 6)] == there.total()
            assert again.time[task, stream] == 0


def test_the_horizon_ends_an_episode_without_terminating_it():
    env = XLand(5, 3, horizon=2)
    task = ruleset(goals.AgentHoldGoal(B), objects=(A,))
    _, state = env.reset_env(jax.random.key(0), task)
    for t in range(2):
        assert not env.is_truncated(state, task)
        _, state, reward, terminated, _ = env.step_env(
            jax.random.key(t), state, jnp.array(RIGHT), task
        )
        assert not terminated
        assert reward == 0
    assert env.is_truncated(state, task)


def test_environments_of_equal_settings_are_one():
    assert family().env == tasks.make("xland", num_rulesets=3).env
    assert hash(family().env) == hash(XLand())
    assert family().env != XLand(horizon=7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"view_size": 4}, "view_size=4 must be odd"),
        ({"size": 5}, "size=5 must be at least 6"),
        ({"depth": -1}, "depth=-1 must be at least 0"),
        ({"num_distractors": 31, "size": 20}, "num_distractors=31 must be at most 30 at depth=1"),
        ({"depth": 0, "num_rulesets": 400}, "800 different rulesets are wanted .* only 702"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        tasks.make("xland", **settings)


def test_the_package_is_only_needed_by_who_uses_it(monkeypatch):
    probe = "import sys, jaxmeta.tasks; sys.exit(bool({'xminigrid', 'brax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
    xland._package.cache_clear()
    monkeypatch.setitem(sys.modules, "xminigrid", None)
    with pytest.raises(ImportError, match=r'pip install "jaxmeta\[xland\]"'):
        tasks.make("xland")
    xland._package.cache_clear()
