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
from jaxmeta.tasks import xland, xland_rulesets
from jaxmeta.tasks.xland import OBJECTS, XLand, XLandParams
from jaxmeta.tasks.xland_expert import FORWARD, PICK_UP, PUT_DOWN, RIGHT
from jaxmeta.tasks.xland_rulesets import padded

pytest.importorskip("xminigrid")

import xminigrid
from xminigrid.benchmarks import load_benchmark_from_path, save_bz2_pickle
from xminigrid.core import goals, rules
from xminigrid.core.constants import NUM_ACTIONS, PICKABLE, Tiles
from xminigrid.envs.xland import XLandMiniGrid
from xminigrid.types import RuleSet

A, B, C = (jnp.asarray(OBJECTS[i]) for i in (0, 8, 16))

family = functools.cache(lambda **settings: tasks.make("xland", num_rulesets=48, **settings))


HOLD_A = goals.AgentHoldGoal(A)


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
        code = padded([number, *OBJECTS[:count].flat], xland.GOAL_LENGTH)
        np.testing.assert_array_equal(kind(*OBJECTS[:count]).encode(), code)
    for number, count in xland.RULES.items():
        kind = {1: rules.AgentHoldRule, 2: rules.AgentNearRule, 3: rules.TileNearRule}[number]
        code = padded([number, *OBJECTS[: count + 1].flat], xland.RULE_LENGTH)
        np.testing.assert_array_equal(kind(*OBJECTS[: count + 1]).encode(), code)


SIZES = {"R1": 9, "R2": 11, "R4": 13, "R6": 13, "R9": 16}
"""A published size of each layout."""


def compared(env, package, params, key, task):
    """``(ours, theirs)`` at the reset, and at the steps of random actions until the time limit."""
    reset_key, act_key = jax.random.split(key)
    ruleset = RuleSet(goal=task.goal, rules=task.rules, init_tiles=task.objects)
    params = params.replace(ruleset=ruleset)
    start = package.reset(params, reset_key)
    obs, state = env.reset_env(reset_key, task)

    def inner(obs, state):
        return obs, state.grid, state.agent

    def step(carry, key):
        timestep, state = carry
        action = jax.random.randint(key, (), 0, env.action_space().n)
        timestep = package.step(params, timestep, action)
        obs, state, reward, terminated, _ = env.step_env(key, state, action, task)
        last = terminated | env.is_truncated(state, task)
        ours = *inner(obs, state), state.time, reward, terminated, last
        theirs = (
            *inner(env._seen(timestep.observation), timestep.state),
            *(timestep.state.step_num, timestep.reward, timestep.discount == 0, timestep.last()),
        )
        return (timestep, state), (ours, theirs)

    _, steps = jax.lax.scan(step, (start, state), jax.random.split(act_key, env.horizon))
    return (inner(obs, state), inner(env._seen(start.observation), start.state)), steps


