import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import spaces
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta.rollouts.rollout import begin_stream, rollout
from jaxmeta.tasks import keys
from tests.probes import Counter, CounterParams, constant_learner

DRAWS = {
    "uniform": lambda key: jax.random.uniform(key, (5, 3)),
    "scalar": jax.random.uniform,
    "normal": lambda key: jax.random.normal(key, (4,)),
    "categorical": lambda key: jax.random.categorical(key, jnp.zeros((3, 7))),
    "randint": lambda key: jax.random.randint(key, (4,), 0, 9),
    "permutation": lambda key: jax.random.permutation(key, 6),
    "bits of 8": lambda key: jax.random.bits(key, (5,), "uint8"),
    "bits of 16": lambda key: jax.random.bits(key, (5,), "uint16"),
    "split": lambda key: jax.random.key_data(jax.random.split(key, (2, 3))),
    "fold_in": lambda key: jax.random.key_data(jax.random.fold_in(key, 7)),
    "draws of split": lambda key: jax.vmap(jax.random.normal)(jax.random.split(key, 4)),
    "none": lambda key: jax.random.uniform(key, (0, 2)),
}


@pytest.mark.parametrize("draw", DRAWS)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_quick_key_draws_the_same_numbers(draw, seed):
    key = jax.random.key(seed)
    np.testing.assert_array_equal(DRAWS[draw](keys.quick(key)), DRAWS[draw](key))


def test_so_it_does_in_double_precision():
    with jax.enable_x64():
        key = jax.random.key(2**63 - 25)
        for draw in (jax.random.normal, lambda key: jax.random.bits(key, (3,), "uint64")):
            drawn = draw(keys.quick(key))
            assert drawn.dtype.itemsize == 8
            np.testing.assert_array_equal(drawn, draw(key))


def test_only_the_generator_that_it_writes_out_becomes_quick():
    other = jax.random.key(0, impl="rbg")
    assert keys.quick(other) is other
    key = jax.random.key(0)
    assert (keys.quick(key).dtype != key.dtype) == (jax.default_backend() == "cpu")
    assert keys.quick(keys.quick(key)).dtype == keys.quick(key).dtype
    with jax.threefry_partitionable(False):  # which draws other numbers
        assert keys.quick(key) is key


def test_as_many_at_once_as_one_word_counts():
    draw = jax.jit(lambda key: jax.random.bits(key, (2**16, 2**16 + 1)))
    with pytest.raises(ValueError, match=r"shape=\(65536, 65537\) must have at most 2\*\*32"):
        draw.lower(keys.quick(jax.random.key(0)))


def test_keys_of_steps_differ_from_each_other_and_draw_alike():
    key = jax.random.key(0)
    mine = [keys.at_step(keys.quick(key), jnp.asarray(t)) for t in range(100)]
    plain = [keys.at_step(key, jnp.asarray(t)) for t in range(100)]
    draws = np.array([jax.random.uniform(k) for k in mine])
    np.testing.assert_array_equal(draws, [jax.random.uniform(k) for k in plain])
    assert len(np.unique(draws)) == 100


@struct.dataclass
class KeyedState:
    count: jax.Array
    key: jax.Array


class Keyed(Counter):
    """A counter whose state holds a key, from which its observation is drawn, and which every reset makes anew."""

    def reset_env(self, key, params):
        count = jnp.zeros((), jnp.int32)
        return jnp.zeros(1), KeyedState(count, key)

    def step_env(self, key, state, action, params):
        key, draw = jax.random.split(state.key)
        state = KeyedState(state.count + 1, key)
        return jax.random.uniform(draw, (1,)), state, jnp.ones(()), state.count >= 4, {}

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)

    def observation_space(self, params):
        return spaces.Box(0.0, 1.0, (1,))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_an_environment_may_hold_keys(impl):
    key, learner, task = jax.random.key(1, impl=impl), constant_learner(), CounterParams()
    env = Keyed()
    stream = begin_stream(jax.random.key(0, impl=impl), None, task, learner=learner, env=env)
    after, data = jax.jit(
        lambda key, stream: rollout(
            key, None, task, (), stream, learner=learner, env=env, num_steps=7
        )
    )(key, stream)
    assert after.env_state.key.dtype == key.dtype  # as it came, for who holds on to the stream

    reset_key = jax.random.split(key, 3)[2]
    held = [stream.env_state.key, keys.at_step(reset_key, jnp.asarray(3))]
    seen = []
    for t in range(7):  # the first episode ends after four steps
        held[t // 4], draw = jax.random.split(held[t // 4])
        seen.append(jax.random.uniform(draw, (1,)))
    np.testing.assert_array_equal(data.next_obs, seen)
    np.testing.assert_array_equal(
        jax.random.key_data(after.env_state.key), jax.random.key_data(held[1])
    )


class OwnKey(Keyed):
    """One that begins every episode with the same key, whatever kind it is handed."""

    def reset_env(self, key, params):
        obs, state = super().reset_env(key, params)
        return obs, state.replace(key=jax.random.key(7))


def test_an_environment_may_make_its_own_keys():
    env, learner, task = OwnKey(), constant_learner(), CounterParams()
    stream = begin_stream(jax.random.key(0), None, task, learner=learner, env=env)
    _, data = rollout(
        jax.random.key(1), None, task, (), stream, learner=learner, env=env, num_steps=8
    )
    assert data.last.tolist() == [0, 0, 0, 1] * 2
    np.testing.assert_array_equal(data.next_obs[:4], data.next_obs[4:])  # drawn from the same key
    assert len(np.unique(data.next_obs[:4])) == 4


def test_keys_are_told_from_numbers():
    key = jax.random.key(3)
    for found in (key, keys.quick(key), jax.eval_shape(lambda: key)):
        assert keys.is_key(found)
    for number in (jax.random.key_data(key), np.zeros(2), 1.0, True):
        assert not keys.is_key(number)
        assert keys.words(number) is number
    np.testing.assert_array_equal(keys.words(key), jax.random.key_data(key))
