"""Environments around environments."""

import functools

import gymnax
import pytest
from gymnax.wrappers import FlattenObservationWrapper

from jaxmeta.tasks import transform
from tests.tasks.transform.shared import everything


def test_equal_settings_make_equal_environments():
    make = functools.partial(transform.from_gymnax, "DeepSea-bsuite", horizon=3)
    assert make(size=4).env == make(size=4).env
    assert make(size=4).env != make(size=5).env
    first, second = (everything.__wrapped__("Catch-bsuite").env for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    shorter = transform.delayed_rewards(make(size=4), max_delay=1)
    assert shorter.env != transform.delayed_rewards(make(size=4), max_delay=2).env


def test_what_only_resets_by_itself_is_refused():
    inner, _ = gymnax.make("Catch-bsuite")
    with pytest.raises(TypeError, match=r"env=.* must have a step_env and a reset_env of its own"):
        transform.Wrapper(FlattenObservationWrapper(inner))
