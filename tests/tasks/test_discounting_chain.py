import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import tasks
from jaxmeta.rollout import begin_stream, rollout
from jaxmeta.tasks.discounting_chain import REWARD_STEPS, DiscountingChain, DiscountingChainParams
from tests.probes import constant_learner


def episode(family, task, action, num_steps):
    key, learner = jax.random.key(0), constant_learner(action)
    stream = begin_stream(key, None, task, learner=learner, env=family.env)
    return rollout(
        key, None, task, (), stream, learner=learner, env=family.env, num_steps=num_steps
    )


@pytest.mark.parametrize("best_chain", range(5))
def test_it_is_gymnax_s(best_chain):
    """Observations, rewards and ends of a whole episode of random actions, in every task."""
    family = tasks.make("discounting_chain", best_chain=best_chain)
    task = family.train(jax.random.key(0))
    theirs, params = gymnax.make("DiscountingChain-bsuite", mapping_seed=best_chain)
    actions = jax.random.randint(jax.random.key(best_chain), (100,), 0, 5)

    def walk(env, params):
        def step(state, action):
            obs, state, reward, terminated, _ = env.step_env(
                jax.random.key(0), state, action, params
            )
            return state, (obs, reward, terminated | env.is_truncated(state, params))

        first, state = env.reset_env(jax.random.key(0), params)
        return first, jax.lax.scan(step, jax.tree.map(jnp.asarray, state), actions)[1]

    ours = jax.jit(walk, static_argnums=0)(family.env, task)
    expected = jax.jit(walk, static_argnums=0)(theirs, params)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    assert ours[1][1].sum() == pytest.approx(1.1 if actions[0] == best_chain else 1.0)


def test_each_chain_pays_once_and_late_ones_after_the_end_never():
    family = tasks.make("discounting_chain", horizon=40)
    task = DiscountingChainParams(reward=jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    for action in range(5):
        _, data = jax.jit(episode, static_argnums=(0, 2, 3))(family, task, action, 80)
        paid = np.zeros(80)
        if REWARD_STEPS[action] <= 40:
            paid[REWARD_STEPS[action] - 1 :: 40] = action + 1  # in both episodes
        np.testing.assert_array_equal(data.reward, paid)
        np.testing.assert_array_equal(data.last, np.arange(80) % 40 == 39)
        np.testing.assert_array_equal(data.discount, 1.0 - data.last)
        assert data.timestep.obs[0].tolist() == data.timestep.obs[40].tolist() == [-1, 0]
        assert data.next_obs[39].tolist() == [action, 1]


def test_tasks_and_their_optima():
    family = tasks.make("discounting_chain")
    drawn = tasks.sample_tasks(jax.random.key(0), family, 200, split="train")
    best = jax.vmap(family.optimal_action, (0, None))(drawn, jnp.zeros(2))
    assert set(best.tolist()) == set(range(5))
    np.testing.assert_allclose(drawn.reward, 1.0 + 0.1 * np.eye(5)[best], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(family.optimal_return)(drawn), 1.1, rtol=1e-6)
    shifted = family.out_of_distribution(jax.random.key(0))
    np.testing.assert_allclose(family.optimal_return(shifted), 1.2, rtol=1e-6)
    short = tasks.make("discounting_chain", horizon=9, best_chain=3)
    task = short.train(jax.random.key(0))
    assert short.optimal_return(task) == 1.0  # the better one does not pay in time
    assert short.optimal_action(task, jnp.zeros(2)) in (0, 1)
    assert DiscountingChain(9) == short.env != family.env


def test_a_chain_that_is_none_is_named():
    for best_chain, message in ((5, "best_chain=5 must be below 5"), (-1, "must be at least 0")):
        with pytest.raises(ValueError, match=message):
            tasks.make("discounting_chain", best_chain=best_chain)
