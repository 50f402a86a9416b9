"""Sinks: metrics go where they are sent, under the names and meta-updates that they have."""

import math
import sys
import time

import pytest

from jaxmeta import sinks

LINE = {"update": 3, "seconds": 0.5, "return/after": -1.25, "lost": None}


class Writer:
    """What TensorBoard's writer is asked for."""

    def __init__(self, folder, flush_secs):
        self.folder, self.scalars = folder, []
        Writer.last = self

    def add_scalar(self, name, value, global_step):
        self.scalars.append((name, value, global_step))


def test_tensorboard_reads_back_what_was_written(tmp_path):
    pytest.importorskip("tensorboardX")
    sink = sinks.tensorboard(tmp_path)
    sink(LINE)
    sink(LINE | {"update": 4, "return/after": 2.5})
    (path,) = tmp_path.iterdir()
    expected = {
        ("seconds", 3): 0.5,
        ("return/after", 3): -1.25,
        ("seconds", 4): 0.5,
        ("return/after", 4): 2.5,
    }
    for _ in range(100):  # a thread writes within two seconds
        found = scalars(path.read_bytes())
        if found == expected:
            return
        time.sleep(0.2)
    assert found == expected


def scalars(data):
    """By name and step, of an event file."""
    from tensorboardX.proto import event_pb2

    found = {}
    while data:  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    return found


def test_members_of_a_population_have_curves_of_their_own(monkeypatch, tmp_path):
    module = type(sys)("tensorboardX")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    sink = sinks.tensorboard(tmp_path)
    sink({"update": 1, "return/after": 2.0, "setting": 1, "seed": 5})
    assert Writer.last.scalars == [("setting 1/seed 5/return/after", 2.0, 1)]


def test_weights_and_biases_are_given_every_number(monkeypatch):
    logged = []

    class Board:
        def log(self, values, step):
            logged.append((values, step))

    module = type(sys)("wandb")
    module.init = lambda **settings: logged.append(settings) or Board()
    monkeypatch.setitem(sys.modules, "wandb", module)
    sinks.wandb(project="x", mode="offline")(LINE)
    assert logged == [
        {"project": "x", "mode": "offline"},
        ({"seconds": 0.5, "return/after": -1.25}, 3),
    ]
    assert all(math.isfinite(x) for x in logged[1][0].values())


@pytest.mark.parametrize(
    ("name", "package", "call"),
    [
        ("tensorboard", "tensorboardX", lambda: sinks.tensorboard("x")),
        ("wandb", "wandb", lambda: sinks.wandb(project="x")),
    ],
)
def test_a_missing_package_is_said(name, package, call, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install .*\[{name}\]"):
        call()
