"""Claims: of several processes one gets the folder, and what a dead one left is in nobody's way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxmeta.runs import claims

HOLDING = """
import pathlib, sys, time
from jaxmeta.runs import claims
with claims.claimed(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_one_s_at_a_time(tmp_path):
    folder = tmp_path / "new" / "run"
    with claims.claimed(folder) as stale:
        assert stale is None
        assert left(folder) == [claims.CLAIM_FILE]
        with (
            pytest.raises(
                FileExistsError, match=f"is held by another run .process {os.getpid()} on"
            ),
            claims.claimed(folder),
        ):
            pass
        assert left(folder) == [claims.CLAIM_FILE]
    assert left(tmp_path) == []  # what was made and is empty goes
    folder.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), claims.claimed(folder):
        raise KeyboardInterrupt
    assert left(folder) == []


def test_a_killed_process_holds_nothing(tmp_path):
    """Also while nobody has asked for its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(FileExistsError, match=f"process {process.pid} on"),
        claims.claimed(tmp_path),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while claims._start(process.pid) is not None and time.monotonic() < end:
        time.sleep(0.01)
    with claims.claimed(tmp_path) as stale:
        assert stale["process"] == process.pid
        assert left(tmp_path) == [claims.CLAIM_FILE]
    assert left(tmp_path) == []
    process.communicate()


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        (dict(process=2**22 + 1), "taken"),
        (dict(start="1"), "taken"),  # the number is another process's by now
        (dict(boot="another"), "taken"),
        (dict(boot="another", machine="another"), "cannot see whether that process lives"),
        (dict(boot="another", machine=""), "cannot see whether that process lives"),
        (dict(processes="another"), "cannot see whether that process lives"),
        (dict(host="elsewhere"), "on elsewhere.*, if it has ended, remove .*claim.json"),
        ({}, "is held by another run"),
    ],
)
def test_who_is_known_to_have_ended(changes, outcome, tmp_path, monkeypatch):
    monkeypatch.setattr(
        claims, "_line", lambda path, line=claims._line: "one" if "machine" in path else line(path)
    )
    path = tmp_path / claims.CLAIM_FILE
    path.write_text(json.dumps(claims._mine() | changes))
    if outcome == "taken":
        with claims.claimed(tmp_path) as stale:
            assert stale.items() >= changes.items()
        assert left(tmp_path) == []
    else:
        with pytest.raises(FileExistsError, match=outcome), claims.claimed(tmp_path):
            pass
        assert left(tmp_path) == [claims.CLAIM_FILE]


def test_a_file_that_is_no_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "PATIENCE", 0.05)
    path = tmp_path / claims.CLAIM_FILE
    path.write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match="is not a claim of a run"), claims.claimed(tmp_path):
        pass
    assert path.read_text() == '{"mine": 1}'
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FileExistsError, match="is not a claim of a run"), claims.claimed(tmp_path):
        pass
    path.unlink()
    path.mkdir()
    with pytest.raises(FileExistsError, match="is not a claim of a run"), claims.claimed(tmp_path):
        pass
    path.rmdir()
    path.write_text("")  # made by a process that was killed before it wrote
    with claims.claimed(tmp_path) as stale:
        assert "ended while it began" in claims.holder(stale)
    assert left(tmp_path) == []


@pytest.mark.parametrize("before", ["nothing", "stale", "stale, and so is who took it over"])
def test_of_many_at_once_one_gets_it(before, tmp_path):
    dead = claims._mine() | {"process": 2**22 + 1}
    outcomes = []
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        if before != "nothing":
            folder.mkdir()
            (folder / claims.CLAIM_FILE).write_text(json.dumps(dead))
        if before.endswith("over"):
            (folder / f"{claims.CLAIM_FILE}.next").write_text(json.dumps(dead | {"token": ""}))
        begin, done = threading.Barrier(8), threading.Barrier(8)
        won = []

        def run(folder=folder, begin=begin, done=done, won=won):
            begin.wait()
            try:
                with claims.claimed(folder):
                    won.append(True)
                    done.wait()
            except FileExistsError:
                done.wait()

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outcomes.append(len(won))
        assert not folder.exists() or left(folder) == []
    assert outcomes == [1] * 10
