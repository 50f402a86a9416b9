"""Laws of what is drawn."""

import collections
import functools
import itertools

import jax
import numpy as np
import pytest

from jaxmeta import tasks
from jaxmeta.tasks.transform import laws
from tests.tasks.transform.shared import all_of


def splits_of(assignments, num_values):
    """All assignments by their split, as the docstring says it."""
    if num_values < 3:
        return dict.fromkeys(tasks.SPLITS, assignments)
    found = collections.defaultdict(set)
    for drawn in assignments:
        order = list(dict.fromkeys(drawn))
        odd = sum(a > b for a, b in itertools.combinations(order, 2)) % 2
        inside = "test" if odd else "train"
        found["out_of_distribution" if drawn[-1] == 0 else inside].add(drawn)
    return found


@pytest.mark.parametrize(("num_values", "num_places"), [(1, 2), (3, 3), (2, 4), (3, 5), (4, 6)])
def test_assignments_are_uniform_over_all_of_their_split(num_values, num_places):
    """χ² against an enumeration: its mean is the degrees of freedom k, its standard deviation sqrt(2 k)."""
    there = splits_of(all_of(num_values, num_places), num_values)
    num_drawn = 20_000
    keys = jax.random.split(jax.random.key(0), num_drawn)

    @jax.jit
    def draw(keys):
        one = functools.partial(laws.assignment, num_values=num_values, num_places=num_places)
        return {
            split: jax.vmap(functools.partial(one, split=split))(keys) for split in tasks.SPLITS
        }

    for split, drawn in draw(keys).items():
        counts = collections.Counter(map(tuple, np.asarray(drawn).tolist()))
        assert counts.keys() == there[split]
        expected = num_drawn / len(counts)
        chi_squared = sum((n - expected) ** 2 for n in counts.values()) / expected
        freedom = len(counts) - 1
        assert chi_squared < freedom + 4 * (2 * freedom) ** 0.5 + 4


def test_hundreds_of_places_are_assigned_at_once():
    drawn = laws.assignment(jax.random.key(0), 300, 400, "train")
    assert drawn.shape == (400,)
    assert set(np.asarray(drawn).tolist()) == set(range(300))