@pytest.mark.parametrize(
    "layout", ["R4", *(pytest.param(x, marks=pytest.mark.slow) for x in SIZES if x != "R4")]
)
@pytest.mark.usefixtures("in_earnest")
def test_ten_thousand_steps_are_the_package_s(layout):
    """Of random actions in the published environments of that name: the same rooms, views, rewards, ends and states."""
    size = SIZES[layout]
    made = family(layout=layout, size=size, generator="small")
    package, params = xminigrid.make(f"XLand-MiniGrid-{layout}-{size}x{size}")
    assert made.horizon == params.max_steps == 3 * size**2
    assert made.env.action_space().n == package.num_actions(params)
    num_tasks = -(-10_000 // made.horizon)
    drawn = tasks.sample_tasks(jax.random.key(1), made, num_tasks, split="test")
    program = jax.jit(jax.vmap(functools.partial(compared, made.env, package, params)))
    (ours, theirs), (all_ours, all_theirs) = program(
        jax.random.split(jax.random.key(0), num_tasks), drawn
    )
    jax.tree.map(np.testing.assert_array_equal, (ours, all_ours), (theirs, all_theirs))
    grid, pocket = np.asarray(all_ours[1]), np.asarray(all_ours[2].pocket)
    assert np.any(pocket != pocket[:, :1])  # something was picked up
    assert np.any(grid[..., 0] == xland.OPEN_DOOR) == (layout != "R1")


def test_steps_without_doors_are_the_package_s():
    """In the smaller observations, too: three tasks, 150 steps of the five actions in each."""
    env, package = XLand(7, 5, horizon=150), XLandMiniGrid()
    params = package.default_params(height=7, width=7, max_steps=150, grid_type="R1")
    drawn = jax.tree.map(
        lambda *x: jnp.stack(x),
        ruleset(goals.AgentNearGoal(C), rules.TileNearRule(B, C, A), objects=(B, C)),
        ruleset(goals.AgentNearGoal(A), rules.AgentHoldRule(B, A), objects=(B, C)),
        ruleset(goals.TileNearGoal(B, C), rules.AgentNearRule(B, A), objects=(B, C)),
    )
    program = jax.jit(jax.vmap(functools.partial(compared, env, package, params)))
    (ours, theirs), (all_ours, all_theirs) = program(jax.random.split(jax.random.key(0), 3), drawn)
    jax.tree.map(np.testing.assert_array_equal, (ours, all_ours), (theirs, all_theirs))
    assert np.any(all_ours[4] > 0)


@pytest.mark.parametrize("layout", xland.LEAST_SIZES)
def test_every_room_can_be_entered(layout):
    """Through doors, at all sizes that are allowed up to the largest published one; the cells are as many as counted."""
    allowed = []
    for size in range(3, 26):
        try:
            xland._check_size(layout, size, 2)
        except ValueError:
            continue
        allowed.append(size)
    assert set(range(9, 18, 4) if layout in ("R2", "R4") else (16, 19, 25)) <= set(allowed)
    for size in allowed[:4] + allowed[-2:]:
        env = XLand(size, layout=layout, published=True)
        _, state = env.reset_env(jax.random.key(size), ruleset(HOLD_A))
        shape = np.asarray(state.grid)[..., 0]
        walls = shape == xland.WALL
        assert np.all(walls[[0, -1]])
        assert np.all(walls[:, [0, -1]])
        doors = np.argwhere(shape == xland.CLOSED_DOOR)
        assert len(doors) == {"R1": 0, "R2": 1, "R4": 4, "R6": 6, "R9": 12}[layout]
        assert np.sum(~walls) - len(doors) == xland.num_cells(layout, size)
        reached = np.zeros_like(walls)
        reached[1, 1] = True
        for _ in range(size**2):
            grown = reached.copy()
            for axis in (0, 1):
                for by in (-1, 1):
                    grown |= np.roll(reached, by, axis)
            reached = grown & ~walls
        np.testing.assert_array_equal(reached, ~walls)


def test_the_sixth_action_opens_a_door():
    """The agent walks through it, and sees beyond it before that."""
    env, task = XLand(9, layout="R2", published=True), ruleset(HOLD_A, objects=(B,))
    _, state = env.reset_env(jax.random.key(0), task)
    row, column = np.argwhere(np.asarray(state.grid)[..., 0] == xland.CLOSED_DOOR)[0]
    floor = jnp.array([1, 7], jnp.uint8)
    state = state.replace(
        grid=state.grid.at[row, column - 1].set(floor).at[row, column + 1].set(B),
        agent=state.agent.replace(
            position=jnp.array([row, column - 1]), direction=jnp.ones_like(state.agent.direction)
        ),
    )
    step = jax.jit(env.step_env)

    def after(state, *actions):
        for action in actions:
            obs, state, *_ = step(jax.random.key(1), state, jnp.array(action), task)
        return obs.reshape(5, 5, 20), state

    seen, blocked = after(state, FORWARD)
    assert blocked.agent.position[1] == column - 1
    assert seen[3, 2, 8] == 1  # a closed door
    assert seen[2, 2, :10].argmax() == 1 + xland.SHAPES.index(int(B[0]))
    seen, opened = after(state, xland.OPEN, FORWARD)
    assert opened.agent.position[1] == column
    assert seen[4, 2, 9] == 1  # an open one, that the agent stands in
    assert after(state, xland.OPEN, xland.OPEN, FORWARD)[1].agent.position[1] == column - 1


def test_published_observations_tell_all_tiles_apart():
    kinds = [(0, 0), (1, 7), *xland_rulesets.PLACED]
    kinds += [(door, color) for door in (9, 10) for color in range(1, 7)]
    cells = jnp.array(kinds, jnp.uint8)[:, None]
    seen = np.asarray(XLand(published=True)._seen(cells)).reshape(len(kinds), 20)
    assert len({row.tobytes() for row in seen}) == len(kinds)
    assert not seen[1].any()
    wall = XLand(published=True)._seen(jnp.array([[[2, 6]]], jnp.uint8))
    np.testing.assert_array_equal(wall, seen[0])  # as what is beyond one


def test_what_is_seen_of_a_cell():
    cells = jnp.array([[[1, 7], [2, 6]], [[0, 0], [11, 4]]], jnp.uint8)  # floor, wall, beyond, hex
    floor, wall, beyond, hexagon = XLand()._seen(cells).reshape(4, 13)
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


def names_of(made, split, num_tasks=400):
    """Names of the rulesets that a split gives."""
    drawn = tasks.sample_tasks(jax.random.key(0), made, num_tasks, split=split)
    names = xland_rulesets.identity(np.asarray(drawn.goal), np.asarray(drawn.rules))
    return set(map(bytes, names))


@pytest.mark.parametrize("generator", xland_rulesets.GENERATORS)
def test_a_generator_s_splits_share_no_ruleset(generator):
    made = family(generator=generator)
    tasks.check_promises(made)
    assert made.expert_action is None
    known = {split: names_of(made, split) for split in tasks.SPLITS}
    assert all(len(x) == 48 for x in known.values())
    assert len(set.union(*known.values())) == 3 * 48
    assert names_of(family(generator=generator, seed=1), "test") != known["test"]


@pytest.fixture
def published_file(tmp_path):
    """A file of 60 rulesets as the package writes them, of which 15 are there twice."""
    settings = xland_rulesets.GENERATORS["medium"]
    drawn = xland_rulesets.draw_many(
        np.random.default_rng(0), settings, 60, num_rules=9, num_objects=16
    )
    rows = np.append(np.arange(60), np.arange(15))
    content = {
        "generation_config": {"chain_depth": 2, "prune_prob": 0.1},
        "goals": drawn.goal[rows],
        "rules": drawn.rules[rows],
        "init_tiles": drawn.objects[rows],
        "num_rules": jnp.count_nonzero(drawn.rules[rows, :, 0], axis=1),
    }
    path = tmp_path / "medium"
    save_bz2_pickle(content, path)
    return path


def test_a_file_of_the_package_is_split(published_file):
    """Into rulesets that are no others', those with the most rules out of distribution, by a seed."""
    benchmark = load_benchmark_from_path(published_file)
    read = xland_rulesets.read(published_file)
    np.testing.assert_array_equal(read.goal, benchmark.goals)
    np.testing.assert_array_equal(read.rules, benchmark.rules)
    np.testing.assert_array_equal(read.objects, benchmark.init_tiles)
    made = tasks.make("xland", rulesets=str(published_file), num_rulesets=20, layout="R4", size=13)
    tasks.check_promises(made)
    known = {split: names_of(made, split) for split in tasks.SPLITS}
    assert all(len(x) == 20 for x in known.values())
    whole = set(map(bytes, xland_rulesets.identity(np.asarray(read.goal), np.asarray(read.rules))))
    assert set.union(*known.values()) == whole
    count = {
        split: np.count_nonzero(
            tasks.sample_tasks(jax.random.key(0), made, 400, split=split).rules[..., 0], axis=1
        )
        for split in tasks.SPLITS
    }
    assert count["out_of_distribution"].min() >= max(count["train"].max(), count["test"].max())
    other = tasks.make("xland", rulesets=published_file, num_rulesets=20, seed=1)
    assert names_of(other, "train") != known["train"]
    with pytest.raises(ValueError, match="holds 60 different rulesets, .*num_rulesets=21 need 63"):
        tasks.make("xland", rulesets=str(published_file), num_rulesets=21)


def test_time_limits_are_the_published_ones_where_the_tasks_are():
    assert family().horizon == 100
    assert family(generator="trivial").horizon == 243
    assert family(layout="R2").horizon == 243
    assert family(generator="trivial", horizon=7).env.ends_by == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"view_size": 4}, "view_size=4 must be odd"),
        ({"size": 2, "generator": "small"}, "size=2 must be at least 3"),
        ({"size": 5}, "size=5 must be at least 6"),
        ({"depth": -1}, "depth=-1 must be at least 0"),
        ({"num_distractors": 31, "size": 20}, "num_distractors=31 must be at most 30 at depth=1"),
        ({"layout": "R3"}, "layout='R3' is unknown"),
        ({"layout": "R4", "size": 12}, "size=12 must be odd with layout='R4'"),
        (
            {"layout": "R9", "size": 17},
            "size=17 must be one more than a multiple of 3 .* example 19",
        ),
        ({"layout": "R2", "size": 4}, "size=4 must be at least 7"),
        ({"size": 7, "generator": "high"}, "size=7 must be at least 8"),
        ({"generator": "huge"}, "generator='huge' is unknown"),
        ({"generator": "small", "depth": 2}, "depth=2 has no effect with generator='small'"),
        (
            {"generator": "small", "rulesets": "x"},
            "generator='small' has no effect with rulesets='x'",
        ),
        ({"rulesets": "x", "num_distractors": 3}, "num_distractors=3 has no effect with rulesets="),
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
