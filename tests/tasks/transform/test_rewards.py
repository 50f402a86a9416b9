"""What is paid, and when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.tasks import transform
from tests.tasks.transform.shared import KEY, episodes, random_actions


def test_rewards_are_scaled_and_signed():
    inner = tasks.make("gridnavi")
    family = transform.scaled_rewards(inner, scale=4.0)
    task = family.test(KEY)
    np.testing.assert_allclose(
        family.optimal_return(task), task.drawn * inner.optimal_return(task.inner)
    )
    actions = random_actions(inner, 0, 20)
    scaled = episodes(KEY, task, family.env, actions)[1]
    plain = episodes(KEY, task.inner, inner.env, actions)[1]
    np.testing.assert_allclose(scaled, task.drawn * plain, rtol=1e-6)
    for split in tasks.SPLITS:
        drawn = tasks.sample_tasks(jax.random.key(0), family, 500, split=split).drawn
        size = np.abs(np.log(drawn)) / np.log(4.0)
        least, most = (1.0, 1.5) if split == "out_of_distribution" else (0.0, 1.0)
        np.testing.assert_allclose([size.min(), size.max()], [least, most], atol=0.01)
        signs = tasks.sample_tasks(
            jax.random.key(0), transform.signed_rewards(inner), 500, split=split
        ).drawn
        assert set(np.asarray(signs).tolist()) == {-1.0, 1.0}
    assert transform.signed_rewards(inner).optimal_return is None


@pytest.mark.parametrize("delay", [0, 1, 3, 4])
def test_rewards_come_late_and_returns_stay(delay):
    """On a walk whose rewards differ from step to step; an episode is of 5 steps, so 3 or 4 come at its end."""
    inner = tasks.make("navigation", horizon=5)
    family = transform.delayed_rewards(inner, max_delay=2)
    task = family.test(KEY).replace(drawn=jnp.array(delay))
    actions = random_actions(inner, 0, 10)
    late = np.asarray(episodes(KEY, task, family.env, actions)[1]).reshape(2, 5)
    plain = np.asarray(episodes(KEY, task.inner, inner.env, actions)[1]).reshape(2, 5)
    expected = np.zeros((2, 5))
    for t in range(5):
        expected[:, min(t + delay, 4)] += plain[:, t]
    np.testing.assert_allclose(late, expected, rtol=1e-5)


def test_delays_lie_where_the_split_says_and_termination_pays_what_is_owed():
    family = transform.delayed_rewards(tasks.make("catch"), max_delay=2)
    found = [
        set(np.asarray(tasks.sample_tasks(KEY, family, 100, split=split).drawn).tolist())
        for split in tasks.SPLITS
    ]
    assert found == [{0, 1, 2}, {0, 1, 2}, {3, 4}]
    drawn = tasks.sample_tasks(KEY, family, 20, split="out_of_distribution")
    best = jax.jit(lambda key: evaluation.optimal_returns(key, drawn, family=family))
    assert np.all(np.asarray(best(KEY)) == 1.0)
