import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxmeta.runs import reports


def test_machine_says_what_figures_depend_on():
    assert f"jax {jax.__version__}" in reports.machine()
    assert "CPU cores" in reports.machine()


def test_what_is_there_is_not_overwritten(tmp_path):
    reports.refuse_to_overwrite(tmp_path)
    reports.refuse_to_overwrite(tmp_path / "new")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(FileExistsError, match="is not empty: name another folder"):
        reports.refuse_to_overwrite(tmp_path)
    with pytest.raises(FileExistsError, match="results.json is not empty: name another folder"):
        reports.refuse_to_overwrite(tmp_path / "results.json")


def test_tables(tmp_path):
    rows = [{"agent": "RL²", "mean": "1.0"}, {"mean": "2, or so", "agent": "greedy"}]
    assert reports.markdown(rows) == [
        "| agent | mean |",
        "|---|---|",
        "| RL² | 1.0 |",
        "| greedy | 2, or so |",
    ]
    reports.write_csv(tmp_path / "table.csv", rows)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_programs_on_one_core():
    def cores():
        ask = "import os; print(sorted(os.sched_getaffinity(0)))"
        return json.loads(subprocess.check_output([sys.executable, "-c", ask]))

    before = sorted(os.sched_getaffinity(0))
    with reports.on_core(before[-1]):
        assert cores() == [before[-1]]
    assert sorted(os.sched_getaffinity(0)) == before == cores()
    with reports.on_core(None):
        assert cores() == before


@pytest.mark.slow
def test_what_a_script_leaves(tmp_path, capsys):
    settings = {"output": tmp_path / "out", "repeats": 3}
    reports.leave(tmp_path / "out", settings, [{"a": "1"}], rows=[{"a": 1.5}])
    left = json.loads((tmp_path / "out" / "results.json").read_text())
    assert left["settings"] == {"output": str(tmp_path / "out"), "repeats": 3}
    assert left["machine"] == reports.machine()
    assert left["rows"] == [{"a": 1.5}]
    assert (
        (tmp_path / "out" / "table.md").read_text()
        == capsys.readouterr().out
        == "| a |\n|---|\n| 1 |\n"
    )


def test_lines_are_left_as_they_are(tmp_path, capsys):
    reports.leave(tmp_path / "out", {}, ["| a |", "|---|", "", "and so on"])
    assert (tmp_path / "out" / "table.md").read_text() == "| a |\n|---|\n\nand so on\n"


def test_provenance_says_what_was_run_on_what(tmp_path):
    """Of a script elsewhere: its own file, the library's that it imports and none that it does not."""
    script = tmp_path / "measure.py"
    script.write_text(
        "import json\nfrom jaxmeta.runs import reports\nprint(json.dumps(reports.provenance()))\n"
    )
    told = json.loads(subprocess.check_output([sys.executable, str(script), "--core", "a b"]))
    assert told["command"] == "python measure.py --core 'a b'"
    assert told["machine"] == reports.machine()
    assert set(told["sources"]) == {
        "measure.py",
        "jaxmeta/__init__.py",
        *(f"jaxmeta/runs/{name}.py" for name in ("__init__", "records", "reports", "terminal")),
    }
    source = Path(reports.__file__).read_text(encoding="utf-8")
    assert told["sources"]["jaxmeta/runs/reports.py"] == reports.digest(source)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ('"""Told better."""\n\ndef f(x):  # why\n    """What."""\n\n    return (x + 1)\n', True),
        ("def f(x):\n    return x + 2\n", False),
        ("def f(y):\n    return y + 1\n", False),
        ("def f(x):\n    return x + 1\n\nf(2)\n", False),
        ("def f(x):\n    return x + 1.0\n", False),
    ],
)
def test_a_digest_is_of_the_code_and_not_of_the_words(other, same):
    mine = reports.digest("def f(x):\n    return x + 1\n")
    assert (reports.digest(other) == mine) is same
