import builtins

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.learners import buffers
from jaxmeta.learners.buffers import item_buffer, predicted_bytes

pytest.importorskip("flashbax")
ITEM = {"x": jax.ShapeDtypeStruct((2,), jnp.float32), "n": jax.ShapeDtypeStruct((), jnp.int32)}


def items(*numbers):
    n = jnp.asarray(numbers, jnp.int32)
    return {"x": jnp.stack([n, -n], axis=1).astype(jnp.float32), "n": n}


def held(state):
    """The numbers of the items in the places of a buffer."""
    return np.asarray(state.experience["n"])[0].tolist()


def test_it_holds_the_last_items_and_draws_only_those():
    buffer = item_buffer(ITEM, 4, 3)
    state = buffer.init()
    assert buffer.size(state) == 0
    assert jnp.all(buffer.sample(jax.random.key(0), state)["x"] == 0)
    every = jnp.ones(3, bool)
    state = buffer.add(state, items(1, 2, 3), every)
    assert buffer.size(state) == 3
    keys = jax.random.split(jax.random.key(1), 50)
    drawn = jax.vmap(buffer.sample, (0, None))(keys, state)
    assert set(drawn["n"].reshape(-1).tolist()) == {1, 2, 3}  # not the empty place
    state = buffer.add(state, items(4, 5, 6), every)
    assert buffer.size(state) == 4
    drawn = jax.vmap(buffer.sample, (0, None))(keys, state)
    assert set(drawn["n"].reshape(-1).tolist()) == {3, 4, 5, 6}
    np.testing.assert_array_equal(drawn["x"][..., 0], drawn["n"])  # items stay whole
    np.testing.assert_array_equal(drawn["x"][..., 1], -np.asarray(drawn["n"]))
    assert drawn["n"].dtype == jnp.int32


def test_items_are_drawn_alike():
    """Uniformly and with replacement: counts of 2000 draws to five standard deviations."""
    buffer = item_buffer(ITEM, 2000, 2000)
    state = buffer.add(buffer.init(), items(0, 1, 2, 3), jnp.ones(4, bool))
    counts = np.bincount(buffer.sample(jax.random.key(0), state)["n"], minlength=4)
    assert np.max(np.abs(counts - 500)) < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_items_that_are_not_good_are_not_kept():
    buffer = item_buffer(ITEM, 4, 1)
    before = buffer.add(buffer.init(), items(1, 2), jnp.ones(2, bool))
    after = buffer.add(before, items(7, 8, 9), jnp.array([False, True, False]))
    assert held(after) == [8, 2, 8, 8]
    after = buffer.add(before, items(7, 8, 9), jnp.array([True, False, True]))
    assert held(after) == [7, 2, 7, 9]
    same = jax.jit(buffer.add)(before, items(7, 8, 9), jnp.zeros(3, bool))
    chex.assert_trees_all_equal(same, before)


def test_its_bytes_are_predicted(monkeypatch):
    buffer = item_buffer(ITEM, 100, 1)
    state = jax.eval_shape(buffer.init)
    taken = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.experience))
    assert predicted_bytes(ITEM, 100) == taken == 100 * (2 * 4 + 4)
    monkeypatch.setattr(buffers, "device_memory", lambda: 1200)
    item_buffer(ITEM, 100, 1)
    with pytest.raises(ValueError, match="kept=101 takes .* GB, .* set it to at most 100"):
        item_buffer(ITEM, 101, 1, name="kept")
    monkeypatch.setattr(buffers, "device_memory", lambda: None)  # where nobody knows
    item_buffer(ITEM, 101, 1)


def test_the_memory_of_this_machine_is_known():
    assert buffers.device_memory() > 2**28


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="kept=0 must be at least 1"):
        item_buffer(ITEM, 0, 1, name="kept")
    with pytest.raises(ValueError, match="num_sampled=5 must be at most 4"):
        item_buffer(ITEM, 4, 5)
    buffer = item_buffer(ITEM, 2, 1, name="kept")
    with pytest.raises(ValueError, match="kept=2 must be at least 3, the number of items"):
        jax.eval_shape(buffer.add, buffer.init(), items(1, 2, 3), jnp.ones(3, bool))


def test_where_flashbax_is_missing_the_error_says_how_to_install_it(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "flashbax":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "jaxmeta\[replay\]"'):
        item_buffer(ITEM, 2, 1)
