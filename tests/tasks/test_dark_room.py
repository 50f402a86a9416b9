import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxmeta import evaluation, tasks
from jaxmeta.tasks.dark_room import (
    DarkRoom,
    DarkRoomParams,
    DarkRoomState,
    KeyToDoor,
    KeyToDoorParams,
    KeyToDoorState,
    cell_of,
    goals,
    pairs,
)

STEPS = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]  # stay, up, right, down, left
PUBLISHED = [dict(), dict(size=10, horizon=100, start="corner")]


def every_cell(size):
    """Cells (x, y) in the observation's order."""
    return [(x, y) for y in range(size) for x in range(size)]


def after(cell, step, size):
    """The cell after a step, walls in mind."""
    there = (cell[0] + step[0], cell[1] + step[1])
    return there if there in every_cell(size) else cell


@pytest.mark.parametrize("size", [2, 9])
def test_every_action_in_every_cell(size):
    env, cells = DarkRoom(size), every_cell(size)
    goal = cells[size]  # in the first column, second row

    def step(position, action):
        state = DarkRoomState(position=position, time=jnp.array(3))
        task = DarkRoomParams(goal=jnp.array(goal), start=jnp.zeros(2, jnp.int32))
        return env.step_env(jax.random.key(0), state, action, task)

    each = jax.jit(jax.vmap(jax.vmap(step, (None, 0)), (0, None)))
    obs, state, reward, terminated, _ = each(jnp.array(cells), jnp.arange(5))
    assert not terminated.any()
    assert jnp.all(state.time == 4)
    for c, cell in enumerate(cells):
        for a, move in enumerate(STEPS):
            there = after(cell, move, size)
            assert tuple(state.position[c, a].tolist()) == there
            assert obs[c, a].tolist() == [float(x == there) for x in cells]
            assert reward[c, a] == float(there == goal)


@pytest.mark.parametrize("observes", ["cell", "coordinates"])
def test_an_observation_tells_the_cell(observes):
    env = DarkRoom(4, observes=observes)
    for index, (x, y) in enumerate(every_cell(4)):
        task = DarkRoomParams(goal=jnp.zeros(2, jnp.int32), start=jnp.array([x, y]))
        obs, _ = env.reset_env(jax.random.key(0), task)
        assert obs.shape == env.observation_space(task).shape
        assert cell_of(obs, size=4) == index
        if observes == "coordinates":
            assert obs.tolist() == [*np.eye(4)[x], *np.eye(4)[y]]


@pytest.mark.parametrize(("settings", "first"), [(PUBLISHED[0], (4, 4)), (PUBLISHED[1], (0, 0))])
def test_an_episode_begins_in_its_cell_and_ends_at_the_horizon(settings, first):
    family = tasks.make("dark_room", **settings)
    task = family.test(jax.random.key(0))
    obs, state = family.env.reset_env(jax.random.key(1), task)
    assert tuple(state.position.tolist()) == first
    assert int(obs.argmax()) == first[0] + settings.get("size", 9) * first[1]
    at = state.replace(time=jnp.array(family.horizon - 1))
    assert not family.env.is_truncated(at, task)
    assert family.env.is_truncated(at.replace(time=at.time + 1), task)


@pytest.mark.parametrize(("size", "num_train"), [(9, 65), (10, 80)])
def test_goals_are_split_as_published(size, num_train):
    train, test = (goals(size=size, split=split).tolist() for split in ("train", "test"))
    assert len(train) == num_train
    assert sorted(map(tuple, train + test)) == sorted(every_cell(size))
    assert train != goals(size=size, split="train", split_seed=1).tolist()
    assert goals(size=size, split="train").dtype == np.int32


