import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxmeta import tasks
from jaxmeta.rollouts.rollout import begin_stream, rollout
from jaxmeta.tasks.tabular import Tabular, TabularState, state_values
from tests.probes import constant_learner

S, A, DRAWS = 3, 2, 20_000


def drawn_task(key=0):
    """A task of three states and two actions, with a first state that is drawn, too."""
    family = tasks.make("tabular", num_states=S, num_actions=A)
    return family.train(jax.random.key(key)).replace(initial=jnp.array([0.2, 0.5, 0.3]))


def test_transitions_and_rewards_have_the_law_of_the_task():
    env, task = Tabular(S, A, reward_noise=0.7), drawn_task()
    states, actions = jnp.array(list(itertools.product(range(S), range(A)))).T

    def step(state, action, key):
        state = TabularState(state=state, time=jnp.array(4))
        return env.step_env(key, state, action, task)

    keys = jax.random.split(jax.random.key(1), (S * A, DRAWS))
    obs, successors, rewards, terminated, _ = jax.jit(
        jax.vmap(jax.vmap(step, (None, None, 0)), (0, 0, 0))
    )(states, actions, keys)

    assert not terminated.any()
    assert jnp.all(successors.time == 5)
    assert jnp.array_equal(obs, jax.nn.one_hot(successors.state, S))
    observed = np.stack([np.bincount(row, minlength=S) for row in np.asarray(successors.state)])
    expected = DRAWS * np.asarray(task.transition, np.float64).reshape(S * A, S)
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert scipy.stats.chi2.sf(statistic, S * A * (S - 1)) > 1e-4
    noise = (rewards - task.reward.reshape(-1, 1)) / 0.7
    assert scipy.stats.kstest(np.asarray(noise).ravel(), "norm").pvalue > 1e-4
    # Where a step leads says nothing about the noise of its reward.
    for row, state in zip(np.asarray(noise), np.asarray(successors.state), strict=True):
        assert abs(np.corrcoef(row, state)[0, 1]) < 4 / DRAWS**0.5


def test_first_states_have_the_law_of_the_task():
    env, task = Tabular(S, A), drawn_task()
    keys = jax.random.split(jax.random.key(1), DRAWS)
    obs, state = jax.jit(jax.vmap(env.reset_env, (0, None)))(keys, task)
    assert jnp.array_equal(obs, jax.nn.one_hot(state.state, S))
    assert jnp.all(state.time == 0)
    expected = DRAWS * np.array([0.2, 0.5, 0.3])
    assert scipy.stats.chisquare(np.bincount(state.state), expected).pvalue > 1e-4


def test_without_noise_rewards_are_the_table_s():
    env, task = Tabular(S, A, reward_noise=0.0), drawn_task()
    state = TabularState(state=jnp.array(2), time=jnp.array(0))
    reward = env.step_env(jax.random.key(0), state, jnp.array(1), task)[2]
    assert reward == task.reward[2, 1]


def test_an_episode_ends_at_the_horizon():
    env, task = Tabular(horizon=3), Tabular(horizon=3).default_params
    at = lambda time: TabularState(state=jnp.array(0), time=jnp.array(time))  # noqa: E731
    assert not env.is_truncated(at(2), task)
    assert env.is_truncated(at(3), task)


def test_tasks_of_each_split():
    """Of a Dirichlet with concentration α each entry is Beta(α, α (S - 1)); rewards are N(1, 1)."""
    family = tasks.make("tabular")
    for split, concentration in (("train", 1.0), ("test", 1.0), ("out_of_distribution", 0.1)):
        task = tasks.sample_tasks(jax.random.key(0), family, 200, split=split)
        assert task.transition.shape == (200, 10, 5, 10)
        np.testing.assert_allclose(task.transition.sum(-1), 1, atol=1e-6)
        law = scipy.stats.beta(concentration, 9 * concentration).cdf
        one = np.asarray(task.transition[..., 3]).ravel()
        assert scipy.stats.kstest(one, law).pvalue > 1e-4
        assert scipy.stats.kstest(task.reward.ravel(), scipy.stats.norm(1).cdf).pvalue > 1e-4
        assert jnp.all(task.initial == jnp.eye(10)[:1])


def test_optimal_return_is_that_of_the_best_policy_of_all():
    """Two states, two actions, three steps: 64 policies that may look at the time."""
    family = tasks.make("tabular", num_states=2, num_actions=2, horizon=3)
    drawn = family.train(jax.random.key(3))
    task = jax.tree.map(np.asarray, drawn)

    def earned(policy):
        occupancy, total = task.initial, 0.0
        for actions in policy:
            total += occupancy @ task.reward[[0, 1], actions]
            occupancy = occupancy @ task.transition[[0, 1], actions]
        return total

    rules = itertools.product(range(2), repeat=2)
    best = max(earned(policy) for policy in itertools.product(list(rules), repeat=3))
    np.testing.assert_allclose(family.optimal_return(drawn), best, rtol=1e-6)


