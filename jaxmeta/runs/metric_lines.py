"""Lines of metrics: one for each meta-update, in the folder, in a sink, and as a status for the progress line."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmeta.runs import run_folder, sinks, terminal

PLACE = ("update", "seconds", "setting", "seed")
"""Entries of a line beside the metrics. No metric may have one of these names."""


def check_metrics(metrics: Any) -> None:
    """Raises unless ``metrics`` are real scalars or booleans by name."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics={metrics!r} must be a dictionary of scalars by name")
    for name, x in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"the metric {name!r} must have a string as its name")
        if name in PLACE:
            raise ValueError(
                f"the metric {name!r} needs another name: a line of the metrics has an entry of that name"
            )
        if not isinstance(x, bool | int | float) and not hasattr(x, "dtype"):
            raise TypeError(f"the metric {name!r} is {x!r}; it must be a scalar")
        kind = jnp.result_type(x) if isinstance(x, bool | int | float) else x.dtype
        real = any(jnp.issubdtype(kind, y) for y in (jnp.floating, jnp.integer, jnp.bool_))
        if np.shape(x) != () or not real:
            raise TypeError(
                f"the metric {name!r} has shape {np.shape(x)} and type {kind}; it must be a scalar, a real number "
                "or a boolean: take its mean, or one metric for each entry"
            )


def lines_of(
    rows: Mapping[str, Any],
    members: Sequence[dict[str, Any]],
    done: int,
    count: int,
    seconds_per_update: float,
) -> list[dict[str, Any]]:
    """One line for each of ``count`` meta-updates and each member, from ``rows [members, max_updates]``."""
    return [
        _numbers({name: column[place, i] for name, column in rows.items()})
        | {"update": done + i + 1, "seconds": round(seconds_per_update, 6)}
        | member
        for i in range(count)
        for place, member in enumerate(members)
    ]


class Outputs(NamedTuple):
    """The places to which a run's lines go."""

    line: terminal.Line
    """The progress line."""
    encoding: str
    """Encoding of the progress line's console."""
    write: sinks.Write | None
    """The sink, where there is one."""
    files: run_folder.Files | None
    """The files of the run's folder, where there is one."""

    def report(self, lines: list[dict], done: int, seconds: float) -> BaseException | None:
        """Writes and shows the lines of one call; returns the exception that the sink raised, or None."""
        if self.files is not None:
            self.files.append(lines)
        self.line.update(done, terminal.held(_status(lines, seconds), self.encoding))
        if self.write is not None:
            try:
                for x in lines:
                    self.write(x)
            except BaseException as error:  # of any kind: the caller saves a checkpoint first
                return error
        return None


def _status(lines: list[dict], seconds: float) -> str:
    """Mean returns and speed of some meta-updates, for the progress line; the mean loss of what acts in no task."""
    if lines and "return/before" not in lines[0] and "loss" in lines[0]:
        return f"loss {_mean(lines, 'loss')} {len(lines) / seconds:,.1f} meta-updates/s"
    before, after = (_mean(lines, f"return/{when}") for when in ("before", "after"))
    steps = sum(line.get("env_steps") or 0 for line in lines)
    return f"return {before} → {after} {steps / seconds / 1000:,.0f}k env steps/s"


def _mean(lines: list[dict], name: str) -> str:
    """Mean of one metric over the lines that have it, as text."""
    values = [line[name] for line in lines if line.get(name) is not None]
    return f"{sum(values) / len(values):.2f}" if values else "none"


def _numbers(metrics: dict[str, Any]) -> dict[str, float | int | bool | None]:
    """JSON numbers; None for a number that is not finite and for a mean return over no episodes.

    ``episodes/X``, if there is one, is the number of episodes behind the mean return ``return/X``.
    """
    numbers = {name: _number(x) for name, x in metrics.items()}
    for name in numbers:
        if name.startswith("return/") and numbers.get(f"episodes/{name[7:]}") == 0:
            numbers[name] = None
    return numbers


def _number(x: Any) -> float | int | bool | None:
    """A JSON number; None for a number that is not finite."""
    value = x.item()
    return value if math.isfinite(value) else None