def test_pairs_are_those_of_different_cells():
    train, test = (pairs(size=4, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (192, 48)
    found = {tuple(map(tuple, pair)) for pair in np.concatenate([train, test]).tolist()}
    assert found == {(a, b) for a in every_cell(4) for b in every_cell(4) if a != b}
    assert len(pairs(split="train")) == 5184


@pytest.mark.parametrize("split", tasks.SPLITS)
def test_tasks_are_uniform_over_those_of_the_split(split):
    family = tasks.make("dark_room", size=4)
    drawn = jax.jit(lambda key: tasks.sample_tasks(key, family, 5000, split=split))(
        jax.random.key(0)
    )
    count = lambda x: np.bincount(x[:, 0] + 4 * x[:, 1], minlength=16)  # noqa: E731
    goal, start = count(drawn.goal), count(drawn.start)
    if split == "out_of_distribution":
        assert start[10] == 0
        assert scipy.stats.chisquare(np.delete(start, 10)).pvalue > 1e-4
        assert scipy.stats.chisquare(goal).pvalue > 1e-4
        return
    assert start[10] == 5000  # (2, 2)
    x, y = goals(size=4, split=split).T
    assert goal[x + 4 * y].sum() == 5000
    assert scipy.stats.chisquare(goal[x + 4 * y]).pvalue > 1e-4


def values(size, horizon, start, act):
    """Return from ``start`` for each goal, ``[C]``, by backward induction; ``act`` joins the values of the actions."""
    cells = every_cell(size)
    index = np.array([[cells.index(after(cell, step, size)) for step in STEPS] for cell in cells])
    v = np.zeros((len(cells), len(cells)))  # [goal, cell]
    for _ in range(horizon):
        v = act((np.eye(len(cells)) + v)[:, index])
    return v[:, cells.index(start)]


@pytest.mark.parametrize(
    ("size", "horizon", "start", "name", "mean", "uniform"),
    [
        (9, 20, (4, 4), "centre", 16.543, 0.247),
        (10, 100, (0, 0), "corner", 91.99, 1.0),
        (4, 3, (2, 2), "centre", None, None),  # too short for the far goals
    ],
)
def test_optimal_return_is_that_of_dynamic_programming(size, horizon, start, name, mean, uniform):
    family = tasks.make("dark_room", size=size, horizon=horizon, start=name)
    assert tuple(family.train(jax.random.key(0)).start.tolist()) == start
    cells = jnp.array(every_cell(size), jnp.int32)
    every = DarkRoomParams(goal=cells, start=jnp.tile(jnp.array(start), (len(cells), 1)))
    best = values(size, horizon, start, lambda q: q.max(-1))
    found = jax.vmap(family.optimal_return)(every)
    np.testing.assert_allclose(found, best, rtol=1e-6)
    if mean is not None:
        np.testing.assert_allclose(best.mean(), mean, atol=5e-4)
        at_random = values(size, horizon, start, lambda q: q.mean(-1))
        np.testing.assert_allclose(at_random.mean(), uniform, atol=5e-4)


@pytest.mark.parametrize("split", ["test", "out_of_distribution"])
@pytest.mark.parametrize(
    "settings", [dict(size=5, horizon=12, observes="coordinates"), PUBLISHED[1]]
)
def test_optimal_actions_earn_the_optimal_return(settings, split):
    family = tasks.make("dark_room", **settings)
    led = dataclasses.replace(family, expert_action=family.optimal_action)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 40, split=split)
    earned = jax.jit(
        lambda tasks: evaluation.expert_returns(jax.random.key(0), tasks, family=led, num_streams=1)
    )(drawn)
    np.testing.assert_allclose(earned, jax.vmap(family.optimal_return)(drawn), rtol=1e-6)


# Key and door


def key_to_door_step(env, position, held, action, task):
    state = KeyToDoorState(position=jnp.array(position), held=jnp.array(held), time=jnp.array(0))
    _, state, reward, terminated, _ = env.step_env(jax.random.key(0), state, action, task)
    return state.position.tolist(), bool(state.held), float(reward), bool(terminated)


def test_the_key_pays_once_and_opens_the_door():
    env = KeyToDoor(3)
    task = KeyToDoorParams(key=jnp.array([1, 0]), door=jnp.array([1, 1]))
    stay, up, right = 0, 1, 2
    assert key_to_door_step(env, [0, 0], False, right, task) == ([1, 0], True, 1.0, False)
    assert key_to_door_step(env, [1, 0], True, stay, task) == ([1, 0], True, 0.0, False)
    assert key_to_door_step(env, [1, 0], True, up, task) == ([1, 1], True, 1.0, True)
    assert key_to_door_step(env, [0, 1], False, right, task) == ([1, 1], False, 0.0, False)
    assert key_to_door_step(env, [2, 2], True, right, task) == ([2, 2], True, 0.0, False)
    both = KeyToDoorParams(key=jnp.array([1, 0]), door=jnp.array([1, 0]))
    assert key_to_door_step(env, [0, 0], False, right, both) == ([1, 0], True, 2.0, True)


def test_episodes_begin_anywhere_but_on_the_key_and_without_it():
    env = KeyToDoor(3)
    task = KeyToDoorParams(key=jnp.array([2, 1]), door=jnp.array([0, 0]))
    reset = jax.jit(jax.vmap(lambda key: env.reset_env(key, task)))
    obs, state = reset(jax.random.split(jax.random.key(0), 4000))
    cells = state.position[:, 0] + 3 * state.position[:, 1]
    np.testing.assert_array_equal(obs.argmax(1), cells)
    assert not state.held.any()
    assert not state.time.any()
    counts = np.bincount(cells, minlength=9)
    assert counts[5] == 0
    assert scipy.stats.chisquare(np.delete(counts, 5)).pvalue > 1e-4


def best_with_a_key(task, size, horizon):
    """Mean over starts of the best return, by backward induction over cells and whether the key is held."""
    cells = every_cell(size)
    key, door = tuple(task.key.tolist()), tuple(task.door.tolist())
    v = {(cell, held): 0.0 for cell in cells for held in (False, True)}
    for _ in range(horizon):
        new = {}
        for cell, held in v:
            options = []
            for step in STEPS:
                there = after(cell, step, size)
                has = held or there == key
                value = float(has and not held)
                value += 1.0 if has and there == door else v[there, has]
                options.append(value)
            new[cell, held] = max(options)
        v = new
    return np.mean([v[cell, False] for cell in cells if cell != key])


@pytest.mark.parametrize(("size", "horizon"), [(4, 12), (4, 5), (4, 1), (9, 40)])
def test_the_best_return_with_a_key_is_that_of_dynamic_programming(size, horizon):
    family = tasks.make("dark_key_to_door", size=size, horizon=horizon)
    for split in tasks.SPLITS:
        task = getattr(family, split)(jax.random.key(1))
        expected = best_with_a_key(task, size, horizon)
        np.testing.assert_allclose(family.optimal_return(task), expected, rtol=1e-5)
        if horizon >= 4 * (size - 1):
            assert expected == 2


# Both


@pytest.mark.parametrize("name", ["dark_room", "dark_key_to_door"])
def test_families_keep_their_promises(name):
    """Splits without a common task among them."""
    found = tasks.check(tasks.make(name, size=4), num_tasks=40, show=False)
    assert found.problems == ()


@pytest.mark.parametrize("name", ["dark_room", "dark_key_to_door"])
def test_types_are_kept_where_float_is_float64(name, x64):
    family = tasks.make(name, size=3)
    task = family.train(jax.random.key(0))
    obs, state = family.env.reset_env(jax.random.key(1), task)
    action = jnp.array(2, jnp.int32)
    next_obs, next_state, reward, *_ = family.env.step_env(jax.random.key(2), state, action, task)
    assert obs.dtype == next_obs.dtype == reward.dtype == jnp.float64
    assert family.optimal_return(task).dtype == jnp.float64
    kinds = [[(x.dtype, x.weak_type) for x in jax.tree.leaves(s)] for s in (state, next_state)]
    assert kinds[0] == kinds[1]
    assert all(x.dtype == jnp.int32 for x in jax.tree.leaves(task))


def test_equal_settings_are_equal_environments():
    assert DarkRoom(4, horizon=5) == DarkRoom(4, horizon=5)
    assert hash(KeyToDoor(4, horizon=5)) == hash(KeyToDoor(4, horizon=5))
    assert KeyToDoor(4, horizon=5) != KeyToDoor(4, horizon=6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dark_room", dict(size=1), "size=1 must be at least 2"),
        ("dark_room", dict(size=2, observes="coordinates"), "size=2 must be at least 3"),
        ("dark_room", dict(observes="xy"), "observes=.xy. is unknown"),
        ("dark_room", dict(start="center"), "start='center' .*'centre'"),
        ("dark_room", dict(split_seed=-1), "split_seed=-1 must be at least 0"),
        ("dark_key_to_door", dict(size=1), "size=1 must be at least 2"),
        ("dark_key_to_door", dict(horizon=0), "horizon=0 must be at least 1"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tasks.make(name, **settings)


def test_a_split_that_has_no_list_is_named():
    with pytest.raises(ValueError, match="split='out_of_distribution' is unknown"):
        goals(split="out_of_distribution")
