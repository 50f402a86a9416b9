"""The time of the last compilation is known again, and never in the way."""

import jax
import pytest

from jaxmeta.runs import durations


@pytest.fixture
def cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    jax.config.update("jax_compilation_cache_dir", before)


def test_what_was_remembered_is_recalled_for_the_same_program(cache):
    key = durations.key_of({"algorithm": "maml", "num_tasks": 2})
    assert durations.recalled(key) is None
    durations.remember(key, 12.34)
    durations.remember(key, 5.67)
    assert durations.recalled(key) == 5.7
    assert durations.recalled(durations.key_of({"algorithm": "maml", "num_tasks": 3})) is None


def test_the_oldest_are_forgotten(cache, monkeypatch):
    monkeypatch.setattr(durations, "MAX_ENTRIES", 2)
    for name in "abac":
        durations.remember(name, 1.0)
    assert [durations.recalled(name) for name in "abc"] == [1.0, None, 1.0]


def test_a_file_of_something_else_is_no_error(cache):
    cache.mkdir()
    for text in ("[1]", "{", '{"a": "x"}'):
        (cache / durations.FILE).write_text(text)
        assert durations.recalled("a") is None
    (cache / durations.FILE).unlink()
    (cache / durations.FILE).mkdir()
    durations.remember("a", 1.0)
    assert durations.recalled("a") is None


def test_without_a_cache_nothing_is_kept(cache):
    jax.config.update("jax_compilation_cache_dir", None)
    durations.remember("a", 1.0)
    assert durations.recalled("a") is None
