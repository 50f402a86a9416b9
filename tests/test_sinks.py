"""Sinks: metrics go where they are sent, under the names and meta-updates that they have."""

import contextlib
import math
import sys

import jax.numpy as jnp
import pytest
from rich.console import Console

from jaxmeta import sinks, tasks, training
from jaxmeta.types import MetaAlgorithm

LINE = {"update": 3, "seconds": 0.5, "return/after": -1.25, "lost": None}


class Writer:
    """What TensorBoard's writer is asked for."""

    def __init__(self, folder, flush_secs):
        self.folder, self.scalars = folder, []
        Writer.last = self

    def add_scalar(self, name, value, global_step):
        self.scalars.append((name, value, global_step))

    def close(self):
        self.scalars.append("closed")


def test_tensorboard_reads_back_what_was_written(tmp_path):
    pytest.importorskip("tensorboardX")
    with sinks.tensorboard(tmp_path).open() as write:
        write(LINE)
        write(LINE | {"update": 4, "return/after": 2.5})
    (path,) = tmp_path.iterdir()
    assert scalars(path.read_bytes()) == {  # all of it, once the sink is closed
        ("seconds", 3): 0.5,
        ("return/after", 3): -1.25,
        ("seconds", 4): 0.5,
        ("return/after", 4): 2.5,
    }


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
    with sinks.tensorboard(tmp_path).open() as write:
        write({"update": 1, "return/after": 2.0, "setting": 1, "seed": 5})
    assert Writer.last.scalars == [("setting 1/seed 5/return/after", 2.0, 1), "closed"]


class Client:
    """What Weights & Biases is asked for: it drops what goes backwards, and refuses what comes after the end."""

    def __init__(self):
        self.runs = []

    def init(self, reinit=None, **settings):
        if self.runs and self.runs[-1].code is None and reinit != "create_new":
            return self.runs[-1]
        self.runs.append(Board(settings))
        return self.runs[-1]


class Board:
    def __init__(self, settings):
        self.settings, self.rows, self.code = settings, [], None

    def log(self, values, step):
        assert self.code is None
        assert all(math.isfinite(x) for x in values.values())
        if not self.rows or step >= self.rows[-1][0]:
            self.rows.append((step, values))

    def finish(self, exit_code=0):
        self.code = exit_code


@pytest.fixture
def client(monkeypatch):
    client = Client()
    module = type(sys)("wandb")
    module.init = client.init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return client


def counting(meta_updates, sink):
    """Trains something small; its metric is the count of updates."""

    def step(key, state, tasks):
        return state + 1, {"count": state, "lost": jnp.nan}

    algorithm = MetaAlgorithm(lambda key: jnp.zeros(()), step, None)
    plan = training.Config(meta_updates=meta_updates, num_tasks=1)
    return training.train(
        algorithm, tasks.make("navigation", horizon=2), plan, console=Console(quiet=True), sink=sink
    )


def test_every_run_is_a_run_of_its_own(client):
    """Beside the one that the program has open; one sink for all, or one for each."""
    mine = client.init(name="mine")
    shared = sinks.wandb(project="x", mode="offline")
    for updates in (3, 2):
        counting(updates, shared)
    counting(3, sinks.wandb(project="y"))
    assert [x.settings.get("project") for x in client.runs] == [None, "x", "x", "y"]
    assert [[step for step, _ in x.rows] for x in client.runs] == [[], [1, 2, 3], [1, 2], [1, 2, 3]]
    assert client.runs[1].rows[1][1].keys() == {"count", "seconds"}
    assert mine.code is None
    assert [x.code for x in client.runs[1:]] == [0, 0, 0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_sink_is_closed_on_errors_and_interrupts(error, client):
    with pytest.raises(error), sinks.opened(sinks.wandb()):  # noqa: PT012
        client.runs[0].log({}, step=1)
        raise error
    assert client.runs[0].code == 1


def test_any_context_manager_is_a_sink():
    seen = []

    @contextlib.contextmanager
    def listed():
        yield seen.append
        seen.append("closed")

    counting(2, listed())
    assert [x if x == "closed" else x["update"] for x in seen] == [1, 2, "closed"]


def test_a_sink_that_cannot_be_closed_loses_nothing():
    class Stuck(contextlib.AbstractContextManager):
        def __enter__(self):
            return print

        def __exit__(self, *failure):
            raise OSError("no network")

    with pytest.warns(UserWarning, match="the sink could not be closed: OSError..no network"):
        run = counting(2, Stuck())
    assert run.num_updates == 2
    with pytest.warns(UserWarning, match="no network"), pytest.raises(ZeroDivisionError):  # noqa: SIM117
        with sinks.opened(Stuck()):
            raise ZeroDivisionError


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
