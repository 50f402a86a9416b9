"""The ledger of measured figures: what it keeps, what it says is old, what it writes."""

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from jaxmeta.runs import reports

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def ledger():
    path = ROOT / "benchmarks" / "ledger.py"
    spec = importlib.util.spec_from_file_location("ledger", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ledger"] = module
    spec.loader.exec_module(module)
    return module


def of(ledger, **changes):
    settings = dict(
        title="A figure",
        command="python benchmarks/second_order.py",
        date="2026-11-27",
        seeds="1",
        machine="a machine",
        families=("navigation",),
        algorithms=("maml",),
        presets=(),
        sources={},
        lines=("| a |", "|---|", "| 1 |"),
    )
    return ledger.Figure(**(settings | changes))


def test_every_figure_says_where_it_is_from_and_is_shown(ledger):
    figures = ledger.load()
    assert len(figures) >= 15
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    for name, figure in figures.items():
        script = re.search(r"benchmarks/[\w/]+\.py", figure.command)
        assert (ROOT / script[0]).is_file(), name
        assert figure.lines[1].startswith("|---|"), name
        assert figure.sources, name
        assert f"<!-- results: {name} -->" in text, name


def test_a_script_needs_what_it_imports_and_of_the_registries_what_is_named(ledger):
    files = {
        "benchmarks/x.py": "from jaxmeta import tasks\nfrom jaxmeta.runs import training\nimport common",
        "benchmarks/common.py": "import os",
        "benchmarks/other.py": "",
        "jaxmeta/runs/training.py": "from jaxmeta.algorithms import ALGORITHMS\nimport jaxmeta.rollouts.rollout",
        "jaxmeta/rollouts/rollout.py": "from jaxmeta.tasks.family import TaskFamily",
        "jaxmeta/runs/__init__.py": "from jaxmeta.runs import reports, training, unused",
        "jaxmeta/runs/reports.py": "",
        "jaxmeta/runs/unused.py": "",
        "jaxmeta/tasks/__init__.py": "from jaxmeta.tasks import maze, catch",
        "jaxmeta/tasks/family.py": "",
        "jaxmeta/tasks/maze.py": "from jaxmeta.tasks.transform import laws",
        "jaxmeta/tasks/catch.py": "",
        "jaxmeta/tasks/transform/__init__.py": "from jaxmeta.tasks.transform import laws",
        "jaxmeta/tasks/transform/laws.py": "",
        "jaxmeta/algorithms/__init__.py": "from jaxmeta.algorithms import maml, rl2",
        "jaxmeta/algorithms/maml.py": "from jaxmeta.runs import reports",
        "jaxmeta/algorithms/rl2.py": "",
    }
    assert ledger.needed("benchmarks/x.py", ["maze"], ["maml"], files.get) == [
        "benchmarks/common.py",
        "benchmarks/x.py",
        "jaxmeta/algorithms/maml.py",
        "jaxmeta/rollouts/rollout.py",
        "jaxmeta/runs/training.py",
        "jaxmeta/tasks/family.py",
        "jaxmeta/tasks/maze.py",
        "jaxmeta/tasks/transform/__init__.py",
        "jaxmeta/tasks/transform/laws.py",
    ]


def test_a_figure_is_old_where_its_code_or_its_settings_have_changed(ledger):
    path = "jaxmeta/estimators/returns.py"
    now = reports.digest((ROOT / path).read_text(encoding="utf-8"))
    presets = ledger.settings(["rl2-maze"])
    assert list(presets) == ["preset rl2-maze"]
    fresh = of(ledger, presets=("rl2-maze",), sources={path: now} | presets)
    assert ledger.changed(fresh) == []
    old = dict.fromkeys((path, "jaxmeta/no_more.py", "preset rl2-maze"), "0" * 16)
    assert ledger.changed(dataclasses.replace(fresh, sources=old)) == list(old)


def test_what_a_script_leaves_is_kept(ledger, tmp_path):
    run, results = tmp_path / "run", tmp_path / "results"
    run.mkdir()
    left = {
        "settings": {"num_seeds": 4},
        "machine": "a machine",
        "command": "python benchmarks/second_order.py --output /home/me/run --repeats 3",
        "date": "2026-11-27",
        "sources": {
            "benchmarks/second_order.py": "1",
            "jaxmeta/rollouts/rollout.py": "2",
            "jaxmeta/references.py": "3",
        },
    }
    (run / "results.json").write_text(json.dumps(left))
    (run / "table.md").write_text("| a |\n|---|\n| 1 |\n")
    told = ledger.Add(
        run, "order", title="The order", families=("navigation",), algorithms=("maml",)
    )
    with pytest.raises(ValueError, match="families=None must be told"):
        ledger.add(dataclasses.replace(told, families=None), results)
    kept = ledger.add(told, results)
    assert kept == ledger.read(results / "order.json")
    assert kept.seeds == "4"
    assert kept.command == "python benchmarks/second_order.py --repeats 3"
    # What it does not run is left out.
    assert kept.sources == {"benchmarks/second_order.py": "1", "jaxmeta/rollouts/rollout.py": "2"}
    (run / "table.md").write_text("| a |\n|---|\n| 2 |\n")
    again = ledger.add(ledger.Add(run, "order", seeds="4 and 2"), results)
    assert again == dataclasses.replace(kept, lines=("| a |", "|---|", "| 2 |"), seeds="4 and 2")


def test_blocks_of_a_document_are_filled(ledger):
    figures = {"one": of(ledger), "two": of(ledger, title="Another", seeds="3 and 2")}
    text = "a\n<!-- results: one -->\nold\n<!-- end -->\nb\n<!-- results -->\n<!-- end -->\n"
    filled = ledger.filled(text, figures)
    assert filled.splitlines()[:7] == [
        "a",
        "<!-- results: one -->",
        "| a |",
        "|---|",
        "| 1 |",
        "",
        "`python benchmarks/second_order.py`; 2026-11-27, 1 seed, a machine.",
    ]
    assert "| Another | `python benchmarks/second_order.py` | 3 and 2 |" in filled
    assert ledger.filled(filled, figures) == filled
    with pytest.raises(ValueError, match="results='tow' is unknown: did you mean 'two'"):
        ledger.filled("<!-- results: tow -->\n<!-- end -->", figures)


def test_the_ledger_says_which_figures_are_old(ledger, capsys, monkeypatch):
    figures = {"one": of(ledger), "two": of(ledger, sources={"jaxmeta/estimators/exact.py": "0"})}
    monkeypatch.setattr(ledger, "load", lambda: figures)
    ledger.main(ledger.Show())
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith("| as it is |")
    assert lines[3].endswith("| older than jaxmeta/estimators/exact.py |")
