"""What agents do under rules whose parameters are set by hand, and what a learned rule cannot break."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta import rollouts, tasks
from jaxmeta.estimators.returns import discounted_returns
from jaxmeta.learners import update_rules
from jaxmeta.learners.update_rules import Meta, a2c, dpo, dpo_drift, drift, lpg, lpo, rule_learner

FAMILY = tasks.make("gridworld", size=3, horizon=4)


EVERY = jnp.ones(2, bool)


class Values(NamedTuple):
    """What rules read, undisturbed by what a learned one is charged for."""

    discount: float = 0.9
    gae_lambda: float = 0.8
    step_size: float = 0.5
    prediction_cost: float = 0.5
    entropy_cost: float = 0.0
    policy_entropy_bonus: float = 0.0
    prediction_entropy_bonus: float = 0.0
    policy_target_cost: float = 0.0
    prediction_target_cost: float = 0.0


def newborn(rule, values, family=FAMILY, params=None, **settings):
    """``(parts, meta, agent, data)``: an agent and what it saw in two streams of ten steps."""
    parts, born = birth(rule, family, **settings)
    params = first_params(rule) if params is None else params
    return parts, Meta(params, values), *born(Meta(params, values))


@functools.lru_cache
def birth(rule, family, **settings):
    """``(parts, compiled meta -> (agent, data))``."""
    parts = rule_learner(rule, family, **settings)
    setup = rollouts.Setup(parts.learner, family.env, num_streams=2, num_steps=10)

    def born(meta):
        task = family.train(jax.random.key(1))
        agent, streams = rollouts.begin(jax.random.key(2), meta, task, setup=setup)
        _, data = rollouts.collect(jax.random.key(3), meta, task, agent, streams, setup=setup)
        return agent, data

    return parts, jax.jit(born)


def first_params(rule):
    return jax.jit(rule.init)(jax.random.key(0))


@functools.lru_cache
def small_lpg():
    """One for all tests of it, which are in float64."""
    return lpg(num_predictions=3, memory_size=2)


@functools.lru_cache
def updating(learner):
    """``(meta, agent, data, times) -> agent``, compiled once for all values."""

    def updated(meta, agent, data, times):
        def body(_, agent):
            return learner.update(jax.random.key(4), meta, agent, data)

        return jax.lax.fori_loop(0, times, body, agent)

    return jax.jit(updated)


def update(parts, meta, agent, data, times=1):
    return updating(parts.learner)(meta, agent, data, times)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    scale=st.sampled_from([0.0, 0.3, 1.0, 10.0, 100.0]),
    advantage=st.floats(-50, 50, width=32),
    log_ratio=st.floats(-5, 5, width=32),
)
def test_a_drift_is_one_whatever_its_parameters(seed, scale, advantage, log_ratio):
    """Mirror learning's conditions: f >= 0, and at ratio 1 neither a value nor a gradient."""
    away, beside, value, slope = drift_there_and_at_one(seed, scale, log_ratio, advantage)
    assert away >= 0
    assert jnp.all(beside == 0)  # a slope of 0 at a kink would be JAX's convention, not the drift's
    assert value == 0
    assert slope == 0


@jax.jit
def drift_there_and_at_one(seed, scale, log_ratio, advantage):
    params = jax.tree.map(lambda x: scale * x, lpo(hidden_size=8).init(jax.random.key(seed)))
    at_one = jax.value_and_grad(drift, 1)(params, jnp.zeros(()), advantage)
    beside = jax.vmap(drift, (None, 0, None))(params, jnp.array([-1e-15, 1e-15]), advantage)
    return drift(params, log_ratio, advantage), beside, *at_one


def test_a_drift_can_say_something():
    log_ratio, advantage = np.meshgrid(np.linspace(-1, 1, 9), np.array([-1.0, 1.0]))

    @jax.jit
    def drifts(log_ratio, advantage):
        return drift(lpo(hidden_size=8).init(jax.random.key(0)), log_ratio, advantage)

    value = np.asarray(drifts(log_ratio, advantage))
    assert value.shape == (2, 9)
    assert np.mean(value > 0.01) > 0.2
    assert np.max(np.abs(value[0] - value[1])) > 0.01


