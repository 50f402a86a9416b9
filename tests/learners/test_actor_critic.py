"""One update of the actor-critic, in closed form, and the numbers that it depends on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import rollouts, tasks
from jaxmeta.learners.actor_critic import (
    LEARNABLE,
    ActorCriticLearner,
    Config,
    Hyper,
    actor_critic_learner,
    learned_hyper,
)
from jaxmeta.networks.values import value_mlp
from jaxmeta.types import TimeStep, Trajectory

FAMILY = tasks.make("tabular", num_states=3, num_actions=2, horizon=4)
SIZES = dict(policy="categorical", hidden_sizes=(), num_streams=1, num_steps=1)
HYPER = Hyper(
    discount=0.8,
    gae_lambda=0.3,
    policy_cost=0.7,
    value_cost=0.6,
    entropy_cost=0.2,
    step_size=0.1,
    outer_discount=0.9,
    outer_value_cost=0.5,
)


def one_step(reward=2.0, discount=1.0):
    """From state 0 by action 1 to state 2, ``[1, 1]``."""
    every = jnp.eye(3)
    return Trajectory(
        timestep=TimeStep(
            obs=every[None, None, 0],
            action=jnp.zeros((1, 1), jnp.int32),
            reward=jnp.zeros((1, 1)),
            first=jnp.ones((1, 1), bool),
        ),
        memory=(),
        action=jnp.ones((1, 1), jnp.int32),
        log_prob=jnp.zeros((1, 1)),
        reward=jnp.full((1, 1), reward),
        discount=jnp.full((1, 1), discount),
        next_obs=every[None, None, 2],
        last=jnp.zeros((1, 1), bool),
    )


class Compiled(ActorCriticLearner):
    """A learner whose functions are compiled whole. Outside of a program every operation is one of its own."""

    @functools.cached_property
    def learner(self):
        learner = super().learner
        return learner._replace(init=jax.jit(learner.init), update=jax.jit(learner.update))

    def init(self, key, hyper):
        return jax.jit(super().init)(key, hyper)

    def outer_loss(self, params, data, hyper):
        return jax.jit(super().outer_loss)(params, data, hyper)


def compiled_learner(*arguments):
    parts = actor_critic_learner(*arguments)
    return Compiled(parts.family, parts.config, parts.policy, parts.value)


def newborn(parts, meta, *, values=(0.5, -0.3, 1.5)):
    """An agent with a uniform policy and given values of the three states."""
    agent = parts.learner.init(jax.random.key(0), meta)
    params = jax.tree.map(jnp.zeros_like, agent.params)
    value = value_mlp((3,), ())
    for name in params:
        if "value" in name:
            leaves = {x.shape: x for x in jax.tree.leaves(params[name])}
            assert len(leaves) == 2  # weights and bias of a linear layer
            params[name] = jax.tree.map(
                lambda x: jnp.asarray(values).reshape(x.shape) if x.size == 3 else x, params[name]
            )
            np.testing.assert_allclose(value.apply(params[name], jnp.eye(3)), values)
    return agent._replace(params=params)


def logits(parts, params):
    """At state 0, ``[2]``, less their mean."""
    log_probs = parts.distribution(params, one_step()).log_probs()[0, 0]
    return np.asarray(log_probs - log_probs.mean())


@pytest.mark.parametrize("discount", [1.0, 0.0])
def test_one_update_in_closed_form(x64, discount):
    """δ = r + γ V(s') - V(s); a uniform policy has no gradient of its entropy."""
    parts = compiled_learner(FAMILY, Config(learns=(), **SIZES))
    meta = parts.init(jax.random.key(0), HYPER)
    agent = newborn(parts, meta)
    after = parts.learner.update(jax.random.key(1), meta, agent, one_step(discount=discount))
    delta = 2.0 + 0.8 * discount * 1.5 - 0.5
    score = np.array([-0.5, 0.5])
    # Weight and bias move alike, so a logit by twice the step, and so does the value.
    np.testing.assert_allclose(
        logits(parts, after.params["policy"]), 0.1 * 0.7 * delta * 2 * score, rtol=1e-9
    )
    v = value_mlp((3,), ()).apply(after.params["value"], jnp.eye(3))
    np.testing.assert_allclose(v, [0.5 + 2 * 0.06 * delta, -0.3 + 0.06 * delta, 1.5 + 0.06 * delta])


def test_the_loss_is_less_where_the_policy_is_more_random(x64):
    """Without an advantage it is minus the entropy, times its cost."""
    parts = compiled_learner(FAMILY, Config(learns=(), **SIZES))
    agent = newborn(parts, parts.init(jax.random.key(0), HYPER))
    policy = jax.tree.map(
        lambda x: x + jnp.broadcast_to(jnp.arange(2.0), x.shape), agent.params["policy"]
    )
    p = jax.nn.softmax(jnp.asarray(logits(parts, policy)))
    loss = parts.policy_loss(policy, one_step(), jnp.ones(1, bool), 0.0, 0.2)
    np.testing.assert_allclose(loss, 0.2 * jnp.sum(p * jnp.log(p)), rtol=1e-9)
    assert abs(p[0] - p[1]) > 0.1


def test_the_update_is_differentiable_in_the_numbers_and_data_are_not(x64):
    """dθ/dη of one update: γ through V(s'), the costs and the step size by the chain rule of exp."""
    parts = compiled_learner(FAMILY, Config(learns=LEARNABLE, **SIZES))
    meta = parts.init(jax.random.key(0), HYPER)
    agent = newborn(parts, meta)

    def first_logit(params):
        after = parts.learner.update(
            jax.random.key(1), meta._replace(params=params), agent, one_step()
        )
        return parts.distribution(after.params["policy"], one_step()).logits[0, 0, 1]

    gradient = jax.jit(jax.grad(first_logit))(meta.params)
    gain = 0.1 * 0.7 * 2 * 0.5
    delta = 2.0 + 0.8 * 1.5 - 0.5
    np.testing.assert_allclose(gradient["discount"], gain * 1.5 * 0.8 * 0.2, rtol=1e-8)
    np.testing.assert_allclose(gradient["policy_cost"], gain * delta, rtol=1e-8)
    np.testing.assert_allclose(gradient["step_size"], gain * delta, rtol=1e-8)
    for name in ("gae_lambda", "value_cost", "entropy_cost"):  # one step, one update, uniform
        np.testing.assert_allclose(gradient[name], 0.0, atol=1e-12)


def test_advantages_do_not_cross_a_time_limit(x64):
    """Two steps whose first ends an episode by truncation: its δ alone, though its discount is 1."""
    parts = compiled_learner(FAMILY, Config(learns=(), **SIZES | dict(num_steps=2)))
    meta = parts.init(jax.random.key(0), HYPER)
    agent = newborn(parts, meta)
    two = jax.tree.map(lambda x: jnp.concatenate([x, x], axis=1), one_step())
    # The second step is of another state, so that the first state's policy is moved by the first alone
    # (through its weights; the bias is shared).
    other = two._replace(
        timestep=two.timestep._replace(obs=two.timestep.obs.at[0, 1].set(jnp.eye(3)[1])),
        reward=jnp.array([[2.0, 50.0]]),
        last=jnp.array([[True, False]]),
    )
    first, second = 2.0 + 0.8 * 1.5 - 0.5, 50.0 + 0.8 * 1.5 + 0.3
    after = parts.learner.update(jax.random.key(1), meta, agent, other)
    score = np.array([-0.5, 0.5])
    step = 0.1 * 0.7 / 2  # a mean of two steps
    np.testing.assert_allclose(
        logits(parts, after.params["policy"]), step * (2 * first + second) * score, rtol=1e-9
    )


@pytest.mark.parametrize("reward", [2.0, -70.0])
def test_normalised_advantages_have_no_size_to_learn(x64, reward):
    """Of two steps a and b it is a / √((a² + b²)/2) that counts, in the update and in its derivative in γ."""
    parts = compiled_learner(FAMILY, Config(**SIZES | dict(num_streams=2, normalize=True)))
    meta = parts.init(jax.random.key(0), HYPER)
    agent = newborn(parts, meta)
    # Actions 1 from state 0 and 0 from state 1; each moves its own row and the bias.
    one, other = one_step(reward), one_step(50.0)
    other = other._replace(
        timestep=other.timestep._replace(obs=jnp.eye(3)[None, None, 1]), action=one.action * 0
    )
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), one, other)

    def moved(params):
        after = parts.learner.update(jax.random.key(1), meta._replace(params=params), agent, both)
        return parts.distribution(after.params["policy"], one).logits[0, 0, 1]

    def expected(gamma):
        a, b = reward + gamma * 1.5 - 0.5, 50.0 + gamma * 1.5 + 0.3
        return 0.1 * 0.7 / 2 * 0.5 * (2 * a - b) / np.sqrt((a**2 + b**2) / 2)

    np.testing.assert_allclose(jax.jit(moved)(meta.params), expected(0.8), rtol=1e-9)
    slope = (expected(0.8 + 1e-5) - expected(0.8 - 1e-5)) / 2e-5
    gradient = jax.jit(jax.grad(moved))(meta.params)["discount"]
    np.testing.assert_allclose(gradient, slope * 0.8 * 0.2, rtol=1e-6)


