import inspect
from pathlib import Path

import pytest

from jaxmeta import tasks
from tests.probes import made


def test_names_are_what_make_knows():
    assert {"navigation", "sparse_navigation", "cartpole", "pendulum"} <= set(tasks.names())


@pytest.mark.parametrize("name", tasks.names())
def test_a_family_knows_its_name(name):
    assert made(name).name == name


def test_settings_reach_the_family():
    assert tasks.make("navigation", horizon=7).horizon == 7
    assert tasks.make("cartpole", horizon=9).horizon == 9


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match="family='navigatoin' is unknown: did you mean 'navigation'"
    ):
        tasks.make("navigatoin")
    with pytest.raises(
        ValueError, match="setting of family 'cartpole'='horizen' is unknown: did you mean"
    ):
        tasks.make("cartpole", horizen=3)


@pytest.mark.parametrize("name", tasks.names())
def test_a_horizon_shorter_than_a_step_is_refused(name):
    settings = inspect.signature(tasks.FAMILIES[name]).parameters
    (limit,) = settings.keys() & {"horizon", "num_pulls", "length"}
    with pytest.raises(ValueError, match=f"{limit}=0 must be at least 1"):
        made(name, **{limit: 0})


def test_your_own_family_gets_a_name(monkeypatch):
    monkeypatch.setitem(
        tasks.FAMILIES, "mine", lambda *, horizon=3: tasks.make("navigation", horizon=horizon)
    )
    assert tasks.make("mine", horizon=5).horizon == 5


@pytest.mark.parametrize("name", tasks.names())
def test_a_family_is_described_in_one_line(name):
    assert 10 < len(tasks.describe(name)) < 140
    assert tasks.describe(name).endswith(".")


@pytest.mark.parametrize("name", tasks.names())
def test_the_table_of_families_has_each_as_the_code_describes_it(name):
    results = Path(__file__).parents[2] / "benchmarks" / "RESULTS.md"
    assert f"| `{name}` | {tasks.describe(name)} |" in results.read_text(encoding="utf-8")
