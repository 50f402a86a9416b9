import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta import evaluation, tasks
from jaxmeta.rollout import begin_stream, rollout
from jaxmeta.tasks.bandits import Bandit, BanditParams, BanditState
from tests.probes import constant_learner

NAMES = ["bernoulli_bandit", "gaussian_bandit", "dependent_bandit"]
MEAN, DRAWS = (0.1, 0.55, 0.9), 20_000
TASK = BanditParams(mean=jnp.array(MEAN))
START = BanditState(time=jnp.array(3))


def pulls(env, task=TASK):
    """Every arm pulled often from the same state: rewards ``[A, DRAWS]`` and all that comes with them."""
    keys = jax.random.split(jax.random.key(1), (len(MEAN), DRAWS))
    step = lambda key, arm: env.step_env(key, START, arm, task)  # noqa: E731
    return jax.jit(jax.vmap(jax.vmap(step, (0, None))))(keys, jnp.arange(len(MEAN)))


def test_a_pull_pays_one_as_often_as_its_arm_says():
    obs, state, rewards, terminated, _ = pulls(Bandit(len(MEAN)))
    assert jnp.all(obs == jnp.ones((1, 1, 1)))
    assert jnp.all(state.time == 4)
    assert not terminated.any()
    assert set(np.unique(rewards)) == {0.0, 1.0}
    for won, mean in zip(np.asarray(rewards).sum(1), MEAN, strict=True):
        assert scipy.stats.binomtest(int(won), DRAWS, mean).pvalue > 1e-4


def test_a_gaussian_pull_pays_its_arm_s_mean_and_noise():
    rewards = pulls(Bandit(len(MEAN), reward="gaussian", reward_noise=0.7))[2]
    noise = (np.asarray(rewards) - np.array(MEAN)[:, None]) / 0.7
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-4
    exact = pulls(Bandit(len(MEAN), reward="gaussian", reward_noise=0.0))[2]
    assert jnp.array_equal(exact, jnp.broadcast_to(TASK.mean[:, None], exact.shape))


def means(name, split, **settings):
    family = tasks.make(name, **settings)
    drawn = jax.jit(lambda key: tasks.sample_tasks(key, family, 2000, split=split))
    return np.asarray(drawn(jax.random.key(0)).mean)


def is_drawn_from(x, law):
    """Every arm on its own has the law, and no two arms tell of each other."""
    assert all(scipy.stats.kstest(arm, law.cdf).pvalue > 1e-4 for arm in x.T)
    correlation = np.corrcoef(x.T)
    return np.abs(correlation[np.triu_indices_from(correlation, 1)]).max() < 4 / len(x) ** 0.5


@pytest.mark.parametrize("split", tasks.SPLITS)
def test_independent_arms_of_each_split(split):
    shifted = split == "out_of_distribution"
    assert is_drawn_from(
        means("bernoulli_bandit", split), scipy.stats.uniform(0, 0.5 if shifted else 1)
    )
    assert is_drawn_from(
        means("gaussian_bandit", split), scipy.stats.norm(2.0 if shifted else 0.0, 1)
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_arms_of_each_kind(split):
    x = means("dependent_bandit", split)  # "uniform"
    assert scipy.stats.kstest(x[:, 0], "uniform").pvalue > 1e-4
    np.testing.assert_allclose(x.sum(1), 1, atol=1e-6)
    assert is_drawn_from(means("dependent_bandit", split, kind="independent"), scipy.stats.uniform)
    for kind, worse in (("easy", 0.1), ("medium", 0.25), ("hard", 0.4)):
        assert_either_order(means("dependent_bandit", split, kind=kind), worse)


@pytest.mark.parametrize("kind", ["uniform", "easy", "medium", "hard", "independent"])
def test_dependent_arms_out_of_distribution(kind):
    x = means("dependent_bandit", "out_of_distribution", kind=kind)
    assert_either_order(x, 0.1 if kind == "hard" else 0.4)


def assert_either_order(x, worse):
    np.testing.assert_allclose(np.sort(x), np.tile([worse, 1 - worse], (len(x), 1)), rtol=1e-6)
    first = int((x[:, 0] < x[:, 1]).sum())
    assert scipy.stats.binomtest(first, len(x)).pvalue > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_best_arm_earns_the_optimal_return(name):
    """Exactly without noise; on average with it."""
    family = tasks.make(name, num_pulls=6)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 3, split="test")
    optimal = jax.vmap(family.optimal_return)(drawn)
    np.testing.assert_allclose(optimal, 6 * np.max(drawn.mean, axis=1), rtol=1e-6)
    arms = jax.vmap(family.optimal_action, (0, None))(drawn, jnp.ones(1))
    assert jnp.array_equal(arms, np.argmax(drawn.mean, axis=1))
    assert arms.dtype == jnp.int32

    def earned(task, key):
        learner = constant_learner(action=family.optimal_action(task, jnp.ones(1)))
        stream = begin_stream(key, None, task, learner=learner, env=family.env)
        _, data = rollout(key, None, task, (), stream, learner=learner, env=family.env, num_steps=6)
        return data.reward.sum(), data.last, data.discount

    keys = jax.random.split(jax.random.key(1), 2000)
    returns, last, discount = jax.jit(jax.vmap(jax.vmap(earned, (None, 0)), (0, None)))(drawn, keys)
    # A pull's variance is at most 1.
    np.testing.assert_allclose(returns.mean(1), optimal, atol=4 * (6 / 2000) ** 0.5)
    assert np.all(np.asarray(last) == np.array([0, 0, 0, 0, 0, 1], bool))
    assert np.all(discount == 1)  # a time limit is no termination


