"""Histories are what learners lived through, in order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import datasets, references, rollouts, tasks
from jaxmeta.algorithms import maml


@pytest.fixture(scope="module")
def family():
    return tasks.make("dark_room", size=3, horizon=4)


@pytest.fixture(scope="module")
def drawn(family):
    return tasks.sample_tasks(jax.random.key(0), family, 6, split="train")


@pytest.fixture(scope="module")
def mixed(family, drawn):
    return datasets.mixtures(
        jax.random.key(1), drawn, family=family, num_streams=200, num_episodes=10
    )


def test_record_is_the_lifetime_round_by_round():
    family = tasks.make("bernoulli_bandit", num_arms=3, num_pulls=5)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 4, split="train")
    learner = references.thompson(num_arms=3)
    setup = rollouts.Setup(learner, family.env, num_streams=2, num_steps=5)
    key = jax.random.key(3)
    got = datasets.record(key, (), drawn, setup=setup, num_updates=2, tasks_per_chunk=3)
    assert got.data.reward.shape == (4, 2, 15)
    assert np.all(got.length == 15)
    keys = jax.random.split(key, 4)
    one = jax.tree.map(lambda x: x[2], drawn)
    lived = rollouts.lifetime(keys[2], (), one, setup=setup, num_updates=2).trajectories
    for stream in range(2):
        for k in range(3):
            piece = slice(5 * k, 5 * k + 5)
            np.testing.assert_array_equal(
                got.data.action[2, stream, piece], lived.action[k, stream]
            )
            np.testing.assert_array_equal(
                got.data.reward[2, stream, piece], lived.reward[k, stream]
            )


def test_a_learner_of_another_family_is_refused(family, drawn):
    other = maml.maml(tasks.make("navigation", horizon=3), maml.Config(hidden_sizes=(4,)))
    meta = jax.eval_shape(other.init, jax.random.key(0)).meta
    setup = rollouts.Setup(other.learner, family.env, num_streams=1, num_steps=4)
    with pytest.raises(ValueError, match="learner does not fit"):
        datasets.record(jax.random.key(3), meta, drawn, setup=setup, num_updates=0)


def test_a_restart_hides_no_reward(family, drawn):
    """What was done and paid before a restart is shown after it, and a cut episode stays apart from the next."""
    learner = references.random_agent(num_actions=5)
    setup = rollouts.Setup(learner, family.env, num_streams=3, num_steps=6)  # the horizon is 4
    got = datasets.record(jax.random.key(3), (), drawn, setup=setup, num_updates=2, restart=True)
    data = got.data
    first = np.zeros(18, bool)
    first[[0, 4, 6, 10, 12, 16]] = True
    assert np.all(np.asarray(data.timestep.first) == first)
    np.testing.assert_array_equal(data.timestep.reward[..., 1:], data.reward[..., :-1])
    np.testing.assert_array_equal(data.timestep.action[..., 1:], data.action[..., :-1])
    assert np.any(data.reward[..., [5, 11]])
    thinned = datasets.thin(got, 2)
    kept = [0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15]
    np.testing.assert_array_equal(thinned.data.reward, data.reward[:, :, kept])
    found = datasets.quality(jax.random.key(4), got, family=family)
    whole = np.asarray(data.reward).reshape(6, 3, 3, 6)[..., :4].sum(-1).mean((0, 1))
    np.testing.assert_allclose(found.returns, whole, rtol=1e-6)


def test_mixtures_fall_from_random_to_the_expert(mixed, drawn, family):
    """ε is 1 - t / (0.9 T): the share of expert actions at step t is 1 - ε + ε (share of random ones)."""
    best = jax.vmap(jax.vmap(jax.vmap(family.optimal_action, (None, 0)), (None, 0)))
    right = np.asarray(best(drawn, mixed.data.timestep.obs) == mixed.data.action)
    share = right.mean(axis=(0, 1))  # 1 200 draws a step: a standard deviation of at most 0.0145
    noise = np.maximum(1 - np.arange(40) / 36, 0)
    np.testing.assert_allclose(share, 1 - noise + noise / 5, atol=0.06)
    assert np.all(right[:, :, 36:])


def test_mixtures_of_whole_episodes(drawn, family):
    """An episode is the expert's from its first step to its last, or it is not: the expert's share is 1 - ε and what
    looks like the expert's by chance."""
    lived = datasets.mixtures(
        jax.random.key(1), drawn, family=family, num_streams=200, num_episodes=10, draw="episode"
    )
    best = jax.vmap(jax.vmap(jax.vmap(family.optimal_action, (None, 0)), (None, 0)))
    right = np.asarray(best(drawn, lived.data.timestep.obs) == lived.data.action)
    whole = right.reshape(*right.shape[:2], 10, 4).all(axis=-1).mean(axis=(0, 1))
    noise = np.maximum(1 - np.arange(10) * 4 / 36, 0)
    np.testing.assert_allclose(whole, 1 - noise + noise / 5**4, atol=0.06)


