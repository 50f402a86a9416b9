import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta.learners import task_replay as module

P, C, K = 3, 5, 2
"""Tasks, steps of a ring, steps of a context."""


def empty():
    number = jax.ShapeDtypeStruct((), jnp.float32)
    shape = dict(num_tasks=P, capacity=C, size=K)
    return module.empty({"number": number}, {"x": number}, {"c": number}, **shape)


def lived(kept, numbers, steps, counted=None, in_context=None, key=0):
    """``kept`` after a visit of tasks called ``numbers``, or of kept ones, with ``steps [M, S]``; contexts are the last K of them."""
    steps = jnp.asarray(steps, jnp.float32)
    counted = jnp.ones(steps.shape, bool) if counted is None else jnp.asarray(counted)
    context = steps[:, -K:]
    in_context = jnp.ones(context.shape, bool) if in_context is None else jnp.asarray(in_context)
    tasks = {"number": jnp.asarray(numbers, jnp.float32)}
    visited = jax.jit(module.visit)(jax.random.key(key), kept, tasks)
    kept = jax.jit(module.add)(kept, visited, {"x": steps}, counted, {"c": context}, in_context)
    return kept, visited


def ring(kept, place):
    return sorted(np.asarray(kept.steps["x"])[place].tolist())


def test_the_first_tasks_are_kept_and_then_visited_again():
    """Three places, two tasks at a time: the fourth finds no room. Later visits are of kept tasks, each once in a visit."""
    kept, visited = lived(empty(), [10, 11], [[1, 2], [3, 4]])
    assert visited.is_new
    assert kept.num_tasks == 2
    kept, visited = lived(kept, [12, 13], [[5, 6], [7, 8]])
    assert visited.is_new
    assert kept.num_tasks == P
    assert kept.tasks["number"].tolist() == [10, 11, 12]
    assert kept.num_steps.tolist() == [2, 2, 2]
    seen = set()
    for key in range(12):
        _, visited = lived(kept, [20, 21], [[0, 0], [0, 0]], key=key)
        assert not visited.is_new
        found = visited.tasks["number"].tolist()
        assert found == kept.tasks["number"][visited.places].tolist()
        assert len(set(found)) == 2
        seen |= set(found)
    assert seen == {10, 11, 12}