def test_normalised_advantages_that_are_all_zero_stay_so(x64):
    """Values that predict everything leave nothing to scale, and no NaN in a derivative."""
    parts = compiled_learner(FAMILY, Config(**SIZES | dict(normalize=True)))
    meta = parts.init(jax.random.key(0), HYPER)
    agent = newborn(parts, meta, values=(0.0, 0.0, 0.0))

    def moved(params):
        updated = parts.learner.update(
            jax.random.key(1), meta._replace(params=params), agent, one_step(reward=0.0)
        )
        return parts.distribution(updated.params["policy"], one_step()).logits[0, 0, 1]

    assert jax.jit(moved)(meta.params) == 0.0
    assert jax.jit(jax.grad(moved))(meta.params)["discount"] == 0.0


def test_leaving_one_out_changes_the_derivative_and_not_the_update(x64):
    """Of advantages a and b, what a counts is a's derivative less b's, and the other way round."""
    moves, slopes = [], []
    one, other = one_step(2.0), one_step(50.0)
    other = other._replace(
        timestep=other.timestep._replace(obs=jnp.eye(3)[None, None, 1]),
        next_obs=jnp.eye(3)[None, None, 0],
        action=one.action * 0,
    )
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), one, other)
    for leave_one_out in (False, True):
        config = Config(**SIZES | dict(num_streams=2, leave_one_out=leave_one_out))
        parts = compiled_learner(FAMILY, config)
        meta = parts.init(jax.random.key(0), HYPER)
        agent = newborn(parts, meta)

        def moved(params, parts=parts, meta=meta, agent=agent):
            meta = meta._replace(params=params)
            after = parts.learner.update(jax.random.key(1), meta, agent, both)
            return parts.distribution(after.params["policy"], one).logits[0, 0, 1]

        move, slope = jax.jit(jax.value_and_grad(moved))(meta.params)
        moves.append(move)
        slopes.append(slope["discount"])
    # The successors' values 1.5 and 0.5 are the derivatives of a and b.
    scale = 0.1 * 0.7 / 2 * 0.5 * 0.8 * 0.2
    assert moves[0] == moves[1]
    np.testing.assert_allclose(slopes[0], scale * (2 * 1.5 - 0.5), rtol=1e-9)
    np.testing.assert_allclose(slopes[1], scale * (2 * (1.5 - 0.5) - (0.5 - 1.5)), rtol=1e-9)


