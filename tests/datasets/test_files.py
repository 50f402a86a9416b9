"""Datasets on disk: whole or named as damaged, and never lost."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxmeta import datasets, tasks
from jaxmeta.algorithms.rl2 import Hyper
from jaxmeta.datasets import files
from jaxmeta.runs import records


@pytest.fixture(scope="module")
def family():
    return tasks.make("dark_room", size=3, horizon=4)


@pytest.fixture(scope="module")
def shards(family):
    """Three shards of histories."""
    made = []
    for shard in range(3):
        key, task_key = jax.random.split(jax.random.key(shard))
        drawn = tasks.sample_tasks(task_key, family, 2, split="train")
        made.append(datasets.mixtures(key, drawn, family=family, num_streams=2, num_episodes=3))
    return made


def write(folder, family, shards, **settings):
    with datasets.create(folder, family, **settings) as writer:
        for shard in shards[writer.num_shards :]:
            writer.append(shard)


def assert_equal(got, shards):
    wanted = jax.tree.map(lambda *x: np.concatenate(x), *shards)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", ["plain", "a [b] *?{c}", "gs:~%", "ünï code\\", "x\ny"])
def test_read_is_what_was_written(tmp_path, family, shards, name):
    write(tmp_path / name, family, shards, description={"seed": 3})
    dataset = datasets.load(tmp_path / name, family)
    assert dataset.num_shards == 3
    assert dataset.shard_bytes == sum(x.nbytes for x in jax.tree.leaves(shards[0]))
    assert dataset.header["description"] == {"seed": 3}
    assert_equal(dataset.read(), shards)
    assert_equal(dataset.read([2, 0]), [shards[2], shards[0]])
    with pytest.raises(TypeError, match="shards=1 must be a list"):
        dataset.read(1)
    dataset.verify()
    assert sorted(os.listdir(tmp_path / name)) == ["arrays", "dataset.json", "shards.jsonl"]


def test_zarr_s_own_metadata_are_standard(tmp_path, family, shards):
    write(tmp_path / "d", family, shards)
    meta = json.loads((tmp_path / "d/arrays/data.reward/zarr.json").read_text())
    assert meta["zarr_format"] == 3
    assert meta["shape"] == [6, 2, 12]
    assert meta["data_type"] == "float32"
    assert [x["name"] for x in meta["codecs"]] == ["bytes", "zstd", "crc32c"]


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_named(tmp_path, family, shards, harm):
    folder = tmp_path / "d"
    write(folder, family, shards)
    path = folder / "arrays" / "data.timestep.obs" / "c" / "1"
    (path,) = [x for x in path.rglob("*") if x.is_file()]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "remove":
        path.unlink()  # Zarr reads what is missing as zeros
    else:
        path.write_bytes(content if harm == "flip" else content[:-5])
    dataset = datasets.load(folder, family)
    assert_equal(dataset.read([0, 2]), [shards[0], shards[2]])
    for read in (dataset.read, dataset.verify):
        with pytest.raises(
            files.DatasetError, match=r"shard 1 of .* is damaged: data.timestep.obs"
        ):
            read()


def test_a_full_disk_loses_nothing_written(tmp_path, family, shards, monkeypatch):
    folder = tmp_path / "d"
    real, calls = files._write, []

    def full(folder, name, array, shard):
        if shard == 2 and name == "data.reward":
            calls.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder, name, array, shard)

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(
        files.DatasetError, match=r"shard 2 of .* could not be written .*resume=True"
    ):
        write(folder, family, shards)
    assert calls
    assert_equal(datasets.load(folder, family).read(), shards[:2])
    monkeypatch.setattr(files, "_write", real)
    with pytest.raises(FileExistsError, match="go on with the dataset in it by resume=True"):
        write(folder, family, shards)
    write(folder, family, shards, resume=True)
    assert_equal(datasets.load(folder, family).read(), shards)


def test_a_line_that_could_not_be_written_leaves_nothing(tmp_path, family, shards, monkeypatch):
    folder, real, calls = tmp_path / "d", os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    with datasets.create(folder, family) as writer:
        writer.append(shards[0])
        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(files.DatasetError, match="shard 1 of .* could not be written"):
            writer.append(shards[1])
        writer.append(shards[1])
        writer.append(shards[2])
    assert_equal(datasets.load(folder, family).read(), shards)


def test_a_broken_last_line_does_not_count(tmp_path, family, shards):
    folder = tmp_path / "d"
    write(folder, family, shards[:2])
    with (folder / "shards.jsonl").open("a") as file:
        file.write('{"shard": 2, "sha')
    assert datasets.load(folder, family).num_shards == 2
    write(folder, family, shards, resume=True)
    assert_equal(datasets.load(folder, family).read(), shards)


SCRIPT = """
import sys, jax
from jaxmeta import datasets, tasks
family = tasks.make("dark_room", size=3, horizon=4)
made = []
for shard in range(3):
    key, task_key = jax.random.split(jax.random.key(shard))
    drawn = tasks.sample_tasks(task_key, family, 2, split="train")
    made.append(datasets.mixtures(key, drawn, family=family, num_streams=2, num_episodes=3))
with datasets.create(sys.argv[1], family, resume=True) as writer:
    while True:
        writer.append(made[writer.num_shards % 3])
        print(writer.num_shards, flush=True)
