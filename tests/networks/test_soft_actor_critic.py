import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import tasks
from jaxmeta.networks import soft_actor_critic as module
from jaxmeta.networks.actor_critic import Inputs
from jaxmeta.networks.recurrent import feed_forward, gru


@pytest.fixture(scope="module")
def family():
    return tasks.make("half_circle", horizon=3)


def with_actions(family, space):
    class Other(type(family.env)):
        def action_space(self, params=None):
            return space

    return dataclasses.replace(family, env=Other(3))


def some_inputs(family, length):
    keys = jax.random.split(jax.random.key(5), 3)
    return Inputs(
        jax.random.normal(keys[0], (length, 2)),
        jax.random.normal(keys[1], (length, 3)),
        jax.random.normal(keys[2], (length, 2)),
        jnp.arange(length) == 0,
    )


def test_what_is_not_a_bounded_box_is_named(family):
    discrete = tasks.make("tabular")
    with pytest.raises(ValueError, match=r"sac needs a Box of floats: recurrent_q takes a Disc"):
        module.check_bounded("sac", discrete)
    with pytest.raises(ValueError, match="recurrent_soft_actor_critic needs a Box of floats"):
        module.recurrent_soft_actor_critic(discrete, gru(4))
    whole = spaces.Box(jnp.array([0, 0]), jnp.array([3, 3]), (2,), jnp.int32)
    with pytest.raises(ValueError, match="needs a Box of floats: "):
        module.check_bounded("sac", with_actions(family, whole))
    half = spaces.Box(-1.0, jnp.inf, (2,), jnp.float32)
    with pytest.raises(ValueError, match="with bounds on both sides: rl2 takes any space"):
        module.check_bounded("sac", with_actions(family, half))
    network = module.recurrent_soft_actor_critic(family, gru(4))
    pendulum = tasks.make("pendulum")
    with pytest.raises(ValueError, match="network does not fit family 'pendulum'"):
        module.check_soft_network_fits(pendulum, network)
    module.check_soft_network_fits(family, network)


def test_half_widths_have_the_bounds_at_one(family):
    action = jnp.array([[0.1, -0.1], [0.0, 0.05]])
    np.testing.assert_allclose(
        module.in_half_widths(action, family), [[1, -1], [0, 0.5]], atol=1e-6
    )
    space = spaces.Box(jnp.array([0.0, -3.0]), jnp.array([4.0, 1.0]), (2,), jnp.float32)
    found = module.in_half_widths(jnp.array([4.0, -1.0]), with_actions(family, space))
    np.testing.assert_allclose(found, [1.0, 0.0])


def test_the_unit_policy_draws_the_same_actions_in_half_widths(family):
    """Densities differ by the widths: 0.1 for each of two entries."""
    head = module.squashed_head(family, 3, (4,))
    policy = head.apply(head.init(jax.random.key(0)), jnp.arange(3.0))
    unit = module.unit_policy(policy)
    (a, log_a), (b, log_b) = (x.sample_and_log_prob(jax.random.key(1)) for x in (policy, unit))
    np.testing.assert_allclose(module.in_half_widths(a, family), b, rtol=1e-5)
    np.testing.assert_allclose(log_a - log_b, -2 * np.log(0.1), rtol=1e-5)


def test_twin_values_are_two_networks(family):
    twins = module.twin_values(3, family.action_space, (4,))
    params = twins.init(jax.random.key(0))
    q = twins.apply(params, jnp.ones((5, 3)), jnp.zeros((5, 2)))
    assert q.shape == (2, 5)
    assert np.all(q[0] != q[1])
    other = twins.apply(params, jnp.ones((5, 3)), jnp.ones((5, 2)))
    assert np.all(q != other)


@pytest.mark.parametrize("sizes", [(), (3,)])
def test_a_step_is_the_unrolled_policy_and_nothing_is_shared(family, sizes):
    network = module.recurrent_soft_actor_critic(
        family, gru(4), encoder_sizes=sizes, hidden_sizes=(5,)
    )
    params = network.init(jax.random.key(0))
    inputs = some_inputs(family, 4)
    policies = network.policies(params["actor"], inputs)
    state = network.initial()
    for t in range(4):
        one, state = network.step(params, state, jax.tree.map(lambda x, t=t: x[t], inputs))
        np.testing.assert_allclose(one.mean, policies.mean[t], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.log_std, policies.log_std[t], rtol=1e-5, atol=1e-6)
    known = network.features(params["critic"], inputs)
    assert known.shape == (4, 4 + sum(sizes))
    assert network.values(params["critic"], known, jnp.zeros((4, 2))).shape == (2, 4)
    assert set(params) == {"actor", "critic"}
    memories = [jax.tree.leaves(params[x]["memory"]) for x in ("actor", "critic")]
    assert any(np.any(x != y) for x, y in zip(*memories, strict=True))


def test_values_know_the_past_through_their_own_memory(family):
    """A changed first input moves the features of the last step with a memory, and not without."""
    for memory, moved in ((gru(4), True), (feed_forward(4), False)):
        network = module.recurrent_soft_actor_critic(family, memory)
        params = network.init(jax.random.key(0))["critic"]
        inputs = some_inputs(family, 3)
        other = inputs._replace(obs=inputs.obs.at[0].add(1.0))
        ends = [network.features(params, x)[-1] for x in (inputs, other)]
        assert bool(jnp.any(ends[0] != ends[1])) == moved