def test_mixtures_need_an_expert(family, drawn):
    blind = dataclasses.replace(family, optimal_action=None)
    with pytest.raises(ValueError, match="give expert="):
        datasets.mixtures(jax.random.key(0), drawn, family=blind, num_streams=1, num_episodes=1)
    other = datasets.mixtures(
        jax.random.key(0),
        drawn,
        family=blind,
        num_streams=1,
        num_episodes=2,
        expert=lambda task, obs: jnp.zeros((), jnp.int32),
        random_steps=0.0,
    )
    assert np.all(other.data.action == 0)


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        (lambda task, obs: 2.9, "expert is .*takes ints of shape"),
        (lambda task, obs: jnp.asarray(2.9), "expert is .*takes ints of shape"),
        (lambda task, obs: jnp.zeros(5), "expert is .*takes ints of shape"),
        (lambda task, obs: obs[99, 99], "expert"),
    ],
)
def test_an_expert_s_action_is_never_cut_to_a_whole_number(family, drawn, expert, message):
    how = dict(family=family, num_streams=1, num_episodes=1)
    with pytest.raises(tasks.InvalidEnvironment, match=message):
        datasets.mixtures(jax.random.key(0), drawn, expert=expert, **how)


def test_an_expert_may_give_a_number_of_python(family, drawn):
    how = dict(family=family, num_streams=1, num_episodes=1, random_steps=0.0)
    got = datasets.mixtures(jax.random.key(0), drawn, expert=lambda task, obs: 2, **how)
    assert np.all(got.data.action == 2)


def test_thin_keeps_every_third_episode(mixed):
    thinned = datasets.thin(mixed, 3)
    assert np.all(thinned.length == 16)
    kept = np.concatenate([np.arange(4) + 12 * i for i in range(4)])
    whole, got = mixed.data, thinned.data
    for name in ("action", "reward", "last", "next_obs"):
        np.testing.assert_array_equal(getattr(got, name), getattr(whole, name)[:, :, kept])
    # What precedes a kept episode is the kept one before it, and nothing precedes the first.
    np.testing.assert_array_equal(got.timestep.action[..., 1:], got.action[..., :-1])
    np.testing.assert_array_equal(got.timestep.reward[..., 1:], got.reward[..., :-1])
    assert np.all(got.timestep.reward[..., 0] == 0)


def test_thin_of_episodes_of_several_lengths():
    family = tasks.make("dark_key_to_door", size=2, horizon=6)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 5, split="train")
    walk = datasets.mixtures(
        jax.random.key(1),
        drawn,
        family=family,
        num_streams=3,
        num_episodes=4,
        expert=lambda task, obs: jnp.zeros((), jnp.int32),
        random_steps=1.0,
    )
    thinned = datasets.thin(walk, 2)
    for m in range(5):
        for n in range(3):
            last = np.asarray(walk.data.last[m, n])
            episode = np.cumsum(last) - last
            kept = np.flatnonzero(episode % 2 == 0)
            assert thinned.length[m, n] == len(kept)
            got = np.asarray(thinned.data.reward[m, n, : len(kept)])
            np.testing.assert_array_equal(got, np.asarray(walk.data.reward[m, n])[kept])
