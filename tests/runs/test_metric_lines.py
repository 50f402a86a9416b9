"""Lines of metrics: their entries, their order, and where they go."""

import numpy as np
import pytest

from jaxmeta.runs import metric_lines


def test_a_line_for_each_update_and_member():
    """Rows beyond the updates that were done are left out; numbers that JSON lacks are None."""
    rows = {
        "return/after": np.array([[1.0, np.nan, 9.0], [3.0, 4.0, 9.0]]),
        "episodes/after": np.array([[2, 2, 9], [0, 5, 9]]),
    }
    lines = metric_lines.lines_of(rows, [{"seed": 7}, {"seed": 8}], 10, 2, 0.25)
    assert [(x["update"], x["seed"], x["return/after"]) for x in lines] == [
        (11, 7, 1.0),
        (11, 8, None),
        (12, 7, None),
        (12, 8, 4.0),
    ]
    assert {x["seconds"] for x in lines} == {0.25}


@pytest.mark.parametrize("name", metric_lines.PLACE)
def test_a_metric_has_no_name_of_a_line_s_own_entries(name):
    with pytest.raises(ValueError, match=f"the metric {name!r} needs another name"):
        metric_lines.check_metrics({name: 1.0})
    metric_lines.check_metrics({f"own_{name}": 1.0})


class Line:
    """A progress line that keeps what it is told."""

    def update(self, done, status):
        self.told = done, status


def test_the_status_has_mean_returns_and_speed_and_a_sink_s_error_comes_back():
    lines = [
        {"return/before": 1.0, "return/after": None, "env_steps": 3000},
        {"return/before": 2.0, "return/after": None, "env_steps": 5000},
    ]
    written, error = [], OSError("no network")

    def write(line):
        written.append(line)
        raise error

    outputs = metric_lines.Outputs(Line(), "utf-8", write, None)
    assert outputs.report(lines, 5, 2.0) is error
    assert written == lines[:1]
    done, status = outputs.line.told
    assert done == 5
    assert str(status) == "return 1.50 → none 4k env steps/s"
    assert outputs._replace(write=None).report(lines, 5, 2.0) is None
