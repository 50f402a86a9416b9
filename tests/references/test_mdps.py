"""Posterior sampling in finite MDPs."""

import math

import jax
import numpy as np
import pytest

from jaxmeta import references, tasks
from jaxmeta.tasks.tabular import TabularParams, optimal_return
from tests.references.living import assert_mean, episode, live, total_rewards


def test_an_update_counts_what_was_seen():
    learner = references.psrl(num_states=3, num_actions=2, horizon=2)
    agent = learner.init(jax.random.key(0), ())
    assert not any(x.any() for x in agent.posterior)
    states, actions = np.array([[0, 2], [0, 2]]), np.array([[1, 0], [1, 1]])
    successors, rewards = np.array([[2, 1], [2, 0]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    trajectories = episode(states, actions, rewards, successors, num_states=3)
    posterior = learner.update(jax.random.key(1), (), agent, trajectories).posterior
    transitions, total = np.zeros((3, 2, 3)), np.zeros((3, 2))
    transitions[0, 1, 2], transitions[2, 0, 1], transitions[2, 1, 0] = 2, 1, 1
    total[0, 1], total[2, 0], total[2, 1] = 4, 2, 4
    np.testing.assert_array_equal(posterior.transitions, transitions)
    np.testing.assert_array_equal(posterior.reward, total)


def test_one_who_has_seen_enough_acts_optimally():
    family = tasks.make("tabular", num_states=4, num_actions=3, horizon=5)
    task = family.test(jax.random.key(0))
    learner = references.psrl(num_states=4, num_actions=3, horizon=5)
    agent = learner.init(jax.random.key(1), ())
    known = references.Posterior(1e7 * task.transition, 1e7 * task.reward)
    once = episode([[0]], [[0]], [[0.0]], [[0]], num_states=4)
    policy = learner.update(jax.random.key(2), (), agent._replace(posterior=known), once).policy
    np.testing.assert_allclose(
        policy_return(task, policy), optimal_return(task, horizon=5), rtol=1e-3
    )


def policy_return(task: TabularParams, policy):
    """Expected return of ``policy [H, S]``."""
    occupancy, total = np.asarray(task.initial), 0.0
    for actions in np.asarray(policy):
        state = np.arange(len(actions))
        total += occupancy @ np.asarray(task.reward)[state, actions]
        occupancy = occupancy @ np.asarray(task.transition)[state, actions]
    return total


def test_an_agent_draws_from_its_prior():
    """With one state and two actions the newborn takes either equally often, whatever it expects."""
    for prior in (0.0, 1.0):
        learner = references.psrl(num_states=1, num_actions=2, horizon=1, reward_prior=prior)
        born = jax.vmap(learner.init, (0, None))(jax.random.split(jax.random.key(0), 2000), ())
        assert_mean(born.policy[:, 0, 0], 0.5)
    # After a reward of r for the first, that is N((prior + r) / 2, 1 / 2) and the other N(prior, 1).
    learner = references.psrl(num_states=1, num_actions=2, horizon=1, reward_prior=1.0)
    seen = episode([[0]], [[0]], [[3.0]], [[0]], num_states=1)
    agent = learner.init(jax.random.key(0), ())
    after = jax.jit(jax.vmap(lambda key: learner.update(key, (), agent, seen).policy[0, 0]))
    chosen = after(jax.random.split(jax.random.key(1), 20_000))
    assert_mean(chosen, math.erfc(1 / 1.5**0.5 / 2**0.5) / 2)


def test_each_episode_follows_its_policy():
    family = tasks.make("tabular", num_states=3, num_actions=4, horizon=3)
    learner = references.psrl(num_states=3, num_actions=4, horizon=3)
    _, agent, data = live(learner, family, num_tasks=5, num_updates=2, num_steps=3)
    states = np.asarray(data.timestep.obs).argmax(-1)
    policy = np.asarray(agent.policy)  # [M, K + 1, H, S]
    np.testing.assert_array_equal(
        data.action, np.take_along_axis(policy, states[..., None], axis=-1)[..., 0]
    )
    assert data.timestep.first[:, :, 0].all()
    visits = np.asarray(agent.posterior.transitions).sum((-1, -2, -3))
    np.testing.assert_array_equal(visits, np.full((5, 3), 3.0) * np.arange(3))


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
@pytest.mark.parametrize(("num_episodes", "published"), [(10, 138.1), (25, 408.8)])
def test_published_figures_of_psrl(num_episodes, published):
    family = tasks.make("tabular")
    totals = total_rewards(
        references.psrl(), family, num_tasks=500, num_updates=num_episodes - 1, num_steps=10
    )
    assert_mean(totals, published, exact=False)