@pytest.mark.slow
def test_leaving_one_out_takes_noise_and_nothing_else(x64):
    """The derivative of an update in γ, over many rounds of experience with values far from zero."""
    slopes = []
    for leave_one_out in (False, True):
        sizes = SIZES | dict(num_streams=8, num_steps=8, leave_one_out=leave_one_out)
        parts = compiled_learner(FAMILY, Config(**sizes))
        setup = rollouts.Setup(parts.learner, FAMILY.env, num_streams=8, num_steps=8)
        meta = parts.init(jax.random.key(0), HYPER._replace(gae_lambda=0.9))
        agent = newborn(parts, meta, values=(10.0, 9.0, 11.0))
        task = FAMILY.train(jax.random.key(5))

        def slope(key, parts=parts, meta=meta, agent=agent, setup=setup, task=task):
            data = rollouts.sample(key, meta, task, agent, setup=setup)

            def moved(params):
                after = parts.learner.update(key, meta._replace(params=params), agent, data)
                return parts.distribution(after.params["policy"], one_step()).logits[0, 0, 1]

            return jax.jit(jax.grad(moved))(meta.params)["discount"]

        slopes.append(jax.jit(jax.vmap(slope))(jax.random.split(jax.random.key(3), 20_000)))
    plain, left_out = (np.asarray(x) for x in slopes)
    error = np.std(plain - left_out) / np.sqrt(len(plain))
    assert abs(plain.mean() - left_out.mean()) < 4 * error
    assert left_out.std() < 0.5 * plain.std()
    assert abs(left_out.mean()) > 10 * left_out.std() / np.sqrt(len(plain))


