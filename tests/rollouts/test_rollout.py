import inspect

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnax.wrappers import FlattenObservationWrapper, StickyActionWrapper

from jaxmeta import tasks
from jaxmeta.estimators import exact
from jaxmeta.networks.distributions import Categorical
from jaxmeta.rollouts.lifetime import Setup, lifetime
from jaxmeta.rollouts.rollout import begin_stream, rollout
from jaxmeta.tasks import keys
from jaxmeta.tasks.tabular import Tabular, TabularParams
from jaxmeta.types import Learner
from tests.probes import (
    EVERY_FAMILY,
    Counter,
    CounterParams,
    constant_learner,
    made,
    random_learner,
)

ENV = Counter()


def act_in(env, task, learner, *, num_steps, key=0, stream=None, meta=None, agent=()):
    @jax.jit
    def act(key, stream):
        begin_key, key = jax.random.split(key)
        if stream is None:
            stream = begin_stream(begin_key, meta, task, learner=learner, env=env)
        return rollout(
            key, meta, task, agent, stream, learner=learner, env=env, num_steps=num_steps
        )

    return act(jax.random.key(key), stream)


def test_episode_ends_are_recorded_and_the_stream_goes_on():
    _, data = act_in(ENV, CounterParams(), constant_learner(), num_steps=10)
    assert data.timestep.obs[:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert data.next_obs[:, 0].tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert data.last.tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0]
    assert data.discount.tolist() == [1, 1, 1, 0, 1, 1, 1, 0, 1, 1]
    assert data.timestep.first.tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0]
    # The previous action and reward are shown across the end of an episode too.
    assert data.timestep.action.tolist() == [0] + [1] * 9
    assert data.timestep.reward.tolist() == [0] + [8] * 9
    assert data.reward.tolist() == [8] * 10
    assert data.memory == 0


@pytest.mark.parametrize(
    ("terminate_at", "truncate_at", "discounts"),
    [(99, 3, [1, 1, 1]), (3, 99, [1, 1, 0]), (3, 3, [1, 1, 0])],
    ids=["truncated", "terminated", "both: terminated wins"],
)
def test_only_termination_ends_the_discount(terminate_at, truncate_at, discounts):
    task = CounterParams(terminate_at=terminate_at, truncate_at=truncate_at)
    _, data = act_in(ENV, task, constant_learner(), num_steps=3)
    assert data.discount.tolist() == discounts
    assert data.last.tolist() == [0, 0, 1]


def test_a_rollout_continues_where_the_last_one_stopped():
    learner = constant_learner()
    stream, first = act_in(ENV, CounterParams(), learner, num_steps=6)
    stream, second = act_in(ENV, CounterParams(), learner, num_steps=6, stream=stream)
    assert first.timestep.obs[:, 0].tolist() == [0, 1, 2, 3, 0, 1]
    assert second.timestep.obs[:, 0].tolist() == [2, 3, 0, 1, 2, 3]
    # This learner's memory outlives episodes; the rollout does not clear it.
    assert second.memory == 6
    assert stream.memory == 12


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_reset_never_changes_the_task(name):
    """Steps on the drawn task and on the task read back after many resets agree; physics are leaves."""
    settings = inspect.signature(tasks.FAMILIES[name]).parameters
    limits = {"horizon": 3, "num_pulls": 3, "length": 2}
    family = made(name, **{x: limits[x] for x in limits.keys() & settings})

    def visits(task):
        learner = uniform(family)
        stream = begin_stream(jax.random.key(0), None, task, learner=learner, env=family.env)
        return rollout(
            jax.random.key(1), None, task, (), stream, learner=learner, env=family.env, num_steps=12
        )[1]

    @jax.jit
    def visited(key):
        drawn = tasks.sample_tasks(key, family, 4, split="train")
        return drawn, jax.vmap(visits)(drawn)

    drawn, data = visited(jax.random.key(3))
    assert np.sum(data.timestep.first) >= 4 * 4
    # Every recorded transition, before and after resets, is one of this task's own dynamics.
    again = jax.jit(jax.vmap(lambda *task: replay_transitions(family.env, *task)))
    successors = again(drawn, data.action, data.last)
    np.testing.assert_allclose(successors, data.next_obs, atol=1e-5)