def test_the_family_s_optimum_is_what_evaluation_reports():
    family = tasks.make("dependent_bandit", kind="easy", num_pulls=10)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 4, split="test")
    optimal = evaluation.optimal_returns(jax.random.key(1), drawn, family=family)
    np.testing.assert_allclose(optimal, 9.0, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_float64_where_float_is(name, x64):
    family = tasks.make(name, num_pulls=2)
    for split in tasks.SPLITS:
        task = getattr(family, split)(jax.random.key(0))
        assert task.mean.dtype == jnp.float64
        assert not task.mean.weak_type
    learner = constant_learner()
    stream = begin_stream(jax.random.key(1), None, task, learner=learner, env=family.env)
    reward = family.env.step_env(jax.random.key(2), stream.env_state, jnp.array(1), task)[2]
    assert reward.dtype == stream.timestep.obs.dtype == jnp.float64
    assert family.optimal_return(task).dtype == jnp.float64
    assert family.optimal_action(task, stream.timestep.obs).dtype == jnp.int32


def test_settings_reach_the_environment():
    assert tasks.make("bernoulli_bandit", num_arms=7, num_pulls=3).env == Bandit(7, 3)
    gaussian = tasks.make("gaussian_bandit", num_arms=7, num_pulls=3, reward_noise=0.2)
    assert gaussian.env == Bandit(7, 3, "gaussian", 0.2)
    dependent = tasks.make("dependent_bandit")
    assert dependent.env == Bandit(2, 100)
    assert dependent.horizon == 100
    assert hash(Bandit(7, 3)) == hash(Bandit(7, 3))
    assert Bandit(7, 3) != Bandit(7, 4)
    assert dependent.action_space.n == 2


@pytest.mark.parametrize("name", NAMES)
@given(size=st.integers(max_value=0))
def test_sizes_below_one_are_named(name, size):
    settings = {"num_pulls"} if name == "dependent_bandit" else {"num_pulls", "num_arms"}
    for setting in settings:
        with pytest.raises(ValueError, match=f"{setting}={size} must be at least 1"):
            tasks.make(name, **{setting: size})


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("bernoulli_bandit", dict(num_arms=2.0), TypeError, "num_arms=2.0 must be an integer"),
        (
            "gaussian_bandit",
            dict(reward_noise=-1.0),
            ValueError,
            "reward_noise=-1.0 must lie between 0",
        ),
        ("gaussian_bandit", dict(reward_noise=float("nan")), ValueError, "reward_noise=nan must"),
        ("dependent_bandit", dict(kind="esay"), ValueError, "kind='esay' is unknown: did you mean"),
    ],
)
def test_bad_settings_are_named(name, settings, error, message):
    with pytest.raises(error, match=message):
        tasks.make(name, **settings)
