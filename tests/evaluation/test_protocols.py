"""Protocols on an environment whose rewards say which step, episode and agent they are of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.evaluation import META_WORLD, XLAND, Protocol, protocols
from tests.probes import Counter, CounterParams, constant_learner

HORIZON = 3


def found(protocol, learner, **how):
    drawn = jax.vmap(lambda n: CounterParams(number=n, terminate_at=HORIZON))(jnp.array([7.0, 1.0]))
    settings = dict(learner=learner, env=Counter(), horizon=HORIZON, protocol=protocol)
    return evaluation.run_protocol(jax.random.key(0), None, drawn, **settings, **how)


def counting():
    """Acts with the number of steps in memory plus 100 for each update; rewards are the action plus the task's number."""
    learner = constant_learner()

    def act(key, meta, agent, memory, timestep):
        return memory + 100 * agent.astype(jnp.int32), jnp.zeros(()), memory + 1

    return learner._replace(act=act)


def test_an_agent_in_context_is_tested_after_its_adaptation():
    tested = found(Protocol(2, 3), counting(), in_context=True)
    steps = np.arange(15).reshape(5, 3)[2:]
    for m, number in enumerate((7, 1)):
        np.testing.assert_allclose(tested.returns[m], (steps + number).sum(axis=1))
        np.testing.assert_allclose(tested.highest[m], (steps + number).max(axis=1))


def test_an_agent_of_updates_learns_from_the_adaptation_alone():
    """Its memory is new in each test episode, and it was updated twice."""
    tested = found(META_WORLD, counting(), in_context=False, num_updates=2)
    assert tested.returns.shape == (2, 3)
    for m, number in enumerate((7, 1)):
        np.testing.assert_allclose(tested.returns[m], 3 * (200 + number) + 0 + 1 + 2)
        np.testing.assert_allclose(tested.highest[m], 200 + number + 2)


def test_without_adaptation_a_newborn_is_tested():
    tested = found(XLAND, counting(), in_context=False)
    assert tested.returns.shape == (2, 25)
    np.testing.assert_allclose(tested.returns[1], 3 * 1 + 0 + 1 + 2)


def test_scores():
    returns = jnp.array([[1.0, 2.0], [3.0, jnp.nan], [0.0, 1.0]])
    tested = evaluation.Tested(returns, returns)
    assert protocols.success_rate(tested) == pytest.approx(4 / 5)
    assert protocols.success_rate(tested, threshold=1.5) == pytest.approx(2 / 5)
    scores = protocols.trial_returns(tested)
    assert scores["mean"] == pytest.approx(2.0)  # of 3 and 1
    assert scores["percentile_20"] == pytest.approx(1.4)
    assert scores["skipped_tasks"] == 1


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match="protocol.tests=0 must be at least 1"):
        found(Protocol(1, 0), counting(), in_context=True)
    assert protocols.PROTOCOLS == {"meta_world": (10, 3), "xland": (0, 25)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(in_context=False), "in_context=False, but the learner has no agent that updates"),
        (dict(in_context=True, horizon=14), "horizon=14 must be at least 15"),
    ],
)
def test_what_cannot_be_tested_is_refused(settings, message):
    family = tasks.make("gridnavi", horizon=15)
    learner = constant_learner()._replace(init=lambda key, meta: ())
    drawn = tasks.sample_tasks(jax.random.key(0), family, 2, split="test")
    told = dict(learner=learner, env=family.env, horizon=15, protocol=META_WORLD) | settings
    with pytest.raises(ValueError, match=message):
        evaluation.run_protocol(jax.random.key(0), 0.0, drawn, **told)