def uniform(family):
    return Learner(
        init=lambda key, meta: (),
        memory=lambda meta: (),
        act=lambda key, meta, agent, memory, t: (family.random_action(key), jnp.zeros(()), memory),
        update=lambda key, meta, agent, data: agent,
    )


def replay_transitions(env, task, actions, last):
    """The successor that each recorded action has, stepping from each episode's start."""
    _, step_key, reset_key = jax.random.split(jax.random.key(1), 3)

    def step(state, inputs):
        t, action, ends = inputs
        obs, after, _, _, _ = env.step_env(keys.at_step(step_key, t), state, action, task)
        begun = env.reset_env(keys.at_step(reset_key, t), task)[1]
        return jax.tree.map(lambda new, old: jnp.where(ends, new, old), begun, after), obs

    state = env.reset_env(jax.random.key(0), task)[1]
    return jax.lax.scan(step, state, (jnp.arange(12), actions, last))[1]


def test_transitions_are_those_of_gymnax_step():
    """CartPole, stepped through gymnax's own auto-resetting ``step`` with the same actions and states."""
    env, params = gymnax.make("CartPole-v1")
    learner = uniform(tasks.make("cartpole"))
    _, data = act_in(env, params, learner, num_steps=60)
    assert int(data.last.sum()) >= 1
    _, state = env.reset(jax.random.key(0), params)
    data = jax.tree.map(np.asarray, data)
    step = jax.jit(env.step)
    for t in range(60):
        x, x_dot, theta, theta_dot = data.timestep.obs[t]
        state = state.replace(x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot)
        _, state, reward, terminated, _, info = step(
            jax.random.key(t), state, data.action[t], params
        )
        np.testing.assert_allclose(
            info["final_observation"], data.next_obs[t], rtol=1e-5, atol=1e-6
        )
        assert reward == data.reward[t]
        assert bool(terminated) == (data.discount[t] == 0)


def test_no_gradient_comes_out_of_acting():
    learner = Learner(
        init=lambda key, meta: meta,
        memory=lambda meta: (),
        act=lambda key, meta, agent, memory, t: (agent * t.obs, agent.sum(), memory),
        update=lambda key, meta, agent, data: agent,
    )
    family = tasks.make("navigation", horizon=5)

    def total(agent):
        task = family.train(jax.random.key(0))
        stream = begin_stream(jax.random.key(1), agent, task, learner=learner, env=family.env)
        _, data = rollout(
            jax.random.key(2),
            agent,
            task,
            agent,
            stream,
            learner=learner,
            env=family.env,
            num_steps=5,
        )
        return data.reward.sum() + data.log_prob.sum() + data.action.sum()

    assert np.all(np.asarray(jax.jit(jax.grad(total))(jnp.ones(2))) == 0)


def test_streams_and_steps_draw_different_numbers():
    learner = random_learner()
    _, data = act_in(ENV, CounterParams(), learner, num_steps=200)
    _, other = act_in(ENV, CounterParams(), learner, num_steps=200, key=1)
    counts = np.bincount(data.action, minlength=3)
    assert counts.min() > 40
    assert not jnp.array_equal(data.action, other.action)


@pytest.mark.parametrize("unroll", [1, 4])
def test_integer_observations_and_rewards_become_floats(unroll):
    """FrozenLake observes an int32 scalar; the types hold with the loop unrolled, too."""
    env, params = gymnax.make("FrozenLake-misc")
    learner = Learner(
        init=lambda key, meta: (),
        memory=lambda meta: (),
        act=lambda key, meta, agent, memory, t: (
            jax.random.randint(key, (), 0, 4),
            jnp.zeros(()),
            memory,
        ),
        update=lambda key, meta, agent, data: agent,
    )

    @jax.jit
    def act():
        stream = begin_stream(jax.random.key(0), None, params, learner=learner, env=env)
        return rollout(
            jax.random.key(1),
            None,
            params,
            (),
            stream,
            learner=learner,
            env=env,
            num_steps=30,
            unroll=unroll,
        )[1]

    data = jax.tree.map(np.asarray, act())
    assert data.timestep.obs.shape == (30,)
    assert data.timestep.obs.dtype == data.reward.dtype == data.discount.dtype == jnp.float32
    assert data.action.dtype == jnp.int32
    assert data.last.sum() >= 1
    # Where no episode ended, the next observation is the successor.
    inside = ~data.last[:-1]
    assert np.array_equal(data.timestep.obs[1:][inside], data.next_obs[:-1][inside])


