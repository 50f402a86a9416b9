import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta import evaluation, tasks
from jaxmeta.rollout import begin_stream, rollout
from jaxmeta.tasks.t_maze import TMaze, TMazeParams
from jaxmeta.types import Learner
from tests.probes import constant_learner

LENGTH = 3
BOTH = TMazeParams(side=jnp.arange(2))


def walk(actions, side):
    """One episode with the given actions ``[LENGTH + 1]``."""
    family = tasks.make("t_maze", length=LENGTH)
    learner = Learner(
        init=lambda key, meta: (),
        memory=lambda meta: jnp.zeros((), jnp.int32),
        act=lambda key, meta, agent, time, timestep: (meta[time], jnp.zeros(()), time + 1),
        update=lambda key, meta, agent, data: agent,
    )
    key, task = jax.random.key(0), TMazeParams(side=side)
    stream = begin_stream(key, actions, task, learner=learner, env=family.env)
    return rollout(
        key, actions, task, (), stream, learner=learner, env=family.env, num_steps=LENGTH + 1
    )


def test_every_walk_through_either_maze():
    """All 16 sequences of actions: only the last counts, and observations depend on none."""
    actions = jnp.array(list(itertools.product(range(2), repeat=LENGTH + 1)))
    stream, data = jax.jit(jax.vmap(jax.vmap(walk, (0, None)), (None, 0)))(actions, jnp.arange(2))
    for side in range(2):
        cue = [0, 0, 0]
        cue[side] = 1
        expected = [cue, [0, 0, 0], [0, 0, 0], [0, 0, 1]]
        assert data.timestep.obs[side].tolist() == [expected] * 16
        # The successor of the choice is recorded, and the next episode shows the same cue again.
        assert data.next_obs[side].tolist() == [[*expected[1:], [0, 0, 0]]] * 16
        assert stream.timestep.obs[side].tolist() == [cue] * 16
        right = np.asarray(actions[:, -1]) == side
        assert data.reward[side].tolist() == [[0, 0, 0, float(x)] for x in right]
    ends = np.array([0, 0, 0, 1], bool)
    assert np.all(np.asarray(data.last) == ends)
    assert np.all(
        np.asarray(data.discount) == 1.0 - ends
    )  # it terminates, no time limit cuts it off


@pytest.mark.parametrize(
    ("split", "p"), [("train", 0.5), ("test", 0.5), ("out_of_distribution", 0.9)]
)
def test_sides_of_each_split(split, p):
    family = tasks.make("t_maze")
    drawn = jax.jit(lambda key: tasks.sample_tasks(key, family, 5000, split=split))
    side = drawn(jax.random.key(0)).side
    assert side.dtype == jnp.int32
    assert set(np.unique(side)) == {0, 1}
    assert scipy.stats.binomtest(int(side.sum()), 5000, p).pvalue > 1e-4


def test_optimal_actions_earn_the_optimal_return():
    family = tasks.make("t_maze", length=LENGTH)
    led = dataclasses.replace(family, expert_action=family.optimal_action)
    earned = evaluation.expert_returns(jax.random.key(0), BOTH, family=led, num_streams=1)
    assert earned.tolist() == [1, 1]
    assert evaluation.optimal_returns(jax.random.key(0), BOTH, family=family).tolist() == [1, 1]


@pytest.mark.parametrize("length", [1, 6])
def test_an_episode_is_the_corridor_and_the_choice(length):
    """Nothing is seen at as many steps as lie between the cue and the junction."""
    family = tasks.make("t_maze", length=length)
    assert family.horizon == length + 1
    learner, task = constant_learner(), TMazeParams(side=jnp.array(1))
    stream = begin_stream(jax.random.key(0), None, task, learner=learner, env=family.env)
    _, data = rollout(
        jax.random.key(1),
        None,
        task,
        (),
        stream,
        learner=learner,
        env=family.env,
        num_steps=2 * family.horizon,
    )
    episode = [[0, 1, 0], *[[0, 0, 0]] * (length - 1), [0, 0, 1]]
    assert data.timestep.obs.tolist() == episode * 2
    assert data.reward.tolist() == [*[0] * length, 1] * 2
    assert data.last.tolist() == [*[False] * length, True] * 2


def test_types_are_kept_where_float_is_float64(x64):
    family = tasks.make("t_maze")
    task = family.train(jax.random.key(0))
    obs, state = family.env.reset_env(jax.random.key(1), task)
    action = family.optimal_action(task, obs)
    next_obs, successor, reward, *_ = family.env.step_env(jax.random.key(2), state, action, task)
    assert obs.dtype == next_obs.dtype == reward.dtype == jnp.float64
    assert family.optimal_return(task).dtype == jnp.float64
    assert action.dtype == state.time.dtype == successor.time.dtype == jnp.int32
    assert not any(x.weak_type for x in (task.side, reward, successor.time))


def test_equal_settings_are_equal_environments():
    assert TMaze(5) == TMaze(5)
    assert hash(TMaze(5)) == hash(TMaze(5))
    assert TMaze(5) != TMaze(6)


@given(length=st.integers(max_value=0))
def test_a_corridor_without_steps_is_refused(length):
    with pytest.raises(ValueError, match=f"length={length} must be at least 1"):
        tasks.make("t_maze", length=length)


def test_a_length_that_is_no_integer_is_named():
    with pytest.raises(TypeError, match="length='long' must be an integer of at least 1"):
        tasks.make("t_maze", length="long")
