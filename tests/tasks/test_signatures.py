"""A fault of an environment is an error that names the leaf, before anything compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import tasks
from jaxmeta.tasks import InvalidEnvironment
from tests.probes import CounterParams
from tests.tasks.acting import acted, counting


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"is_truncated": lambda self, state, params: False}
            | {"reset_env": lambda self, key, params: (jnp.zeros(2), {"x": 0, "y": jnp.zeros(2)})}
            | {
                "step_env": lambda self, key, s, a, p: (
                    jnp.zeros(2),
                    {"x": 0.5, "y": s["y"]},
                    0.0,
                    False,
                    {},
                )
            },
            "state['x'] of Changed is int32 after reset_env and float32 after step_env; it must be of one kind "
            "from the start: let reset_env write float32",
        ),
        (
            {"observation_space": lambda self, params: spaces.Box(0.0, 1.0, (5,))},
            "Changed.reset_env's observation has shape (2,); the observation space's is (5,)",
        ),
        (
            {"is_truncated": lambda self, state, params: jnp.zeros(2, bool)},
            "Changed.is_truncated is bool of shape (2,); it must be one boolean, of shape ()",
        ),
        (
            {"step_env": lambda self, key, state, action, params: 1 / 0},
            "Changed.step_env raised ZeroDivisionError: division by zero",
        ),
        (
            {"action_space": lambda self, params=None: spaces.Tuple((spaces.Discrete(2),))},
            "it must be one Discrete or one Box. Several choices at once are a tasks.MultiDiscrete",
        ),
        ({"reset_env": None}, "Changed has no method reset_env, as gymnax's environments have"),
    ],
)
def test_errors_name_the_leaf_and_what_would_be_right(changes, message):
    with pytest.raises(InvalidEnvironment) as error:
        tasks.check_promises(counting(**changes))
    assert message in str(error.value)


def test_states_have_the_wider_of_two_widths_from_the_start():
    def step_env(self, key, state, action, params):
        return jnp.zeros(2), {"x": jnp.float32(0.1) + state["x"]}, 0.0, False, {}

    family = counting(
        reset_env=lambda self, key, params: (jnp.zeros(2), {"x": jnp.zeros((), jnp.float16)}),
        step_env=step_env,
        is_truncated=lambda self, state, params: False,
    )
    _, (_, states) = acted(family, CounterParams(number=7.0), 2)
    np.testing.assert_array_equal(states.inner["x"], np.float32([0.1, 0.2]))


def test_a_key_of_its_own_may_take_the_place_of_the_one_it_is_handed():
    def step_env(self, key, state, action, params):
        key = jnp.where(state["t"] % 2 == 0, jax.random.key(5), key)
        return jnp.zeros(2), {"t": state["t"] + 1, "key": key}, jax.random.uniform(key), False, {}

    family = counting(
        reset_env=lambda self, key, params: (jnp.zeros(2), {"t": 0, "key": key}),
        step_env=step_env,
        is_truncated=lambda self, state, params: False,
    )
    _, (data, _) = acted(family, CounterParams(number=7.0), 6)
    own = jax.random.uniform(jax.random.key(5))
    assert (data.reward == own).tolist() == [True, False, True] * 2
