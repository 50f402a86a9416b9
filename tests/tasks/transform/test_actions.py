"""What an action does."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import evaluation, tasks
from jaxmeta.tasks import transform
from jaxmeta.tasks.transform import TransformedParams
from jaxmeta.tasks.transform.wrappers import innermost
from tests.tasks.transform.shared import KEY, Own, OwnParams, all_of


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("Catch-bsuite", (2, 2, 2)), ("SpaceInvaders-MinAtar", (9, 9, 6)), ("CartPole-v1", (2, 2, 2))],
)
def test_permutations_are_uniform_and_those_of_the_splits_disjoint(name, sizes):
    family = transform.permuted_actions(transform.from_gymnax(name, horizon=3))
    found = []
    for split, size in zip(tasks.SPLITS, sizes, strict=True):
        drawn = tasks.sample_tasks(jax.random.key(0), family, 3000, split=split).drawn
        values, counts = np.unique(np.asarray(drawn), axis=0, return_counts=True)
        assert len(values) == size
        np.testing.assert_allclose(counts / 3000, 1 / size, atol=0.03)
        found.append({tuple(x) for x in values.tolist()})
    n = family.action_space.n
    assert set.union(*found) == set(itertools.permutations(range(n)))
    if n >= 3:
        assert not found[0] & found[1]
        assert not (found[0] | found[1]) & found[2]


def test_remapped_actions_are_all_there_is_and_disjoint():
    family = transform.remapped_actions(tasks.make("catch"), num_buttons=4)
    assert family.action_space.n == 4
    found = []
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 1000, split=split).drawn
        found.append({tuple(x) for x in np.asarray(drawn).tolist()})
    assert set.union(*found) == all_of(3, 4)
    assert len(found[0]) + len(found[1]) + len(found[2]) == len(all_of(3, 4))


@pytest.mark.parametrize("change", ["permuted", "remapped"])
def test_a_button_does_its_action_and_controllers_know_the_buttons(change):
    inner = tasks.make("catch")
    family = (
        transform.permuted_actions(inner)
        if change == "permuted"
        else transform.remapped_actions(inner, num_buttons=5)
    )
    drawn = tasks.sample_tasks(jax.random.key(0), family, 20, split="test")
    best = jax.jit(lambda key: evaluation.optimal_returns(key, drawn, family=family))
    assert np.all(np.asarray(best(KEY)) == 1.0)
    task = family.test(jax.random.key(3))
    _, state = family.env.reset_env(KEY, task)
    for button in range(family.action_space.n):
        pressed = family.env.step_env(KEY, state, jnp.array(button), task)[0]
        meant = inner.env.step_env(KEY, state, task.drawn[button], task.inner)[0]
        np.testing.assert_array_equal(pressed, meant)
    for obs in jnp.eye(50).reshape(50, 10, 5)[::7]:
        action = inner.optimal_action(task.inner, obs)
        assert task.drawn[family.optimal_action(task, obs)] == action


def test_flips_of_three_and_more_are_disjoint():
    reacher = transform.from_gymnax("Reacher-misc", horizon=3, num_joints=3)
    family = transform.flipped_actions(reacher)
    found = []
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 300, split=split).drawn
        found.append({tuple(x) for x in np.asarray(drawn).tolist()})
    assert [len(x) for x in found] == [2, 2, 4]
    assert set.union(*found) == set(itertools.product([-1.0, 1.0], repeat=3))
    for split in tasks.SPLITS:
        two = transform.flipped_actions(tasks.make("navigation"))
        drawn = tasks.sample_tasks(jax.random.key(0), two, 100, split=split).drawn
        assert len(np.unique(np.asarray(drawn), axis=0)) == 4


def test_flipped_actions_are_mirrored_at_the_middle():
    class Uneven(Own):
        def action_space(self, params=None):
            return spaces.Box(jnp.array([0.0, -1.0]), jnp.array([4.0, 1.0]), (2,))

    env = transform.FlippedActions(Uneven())
    task = TransformedParams(OwnParams(), jnp.array([-1.0, 1.0]))
    np.testing.assert_allclose(env.act(jnp.array([1.0, 0.5]), task), [3.0, 0.5])
    env = transform.RotatedActions(Uneven())
    task = TransformedParams(OwnParams(), jnp.array([math.pi / 2]))
    np.testing.assert_allclose(env.act(jnp.array([3.0, 0.0]), task), [2.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(env.act(jnp.array([4.0, 1.0]), task), [0.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("change", [transform.flipped_actions, transform.rotated_actions])
def test_controllers_undo_what_was_done_to_actions(change):
    inner = tasks.make("navigation")
    family = change(inner)
    task = family.test(jax.random.key(0))
    task = task.replace(inner=task.inner.replace(goal=jnp.array([0.03, -0.05])))
    controller = family.optimal_action or family.expert_action
    action = family.env.act(controller(task, jnp.zeros(2)), task)
    np.testing.assert_allclose(action, task.inner.goal, atol=1e-6)
    assert (family.optimal_action is None) == (change is transform.rotated_actions)


def test_angles_lie_where_the_split_says():
    family = transform.rotated_actions(tasks.make("navigation"), max_angle=1.0)
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 1000, split=split).drawn
        angle = np.abs(drawn)
        least, most = (1.0, 1.5) if split == "out_of_distribution" else (0.0, 1.0)
        np.testing.assert_allclose([angle.min(), angle.max()], [least, most], atol=0.01)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_sticky_actions_stick_with_their_probability(probability):
    """CartPole's force says which action was taken; the last action asked for is the other one."""
    family = transform.sticky_actions(tasks.make("cartpole"))
    task = TransformedParams(family.env.env.default_params, jnp.array(probability))

    @jax.vmap
    def second(key):
        _, state = family.env.reset_env(key, task)
        first_key, second_key = jax.random.split(key)
        _, state, *_ = family.env.step_env(first_key, state, jnp.array(1), task)
        taken = state.action == 1  # whatever the probability
        _, state, *_ = family.env.step_env(second_key, state, jnp.array(0), task)
        return taken, state.action == 1, innermost(state).x_dot > 0

    first, stuck, right = second(jax.random.split(KEY, 2000))
    assert np.all(first)
    np.testing.assert_allclose(np.mean(stuck), probability, atol=0.04)
    if probability == 1.0:
        assert np.all(right)


