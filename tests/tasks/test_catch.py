import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.tasks.catch import follow


def test_every_split_is_the_one_task():
    family = tasks.make("catch")
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 3, split=split)
        assert all(x.shape == (3,) for x in jax.tree.leaves(drawn))
        assert np.all(np.asarray(drawn.max_steps_in_episode) == 9)


def test_the_ball_is_caught_or_missed_after_nine_steps():
    family = tasks.make("catch")
    task = family.test(jax.random.key(0))
    caught = []
    for key in range(12):
        obs, state = family.env.reset_env(jax.random.key(key), task)
        side = int(jnp.argmax(obs[0]))
        for t in range(9):
            obs, state, reward, terminated, _ = family.env.step_env(
                jax.random.key(t), state, jnp.array(0), task
            )
            assert bool(terminated) == (t == 8)
            assert terminated or reward == 0
        assert reward == (1.0 if side == 0 else -1.0)  # always to the left
        caught.append(side == 0)
    assert 0 < sum(caught) < 12


def test_a_board_of_another_size():
    family = tasks.make("catch", rows=8, columns=6)
    assert family.observation_shape == (8, 6)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 10, split="test")
    best = jax.jit(lambda key: evaluation.optimal_returns(key, drawn, family=family))
    assert np.all(best(jax.random.key(1)) == 1.0)
    for setting in ("rows", "columns"):
        with pytest.raises(ValueError, match=f"{setting}=1 must be at least 2"):
            tasks.make("catch", **{setting: 1})


def test_who_follows_the_ball_catches_it():
    family = tasks.make("catch")
    drawn = tasks.sample_tasks(jax.random.key(0), family, 20, split="test")
    best = jax.jit(lambda key: evaluation.optimal_returns(key, drawn, family=family))
    assert np.all(best(jax.random.key(1)) == 1.0)
    random = jax.jit(lambda key: evaluation.random_returns(key, drawn, family=family))
    assert np.mean(random(jax.random.key(2))) < 0
    obs = jnp.zeros((10, 5)).at[3, 1].set(1.0).at[9, 4].set(1.0)
    assert follow(None, obs) == 0
    assert follow(None, obs[:, ::-1]) == 2
    assert follow(None, obs.at[9].set(0.0).at[9, 1].set(1.0)) == 1


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        pytest.param(dict(permuted_actions=True), (2, 2, 2), marks=pytest.mark.slow),
        pytest.param(dict(permuted_columns=True), (48, 48, 24), marks=pytest.mark.slow),
        (dict(permuted_actions=True, permuted_columns=True), (96, 96, 48)),
    ],
)
def test_permuted_it_is_many_tasks_and_who_is_told_still_catches(settings, sizes):
    family = tasks.make("catch", **settings)
    assert family.name == "catch"
    assert family.observation_shape == (10, 5)
    seen = []
    for split, size in zip(tasks.SPLITS, sizes, strict=True):
        drawn = tasks.sample_tasks(jax.random.key(0), family, 1000, split=split)
        permutations = np.concatenate(
            [np.asarray(x) for x in jax.tree.leaves(drawn) if x.ndim == 2], axis=1
        )
        seen.append({tuple(x) for x in permutations.tolist()})
        assert len(seen[-1]) == size
        few = jax.tree.map(lambda x: x[:20], drawn)
        best = jax.jit(
            lambda few: evaluation.optimal_returns(jax.random.key(1), few, family=family)
        )
        assert np.all(np.asarray(best(few)) == 1.0)
    assert len(set.union(*seen)) == sum(sizes)


def test_columns_are_seen_in_the_task_s_order():
    family = tasks.make("catch", permuted_columns=True)
    task = family.train(jax.random.key(0))
    inner, _ = family.env.env.reset_env(jax.random.key(1), task.inner)
    seen, _ = family.env.reset_env(jax.random.key(1), task)
    np.testing.assert_array_equal(seen, inner[:, task.drawn])
