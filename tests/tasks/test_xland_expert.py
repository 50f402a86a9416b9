"""The expert of XLand-MiniGrid's open room: its next step, and what it earns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.tasks.xland import OBJECTS, XLand, XLandParams
from jaxmeta.tasks.xland_expert import FORWARD, LEFT, PICK_UP, PUT_DOWN, RIGHT, seek

pytest.importorskip("xminigrid")

from xminigrid.core import goals, rules

A, B, C = (jnp.asarray(OBJECTS[i]) for i in (0, 8, 16))


def ruleset(goal, *laws, objects=(A,)):
    nothing = rules.EmptyRule()
    return XLandParams(
        goal=goal.encode(),
        rules=jnp.stack([law.encode() for law in laws or (nothing,)]),
        objects=jnp.stack(objects),
    )


def view(*placed, size=5, walls=()):
    """What is seen: floor but for ``(row, column, object)``, and walls in rows ``walls``."""
    cells = jnp.tile(jnp.array([1, 7], jnp.uint8), (size, size, 1))
    for row in walls:
        cells = cells.at[row].set(jnp.array([2, 6], jnp.uint8))
    for row, column, tile in placed:
        cells = cells.at[row, column].set(tile)
    return XLand()._seen(cells)


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
    assert seek(task, view(*seen)) == action


@pytest.mark.parametrize("size", [3, 5, 7])
def test_the_expert_turns_two_cells_from_a_wall_to_where_there_is_room(size):
    task = ruleset(HOLD_A)
    assert seek(task, view(size=size)) == FORWARD
    end = view(size=size, walls=[size - 3])
    assert seek(task, end) == RIGHT
    beside = view((size - 1, size // 2 + 1, B), size=size, walls=[size - 3])
    assert seek(task, beside) == LEFT
    assert seek(task, view((size - 2, size // 2, B), size=size)) == RIGHT


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
            obs, state, reward, *_ = env.step_env(key, state, seek(task, obs), task)
            return (obs, state), reward > 0

        return jnp.any(jax.lax.scan(step, (obs, state), jax.random.split(key, env.horizon))[1])

    rooms = jax.jit(jax.vmap(reached))(jax.random.split(jax.random.key(0), 100))
    assert np.mean(rooms) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("split", "least"), [("test", 0.5), ("out_of_distribution", 0.35)])
@pytest.mark.usefixtures("in_earnest")
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
