import os
from typing import NamedTuple

import jax.numpy as jnp
import pytest

from jaxmeta import checks


def test_choice_names_the_nearest():
    checks.choice("family", "cartpole", ["cartpole", "acrobot"])
    with pytest.raises(ValueError, match=r"family='cartpol' is unknown: did you mean 'cartpole'\?"):
        checks.choice("family", "cartpol", ["cartpole", "acrobot"])
    with pytest.raises(ValueError, match="known are 'acrobot', 'cartpole'"):
        checks.choice("family", "zzz", ["cartpole", "acrobot"])


def test_at_least():
    checks.at_least("n", 1, 1)
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        checks.at_least("n", 0, 1)
    for value in (1.5, True, "3", None):
        with pytest.raises(TypeError, match="must be an integer of at least 1"):
            checks.at_least("n", value, 1)


def test_between():
    checks.between("x", 0, 0, 1)
    checks.between("x", 0.5, 0, 1)
    for value in (1.5, float("nan"), float("-inf")):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            checks.between("x", value, 0, 1)
    for value in ("a", None, True):
        with pytest.raises(TypeError, match="must be a number between 0 and 1"):
            checks.between("x", value, 0, 1)


def test_core():
    checks.core("core", None)
    with pytest.raises(ValueError, match="core=4096 must be .*None"):
        checks.core("core", 4096)
    if hasattr(os, "sched_getaffinity"):
        for there in os.sched_getaffinity(0):
            checks.core("core", there)


def test_hyper_knows_shared_fields_and_is_told_the_others():
    class Hyper(NamedTuple):
        discount: float = 0.99
        own: float = 1.0

    checks.hyper(Hyper(), own=(0, 2))
    with pytest.raises(ValueError, match="discount=1.5 must lie between 0 and 1"):
        checks.hyper(Hyper(discount=1.5), own=(0, 2))
    with pytest.raises(ValueError, match="own=3 must lie between 0 and 2"):
        checks.hyper(Hyper(own=3), own=(0, 2))
    checks.hyper(Hyper(discount=jnp.asarray(1.5)), own=(0, 2))  # traced: the caller's


def test_a_missing_package_is_named_with_its_extra():
    error = checks.missing("brax", "robots")
    assert isinstance(error, ImportError)
    assert str(error) == 'brax is missing: pip install "jaxmeta[robots]"'


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    checks.folder("output", tmp_path)
    checks.folder("output", tmp_path / "new" / "newer")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match=r"output='.*file.*': .*file is a file; name"):
            checks.folder("output", path)


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.os, "access", lambda path, mode: False)  # root may do everything
    with pytest.raises(PermissionError, match=r"output='.*new': .* may not be written to"):
        checks.folder("output", tmp_path / "new")
