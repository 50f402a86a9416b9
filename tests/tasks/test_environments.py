"""Spaces, actions and tasks of an environment are checked."""

import jax
import jax.numpy as jnp
import pytest

from jaxmeta.rollouts.rollout import begin_stream, rollout
from jaxmeta.tasks import InvalidEnvironment, environments, make
from jaxmeta.types import Learner
from tests.probes import Counter, CounterParams


@pytest.mark.parametrize(
    ("tasks_of", "message"),
    [
        (lambda t: t, "tasks.number has shape (); it must be like [M]"),
        (lambda t: jax.tree.map(lambda x: jnp.zeros((3, 2)), t), "tasks.number has shape (3, 2)"),
        (
            lambda t: CounterParams(jnp.zeros(3), jnp.zeros(3), jnp.zeros(2)),
            "tasks.truncate_at has shape (2,); other leaves hold 3",
        ),
        (lambda t: {"number": jnp.zeros(3)}, "tasks has the structure"),
        (lambda t: jax.tree.map(lambda x: jnp.zeros(0), t), "tasks holds nothing"),
    ],
)
def test_tasks_have_one_leading_axis_in_every_leaf(tasks_of, message):
    with pytest.raises(ValueError, match="tasks") as error:
        environments.num_tasks("tasks", tasks_of(CounterParams()), Counter())
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (jnp.zeros(2), "the learner's action is float32 of shape (2,)"),
        (jnp.zeros(()), "the learner's action is float32 of shape ()"),
    ],
)
def test_actions_are_of_the_space(action, message):
    learner = Learner(lambda *x: (), lambda *x: (), lambda *x: (action, 0.0, ()), lambda *x: ())
    env, task = Counter(), CounterParams()
    stream = begin_stream(jax.random.key(0), None, task, learner=learner, env=env)
    with pytest.raises(InvalidEnvironment) as error:
        rollout(jax.random.key(0), None, task, (), stream, learner=learner, env=env, num_steps=1)
    assert message in str(error.value)


def test_what_is_no_environment_is_told_in_a_few_words():
    for wrong, message in (
        (make("navigation"), "env is a TaskFamily; it must be its environment: family.env"),
        (Counter, "env is the class Counter; it must be a gymnax environment"),
        (list(range(100)), "env is a list [0, 1, 2"),
    ):
        with pytest.raises(InvalidEnvironment) as error:
            environments.check_is_environment(wrong)
        assert message in str(error.value)
        assert len(str(error.value)) < 350


def test_tasks_hold_numbers_of_the_right_kind():
    """A goal of 3.5 equals no cell, so every return would be the return of an agent that never finds it."""
    family = make("gridnavi")
    drawn = jax.vmap(family.train)(jax.random.split(jax.random.key(0), 2))
    floats = jax.tree.map(lambda x: x + 0.5, drawn)
    with pytest.raises(ValueError, match="tasks.goal holds float32; in a task of GridNavi it is"):
        environments.num_tasks("tasks", floats, family.env)
    unsigned = jax.tree.map(lambda x: x.astype(jnp.uint8), drawn)
    assert environments.num_tasks("tasks", unsigned, family.env) == 2
