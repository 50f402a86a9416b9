import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import tasks
from jaxmeta.tasks.bus import (
    CORNERS,
    ENDS,
    IDLE_ENDS,
    IDLE_STOPS,
    MAP,
    STOPS,
    WORLDS,
    BusState,
    bus,
    lines,
    number,
)
from jaxmeta.tasks.informed import informed

STEPS = [(-1, 0), (0, 1), (1, 0), (0, -1), (0, 0), None, (0, 0), (0, 0), (0, 0)]
CELLS = [(x, y) for y in range(9) for x in range(9)]


def a_task(family):
    """A task whose lines are not in the order of the stops."""
    return family.env.default_params.replace(ends=family.env.default_params.ends[::-1])


@pytest.mark.parametrize("world", WORLDS)
def test_every_action_in_every_cell(world):
    family = bus(world=world)
    env, time = family.env, 6
    stops = [*STOPS, *IDLE_STOPS] if world == "distraction" else [*STOPS]
    ends = [*ENDS, *IDLE_ENDS][: len(stops)]
    task = env.default_params.replace(ends=jnp.asarray(ends[::-1], jnp.int32))
    joined = dict(zip(stops, ends[::-1], strict=True)) | dict(zip(ends[::-1], stops, strict=True))

    def step(position, action):
        state = BusState(position=position, goal=jnp.array(2), time=jnp.array(time))
        return env.step_env(jax.random.key(0), state, action, task)

    each = jax.jit(jax.vmap(jax.vmap(step, (None, 0)), (0, None)))
    obs, state, reward, terminated, _ = each(jnp.array(CELLS), jnp.arange(9))
    assert jnp.all(state.time == time + 1)
    for c, cell in enumerate(CELLS):
        for a, move in enumerate(STEPS):
            there = joined.get(cell, cell) if move is None else np.add(cell, move)
            x, y = np.clip(there, 0, 8)
            assert state.position[c, a].tolist() == [x, y]
            seen = [*np.eye(9)[x], *np.eye(9)[y], float((x, y) in joined), 0, 0, 1, 0]
            if world == "map":
                seen += (np.eye(24)[23] * ((x, y) == MAP)).tolist()
            assert obs[c, a].tolist() == seen
            at_goal = (x, y) == CORNERS[2]
            left = 20 - time - 1 if a == 6 else 0
            assert reward[c, a] == np.float32(1.0 if at_goal else -0.1 * (1 + left))
            assert terminated[c, a] == (at_goal or a == 6)


def test_an_episode_begins_in_the_centre_with_a_uniform_goal_and_ends_at_the_horizon():
    family = bus(horizon=7)
    task = a_task(family)
    obs, state = jax.vmap(family.env.reset_env, (0, None))(
        jax.random.split(jax.random.key(0), 2000), task
    )
    assert jnp.all(state.position == 4)
    counts = np.bincount(state.goal, minlength=4)
    assert counts.min() > 420
    np.testing.assert_array_equal(obs[:, -4:], np.eye(4)[state.goal])
    at = jax.tree.map(lambda x: x[0], state)
    assert not family.env.is_truncated(at.replace(time=jnp.array(6)), task)
    assert family.env.is_truncated(at.replace(time=jnp.array(7)), task)


def test_numbers_are_those_of_the_permutations():
    near = lines(world="map")
    assert near.tolist() == [[list(x) for x in order] for order in itertools.permutations(ENDS)]
    family = bus(world="map")
    tasks_ = family.env.default_params.replace(ends=jnp.asarray(near))
    assert jax.vmap(number)(tasks_).tolist() == list(range(24))


def test_tasks_are_split_as_published():
    train, test = (lines(world="distraction", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (53, 523)
    every = {tuple(x.ravel().tolist()) for x in np.concatenate([train, test])}
    assert len(every) == 576
    order = list(itertools.permutations(range(4)))
    eleventh = train[1].reshape(-1, 2).tolist()
    assert eleventh[:4] == [list(ENDS[i]) for i in order[11]]
    assert eleventh[4:] == [list(x) for x in IDLE_ENDS]
    assert train[3, 4:].tolist() == [list(IDLE_ENDS[i]) for i in order[33 // 24]]
    for world in ("plain", "map"):
        assert np.array_equal(lines(world=world, split="train"), lines(world=world, split="test"))
        assert bus(world=world).disjoint == ("out_of_distribution",)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("split", tasks.SPLITS)
def test_all_tasks_of_a_split_are_drawn_and_no_others(world, split):
    family = bus(world=world)
    drawn = jax.jit(lambda key: tasks.sample_tasks(key, family, 6000, split=split))(
        jax.random.key(0)
    )
    found = {tuple(x.ravel().tolist()) for x in np.asarray(drawn.ends)}
    known = lines(world=world, split="train" if split == "train" else "test")
    if split == "out_of_distribution":
        known = np.concatenate([known[:, :4, ::-1], known[:, 4:]], axis=1)
    assert found == {tuple(x.ravel().tolist()) for x in known}
    told = jax.vmap(family.task_vector)(drawn)
    assert np.abs(told).max() == 1
    assert len(np.unique(told, axis=0)) == len(found)


@pytest.mark.parametrize(
    ("world", "horizon", "best"), [("plain", 20, 0.8), ("distraction", 20, 0.8), ("map", 2, -0.2)]
)
def test_an_agent_that_is_told_the_task_rides_to_the_goal(world, horizon, best):
    """A step to the stop, a ride, a step to the corner: 1 - 2 × 0.1."""
    family = bus(world=world, horizon=horizon)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 20, split="test")
    np.testing.assert_allclose(jax.vmap(family.optimal_return)(drawn), best, rtol=1e-6)


def test_an_informed_agent_sees_the_ends_in_units_of_half_a_side():
    family = bus()
    told = informed(family)
    obs, _ = told.env.reset_env(jax.random.key(0), family.env.default_params)
    assert told.observation_shape == obs.shape == (9 + 9 + 1 + 4 + 8,)
    assert obs[-8:].tolist() == [-1, -0.75, -1, 0.75, 1, -0.75, 1, 0.75]


def test_settings_that_are_wrong():
    with pytest.raises(ValueError, match="world='city' is unknown"):
        bus(world="city")
    with pytest.raises(ValueError, match="horizon=0 must be at least 1"):
        bus(horizon=0)
