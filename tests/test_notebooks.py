"""Every notebook runs from top to bottom, and was committed as it runs: with outputs, without errors."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import IN_EARNEST

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


LONG = ("11_your_own_network", "12_take_it_home")
"""Notebooks that run longer than they compile: they are compiled as for a user."""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # Jupyter's own
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "" if path.stem in LONG else IN_EARNEST)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": path.parent}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_was_committed_with_its_outputs(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


def test_there_are_notebooks():
    assert NOTEBOOKS
