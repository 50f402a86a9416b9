"""Sampling for learnability: the tasks that are kept, when they are tried, and what that costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from jaxmeta import curricula, tasks
from jaxmeta.algorithms.maml import maml
from jaxmeta.algorithms.rl2 import Config, rl2
from jaxmeta.curricula import SFLConfig
from jaxmeta.networks.recurrent import gru
from jaxmeta.types import TaskResults

EPISODES = 40


@pytest.fixture(scope="module")
def family():
    """A coin whose bias is the task: an episode of one step pays 1 with probability ``task``."""

    def reset(key, task):
        return jnp.zeros(1), jnp.zeros(())

    def step(key, state, action, task):
        paid = jax.random.bernoulli(key, task["p"]).astype(float)
        return jnp.zeros(1), state, paid, jnp.ones((), bool)

    return tasks.from_functions(
        reset,
        step,
        train=lambda key: {"p": jax.random.uniform(key)},
        observation_space=spaces.Box(0.0, 1.0, (1,)),
        action_space=spaces.Discrete(2),
        horizon=1,
    )


@pytest.fixture(scope="module")
def algorithm(family):
    return rl2(family, Config(num_episodes=EPISODES, num_minibatches=1), memory=gru(2))


@pytest.fixture(scope="module")
def run(family, algorithm):
    config = SFLConfig(candidates=60, keeps=10, every=3, trials=2, share=0.5)
    curriculum = curricula.sfl(algorithm, family, config)
    meta = algorithm.init(jax.random.key(0)).meta

    def update(state, key):
        state, drawn = curriculum.draw(key, state, meta, 8)
        after, metrics = curriculum.update(state, drawn, TaskResults())
        return after, (state, drawn, metrics)

    keys = jax.random.split(jax.random.key(1), 5)
    return jax.jit(lambda: jax.lax.scan(update, curriculum.init(8), keys))()


def test_tasks_that_are_solved_sometimes_are_kept(run):
    _, (kept, _, metrics) = run
    p = np.asarray(kept.tasks["p"][0])
    # The sixth of the tasks around 1/2, up to the noise of 80 episodes.
    assert np.all(np.abs(p - 0.5) < 0.25)
    value = np.asarray(kept.learnability[0])
    assert np.all(np.diff(value) <= 0)
    assert np.all(value > 0.2)
    assert np.all(value <= 0.25)
    np.testing.assert_allclose(metrics["curriculum/learnability"][0], value.mean(), rtol=1e-6)


def test_tasks_are_tried_every_few_updates_and_their_steps_count(run):
    state, (kept, _, metrics) = run
    np.testing.assert_array_equal(
        metrics["env_steps"], np.array([1, 0, 0, 1, 0]) * 60 * 2 * EPISODES
    )
    p = np.asarray(kept.tasks["p"])
    np.testing.assert_array_equal(p[0], p[2])
    assert not np.array_equal(p[2], p[3])
    assert state.time == 5


def test_half_of_a_batch_is_from_the_kept_tasks(run):
    _, (kept, drawn, _) = run
    for u in range(5):
        within = np.isin(np.asarray(drawn.tasks["p"][u]), np.asarray(kept.tasks["p"][u]))
        np.testing.assert_array_equal(within, [True] * 4 + [False] * 4)
    assert np.all(drawn.learns)


def test_what_does_not_fit_is_refused(family):
    with pytest.raises(
        ValueError, match="sfl needs an algorithm whose agents learn within a trial"
    ):
        curricula.sfl(maml(family), family)
    with pytest.raises(ValueError, match="keeps=6 must be at most candidates=5"):
        SFLConfig(candidates=5, keeps=6)


def test_a_family_of_another_horizon_is_refused(family, algorithm):
    longer = dataclasses.replace(family, env=family.env.env, horizon=7 * family.horizon)
    with pytest.raises(ValueError, match="no multiple of horizon=.*make it for that family"):
        curricula.sfl(algorithm, longer, SFLConfig(4, 2))


def test_tries_of_more_steps_than_are_counted_are_refused(family, algorithm):
    with pytest.raises(ValueError, match="candidates × trials × steps of a trial=.* at most"):
        curricula.sfl(algorithm, family, SFLConfig(10**6, 2, trials=10**6))


def test_a_share_of_less_than_a_task_is_refused(family, algorithm):
    curriculum = curricula.sfl(algorithm, family, SFLConfig(4, 2, share=0.5))
    with pytest.raises(ValueError, match="share=0.5 of num_tasks=1 is no task"):
        curriculum.init(1)
