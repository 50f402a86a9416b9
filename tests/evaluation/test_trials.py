import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import evaluation
from tests.probes import Counter, CounterParams, constant_learner


def test_trials_are_one_stream_from_birth_to_end():
    """Nothing begins anew in it but episodes: memory counts all steps, and the learner its updates."""
    learner = constant_learner()
    drawn = jax.vmap(lambda n: CounterParams(number=n, terminate_at=3))(jnp.array([7.0, 1.0]))
    memory_as_action = learner._replace(
        act=lambda key, meta, agent, memory, timestep: (
            memory + 100 * agent.astype(jnp.int32),
            jnp.zeros(()),
            memory + 1,
        )
    )
    found = evaluation.trials(
        jax.random.key(0),
        None,
        drawn,
        learner=memory_as_action,
        env=Counter(),
        num_steps=4,
        num_updates=1,
        tasks_per_chunk=1,
    )
    expected = [0, 1, 2, 3, 104, 105, 106, 107]
    assert found.action.tolist() == [expected, expected]
    assert found.reward.tolist() == [[x + n for x in expected] for n in (7, 1)]


def test_an_episode_that_is_cut_or_never_began_has_no_return():
    reward, last = jnp.ones((2, 5)), jnp.array([[0, 1, 0, 1, 0]] * 2, bool)
    trials = evaluation.Trials(reward, reward, last, jnp.array([True, False]))
    found = np.asarray(evaluation.episode_returns(trials, 4))
    np.testing.assert_array_equal(found[0], [2.0, 2.0, np.nan, np.nan])
    assert np.isnan(found[1]).all()  # a number of that trial is not finite


def test_an_episode_may_end_with_the_trial():
    reward, last = jnp.ones((1, 5)), jnp.array([[0, 1, 0, 0, 1]], bool)
    trials = evaluation.Trials(reward, reward, last, jnp.array([True]))
    found = evaluation.episode_returns(trials, 3)
    np.testing.assert_array_equal(found, [[2.0, 3.0, np.nan]])
