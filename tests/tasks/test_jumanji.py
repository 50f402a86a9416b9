"""Jumanji's boards as tasks: they last from episode to episode, and an agent learns on them."""

import sys

import jax
import numpy as np
import pytest

from jaxmeta import rollouts, tasks
from jaxmeta.algorithms.rl2 import Config, Hyper, rl2
from jaxmeta.runs import training
from jaxmeta.tasks import jumanji
from tests.probes import constant_learner

package = pytest.importorskip("jumanji")


@pytest.fixture(scope="module")
def game():
    from jumanji.environments.logic.minesweeper.generator import UniformSamplingGenerator

    return package.environments.Minesweeper(UniformSamplingGenerator(3, 4, 2))


@pytest.fixture(scope="module")
def boards(game):
    family = jumanji.jumanji(game, horizon=4)
    return jax.jit(lambda: tasks.sample_tasks(jax.random.key(0), family, 12, split="train"))()


def test_the_spaces_are_the_game_s(game):
    family = jumanji.jumanji(game, horizon=4)
    assert sorted(family.env.env.observation_space().spaces) == [
        *("action_mask", "board", "num_mines", "step_count"),
    ]
    assert family.observation_shape == (2 * 12 + 2,)
    assert family.action_space.sizes == (3, 4)
    assert jumanji.jumanji(game, horizon=4) is family
    maze = jumanji.jumanji("Maze-v0")
    assert maze.action_space.n == 4
    assert {"walls", "target_position.row"} <= set(maze.env.env.observation_space().spaces)


def test_a_square_earns_as_in_the_game_and_the_mines_stay(game, boards):
    """The same two squares in every episode, by the rules of Minesweeper."""
    family = jumanji.jumanji(game, horizon=4)
    square, num_steps = np.array([1, 2]), 6
    setup = rollouts.Setup(constant_learner(square), family.env, num_streams=1, num_steps=num_steps)
    data = jax.jit(
        jax.vmap(lambda task: rollouts.sample(jax.random.key(1), None, task, None, setup=setup))
    )(boards)
    mines = np.zeros((12, 3, 4), bool)
    for board, flat in zip(mines, np.asarray(boards["state"].flat_mine_locations), strict=True):
        board.flat[flat] = True
    assert 0 < mines[:, 1, 2].sum() < 12
    around = mines.sum((1, 2)) - mines[:, :, 0].sum(1)  # all but the first column touch the square
    for m in range(12):
        # A new square earns 1; the second time it is open, and the episode ends. A mine ends it at once.
        mined = mines[m, 1, 2]
        reward, last = [0.0] if mined else [1.0, 0.0], [True] if mined else [False, True]
        times = num_steps // len(reward)
        np.testing.assert_array_equal(data.reward[m, 0], reward * times)
        np.testing.assert_array_equal(data.last[m, 0], last * times)
        np.testing.assert_array_equal(data.discount[m, 0], 1.0 - data.last[m, 0])
        seen = np.asarray(data.next_obs[m, 0, 0, 12:24]).reshape(3, 4)
        np.testing.assert_array_equal(np.delete(seen.ravel(), 6), -np.ones(11))
        if not mined:
            assert seen[1, 2] == around[m]


def test_it_keeps_its_promises(game):
    found = tasks.check(jumanji.jumanji(game, horizon=12), num_tasks=4, show=False)
    assert found.problems == ()
    assert found.longest_episode <= 10  # the squares without a mine


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Maze-v0", "Snake-v1", "Knapsack-v1"])
def test_other_games_keep_theirs(name):
    assert tasks.check(jumanji.jumanji(name), num_tasks=4, show=False).problems == ()


@pytest.mark.slow
def test_rl2_learns_in_it(in_earnest):
    """More squares than random actions open, and more in the second episode: the mines are where they were."""
    from jumanji.environments.logic.minesweeper.generator import UniformSamplingGenerator

    game = package.environments.Minesweeper(UniformSamplingGenerator(5, 5, 4))
    family = jumanji.jumanji(game, horizon=15)
    config = Config(num_episodes=2, num_minibatches=2, num_epochs=2)
    algorithm = rl2(family, config, Hyper(learning_rate=2e-3))
    log = []
    plan = training.Config(meta_updates=500, num_tasks=64)
    training.train(algorithm, family, plan, sink=log.append)

    def mean(name, part):
        return np.mean([x[f"return/{name}"] for x in part])

    assert mean("trial", log[-50:]) > mean("trial", log[:5]) + 2
    assert mean("after", log[-50:]) > mean("before", log[-50:]) + 0.5


def test_settings(monkeypatch):
    with pytest.raises(ValueError, match="horizon=0 must be at least 1"):
        jumanji.jumanji(horizon=0)
    with pytest.raises(ValueError, match="game='Maze' is unknown: did you mean 'Maze-v0'"):
        jumanji.jumanji("Maze")
    with pytest.raises(TypeError, match="game=3 must be a name or an environment of Jumanji"):
        jumanji.jumanji(3)
    monkeypatch.setitem(sys.modules, "jumanji", None)
    with pytest.raises(ImportError, match=r'pip install "jaxmeta\[jumanji\]"'):
        jumanji.jumanji()
