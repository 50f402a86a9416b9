"""Results of scripts: folders, tables, and the machine and code that produced them."""

import ast
import contextlib
import csv
import datetime
import functools
import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax

from jaxmeta.runs import records, terminal


def machine() -> str:
    """Devices, CPU cores and versions in one line."""
    return (
        f"{jax.device_count()} × {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Pins the programs that are started inside to one core, from their first instruction; None pins none.

    A program that pins itself may be too late: libraries may start threads when they are imported.
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
    """Raises FileExistsError unless ``folder`` is an empty folder, or missing."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: name another folder")


def markdown(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a Markdown table with a column for each key; all rows have the keys of the first."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(row[name] for name in names) + " |" for row in rows]


def leave(
    folder: Path,
    settings: Mapping[str, object],
    table: Sequence[Mapping[str, str]] | Sequence[str],
    **results: object,
) -> None:
    """Writes ``results.json`` with settings, results and provenance, and writes and prints ``table.md``.

    ``table`` holds rows for `markdown`, or finished lines.
    """
    lines = [x for x in table if isinstance(x, str)] or markdown(table)  # type: ignore[arg-type]
    record = records.measured({"settings": dict(settings), **provenance(), **results})
    folder.mkdir(parents=True, exist_ok=True)
    text = records.dumps(record, indent=2)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    terminal.say("\n".join(lines))
    terminal.say(f"{machine()}; results in {folder}", "stderr")


def provenance() -> dict[str, object]:
    """Provenance of the running script's results: machine, command, date and code.

    ``sources`` are digests of the library's and the script's files, by path in the repository.
    ``benchmarks/ledger.py`` uses them to find figures that are older than the code they measure.
    """
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).parents[2]
    modules = [getattr(module, "__file__", None) for module in list(sys.modules.values())]

    def beside(path: Path) -> bool:
        # Not in the folder of all packages, where the launchers of notebooks are.
        return path.is_relative_to(script.parent) and "site-packages" not in path.parts

    files = {script, *(Path(file).resolve() for file in modules if file)}
    return {
        "machine": machine(),
        "command": shlex.join(["python", _within(script, root), *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "sources": {
            _within(path, root): digest(path.read_text(encoding="utf-8"))
            for path in sorted(files)
            if path.suffix == ".py" and (path.is_relative_to(root / "jaxmeta") or beside(path))
        },
    }


@functools.cache
def digest(source: str) -> str:
    """Hexadecimal digits that change with a Python source, but not with its comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # strings on their own are documentation
            node.body = [  # type: ignore[attr-defined]
                x
                for x in body
                if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))
            ]
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()[:16]


def _plain(node: object) -> object:
    """A syntax tree as lists, equal in all versions of Python that have the syntax."""
    if isinstance(node, ast.AST):
        fields = [(name, _plain(x)) for name, x in ast.iter_fields(node) if x not in (None, [])]
        return [type(node).__name__, fields]
    return [_plain(x) for x in node] if isinstance(node, list) else repr(node)


def _within(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes a file of comma-separated values with a header line and a column for each key."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
