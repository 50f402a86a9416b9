"""Steps on kept trials, by hand with one number as the parameters; `test_varibad` takes them beside PPO."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta.learners import trial_replay
from jaxmeta.learners.auxiliary_steps import AuxiliarySteps
from jaxmeta.learners.buffers import item_buffer
from jaxmeta.learners.recurrent import Meta, TrialMemory
from jaxmeta.meta_updates import gradients
from jaxmeta.types import TimeStep, Trajectory

pytest.importorskip("flashbax")
UNIT, RATE, START = 2.0, 0.25, 0.5


def trials(reward):
    """Trials ``[B, 3]`` of these rewards ``[B, 3]``."""
    reward = jnp.asarray(reward, float)
    obs, zeros = reward[..., None], jnp.zeros_like(reward)
    timestep = TimeStep(obs, zeros, zeros, zeros.astype(bool))
    memory = TrialMemory((), jnp.zeros(len(reward), jnp.int32))
    return Trajectory(timestep, zeros, zeros, reward, zeros, zeros, obs + 1, memory)


def half_square(params, key, data, inputs, counted, hyper):
    """Half the mean squared difference of x and rewards in units. The network begins with a state of 7."""
    assert data.memory.state.shape == (2,)
    missing = jnp.where(counted, params["x"] - data.reward, 0.0)
    loss = 0.5 * jnp.sum(missing**2) / jnp.sum(counted)
    return loss, {"state": jnp.sum(data.memory.state), "seen": jnp.sum(inputs)}


def steps_on(capacity, num_sampled):
    item = trial_replay.kept(trials(np.zeros((1, 3))), jnp.ones((1, 3), bool), successors=True)
    item = jax.tree.map(lambda x: x[0], item)
    steps = AuxiliarySteps(
        half_square, item_buffer(item, capacity, num_sampled), lambda rate: optax.sgd(rate), 2
    )
    meta = Meta({"x": jnp.asarray(START)}, jnp.zeros(2), jnp.asarray(UNIT), jnp.asarray(RATE))
    state = steps.begin(gradients.State(meta, "policy's", jnp.zeros((), jnp.int32)))
    return steps, state._replace(optimizer=())


def follow(steps, state, reward, counted):
    parts = SimpleNamespace(inputs=lambda meta, data: data.next_obs[:, 0])
    how = dict(parts=parts, initial=lambda: jnp.full(2, 7.0))
    return jax.jit(lambda state: steps.follow(
        jax.random.key(0), state, trials(reward), jnp.asarray(counted, bool), RATE, **how
    ))(state)  # fmt: skip


def test_two_steps_on_the_last_trial_by_hand(x64):
    """A buffer of one trial: each meta-update learns from its own, in units, and from the steps that count."""
    steps, state = steps_on(1, 1)
    x = START
    for reward, counted, mean in (
        ([1.0, 3.0, 99.0], [1, 1, 0], 2.0),
        ([-4.0, -4.0, -4.0], [1, 1, 1], -4.0),
    ):
        state, report = follow(steps, state, [reward], [counted])
        for _ in range(2):
            x -= RATE * (x - mean / UNIT)
        np.testing.assert_allclose(state.meta.params["x"], x, rtol=1e-12)
        seen = sum(np.asarray(reward) + 1, 0.0) if all(counted) else 2.0 + 4.0 + 0.0
        assert report["seen"] == seen
        assert report["state"] == 14.0
        assert report["replay_trials"] == 1


def test_the_buffer_holds_the_last_trials_and_none_that_does_not_count(x64):
    steps, state = steps_on(4, 2)
    for first, counted in ((1.0, [1, 1]), (3.0, [1, 0]), (5.0, [1, 1])):
        reward = np.repeat([[first], [first + 1]], 3, axis=1)
        state, _ = follow(steps, state, reward, np.repeat(np.reshape(counted, (2, 1)), 3, axis=1))
    kept = np.asarray(state.replay.experience[0].reward).reshape(4, 3)
    assert sorted(kept[:, 0]) == [3.0, 3.0, 5.0, 6.0]  # a copy stands for the trial that broke


@pytest.mark.parametrize("kept", [0, 1])
def test_without_a_new_trial_nothing_is_learned(x64, kept):
    """Not from old trials either: a curriculum may say that a meta-update must not learn, and broken tasks teach nothing."""
    steps, state = steps_on(4, 2)
    for _ in range(kept):
        state, report = follow(steps, state, [[1.0, 2.0, 3.0]], [[1, 1, 1]])
        assert report["skipped_auxiliary_steps"] == 0
        assert state.meta.params["x"] != START
    after, report = follow(steps, state, [[np.nan] * 3], [[0, 0, 0]])
    assert after.meta.params["x"] == state.meta.params["x"]
    assert report["replay_trials"] == kept
    assert report["skipped_auxiliary_steps"] == 2
    assert np.isnan(report["state"])
