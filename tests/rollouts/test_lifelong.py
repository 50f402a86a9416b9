import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import rollouts
from jaxmeta.rollouts import lifelong
from jaxmeta.types import History, Learner
from tests.probes import Counter, CounterParams, constant_learner, random_learner


def counter(learner, num_steps=2):
    return rollouts.Setup(learner, Counter(), num_streams=3, num_steps=num_steps)


def task(number):
    """Its episodes have 4 steps."""
    ends = (jnp.full(jnp.shape(number), x, jnp.int32) for x in (4, 1000))
    return CounterParams(jnp.asarray(number, float), *ends)


def born(setup, *, number=7.0, meta=0.5):
    return lifelong.birth(jax.random.key(0), meta, task(number), setup=setup)


def test_a_newborn_is_at_the_start_of_everything():
    life = born(counter(constant_learner()))
    assert life.agent == 0
    assert life.age == 0
    assert life.age.dtype == jnp.int32
    assert life.streams.timestep.first.tolist() == [True] * 3
    assert life.task.number == 7


def test_a_life_goes_on_where_it_was():
    """Two windows of two updates are one of four, but for the keys: streams, episodes and ages go on."""
    setup = counter(constant_learner(), num_steps=3)
    live = lambda life, n: lifelong.live(  # noqa: E731
        jax.random.key(1), None, life, setup=setup, num_updates=n
    )
    once, history = live(born(setup), 4)
    half, first = live(born(setup), 2)
    twice, second = live(half, 2)
    assert (once.agent, half.agent, twice.agent) == (4, 2, 4)
    assert (once.age, half.age, twice.age) == (4, 2, 4)
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), first, second)
    for x, y in zip(jax.tree.leaves(history), jax.tree.leaves(both), strict=True):
        np.testing.assert_array_equal(x, y)
    assert history.agent.tolist() == [0, 1, 2, 3]
    assert once.age.dtype == jnp.int32


def test_after_a_window_its_agent_shows_what_it_does():
    """The window, and one more round of experience from which nothing was learned."""
    setup, meta = counter(random_learner()), 0.5
    live_key, show_key = jax.random.split(jax.random.key(1))
    shown, history = lifelong.live_and_show(
        (live_key, show_key), meta, born(setup), setup=setup, num_updates=2
    )
    life, window = lifelong.live(live_key, meta, born(setup), setup=setup, num_updates=2)
    streams, after = rollouts.collect(
        show_key, meta, life.task, life.agent, life.streams, setup=setup
    )
    parts = (
        (shown, life._replace(streams=streams)),
        (jax.tree.map(lambda x: x[:2], history), window),
        (jax.tree.map(lambda x: x[2], history), History(life.agent, after)),
    )
    for found, expected in parts:
        for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_array_equal(x, y)
    assert history.trajectories.reward.shape == (3, 3, 2)


def test_who_is_over_is_followed_by_a_newborn_and_nobody_else_is():
    setup = counter(constant_learner())
    lives = jax.vmap(lambda number: born(setup, number=number))(jnp.array([1.0, 2.0, 3.0]))
    lives = lives._replace(age=jnp.array([3, 4, 5], jnp.int32), agent=jnp.array([30.0, 40.0, 50.0]))
    streams = jax.tree.map(lambda x: x, lives.streams._replace(memory=lives.streams.memory + 9))
    lives = lives._replace(streams=streams)
    renew = jax.vmap(
        lambda key, life, task: lifelong.renewed(key, None, life, task, setup=setup, lifespan=4)
    )
    given = task(jnp.array([10.0, 20.0, 30.0]))
    after = jax.jit(renew)(jax.random.split(jax.random.key(0), 3), lives, given)
    assert after.age.tolist() == [3, 0, 0]
    assert after.agent.tolist() == [30, 0, 0]
    assert after.task.number.tolist() == [1, 20, 30]
    assert after.streams.memory.tolist() == [[9] * 3, [0] * 3, [0] * 3]
    assert after.streams.timestep.obs[:, 0, 1].tolist() == [1, 20, 30]
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(lives), strict=True):
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type)