def test_a_ring_holds_a_task_s_last_steps_and_the_context_those_of_the_last_visit():
    kept, _ = lived(empty(), [10, 11, 12], [[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    before = kept
    kept, visited = lived(kept, [0, 0], [[21, 22, 23], [31, 32, 33]])
    first, second = visited.places.tolist()
    (third,) = {0, 1, 2} - {first, second}
    last = {0: [2, 3], 1: [5, 6], 2: [8, 9]}
    assert ring(kept, first) == [*last[first], 21, 22, 23]
    assert ring(kept, second) == [*last[second], 31, 32, 33]
    assert kept.context["c"][first].tolist() == [22, 23]  # the old context is gone
    assert kept.context["c"][second].tolist() == [32, 33]
    for part in ("steps", "context", "num_steps", "num_context"):
        chex.assert_trees_all_equal(
            *(jax.tree.map(lambda x: x[third], getattr(x, part)) for x in (before, kept))
        )
    assert kept.num_steps.tolist() == [6 if i != third else 3 for i in range(3)]


def test_what_is_not_counted_is_not_kept():
    counted = [[True, False, True], [True, True, True]]
    kept, _ = lived(
        empty(), [10, 11], [[1, 2, 3], [4, 5, 6]], counted, [[False, True], [True, True]]
    )
    assert kept.num_steps.tolist() == [2, 3, 0]
    assert kept.steps["x"][0, :2].tolist() == [1, 3]
    assert kept.num_context.tolist() == [1, 2, 0]
    assert kept.context["c"][0, 0] == 3


def test_a_broken_task_gets_no_place_and_a_kept_one_stays_as_it_was():
    no = [[False, False], [True, True]]
    kept, _ = lived(empty(), [10, 11], [[1, 2], [3, 4]], no, no)
    assert kept.num_tasks == 1
    assert kept.tasks["number"][0] == 11
    kept, _ = lived(kept, [12, 13], [[5, 6], [7, 8]])
    assert kept.tasks["number"].tolist() == [11, 12, 13]
    after, visited = lived(kept, [0, 0], [[91, 92], [93, 94]], no, no)
    chex.assert_trees_all_equal(
        *(
            jax.tree.map(lambda x: x[visited.places[0]], x._replace(num_tasks=jnp.zeros(P)))
            for x in (kept, after)
        )
    )
    assert 94 in ring(after, int(visited.places[1]))


def test_draws_are_of_tasks_that_are_there_with_their_own_steps_and_contexts():
    kept, _ = lived(empty(), [10, 11], [[11, 12, 13], [21, 22, 23]])
    sizes = dict(num_tasks=400, num_steps=3, num_context=2, num_parts=1)
    drawn = module.draw(jax.random.key(0), kept, **sizes)
    x, c = np.asarray(drawn.steps["x"]), np.asarray(drawn.context["c"])
    assert x.shape == (400, 3)
    assert c.shape == (400, 2)
    assert jnp.all(drawn.in_context)
    assert set(x.ravel().tolist()) == {11, 12, 13, 21, 22, 23}
    assert set(c.ravel().tolist()) == {12, 13, 22, 23}
    assert np.all(x // 10 == x[:, :1] // 10)
    assert np.all(c // 10 == x[:, :1] // 10)
    counts = np.bincount(x.ravel().astype(int), minlength=24)[[11, 12, 13, 21, 22, 23]]
    assert np.max(np.abs(counts - 200)) < 5 * np.sqrt(1200 * (1 / 6) * (5 / 6)) + 60
    drawn = module.draw(jax.random.key(0), empty(), **sizes)
    assert jnp.all(drawn.steps["x"] == 0)
    assert jnp.all(drawn.context["c"] == 0)


def test_contexts_are_of_one_part_of_several_and_of_all():
    """A context of six steps in three parts: two steps of it, four or six, of as many consecutive ones, and each as often."""
    number = jax.ShapeDtypeStruct((), jnp.float32)
    kept = module.empty(number, {"x": number}, {"c": number}, num_tasks=1, capacity=1, size=6)
    kept = kept._replace(
        num_tasks=jnp.asarray(1, jnp.int32),
        num_steps=jnp.ones(1, jnp.int32),
        context={"c": jnp.arange(6.0)[None]},
        num_context=jnp.array([6], jnp.int32),
    )
    drawn = module.draw(
        jax.random.key(0), kept, num_tasks=600, num_steps=1, num_context=6, num_parts=3
    )
    used = np.sum(drawn.in_context, axis=1)
    assert set(used.tolist()) == {2, 4, 6}
    assert np.min(np.bincount(used)[[2, 4, 6]]) > 150
    seen = set()
    for row, mask in zip(
        np.asarray(drawn.context["c"], int), np.asarray(drawn.in_context), strict=True
    ):
        found = set(row[mask].tolist())
        spans = [{(start + i) % 6 for i in range(mask.sum())} for start in range(6)]
        assert found in spans  # none twice
        seen |= found
    assert seen == set(range(6))


def test_more_tasks_than_can_be_kept_are_named():
    with pytest.raises(ValueError, match="num_training_tasks=3 must be at least 4, the number"):
        jax.eval_shape(
            module.visit, jax.random.key(0), empty(), {"number": jnp.zeros(4, jnp.float32)}
        )


def test_tasks_may_hold_random_keys():
    key = jax.eval_shape(lambda: jax.random.key(0))
    number = jax.ShapeDtypeStruct((), jnp.float32)
    kept = module.empty(key, {"x": number}, {"c": number}, num_tasks=P, capacity=C, size=K)
    drawn = jax.random.split(jax.random.key(7), 2)
    visited = module.visit(jax.random.key(0), kept, drawn)
    flags = jnp.ones((2, 2), bool)
    zeros = jnp.zeros((2, 2))
    kept = module.add(kept, visited, {"x": zeros}, flags, {"c": zeros}, flags)
    assert jnp.all(jax.random.key_data(kept.tasks[:2]) == jax.random.key_data(drawn))
