"""Agents for dark rooms against enumeration over the goals that they draw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxmeta import evaluation, references, tasks
from jaxmeta.references.posteriors import posterior_action, posterior_goal
from jaxmeta.rollouts.lifetime import Setup, lifetime
from jaxmeta.tasks import dark_room
from jaxmeta.tasks.dark_room import DarkRoomParams
from jaxmeta.types import TimeStep
from tests.references.living import assert_mean

SIZE, HORIZON = 3, 3
FAMILY = tasks.make("dark_room", size=SIZE, horizon=HORIZON, start="corner")
EVERY = DarkRoomParams(
    goal=jnp.array([(x, y) for y in range(SIZE) for x in range(SIZE)], jnp.int32),
    start=jnp.zeros((SIZE**2, 2), jnp.int32),
)


def way(goal):
    """The cells in which the steps of an episode end that goes to the cell ``goal`` and stays there."""
    x = y = 0
    cells = []
    for _ in range(HORIZON):
        if x < goal % SIZE:
            x += 1
        elif y < goal // SIZE:
            y += 1
        cells.append(x + SIZE * y)
    return cells


@functools.cache
def expected_return(truth, episode, possible):
    """Mean return of that episode, for an agent that draws a goal from ``possible`` at the start of each."""
    if len(possible) == 1:
        return way(next(iter(possible))).count(truth)
    total = 0.0
    for goal in possible:
        cells = way(goal)
        if episode == 0:
            total += cells.count(truth)
        else:
            left = frozenset([truth]) if truth in cells else possible - set(cells)
            total += expected_return(truth, episode - 1, left)
    return total / len(possible)


def returns(learner, family, played, num_episodes, copies=1, key=0):
    """``[M * copies, E]``."""
    many = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), played)
    run = jax.jit(
        lambda key: evaluation.trials(
            key, (), many, learner=learner, env=family.env, num_steps=num_episodes * family.horizon
        )
    )
    return np.asarray(evaluation.episode_returns(run(jax.random.key(key)), num_episodes))


def test_a_goal_an_episode():
    learner = references.dark_room_sampling(size=SIZE, prior="all")
    found = returns(learner, FAMILY, EVERY, 5, copies=400)
    for episode in range(5):
        exact = [expected_return(truth, episode, frozenset(range(9))) for truth in range(9)]
        assert_mean(found[:, episode], np.mean(exact))


def lived(learner, task, num_episodes):
    """Memories after each step ``[T]``, and the trajectory ``[T]``."""
    setup = Setup(learner, FAMILY.env, num_streams=1, num_steps=num_episodes * HORIZON)
    history = jax.jit(lambda key: lifetime(key, (), task, setup=setup, num_updates=0))(
        jax.random.key(0)
    )
    data = jax.tree.map(lambda x: x[0, 0], history.trajectories)
    memory, memories = learner.memory(()), []
    # The same memories: all but the draws is a function of what was seen.
    act = jax.jit(lambda key, memory, timestep: learner.act(key, (), (), memory, timestep)[2])
    for t in range(num_episodes * HORIZON):
        timestep = jax.tree.map(lambda x, t=t: x[t], data.timestep)
        memory = act(jax.random.key(t), memory, timestep)
        memories.append(memory)
    return jax.tree.map(lambda *x: np.stack(x), *memories), jax.device_get(data)


@pytest.mark.parametrize("within_episode", [True, False])
def test_the_belief_is_the_posterior(within_episode):
    """Of every step before, the last step of an episode among them, or of earlier episodes alone."""
    learner = references.dark_room_sampling(
        size=SIZE, prior="all", draw="step", within_episode=within_episode
    )
    task = jax.tree.map(lambda x: x[7], EVERY)
    memories, data = lived(learner, task, 6)
    ended = data.next_obs.argmax(1)
    for t in range(len(ended)):
        past = t if within_episode else t - t % HORIZON
        visits = np.bincount(ended[:past], minlength=9).astype(float)
        reward = np.bincount(ended[:past], weights=data.reward[:past], minlength=9)
        expected = posterior_goal(reward, visits, np.full(9, 1 / 9))
        np.testing.assert_allclose(memories.belief[t], expected, rtol=1e-5)
    assert data.reward.any()  # it was found, or the test says little


def test_an_action_a_step_is_drawn_from_its_posterior():
    learner = references.dark_room_sampling(size=SIZE, prior="all", draw="step")
    visits = jnp.array([2.0, 1, 0, 0, 0, 0, 0, 0, 0])
    memory = learner.memory(())._replace(visits=visits, cell=jnp.array(0))
    # It went right from cell 0: that step, too, found nothing.
    timestep = TimeStep(jnp.eye(9)[1], jnp.array(2), jnp.zeros(()), jnp.zeros((), bool))
    act = jax.jit(jax.vmap(lambda key: learner.act(key, (), (), memory, timestep)[0]))
    actions = act(jax.random.split(jax.random.key(0), 8000))
    belief = posterior_goal(jnp.zeros(9), visits, jnp.full(9, 1 / 9))
    expected = np.asarray(posterior_action(belief, jnp.array(1), size=SIZE), np.float64)
    counts = np.bincount(actions, minlength=5)
    assert expected[0] == counts[0] == 0  # the goal is not here
    likely = expected > 0
    shares = expected[likely] / expected[likely].sum()
    assert scipy.stats.chisquare(counts[likely], 8000 * shares).pvalue > 1e-4


def test_a_goal_is_sought_until_it_is_refuted():
    """Each episode refutes a cell at least, so after nine the goal is found, and episodes earn the optimum."""
    family = tasks.make("dark_room", size=SIZE, horizon=5, start="corner")
    learner = references.dark_room_sampling(size=SIZE, prior="all", draw="refuted")
    found = returns(learner, family, EVERY, 10, copies=20)
    best = np.asarray(jax.vmap(family.optimal_return)(EVERY)).repeat(20)
    np.testing.assert_array_equal(found[:, -1], best)
    patient = references.dark_room_sampling(size=SIZE, prior="all")
    assert found[:, 1].mean() > returns(patient, family, EVERY, 2, copies=20)[:, 1].mean() + 0.5


def test_held_out_goals_are_searched_for_when_no_training_goal_is_left():
    family = tasks.make("dark_room", size=SIZE, horizon=8, start="corner")
    played = tasks.sample_tasks(jax.random.key(0), family, 20, split="test")
    learner = references.dark_room_sampling(size=SIZE, draw="refuted")
    found = returns(learner, family, played, 6)
    np.testing.assert_array_equal(found[:, -1], jax.vmap(family.optimal_return)(played))
    assert found[:, 0].mean() < 0.8 * found[:, -1].mean()


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
@pytest.mark.parametrize(("draw", "fourth"), [("episode", 21.7), ("step", 58.9)])
def test_the_fourth_episode_of_ten_by_ten(draw, fourth):
    """Of 100 steps, on training goals: what was measured in 2000 trials, 25 for each goal."""
    family = tasks.make("dark_room", size=10, horizon=100, start="corner")
    goal = jnp.asarray(dark_room.goals(size=10, split="train"))
    played = DarkRoomParams(goal=goal, start=jnp.zeros_like(goal))
    learner = references.dark_room_sampling(size=10, draw=draw)
    assert_mean(
        returns(learner, family, played, 4, copies=5)[:, -1], fourth, exact=False, rounding=0.05
    )


def test_one_who_is_told_of_key_and_door_earns_two_in_every_episode():
    family = tasks.make("dark_key_to_door", size=4, horizon=20)
    few = [tasks.sample_tasks(jax.random.key(0), family, 20, split=split) for split in tasks.SPLITS]
    played = jax.tree.map(lambda *x: jnp.concatenate(x), *few)
    learner = references.told_key_to_door(size=4)
    setup = Setup(learner, family.env, num_streams=1, num_steps=80)
    run = jax.jit(jax.vmap(lambda key, task: lifetime(key, task, task, setup=setup, num_updates=0)))
    data = run(jax.random.split(jax.random.key(1), 60), played).trajectories
    reward, last = np.asarray(data.reward[:, 0, 0]), np.asarray(data.last[:, 0, 0])
    for r, ends in zip(reward, last, strict=True):
        whole = np.split(r, np.flatnonzero(ends) + 1)[:-1]
        assert len(whole) >= 4
        assert all(x.sum() == 2 for x in whole)
