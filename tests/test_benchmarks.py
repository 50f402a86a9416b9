"""The scripts as a user runs them, small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

ROOT = Path(__file__).parent.parent
SMALL = (
    "--meta-updates=3 --num-tasks=2 --num-streams=2 --hidden-sizes=4 --checkpoint-every=2 "
    "--eval-tasks=4 --eval-updates=2 --step-size=0.3"
).split()


def run(script, *arguments, cwd=None):
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "120"},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    arguments = [*SMALL, "--task.horizon", "5", "--output", str(folder)]
    result = run("train.py", *arguments)
    assert result.returncode == 0, result.stderr
    return folder, arguments, result


def test_the_main_job_leaves_what_it_promises(trained):
    folder, _, result = trained
    assert sorted(p.name for p in folder.iterdir()) == [
        "adaptation.png",
        "checkpoints",
        "config.json",
        "evaluation.json",
        "metrics.jsonl",
        "trajectories.png",
    ]
    report = json.loads((folder / "evaluation.json").read_text())
    assert len(report["returns"]) == len(report["intervals"]) == len(report["gap_closed"]) == 3
    assert report["random"] < report["optimal"]
    assert report["num_tasks"] == 4
    assert len(report["out_of_distribution"]["returns"]) == 3
    for (low, high), mean in zip(report["intervals"], report["returns"], strict=True):
        assert low <= mean <= high
    record = json.loads((folder / "config.json").read_text())
    assert record["algorithm"] == "maml"
    assert record["family"] == "navigation"
    assert record["family_settings"]["horizon"] == 5
    assert record["config"]["hidden_sizes"] == [4]
    assert record["training"]["meta_updates"] == 3
    assert record["hyper"]["step_size"] == 0.3
    for name in ("adaptation.png", "trajectories.png"):
        assert min(matplotlib.image.imread(folder / name).shape[:2]) > 300
    assert "Held-out tasks" in result.stdout
    assert "optimal agent" in result.stdout


def test_a_second_run_is_refused_unless_it_resumes(trained):
    folder, arguments, _ = trained
    before = (folder / "metrics.jsonl").read_text()
    refused = run("train.py", *arguments)
    assert refused.returncode != 0
    assert "is not empty" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (folder / "metrics.jsonl").read_text() == before
    longer = [*arguments, "--resume", "--meta-updates", "4"]
    assert run("train.py", *longer).returncode == 0
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["update"] for row in rows] == [1, 2, 3, 4]
    assert rows[:3] == before.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "cartpol"], "family='cartpol' is unknown: did you mean 'cartpole'"),
        (["--algorithm", "mamal"], "algorithm='mamal' is unknown: did you mean 'maml'"),
        (["--num-tasks", "0"], "num_tasks=0 must be at least 1"),
        (["--task.horizon", "0"], "horizon=0 must be at least 1"),
        (["--num-steps", "0"], "num_steps=0 must be at least 1"),
        (["--policy", "categorical"], "needs a discrete action space"),
        (["--resume"], "nothing to resume"),
        (["--eval-tasks", "1"], "eval_tasks=1 must be at least 2"),
    ],
)
def test_bad_input_is_answered_before_anything_compiles(arguments, message, tmp_path):
    result = run("train.py", *arguments, "--output", str(tmp_path / "run"))
    assert result.returncode != 0
    assert message in result.stderr.replace("\n", " "), result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_help_names_every_setting():
    text = run("train.py", "--help").stdout
    for option in ("algorithm", "family", "num-tasks", "num-streams", "num-steps", "num-updates"):
        assert f"--{option}" in text
    for option in ("meta-updates", "seed", "output", "resume", "inner-surrogate", "step-size"):
        assert f"--{option}" in text
    assert "--task.radius" in run("train.py", "--family", "sparse_navigation", "--help").stdout


def test_a_run_that_diverges_still_reports_valid_json(tmp_path):
    settings = [x for x in SMALL if "step-size" not in x]
    out = tmp_path / "out"
    result = run("train.py", *settings, "--step-size=3e5", "--task.horizon=5", "--output", str(out))
    assert result.returncode == 0, result.stderr

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads((out / "evaluation.json").read_text(), parse_constant=refuse)


def test_any_family(tmp_path):
    result = run(
        "train.py",
        *SMALL,
        "--family",
        "cartpole",
        "--task.horizon",
        "5",
        "--output",
        "out",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["optimal"] is None
    assert report["gap_closed"] is None


def test_navigation_study(tmp_path):
    small = [
        "--num-seeds",
        "2",
        "--meta-updates",
        "2",
        "--num-tasks",
        "2",
        "--num-streams",
        "2",
        "--eval-tasks",
        "3",
    ]
    result = run(
        "navigation.py", *small, "--fine-tuning-steps", "1.0", "--output", "out", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(report["rows"]) == 4
    for row in report["rows"].values():
        assert len(row["gap_closed_by_seed"]) == 2
    assert "| MAML |" in (tmp_path / "out" / "table.md").read_text()
    assert "is not empty" in run("navigation.py", *small, "--output", "out", cwd=tmp_path).stderr
