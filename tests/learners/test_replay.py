"""What an agent keeps, and what its meta-objective says of policy and values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import networks, rollouts, tasks
from jaxmeta.learners.gradient import Meta
from jaxmeta.learners.replay import Config, outer_loss, replay_learner
from jaxmeta.types import TimeStep, Trajectory


class Hyper(NamedTuple):
    step_size: float = 1.0


def learner_that_sums(num_batches, constant=0.0):
    """Its gradient is minus the mean reward, so a parameter says which batches it was made of; and minus a
    constant, which a batch of zeros has, too."""
    family = tasks.make("tabular", num_states=2, num_actions=2, horizon=4)
    config = Config(num_streams=3, num_batches=num_batches, num_steps=4)
    policy = networks.default_policy("softmax_linear", (2,), family.action_space, ())
    parts = replay_learner(
        family,
        config,
        policy,
        init=lambda key: {"w": jnp.zeros(())},
        policy_params=lambda meta, params: {"theta": jnp.zeros(6)},
        gradient=lambda meta, params, data, good: {"w": -constant - jnp.mean(data.reward)},
    )
    return family, parts


@pytest.mark.parametrize("num_batches", [1, 2, 3])
def test_an_update_looks_at_the_last_batches_and_at_nothing_else(num_batches):
    family, parts = learner_that_sums(num_batches)
    meta = Meta({"w": jnp.zeros(())}, Hyper())
    agent = parts.learner.init(jax.random.key(0), meta)
    assert agent.batches.reward.shape == (num_batches, 3, 4)
    task = family.train(jax.random.key(2))

    @jax.jit
    def collected():
        streams = rollouts.begin_streams(jax.random.key(1), meta, task, setup=parts.setup)
        return rollouts.collect(jax.random.key(3), meta, task, agent, streams, setup=parts.setup)

    _, seen = collected()
    before, rewards = 0.0, [1.0, 10.0, 100.0, 1000.0]
    update = jax.jit(parts.learner.update)
    for i in range(4):
        data = seen._replace(reward=jnp.full((3, 4), rewards[i]))
        agent = update(jax.random.key(4), meta, agent, data)
        wanted = np.mean(rewards[max(0, i + 1 - num_batches) : i + 1])
        np.testing.assert_allclose(agent.params["w"] - before, wanted, rtol=1e-6)
        before = agent.params["w"]
        assert agent.num_batches == min(i + 1, num_batches)
        assert jnp.all(agent.batches.reward[0] == rewards[i])


def test_the_policy_that_acts_is_the_one_that_is_recorded():
    family, parts = learner_that_sums(1)
    meta = Meta({"w": jnp.zeros(())}, Hyper())
    history = jax.jit(parts.live)(jax.random.key(0), meta, family.train(jax.random.key(1)))
    np.testing.assert_allclose(history.trajectories.log_prob, jnp.log(0.5), rtol=1e-6)
    assert history.trajectories.reward.shape == (4, 3, 4)
    assert parts.env_steps == 3 * 4 * 4


def test_the_outer_loss_is_return_and_prediction_error_each_for_itself(x64):
    """The derivative in log-probabilities is minus the advantage, with its factor γ^t; in values minus the
    error; neither reaches the other."""
    keys = jax.random.split(jax.random.key(0), 3)
    reward, v = jax.random.normal(keys[0], (2, 5)), jax.random.normal(keys[1], (2, 5))
    last = jnp.zeros((2, 5), bool).at[:, 2].set(True).at[:, 4].set(True)
    first = jnp.roll(last, 1, axis=1)
    v_next = jnp.where(last, 7.0, jnp.roll(v, -1, axis=1))
    data = Trajectory(
        timestep=TimeStep(None, None, None, first),
        action=None,
        log_prob=jnp.zeros((2, 5)),
        reward=reward,
        discount=1.0 - last,
        last=last,
        next_obs=None,
        memory=(),
    )

    class Values:
        discount, trace_lambda, value_cost = 0.9, 0.8, 0.3

    def loss(log_prob, v, v_next):
        return outer_loss(log_prob, data, jnp.ones(2, bool), v, v_next, Values)[0]

    by_policy, by_value, by_next = jax.grad(loss, argnums=(0, 1, 2))(data.log_prob, v, v_next)
    advantage = np.zeros((2, 5))
    for t in (2, 1, 0):  # the first episode counts; it terminates at 2
        goes_on = t < 2
        delta = reward[:, t] + goes_on * 0.9 * v_next[:, t] - v[:, t]
        advantage[:, t] = delta + (goes_on * 0.9 * 0.8 * advantage[:, t + 1] if goes_on else 0)
    g = np.array([1.0, 0.9, 0.81, 0.0, 0.0])
    np.testing.assert_allclose(by_policy, -advantage * g / 10, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(by_value, -0.3 * advantage / 10, rtol=1e-10, atol=1e-14)
    assert not jnp.any(by_next)


def test_what_was_never_filled_counts_for_nothing():
    _, parts = learner_that_sums(3, constant=1.0)
    meta = Meta({"w": jnp.zeros(())}, Hyper())
    agent = parts.learner.init(jax.random.key(0), meta)
    data = jax.tree.map(lambda x: x[0], agent.batches)
    for i in range(1, 5):
        agent = parts.learner.update(jax.random.key(1), meta, agent, data)
        assert agent.params["w"] == i


def test_batches_of_another_size_are_refused():
    _, parts = learner_that_sums(2)
    meta = Meta({"w": jnp.zeros(())}, Hyper())
    agent = parts.learner.init(jax.random.key(0), meta)
    data = jax.tree.map(lambda x: x[0, :2], agent.batches)
    with pytest.raises(ValueError, match=r"shape \(2, 4\) must be .* = \(3, 4\)"):
        parts.learner.update(jax.random.key(1), meta, agent, data)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_batches=0 must be at least 1"):
        Config(num_batches=0)
