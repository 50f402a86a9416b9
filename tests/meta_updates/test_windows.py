from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta.meta_updates import evolution
from jaxmeta.meta_updates.windows import (
    Objective,
    Window,
    centred_ranks,
    clipped,
    evolution_strategy,
    persistent_evolution_strategy,
    policy_gradient,
)
from jaxmeta.networks.values import value_mlp
from jaxmeta.rollouts import Setup
from jaxmeta.types import Learner
from tests.probes import Counter, CounterParams


class Values(NamedTuple):
    noise_std: float = 0.3
    discount: float = 0.9
    gae_lambda: float = 0.8
    critic_step_size: float = 0.1
    max_grad_norm: float = 1e6


class Meta(NamedTuple):
    params: Any
    hyper: Values


class Line(Counter):
    """Actions are numbers."""

    def action_space(self, params=None):
        return spaces.Box(-jnp.inf, jnp.inf, ())


def climber():
    """An agent is a number x, 0 at birth, that an update adds θ to; each step earns -(x - 1)² + 1."""
    return Learner(
        init=lambda key, meta: jnp.zeros(()),
        memory=lambda meta: (),
        act=lambda key, meta, agent, memory, timestep: (
            1.0 - (agent - 1.0) ** 2,
            jnp.zeros(()),
            memory,
        ),
        update=lambda key, meta, agent, data: agent + meta.params["theta"],
    )


UNCHARGED = Objective(
    log_prob=lambda agent, data: agent * jnp.ones_like(data.reward),
    charge=lambda meta, agent, data, good: 0.0 * agent,
    critic=value_mlp((2,), ()),
)


@pytest.mark.parametrize(("persistent", "expected"), [(False, 0.2), (True, -0.3)])
def test_persistent_evolution_is_unbiased_where_truncation_is_not(x64, persistent, expected):
    """Two windows of two updates: x is 0, θ, 2θ, 3θ. What the windows earn has the derivatives 1 - θ and
    2 (1 - 2θ) + 3 (1 - 3θ), at θ = 0.45 with the sum -0.3; what a window's own updates do to it is 1 - θ
    and 1 - 3θ, with the sum 0.2. The signs differ, as in the toy problem of Vicol et al. 2021."""
    window = Window(Setup(climber(), Line(), 1, 1), lifespan=4, num_updates=2)
    strategy = persistent_evolution_strategy if persistent else evolution_strategy
    estimator = strategy(window, UNCHARGED)
    meta = Meta({"theta": jnp.array(0.45)}, Values())
    task = CounterParams(number=0.0, terminate_at=1000)

    def estimate(key):
        birth_key, *keys = jax.random.split(key, 3)
        member, total = estimator.birth(birth_key, meta, task), 0.0
        for key in keys:
            gradient, _, member = estimator.estimate(key, meta, member, task)
            total = total - gradient["theta"]
        return total

    estimates = np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 20_000)))
    error = estimates.std() / np.sqrt(len(estimates))
    assert error < 0.04
    assert abs(estimates.mean() - expected) < 4 * error


@pytest.mark.parametrize("persistent", [False, True])
def test_ranked_pairs_count_alike_whatever_rewards_are_measured_in(x64, persistent):
    """The better of a pair is half a point ahead of none: ``ε / (2 σ²)`` towards it, with rewards in units of 1 and of 1 000."""
    strategy = persistent_evolution_strategy if persistent else evolution_strategy
    task, meta = CounterParams(0.0, terminate_at=1000), Meta({"theta": jnp.array(0.45)}, Values())

    def estimate(unit, ranked):
        act = climber().act
        learner = climber()._replace(
            act=lambda *at: (unit * act(*at)[0], *act(*at)[1:]),
        )
        window = Window(Setup(learner, Line(), 1, 1), lifespan=2, num_updates=2)
        estimator = strategy(window, UNCHARGED, ranked=ranked)
        member = estimator.birth(jax.random.key(0), meta, task)
        call = jax.jit(lambda key: estimator.estimate(key, meta, member, task)[0]["theta"])
        noise_key = jax.random.split(jax.random.key(1), 4)[1]
        epsilon = evolution.perturbation(noise_key, meta.params, 0.3)["theta"]
        return float(call(jax.random.key(1))), float(epsilon)

    found, epsilon = zip(*(estimate(unit, True) for unit in (1.0, 1000.0)), strict=True)
    assert found[0] == found[1]
    # At θ = 0.45 more practice earns more.
    np.testing.assert_allclose(found[0], -abs(epsilon[0]) / (2 * 0.3**2), rtol=1e-9)
    small, large = (estimate(unit, False)[0] for unit in (1.0, 1000.0))
    np.testing.assert_allclose(large, 1000 * small, rtol=1e-9)


