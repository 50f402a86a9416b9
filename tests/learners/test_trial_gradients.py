"""What trials are made of for policy gradients: advantages over whole trials, and episodes whose rewards count 0 (E-RL²).

The steps themselves are tried in `test_recurrent`, with the learner.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import tasks
from jaxmeta.algorithms import rl2, varibad
from jaxmeta.learners import recurrent, trial_gradients
from jaxmeta.networks.actor_critic import ActorCritic, Inputs
from jaxmeta.types import TimeStep, Trajectory

V = [0.5, -0.5, 1.0, 0.25, 2.0]
LAST = [0, 1, 0, 0, 1]


def a_trial(reward):
    """A trial ``[1, 5]`` of an episode of two steps and one of three, and a network that values its steps at `V`."""
    num_steps = len(V)
    zeros = jnp.zeros(num_steps)
    first = jnp.asarray([1, 0, 1, 0, 0], bool)
    data = Trajectory(
        timestep=TimeStep(zeros[:, None], zeros, jnp.append(0.0, jnp.asarray(reward)[:-1]), first),
        action=zeros,
        log_prob=zeros,
        reward=jnp.asarray(reward, float),
        discount=zeros,
        last=jnp.asarray(LAST, bool),
        next_obs=zeros[:, None],
        memory=recurrent.TrialMemory((), jnp.zeros((), jnp.int32)),
    )
    inputs = Inputs(zeros[:, None], zeros[:, None], zeros[:, None], first)
    network = ActorCritic(None, None, None, lambda params, state, inputs: (None, jnp.asarray(V)))
    return jax.tree.map(lambda x: x[None], (data, inputs)), network


def learned(reward, explore_episodes):
    (data, inputs), network = a_trial(reward)
    hyper = trial_gradients.Hyper(discount=0.5, gae_lambda=1.0)
    meta = recurrent.Meta({}, jnp.array([0.0, 1.0]), jnp.array(2.0), hyper)
    return trial_gradients.with_advantages(
        meta,
        hyper,
        data,
        inputs,
        jnp.ones((1, 5), bool),
        network=network,
        explore_episodes=explore_episodes,
    )


def test_advantages_written_out_by_hand():
    """With λ = 1 they are the discounted rewards to come, of exploitation alone, without the values."""
    meta, batch = learned([10.0, -20.0, 1.0, 2.0, 4.0], 1)
    to_come = np.array([0.75, 1.5, 3.0, 4.0, 4.0])  # the first: 0.25 × 3
    mean, spread = meta.value_scale
    np.testing.assert_allclose(spread * batch.advantage[0], to_come - np.array(V), rtol=1e-5)
    np.testing.assert_allclose(mean + spread * batch.target[0], to_come, rtol=1e-5)
    np.testing.assert_allclose(mean, 0.1 * to_come.mean(), rtol=1e-5)
    # The network sees all rewards, in units, and so does what predicts them.
    np.testing.assert_allclose(batch.data.reward[0], [5.0, -10.0, 0.5, 1.0, 2.0])


@pytest.mark.parametrize("explore_episodes", [0, 1])
def test_only_rewards_that_count_enter(explore_episodes):
    first, second = (
        learned(x, explore_episodes)[1] for x in ([3.0, 1, 1, 2, 4], [-5.0, 7, 1, 2, 4])
    )
    same = np.allclose(first.advantage, second.advantage) and np.allclose(
        first.target, second.target
    )
    assert same == (explore_episodes == 1)


def test_the_report_s_trial_is_of_the_episodes_that_count():
    (data, _), _ = a_trial([10.0, -20.0, 1.0, 2.0, 4.0])
    counted = jnp.ones((1, 5), bool)
    metrics = recurrent.trial_metrics(data, counted, 2, explore_episodes=1)
    assert (metrics["return/before"], metrics["return/after"]) == (-10, 7)
    assert metrics["return/trial"] == 7
    assert recurrent.trial_metrics(data, counted, 2)["return/trial"] == -3


@pytest.mark.parametrize("module", [rl2, varibad])
def test_algorithms_hand_the_setting_on(module, monkeypatch):
    found = []
    monkeypatch.setattr(
        trial_gradients,
        "with_advantages",
        lambda *args, explore_episodes, inner=trial_gradients.with_advantages, **how: (
            found.append(explore_episodes),
            inner(*args, explore_episodes=explore_episodes, **how),
        )[1],
    )
    family = tasks.make("bernoulli_bandit", num_arms=2, num_pulls=3)
    config = module.Config(num_episodes=3, explore_episodes=2, memory_size=2, num_minibatches=1)
    make = rl2.rl2 if module is rl2 else varibad.varibad
    algorithm = make(family, config)

    def step(key):
        drawn = tasks.sample_tasks(key, family, 2, split="train")
        return algorithm.step(key, algorithm.init(key), drawn)

    jax.eval_shape(step, jax.random.key(0))
    assert found == [2]


@pytest.mark.parametrize(
    ("explore_episodes", "why"), [(2, "must be less than num_episodes=2"), (-1, "at least 0")]
)
def test_settings_that_are_wrong(explore_episodes, why):
    with pytest.raises(ValueError, match=f"explore_episodes={explore_episodes} .*{why}"):
        rl2.Config(num_episodes=2, explore_episodes=explore_episodes)


class Weights(NamedTuple):
    """Numbers of a learner with two bonuses."""

    discount: float = 0.5
    gae_lambda: float = 1.0
    one_bonus: float = 3.0
    two_bonus: float = 0.0
    bonus_updates: float = 10.0


def test_bonuses_are_in_units_of_rewards_and_only_advantages_have_them():
    (data, inputs), network = a_trial([10.0, -20.0, 1.0, 2.0, 4.0])
    counted = jnp.asarray([[1, 1, 1, 1, 0]], bool)
    meta = recurrent.Meta({}, jnp.array([0.0, 1.0]), jnp.array(2.0), Weights())
    given = jnp.asarray([1.0, 0.0, 3.0, 2.0, 100.0])

    def bonus(params, key, data, inputs, counted, hyper):
        in_units = jnp.allclose(data.reward, jnp.asarray([5.0, -10.0, 0.5, 1.0, 2.0]))
        return {"one": given + 100.0 * ~in_units, "two": 7.0 * given}

    def batch_with(bonus_function):
        key = jax.random.key(0)
        told = meta, meta.hyper, data, inputs, counted
        after, extra = trial_gradients.bonuses(key, *told, bonus_function)
        assert (after is key) == (bonus_function is None)
        return extra, trial_gradients.with_advantages(*told, extra, network=network)[1]

    extra, batch = batch_with(bonus)
    sums = [1, 0.5, 3.25, 3.625]  # y = x + 0.5 y of the step before
    expected = 3.0 * 2.0 / np.std(sums) * np.array([1, 0, 3, 2, 0])
    np.testing.assert_allclose(extra[0], expected, rtol=1e-5)
    none, plain = batch_with(None)
    assert none == 0
    np.testing.assert_array_equal(batch.data.reward, plain.data.reward)
    assert not np.allclose(batch.advantage, plain.advantage)


def test_weights_of_bonuses_fall_to_zero():
    for done, left in ((0, 1.0), (5, 0.5), (10, 0.0), (12, 0.0)):
        hyper = recurrent.annealed(WITH_RATE, jnp.asarray(done))
        assert (hyper.one_bonus, hyper.two_bonus) == (3.0 * left, 0.0)
        assert (hyper.learning_rate, hyper.discount) == (1.0, 0.5)


class WithRate(NamedTuple):
    """Numbers with what falls."""

    discount: float = 0.5
    one_bonus: float = 3.0
    two_bonus: float = 0.0
    bonus_updates: float = 10.0
    learning_rate: float = 1.0
    anneal_updates: float = math.inf


WITH_RATE = WithRate()


def test_curricula_see_the_rewards_that_values_are_of():
    """The gap of a best return to a value is of the same rewards: without exploration, and never with bonuses."""
    family = tasks.make("tabular", num_states=2, num_actions=2, horizon=2)
    sizes = dict(num_episodes=2, num_minibatches=1, num_epochs=1, hidden_sizes=(2,), memory_size=2)

    def seen(algorithm, key):
        init_key, task_key, key = jax.random.split(key, 3)
        drawn = tasks.sample_tasks(task_key, family, 3, split="train")
        return algorithm.step_with_results(key, algorithm.init(init_key), drawn)[1:]

    algorithm = rl2.rl2(family, rl2.Config(**sizes, explore_episodes=1))
    metrics, results = jax.jit(partial(seen, algorithm))(jax.random.key(0))
    after = results.episodes[:, 0, 1]
    assert np.all(results.episodes[:, 0, 0] != 0)
    for of_trial in (results.returns, results.best, np.sum(results.reward[:, 0], axis=-1)):
        np.testing.assert_allclose(of_trial, after, rtol=1e-5)
    np.testing.assert_allclose(metrics["return/trial"], np.mean(after), rtol=1e-5)

    config = varibad.Config(**sizes, latent_size=2, bonuses=("error",))
    algorithm = varibad.varibad(family, config)
    _, results = jax.eval_shape(partial(seen, algorithm), jax.random.key(0))
    assert (results.value, results.advantage) == (None, None)
    assert results.returns.shape == (3,)