def adding_up(rule, epsilon):
    """LPG's parameters whose LSTM adds the rewards from a stream's end and whose π̂ is that sum: gates
    are open, rewards so small on their way in that every tanh is the identity, predictions uniform."""
    params = jax.tree.map(jnp.zeros_like, first_params(rule))
    size = params["memory"]["recurrent"].shape[0]
    kernel = params["memory"]["input"]["kernel"].at[0, 3 * size :].set(epsilon)
    bias = params["memory"]["input"]["bias"].at[: 3 * size].set(50.0)
    params["memory"]["input"] = {"kernel": kernel, "bias": bias}
    head = params["policy"]["head"]["params"]["kernel"]
    params["policy"]["head"]["params"]["kernel"] = jnp.full_like(head, 1 / (epsilon * size))
    return params


def test_lpg_that_says_the_return_is_reinforce(x64):
    """It reads the stream from its end and forgets where an episode ends, or the sums would be others."""
    rule = small_lpg()
    values = Values(prediction_cost=0.0, step_size=0.7)
    params = adding_up(rule, 1e-5)
    parts, meta, agent, data = newborn(rule, values, params=params)
    assert np.sum(data.last) >= 3
    zeros = jnp.zeros_like(data.reward)
    returns = jax.vmap(discounted_returns)(data.reward, zeros + 1.0, v_next=zeros, last=data.last)
    targets = rule.targets(params, parts.outputs(agent.params, data), data, EVERY, values)
    np.testing.assert_allclose(targets.policy, returns, rtol=1e-6, atol=1e-8)

    def score(params):
        return jnp.mean(parts.outputs(params, data).distribution.log_prob(data.action) * returns)

    moved = update(parts, meta, agent, data).params["policy"]
    expected = jax.tree.map(
        lambda p, g: p + 0.7 * g,
        agent.params["policy"],
        jax.jit(jax.grad(score))(agent.params)["policy"],
    )
    for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)


def test_lpg_moves_predictions_to_their_targets_and_is_a_step_of_the_policy_gradient(x64):
    """π̂ = c and uniform ŷ: ``Δθ = α c mean(1[a] - π) φᵀ`` and predictions become uniform."""
    rule = small_lpg()
    params = jax.tree.map(jnp.zeros_like, first_params(rule))
    params["policy"]["head"]["params"]["bias"] += 1.5
    parts, meta, agent, data = newborn(rule, Values(prediction_cost=2.0), params=params)
    outputs = parts.outputs(agent.params, data)
    error = jax.nn.one_hot(data.action, 5) - jax.nn.softmax(outputs.distribution.logits)
    step = 0.5 * 1.5 * jnp.einsum("nts,nta->sa", data.timestep.obs, error) / data.reward.size
    moved = update(parts, meta, agent, data)
    kernels = [x.params["policy"]["head"]["params"]["kernel"] for x in (agent, moved)]
    np.testing.assert_allclose(kernels[1] - kernels[0], step, rtol=1e-8, atol=1e-12)
    moved = update(parts, meta, agent, data, times=400)
    y = jax.nn.softmax(parts.outputs(moved.params, data).prediction)
    np.testing.assert_allclose(y, 1 / 3, atol=2e-2)


