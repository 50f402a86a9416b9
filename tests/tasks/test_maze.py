"""Layouts, and the optimum against a search that shares no line with it."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.evaluation.agents import _controller_returns
from jaxmeta.tasks import maze
from jaxmeta.tasks.maze import MazeParams

STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""(x, y) of up, right, down and left."""


def searched(walls, goal):
    """Steps to the goal from each cell that leads to it, ``{(x, y): d}``, by breadth-first search."""
    size = len(walls)
    start = (goal % size, goal // size)
    found, queue = {start: 0}, collections.deque([start])
    while queue:
        x, y = queue.popleft()
        for across, along in STEPS:
            cell = u, v = x + across, y + along
            if 0 <= u < size and 0 <= v < size and not walls[v][u] and cell not in found:
                found[cell] = found[(x, y)] + 1
                queue.append(cell)
    return found


def drawn_tasks(*splits, count=40, **settings):
    """A family and tasks of each of its splits."""
    family = tasks.make("maze", **settings)

    @jax.jit
    def sample(key):
        return [tasks.sample_tasks(key, family, count, split=split) for split in splits]

    return family, *sample(jax.random.key(0))


@pytest.mark.parametrize("size", [3, 5, 7])
def test_layouts_are_trees_out_of_distribution_with_loops_and_all_rooms_connected(size):
    seen = {}
    _, *each = drawn_tasks(*tasks.SPLITS, size=size)
    for split, drawn in zip(tasks.SPLITS, each, strict=True):
        rooms = ((size + 1) // 2) ** 2
        for walls, goal in zip(np.asarray(drawn.walls), np.asarray(drawn.goal), strict=True):
            free = np.sum(~walls)
            assert len(searched(walls, int(goal))) == free
            assert not walls[::2, ::2].any()
            assert walls[1::2, 1::2].all()
            extra = free - rooms - (rooms - 1)
            loops = (((size - 1) // 2) ** 2 + 1) // 2
            assert extra == (loops if split == "out_of_distribution" else 0)
            assert not walls.reshape(-1)[goal]
        seen[split] = {x.tobytes() for x in np.asarray(drawn.walls)}
    assert not seen["train"] & seen["test"]
    assert not (seen["train"] | seen["test"]) & seen["out_of_distribution"]
    if size == 3:  # a square of four rooms has four spanning trees
        assert len(seen["train"] | seen["test"]) == 4


def test_some_training_mazes_may_be_unsolvable():
    family, train, test = drawn_tasks("train", "test", count=60, size=5, unsolvable=0.7)
    reached = {}
    for split, drawn in (("train", train), ("test", test)):
        both = zip(np.asarray(drawn.walls), np.asarray(drawn.goal), strict=True)
        reached[split] = np.array([len(searched(walls, int(goal))) for walls, goal in both])
    unsolvable = reached["train"] == 1  # the goal alone
    assert 30 <= unsolvable.sum() <= 52
    assert np.all(reached["train"][~unsolvable] == 17)  # nine rooms and eight passages
    assert np.all(reached["test"] == 17)
    optimal = jax.jit(jax.vmap(family.optimal_return))(train)
    np.testing.assert_array_equal(optimal == 0, unsolvable)
    assert np.all(~train.walls.reshape(60, -1)[np.arange(60), train.goal])


def test_optimum_is_the_search_s():
    family, *each = drawn_tasks("test", "out_of_distribution", count=6, horizon=30)
    drawn = jax.tree.map(lambda *x: np.concatenate(x), *each)
    values, distances = jax.jit(
        jax.vmap(lambda task: (family.optimal_return(task), maze.distances(task)))
    )(drawn)
    for m in range(12):
        walls, goal = drawn.walls[m], int(drawn.goal[m])
        found = searched(walls, goal)
        for (x, y), distance in found.items():
            assert distances[m, x + 7 * y] == distance
        starts = [d for d in found.values() if d > 0]
        value = [0.0]  # of an episode with that many steps left, from a fresh start
        for left in range(1, 31):
            value.append(np.mean([1 + value[left - d] if d <= left else 0.0 for d in starts]))
        np.testing.assert_allclose(values[m], value[30], rtol=1e-5)


@pytest.mark.slow
def test_the_shortest_way_earns_the_optimum():
    family, drawn = drawn_tasks("test", count=30, observation="position")
    assert family.observation_shape == (49,)
    step = jax.jit(
        lambda key: _controller_returns(
            key, drawn, lambda key, task, obs: family.optimal_action(task, obs), family, 20
        )
    )
    expected = jax.jit(jax.vmap(family.optimal_return))(drawn)
    np.testing.assert_allclose(np.mean(step(jax.random.key(1))), np.mean(expected), rtol=0.03)
    random = jax.jit(lambda key: evaluation.random_returns(key, drawn, family=family))
    assert np.mean(random(jax.random.key(2))) < 0.1 * np.mean(expected)
    assert tasks.make("maze").optimal_action is None


def test_walls_stop_and_the_goal_pays_and_moves_on():
    walls = np.zeros((3, 3), bool)
    walls[1, 1] = walls[0, 1] = True
    task = MazeParams(walls=jnp.asarray(walls), goal=jnp.array(8))
    env = maze.Maze(3, 10, "position")
    step, reset = jax.jit(env.step_env), jax.jit(env.reset_env)

    def after(cell, action, key=0):
        state = maze.MazeState(cell=np.int32(cell), time=np.int32(0))
        obs, state, reward, terminated, _ = step(jax.random.key(key), state, np.int32(action), task)
        assert not terminated
        assert jnp.argmax(obs) == state.cell
        return int(state.cell), float(reward)

    assert after(0, 1) == (0, 0.0)  # right of the corner is a wall
    assert after(0, 2) == after(0, 3) == (0, 0.0)  # the grid ends
    assert after(0, 0) == (3, 0.0)
    assert after(3, 0) == (6, 0.0)
    assert after(6, 1) == (7, 0.0)
    landed = [after(7, 1, key) for key in range(60)]
    assert {reward for _, reward in landed} == {1.0}
    assert {cell for cell, _ in landed} == {0, 2, 3, 5, 6, 7}  # neither walls nor the goal
    starts = {int(reset(jax.random.key(key), task)[1].cell) for key in range(60)}
    assert starts == {0, 2, 3, 5, 6, 7}


def test_the_view_is_of_the_walls_around():
    walls = np.zeros((3, 3), bool)
    walls[1, 1] = walls[0, 1] = True
    task = MazeParams(walls=jnp.asarray(walls), goal=jnp.array(8))
    env = maze.Maze(3, 10, "view", 1)
    obs, _ = env._observed(jnp.array(3), jnp.array(0), task)  # x = 0, y = 1
    np.testing.assert_array_equal(obs.reshape(3, 3), [[1, 0, 1], [1, 0, 1], [1, 0, 0]])
    wide, _ = maze.Maze(3, 10, "view", 2)._observed(jnp.array(3), jnp.array(0), task)
    np.testing.assert_array_equal(wide.reshape(5, 5)[1:4, 1:4], obs.reshape(3, 3))
    assert wide.sum() == 25 - 7


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="size=6 must be odd"):
        tasks.make("maze", size=6)
    with pytest.raises(ValueError, match="observation='map' is unknown"):
        tasks.make("maze", observation="map")
    with pytest.raises(ValueError, match="unsolvable=1.5 must"):
        tasks.make("maze", unsolvable=1.5)
    with pytest.raises(ValueError, match="radius=0 must be at least 1"):
        tasks.make("maze", radius=0)


@pytest.mark.parametrize("size", [3, 5])
def test_changed_mazes_lead_to_the_goal_and_are_no_test_mazes(size):
    """Chains of changes, by a search; walls are added and removed, and goals move."""
    family, drawn, held_out = drawn_tasks("train", "test", size=size)
    held_out = {x.tobytes() for x in np.asarray(held_out.walls)}

    def change(task, key):
        after = family.mutate(key, task)
        return after, after

    @jax.jit
    def chains(key):
        keys = jax.random.split(key, (40, 30))
        return jax.vmap(lambda task, keys: jax.lax.scan(change, task, keys)[1])(drawn, keys)

    chained = chains(jax.random.key(1))
    walls, goals = np.asarray(chained.walls), np.asarray(chained.goal)
    before = np.concatenate([np.asarray(drawn.walls)[:, None], walls[:, :-1]], axis=1)
    goals_before = np.concatenate([np.asarray(drawn.goal)[:, None], goals[:, :-1]], axis=1)
    differences = (walls != before).sum(axis=(2, 3))
    assert differences.max() == 1
    moved = goals != goals_before
    assert not np.any(moved & (differences > 0))
    counts = walls.sum(axis=(2, 3)) - before.sum(axis=(2, 3))
    for happened in (moved, counts == 1, counts == -1, ~moved & (differences == 0)):
        assert 0.02 < happened.mean() < 0.6
    for m in range(0, 40, 5):
        for i in range(30):
            found = searched(walls[m, i], int(goals[m, i]))
            assert len(found) == (~walls[m, i]).sum() > 1
            assert found[goals[m, i] % size, goals[m, i] // size] == 0
    assert not {x.tobytes() for x in walls.reshape(-1, size, size)} & held_out


def test_a_change_that_would_make_a_test_maze_is_undone():
    """3×3 with all passages open but one more: closing one makes a tree, of either split."""
    _, drawn, held_out = drawn_tasks("train", "test", size=3)
    is_test = jax.jit(jax.vmap(maze._is_test_maze))
    assert np.all(is_test(held_out.walls))
    assert not np.any(is_test(drawn.walls))
    _, loops = drawn_tasks("out_of_distribution", size=3)
    assert not np.any(is_test(loops.walls))
