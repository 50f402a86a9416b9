"""Decision-pretrained networks predict the best action of the task, and become the posterior of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import rollouts, tasks
from jaxmeta.algorithms.decision_pretrained import Config, Hyper, decision_pretrained, roll_in
from jaxmeta.learners import in_context, recurrent
from jaxmeta.networks.recurrent import gru
from jaxmeta.references import posterior_best_arm
from jaxmeta.runs import training


@pytest.fixture(scope="module")
def bandit():
    return tasks.make("bernoulli_bandit", num_arms=3, num_pulls=4)


@pytest.fixture(scope="module")
def drawn(bandit):
    return tasks.sample_tasks(jax.random.key(1), bandit, 6, split="train")


def test_a_step_descends_the_error_at_the_best_actions(bandit, drawn):
    """With labels of one's own choice: the loss is minus the log-probability of the label at each step of the contexts."""
    config = Config(num_episodes=2, num_streams=2, random_share=1.0)

    def label(task, obs):  # of the task, not of what was done in it
        return jnp.argmin(task.means if hasattr(task, "means") else jax.tree.leaves(task)[0])

    algorithm = decision_pretrained(
        bandit, config, Hyper(learning_rate=0.1), expert=label, memory=gru(4), optimizer=optax.sgd
    )
    state = algorithm.init(jax.random.key(0))
    key = jax.random.key(5)
    after, metrics = jax.jit(algorithm.step)(key, state, drawn)
    assert metrics["env_steps"] == 6 * 2 * 8

    # The same contexts again, and the loss from the learner's own policy.
    act_key, _ = jax.random.split(key)
    behaviour = roll_in(algorithm.learner, bandit, 1.0)
    setup = rollouts.Setup(behaviour, bandit.env, 2, 8)
    data = jax.jit(lambda: recurrent.trials_of(act_key, state.meta, drawn, setup=setup))()
    best = jax.vmap(label, (0, None))(drawn, None)
    labels = jnp.repeat(best, 2)

    def loss(params):
        meta = state.meta._replace(params=params, reward_scale=jnp.ones(()))

        def log_prob(timestep, label):
            def one(memory, timestep):
                distribution, memory = policy_step(meta, memory, timestep)
                return memory, distribution.log_prob(label)

            return jax.lax.scan(one, algorithm.learner.memory(meta), timestep)[1]

        return -jnp.mean(jax.vmap(log_prob)(data.timestep, labels))

    network = in_context.network_of(bandit, config, gru(4), None)
    parts = recurrent.recurrent_learner(
        bandit,
        recurrent.TrialConfig(num_episodes=2, sees_time=False),
        network,
        reads=in_context.Meta,
    )

    def policy_step(meta, memory, timestep):
        one = jax.tree.map(lambda x: x[None], timestep)
        seen = data._replace(timestep=one, reward=jnp.zeros(1), memory=memory)
        inputs = jax.tree.map(lambda x: x[0], parts.inputs(meta, seen))
        distribution, state = network.step(meta.params, memory.state, inputs)
        return distribution, recurrent.TrialMemory(state, memory.time + 1)

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.meta.params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    norm = jnp.maximum(optax.tree.norm(gradient), 1.0)
    for x, p, g in zip(
        *(jax.tree.leaves(t) for t in (after.meta.params, state.meta.params, gradient)), strict=True
    ):
        np.testing.assert_allclose(x, p - 0.1 * g / norm, rtol=1e-4, atol=1e-7)


