"""What scripts leave behind: a folder of their own, tables, and on which machine they ran."""

import contextlib
import csv
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax


def machine() -> str:
    """Devices, CPU cores and versions, in words."""
    return (
        f"{jax.device_count()} × {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Programs that are started within run on one core alone, from their first instruction; None is on any.

    A program that pins itself may come too late: whatever computes while it is imported has its threads by then.
    """
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def refuse_to_overwrite(folder: Path) -> None:
    """Raises FileExistsError where there is something in ``folder``."""
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name another folder")


def markdown(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a Markdown table, a column a key; all rows have the first one's keys."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(row[name] for name in names) + " |" for row in rows]


def leave(
    folder: Path,
    settings: Mapping[str, object],
    table: Sequence[Mapping[str, str]],
    **results: object,
) -> None:
    """``results.json`` with settings, machine and results, and ``table.md``, which is shown, too."""
    lines, told = (
        markdown(table),
        {k: str(x) if isinstance(x, Path) else x for k, x in settings.items()},
    )
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"settings": told, "machine": machine(), **results}, indent=2)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(f"{machine()}; results in {folder}", file=sys.stderr)


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """A file of comma-separated values with a header line, a column a key."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
