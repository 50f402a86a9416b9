import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.tasks.transform.wrappers import innermost


def test_of_all_ways_down_the_optimum_is_the_best_and_its_return_what_it_earns():
    family = tasks.make("deep_sea", length=4)
    task = family.test(jax.random.key(0))

    def earned(actions):
        _, state = family.env.reset_env(jax.random.key(1), task)
        total = 0.0
        for action in actions:
            _, state, reward, done, _ = family.env.step_env(jax.random.key(2), state, action, task)
            total += reward
        return total, done

    ways = jnp.array(list(itertools.product([0, 1], repeat=4)))
    returns, done = jax.jit(jax.vmap(earned))(ways)
    assert np.all(done)
    np.testing.assert_allclose(np.max(returns), family.optimal_return(task), rtol=1e-6)
    assert np.sum(np.asarray(returns) > 0.5) == 1
    diagonal = np.diag(np.asarray(task.drawn["action_mapping"]))
    assert ways[np.argmax(returns)].tolist() == diagonal.tolist()
    for i in range(4):
        obs = jnp.zeros((4, 4)).at[i, i].set(1.0)
        assert family.optimal_action(task, obs) == diagonal[i]


@pytest.mark.slow
def test_the_mapping_survives_and_random_agents_find_nothing():
    family = tasks.make("deep_sea")
    drawn = tasks.sample_tasks(jax.random.key(0), family, 20, split="train")
    returns = jax.jit(
        lambda key: evaluation.random_returns(key, drawn, family=family, num_streams=2)
    )
    assert np.mean(returns(jax.random.key(1))) < 0.1
    task = family.train(jax.random.key(0))
    for key in range(3):
        _, state = family.env.reset_env(jax.random.key(key), task)
        np.testing.assert_array_equal(innermost(state).action_mapping, task.drawn["action_mapping"])


@pytest.mark.parametrize(
    ("split", "share"), [("train", 0.5), ("test", 0.5), ("out_of_distribution", 0.9)]
)
def test_coins_are_as_fair_as_the_split_says(split, share):
    family = tasks.make("deep_sea")
    drawn = tasks.sample_tasks(jax.random.key(0), family, 300, split=split)
    np.testing.assert_allclose(np.mean(drawn.drawn["action_mapping"]), share, atol=0.02)


def test_equal_lengths_share_their_environment():
    assert tasks.make("deep_sea").env == tasks.make("deep_sea", length=8).env
    assert tasks.make("deep_sea").env != tasks.make("deep_sea", length=9).env
