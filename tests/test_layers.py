"""Imports point one way: each room may use only those above it, and no two modules of a room use each other. A function
fits on one screen."""

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxmeta

ROOMS = [
    "types",
    "checks",
    "recurrences",
    "tasks",
    "networks",
    "estimators",
    "rollouts",
    "meta_updates",
    "learners",
    "algorithms",
    "references",
    "evaluation",
    "curricula",
    "plotting",
    "runs",
    "datasets",
    "deployment",
]
ROOT = Path(jaxmeta.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name of a file's module below ``jaxmeta``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules below ``jaxmeta`` that a file imports, and ``flax.linen`` where it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("flax.linen"):
                found.add("flax.linen")
            if name.startswith("jaxmeta."):
                below = name.removeprefix("jaxmeta.")
                # A name that is not a module is of the module before it.
                found.add(below if below in MODULES else below.rpartition(".")[0])
    return found


def room(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    module = module_of(path)
    used = imports(path)
    if module == "":
        assert used <= {"runs.experiments"}  # looked up when asked for
        return
    assert room(module) in ROOMS, f"{module} is in no room"
    allowed = {*ROOMS[: ROOMS.index(room(module)) + 1]}
    if module in ("networks.dense", "networks.mlp", "networks.encoders"):
        allowed.add("flax")
    assert {room(x) for x in used if x} <= allowed


@pytest.mark.parametrize("name", [x for x in ROOMS if (ROOT / x).is_dir()])
def test_no_two_modules_of_a_room_use_each_other(name):
    """An ``__init__`` gathers a room's modules, so that none of them may import the room itself."""
    graph = {}
    for module, path in MODULES.items():
        if room(module) == name:
            graph[module] = {x for x in imports(path) if room(x) == name and x != module}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_there_are_few_arrows_between_rooms():
    arrows = {(room(m), room(x)) for m, path in MODULES.items() for x in imports(path) if m and x}
    assert len({(a, b) for a, b in arrows if a != b and b in ROOMS}) <= 67


def test_every_module_has_a_test_file():
    tests = Path(__file__).parent
    for path in FILES:
        relative = path.relative_to(ROOT)
        inside = tests / relative.parent
        if path.stem != "__init__":
            assert list(inside.rglob(f"test_{path.stem}.py")), f"no test of {relative} in {inside}"


def test_public_names_are_exported():
    for name in ROOMS:
        if (ROOT / name).is_dir():
            package = importlib.import_module(f"jaxmeta.{name}")
            assert package.__doc__
            assert package.__all__
            for public in package.__all__:
                known = f"{name}.{public}" in MODULES or hasattr(package, public)
                assert known, f"jaxmeta.{name}.{public}"


def test_only_training_compiles():
    for path in FILES:
        # The host's side; and `keys`, where XLA is told what to keep apart.
        if path.stem not in ("training", "session", "inspection", "keys"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute | ast.ImportFrom):
                    text = ast.unparse(node)
                    assert text != "jax.jit", path
                    assert "import jit" not in text, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_function_fits_on_one_screen(path):
    """60 lines without the docstring, functions within it counted."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            assert lines <= 62, f"{node.name} has {lines} lines"