def test_the_derivative_reaches_back_to_the_window_and_no_further(x64):
    """φ ← μ φ + data: two updates are μ² φ + ..., where φ at the window's start is data."""
    setup = counter(random_learner())

    def agents(meta, life):
        after, history = lifelong.live(jax.random.key(2), meta, life, setup=setup, num_updates=2)
        return after.agent, history

    def through_a_life(meta):
        return agents(meta, born(setup, meta=meta))[0]

    meta = 0.5
    life = born(setup, meta=meta)
    _, history = agents(meta, life)
    gained = history.agent[1] - meta * history.agent[0]  # what the first update's data added
    expected = 2 * meta * life.agent + gained
    np.testing.assert_allclose(jax.grad(through_a_life)(meta), expected, rtol=1e-12)


def test_scores_over_windows_of_any_length():
    """Episodes of lengths 1, 3, 4 and one unfinished, cut into windows everywhere."""
    reward = jnp.arange(1.0, 11.0)
    last = jnp.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0], bool)
    returns = np.split(np.arange(1.0, 11.0), [1, 4, 8])
    ended = [0, 3, 7]
    tally = jax.jit(lifelong.tally)
    for cut in range(1, 10):
        score = jax.tree.map(lambda x: x[0], lifelong.no_score(1))
        for start, stop in ((0, cut), (cut, 10)):
            score = tally(score, reward[start:stop], last[start:stop])
            finished = [r.sum() for r, end in zip(returns, ended, strict=False) if end < stop]
            assert score.finished == finished[-1]
        assert score.so_far == returns[-1].sum() == 19
    score = tally(jax.tree.map(lambda x: x[0], lifelong.no_score(1)), reward[1:3], last[1:3])
    assert not score.counts
    assert score.finished == 0
    assert score.so_far == 5


def test_agents_of_any_structure(x64):
    learner = Learner(
        init=lambda key, meta: {"a": jnp.zeros(2), "k": jnp.zeros((), jnp.int32)},
        memory=lambda meta: (),
        act=constant_learner().act,
        update=lambda key, meta, agent, data: {"a": agent["a"] + 1, "k": agent["k"] + 1},
    )
    learner = learner._replace(
        act=lambda key, meta, agent, memory, timestep: (
            jnp.ones((), jnp.int32),
            jnp.zeros(()),
            memory,
        )
    )
    setup = counter(learner)
    life, _ = lifelong.live(jax.random.key(0), None, born(setup), setup=setup, num_updates=3)
    assert life.agent["k"] == 3
    assert life.agent["a"].tolist() == [3, 3]


def test_an_episode_with_a_broken_reward_has_no_return_and_the_next_one_has():
    """Over windows, too: that a reward was broken is forgotten with its episode."""
    score = jax.tree.map(lambda x: x[0], lifelong.no_score(1))
    last = jnp.array([False, True, False])
    score = lifelong.tally(score, jnp.array([1.0, 2.0, jnp.nan]), last)
    assert score.broken
    assert (score.finished, score.counts) == (3, True)
    score = lifelong.tally(score, jnp.array([1.0, 1.0, 5.0]), last)
    assert not score.broken
    assert not score.counts
    assert (score.finished, score.so_far) == (0, 5)
    score = lifelong.tally(score, jnp.array([1.0, 1.0, -jnp.inf]), last)
    assert (score.finished, score.counts) == (7, True)
    assert score.broken
    score = lifelong.tally(score, jnp.ones(3), jnp.zeros(3, bool))
    assert (score.finished, score.counts) == (7, True)
    assert score.broken


def test_the_mean_return_is_of_the_streams_that_have_one():
    score = lifelong.no_score(4)
    mean, count = lifelong.mean_return(score)
    assert (mean, count) == (0, 0)
    assert count.dtype == jnp.int32
    counts = jnp.array([True, False, True, False])
    some = score._replace(finished=jnp.array([1.0, 50.0, 4.0, 50.0]), counts=counts)
    assert lifelong.mean_return(some) == (2.5, 2)
