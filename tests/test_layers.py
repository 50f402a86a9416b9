"""Imports point one way: each module may use only those above it."""

import ast
from pathlib import Path

import pytest

import jaxmeta

ORDER = [
    "types",
    "checks",
    "boxes",
    "records",
    "terminal",
    "reports",
    "distributions",
    "networks",
    "memories",
    "keys",
    "tasks",
    "rollout",
    "returns",
    "objectives",
    "adaptation",
    "meta_update",
    "lifelong",
    "evolution",
    "window_gradients",
    "update_rules",
    "gradient_learner",
    "replay_learner",
    "memory_learner",
    "graph_actor_critic",
    "tunable_learner",
    "algorithms",
    "evaluation",
    "checkpoints",
    "processes",
    "claims",
    "sinks",
    "training",
    "experiments",
    "presets",
    "plotting",
]
ALONE = {"exact": {"checks", "tasks"}, "optimal": {"types", "checks", "tasks"}}
ROOT = Path(jaxmeta.__file__).parent


def imports(path: Path) -> set[str]:
    """Modules of the library that a file imports, and ``flax.linen`` where it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("jaxmeta."):
                found.add(name.split(".")[1])
            if name.startswith("flax.linen"):
                found.add("flax.linen")
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    module = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if module == "__init__":
        assert imports(path) <= {"experiments"}  # looked up when asked for
        return
    if module in ALONE:
        allowed = ALONE[module]
    else:
        assert module in ORDER, f"{module} has no place in the order of modules"
        allowed = set(ORDER[: ORDER.index(module)])
        if module in ("tasks", "algorithms", "plotting"):
            allowed.add(module)
    if module == "networks":
        allowed.add("flax.linen")
    assert imports(path) <= allowed


def test_every_module_has_a_test_file():
    tests = Path(__file__).parent
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        name = relative.parent.name if path.stem == "__init__" else path.stem
        if name:  # the library's own __init__ holds a version
            assert list(tests.rglob(f"test_{name}.py")), f"no tests/test_{name}.py for {relative}"


def test_only_training_compiles():
    for path in ROOT.rglob("*.py"):
        if path.stem not in ("training", "keys"):  # of the latter XLA is told what to keep apart
            text = path.read_text(encoding="utf-8")
            assert "jax.jit" not in text, path
            assert "import jit" not in text, path
