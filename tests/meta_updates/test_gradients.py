import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta.meta_updates.gradients import guarded_update, meta_gradient, tasks_at_once

LEARNED = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}


def task_loss(learned, key, task):
    loss = 0.5 * task * jnp.sum(learned["w"] ** 2) + learned["b"] * task
    return loss, {"return/after": task * 10.0}


def gradient_of(tasks, chunk=None):
    return jax.jit(
        lambda tasks: meta_gradient(
            task_loss,
            LEARNED,
            jax.random.split(jax.random.key(0), len(tasks)),
            tasks,
            tasks_per_chunk=chunk,
        )
    )(jnp.asarray(tasks))


def test_every_task_counts_and_counts_alike():
    gradient, metrics = gradient_of([1.0, 2.0, 6.0])
    np.testing.assert_allclose(gradient["w"], 3.0 * LEARNED["w"])
    np.testing.assert_allclose(gradient["b"], 3.0)
    np.testing.assert_allclose(metrics["return/after"], 30.0)
    assert metrics["skipped_tasks"] == 0
    np.testing.assert_allclose(metrics["meta_grad_norm"], optax.tree.norm(gradient))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_chunks_change_nothing(chunk):
    tasks = jnp.arange(1.0, 8.0)
    np.testing.assert_allclose(gradient_of(tasks, chunk)[0]["w"], gradient_of(tasks, 7)[0]["w"])


def test_tasks_have_their_own_keys():
    seen = meta_gradient(
        lambda learned, key, task: (learned * task, {"u": jax.random.uniform(key) ** 2}),
        jnp.ones(()),
        jax.random.split(jax.random.key(0), 1000),
        jnp.ones(1000),
        tasks_per_chunk=None,
    )[1]["u"]
    np.testing.assert_allclose(seen, 1 / 3, atol=0.05)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_bad_task_is_left_out_and_counted(bad):
    gradient, metrics = gradient_of([1.0, bad, 3.0])
    good, _ = gradient_of([1.0, 3.0])
    np.testing.assert_allclose(gradient["w"], good["w"])
    assert metrics["skipped_tasks"] == 1
    np.testing.assert_allclose(metrics["return/after"], 20.0)


def test_counts_are_added_up_and_means_are_means():
    """Integers that tasks report are counts, and those of a task that is left out count too."""

    def counting(learned, key, task):
        return learned * task, {"skipped_streams": jnp.asarray(3, jnp.int32), "mean": task}

    def metrics(tasks):
        tasks = jnp.asarray(tasks)
        keys = jax.random.split(jax.random.key(0), len(tasks))
        return meta_gradient(counting, jnp.ones(()), keys, tasks, tasks_per_chunk=None)[1]

    found = metrics([1.0, jnp.nan, 4.0])
    assert found["skipped_streams"] == 9
    assert found["skipped_streams"].dtype == jnp.int32
    assert found["mean"] == 2.5
    none = metrics([jnp.nan])
    assert none["skipped_streams"] == 3
    assert jnp.isnan(none["mean"])


def test_with_no_good_task_the_gradient_is_zero():
    gradient, metrics = gradient_of([jnp.nan, jnp.nan])
    assert jnp.all(gradient["w"] == 0)
    assert metrics["skipped_tasks"] == 2
    assert jnp.isnan(metrics["return/after"])


def test_guarded_update():
    optimizer = optax.adam(0.1)
    gradient = jax.tree.map(jnp.ones_like, LEARNED)
    before = optimizer.init(LEARNED)
    updates, after = optimizer.update(gradient, before, LEARNED)
    moved = guarded_update(optimizer, gradient, before, LEARNED, apply=jnp.array(True))
    kept = guarded_update(optimizer, gradient, before, LEARNED, apply=jnp.array(False))
    expected = (optax.apply_updates(LEARNED, updates), after)
    for result, right in ((moved, expected), (kept, (LEARNED, before))):
        for x, y in zip(jax.tree.leaves(result), jax.tree.leaves(right), strict=True):
            assert jnp.array_equal(x, y)


def test_how_many_tasks_at_once():
    assert tasks_at_once(20, 7) == 7
    assert tasks_at_once(3, 7) == 3
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        assert tasks_at_once(20, None) == 5
        assert tasks_at_once(2, None) == 2
        assert tasks_at_once(64, None) == 4  # no rest, which would be compiled again
        assert tasks_at_once(7, None) == 5
