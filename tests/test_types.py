import ast
import importlib
import inspect
import pathlib
import pkgutil
import pydoc
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import jaxmeta
from jaxmeta import types
from jaxmeta.algorithms import maml
from jaxmeta.deployment import Session
from jaxmeta.runs import training


@pytest.mark.parametrize("name", ["TimeStep", "Stream", "Trajectory", "History"])
def test_traced_types_are_pytrees_whose_every_field_is_a_leaf(name):
    kind = getattr(types, name)
    fields = kind._fields
    value = kind(*[jnp.arange(2.0) + i for i in range(len(fields))])
    doubled = jax.jit(lambda x: jax.tree.map(lambda leaf: 2 * leaf, x))(value)
    assert isinstance(doubled, kind)
    for i, field in enumerate(fields):
        assert jnp.array_equal(getattr(doubled, field), 2 * (jnp.arange(2.0) + i))


def test_learner_and_algorithm_list_what_the_slow_loop_needs():
    assert types.Learner._fields == ("init", "memory", "act", "update")
    fields = ("init", "step", "learner", "lifetime", "description", "step_with_results")
    assert types.MetaAlgorithm._fields == fields


def helped(kind):
    return pydoc.plain(pydoc.render_doc(kind))


def test_help_says_what_fields_are():
    text = helped(types.Learner)
    assert "Attributes:" in text
    assert "memory: ``(meta) -> memory``, once per stream." in text
    assert types.Learner.memory.__doc__ == "``(meta) -> memory``, once per stream."
    assert "Alias for field" not in text
    text = helped(maml.Config)  # with the fields of the class that it extends
    assert "first_order: Treat the inner gradient as a constant" in text
    assert "num_streams: " in text
    assert "returns: Undiscounted returns of the finished episodes." in helped(Session)
    assert "num_tasks: Tasks in each meta-update (M)." in helped(training.Config)


def fields_with_docs(path):
    """Of each class in a file, its name and the names of the fields that have a string below them."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            names = [
                x.target.id
                for x, text in zip(node.body, node.body[1:], strict=False)
                if isinstance(x, ast.AnnAssign)
                and isinstance(text, ast.Expr)
                and isinstance(getattr(text, "value", None), ast.Constant)
            ]
            if names:
                yield node.name, names


def test_help_says_so_for_every_class():
    found = 0
    for name in sorted(x.name for x in pkgutil.walk_packages(jaxmeta.__path__, "jaxmeta.")):
        module = importlib.import_module(name)
        for kind, names in fields_with_docs(pathlib.Path(module.__file__)):
            text = inspect.getdoc(getattr(module, kind))
            for field in names:
                assert f"\n    {field}: " in text, f"{name}.{kind}.{field}"
                found += 1
    assert found > 500


def test_imports_read_no_source():
    code = (
        "import jaxmeta.deployment; from jaxmeta import types; from jaxmeta.algorithms.maml import Config; Config();"
        "assert not types._class_bodies.cache_info().misses; Config.__doc__;"
        "assert types._class_bodies.cache_info().misses"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
