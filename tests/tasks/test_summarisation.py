import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta import tasks
from jaxmeta.algorithms.maml import Config, maml
from jaxmeta.rollouts.rollout import begin_stream, rollout
from jaxmeta.tasks import summarisation
from jaxmeta.tasks.summarisation import Summarisation, SummarisationParams, SummarisationState
from jaxmeta.types import Learner, TimeStep

SMALL = Summarisation(num_sentences=4, num_topics=5, horizon=3)


def state_of(mentions, picked=None, time=0):
    mentions = jnp.asarray(mentions, bool)
    picked = jnp.zeros(mentions.shape[0], bool) if picked is None else jnp.asarray(picked, bool)
    return SummarisationState(mentions=mentions, picked=picked, time=jnp.asarray(time, jnp.int32))


def drawn(seed, env=SMALL):
    """A document and topic weights, drawn apart from the library."""
    rng = np.random.default_rng(seed)
    mentions = rng.random((env.num_sentences, env.num_topics)) < 0.4
    weight = rng.dirichlet(np.ones(env.num_topics))
    return mentions, SummarisationParams(weight=jnp.asarray(weight, jnp.float32))


def worth(mentions, weight, picks):
    """Weight of the topics of some sentences: what a summary is worth."""
    topics = set().union(*(np.flatnonzero(mentions[i]) for i in picks))
    return sum(float(weight[topic]) for topic in topics)


@jax.jit
def play(state, task, actions):
    def step(state, action):
        obs, state, reward, terminated, _ = SMALL.step_env(jax.random.key(0), state, action, task)
        return state, (obs, reward, terminated)

    return jax.lax.scan(step, state, actions)


def led(action_of, env=SMALL):
    """``(state, task) -> return``, played to the end by a controller."""

    @jax.jit
    def earned(state, task):
        def step(carry, _):
            state, obs = carry
            action = action_of(task, obs, env=env)
            obs, state, reward, *_ = env.step_env(jax.random.key(0), state, action, task)
            return (state, obs), jnp.where(state.time <= env.horizon, reward, 0.0)

        return jax.lax.scan(step, (state, env._observed(state)), None, env.horizon)[1].sum()

    return earned


OPTIMAL, GREEDY = led(summarisation.optimal_action), led(summarisation.greedy_action)


def test_a_pick_earns_the_topics_that_are_new():
    mentions = [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]
    task = SummarisationParams(weight=jnp.array([0.1, 0.2, 0.3, 0.35, 0.05]))
    state, (obs, reward, terminated) = play(state_of(mentions), task, jnp.array([0, 1, 3]))
    np.testing.assert_allclose(reward, [0.3, 0.3, 0.0], rtol=1e-6)
    assert not terminated.any()
    assert SMALL.is_truncated(state, task)
    again = play(state_of(mentions), task, jnp.array([2, 2, 2]))[1][1]
    np.testing.assert_allclose(again, [0.35, 0, 0], rtol=1e-6)
    seen = jax.vmap(SMALL.seen)(obs)
    assert np.array_equal(seen.mentions, np.broadcast_to(mentions, (3, 4, 5)))
    assert seen.picked.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 1]]
    assert seen.covered.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    np.testing.assert_allclose(seen.left, [2 / 3, 1 / 3, 0], atol=1e-7)