def test_every_input_of_lpg_counts(x64):
    rule = small_lpg()
    parts, meta, agent, data = newborn(rule, Values())
    outputs = parts.outputs(agent.params, data)

    @jax.jit
    def of_values(outputs, data, values):
        return rule.targets(meta.params, outputs, data, EVERY, values).policy

    def targets(outputs=outputs, data=data, **values):
        return np.asarray(of_values(outputs, data, Values(**values)))

    logits = outputs.distribution.logits
    flat = outputs.distribution._replace(logits=3.0 * logits)
    changes = [
        targets(data=data._replace(reward=data.reward + 1.0)),
        targets(data=data._replace(discount=0.0 * data.discount)),
        targets(data=data._replace(last=~data.last)),
        targets(discount=0.5),
        targets(outputs._replace(distribution=flat)),
        targets(outputs._replace(prediction=-outputs.prediction)),
        targets(outputs._replace(next_prediction=-outputs.next_prediction)),
    ]
    for changed in changes:
        assert np.max(np.abs(changed - targets())) > 1e-6


def test_lpg_is_charged_for_its_targets_and_rewarded_for_entropy(x64):
    rule = small_lpg()
    params = jax.tree.map(jnp.zeros_like, first_params(rule))
    params["policy"]["head"]["params"]["bias"] += 3.0
    parts, _, agent, data = newborn(rule, Values(), params=params)
    outputs = parts.outputs(agent.params, data)
    uniform = outputs._replace(
        prediction=0.0 * outputs.prediction,
        distribution=outputs.distribution._replace(logits=0.0 * outputs.distribution.logits),
    )
    regularizer = jax.jit(rule.regularizer)
    expected = {
        "policy_target_cost": 9.0,
        "prediction_target_cost": 1 / 3,
        "policy_entropy_bonus": -np.log(5),
        "prediction_entropy_bonus": -np.log(3),
    }
    for name, value in expected.items():
        charged = regularizer(params, uniform, data, Values(**{name: 2.0}))
        np.testing.assert_allclose(charged.mean(), 2.0 * value, rtol=1e-5)


def test_lpo_s_first_step_knows_no_drift_and_its_second_does():
    rule = lpo(hidden_size=8)
    values = Values(step_size=5.0)
    _, (params, _), agent, data = newborn(rule, values)
    silent = jax.tree.map(jnp.zeros_like, params)

    def policies(num_epochs):
        parts = rule_learner(rule, FAMILY, num_epochs=num_epochs)
        return [update(parts, Meta(p, values), agent, data) for p in (params, silent)]

    def distance(pair):
        x, y = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(agent.params["policy"])])
            for agent in pair
        )
        return np.max(np.abs(x - y))

    assert distance(policies(1)) == 0
    assert distance(policies(4)) > 1e-4


def test_a_drift_is_a_cost(x64):
    """Of each step, beside the same loss without it, where the policy is another than the one that acted."""
    rule = lpo(hidden_size=8)
    parts, (params, _), agent, data = newborn(rule, Values())
    data = data._replace(log_prob=data.log_prob - 0.5)
    silent = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def charged():
        outputs = parts.outputs(agent.params, data)
        targets = rule.targets(params, outputs, data, EVERY, Values())
        log_ratio = outputs.distribution.log_prob(data.action) - data.log_prob
        losses = [rule.loss(p, outputs, data, targets, Values()) for p in (params, silent)]
        return losses[0] - losses[1], drift(params, log_ratio, targets.advantage)

    found, expected = charged()
    assert jnp.max(expected) > 1e-2
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_drift_of_dpo_by_hand(x64):
    """Free of charge towards r = 1, and near it; elsewhere what tanh has cut off."""
    ratio = np.array([0.25, 0.9, 1.0, 1.1, 3.0, 8.0])
    found = {a: np.asarray(dpo_drift(jnp.log(ratio), jnp.full(6, a))) for a in (2.0, 0.0, -1.5)}
    x = (ratio - 1.0) * 2.0
    y = -1.5 * np.log(ratio)
    beyond = {2.0: x - 2.0 * np.tanh(x / 2.0), -1.5: y - 0.6 * np.tanh(y / 0.6)}
    for advantage, expected in beyond.items():
        np.testing.assert_allclose(found[advantage], np.maximum(expected, 0.0), atol=1e-12)
    assert np.all(found[0.0] == 0.0)
    assert np.all(found[2.0][:3] == 0.0)
    assert np.all(found[2.0][4:] > 0.5)
    assert np.all(found[-1.5][2:] == 0.0)
    assert found[-1.5][0] > 0.5
    wide = dpo_drift(jnp.log(ratio), jnp.full(6, 2.0), positive_width=100.0)
    assert np.max(wide) < 0.2
    with pytest.raises(ValueError, match="negative_width=0 must lie between"):
        dpo(negative_width=0)


