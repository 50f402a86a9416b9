"""Strict JSON: what can be written is read back as it was."""

import dataclasses
import json
import math
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import records


class Pair(NamedTuple):
    first: float
    second: object


@dataclasses.dataclass
class Settings:
    rate: float
    path: Path


def strict(value):
    return json.loads(records.dumps(value), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("value", "written", "read"),
    [
        (math.inf, "Infinity", math.inf),
        (np.float32(-np.inf), "-Infinity", -math.inf),
        (jnp.bfloat16(0.5), 0.5, 0.5),
        (np.int64(3), 3, 3),
        (np.bool_(True), True, True),
        (jnp.arange(3), [0, 1, 2], [0, 1, 2]),
        (jnp.asarray([1.0, jnp.inf]), [1.0, "Infinity"], [1.0, math.inf]),
        (Pair(1.0, Settings(2.0, Path("a/b"))), {"first": 1.0, "second": {"rate": 2.0, "path": "a/b"}}, None),
        ({"a": (1, None, "x")}, {"a": [1, None, "x"]}, {"a": [1, None, "x"]}),
    ],
)  # fmt: skip
def test_what_is_written_is_read(value, written, read):
    assert strict(records.plain(value)) == written
    assert type(strict(records.plain(value))) is type(written)
    if read is not None:
        assert records.read(written) == read
        assert records.plain(records.read(written)) == written


def test_results_are_never_refused():
    content = {1: math.nan, "x": {2.5: [np.float64("nan"), math.inf]}, "o": {3}, "p": Path("a")}
    expected = {"1": None, "x": {"2.5": [None, "Infinity"]}, "o": "{3}", "p": "a"}
    assert strict(records.measured(content)) == expected


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.json"
    records.write(path, {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write(path, {"x": math.inf})
    assert json.loads(path.read_text()) == {"x": 1}
    assert [x.name for x in tmp_path.iterdir()] == ["a.json"]