@given(seed=st.integers(0, 10_000), actions=st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_an_episode_earns_the_weight_of_what_it_covers(seed, actions):
    mentions, task = drawn(seed)
    reward = play(state_of(mentions), task, jnp.array(actions))[1][1]
    assert reward.min() >= 0
    np.testing.assert_allclose(reward.sum(), worth(mentions, task.weight, actions), atol=1e-6)


def test_covering_everything_earns_one():
    mentions = np.eye(4, 5, dtype=bool)
    mentions[3, 4] = mentions[1, 0] = True
    task = drawn(0)[1]
    reward = play(state_of(mentions), task, jnp.array([3, 1, 2]))[1][1]
    np.testing.assert_allclose(reward.sum(), 1.0, atol=1e-6)


@pytest.mark.slow
@given(seed=st.integers(0, 10_000))
def test_the_optimum_is_that_of_all_sequences_of_picks(seed):
    """From the start, and from states with picks behind them, wasted ones among them."""
    mentions, task = drawn(seed)
    starts = [([], 3), ([1], 2), ([2], 1), ([0, 2], 1)]
    for before, left in starts:
        picked = np.isin(np.arange(4), before)
        have = worth(mentions, task.weight, before)
        sequences = itertools.product(range(4), repeat=left)
        best = max(worth(mentions, task.weight, [*before, *picks]) for picks in sequences)
        earned = OPTIMAL(state_of(mentions, picked, 3 - left), task)
        np.testing.assert_allclose(earned, best - have, atol=1e-6)


@given(seed=st.integers(0, 10_000))
def test_greed_earns_at_least_its_share_of_the_optimum(seed):
    mentions, task = drawn(seed)
    best, greedy = (earned(state_of(mentions), task) for earned in (OPTIMAL, GREEDY))
    assert (1 - 1 / math.e) * best - 1e-6 <= greedy <= best + 1e-6


def test_greed_is_not_optimal():
    """The example of its docstring."""
    mentions = [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 1]]
    env = Summarisation(num_sentences=3, num_topics=6, horizon=2)
    task = env.default_params
    state = state_of(mentions)
    np.testing.assert_allclose(led(summarisation.greedy_action, env)(state, task), 5 / 6, rtol=1e-6)
    np.testing.assert_allclose(led(summarisation.optimal_action, env)(state, task), 1, rtol=1e-6)


def uniform(family):
    return Learner(
        init=lambda key, meta: (),
        memory=lambda meta: (),
        act=lambda key, meta, agent, memory, t: (family.random_action(key), jnp.zeros(()), memory),
        update=lambda key, meta, agent, data: agent,
    )


@functools.cache
def wander(family, num_steps):
    learner = uniform(family)

    def act(key, task):
        stream = begin_stream(key, None, task, learner=learner, env=family.env)
        return rollout(
            key, None, task, (), stream, learner=learner, env=family.env, num_steps=num_steps
        )[1]

    return jax.jit(jax.vmap(act))


def test_rollouts_are_their_key_s_and_their_task_s():
    """A task outlives episodes: all rewards are by its own weights."""
    family = tasks.make("summarisation")
    keys = jax.random.split(jax.random.key(0), 64)
    drawn = tasks.sample_tasks(jax.random.key(1), family, 64, split="train")
    data = wander(family, 9)(keys, drawn)
    jax.tree.map(np.testing.assert_array_equal, data, wander(family, 9)(keys, drawn))
    assert data.last.tolist() == [[False, False, True] * 3] * 64
    assert jnp.all(data.discount == 1)
    before, after = (
        jax.vmap(jax.vmap(family.env.seen))(x) for x in (data.timestep.obs, data.next_obs)
    )
    gained = jnp.einsum("bti,bi->bt", after.covered - before.covered, drawn.weight)
    np.testing.assert_allclose(data.reward, gained, atol=1e-6)
    assert data.timestep.obs.shape == (64, 9, *family.observation_shape)
    assert jnp.all((data.next_obs >= 0) & (data.next_obs <= 1))
    # Documents change with the episode, and not within it.
    same = jnp.all(before.mentions[:, 1:] == before.mentions[:, :-1], axis=(2, 3))
    assert np.array_equal(same, ~np.asarray(data.last[:, :-1]))