def test_no_key_is_used_twice():
    family = tasks.make("cartpole", horizon=4)
    learner = uniform(family)
    with jax.debug_key_reuse(True):
        task = family.train(jax.random.key(0))
        stream = begin_stream(jax.random.key(1), None, task, learner=learner, env=family.env)
        jax.jit(
            lambda key, stream: rollout(
                key, None, task, (), stream, learner=learner, env=family.env, num_steps=3
            )
        )(jax.random.key(2), stream)

        def twice(key):
            return jax.random.uniform(key) + jax.random.normal(key)

        with pytest.raises(jax.errors.KeyReuseError):  # the checker is awake
            jax.jit(twice)(jax.random.key(0))


# The law of what is sampled: every path of a small MDP as often as its probability says.
S, A, H, STREAMS = 2, 2, 3, 200_000
STATES, ACTIONS = exact.trajectories(S, A, H)  # [64, H]
# A policy [S, A] for before the update, and one for after it.
LOGITS = jnp.array([[[0.4, -0.6], [-0.2, 0.5]], [[-0.7, 0.3], [0.6, 0.1]]])
TASK = TabularParams(
    transition=jnp.array([[[0.3, 0.7], [0.6, 0.4]], [[0.8, 0.2], [0.45, 0.55]]]),
    reward=jnp.array([[1.0, -2.0], [0.5, 3.0]]),
    initial=jnp.array([0.3, 0.7]),
)


def softmax_learner(draw_key):
    """Acts by one table of logits, after an update by another; memory is the key of the first step."""

    def act(key, logits, agent, memory, timestep):
        pi = Categorical(timestep.obs @ agent)
        memory = jnp.where(timestep.first, jax.random.key_data(key), memory)
        action = pi.sample(draw_key(key, memory))
        return action, pi.log_prob(action), memory

    return Learner(
        init=lambda key, logits: logits[0],
        memory=lambda logits: jnp.zeros(2, jnp.uint32),
        act=act,
        update=lambda key, logits, agent, data: logits[1],
    )


def lived(draw_key, num_streams, restart=False):
    """Two rounds of two episodes each: what was seen ``[2, N, 2, H]``, and the path's index ``[2, N, 2]``."""
    env = Tabular(S, A, H, reward_noise=0.0)
    setup = Setup(softmax_learner(draw_key), env, num_streams, num_steps=2 * H)
    history = jax.jit(
        lambda key: lifetime(key, LOGITS, TASK, setup=setup, num_updates=1, restart=restart)
    )(jax.random.key(2))
    data = history.trajectories
    seen = data.timestep.obs.argmax(-1), data.action, data.reward, data.log_prob, data.last
    seen = [np.asarray(x).reshape(2, num_streams, 2, H) for x in seen]
    states, actions = seen[:2]
    return seen, (states * A + actions) @ (S * A) ** np.arange(H)[::-1]


@pytest.fixture(scope="module")
def life():
    return lived(lambda key, memory: key, STREAMS)


def expected(logits):
    mdp = exact.MDP(TASK.transition, TASK.reward, TASK.initial, jnp.ones(()))
    p = exact.probabilities(mdp, jax.nn.softmax(logits), STATES, ACTIONS)
    return np.asarray(p, np.float64) / np.asarray(p, np.float64).sum()


def p_value(paths, probabilities):
    """Pearson's chi-square test of the counts of paths."""
    counts = np.bincount(paths.ravel(), minlength=probabilities.size)
    assert (paths.size * probabilities).min() > 5
    return scipy.stats.chisquare(counts, paths.size * probabilities).pvalue


