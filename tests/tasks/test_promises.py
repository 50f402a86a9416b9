"""What a family promises is tried without running it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxmeta import tasks
from jaxmeta.tasks import InvalidEnvironment
from tests.probes import Counter, CounterParams


@pytest.mark.parametrize("name", ["navigation", "gridnavi", "t_maze", "cartpole", "tabular"])
def test_families_of_this_library_keep_theirs(name):
    tasks.check_promises(tasks.make(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": lambda key: jnp.zeros(2)}, "a task of train has the structure"),
        (
            {"test": lambda key: CounterParams(number=jnp.zeros(2))},
            "a task of test.number has shape (2,); it must be like []",
        ),
        ({"optimal_action": lambda task, obs: jnp.zeros(())}, "optimal_action is float32"),
        ({"expert_action": lambda task, obs: obs}, "expert_action is float32 of shape (2,)"),
        ({"optimal_return": lambda task: jnp.zeros(3)}, "optimal_return is"),
        ({"action_features": lambda obs: obs}, "it must be features [A, F] of the A actions"),
        ({"mutate": lambda key, task: jnp.zeros(2)}, "mutate makes"),
        (
            {"mutate": lambda key, task: task.replace(number=jnp.zeros(2))},
            "it must make a task like those of train",
        ),
        (
            {"parameters": tasks.Parameters(2, lambda x: x)},
            "parameters makes ShapeDtypeStruct(shape=(2,), dtype=float32)",
        ),
        ({"train": lambda key: 1 / 0}, "train raised ZeroDivisionError: division by zero"),
        ({"expert_action": lambda task, obs: 1 / 0}, "expert_action raised ZeroDivisionError"),
    ],
)
def test_every_part_is_looked_at(change, message):
    one = lambda key: jax.tree.map(jnp.asarray, CounterParams())  # noqa: E731
    family = tasks.TaskFamily("own", Counter(), 3, one, one, one)
    tasks.check_promises(family)
    with pytest.raises(InvalidEnvironment) as error:
        tasks.check_promises(dataclasses.replace(family, **change))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "horizon=0 must be at least 1"),
        ({"horizon": 2.5}, "horizon=2.5 must be an integer"),
        ({"train": 3}, "train=3 must be a function"),
        ({"env": Counter}, "an object with default_params"),
        ({"env": None}, "an object with default_params"),
        ({"expert_action": 3}, "expert_action=3 must be a function, or None"),
        ({"name": 1}, "name=1 must be a string"),
    ],
)
def test_a_family_s_arguments(change, message):
    one = lambda key: CounterParams()  # noqa: E731
    with pytest.raises((TypeError, ValueError), match=message):
        tasks.TaskFamily(
            **(
                dict(
                    name="own",
                    env=Counter(),
                    horizon=3,
                    train=one,
                    test=one,
                    out_of_distribution=one,
                )
                | change
            )
        )


def test_a_name_is_no_family():
    with pytest.raises(TypeError, match="as tasks.make\\('navigation'\\) returns"):
        tasks.check_promises("navigation")