def test_a_broken_task_is_left_out_and_counted():
    """With one task broken the others are learned from; with all tasks broken nothing changes."""
    family = tasks.make("gaussian_bandit", num_arms=3, num_pulls=4)
    drawn = tasks.sample_tasks(jax.random.key(1), family, 6, split="train")
    algorithm = decision_pretrained(family, Config(num_episodes=2), memory=gru(4))
    step = jax.jit(algorithm.step)
    state = algorithm.init(jax.random.key(0))
    broken = jax.tree.map(lambda x: x.at[2].set(jnp.nan), drawn)
    after, metrics = step(jax.random.key(5), state, broken)
    assert metrics["skipped_tasks"] == 1
    for x in jax.tree.leaves(after.meta.params):
        assert jnp.all(jnp.isfinite(x))
    assert after.num_updates == 1
    same, metrics = step(
        jax.random.key(5), state, jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), drawn)
    )
    assert metrics["skipped_updates"] == 1
    for x, y in zip(jax.tree.leaves(same), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_roll_in_acts_at_random_in_a_share_of_the_tasks(bandit):
    """The learner always takes arm 2: so does everyone but the random ones, a quarter of 2 000."""
    learner = decision_pretrained(bandit, Config(num_episodes=2), memory=gru(4)).learner
    stubborn = learner._replace(
        act=lambda key, meta, agent, memory, timestep: (
            jnp.asarray(2, jnp.int32), jnp.zeros(()), memory
        )
    )  # fmt: skip
    meta = (
        decision_pretrained(bandit, Config(num_episodes=2), memory=gru(4))
        .init(jax.random.key(0))
        .meta
    )
    many = tasks.sample_tasks(jax.random.key(1), bandit, 2000, split="train")
    setup = rollouts.Setup(roll_in(stubborn, bandit, 0.25), bandit.env, 1, 8)
    data = jax.jit(lambda: recurrent.trials_of(jax.random.key(2), meta, many, setup=setup))()
    random = np.any(np.asarray(data.action) != 2, axis=1)
    assert abs(random.mean() - 0.25) < 0.05  # five standard deviations
    counts = np.bincount(np.asarray(data.action)[random].reshape(-1), minlength=3)
    np.testing.assert_allclose(counts / counts.sum(), 1 / 3, atol=0.04)


def test_an_expert_is_needed(bandit):
    blind = dataclasses.replace(bandit, optimal_action=None)
    with pytest.raises(
        ValueError, match="has no optimal_action and no expert_action: give expert="
    ):
        decision_pretrained(blind)


def posterior_gap(algorithm, family, meta, config, memory):
    """Mean KL of the exact posterior of the best arm to the network's, at each prefix of random contexts, ``[T]``."""
    held_out = tasks.sample_tasks(jax.random.key(7), family, 2000, split="test")
    setup = rollouts.Setup(roll_in(algorithm.learner, family, 1.0), family.env, 1, family.horizon)
    predict = in_context.predictions(family, config, memory=memory)

    @jax.jit
    def gap(key):
        data = recurrent.trials_of(key, meta, held_out, setup=setup)
        log_q = jax.vmap(predict, (None, 0))(meta, data).log_probs()
        chosen = jax.nn.one_hot(data.action, family.action_space.n)
        pulls = jnp.cumsum(chosen, axis=1) - chosen
        paid = chosen * data.reward[..., None]
        exact = jax.vmap(jax.vmap(lambda r, n: posterior_best_arm(r, n, num_nodes=16)))
        p = exact(jnp.cumsum(paid, axis=1) - paid, pulls)
        kl = jnp.sum(jnp.where(p > 0, p * (jnp.log(jnp.maximum(p, 1e-12)) - log_q), 0.0), axis=-1)
        return jnp.mean(kl, axis=0)

    return gap(jax.random.key(8))


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
def test_it_becomes_posterior_sampling():
    """On three arms and six pulls the network is the exact posterior of the best arm, and earns what Thompson sampling does."""
    family = tasks.make("bernoulli_bandit", num_arms=3, num_pulls=7)
    config, memory = Config(num_episodes=1, hidden_sizes=(32,), num_minibatches=4), gru(32)
    algorithm = decision_pretrained(
        family, config, Hyper(learning_rate=3e-3, anneal_updates=300), memory=memory
    )
    run = training.train(algorithm, family, training.Config(meta_updates=300, num_tasks=512))
    gap = posterior_gap(algorithm, family, run.state.meta, config, memory)
    assert gap.shape == (7,)
    assert jnp.mean(gap) < 0.01
    assert jnp.max(gap) < 0.02
