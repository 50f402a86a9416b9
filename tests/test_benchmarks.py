"""The scripts as a user runs them, small; those that answer a question each are slow, for each compiles a lot."""

import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from jaxmeta import networks, tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.learners import update_rules
from jaxmeta.runs import claims, presets, training
from tests.conftest import IN_EARNEST

ROOT = Path(__file__).parent.parent
SMALL = (
    "--meta-updates=3 --num-tasks=2 --num-streams=2 --hidden-sizes=4 --checkpoint-every=2 "
    "--eval-tasks=4 --eval-updates=2 --step-size=0.3"
).split()


class Ended(NamedTuple):
    """The exit status and the output of a script."""

    returncode: int
    stdout: str
    stderr: str


def started(script, *arguments, cwd=None, timeout=300, stdout=subprocess.PIPE, **environment):
    """A script in a process of its own, as a user starts it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "120"} | environment,
    )


def run(script, *arguments, cwd, code=None):
    """A script in this process, where everything is imported already.

    ``code``, if any, runs in the place of the script, which is the module ``script`` to it.
    """
    path = ROOT / "benchmarks" / script
    stdout, stderr = io.StringIO(), io.StringIO()
    x64 = jax.config.jax_enable_x64
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [str(path), *arguments])
        patch.setattr(training, "enable_compilation_cache", lambda *_: None)
        patch.setenv("COLUMNS", "120")
        patch.syspath_prepend(path.parent)
        try:
            if code is None:
                runpy.run_path(str(path), run_name="__main__")
            else:
                exec(code, {"script": importlib.import_module(path.stem)})
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else bool(end.code)
            stderr.write(f"{end}")
    jax.config.update("jax_enable_x64", x64)  # which a script may set
    return Ended(status, stdout.getvalue(), stderr.getvalue())


@pytest.fixture
def refusal(tmp_path):
    """``(script, *arguments) -> text``: all that a script shows which ends at once, in `tmp_path`."""

    def ended(script, *arguments):
        result = run(script, *arguments, cwd=tmp_path)
        assert result.returncode != 0
        return f"{result.stdout} {result.stderr}"

    return ended


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Into a folder that is called by a setting, on a terminal of few characters."""
    folder = tmp_path_factory.mktemp("runs") / "sizes=[4]"
    arguments = [*SMALL, "--task.horizon", "5", "--output", str(folder)]
    result = started("train.py", *arguments, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    return folder, arguments, result


@pytest.fixture(scope="module")
def script():
    """`train.py` as a module."""
    spec = importlib.util.spec_from_file_location("train", ROOT / "benchmarks" / "train.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "train", module)  # the command line looks for its source there
        patch.syspath_prepend(ROOT / "benchmarks")
        spec.loader.exec_module(module)
        patch.setattr(module.training, "enable_compilation_cache", lambda: None)
        patch.setenv("COLUMNS", "200")
        yield module


def said(script, capsys, *arguments):
    """All that a script shows which ends at once."""
    with pytest.raises(SystemExit) as end:
        script.main([*arguments])
    shown = capsys.readouterr()
    return f"{shown.out} {shown.err} {end.value}"


@pytest.mark.slow
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
    assert " -> " in result.stdout


@pytest.mark.slow
def test_a_second_run_is_refused_unless_it_resumes(trained, script, capsys):
    folder, arguments, _ = trained
    before = (folder / "metrics.jsonl").read_text()
    refused = started("train.py", *arguments)
    assert refused.returncode != 0
    assert "is not empty" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (folder / "metrics.jsonl").read_text() == before
    changed = said(script, capsys, "--resume", str(folder), "--num-tasks=3", "--task.horizon=6")
    assert "error: horizon is 6 and was 5; num_tasks is 3 and was 2: the run in" in changed
    assert "meta_updates, checkpoint_every, report_seconds may change" in changed
    read, write = os.pipe()
    os.close(read)  # nobody looks at what it shows
    flags = ["--resume", str(folder), "--meta-updates=4", "--eval-tasks=2"]
    longer = started("train.py", *flags, stdout=write)
    os.close(write)
    assert longer.returncode == 0, longer.stderr
    assert "BrokenPipe" not in longer.stderr
    assert json.loads((folder / "evaluation.json").read_text())["num_tasks"] == 2
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
        (["--resume"], "run/config.json does not exist"),
        (
            ["--algorithm", "rl2", "--family", "gridnavi", "--num-tasks=10", "--num-minibatches=4"],
            "error: num_minibatches=4 must divide the number of trials",
        ),
        (["--eval-tasks", "1"], "eval_tasks=1 must be at least 2"),
        (["--algorithm", "meta_value"], "predicts returns and earns none"),
    ],
)
def test_bad_input_is_answered_before_anything_compiles(
    arguments, message, script, capsys, tmp_path
):
    assert message in said(script, capsys, *arguments, "--output", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_tables_of_what_was_not_counted(script):
    """A mean of nothing, tasks that were left out, no optimum."""
    summary = {
        "num_tasks": 3,
        "skipped_tasks": 2,
        "skipped_streams": 7,
        "returns": [None, 1.5],
        "intervals": [[None, None], [1.0, 2.0]],
        "gap_closed": [None, 0.25],
        "random": None,
        "optimal": 3.0,
    }
    console = Console(file=io.StringIO(), width=100)
    for changes in ({}, {"gap_closed": None, "optimal": None, "skipped_tasks": 0}):
        console.print(script.table("Title", summary | changes, "step"))
    shown, bare = console.file.getvalue().split("Title")[1:]
    assert "3 tasks, 2 tasks left out, 7 broken streams left out" in shown
    assert re.search(r"0 . +none . +. +.\n", shown)
    assert re.search(r"1 . +1.50 . +1.00 to 2.00 . +25.0 % ", shown)
    assert "random agent" not in shown
    assert re.search(r"optimal agent . +3.00", shown)
    assert "3 tasks, 7 broken streams left out" in bare
    assert "optimal agent" not in bare


def test_a_figure_that_cannot_be_drawn_is_said(script):
    with pytest.warns(UserWarning, match="a.png could not be drawn: ZeroDivisionError"):
        script.draw("a.png", lambda: 1 / 0)


def test_a_resumed_run_is_measured_as_before(script, tmp_path):
    assert script.evaluation_of(tmp_path) == script.evaluation_of(None) == script.Evaluation()
    told = dict(eval_tasks=4, eval_updates=2)
    (tmp_path / "evaluation.json").write_text(json.dumps({"settings": told}))
    assert script.evaluation_of(tmp_path) == script.Evaluation(**told)
    (tmp_path / "evaluation.json").write_text("{")
    assert script.evaluation_of(tmp_path) == script.Evaluation()


def test_help_names_every_setting(script, capsys):
    text = said(script, capsys, "--help")
    for option in ("algorithm", "family", "num-tasks", "num-streams", "num-steps", "num-updates"):
        assert f"--{option}" in text
    for option in ("meta-updates", "seed", "output", "resume", "inner-surrogate", "step-size"):
        assert f"--{option}" in text
    assert "--task.radius" in said(script, capsys, "--family", "sparse_navigation", "--help")


def test_help_is_in_groups_that_say_what_they_depend_on(script, capsys):
    text = said(script, capsys, "--algorithm", "rl2", "--family", "catch", "--help")
    titles = [x for x in re.findall(r"(\w+) options", text) if x != "OPTIONS"]
    assert titles == ["experiment", "training", "algorithm", "task", "evaluation", "output"]
    assert "depend on --algorithm and --family" in text
    assert "--memory-size" in text
    assert "--task.permuted-actions" in text


def test_the_list_names_everything_with_a_line_each(script, capsys):
    text = said(script, capsys, "--list")
    for names in (ALGORITHMS, tasks.FAMILIES, presets.PRESETS):
        for name in names:
            assert re.search(rf"^  {re.escape(name)} +\S", text, re.MULTILINE), name
    assert "rl2 on gridnavi, 400 meta-updates of 256 tasks" in text


def test_a_wrong_name_is_told_the_nearest_three_and_where_the_list_is(script, capsys):
    for flag, wrong, right in (
        ("--preset", "rl2-gridnvai", "rl2-gridnavi"),
        ("--family", "gridnvai", "gridnavi"),
    ):
        text = said(script, capsys, flag, wrong)
        assert f"did you mean '{right}' or " in text
        assert text.count(" or '") == 2
        assert "train.py --list lists all" in text


def test_without_flags_it_is_the_quick_preset(script):
    args = script.settings([])
    assert script.experiment_of(args).plan.meta_updates == 200
    assert args.algorithm.hyper.learning_rate == 1e-2
    named = script.settings(["--family", "navigation"])
    assert named.training.meta_updates == 500
    assert named.algorithm.hyper.learning_rate == 5e-3


@pytest.mark.slow
def test_a_run_that_diverges_still_reports_valid_json(tmp_path):
    settings = [x for x in SMALL if "step-size" not in x]
    out = tmp_path / "out"
    settings += ["--step-size=3e5", "--task.horizon=5", "--output=out"]
    result = run("train.py", *settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads((out / "evaluation.json").read_text(), parse_constant=refuse)


@pytest.mark.slow
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


@pytest.mark.slow
def test_navigation_study(tmp_path, refusal):
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
    assert "is not empty" in refusal("navigation.py", *small, "--output", "out")


@pytest.mark.slow
def test_time_to_study(tmp_path, refusal):
    """A gradient learner and one with memory, each measured in its own way."""
    small = "--learners reptile-navigation rl2-bandit-5-10 --num-seeds 2 --budget 0.01 --looks 2 --eval-share 0.02"
    result = run("time_to.py", *small.split(), "--output", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    learners = json.loads((tmp_path / "out" / "results.json").read_text())["learners"]
    assert set(learners) == {"reptile-navigation", "rl2-bandit-5-10"}
    for learner in learners.values():
        assert np.shape(learner["seconds"]) == np.shape(learner["shares"])
        assert len(learner["seconds"]) == 2
        assert learner["compiling"] > 0
    bandit = learners["rl2-bandit-5-10"]
    assert bandit["env_steps"] == [2 * 2048 * 10, 4 * 2048 * 10]
    assert bandit["best"] == pytest.approx(6.660, abs=1e-3)
    assert -1 < learners["reptile-navigation"]["best"] < 0
    assert np.all(np.ravel(learners["reptile-navigation"]["shares"]) < 1)
    # Untrained networks pull arms whose mean is a half.
    assert np.ravel(bandit["shares"]) == pytest.approx(5 / 6.660, abs=0.1)
    assert "| rl2-bandit-5-10 | 0.99 | more than" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "steps.png").exists()
    assert "is not empty" in refusal("time_to.py", *small.split(), "--output", "out")
    again = run("time_to.py", *small.split(), "--resume", "--output", "out", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_off_policy_study(tmp_path, refusal):
    small = (
        "--contests memory --learners rl2 --num-seeds 2 --budget 0.005 --looks 2 --eval-tasks 20"
    )
    result = run("off_policy.py", *small.split(), "--output", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    learner = json.loads((tmp_path / "out" / "results.json").read_text())["learners"]["rl2-memory"]
    assert learner["env_steps"] == [32 * 2 * 20, 2 * 32 * 2 * 20]
    assert np.shape(learner["returns"]) == (2, 2, 2)
    assert np.shape(learner["cpu_seconds"]) == (2, 2)
    assert learner["random"] < learner["told"]
    assert "| rl2-memory | more than" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "steps.png").exists()
    assert "is not empty" in refusal("off_policy.py", *small.split(), "--output", "out")


@pytest.mark.slow
def test_algorithms_study(tmp_path, refusal):
    small = "--num-seeds 2 --meta-updates 2 --num-tasks 2 --num-streams 2 --eval-tasks 3 --eval-updates 1"
    cells = ["--algorithms", "MAML", "ES", "--families", "navigation"]
    arguments = [*small.split(), *cells, "--output", "out"]
    result = run("algorithms.py", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert sorted(report["cells"]) == ["es-navigation", "maml-navigation"]
    maml, es = report["cells"]["maml-navigation"], report["cells"]["es-navigation"]
    assert maml["env_steps"] == 2 * 2 * 2 * 100 * 2
    assert maml["meta_updates"] == 2
    assert es["env_steps"] >= maml["env_steps"]
    for cell in (maml, es):
        assert len(cell["normalized"]) == len(cell["intervals"]) == 2
        low, high = cell["intervals"][1]
        assert low <= cell["normalized"][1] <= high
        assert np.shape(cell["curve"]["after"]) == (2, cell["meta_updates"])
    assert "| MAML |" in result.stdout
    assert (tmp_path / "out" / "learning.png").stat().st_size > 10_000

    assert "is not empty" in refusal("algorithms.py", *arguments)
    before = (tmp_path / "out" / "cells" / "es-navigation.json").read_text()
    assert run("algorithms.py", *arguments, "--resume", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "cells" / "es-navigation.json").read_text() == before
    other = [x if x != "3" else "4" for x in arguments]
    assert "other settings" in refusal("algorithms.py", *other, "--resume")
    unknown = refusal("algorithms.py", "--algorithms", "MAMML")
    assert "algorithms='MAMML' is unknown: did you mean 'MAML'" in unknown


@pytest.mark.slow
def test_units_study(tmp_path, refusal):
    """Three updates: what claims it is the same in every unit, and A2C without scales is not."""
    small = (
        "--families navigation --num-seeds 2 --meta-updates 3 --trials 2 --num-tasks 2 --num-streams 2 "
        "--eval-tasks 4 --output out"
    )
    learners = ("RL²", "MAML, normalized", "A2C, scaled rewards", "A2C, rewards as they are")
    result = run("units.py", *small.split(), "--learners", *learners, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert len(rows) == 4
    for name, row in rows.items():
        little, usual, much = np.asarray(row["by_seed"], float)
        if name.endswith("as they are"):
            assert not np.allclose(much, usual, atol=0.05), name  # or it diverges
        else:
            np.testing.assert_allclose([little, much], [usual, usual], atol=0.05, err_msg=name)
            assert row["agree"]
            assert np.abs(usual).max() > 0.1
    assert "| navigation | RL² |" in result.stdout
    assert "did you mean 'navigation'" in refusal("units.py", "--families", "navigatoin")


@pytest.mark.slow
def test_second_order_study(tmp_path, refusal):
    small = "--num-updates 1 2 --num-tasks 2 --num-streams 2 --repeats 1 --output out"
    result = run("second_order.py", *small.split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert list(report) == ["1", "2"]
    for rows in report.values():
        assert list(rows) == ["kept", "rematerialised", "first order"]
    # Of a single update there is nothing to save.
    assert report["2"]["kept"]["memory_bytes"] > 1.5 * report["2"]["rematerialised"]["memory_bytes"]
    assert "| 2 | rematerialised |" in result.stdout
    assert "is not empty" in refusal("second_order.py", "--output", "out")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chain", "physics", "memory"])
def test_meta_gradient_study(kind, tmp_path, refusal):
    small = {
        "chain": "--meta-updates 3 --value-updates 2 --num-streams 2 --variants fixed plain",
        "physics": "--meta-updates 3 --discounts 0.5 0.9 --lambdas 0.5 --num-agents 2 --num-streams 2 "
        "--num-steps 16 --num-seeds 2",
        "memory": "--lifetimes 4 40 --num-agents 2 --num-streams 2 --num-steps 4",
    }[kind]
    # The other two of what is learned are programs of the same kind, as long to compile.
    alone = (
        "script.LEARNED = {'learned': script.LEARNED['learned']}; "
        "kinds = {kind: getattr(script, f'run_{kind.__name__.lower()}') for kind in "
        "(script.Chain, script.Physics, script.Memory)}; script.study.main(kinds, script.__doc__)"
    )
    two = alone.replace(
        "script.LEARNED = {'learned': script.LEARNED['learned']}",
        "del script.KEPT['through the lifetime, values kept']",
    )
    result = run(
        *("meta_gradient.py", kind, *small.split(), "--output", "out"),
        code={"physics": alone, "memory": two}.get(kind),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    if kind == "chain":
        assert [*results] == ["fixed", "plain"]
        assert results["fixed"][0]["discount"] == 0.95 != results["plain"][0]["discount"]
        assert "| plain |" in result.stdout
    if kind == "physics":
        assert results["grid"] == [[0.5, 0.5], [0.9, 0.5]]
        assert np.shape(results["fixed"]["return/after"]) == (2, 2, 3)
        assert np.shape(results["learned"]["learned/discount"]) == (1, 2, 3)
        assert "| best fixed |" in result.stdout
        assert "| best fixed, its search included |" in result.stdout
        learned, fixed = (
            np.asarray(results[name]["return/after"])[..., -1].mean(1)
            for name in ("learned", "fixed")
        )
        (row,) = (x for x in result.stdout.splitlines() if x.startswith("| learned |"))
        lead = learned[0] - fixed.max()
        assert abs(lead) > 0.05  # so that its sign is seen
        assert abs(float(row.split("|")[5].split("±")[0]) - lead) < 0.01
    if kind == "memory":
        cells = {(row["meta_gradient"], row["lifetime"]): row for row in results["rows"]}
        for name in {name for name, _ in cells}:
            short, long = (cells[name, updates]["memory_bytes"] for updates in (4, 40))
            assert (short == long) if "one update" in name else (long > 1.2 * short), name
    assert min(matplotlib.image.imread(tmp_path / "out" / "meta_gradient.png").shape[:2]) > 300
    assert "is not empty" in refusal("meta_gradient.py", kind, "--output", "out")


@pytest.mark.slow
def test_off_policy_evaluation_study(tmp_path, refusal):
    small = "--meta-updates 4 --num-tasks 10 --num-tuning 10 --distances 0.2 --updates 1 2".split()
    result = run("off_policy_evaluation.py", *small, "--output", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["beginning"] for row in rows] == ["meta-learned", "mean task", "random"]
    for row in rows:
        assert row["after_2_low"] <= row["after_2"] <= row["after_2_high"]
        assert 0.1 < row["log_ratio"] < 0.3
    assert rows[0]["tuned"] == {"1": None, "2": None}
    # What was tuned changes what comes out, and the meta-learned value is measured against both.
    assert rows[1]["share_1"] == pytest.approx(rows[0]["after_1"] / rows[1]["after_1"])
    assert len((tmp_path / "out" / "table.csv").read_text().splitlines()) == 4
    assert "| mean task |" in result.stdout
    image = matplotlib.image.imread(tmp_path / "out" / "off_policy_evaluation.png")
    assert min(image.shape[:2]) > 300
    assert "is not empty" in refusal("off_policy_evaluation.py", "--output", "out")


@pytest.mark.slow
def test_learned_objective_study(tmp_path):
    small = "--meta-updates 2 --num-agents 2 --lifespan 25 --transfer-lifespan 25 --num-streams 2"
    small += " --num-steps 5 --tune-tasks 2 --eval-tasks 3 --transfer-agents 2 --window 5"
    small += " --gae-lambdas 0.9 --entropy-costs 0.01 --output out"
    settings = ["--compare-on", "Catch"]
    result = run("learned_objective.py", "train", *small.split(), *settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(report["results"]) == ["Catch"]
    for entry in report["results"].values():
        assert entry["random"] < entry["best"]
        assert list(entry["contestants"]) == ["LPG", "A2C"]
        for cell in entry["contestants"].values():
            assert len(cell["mean"]) == len(cell["intervals"]) == len(cell["x"]) == 26
        learned, tuned = (np.asarray(cell["final"]) for cell in entry["contestants"].values())
        assert f"| {(learned - tuned).mean():.3f} (" in result.stdout
    assert len(report["training_curve"]["grid worlds"]) == 2
    assert min(matplotlib.image.imread(tmp_path / "out" / "lifetimes.png").shape[:2]) > 300
    assert "| Catch | A2C |" in result.stdout


FEW_LIVES = (
    "--num-agents 2 --num-streams 2 --num-steps 4 --window 2 --lpg-meta-updates 2 --looks 2 --episodes 2 --tasks 2 --num-seeds 2 "
    "--output out"
)


@pytest.mark.slow
def test_comparison_of_rules(tmp_path, refusal):
    """A learned and a fixed rule, tables and networks; two seeds of each."""
    small = f"{FEW_LIVES} --rules A2C OPEN --lifespan 4 --long-lifespan 2 --open-meta-updates 2 --hidden-sizes 3"
    families = ["--families", "random MDPs", "Catch"]
    result = run("learned_rules.py", "compare", *small.split(), *families, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert sorted(x.name for x in (tmp_path / "out" / "rules").iterdir()) == [
        "OPEN-0.json",
        "OPEN-1.json",
    ]
    for entry in report["results"].values():
        assert entry["rules"].keys() == {"A2C", "OPEN"}
        for cell in entry["rules"].values():
            for split in ("test", "out_of_distribution"):
                assert np.shape(cell["returns"][split]) == (2, 2, 3)
            assert cell["microseconds"] > 0
        # A new agent is the same one under every rule.
        newborn = [np.array(cell["returns"]["test"])[..., 0] for cell in entry["rules"].values()]
        np.testing.assert_array_equal(*newborn)
    assert "| ahead of A2C |" in result.stdout
    again = run("learned_rules.py", "compare", *small.split(), *families, "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "is learned" not in again.stderr
    assert again.stdout.splitlines()[:6] == result.stdout.splitlines()[:6]
    assert "weights=None must be the path of the published weights" in refusal(
        "learned_rules.py", "compare", "--rules", "Disco"
    )
    assert "lifespan=25 must be a multiple of window=10" in refusal(
        "learned_rules.py", "compare", "--lifespan", "25"
    )


@pytest.mark.slow
def test_rules_in_lives_of_several_lengths(tmp_path, refusal):
    small = f"{FEW_LIVES} --lifespans 2 4"
    result = run("learned_rules.py", "lifespans", *small.split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [*report] == ["random MDPs, 2 updates", "random MDPs, 4 updates"]
    assert "| ahead of LPG |" in result.stdout
    assert "lifespans=15 must be a multiple of window=10" in refusal(
        "learned_rules.py", "lifespans", "--lifespans", "15"
    )


@pytest.mark.slow
def test_learned_rules_study(tmp_path, refusal):
    """Random weights of the published sizes, and a check of weights that are others than the published ones.

    LPG is in the folder already: to learn it takes a minute.
    """
    small = "--updates 4 --every 2 --num-seeds 2 --num-steps 3 --num-sampled 2 --capacity 4 --episodes 8"
    small += " --hidden-sizes 4 --model-size 4 --step-sizes 0.1 0.01 --entropy-costs 0 0.1 --lpg-meta-updates 1 --output out"
    rule = jax.tree.map(lambda x: x.tolist(), update_rules.lpg().init(jax.random.key(0)))
    (tmp_path / "out" / "rules").mkdir(parents=True)
    kept = {"params": rule, "settings": {"lpg_meta_updates": 1}}
    (tmp_path / "out" / "rules" / "LPG-0.json").write_text(json.dumps(kept))
    result = run("learned_rules.py", "catch", *small.split(), "--resume", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "is learned" not in result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert list(report) == ["Disco", "A2C", "LPG"]
    for found in report.values():
        assert list(found["caught"]) == ["0", "1"]
        assert all(len(x) == 2 and 0 <= min(x) <= max(x) <= 1 for x in found["caught"].values())
    # The settings of others are those whose agents, which are no contestants, catch the most at last.
    for name, number in (("A2C", 4), ("LPG", 2)):
        choice = json.loads((tmp_path / "out" / "choices" / f"{name}.json").read_text())["caught"]
        assert np.shape(choice) == (number, 5, 2)
        best = int(np.argmax(np.mean(choice, axis=1)[:, -1]))
        step_size = (0.1, 0.01)[best * 2 // number]
        assert report[name]["chosen"]["step_size"] == step_size
    assert matplotlib.image.imread(tmp_path / "out" / "catch.png").size > 0
    again = run("learned_rules.py", "catch", *small.split(), "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "caught" not in again.stderr
    assert again.stdout.splitlines()[:11] == result.stdout.splitlines()[:11]
    weights = networks.disco.init(jax.random.key(0))
    np.savez(tmp_path / "weights.npz", **{name: np.asarray(x) for name, x in weights.items()})
    result = run("learned_rules.py", "check", "--weights", "weights.npz", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "| memory, the first three |" in result.stdout
    assert "updates=5 must be a multiple of every=2" in refusal(
        "learned_rules.py", "catch", "--updates", "5", "--every", "2"
    )
    assert "weights=None must be" in refusal("learned_rules.py", "check", "--output", "other")


@pytest.mark.slow
def test_lifetime_memory_study(tmp_path):
    """Two windows and twenty: a single one would be compiled without a loop."""
    small = "--lifespans 4 40 --window 2 --num-agents 2 --num-streams 2 --num-steps 5 --output out"
    # The other kinds are programs that take as long to compile.
    three = (
        "kinds = script.KINDS; script.KINDS = [kinds[i] for i in (0, 3, -1)]; "
        "script.study.main({script.Train: script.train, script.Memory: script.memory}, script.__doc__)"
    )
    result = run("learned_objective.py", "memory", *small.split(), cwd=tmp_path, code=three)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    for name, cells in report.items():
        short, long = (cells[updates]["temporary_bytes"] for updates in ("4", "40"))
        assert (long > 1.5 * short) if "whole" in name else (long == short), name
    assert "| OPEN | evolution strategies, truncated |" in result.stdout
    assert "| LPG | meta-gradient, whole lifetime |" in result.stdout


@pytest.mark.slow
def test_any_algorithm(tmp_path):
    """The one whose state is another library's."""
    settings = [x for x in SMALL if "step-size" not in x]
    arguments = ["--algorithm", "es", "--task.horizon", "5", "--output", "out"]
    arguments += ["--population-size", "4"]
    result = run("train.py", *settings, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["algorithm"] == "es"
    resumed = run("train.py", *settings, *arguments, "--resume", "--meta-updates=4", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.slow
def test_estimators_study(tmp_path, refusal):
    small = "--num-states 2 --num-actions 2 --horizon 3 --num-features 3 --cost-steps 3".split()
    small += "--distance 0.3 --values wrong --meta-batch-sizes 1 3 --output out".split()
    result = run("estimators.py", *small, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = report["estimators"]
    for unbiased in ("dice", "taypo 3", "vtrace (2, 2)"):
        assert max(rows[unbiased][kind]["bias"] for kind in ("gradient", "hessian")) < 1e-11
    for biased in ("score", "lvc", "taypo 2", "loaded_dice 0.5", "vtrace (1, 1)", "ppo_clip"):
        assert rows[biased]["hessian"]["bias"] > 1e-4
    assert rows["taypo 2"]["gradient"]["bias"] < rows["taypo 1"]["gradient"]["bias"]
    assert all(row["microseconds"] > 0 for row in rows.values())
    for column in report["meta_gradients"].values():
        for name, row in column.items():
            assert (row["bias"] < 1e-11) == ("E-MAML" in name), name
    one, three = (report["meta_gradients"][size] for size in ("1", "3"))
    assert three["dice"]["bias"] < one["dice"]["bias"]
    left_out = "naive + E-MAML, leave one out"
    assert three[left_out]["std"] < one[left_out]["std"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| dice | 0 |" in table
    assert "| meta-gradient | N = 1 | N = 3 |" in table
    for name in ("estimators.png", "meta_gradients.png"):
        assert min(matplotlib.image.imread(tmp_path / "out" / name).shape[:2]) > 300
    assert "is not empty" in refusal("estimators.py", *small)
    assert "num_states=4, num_actions=3 and horizon=9 make 10^9.7" in refusal(
        "estimators.py", "--horizon", "9"
    )
    assert not (tmp_path / "runs").exists()


SMALL_REPRODUCTIONS = {
    "bandits": (["--meta-updates=2"], ["random", "Gittins", "Thompson", "UCB1", "greedy", "RL²"]),
    "dependent_bandits": (
        ["--meta-updates=2", "--num-tasks=4", "--kinds=easy"],
        ["Thompson, independent priors", "RL²"],
    ),
    "tabular": (["--meta-updates=2", "--num-tasks=4"], ["random", "PSRL", "RL² with counts"]),
    "gridnavi": (
        ["--meta-updates=2", "--num-tasks=4"],
        ["VariBAD", "RL²", "told the goal", "straight to the goal"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_REPRODUCTIONS)
def test_reproductions(name, tmp_path, refusal):
    small, agents = SMALL_REPRODUCTIONS[name]
    arguments = [*small, "--num-seeds=2", "--eval-tasks=50", "--output", "out"]
    result = run(f"reproduce/{name}.py", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["agent"]: row for row in report["rows"]}
    assert [*rows][: len(agents)] == agents
    exact = report["rows"][-1]
    assert "exact" in exact["agent"]
    for row in report["rows"]:
        assert np.isfinite(row["mean"])
        if row["tasks"] is not None:
            assert row["tasks"] == 50
            assert row["low"] <= row["mean"] <= row["high"]
    learned = next(row for agent, row in rows.items() if agent.startswith("RL²"))
    assert learned["seeds"] == 2
    assert learned["training_seconds"] > 0
    if name == "dependent_bandits":
        assert learned["mean"] > exact["mean"] > 0
    else:
        assert learned["mean"] < exact["mean"]
    header = (tmp_path / "out" / "table.csv").read_text().splitlines()[0]
    assert header.startswith("setting,agent,mean,low,high,")
    assert f"| {learned['agent']} |" in (tmp_path / "out" / "table.md").read_text()
    assert "is not empty" in refusal(f"reproduce/{name}.py", "--output", "out")


@pytest.mark.slow
def test_a_learner_with_memory_from_the_command_line(tmp_path):
    small = "--meta-updates=2 --num-tasks=4 --memory-size=4 --num-episodes=3 --eval-tasks=3"
    arguments = ["--algorithm=rl2", "--family=gridnavi", "--task.horizon=4", *small.split()]
    result = run("train.py", *arguments, "--output=out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert len(report["returns"]) == 3  # a return an episode
    assert (tmp_path / "out" / "adaptation.png").exists()


@pytest.mark.slow
def test_rollout_throughput(tmp_path, refusal):
    small = "--families navigation --num-streams 4 8 --num-steps 5 --repeats 3 --output out"
    result = run("throughput.py", "rollout", *small.split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    found = [(row["num_streams"], row["record"]) for row in rows]
    assert found == [(4, "rewards"), (4, "transitions"), (8, "rewards"), (8, "transitions")]
    for row in rows:
        assert min(row["ratios"]) <= row["ratio"] <= max(row["ratios"])
        assert all(len(x) == 3 for x in row["seconds"].values())
    assert "| navigation | 8 | transitions |" in result.stdout
    assert "did you mean 'navigation'" in refusal(
        "throughput.py", "rollout", "--families", "navigatoin"
    )


@pytest.mark.slow
def test_update_throughput(tmp_path, refusal):
    ladder = "--scales 1 2 --repeats 2 --output out".split()
    updates = ("throughput.py", "updates", "--algorithms", "RL², linear")
    # It times its compilations, with a cache of its own; and it runs longer than it compiles.
    result = started(*updates, *ladder, cwd=tmp_path, XLA_FLAGS=IN_EARNEST)
    assert result.returncode == 0, result.stderr
    row, larger = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert row["env_steps"] == 256 * 100
    assert len(row["seconds"]) == len(row["cpu_seconds"]) == 2
    assert min(row["seconds"]) > 0
    assert 0 < row["compile_again_seconds"] < row["compile_seconds"]
    inputs, size, heads = 1 + 3 + 2, 128, 3  # (obs, past, time) to three gates' worth, then π and v
    forward = 2 * (inputs * 3 * size + size * heads)
    acting, learning = forward - 2 * size, 4 * 3 * forward
    assert row["flop"] == pytest.approx(25_600 * (acting + forward + learning), rel=0.15)
    assert larger["flop"] == 2 * row["flop"]
    assert row["roof"] <= row["device_flop_per_second"]
    assert "| RL², linear | 256 | 25 600 |" in result.stdout
    assert (tmp_path / "out" / "table.csv").read_text(encoding="utf-8").count("RL², linear") == 2
    assert min(matplotlib.image.imread(tmp_path / "out" / "roofline.png").shape[:2]) > 300
    assert "scales=2 must be 1 with LPG" in refusal(
        "throughput.py", "updates", "--algorithms", "LPG", "--scales", "2"
    )


@pytest.mark.slow
def test_memory_throughput(tmp_path, refusal):
    small = "--memories gru linear --num-steps 20 --sizes 8 --num-trials 4 --repeats 2 --output out"
    result = run("throughput.py", "memory", *small.split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["memory"] for row in rows] == ["gru", "linear"]
    assert all(row["learning_seconds"] > 0 and row["acting_seconds"] > 0 for row in rows)
    assert rows[0]["learning_speedup"] == 1
    assert "× as fast as gru" in result.stdout
    assert "sizes=0 must be at least 1" in refusal("throughput.py", "memory", "--sizes", "0")


@pytest.mark.slow
def test_the_table_of_an_accelerator(tmp_path, refusal):
    """Each row is in its file as soon as it is measured; and MAML by hand, which rows are compared with, learns."""
    small = "--small --num-steps 5 --repeats 1 --output out"
    result = run("accelerator.py", *small.split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows == json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    sides = {part: [] for part in ("rollout", "maml", "rl2")}
    for row in rows:
        sides[row["part"]].append((row["size"], row["side"]))
        assert row["env_steps_per_second"] == pytest.approx(row["env_steps"] / row["seconds"][0])
    assert sides["rollout"] == [(n, x) for n in (16, 64) for x in ("jaxmeta", "gymnax")]
    assert sides["maml"] == [(n, x) for n in (2, 4) for x in ("jaxmeta", "by hand")]
    assert sides["rl2"] == [(n, x) for n in (16, 32) for x in ("float32", "bfloat16")]
    assert "| rl2 | 32 | bfloat16 |" in result.stdout
    assert "did you mean 'maml'" in refusal("accelerator.py", "--parts", "mamal")
    late = run("accelerator.py", *small.split()[:-1], "late", "--seconds", "0", cwd=tmp_path)
    assert late.returncode != 0
    assert "seconds=0 must be at least 1" in late.stderr

    code = """
import json, jax
def update(state, key):
    return script.hand_update(key, state, num_tasks=16, num_steps=10)
def rewards(state):
    return jax.vmap(lambda key: update(state, key)[1])(jax.random.split(jax.random.key(2), 20)).mean()
begun = script.hand_begun(jax.random.key(0))
keys = jax.random.split(jax.random.key(1), 400)
after, _ = jax.jit(lambda state: jax.lax.scan(update, state, keys))(begun)
print(json.dumps([float(jax.jit(rewards)(x)) for x in (begun, after)]))
"""
    first, last = json.loads(run("accelerator.py", cwd=tmp_path, code=code).stdout)
    assert last > first + 0.01


def answers(side, settings, *questions):
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "sides" / side), json.dumps(settings)],
        input="".join(json.dumps(question) + "\n" for question in questions),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"XLA_FLAGS": IN_EARNEST},
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_ppo_for_the_comparison_learns():
    settings = dict(num_envs=64, num_steps=128, num_epochs=4, num_minibatches=16)
    evaluate, turn = dict(do="evaluate", seed=0), dict(do="turn")
    questions = [dict(do="begin", seed=1), evaluate, *[*[turn] * 10, evaluate] * 6]
    told = answers("jaxmeta_ppo.py", settings, *questions)
    first, *later = (answer["return"] for answer in told if "return" in answer)
    assert 8 < first < 60  # a random network
    assert np.mean(later) > 150  # of 500; it goes up and down at this batch
    assert all(answer["cpu_seconds"] > 0 for answer in told)


@pytest.mark.slow
def test_maml_for_the_comparison_learns():
    settings = dict(num_tasks=10, num_streams=10, num_steps=50)
    evaluate, turn = dict(do="evaluate", seed=0), dict(do="turn")
    told = answers(
        "jaxmeta_maml.py", settings, dict(do="begin", seed=1), evaluate, *[turn] * 20, evaluate
    )
    first, last = (answer["return"] for answer in told if "return" in answer)
    assert first < -15  # of 50 steps; standing still earns about -8
    assert last > -7


@pytest.mark.slow
def test_peers(tmp_path, refusal):
    small = "rollout --num-envs 8 --num-steps 4 --pairs 2 --output out"
    result = run("peers.py", *small.split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    turns = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["turns"]
    ours, theirs = (turns[side][1]["cpu_seconds"] for side in ("jaxmeta", "peer"))
    assert turns["ratios"][1] == pytest.approx(theirs / ours)
    assert "| gymnax, RolloutWrapper |" in result.stdout
    assert "num_minibatches=3 must divide num_envs=2048" in refusal(
        "peers.py", "ppo", "--num-minibatches", "3"
    )


@pytest.mark.slow
def test_scaling(tmp_path, refusal):
    small = (
        "--axes tasks devices --factors 1 2 4 --repeats 2 --base.tasks 2 --base.streams 2 "
        "--base.horizon 5 --output out"
    )
    result = run("scaling.py", *small.split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = [(row["axis"], row["size"]["tasks"], row["size"]["devices"]) for row in found["rows"]]
    tasks = [("tasks", n, 1) for n in (2, 4, 8)]
    assert rows == [*tasks, *(("devices", 8, n) for n in (1, 2, 4))]
    assert [row["env_steps"] for row in found["rows"][:3]] == [2 * 2 * 5 * n for n in (2, 4, 8)]
    assert [x["what grows"] for x in found["exponents"]] == ["tasks"]
    assert (tmp_path / "out" / "scaling.png").exists()
    assert "did you mean 'tasks'" in refusal("scaling.py", "--axes", "taks")


@pytest.mark.slow
def test_families_study(tmp_path):
    """A row and a picture each; where a package is missing the family is left out and said to be."""
    chosen = ["catch", "gridnavi", "swimmer"]
    result = run(
        "families.py", "--families", *chosen, "--num-tasks", "6", "--output", "out", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(report["families"]) == chosen
    for name in chosen:
        returns = report["families"][name]["returns"]
        assert returns["random"] < returns["reference"]
        assert matplotlib.image.imread(tmp_path / "out" / f"{name}.png").shape[1] == 1080
    assert "| `catch` | Catch, the same task in every split" in result.stdout
    assert "(hand-written)" in result.stdout


@pytest.mark.slow
def test_search_for_an_expert(tmp_path, refusal):
    """Weights that act as they should, whatever they are worth so far; the best that were judged are kept."""
    if importlib.util.find_spec("brax") is None:
        pytest.skip("Brax is not installed")
    small = "--num-generations 5 --judge-every 2 --num-pairs 8 --horizon 20 --num-tasks 4".split()
    result = run("experts.py", "half_cheetah_direction", *small, "--output", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [x for x in result.stderr.splitlines() if "generations" in x]
    assert [int(x.split()[0]) for x in lines] == [2, 4, 5]
    weights = np.load(tmp_path / "out" / "half_cheetah_direction.npy")
    assert weights.shape == (2, 6, 18)
    assert weights.dtype == np.float32
    assert np.all(np.isfinite(weights))
    assert np.all(np.abs(weights).max(axis=(1, 2)) > 0)
    assert "did you mean 'half_cheetah_velocity'" in refusal("experts.py", "half_cheetah")


@pytest.mark.slow
@pytest.mark.parametrize("field", ["maze", "summarisation"])
def test_fields_study(field, tmp_path, refusal):
    """Both kinds of meta-learner with all of their controls; then the figure again from what is there."""
    settings = "--budget 0.004 --num-seeds 2 --eval-tasks 4 --scratch-tasks 2 --output out".split()
    # The maze runs longer than it compiles.
    flags = {"XLA_FLAGS": IN_EARNEST} if field == "maze" else {}
    result = started("fields.py", "--fields", field, *settings, cwd=tmp_path, **flags)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    contestants = ["meta-learned", "no adaptation", "from scratch"]
    if field == "maze":
        contestants.insert(2, "told the task")
    for split in ("test", "out_of_distribution"):
        scored = report["fields"][field]["splits"][split]["contestants"]
        assert list(scored) == contestants
        for entry in scored.values():
            assert len(entry["x"]) == len(entry["mean"]) == len(entry["intervals"])
    first = (tmp_path / "out" / "fields" / f"{field}.json").read_bytes()
    assert "is not empty" in refusal("fields.py", "--fields", field, *settings)
    again = run("fields.py", "--fields", field, "--resume", *settings, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out" / "fields" / f"{field}.json").read_bytes() == first
    assert again.stdout == result.stdout


@pytest.mark.slow
def test_endurance_study(tmp_path):
    """Two kills cost no more than a checkpoint interval each, and nothing in the end; a longer run stays as it is."""
    settings = "--kills 2 --learner recurrent_q --checkpoint-every 2 --output out".split()
    result = run("endurance.py", "kill", *settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["digests"][0] == report["digests"][1]
    kills = report["kills"]
    assert len(kills) == 2
    assert all(kill["done"] - kill["kept"] <= 2 for kill in kills if kill["kept"] is not None)
    assert [kill["kept"] for kill in kills] == sorted(kill["kept"] for kill in kills)
    result = started("endurance.py", "long", "--meta-updates=300", "--output=long", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    looks = json.loads((tmp_path / "long" / "results.json").read_text())["looks"]
    assert len(looks) == 100
    assert looks[-1]["compilations"] == looks[10]["compilations"]
    assert looks[-1]["resident_bytes"] - looks[10]["resident_bytes"] < 50e6
    assert result.stdout.rstrip().endswith("| yes |")
    settings = (
        "--rates 0 0.01 --meta-updates 3 --num-tasks 4 --eval-tasks 4 --output faults".split()
    )
    result = run("endurance.py", "faults", *settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rates = json.loads((tmp_path / "faults" / "results.json").read_text())["rates"]
    assert rates["0.0"]["skipped"] == {"streams": 0, "tasks": 0, "updates": 0}
    # A step in a hundred breaks 63 % of episodes of a hundred steps.
    assert 0.5 < rates["0.01"]["skipped"]["streams"] / (3 * 4 * 20 * 2) < 0.75
    assert rates["0.01"]["skipped"]["updates"] == 0
    assert all(np.isfinite(x["returns"]).all() for x in rates.values())


SMALL_CURRICULA = {
    "mazes": "--size=5 --horizon=6 --env-steps=300 --num-tasks=8 --memory-size=4 --capacity=16 --eval-tasks=20 --eval-trials=2",
    "xland": "--methods accel --generator=trivial --size=5 --num-rulesets=16 --num-episodes=1 --env-steps=1200 --num-tasks=8 --memory-size=4 --capacity=16 --eval-tasks=4 --eval-trials=2",
    "physics": "--horizon=8 --meta-updates=2 --num-tasks=8 --memory-size=4 --eval-tasks=20 --eval-trials=2",
    "overhead": "--size=5 --horizon=6 --num-tasks=8 --memory-size=4 --capacity=16 --updates=2 --repeats=1",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL_CURRICULA)
def test_curricula(kind, tmp_path):
    if kind == "xland":
        pytest.importorskip("xminigrid")
    result = run("curricula.py", kind, *SMALL_CURRICULA[kind].split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "runs" / f"curricula-{kind}" / "results.json").read_text())
    if kind == "overhead":
        assert set(found["seconds"]) == {"none", "plr", "robust_plr", "accel", "learnability"}
        return
    for name, method in found["methods"].items():
        assert all(np.isfinite(x) for x in method["scores"][0].values())
        steps = method["runs"][0]["env_steps"]
        # Tries of learnability take 32 trials of 12 steps, more than there are steps.
        most = {"mazes": 300, "xland": 1200, "physics": 2 * 8 * 8}[kind]
        assert steps <= most or name == "learnability"


SMALL_CONTEXTS = {
    "bandits": "--num-arms=2 --num-pulls=6 --meta-updates=3 --num-tasks=8 --num-seeds=2 --memory-size=4 --eval-tasks=20",
    "rooms": "--meta-updates=2 --num-tasks=2 --num-episodes=2 --memory-size=4 --eval-tasks=3",
    "distillation": "--num-histories=2 --num-episodes=3 --meta-updates=2 --num-tasks=2 --memory-size=4 --eval-tasks=4",
    "regret": "--num-pulls=24 --eval-pulls=12 --train-tasks=3 --meta-updates=2 --num-tasks=2 --memory-size=4 --eval-tasks=5",
}


@pytest.mark.slow
def test_heads_study(tmp_path, refusal):
    small = "--contests gridnavi --num-seeds 2 --memory-size 4 --budget 0.01 --eval-tasks 20"
    result = run("heads.py", *small.split(), "--output", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    parts = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    networks = ["plain", "hypernetwork", "split aggregation"]
    assert list(parts) == [f"gridnavi-{name}" for name in networks]
    least = parts["gridnavi-hypernetwork"]["parameters"]
    for part in parts.values():
        assert np.shape(part["returns"]) == (2, 20)
        assert part["random"] < np.mean(part["returns"]) + 2 < part["best"]
        assert least <= part["parameters"] < 1.2 * least
        assert part["env_steps"] == 2 * 128 * 60
    assert "| gridnavi | split aggregation |" in (tmp_path / "out" / "table.md").read_text()
    assert "is not empty" in refusal("heads.py", *small.split(), "--output", "out")


@pytest.mark.slow
def test_beliefs_study(tmp_path, refusal):
    pytest.importorskip("flashbax")
    names = ["best", "without latent and gradient, two optimisers"]
    sizes = "--num-seeds 2 --meta-updates 2 --num-tasks 8 --eval-tasks 20"
    small = [*sizes.split(), "--variants", *names]
    result = run("beliefs.py", *small, "--output", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    parts = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    assert list(parts) == names
    for name, part in parts.items():
        assert np.shape(part["returns"]) == (2, 20)
        assert np.shape(part["training_returns"]) == (2, 2)
        assert -6.1 < np.mean(part["returns"]) < 37.3
        assert part["env_steps"] == 2 * 8 * 60
        assert f"| {name} |" in (tmp_path / "out" / "table.md").read_text()
    assert "is not empty" in refusal("beliefs.py", *small, "--output", "out")


SMALL_EXPLORATIONS = {
    "buses": "--worlds map --learners rl2 --looks 2 --budget 0.0001 --eval-tasks 2",
    "sparse": "--learners e-rl2 --looks 2 --budget 0.0001 --eval-tasks 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL_EXPLORATIONS)
@pytest.mark.usefixtures("in_earnest")
def test_exploration(kind, tmp_path):
    result = run("exploration.py", kind, *SMALL_EXPLORATIONS[kind].split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / f"exploration-{kind}"
    found = json.loads((folder / "results.json").read_text())
    ((name, part),) = found["learners"].items()
    assert name == {"buses": "map-rl2", "sparse": "e-rl2"}[kind]
    assert np.shape(part["returns"]) == (1, 2, 2)
    one = {"buses": 256 * 40, "sparse": 64 * 200}[kind]
    assert part["env_steps"] == [one, 2 * one]
    if kind == "buses":
        assert found["best"] == pytest.approx(dict(one_episode=0.3, after_exploration=0.8))
    else:
        assert found["random"] < 10 < 90 < found["best"]
    assert name.split("-", 1)[-1] in (folder / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("in_earnest")
def test_xland(tmp_path, refusal):
    pytest.importorskip("xminigrid")
    small = "--size=5 --num-rulesets=16 --num-episodes=1 --num-tasks=8 --meta-updates=2 --memory-size=4 --looks=2 --eval-tasks=4"
    result = run("xland.py", *small.split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (found,) = json.loads((tmp_path / "runs" / "xland" / "results.json").read_text())[
        "runs"
    ].values()
    assert found["env_steps"] == 2 * 8 * 75  # an episode has 3 · 5² steps
    assert np.shape(found["curve"]) == (3, 25)
    assert found["trials"]["mean"] == pytest.approx(np.mean(found["curve"][-1]))
    assert 0 <= found["trials"]["percentile_20"] <= found["trials"]["mean"] <= found["solved"] < 1
    assert "meta_updates=2 must be a multiple of looks=4" in refusal(
        "xland.py", *small.split(), "--looks=4"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL_CONTEXTS)
def test_in_context(kind, tmp_path):
    result = run("in_context.py", kind, *SMALL_CONTEXTS[kind].split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / f"in-context-{kind}"
    found = json.loads((folder / "results.json").read_text())
    table = (folder / "table.md").read_text()
    if kind == "bandits":
        exact = {name: x[1] for name, x in found["beliefs"].items()}
        assert exact["3 wins and a loss; a win and a loss"] == pytest.approx(5 / 7, abs=1e-4)
        assert np.shape(found["kl"]["random"]) == (2, 7)
    if kind == "rooms":
        assert table.count("posterior sampling, a goal a step") == 2
    if kind == "distillation":
        assert sorted(found["curves"]) == ["a2c", "episodes", "mixtures"]
        assert matplotlib.image.imread(folder / "distillation.png").ndim == 3
    if kind == "regret":
        assert [len(x) for x in found["curves"].values()] == [24, 12]
        assert table.count("never") <= 1  # A2C itself gets there


def test_an_output_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (file, file / "within"):
        got = run("curricula.py", "mazes", f"--output={output}", cwd=tmp_path)
        assert got.returncode
        assert "is a file; name another folder" in got.stderr
    with claims.claimed(tmp_path / "held"):
        for more in ([], ["--resume"]):
            kind = ["compare"] if more else ["catch"]
            told = [*kind, f"--output={tmp_path / 'held'}", *more]
            got = run("learned_rules.py", *told, cwd=tmp_path)
            assert got.returncode
            assert ("held by another run" if more else "is not empty") in got.stderr
    assert sorted(x.name for x in tmp_path.iterdir()) == ["file"]
    assert file.read_text() == "mine"


def test_parts_of_a_study_depend_on_the_contents_of_weights(tmp_path):
    code = """
def settings():
    args = script.Compare(rules=("A2C", "Disco"), weights=script.Path("weights.npz"))
    return script.settings_of(args, "Disco"), script.settings_of(args, "A2C")
path = script.Path("weights.npz")
path.write_bytes(b"one")
one = settings()
path.write_bytes(b"two")
two = settings()
assert one[0] != two[0]
assert one[1] == two[1]
"""
    assert run("learned_rules.py", cwd=tmp_path, code=code).returncode == 0


def test_a_damaged_part_of_a_study_is_named(tmp_path):
    (tmp_path / "part.json").write_text("[1]")
    code = "from pathlib import Path; script.kept(Path('part.json'), {}, dict)"
    with pytest.raises(ValueError, match="part.json is damaged: remove it"):
        run("study.py", cwd=tmp_path, code=code)
