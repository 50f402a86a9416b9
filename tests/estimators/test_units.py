import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.estimators import units


def test_advantage_scale_is_the_root_mean_square():
    advantage = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(units.advantage_scale(advantage), 2.5, rtol=1e-6)
    assert units.advantage_scale(jnp.zeros((2, 2))) == 1
    np.testing.assert_allclose(units.advantage_scale(1e-12 * advantage), 2.5e-12, rtol=1e-6)
    counted = jnp.array([[True, False], [False, False]])
    np.testing.assert_allclose(units.advantage_scale(advantage, counted), 3.0, rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_the_scale_of_rewards_is_of_the_largest_that_counts(unit):
    move = units.running_reward_scale
    reward = jnp.array([[0.0, 3.0], [0.0, -4.0], [7.0, jnp.nan]]) * unit
    steps = jnp.array([[True, True], [True, True], [False, False]])
    born = jnp.zeros(())
    np.testing.assert_allclose(move(born, reward, steps), 4 * unit, rtol=1e-6)
    moved = move(jnp.asarray(unit), reward, steps)
    np.testing.assert_allclose(moved, (0.9 + 0.1 * 4) * unit, rtol=1e-6)
    assert move(born, 0.0 * reward, steps) == 0
    np.testing.assert_array_equal(
        move(jnp.asarray(unit), reward, ~steps & False), jnp.float32(unit)
    )


def test_nothing_is_in_units_of_a_scale_that_is_not_known():
    np.testing.assert_array_equal(
        units.in_units(jnp.array([3.0, -4.0]), jnp.asarray(2.0)), [1.5, -2]
    )
    assert not jnp.any(units.in_units(jnp.array([3.0, -4.0]), jnp.zeros(())))
    slope = jax.grad(lambda scale: units.in_units(jnp.asarray(3.0), scale))(0.0)
    assert slope == 0  # not the NaN of a division that was not used


def test_a_running_mean_is_the_first_batch_s_and_then_moves_by_a_tenth():
    batch, mean = jnp.array([1.0, 2.0]), jnp.array([11.0, -8.0])
    np.testing.assert_array_equal(units.running(mean, batch, jnp.asarray(False)), batch)
    np.testing.assert_allclose(units.running(mean, batch, jnp.asarray(True)), [10.0, -7.0])
