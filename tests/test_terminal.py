"""Streams of every kind: what they can hold is shown, and none of them raises."""

import io
import os
import sys

import pytest
from rich.console import Console

from jaxmeta import terminal


class Tee:
    """Can only be written to."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        text.encode("cp1252")
        self.text += text


def encoded(name):
    return io.TextIOWrapper(io.BytesIO(), encoding=name, newline="\n")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("utf-8", "3 × → é"),
        ("cp1252", "3 × -> é"),
        ("latin-1", "3 × -> é"),
        ("ascii", "3 x -> ?"),
    ],
)
def test_characters_that_a_stream_cannot_hold(name, shown, monkeypatch):
    stream = encoded(name)
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.say("3 × → é")
    assert stream.buffer.getvalue().decode(name) == shown + "\n"
    console = terminal.console("stdout")
    with terminal.progress(console, 1, 3, "begun") as line:
        line.update(2, terminal.held("1 → 2", console.encoding))
    assert f"1 {'→' if name == 'utf-8' else '->'} 2" in stream.buffer.getvalue().decode(name)


def test_a_stand_in_that_can_only_be_written_to(monkeypatch):
    tee = Tee()
    monkeypatch.setattr(sys, "stderr", tee)
    terminal.say("a → b", "stderr")
    with terminal.progress(terminal.console("stderr"), 0, 2, "begun") as line:
        line.update(2, "a → b")
    assert tee.text.startswith("a -> b\n")
    assert "2/2" in tee.text


def closed():
    stream = encoded("utf-8")
    stream.close()
    return stream


def broken():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w", encoding="utf-8")


@pytest.mark.parametrize("make", [lambda: None, object, closed, broken])
def test_a_stream_that_cannot_be_written_to(make, monkeypatch):
    stream = make()
    monkeypatch.setattr(sys, "stdout", stream)
    for _ in range(2):
        terminal.say("x")
    console = terminal.console("stdout")
    console.print("x")
    with terminal.progress(console, 0, 2, "begun") as line:
        line.update(1, "x")
    assert sys.stdout is stream
    if make is broken:
        stream.close()  # what was left in it went nowhere


def test_what_fails_to_be_shown_is_tried_once(monkeypatch):
    """A console of the caller's own, which stands before the streams and fails in the middle."""
    stream = encoded("utf-8")
    stream.isatty = lambda: True
    console = Console(file=stream, force_terminal=True)
    calls = []
    streams = sys.stdout, sys.stderr
    with terminal.progress(console, 0, 2, "begun") as line:
        assert sys.stdout is not streams[0]
        monkeypatch.setattr(console, "print", lambda *told, **more: calls.append(told[0]) or 1 / 0)
        line.say("a")
        line.say("b")
        line.update(1, "c")
    assert [x for x in calls if isinstance(x, str)] == ["a"]
    assert (sys.stdout, sys.stderr) == streams