def test_everything_is_float64_where_float_is(x64):
    family = tasks.make("tabular", num_states=S, num_actions=A, horizon=2)
    task = family.train(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(task)} == {jnp.dtype(jnp.float64)}
    learner = constant_learner()
    stream = begin_stream(jax.random.key(1), None, task, learner=learner, env=family.env)
    _, data = rollout(
        jax.random.key(2), None, task, (), stream, learner=learner, env=family.env, num_steps=5
    )
    assert data.reward.dtype == data.timestep.obs.dtype == data.next_obs.dtype == jnp.float64
    assert data.last.tolist() == [False, True, False, True, False]
    assert family.optimal_return(task).dtype == jnp.float64


def test_equal_settings_are_equal_environments():
    assert Tabular(horizon=5) == Tabular(horizon=5)
    assert hash(Tabular(horizon=5)) == hash(Tabular(horizon=5))
    assert Tabular(horizon=5) != Tabular(horizon=6)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(num_states=0), ValueError, "num_states=0 must be at least 1"),
        (dict(num_actions=2.5), TypeError, "num_actions=2.5 must be an integer of at least 1"),
        (dict(reward_noise=-1.0), ValueError, "reward_noise=-1.0 must lie between 0"),
    ],
)
def test_bad_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        tasks.make("tabular", **settings)


def test_values_solve_bellman_s_equation(x64):
    task = tasks.make("tabular").train(jax.random.key(0))
    policy = jax.nn.softmax(jax.random.normal(jax.random.key(1), (10, 5)))
    v = state_values(task, policy, 0.97)
    backup = jnp.sum(policy * (task.reward + 0.97 * task.transition @ v), axis=1)
    np.testing.assert_allclose(v, backup, rtol=1e-10)
    assert jnp.std(v) > 0.1


def test_latent_tasks_have_their_structure_in_common():
    """Rewards are of a space of d + 1 dimensions and transitions mixtures of d kernels, in every split; the
    same seed is the same family."""
    family = tasks.make("latent_tabular", num_latents=2, num_states=6, num_actions=3)
    for split in ("train", "test", "out_of_distribution"):
        task = tasks.sample_tasks(jax.random.key(0), family, 50, split=split)
        assert task.transition.shape == (50, 6, 3, 6)
        np.testing.assert_allclose(task.transition.sum(-1), 1, atol=1e-5)
        rewards = np.asarray(task.reward, np.float64).reshape(50, -1)
        assert np.linalg.matrix_rank(rewards - 1.0, tol=1e-4) == 2
        moves = np.asarray(task.transition, np.float64).reshape(50, -1)
        assert np.linalg.matrix_rank(moves, tol=1e-4) == 2
    spread = [
        float(jnp.std(tasks.sample_tasks(jax.random.key(1), family, 2000, split=s).reward - 1.0))
        for s in ("train", "out_of_distribution")
    ]
    assert spread[1] == pytest.approx(2 * spread[0], rel=0.1)
    again = tasks.make("latent_tabular", num_latents=2, num_states=6, num_actions=3)
    other = tasks.make(
        "latent_tabular", num_latents=2, num_states=6, num_actions=3, structure_seed=1
    )
    key = jax.random.key(2)
    assert jnp.array_equal(family.train(key).transition, again.train(key).transition)
    assert not jnp.allclose(family.train(key).transition, other.train(key).transition)
    with pytest.raises(ValueError, match="num_latents=0 must be at least 1"):
        tasks.make("latent_tabular", num_latents=0)


def test_a_changed_task_differs_in_one_state_and_action():
    family = tasks.make("tabular", num_states=3, num_actions=2)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 200, split="train")
    changed = jax.jit(jax.vmap(family.mutate))(jax.random.split(jax.random.key(1), 200), drawn)
    rows = np.any(np.asarray(changed.transition != drawn.transition), axis=-1)
    means = np.asarray(changed.reward != drawn.reward)
    np.testing.assert_array_equal(rows, means)
    assert np.all(rows.sum(axis=(1, 2)) == 1)
    assert np.all(rows.any(axis=0))  # every place in turn
    np.testing.assert_allclose(np.sum(changed.transition, axis=-1), 1.0, rtol=1e-5)
    anew = np.asarray(changed.reward)[means]
    assert abs(anew.mean() - 1.0) < 0.25
    assert abs(anew.std() - 1.0) < 0.2
    assert tasks.make("latent_tabular").mutate is None
