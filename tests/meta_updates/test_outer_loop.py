import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta.algorithms.maml import Config, Hyper
from jaxmeta.learners.gradient import Meta, learned_part
from jaxmeta.meta_updates.outer_loop import (
    descend,
    first_state,
    follow_meta_gradient,
    is_applicable,
    outer_optimizer,
)


def test_descent_goes_down_the_gradient_and_is_clipped():
    hyper = Hyper(learning_rate=0.1, max_grad_norm=1.0)
    meta = Meta({"w": jnp.array([3.0, 4.0])}, hyper)
    state = first_state(meta, learned_part(Config()), optax.sgd)
    transform = outer_optimizer(optax.sgd, hyper)
    gradient = {"params": {"w": jnp.array([30.0, 40.0])}}
    after = descend(state, gradient, learned_part(Config()), transform, apply=jnp.asarray(True))
    np.testing.assert_allclose(after.meta.params["w"], [3.0 - 0.06, 4.0 - 0.08], rtol=1e-6)
    assert after.num_updates == 1
    same = descend(state, gradient, learned_part(Config()), transform, apply=jnp.asarray(False))
    np.testing.assert_array_equal(same.meta.params["w"], meta.params["w"])
    assert same.num_updates == 0


def test_a_meta_gradient_is_applied_if_it_is_of_a_task_and_finite():
    for skipped, norm, expected in ((2, 1.0, True), (3, 1.0, False), (0, jnp.nan, False)):
        metrics = {"skipped_tasks": jnp.asarray(skipped), "meta_grad_norm": jnp.asarray(norm)}
        assert bool(is_applicable(metrics, 3)) is expected
    infinite = {"skipped_tasks": jnp.asarray(0), "meta_grad_norm": jnp.asarray(jnp.inf)}
    assert not is_applicable(infinite, 3)


@pytest.mark.parametrize("tasks_per_chunk", [None, 1])
def test_a_step_follows_the_mean_gradient_over_tasks(tasks_per_chunk):
    """Of (w - task)² / 2 that is w less the mean of tasks; a broken task is left out, and where all are
    broken nothing moves."""

    def task_loss(meta, key, task):
        loss = 0.5 * (meta.params["w"] - task) ** 2
        return loss, {"return/after": -loss}

    hyper = Hyper(learning_rate=0.1, max_grad_norm=1e9)
    algorithm = follow_meta_gradient(
        task_loss,
        learner=None,
        first_meta=lambda key, hyper: Meta({"w": jnp.asarray(5.0)}, hyper),
        part=learned_part(Config()),
        hyper=hyper,
        optimizer=optax.sgd,
        env_steps=7,
        tasks_per_chunk=tasks_per_chunk,
    )
    state = algorithm.init(jax.random.key(0))
    assert state.num_updates == 0
    step = jax.jit(algorithm.step)
    after, metrics = step(jax.random.key(1), state, jnp.array([1.0, 2.0, 6.0]))
    np.testing.assert_allclose(after.meta.params["w"], 5.0 - 0.1 * (5.0 - 3.0), rtol=1e-6)
    np.testing.assert_allclose(metrics["meta_grad_norm"], 2.0, rtol=1e-6)
    assert after.num_updates == 1
    assert metrics["env_steps"] == 3 * 7
    assert metrics["skipped_updates"] == metrics["skipped_tasks"] == 0
    partly, metrics = step(jax.random.key(1), state, jnp.array([1.0, jnp.nan, 6.0]))
    np.testing.assert_allclose(partly.meta.params["w"], 5.0 - 0.1 * (5.0 - 3.5), rtol=1e-6)
    assert (metrics["skipped_updates"], metrics["skipped_tasks"]) == (0, 1)
    same, metrics = step(jax.random.key(1), after, jnp.full(3, jnp.nan))
    assert (metrics["skipped_updates"], metrics["skipped_tasks"]) == (1, 3)
    for x, y in zip(jax.tree.leaves(same), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x, y)
    faster = algorithm.init(jax.random.key(0), hyper._replace(learning_rate=0.2))
    after, _ = step(jax.random.key(1), faster, jnp.array([1.0, 2.0, 6.0]))
    np.testing.assert_allclose(after.meta.params["w"], 5.0 - 0.2 * 2.0, rtol=1e-6)
