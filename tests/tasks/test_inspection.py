"""Families are looked at: broken promises are errors, and what is probably not meant is told."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import tasks
from jaxmeta.tasks import InvalidEnvironment, transform
from tests import probes
from tests.probes import Counter, CounterParams


def test_a_reset_that_draws_the_task_is_found_and_pinning_mends_it():
    family = transform.from_gymnax("PointRobot-misc", horizon=4)
    found = tasks.check(family, num_tasks=3)
    same, drawn = found.problems
    assert same == "train, test, out_of_distribution: all tasks are the same"
    assert "state.goal never changes within an episode" in drawn
    mended = tasks.check(transform.pinned(family, "goal"), num_tasks=3)
    assert mended.problems == ()
    assert (mended.distinct_tasks, mended.longest_episode) == (3, 4)


def moved(key, state, action, task):
    x = jnp.clip(state + action, -3.0, 3.0)
    return x, x, -jnp.sum((x - task) ** 2), False


def goal(key):
    return jax.random.uniform(key, (2,), minval=-1.0)


SOUND = dict(
    reset=lambda key, task: (jnp.zeros(2), jnp.zeros(2)),
    step=moved,
    observation_space=spaces.Box(-3.0, 3.0, (2,)),
    action_space=spaces.Box(-1.0, 1.0, (2,)),
    horizon=4,
    train=goal,
)


class Endless(Counter):
    """Promises an end that does not come."""

    ends_by = 3


def endless():
    draw = lambda key: CounterParams(jax.random.uniform(key), 99, 9)  # noqa: E731
    return tasks.TaskFamily("endless", Endless(), 3, draw, draw, draw)


def far(key):
    return goal(key) + 2.0


def drawn_twice(key, task):
    x = jax.random.uniform(key, (2,))
    return x, x + 0.1 * jax.random.normal(key, (2,))


GENERATOR = np.random.default_rng(0)


def made(**change):
    return tasks.from_functions(**(SOUND | change))


BROKEN = {
    "observations of another shape": (
        lambda: made(reset=lambda key, task: (jnp.zeros(3), jnp.zeros(2))),
        "reset's observation has shape (3,)",
    ),
    "a state of another kind": (
        lambda: made(step=lambda k, s, a, t: (s, s > 0, 0.0, False)),
        "it must be of one kind from the start",
    ),
    "two rewards": (
        lambda: made(step=lambda k, s, a, t: (s, s, s, False)),
        "reward is float32 of shape (2,); it must be one number",
    ),
    "a flag of floats": (
        lambda: made(step=lambda k, s, a, t: (s, s, 0.0, 1.0)),
        "terminated is float32 of shape (); it must be one boolean",
    ),
    "tasks of another structure": (
        lambda: made(test=lambda key: {"goal": goal(key)}),
        "a task of test has the structure",
    ),
    "a controller of another shape": (
        lambda: made(optimal_action=lambda task, obs: jnp.zeros(3)),
        "optimal_action is float32 of shape (3,)",
    ),
    "Python's if": (
        lambda: made(step=lambda k, s, a, t: (s, s, 0.0 if s[0] > 0 else 1.0, False)),
        "use jnp.where, or jax.lax.cond",
    ),
    "observations outside of their space": (
        lambda: made(observation_space=spaces.Box(-0.5, 0.5, (2,))),
        "observations lie outside of the observation space",
    ),
    "a reward that is not a number": (
        lambda: made(step=lambda k, s, a, t: (s, s, jnp.log(s[0] - 9.0), False)),
        "numbers of observations or rewards are not finite",
    ),
    "an end that does not come": (endless, "had not ended after horizon=3 steps"),
    "randomness that is not of the key": (
        lambda: made(
            reset=lambda key, task: (jnp.asarray(GENERATOR.uniform(size=2)), jnp.zeros(2))
        ),
        "reset is not pure",
    ),
    "tasks of another shape": (
        lambda: made(test=lambda key: jnp.zeros(3)),
        "a task of test is float32 of shape (3,); in train it is float32 of shape (2,)",
    ),
    "splits that share a task": (
        lambda: dataclasses.replace(made(train=lambda key: jnp.ones(2)), disjoint=["test"]),
        "test and train have a task in common",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_promise_has_an_error(name):
    make, message = BROKEN[name]
    with pytest.raises(InvalidEnvironment) as error:
        tasks.check(make(), num_tasks=2, show=False)
    assert message in str(error.value)


PROBABLY = {
    "one task": (lambda: made(train=lambda key: jnp.ones(2)), "all tasks are the same"),
    "a key used twice": (lambda: made(reset=drawn_twice), "a random key is used twice"),
    "a task that a reset draws": (
        lambda: made(
            reset=lambda key, task: (jnp.zeros(2), (jnp.zeros(2), goal(key))),
            step=lambda k, s, a, t: (s[0], (s[0] + a, s[1]), -jnp.sum((s[0] - s[1]) ** 2), False),
            observation_space=spaces.Box(-9.0, 9.0, (2,)),
        ),
        "state[1] never changes within an episode",
    ),
}


@pytest.mark.parametrize("name", PROBABLY)
def test_what_is_probably_not_meant_is_told(name):
    make, message = PROBABLY[name]
    (problem,) = tasks.check(make(), num_tasks=2, show=False).problems
    assert message in problem


def test_several_broken_promises_have_an_error_each():
    family = made(
        observation_space=spaces.Box(-0.1, 0.1, (2,)),
        step=lambda k, s, a, t: (s + a, s + a, jnp.nan, False),
        train=lambda key: jnp.ones(2),
    )
    with pytest.raises(InvalidEnvironment) as error:
        tasks.check(dataclasses.replace(family, disjoint=("test",)), num_tasks=2)
    assert [x in str(error.value) for x in ("not finite", "outside", "in common")] == [True] * 3


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (jnp.array([7.0, 0.0]), r"a reset's observations lie outside .*, for example entry \[0\]"),
        (jnp.array([0.0, jnp.nan]), "numbers of a reset's observation are not finite"),
    ],
)
def test_a_reset_outside_of_its_space_is_found(first, message):
    """Steps return zeros, which are inside."""
    family = made(
        observation_space=spaces.Box(-1.0, 1.0, (2,)),
        reset=lambda k, t: (first, jnp.zeros(2)),
        step=lambda k, s, a, t: (jnp.zeros(2), s, 0.0, False),
    )
    with pytest.raises(InvalidEnvironment, match=message):
        tasks.check(family, num_tasks=2)


def test_a_sound_family_has_a_table(capsys):
    family = dataclasses.replace(made(out_of_distribution=far), disjoint=("out_of_distribution",))
    found = tasks.check(family, num_tasks=2)
    assert capsys.readouterr().out == ""
    print(found)
    assert found.problems == ()
    assert (found.distinct_tasks, found.longest_episode) == (2, 4)
    printed = capsys.readouterr().out
    assert [line.split("  ")[0] for line in printed.splitlines()] == [
        *("family", "observations", "actions", "training tasks", "random actions", "cost"),
    ]
    assert repr(found) == str(found) == printed.removesuffix("\n")  # once, in a notebook too
    tasks.check(family, num_tasks=2, show=True)
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert "8 bytes of state" not in printed  # the time limit counts in four more
    assert "12 bytes of state" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.names())
def test_every_family_of_this_library_keeps_its_promises(name):
    horizon = inspect.signature(tasks.FAMILIES[name]).parameters.get("horizon")
    default = None if horizon is None else horizon.default  # None, too, where a task's size says it
    shorter = {"horizon": 60} if default is not None and default > 100 else {}
    tasks.check(probes.made(name, **shorter), num_tasks=2, show=False)