def test_the_slope_of_dpo_s_gain_is_tanh_squared(x64):
    """``d/dr (r A - f) = A (1 - tanh²(x / 2))`` for A > 0: less and less beyond the old policy, and never below 0."""
    advantage, ratio = 1.5, jnp.array([1.0, 1.5, 3.0, 10.0])

    def gain(r):
        return r * advantage - dpo_drift(jnp.log(r), jnp.asarray(advantage))

    slopes = jax.vmap(jax.grad(gain))(ratio)
    x = (ratio - 1.0) * advantage
    np.testing.assert_allclose(slopes, advantage * (1.0 - jnp.tanh(x / 2.0) ** 2), atol=1e-9)


def test_dpo_is_lpo_with_its_own_drift(x64):
    """The same loss but for the drift, of an agent that is another than the one that acted."""
    rule = dpo()
    parts, (params, _), agent, data = newborn(rule, Values(entropy_cost=0.1))
    assert params == {}
    data = data._replace(log_prob=data.log_prob - 2.0)

    @jax.jit
    def losses():
        outputs = parts.outputs(agent.params, data)
        values = Values(entropy_cost=0.1)
        targets = rule.targets(params, outputs, data, EVERY, values)
        silent = lpo(hidden_size=8)
        zeros = jax.tree.map(jnp.zeros_like, silent.init(jax.random.key(0)))
        log_ratio = outputs.distribution.log_prob(data.action) - data.log_prob
        return (
            rule.loss(params, outputs, data, targets, values),
            silent.loss(zeros, outputs, data, targets, values),
            dpo_drift(log_ratio, targets.advantage),
        )

    found, without, drifts = losses()
    assert jnp.max(drifts) > 1e-2
    np.testing.assert_allclose(found - without, drifts, atol=1e-12)


def test_a_rule_that_reads_the_time_is_told_age_and_lifespan(x64):
    """π̂ is a linear function of an open LSTM's one input: the age's share, or the logarithm of the lifespan."""
    rule = lpg(num_predictions=3, memory_size=2, time_aware=True)
    parts, meta, agent, data = newborn(rule, Values(), lifespan=20)
    assert first_params(rule)["memory"]["input"]["kernel"].shape[0] == 8
    assert agent.age == 0
    older = update(parts, meta, agent, data, times=5)
    assert older.age == 5
    time = parts.outputs(older.params, data, older.age).time
    np.testing.assert_allclose(time, [0.25, np.log(20.0)], rtol=1e-12)
    for place, value in ((6, 0.25), (7, np.log(20.0))):
        params = jax.tree.map(jnp.zeros_like, meta.params)
        kernel = params["memory"]["input"]["kernel"].at[place, 6:].set(1e-5)
        # The gates are open, but nothing is kept.
        bias = (
            params["memory"]["input"]["bias"]
            .at[:6]
            .set(jnp.repeat(jnp.array([50.0, -50.0, 50.0]), 2))
        )
        params["memory"]["input"] = {"kernel": kernel, "bias": bias}
        head = params["policy"]["head"]["params"]["kernel"]
        params["policy"]["head"]["params"]["kernel"] = jnp.full_like(head, 0.5e5)
        outputs = parts.outputs(older.params, data, older.age)
        targets = rule.targets(params, outputs, data, EVERY, Values())
        np.testing.assert_allclose(targets.policy, value, rtol=1e-6)


