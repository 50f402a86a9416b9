"""Learners in context predict actions, and act by what they predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import learners, rollouts, tasks
from jaxmeta.algorithms.decision_pretrained import Config, decision_pretrained
from jaxmeta.learners import in_context, minibatches
from jaxmeta.networks.actor_critic import ActorCritic, Inputs
from jaxmeta.networks.distributions import Categorical
from jaxmeta.networks.recurrent import gru


def test_the_loss_by_hand_on_three_steps():
    logits = np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0], [0.5, 0.5, 3.0]])
    table = ActorCritic(
        init=lambda key: jnp.asarray(logits),
        initial=lambda: (),
        step=lambda params, state, inputs: None,
        unroll=lambda params, state, inputs: (Categorical(params), jnp.zeros(3)),
    )
    action = np.array([[0, 1, 0], [2, 1, 1]])
    counted = np.array([[True, True, True], [False, True, True]])
    inputs = Inputs(jnp.zeros((2, 3, 1)), jnp.zeros((2, 3, 1)), jnp.zeros((2, 3, 2)), counted)
    batch = in_context.Batch(inputs, jnp.asarray(action), jnp.asarray(counted))
    loss, report = in_context.prediction_loss(
        jnp.asarray(logits),
        jax.random.split(jax.random.key(0)),
        batch,
        None,
        minibatches.counts(batch),
        network=table,
    )
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = -np.mean([log_p[0, 0], log_p[1, 1], log_p[2, 0], log_p[1, 1], log_p[2, 1]])
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    np.testing.assert_allclose(report["accuracy"], 3 / 5)


@pytest.fixture(scope="module")
def family():
    return tasks.make("dark_room", size=3, horizon=4)


@pytest.fixture(scope="module")
def acted(family):
    """``(meta, trial [1, T])`` of a learner that has seen a reward of 0.5 units."""
    algorithm = decision_pretrained(family, Config(num_episodes=3), memory=gru(4))
    setup = rollouts.Setup(algorithm.learner, family.env, 1, 12)

    @jax.jit
    def act(key):
        meta = algorithm.init(jax.random.key(0)).meta
        meta = meta._replace(params=jax.tree.map(lambda x: 30 * x, meta.params))
        meta = meta._replace(reward_scale=jnp.asarray(0.5))
        task = family.train(jax.random.key(1))
        return meta, learners.recurrent.trials_of(
            key, meta, jax.tree.map(lambda x: x[None], task), setup=setup
        )

    return act(jax.random.key(2))


def test_what_is_trained_is_what_acted(family, acted):
    """What the network predicts on a recorded trial are the probabilities with which it acted."""
    meta, data = acted
    predict = in_context.predictions(family, Config(num_episodes=3), memory=gru(4))
    log_prob = jax.vmap(predict, (None, 0))(meta, data).log_prob(data.action)
    np.testing.assert_allclose(log_prob, data.log_prob, rtol=1e-4, atol=1e-6)


def test_the_mode_is_the_most_probable_action(family, acted):
    meta, data = acted
    learner = decision_pretrained(
        family, Config(num_episodes=3, acts="mode"), memory=gru(4)
    ).learner
    other = decision_pretrained(family, Config(num_episodes=3), memory=gru(4)).learner
    timestep = jax.tree.map(lambda x: x[0, 0], data.timestep)
    draws, _, _ = jax.vmap(lambda key: other.act(key, meta, (), other.memory(meta), timestep))(
        jax.random.split(jax.random.key(0), 2000)
    )
    mode, log_prob, _ = learner.act(jax.random.key(1), meta, (), learner.memory(meta), timestep)
    assert mode == np.bincount(draws).argmax()
    assert log_prob == 0


@pytest.mark.parametrize(
    ("settings", "objects", "message"),
    [
        (dict(memory="gur"), {}, "memory='gur' is unknown"),
        (dict(context=0), {}, "context=0 must be at least 1"),
        (dict(memory="gru", context=8), {}, "context=8 has no effect with memory='gru'"),
        (dict(acts="greedy"), {}, "acts='greedy' is unknown"),
        (dict(num_minibatches=0), {}, "num_minibatches=0 must be at least 1"),
        (dict(hidden_sizes=(0,)), {}, "hidden_sizes=0 must be at least 1"),
        (dict(memory_size=8), dict(memory=gru(4)), "memory_size=8 has no effect with the argument memory="),
        (dict(context=8), dict(memory=gru(4)), "context=8 has no effect with the argument memory="),
        (dict(random_share=1.5), {}, "random_share=1.5 must lie between 0"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(family, settings, objects, message):
    with pytest.raises(ValueError, match=message):
        decision_pretrained(family, Config(**settings), **objects)


def test_a_transformer_attends_to_its_context_or_to_the_trial(family):
    for settings, context in (({}, 12), (dict(context=5), 5)):
        config = Config(num_episodes=3, memory_size=8, **settings)
        network = in_context.network_of(family, config, None, None)
        assert network.initial().keys.shape[1] == context


def test_a_stream_with_what_is_no_action_is_left_out(family):
    """Its loss would be infinite and without a gradient, so that nothing would be learned from the others either."""
    drawn = tasks.sample_tasks(jax.random.key(1), family, 3, split="train")
    goal = drawn.goal[0]

    def expert(task, obs):
        return jnp.where(jnp.all(task.goal == goal), 7, 2)

    algorithm = decision_pretrained(family, Config(num_episodes=1), expert=expert, memory=gru(4))
    state = algorithm.init(jax.random.key(0))
    after, metrics = jax.jit(algorithm.step)(jax.random.key(2), state, drawn)
    left_out = int(np.sum(np.all(np.asarray(drawn.goal) == np.asarray(goal), axis=1)))
    assert 0 < left_out < 3
    assert int(metrics["skipped_tasks"]) == left_out
    assert np.isfinite(metrics["loss"])
    assert metrics["meta_grad_norm"] > 0
    assert after.num_updates == 1


def test_which_actions_are_some():
    space = spaces.Box(-1.0, 1.0, (2,), jnp.float32)
    x = jnp.array([[[0.0, 3.0], [jnp.nan, 0.0]]])
    np.testing.assert_array_equal(in_context.is_action(x, space), [[True, False]])
    number = jnp.array([[-1, 0, 4, 5]])
    found = in_context.is_action(number, spaces.Discrete(5))
    np.testing.assert_array_equal(found, [[False, True, True, False]])
