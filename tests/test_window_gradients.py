from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.types import Learner
from jaxmeta.window_gradients import Window, evolution_strategy
from tests.probes import Counter, CounterParams


class Values(NamedTuple):
    noise_std: float


class Meta(NamedTuple):
    params: Any
    hyper: Values


def climber():
    """An agent is a number x, 0 at birth, that an update adds θ to; each step earns -(x - 1)² + 1."""
    return Learner(
        init=lambda key, meta: jnp.zeros(()),
        memory=lambda meta: (),
        act=lambda key, meta, agent, memory, timestep: (
            1.0 - (agent - 1.0) ** 2,
            jnp.zeros(()),
            memory,
        ),
        update=lambda key, meta, agent, data: agent + meta.params["theta"],
    )


@pytest.mark.parametrize(("persistent", "expected"), [(False, 0.2), (True, -0.3)])
def test_persistent_evolution_is_unbiased_where_truncation_is_not(x64, persistent, expected):
    """Two windows of two updates: x is 0, θ, 2θ, 3θ. What the windows earn has the derivatives 1 - θ and
    2 (1 - 2θ) + 3 (1 - 3θ), at θ = 0.45 with the sum -0.3; what a window's own updates do to it is 1 - θ
    and 1 - 3θ, with the sum 0.2. The signs differ, as in the toy problem of Vicol et al. 2021."""
    window = Window(climber(), Counter(), lifespan=4, num_updates=2, num_streams=1, num_steps=1)
    estimator = evolution_strategy(
        window,
        lambda meta, history, good: jnp.mean(history.trajectories.reward),
        persistent=persistent,
    )
    meta = Meta({"theta": jnp.array(0.45)}, Values(noise_std=0.3))
    task = CounterParams(number=0.0, terminate_at=1000)

    def estimate(key):
        birth_key, *keys = jax.random.split(key, 3)
        member, total = estimator.birth(birth_key, meta, task), 0.0
        for key in keys:
            gradient, _, member = estimator.estimate(key, meta, member, task)
            total = total - gradient["theta"]
        return total

    estimates = np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 20_000)))
    error = estimates.std() / np.sqrt(len(estimates))
    assert error < 0.04
    assert abs(estimates.mean() - expected) < 4 * error
