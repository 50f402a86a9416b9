"""All measured figures: which command gave them, when, where, and whether the code is still what was measured.

    python benchmarks/ledger.py                              # every figure, and what is older than its code
    python benchmarks/ledger.py add runs/fields --name fields --families maze swimmer --algorithms rl2
    python benchmarks/ledger.py write                        # tables into README.md and benchmarks/RESULTS.md

A script leaves results.json (command, machine, day, digests of the code) and table.md in its folder; `add` keeps
both in benchmarks/results/NAME.json, with digests of those files only that the script needs: `--families` and
`--algorithms` name which of the library's many it runs, `--presets` whose settings are theirs. `write` puts tables where a document says
`<!-- results: NAME -->`, up to `<!-- end -->`, and an index where it says `<!-- results -->`.

A figure is older than its code where a file that it needs has changed since, other than in comments, docstrings
and layout.
"""

import ast
import dataclasses
import fnmatch
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import tyro

from jaxmeta import MISCOMPILES, checks
from jaxmeta.runs import presets, reports
from jaxmeta.runs.experiments import describe

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md")
REGISTRIES = (
    "jaxmeta/tasks/__init__.py",
    "jaxmeta/algorithms/__init__.py",
    "jaxmeta/runs/__init__.py",
)
"""They import everything that there is, of which a script runs a few."""
NO_MATTER = (
    *REGISTRIES,
    "jaxmeta/__init__.py",
    "jaxmeta/checks.py",
    "jaxmeta/runs/claims.py",
    "jaxmeta/plotting/",
    "jaxmeta/runs/presets.py",
    "jaxmeta/runs/records.py",
    "jaxmeta/runs/reports.py",
    "jaxmeta/runs/sinks.py",
    "jaxmeta/runs/terminal.py",
)
"""Files that change no figure; of presets the settings do, and are looked at one by one."""
BLOCK = re.compile(
    r"(<!-- results(?:: (?P<name>\S+))? -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured table."""

    title: str
    command: str
    date: str
    seeds: str
    machine: str
    families: tuple[str, ...]
    algorithms: tuple[str, ...]
    presets: tuple[str, ...]  # Patterns of their names, as in `*-navigation`.
    sources: dict[str, str]  # Of each file and preset that it depends on, the digest at the time.
    lines: tuple[str, ...]  # Of Markdown: one table or several, with what stands between them.


@dataclasses.dataclass(frozen=True)
class Show:
    """Every figure with its command, seeds, day and machine, and whether it is older than its code."""


@dataclasses.dataclass(frozen=True)
class Write:
    """Tables into the documents."""

    check: bool = False  # Change nothing; fail where a document would change.


@dataclasses.dataclass(frozen=True)
class Add:
    """Keep what a script has left in a folder."""

    folder: Annotated[Path, tyro.conf.Positional]
    name: str  # Of its file in benchmarks/results.
    title: str | None = None  # The question, in a few words; None is as before.
    seeds: str | None = None
    """How many, in words where they differ; None is as before or as the script's setting says."""
    families: tuple[str, ...] | None = None
    """Modules of `jaxmeta.tasks` that it runs; None is as before."""
    algorithms: tuple[str, ...] | None = None  # Modules of `jaxmeta.algorithms`; None is as before.
    presets: tuple[str, ...] | None = None
    """Patterns of the presets that it runs; None is as before, or none."""


def load(results: Path = RESULTS) -> dict[str, Figure]:
    """All figures by name."""
    return {path.stem: read(path) for path in sorted(results.glob("*.json"))}


def read(path: Path) -> Figure:
    """The figure that is kept in a file."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    for name in ("families", "algorithms", "presets", "lines"):
        kept[name] = tuple(kept[name])
    return Figure(**kept)


def needed(
    script: str,
    families: Iterable[str],
    algorithms: Iterable[str],
    source: Callable[[str], str | None],
) -> list[str]:
    """Files that a script runs, by what they import; of `REGISTRIES` only the modules that are named.

    Args:
        script: Its path in the repository.
        families: Modules of `jaxmeta.tasks` that it runs, `transform` for the package of that name.
        algorithms: Modules of `jaxmeta.algorithms`.
        source: The text of a file by its path in the repository; None where there is none.
    """
    named = {f"jaxmeta/tasks/{x}" for x in families} | {
        f"jaxmeta/algorithms/{x}" for x in algorithms
    }
    found: set[str] = set()
    left = [script, *(path for x in sorted(named) for path in _files(x, source))]
    while left:
        path = left.pop()
        text = source(path)
        if path in found or path.startswith(NO_MATTER) or text is None:
            continue
        found.add(path)
        for module in _imports(ast.parse(text)):
            # A script imports its neighbours, and from a folder within benchmarks/ those above it.
            for folder in ("", f"{Path(path).parent.as_posix()}/", "benchmarks/"):
                left += _files(folder + module.replace(".", "/"), source)
    return sorted(found)


def _files(stem: str, source: Callable[[str], str | None]) -> list[str]:
    return [x for x in (f"{stem}.py", f"{stem}/__init__.py") if source(x) is not None]


def _imports(tree: ast.AST) -> set[str]:
    """Names of modules, and of what is imported from them, which may be modules, too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def in_the_repository(path: str) -> str | None:
    file = ROOT / path
    return file.read_text(encoding="utf-8") if file.is_file() else None


def settings(patterns: Iterable[str]) -> dict[str, str]:
    """A digest of the settings of each preset whose name matches one of ``patterns``."""
    found = {}
    for name, experiment in presets.PRESETS.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            described = describe(experiment) | {"training": dataclasses.asdict(experiment.plan)}
            text = json.dumps(described, sort_keys=True)
            found[f"preset {name}"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def changed(figure: Figure) -> list[str]:
    """Files and presets that it depends on and that are not what they were."""
    now = settings(figure.presets)
    for path in figure.sources:
        text = in_the_repository(path)
        if text is not None:
            now[path] = reports.digest(text)
    return [name for name, before in figure.sources.items() if now.get(name) != before]


def add(args: Add, results: Path = RESULTS) -> Figure:
    """The figure that is now kept."""
    left = json.loads((args.folder / "results.json").read_text(encoding="utf-8"))
    lines = (args.folder / "table.md").read_text(encoding="utf-8").splitlines()
    path = results / f"{args.name}.json"
    before = dataclasses.asdict(read(path)) if path.exists() else {}
    told = {
        name: before.get(name) if getattr(args, name) is None else getattr(args, name)
        for name in ("title", "seeds", "families", "algorithms", "presets")
    }
    told["presets"] = told["presets"] or ()
    if told["seeds"] is None and "num_seeds" in left["settings"]:
        told["seeds"] = str(left["settings"]["num_seeds"])
    for name, value in told.items():
        if value is None:
            raise ValueError(f"{name}=None must be told: benchmarks/results has no {args.name} yet")
    script = left["command"].split()[1]
    files = needed(script, told["families"], told["algorithms"], in_the_repository)
    sources = {x: left["sources"][x] for x in files if x in left["sources"]}
    figure = Figure(
        **told,
        command=re.sub(r" --output[ =](\S+)", "", left["command"]),  # wherever it was
        date=left["date"],
        machine=left["machine"],
        sources=sources | settings(told["presets"]),
        lines=tuple(lines),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(figure), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return figure


def block(figure: Figure) -> list[str]:
    """The lines of a document: the tables and their origin."""
    origin = f"`{figure.command}`; {figure.date}, {_seeds(figure)}, {figure.machine}."
    return [*figure.lines, "", origin]


def _seeds(figure: Figure) -> str:
    many = "" if figure.seeds == "1" else "s"
    return f"{figure.seeds} seed{many}" if figure.seeds.isdigit() else figure.seeds


def jax_of(figure: Figure) -> str:
    """The release that a figure was made on, and whether it is to be made again."""
    found = re.search(r"jax ([\w.]+)", figure.machine)
    release = found[1] if found else "unknown"
    return f"{release}, to be made again" if release == MISCOMPILES else release


def index(figures: dict[str, Figure], *, status: bool) -> list[str]:
    """The lines of a table of figures; with ``status`` it says which are older than their code."""
    rows = []
    for figure in figures.values():
        row = {
            "figure": figure.title,
            "command": f"`{figure.command}`",
            "seeds": figure.seeds,
            "date": figure.date,
            "machine": figure.machine,
            "jax": jax_of(figure),
        }
        if status:
            old = changed(figure)
            row["code"] = f"older than {', '.join(old)}" if old else "as it is"
        rows.append(row)
    return reports.markdown(rows)


def filled(text: str, figures: dict[str, Figure]) -> str:
    """A document with its blocks as they should be."""

    def fill(match: re.Match) -> str:
        name = match["name"]
        if name is None:
            lines = index(figures, status=False)
        else:
            checks.choice("results", name, figures)
            lines = block(figures[name])
        return "\n".join([match[1].rstrip("\n"), *lines, match[4]])

    return BLOCK.sub(fill, text)


def write(args: Write) -> None:
    """Writes the tables into the documents."""
    figures = load()
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        new = filled(text, figures)
        if new != text and args.check:
            raise ValueError(
                f"{path.name} does not say what benchmarks/results does: run ledger.py write"
            )
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} written", file=sys.stderr)


def main(args: Show | Write | Add) -> None:
    if isinstance(args, Add):
        print("\n".join(block(add(args))))
    elif isinstance(args, Write):
        write(args)
    else:
        print("\n".join(index(load(), status=True)))


if __name__ == "__main__":
    try:
        main(tyro.cli(Show | Write | Add, description=__doc__, default=Show()))
    except (ValueError, TypeError, OSError, KeyError) as error:
        sys.exit(f"error: {error}")
