"""An environment of one's own, registered in gymnax for a test."""

import gymnax
import pytest

from tests.tasks.transform.shared import Own


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(gymnax.registration, "_registry", dict(gymnax.registration._registry))
    gymnax.register("Own", Own)
    yield "Own"
    gymnax.registered_envs.remove("Own")
