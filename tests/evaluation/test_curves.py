import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.algorithms.maml import Config, maml
from jaxmeta.evaluation.agents import _controller_returns
from jaxmeta.tasks import transform
from tests.probes import Counter, CounterParams, constant_learner


def test_returns_are_first_episode_s_in_task_order():
    """Rewards of 1 + number, 4 steps an episode, rollouts of 10 steps."""
    drawn = jax.vmap(lambda n: CounterParams(number=n))(jnp.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    returns = evaluation.adaptation_returns(
        jax.random.key(0),
        None,
        drawn,
        learner=constant_learner(),
        env=Counter(),
        num_streams=3,
        num_updates=2,
        num_steps=10,
        tasks_per_chunk=2,
    )
    np.testing.assert_allclose(returns, np.tile(4 * np.arange(1, 6)[:, None], (1, 3)))


def test_the_first_column_is_the_newborn_s():
    """Without restarts of parameters leaking: evaluating twice gives the same first column."""
    family = tasks.make("navigation", horizon=5)
    algorithm = maml(family, Config(num_streams=4, hidden_sizes=(4,)))
    meta = algorithm.init(jax.random.key(0)).meta
    drawn = tasks.sample_tasks(jax.random.key(1), family, 3, split="test")

    def returns(num_updates):
        return evaluation.adaptation_returns(
            jax.random.key(2),
            meta._replace(hyper=meta.hyper._replace(step_size=jnp.array(5.0))),
            drawn,
            learner=algorithm.learner,
            env=family.env,
            num_streams=4,
            num_updates=num_updates,
            num_steps=5,
        )

    one, two = returns(1), returns(2)
    assert one.shape == (3, 2)
    np.testing.assert_allclose(one[:, 0], two[:, 0], rtol=1e-5)
    assert not np.allclose(two[:, 0], two[:, 1])


def test_broken_streams_are_left_out_and_counted():
    """Rewards are NaN in some streams: their means are those of the others."""
    family = transform.faulty(tasks.make("navigation", horizon=10), rate=5e-3)
    drawn = tasks.sample_tasks(jax.random.key(0), family, 8, split="test")
    how = dict(num_streams=20, num_updates=0, num_steps=10, env=family.env)
    right = evaluation.controller_learner(lambda key, task, obs: jnp.full(2, 0.05))
    curve = jax.jit(
        jax.vmap(
            lambda key, task: evaluation.adaptation_curve(
                key, task, jax.tree.map(lambda x: x[None], task), learner=right, **how
            )
        )
    )(jax.random.split(jax.random.key(1), 8), drawn)
    assert 8 <= curve.skipped_streams.sum() <= 40  # 5 % of 160 streams, NaN or infinite
    sound = dataclasses.replace(family, env=family.env.env)
    expected = _controller_returns(
        jax.random.key(1), drawn, lambda key, task, obs: jnp.full(2, 0.05), sound, 1
    )
    np.testing.assert_allclose(curve.returns[:, 0, 0], expected, rtol=1e-5)
    broken = transform.faulty(tasks.make("navigation", horizon=10), rate=1.0)
    assert np.isnan(evaluation.random_returns(jax.random.key(1), drawn, family=broken)).all()


def test_an_episode_that_does_not_end_has_no_return():
    """The environment promises no horizon: in one task its episodes end in time, in the other not."""
    drawn = jax.vmap(lambda end: CounterParams(terminate_at=end))(jnp.array([3, 9]))
    found = evaluation.adaptation_curve(
        jax.random.key(0),
        None,
        drawn,
        learner=constant_learner(),
        env=Counter(),
        num_streams=2,
        num_updates=0,
        num_steps=5,
    )
    assert found.skipped_streams.tolist() == [[0], [2]]
    assert np.isfinite(found.returns[0, 0])
    assert np.isnan(found.returns[1, 0])


def test_what_is_measured_covers_an_episode_of_tasks_with_a_leading_axis():
    family = tasks.make("navigation", horizon=10)
    one = family.test(jax.random.key(0))
    how = dict(learner=constant_learner(), env=family.env, num_streams=1, num_updates=0)
    many = jax.tree.map(lambda x: x[None], one)
    with pytest.raises(ValueError, match="num_steps=9 must be at least 10, the horizon"):
        evaluation.adaptation_returns(jax.random.key(0), None, many, num_steps=9, **how)
    for measure in (
        lambda: evaluation.adaptation_returns(jax.random.key(0), None, one, num_steps=10, **how),
        lambda: evaluation.random_returns(jax.random.key(0), one, family=family),
        lambda: evaluation.trials(
            jax.random.key(0), None, one, learner=constant_learner(), env=family.env, num_steps=10
        ),
    ):
        with pytest.raises(
            ValueError, match=r"tasks.goal has shape \(2,\); it must be like \[M, 2\]"
        ):
            measure()