def test_documents_mention_topics_as_often_as_they_say():
    env = Summarisation(num_sentences=50, num_topics=6)
    reset = jax.jit(jax.vmap(lambda key: env.reset_env(key, env.default_params)[1].mentions))
    mentions = np.asarray(reset(jax.random.split(jax.random.key(0), 400)))
    count = mentions.sum(-1).reshape(-1)
    assert count.min() == 1
    p = summarisation.MENTION_PROBABILITY
    binomial = np.array([math.comb(6, k) * p**k * (1 - p) ** (6 - k) for k in range(7)])
    expected = [0, binomial[0] + binomial[1], *binomial[2:]]
    np.testing.assert_allclose(np.bincount(count, minlength=7) / count.size, expected, atol=0.015)
    np.testing.assert_allclose(mentions.mean((0, 1)), mentions.mean(), atol=0.015)


def test_weights_of_each_split():
    family = tasks.make("summarisation")
    heaviest = {}
    for split in tasks.SPLITS:
        weight = tasks.sample_tasks(jax.random.key(0), family, 4000, split=split).weight
        assert weight.shape == (4000, 6)
        assert weight.min() >= 0
        np.testing.assert_allclose(weight.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(weight.mean(0), 1 / 6, atol=0.015)
        heaviest[split] = float(weight.max(1).mean())
    np.testing.assert_allclose(heaviest["train"], 0.50, atol=0.01)
    np.testing.assert_allclose(heaviest["test"], 0.50, atol=0.01)
    np.testing.assert_allclose(heaviest["out_of_distribution"], 0.24, atol=0.01)


def test_a_document_as_text():
    mentions = [[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]
    obs = SMALL._observed(state_of(mentions, [False, False, True, False], 1))
    assert summarisation.text(obs, env=SMALL).splitlines() == [
        "  0: politics, art",
        "  1: economy",
        "* 2: science, sport",
        "  3: sport",
    ]
    many = Summarisation(num_sentences=1, num_topics=10, horizon=1)
    obs = many._observed(state_of(np.eye(1, 10, 9)))
    assert summarisation.text(obs, env=many) == "  0: topic 9"


def test_types_are_kept_where_float_is_float64(x64):
    family = tasks.make("summarisation")
    task = family.train(jax.random.key(0))
    obs, state = family.env.reset_env(jax.random.key(1), task)
    action = family.optimal_action(task, obs)
    next_obs, successor, reward, *_ = family.env.step_env(jax.random.key(2), state, action, task)
    assert obs.dtype == next_obs.dtype == reward.dtype == task.weight.dtype == jnp.float64
    assert action.dtype == family.expert_action(task, obs).dtype == jnp.int32
    assert state.time.dtype == successor.time.dtype == jnp.int32
    assert not any(x.weak_type for x in (task.weight, reward, successor.time))


def test_settings_of_the_family():
    assert Summarisation(9) == Summarisation(9)
    assert hash(Summarisation(9)) == hash(Summarisation(9))
    assert Summarisation(9) != Summarisation(8)
    assert tasks.make("summarisation", num_sentences=40, horizon=6).optimal_action is None
    with pytest.raises(ValueError, match="horizon=4 must be at most num_sentences=3"):
        tasks.make("summarisation", num_sentences=3, horizon=4)
    with pytest.raises(ValueError, match="num_topics=0 must be at least 1"):
        tasks.make("summarisation", num_topics=0)


def test_a_softmax_linear_policy_is_of_the_topics_newly_covered():
    """What `policy="softmax_linear"` builds acts by φ(s, a)·θ, with a weight for each topic."""
    family = tasks.make("summarisation")
    algorithm = maml(family, Config(policy="softmax_linear"))
    meta = algorithm.init(jax.random.key(0)).meta
    assert meta.params["theta"].shape == (6,)
    learner, task = algorithm.learner, family.test(jax.random.key(1))
    theta = 1000.0 * task.weight
    meta = meta._replace(params={"theta": theta})
    agent, memory = learner.init(jax.random.key(2), meta), learner.memory(meta)
    for seed in range(5):
        obs, _ = family.env.reset_env(jax.random.key(10 + seed), task)
        seen = TimeStep(obs, jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.asarray(True))
        action, *_ = learner.act(jax.random.key(3), meta, agent, memory, seen)
        scores = summarisation.features(obs, env=family.env) @ theta
        assert scores[action] > scores.max() - 1
