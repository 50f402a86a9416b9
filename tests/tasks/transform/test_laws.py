"""Laws of what is drawn."""

import itertools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta import tasks
from jaxmeta.tasks.transform import laws


@given(
    num_values=st.integers(1, 5),
    extra=st.integers(0, 2),
    split=st.sampled_from(tasks.SPLITS),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_every_value_has_a_place_and_the_splits_are_what_they_say(num_values, extra, split, seed):
    num_places = num_values + extra
    drawn = np.asarray(
        laws.assignment(jax.random.key(seed), num_values, num_places, split)
    ).tolist()
    assert len(drawn) == num_places
    assert set(drawn) == set(range(num_values))
    if num_values >= 3:
        assert (drawn[-1] == 0) == (split == "out_of_distribution")
        if split != "out_of_distribution":
            order = list(dict.fromkeys(drawn))
            odd = sum(a > b for a, b in itertools.combinations(order, 2)) % 2
            assert odd == (split == "test")
