"""What scripts leave behind: a folder of their own, tables, and on which machine they ran."""

import csv
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax


def machine() -> str:
    """Devices, CPU cores and versions, in words."""
    return (
        f"{jax.device_count()} × {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )


def refuse_to_overwrite(folder: Path) -> None:
    """Raises FileExistsError where there is something in ``folder``."""
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name another folder")


def markdown(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a Markdown table, a column a key; all rows have the first one's keys."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(row[name] for name in names) + " |" for row in rows]


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """A file of comma-separated values with a header line, a column a key."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