def test_what_sticks_is_what_was_taken_and_a_reset_forgets_it():
    family = transform.sticky_actions(tasks.make("catch"))
    task = TransformedParams(family.env.env.default_params, jnp.array(1.0))
    _, state = family.env.reset_env(KEY, task)
    assert state.first
    for action in (2, 0, 1):
        _, state, *_ = family.env.step_env(KEY, state, jnp.array(action), task)
        assert state.action == 2
        assert not state.first
    assert innermost(state).paddle_x == 4
    assert family.optimal_action is None
    assert family.expert_action is not None


SIDES = [
    (-1.0, 1.0),
    (0.0, np.inf),
    (-np.inf, 0.0),
    (-np.inf, np.inf),
    (-3.4028235e38, 3.4028235e38),
    (-1e30, 4.0),
]


@dataclasses.dataclass(frozen=True)
class Echo(Own):
    """Observes the action that it gets."""

    sides: tuple = tuple(SIDES)

    def action_space(self, params=None):
        low, high = np.array(self.sides, np.float32).T
        return spaces.Box(jnp.asarray(low), jnp.asarray(high), (len(self.sides),))

    def step_env(self, key, state, action, params):
        return action, state + 1, 0.0, jnp.zeros((), bool), {}


class OneAction(Own):
    def action_space(self, params=None):
        return spaces.Discrete(1)


def echoing(sides=tuple(SIDES)):
    env = Echo(sides)
    return tasks.TaskFamily("echo", env, 5, *[lambda key: env.default_params] * 3)


def received(family, drawn, action):
    """The action that the environment within gets, from inside of a trace."""
    task = TransformedParams(OwnParams(), jnp.asarray(drawn))
    _, state = family.env.reset_env(KEY, task)
    step = jax.jit(lambda action: family.env.step_env(KEY, state, action, task)[0])
    return np.asarray(step(jnp.asarray(action, jnp.float32)))


def test_flips_are_about_the_middle_of_the_nominal_range():
    family = transform.flipped_actions(echoing())
    action = np.array([0.5, 0.5, -1.75, 0.5, 0.5, 3.5])
    mirrored = np.array([-0.5, 1.5, -0.25, -0.5, -0.5, 2.5])
    np.testing.assert_allclose(received(family, -np.ones(6), action), mirrored, atol=1e-6)
    np.testing.assert_allclose(received(family, -np.ones(6), mirrored), action, atol=1e-6)
    # Clipped to the bounds that there are, and to none that there are not.
    far = received(family, -np.ones(6), np.array([3.0, 5.0, -5.0, 100.0, 1e6, -100.0]))
    np.testing.assert_allclose(far, [-1.0, 0.0, 0.0, -100.0, -1e6, 4.0], atol=1e-6)
    assert np.array_equal(received(family, np.ones(6), action), action.astype(np.float32))


def test_rotations_leave_the_nominal_range_but_not_the_bounds():
    sides = ((-2.0, 2.0), (-np.inf, np.inf), (0.0, np.inf), (-np.inf, np.inf))
    family = transform.rotated_actions(echoing(sides))
    far = np.array([1.5, 300.0, 40.0, -500.0])
    np.testing.assert_allclose(received(family, np.zeros(2), far), far, rtol=1e-6)
    # A quarter turn, in units of half widths about the middles: (x, y) -> (-y, x).
    turned = received(family, np.full(2, np.pi / 2), np.array([1.0, 30.0, 3.0, 0.5]))
    np.testing.assert_allclose(turned, [-2.0, 0.5, 0.5, 2.0], rtol=1e-5)


def test_actions_that_cannot_be_turned_are_refused():
    empty_width = echoing(((0.0, 0.0), (0.0, 1.0)))
    with pytest.raises(ValueError, match="family='echo', action_space=Box.* low == high"):
        transform.rotated_actions(empty_width)
    with pytest.raises(ValueError, match="max_angle=0 must lie between"):
        transform.rotated_actions(echoing(), max_angle=0)
    with pytest.warns(UserWarning, match="'echo' would have no variety.*one action has one order"):
        transform.permuted_actions(dataclasses.replace(echoing(), env=OneAction()))