"""


@pytest.mark.slow
def test_a_killed_write_goes_on(tmp_path, family, shards):
    """Killed at three places, a write goes on after its last whole shard."""
    folder, done = tmp_path / "d", 0
    for appends, delay in ((1, 0.0), (2, 0.01), (1, 0.03)):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(appends):
            told = int(process.stdout.readline())
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        dataset = datasets.load(folder, family)
        assert told == done + appends
        assert dataset.num_shards >= told
        done = dataset.num_shards
        assert_equal(dataset.read(), [shards[i % 3] for i in range(done)])


def test_bad_input(tmp_path, family, shards):
    folder = tmp_path / "d"
    write(folder, family, shards[:1], description={"seed": 0})
    other = tasks.make("dark_room", size=3, horizon=5)
    for unlike in (other, tasks.make("dark_room", size=3, horizon=4, split_seed=1)):
        with pytest.raises(files.DatasetError, match="holds histories of the family .*; family is"):
            datasets.load(folder, unlike)
        with pytest.raises(files.DatasetError, match="another family"):
            write(folder, unlike, shards, resume=True, description={"seed": 0})
    with pytest.raises(files.DatasetError, match="another description"):
        write(folder, family, shards, resume=True, description={"seed": 1})
    with pytest.raises(files.DatasetError, match="holds no dataset"):
        datasets.load(tmp_path, family)
    with pytest.raises(files.DatasetError, match="holds no dataset to go on with"):
        write(tmp_path, family, shards, resume=True)
    dataset = datasets.load(folder, family)
    with pytest.raises(ValueError, match="shards holds 1; there are 1 shards"):
        dataset.read([1])
    longer = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), shards[0])
    with (
        pytest.raises(files.DatasetError, match="all shards are alike"),
        datasets.create(folder, family, resume=True, description={"seed": 0}) as writer,
    ):
        writer.append(longer)
    with (
        datasets.create(folder, family, resume=True, description={"seed": 0}),
        pytest.raises(FileExistsError, match="held by another run"),
    ):
        write(folder, family, shards, resume=True, description={"seed": 0})
    keyed = shards[0]._replace(length=jax.random.split(jax.random.key(0), (2, 2)))
    with (
        pytest.raises(
            files.DatasetError, match="histories.length is key<fry>; it must hold numbers"
        ),
        datasets.create(folder, family, resume=True, description={"seed": 0}) as writer,
    ):
        writer.append(keyed)
    (folder / "shards.jsonl").unlink()
    with pytest.raises(files.DatasetError, match="holds no whole shard"):
        datasets.load(folder, family)
    (folder / "dataset.json").write_text(json.dumps(dataset.header | {"format": 7}))
    with pytest.raises(files.DatasetError, match="format 7"):
        datasets.load(folder, family)
    assert dataclasses.is_dataclass(dataset)


def test_infinite_settings_are_described(tmp_path, family, shards):
    """Many an algorithm's own have one: ``anneal_updates``."""
    description = {"hyper": Hyper(), "sizes": (2, 3)}
    for num in (1, 2):
        write(tmp_path / "d", family, shards[:num], resume=num > 1, description=description)
    dataset = datasets.load(tmp_path / "d", family)
    assert dataset.num_shards == 2
    assert dataset.header["description"]["hyper"]["anneal_updates"] == "Infinity"
    # As `train` describes the data of a run.
    told = records.plain(datasets.stream(dataset, 3, num_shards=1, updates_per_load=1).description)
    assert told["dataset"]["description"]["hyper"]["anneal_updates"] == "Infinity"
    with pytest.raises(TypeError, match="description is str 'mine'; it must be"):
        write(tmp_path / "e", family, shards, description="mine")


def test_a_closed_writer_writes_nothing(tmp_path, family, shards):
    """Else two of them would give one number to two shards, and the dataset could not be read."""
    with datasets.create(tmp_path / "d", family) as first:
        first.append(shards[0])
    with datasets.create(tmp_path / "d", family, resume=True) as second:
        with pytest.raises(files.DatasetError, match="is closed: append within the with block"):
            first.append(shards[1])
        second.append(shards[1])
    assert_equal(datasets.load(tmp_path / "d", family).read(), shards[:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h._replace(tasks=h.length), "histories.tasks has the structure"),
        (
            lambda h: h._replace(tasks=jax.tree.map(lambda x: x[:1], h.tasks)),
            "histories.tasks holds 1 tasks, and the data are of 2",
        ),
        (lambda h: h._replace(length=None), "histories.length is NoneType"),
        (lambda h: h._replace(data=None), "histories.data is None"),
        (lambda h: jax.tree.map(lambda x: x[:0], h), "it holds nothing"),
        (
            lambda h: h._replace(data=h.data._replace(action=h.data.action[..., None])),
            r"histories.data.action has shape \(2, 2, 12, 1\); with family 'dark_room' it must be",
        ),
        (
            lambda h: h._replace(data=h.data._replace(last=h.data.last[:, :1])),
            r"histories.data.last has shape \(2, 1, 12\)",
        ),
    ],
)
def test_what_could_not_be_loaded_is_not_written(tmp_path, family, shards, change, message):
    with (
        datasets.create(tmp_path / "d", family) as writer,
        pytest.raises(files.DatasetError, match=message),
    ):
        writer.append(change(shards[0]))
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("arrays", [[1], {"data.reward": 3}, "without data.reward"])
def test_a_damaged_header_is_named(tmp_path, family, shards, arrays):
    write(tmp_path / "d", family, shards[:1])
    header = json.loads((tmp_path / "d" / "dataset.json").read_text())
    if isinstance(arrays, str):
        arrays = {name: x for name, x in header["arrays"].items() if name != "data.reward"}
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(header | {"arrays": arrays}))
    with pytest.raises(
        files.DatasetError, match="dataset.json (is damaged|has no array 'data.reward')"
    ):
        datasets.load(tmp_path / "d", family).read()
