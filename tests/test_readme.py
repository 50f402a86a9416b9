"""The README is true: its code runs, its links lead somewhere, its tables are those that were measured."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import jaxmeta
from jaxmeta.algorithms import ALGORITHMS
from tests.conftest import IN_EARNEST

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCES = [
    x for x in MarkdownIt().parse(README) if x.type == "fence"
]  # the blocks that a reader sees
BLOCKS = [(fence.info, fence.content) for fence in FENCES]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
EXAMPLES = {  # on the pages of the reference
    name: fence.content
    for name, module in ALGORITHMS.items()
    for fence in MarkdownIt().parse(module.__doc__)
    if fence.type == "fence"
}
SHORT = r"(meta[_-]updates[ =])\d+", r"\g<1>5"
"""The number of meta-updates in a text, and a smaller one that runs every line. Other tests check learning."""
PROGRAMS = [*PYTHON, *EXAMPLES.values()]
COMMANDS = [text for kind, text in BLOCKS if kind in ("bash", "sh")]
DOCUMENTS = [ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md"]


def test_every_block_names_its_language_and_is_closed():
    lines = README.splitlines()
    for fence in FENCES:
        assert fence.info in ("python", "bash", "sh", "bibtex"), fence.content[:80]
        assert lines[fence.map[1] - 1] == "```"


def test_the_first_two_commands_are_those_that_ci_runs():
    assert "benchmarks/train.py" in COMMANDS[0]
    assert "pytest" in COMMANDS[1]
    assert re.findall(r"^```bash\n(.*?)^```$", README, re.DOTALL | re.MULTILINE) == COMMANDS[:2]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_code_runs(number, monkeypatch, tmp_path):
    """To the end, as a newcomer runs it."""
    monkeypatch.setenv("XLA_FLAGS", IN_EARNEST)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text(PYTHON[number], encoding="utf-8")
    done = subprocess.run([sys.executable, "block.py"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2, len(COMMANDS)))
def test_commands_run(number, monkeypatch, tmp_path):
    """Those beside the main job and the tests, which CI runs."""
    monkeypatch.setenv("XLA_FLAGS", IN_EARNEST)
    command = re.sub(*SHORT, COMMANDS[number])
    assert command != COMMANDS[number]
    command = command.replace("python benchmarks", f"{sys.executable} {ROOT}/benchmarks")
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_every_algorithm_has_an_example_and_says_when_to_use_it():
    assert sorted(EXAMPLES) == sorted(ALGORITHMS)
    for name, module in ALGORITHMS.items():
        assert "\nUse it " in module.__doc__, name


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_the_reference_run(name):
    exec(compile(re.sub(*SHORT, EXAMPLES[name]), name, "exec"), {})


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_code_imports_what_there_is(number):
    for node in ast.walk(ast.parse(PROGRAMS[number])):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(ast.unparse(node), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).is_file(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_scripts_and_presets_that_are_named_are_there(path):
    from jaxmeta.runs import presets

    text = path.read_text(encoding="utf-8")
    for script in re.findall(r"python (benchmarks/[\w/]+\.py)", text):
        assert (ROOT / script).is_file(), script
    for preset in re.findall(r"--preset ([\w-]+)", text):
        assert preset in presets.PRESETS, preset


@pytest.mark.filterwarnings("default")
def test_a_release_of_jax_that_compiles_wrongly_is_excluded(monkeypatch):
    assert metadata.version("jax") != jaxmeta.MISCOMPILES
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = next(x for x in project["dependencies"] if x.startswith("jax>"))
    assert f"!={jaxmeta.MISCOMPILES}" in needed
    monkeypatch.setattr(metadata, "version", lambda name: jaxmeta.MISCOMPILES)
    with pytest.warns(RuntimeWarning, match="compiles some programs wrongly"):
        importlib.reload(jaxmeta)


def test_the_readme_is_short_and_its_figures_are_those_of_the_results():
    assert README.count("\n") <= 170
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    claims = README[README.index("| claim |") : README.index("## Words")]
    figures = re.findall(r"-?\d+\.\d+ \([^)]+\)", claims)
    assert len(figures) >= 10
    for figure in figures:
        mean, interval = figure.rstrip(")").split(" (")
        assert figure in results or f"| {mean} | {interval} |" in results, figure


def test_tables_are_those_that_were_measured():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "ledger.py"), "write", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