def test_ranks_of_a_pair():
    for fitness, ranks in (
        ([1.0, 3.0], [-0.5, 0.5]),
        ([2.0, -1.0], [0.5, -0.5]),
        ([1.0, 1.0], [0, 0]),
    ):
        assert centred_ranks(jnp.array(fitness)).tolist() == ranks


@pytest.mark.parametrize("persistent", [False, True])
def test_who_lives_by_perturbed_parameters(x64, persistent):
    """A pair only, which lives apart or is forgotten; the agent itself adds θ to x twice, and earns what that
    earns."""
    window = Window(Setup(climber(), Line(), 1, 1), lifespan=4, num_updates=2)
    strategy = persistent_evolution_strategy if persistent else evolution_strategy
    estimator = strategy(window, UNCHARGED)
    theta, meta = 0.45, Meta({"theta": jnp.array(0.45)}, Values())
    task = CounterParams(number=0.0, terminate_at=1000)
    member = estimator.birth(jax.random.key(0), meta, task)
    _, report, member = jax.jit(estimator.estimate)(jax.random.key(1), meta, member, task)
    if persistent:
        high, low = np.asarray(member.life.agent) - 2 * theta
        np.testing.assert_allclose(high, -low, rtol=1e-12)
        np.testing.assert_allclose(high, 2 * member.perturbation["theta"], rtol=1e-12)
        assert abs(high) > 1e-3
        return
    np.testing.assert_allclose(member.life.agent, 2 * theta, rtol=1e-12)
    earned = [1.0 - (x - 1.0) ** 2 for x in (0.0, theta)]
    np.testing.assert_allclose(report["reward/step"], np.mean(earned), rtol=1e-12)


def test_an_agent_s_gradient_is_clipped_and_kept_in_its_direction(x64):
    window = Window(Setup(climber(), Line(), 2, 3), lifespan=4, num_updates=1)
    estimator, task = policy_gradient(window, UNCHARGED), CounterParams(1.0, terminate_at=1000)

    @jax.jit
    def gradient(limit):
        meta = Meta({"theta": jnp.array(0.45)}, Values(max_grad_norm=limit))
        member = estimator.birth(jax.random.key(0), meta, task)
        return estimator.estimate(jax.random.key(1), meta, member, task)[0]["theta"]

    whole, cut = gradient(1e6), gradient(0.01)
    assert abs(whole) > 0.01
    np.testing.assert_allclose(cut, 0.01 * np.sign(whole), rtol=1e-6)
    short = np.array([0.3, -0.4])
    np.testing.assert_allclose(clipped({"x": short}, 1.0)["x"], short, rtol=1e-9)
    unknown = clipped({"x": np.array([1.0, np.inf])}, 1.0)["x"]
    assert np.all(np.isnan(unknown))
    np.testing.assert_array_equal(clipped({"x": np.zeros(2)}, 1.0)["x"], 0.0)


def test_a_newborn_has_a_new_critic(x64):
    """Adam's first step has the length of the step size in every entry: it begins at what the key draws, whatever
    critic the agent before it had. That of an agent that lives on goes on from where it is."""
    window = Window(Setup(climber(), Line(), 2, 3), lifespan=4, num_updates=1)
    value = UNCHARGED.critic
    estimator = policy_gradient(window, UNCHARGED)
    meta = Meta({"theta": jnp.array(0.45)}, Values())
    task = CounterParams(number=1.0, terminate_at=1000)
    key = jax.random.key(1)
    member = estimator.birth(jax.random.key(0), meta, task)
    old = jax.tree.map(lambda x: x + 5.0, member.critic.params)
    fitted = member.critic.optimizer[0]._replace(count=jnp.asarray(7, jnp.int32))
    optimizer = (fitted, *member.critic.optimizer[1:])
    critic = member.critic._replace(params=old, optimizer=optimizer)

    def after(age):
        life = member.life._replace(age=jnp.asarray(age, jnp.int32))
        given = member._replace(life=life, critic=critic)
        return jax.jit(estimator.estimate)(key, meta, given, task)[2].critic

    for age, start, count in ((4, value.init(jax.random.split(key, 4)[1]), 1), (2, old, 8)):
        found = after(age)
        assert found.optimizer[0].count == count
        for x, y in zip(jax.tree.leaves(found.params), jax.tree.leaves(start), strict=True):
            moved = np.abs(x - y)
            assert np.all(moved > 0)
            if count == 1:
                np.testing.assert_allclose(moved, 0.1, rtol=1e-5)
            else:
                assert np.all(moved < 1.0)