def test_a_lifespan_is_for_rules_that_read_it():
    with pytest.raises(ValueError, match="lifespan=None must be the updates of a life"):
        rule_learner(lpg(time_aware=True), FAMILY)
    with pytest.raises(ValueError, match="lifespan=0 must be at least 1"):
        rule_learner(lpg(time_aware=True), FAMILY, lifespan=0)
    with pytest.raises(ValueError, match="lifespan=20 has no effect"):
        rule_learner(a2c(), FAMILY, lifespan=20)
    _, _, agent, _ = newborn(a2c(), Values())
    assert agent.age == ()


def test_a2c_is_the_policy_gradient_with_generalised_advantages(x64):
    rule, values = a2c(), Values(prediction_cost=0.3, entropy_cost=0.1)
    parts, meta, agent, data = newborn(rule, values)
    v, v_next = (np.asarray(x) for x in parts.outputs(agent.params, data)[1:3])
    reward, discount, last = (np.asarray(x) for x in (data.reward, data.discount, data.last))
    advantage, carried = np.zeros_like(reward), np.zeros(2)
    for t in reversed(range(10)):
        delta = reward[:, t] + 0.9 * discount[:, t] * v_next[:, t] - v[:, t]
        carried = delta + 0.9 * 0.8 * discount[:, t] * (1 - last[:, t]) * carried
        advantage[:, t] = carried

    def loss(params):
        distribution, value, *_ = parts.outputs(params, data)
        gain = distribution.log_prob(data.action) * advantage + 0.1 * distribution.entropy()
        return jnp.mean(0.15 * (value - v - advantage) ** 2 - gain)

    moved = update(parts, meta, agent, data).params
    expected = jax.tree.map(
        lambda p, g: p - 0.5 * g, agent.params, jax.jit(jax.grad(loss))(agent.params)
    )
    for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (lpg(num_predictions=3, memory_size=4), "catch"),
        (lpg(num_predictions=3, memory_size=4), "pendulum"),
        (lpo(hidden_size=4), "cartpole"),
    ],
)
def test_one_rule_teaches_agents_of_any_family(rule, name):
    parts, meta, agent, data = newborn(
        rule, Values(), tasks.make(name), hidden_sizes=(8,), optimizer=optax.adam, num_epochs=2
    )
    moved = update(parts, meta, agent, data)
    assert jax.tree.structure(moved) == jax.tree.structure(agent)
    for x, y in zip(jax.tree.leaves(moved.params), jax.tree.leaves(agent.params), strict=True):
        assert np.all(np.isfinite(x))
        assert np.any(np.asarray(x) != np.asarray(y))


def test_an_update_without_a_step_is_refused():
    with pytest.raises(ValueError, match="num_epochs=0 must be at least 1"):
        rule_learner(update_rules.a2c(), FAMILY, num_epochs=0)


@pytest.mark.parametrize("rule", [a2c(), lpo(hidden_size=4)])
def test_agents_that_scale_rewards_learn_the_same_in_every_unit(x64, rule):
    """Two updates; without the option a unit of 1 000 is another task."""

    newborns = {
        scale: newborn(rule, Values(), num_epochs=2, scale_rewards=scale) for scale in (True, False)
    }

    def learned(unit, scale_rewards):
        parts, meta, agent, data = newborns[scale_rewards]
        data = data._replace(reward=unit * (np.asarray(data.reward) + 0.3))
        return jax.tree.map(np.asarray, update(parts, meta, agent, data, times=2))

    usual = learned(1.0, True)
    for unit, tolerance in ((1024.0, 0.0), (1e-3, 1e-9)):
        agent = learned(unit, True)
        np.testing.assert_allclose(agent.reward_scale, unit * usual.reward_scale, rtol=1e-9)
        for x, y in zip(*map(jax.tree.leaves, (agent.params, usual.params)), strict=True):
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-3 * tolerance)
    plain, other = learned(1.0, False), learned(1024.0, False)
    assert plain.reward_scale == ()
    squares = jax.tree.map(lambda x, y: np.sum((x - y) ** 2), plain.params, other.params)
    assert sum(jax.tree.leaves(squares)) > 0.1**2