@pytest.mark.parametrize("episode", [0, 1], ids=["first episode", "after a reset"])
@pytest.mark.parametrize("round", [0, 1], ids=["newborn", "after the update"])
def test_paths_are_as_frequent_as_their_exact_probabilities(life, round, episode):
    _, paths = life
    assert p_value(paths[round, :, episode], expected(LOGITS[round])) > 1e-4


def test_streams_that_begin_anew_have_the_law_too():
    _, paths = lived(lambda key, memory: key, STREAMS // 4, restart=True)
    for round, episode in np.ndindex(2, 2):
        assert p_value(paths[round, :, episode], expected(LOGITS[round])) > 1e-4


def test_the_law_s_test_rejects_a_policy_that_is_slightly_off(life):
    _, paths = life
    other = LOGITS[0].at[1, 0].add(0.05)
    assert np.abs(jax.nn.softmax(other) - jax.nn.softmax(LOGITS[0])).max() < 0.0125
    assert p_value(paths[0, :, 0], expected(other)) < 1e-10
    assert p_value(paths[1, :, 0], expected(LOGITS[0])) < 1e-10


def test_the_law_s_test_rejects_a_key_that_is_used_at_every_step():
    _, paths = lived(lambda key, memory: jax.random.wrap_key_data(memory), STREAMS // 10)
    assert p_value(paths[0, :, 0], expected(LOGITS[0])) < 1e-10


def test_episodes_rounds_and_streams_are_independent(life):
    """Counts of pairs, of first or last states and actions, against the products of their laws."""
    _, paths = life
    first = expected(LOGITS[0]).reshape(4, 16).sum(1)
    last = expected(LOGITS[0]).reshape(16, 4).sum(0)
    second = expected(LOGITS[1]).reshape(4, 16).sum(1)
    begun, ended = paths // 16, paths % 4
    for one, other, law in (
        (ended[0, :, 0], begun[0, :, 1], np.outer(last, first)),  # an episode and the next
        (begun[0, :, 0], begun[1, :, 0], np.outer(first, second)),  # a round and the next
        (begun[0, :, 1], begun[1, :, 0], np.outer(first, second)),  # a reset and the next
        (begun[0, ::2, 0], begun[0, 1::2, 0], np.outer(first, first)),  # a stream and the next
    ):
        assert p_value(4 * one + other, law.ravel()) > 1e-4


def test_what_is_recorded_is_exact(life):
    (states, actions, rewards, log_probs, last), _ = life
    for round in range(2):
        log_pi = np.asarray(jax.nn.log_softmax(LOGITS[round]))
        np.testing.assert_allclose(
            log_probs[round], log_pi[states[round], actions[round]], rtol=1e-5
        )
    np.testing.assert_array_equal(rewards, np.asarray(TASK.reward)[states, actions])
    assert last[..., -1].all()
    assert not last[..., :-1].any()


def test_an_environment_that_has_only_step_is_stepped_by_it():
    """gymnax's wrappers hand on ``step_env`` of what they wrap, which would leave them out without a word."""
    inner, task = gymnax.make("Catch-bsuite")
    flat = FlattenObservationWrapper(inner)
    still = StickyActionWrapper(flat, sticky_action_prob=1.0)  # its first action, 0, for ever
    learner = random_learner()
    stream, data = act_in(still, task, learner, num_steps=20)
    assert data.timestep.obs.shape == data.next_obs.shape == (20, 50)
    assert data.last.tolist() == ([False] * 8 + [True]) * 2 + [False] * 2
    assert set(data.action.tolist()) == {0, 1, 2}
    # The paddle starts in the middle of the last row and goes left.
    paddle = [int(row[-5:].argmax()) for row in data.next_obs[:5]]
    assert paddle == [1, 0, 0, 0, 0]
    # After an episode's end the next one's start is seen, and the successor is the old one's end.
    np.testing.assert_array_equal(data.timestep.obs[1:9], data.next_obs[:8])
    assert data.timestep.obs[9, :5].sum() == 1
    assert data.next_obs[8, :45].sum() == 0
    np.testing.assert_array_equal(
        inner.get_obs(stream.env_state.env_state).reshape(-1), stream.timestep.obs
    )
