"""Every notebook runs from top to bottom, and was committed as it runs: with outputs, without errors."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import IN_EARNEST

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


SHORT = (
    (r"\bmeta_updates=\d+", "meta_updates=5"),
    (r"\.reshape\(5, 60\)", ".reshape(5, 1)"),  # of 300 meta-updates
    (r"\bmeta_train\((\"\w+\"), \d+", r"meta_train(\1, 5"),
    (r"\bUPDATES, SEEDS = 1200, 4", "UPDATES, SEEDS = 120, 1"),
    (r"\b[12]0_000\b", "1000"),
    (r'= ("--xla_force_host_platform_device_count=8")', r'+= " " \1'),  # beside the tests' own
)
"""Numbers in the notebooks that say how long something learns or how many samples are drawn, and smaller ones. The last keeps the tests' flags of the compiler."""
LONG = (
    "01_quickstart",
    "04_memory",
    "05_meta_values",
    "07_games_robots_language",
    "11_your_own_network",
    "12_take_it_home",
)
"""Notebooks whose programs run for longer than they compile."""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # Jupyter's own
def test_notebook_runs_in_small(path, monkeypatch):
    """Every line runs. The committed outputs show that the whole notebook runs."""
    if path.stem in LONG:
        monkeypatch.setenv("XLA_FLAGS", IN_EARNEST)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for pattern, shorter in SHORT:
                cell.source = re.sub(pattern, shorter, cell.source)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": path.parent}}).execute()


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in SHORT])
def test_what_is_shortened_is_there(pattern):
    assert any(re.search(pattern, path.read_text().replace('\\"', '"')) for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_was_committed_with_its_outputs(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


def test_there_are_notebooks():
    assert NOTEBOOKS
