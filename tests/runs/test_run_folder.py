"""The folder of a run is its own, and its files are whole."""

import json

import jax.numpy as jnp
import pytest

from jaxmeta.runs import claims, run_folder


def test_what_a_crash_left_in_the_metrics_is_dropped(tmp_path):
    path = tmp_path / run_folder.METRICS_FILE
    kept = b'{"update": 1}\n{"update": 2}\n'
    path.write_bytes(kept + b'{"update": 3}\n\x00\xff\x00\n[1]\n{"other": 1}\n{"upda')
    run_folder.cut_metrics(path, 2)
    assert path.read_bytes() == kept


def fail_in(folder, write):
    """A run that writes in its folder and then fails."""

    def run():
        with run_folder.owned(folder, resume=False):
            write()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()


def test_a_folder_is_held_and_left_empty_by_a_run_that_fails_at_once(tmp_path):
    def write():
        assert (tmp_path / claims.CLAIM_FILE).exists()
        (tmp_path / run_folder.CONFIG_FILE).write_text("{}")
        (tmp_path / run_folder.CHECKPOINT_FOLDER / "0.tmp").mkdir(parents=True)

    fail_in(tmp_path, write)
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_a_checkpoint_keeps_its_files(tmp_path):
    checkpoint = tmp_path / run_folder.CHECKPOINT_FOLDER / "3"
    fail_in(tmp_path, lambda: checkpoint.mkdir(parents=True))
    assert checkpoint.is_dir()
    with pytest.raises(FileExistsError, match="is not empty"), run_folder.owned(tmp_path, False):
        pass
    with run_folder.owned(tmp_path, resume=True):
        pass
    assert checkpoint.is_dir()


def test_files_are_a_description_lines_and_checkpoints(tmp_path):
    run, described = {"w": jnp.ones(2)}, {"family": "own"}
    with run_folder.opened(tmp_path, 0, run, described) as files:
        files.append([{"update": 1, "b": 2, "a": None}])
        files.save(1, run)
    assert json.loads((tmp_path / run_folder.CONFIG_FILE).read_text()) == described
    assert (tmp_path / run_folder.METRICS_FILE).read_text() == '{"a": null, "b": 2, "update": 1}\n'
    kept = (tmp_path / run_folder.CHECKPOINT_FOLDER).iterdir()
    assert sorted(x.name for x in kept if x.name.isdigit()) == ["0", "1"]