def test_policy_and_values_are_drawn_apart():
    parts = compiled_learner(FAMILY, Config(outer_value=True, hidden_sizes=(4,)))
    params = parts.learner.init(jax.random.key(0), parts.init(jax.random.key(0), HYPER)).params
    kernels = [
        next(x for x in jax.tree.leaves(params[name]) if x.shape == (3, 4))
        for name in ("policy", "value", "outer_value")
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        # Not the same directions either, whatever they are scaled by.
        angle = jnp.vdot(kernels[i], kernels[j]) / (
            jnp.linalg.norm(kernels[i]) * jnp.linalg.norm(kernels[j])
        )
        assert abs(angle) < 0.99


@pytest.mark.parametrize("outer_value", [False, True])
def test_the_outer_loss_reads_its_own_value_as_data(x64, outer_value):
    parts = compiled_learner(FAMILY, Config(learns=(), outer_value=outer_value, **SIZES))
    meta = parts.init(jax.random.key(0), HYPER)
    agent = newborn(parts, meta)
    other = newborn(parts, meta, values=(7.0, 8.0, 9.0))
    critic = "outer_value" if outer_value else "value"
    params = {**other.params, "policy": agent.params["policy"], critic: agent.params[critic]}
    loss, gradient = jax.value_and_grad(parts.outer_loss)(params, one_step(), meta.hyper)
    delta = 2.0 + 0.9 * 1.5 - 0.5
    np.testing.assert_allclose(loss, -np.log(0.5) * delta + 0.5 * delta**2 / 2, rtol=1e-9)
    moved = jax.tree.leaves(gradient[critic])
    np.testing.assert_allclose(sum(jnp.sum(x) for x in moved), -2 * 0.5 * delta, rtol=1e-9)
    if outer_value:
        assert all(jnp.all(x == 0) for x in jax.tree.leaves(gradient["value"]))


def test_each_value_learns_at_its_own_discount(x64):
    parts = compiled_learner(FAMILY, Config(learns=(), outer_value=True, **SIZES))
    meta = parts.init(jax.random.key(0), HYPER)
    agent = newborn(parts, meta)
    after = parts.learner.update(jax.random.key(1), meta, agent, one_step())
    for name, discount in (("value", 0.8), ("outer_value", 0.9)):
        delta = 2.0 + discount * 1.5 - 0.5
        # By way of weights and bias alike.
        expected = 0.5 + 2 * 0.1 * 0.6 * delta
        seen = value_mlp((3,), ()).apply(after.params[name], jnp.eye(3)[0])
        np.testing.assert_allclose(seen, expected, rtol=1e-9)


@pytest.mark.parametrize("outer_value", [False, True])
def test_only_a_value_of_the_outer_discount_sees_that_nothing_is_left_to_learn(x64, outer_value):
    """Rewards of 1 whatever is done, values exact: those of γ are no baseline of returns at γ'."""
    parts = compiled_learner(FAMILY, Config(learns=(), outer_value=outer_value, **SIZES))
    meta = parts.init(jax.random.key(0), HYPER)
    exact = {
        name: newborn(parts, meta, values=3 * (1 / (1 - discount),)).params
        for name, discount in (("value", 0.8), ("outer_value", 0.9))
    }
    params = {name: exact.get(name, exact["value"])[name] for name in exact["value"]}
    gradient = jax.grad(parts.outer_loss)(params, one_step(reward=1.0), meta.hyper)["policy"]
    delta = 0.0 if outer_value else 1 + 0.9 * 5 - 5
    # By way of weights and bias alike.
    np.testing.assert_allclose(logits(parts, gradient)[1], -2 * 0.5 * delta, atol=1e-12)


def test_a_learned_reward_is_bounded_and_adds_to_the_tasks(x64):
    parts = compiled_learner(
        FAMILY, Config(learns=(), outer_value=True, intrinsic_reward=True, **SIZES)
    )
    meta = parts.init(jax.random.key(0), HYPER._replace(intrinsic_scale=0.25))
    agent = newborn(parts, meta)
    huge = meta._replace(params=jax.tree.map(lambda x: jnp.full_like(x, 1e3), meta.params))

    def moved(meta):
        after = parts.learner.update(jax.random.key(1), meta, agent, one_step())
        return logits(parts, after.params["policy"])[1], after.params["outer_value"]

    none = meta._replace(params=jax.tree.map(jnp.zeros_like, meta.params))
    (with_it, outer), (without, plain) = moved(huge), moved(none)
    np.testing.assert_allclose(with_it - without, 0.1 * 0.7 * 0.25, rtol=1e-8)
    for x, y in zip(jax.tree.leaves(outer), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(x, y)


def test_numbers_start_where_hyper_says_and_stay_in_their_range():
    hyper = Hyper(discount=1.0, gae_lambda=0.0, entropy_cost=0.0, min_discount=0.9)
    meta = actor_critic_learner(FAMILY, Config(learns=LEARNABLE)).init(jax.random.key(0), hyper)
    values = learned_hyper(meta)
    np.testing.assert_allclose(values.discount, 1.0, atol=1e-4)
    np.testing.assert_allclose(values.gae_lambda, 0.0, atol=1e-3)
    np.testing.assert_allclose(values.entropy_cost, 0.0, atol=1e-5)
    np.testing.assert_allclose(values.step_size, hyper.step_size, rtol=1e-5)
    for x in (-50.0, 50.0):
        values = learned_hyper(meta._replace(params=dict.fromkeys(LEARNABLE, jnp.asarray(x))))
        assert 0.9 <= values.discount <= 1.0
        assert 0.0 <= values.gae_lambda <= 1.0
        assert values.step_size > 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_streams=0), "num_streams=0 must be at least 1"),
        (dict(learns=("discuont",)), "learns='discuont' is unknown: did you mean 'discount'"),
        (dict(value_targets="lamda"), "value_targets='lamda' is unknown: did you mean 'lambda'"),
        (dict(inner_optimizer="adamm"), "inner_optimizer='adamm' is unknown: did you mean 'adam'"),
        (dict(intrinsic_reward=True), "outer_value=False must be True with intrinsic_reward"),
        (
            dict(leave_one_out=True, num_streams=1),
            "num_streams=1 must be at least 2 with leave_one_out",
        ),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)
