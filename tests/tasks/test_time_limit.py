"""The horizon is the one time limit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.tasks import time_limit, transform
from tests.probes import Counter, CounterParams
from tests.tasks.acting import acted, counting


@pytest.mark.parametrize("own_limit", [2, 3, 1000])
def test_the_horizon_is_the_one_time_limit(own_limit):
    """An environment may end sooner, and never later."""
    family = counting()
    task = CounterParams(number=7.0, terminate_at=99, truncate_at=own_limit)
    _, (data, states) = acted(family, task, 7)
    length = min(own_limit, 3)
    assert data.last.tolist() == [t % length == length - 1 for t in range(7)]
    assert data.discount.tolist() == [1] * 7
    assert states.time.tolist() == [(t + 1) % length for t in range(7)]


def test_a_promise_spares_the_counter_and_is_not_inherited_past_is_truncated():
    class Promises(Counter):
        ends_by = 3

        def is_truncated(self, state, params):
            return state.time >= 3

    class Breaks(Promises):
        def step_env(self, key, state, action, params):
            return super().step_env(key, state.replace(time=0), action, params)

    assert isinstance(time_limit.limited(Promises(), 3), Promises)
    for env, horizon in ((Promises(), 2), (Breaks(), 3), (Counter(), 3)):
        assert time_limit.limited(env, horizon) == time_limit.TimeLimit(env, horizon)
    assert time_limit.limited(time_limit.TimeLimit(env, 5), 4) == time_limit.TimeLimit(env, 4)
    family = dataclasses.replace(counting(), env=Promises())
    assert family.env.__class__ is Promises
    assert dataclasses.replace(family, horizon=2).env.horizon == 2


def test_a_limit_is_put_within_what_is_around_an_environment():
    """So that what is owed at an episode's end is paid there."""
    family = transform.delayed_rewards(tasks.make("navigation", horizon=6), max_delay=3)
    shorter = dataclasses.replace(family, horizon=4)
    assert isinstance(shorter.env, type(family.env))
    assert isinstance(shorter.env.env, time_limit.TimeLimit)
    task = family.train(jax.random.key(0))
    returns = [
        evaluation.optimal_returns(
            jax.random.key(1),
            jax.tree.map(lambda x: x[None], t),
            family=dataclasses.replace(
                f, optimal_return=None, optimal_action=lambda task, obs: jnp.full(2, 0.05)
            ),
        )
        for f, t in (
            (shorter, task),
            (tasks.make("navigation", horizon=4), task.inner),
        )
    ]
    np.testing.assert_allclose(*returns, rtol=1e-6)
