"""The API reference is made of docstrings: each says what it is, in which shapes, and after whom."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
import typing

import jax
import pytest

import jaxmeta
from jaxmeta.estimators import surrogates

MODULES = sorted(x.name for x in pkgutil.walk_packages(jaxmeta.__path__, "jaxmeta."))
SHAPE = re.compile(
    r"\[[^\]`]*\]|\bshape\b"
)  # as in ``reward [N, T]`` or ``[]``, or "of equal shape"
YEAR = re.compile(r"\b(1[89]|20)\d\d\b")
KEYS = {"key", "keys"}


def public(module):
    """Functions and classes that a module defines, by name; methods of classes, too."""
    for name, x in vars(importlib.import_module(module)).items():
        if name.startswith("_") or getattr(x, "__module__", None) != module:
            continue
        if inspect.isclass(x) or inspect.isfunction(x):
            yield name, x


def arrays(function):
    """Names of what are arrays for sure among a function's arguments and its result, keys apart."""
    hints = typing.get_type_hints(function)
    return [name for name, kind in hints.items() if kind is jax.Array and name not in KEYS]


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_documented(module):
    assert inspect.getdoc(importlib.import_module(module))
    for name, x in public(module):
        own = x.__doc__ or ""
        generated = own.startswith(f"{name}(")  # what dataclasses and NamedTuples write themselves
        assert own, f"{module}.{name} has no docstring"
        assert not generated, f"{module}.{name} has no docstring of its own"


@pytest.mark.parametrize("module", MODULES)
def test_functions_of_arrays_say_their_shapes(module):
    for name, x in public(module):
        if inspect.isfunction(x) and arrays(x):
            assert SHAPE.search(inspect.getdoc(x)), (
                f"{module}.{name} does not say the shapes of {', '.join(arrays(x))}"
            )


def raises(function):
    """Whether a function's own lines raise an error."""

    def found(node):
        nodes = ast.iter_child_nodes(node)
        nodes = [x for x in nodes if not isinstance(x, ast.FunctionDef | ast.Lambda)]
        return any((isinstance(x, ast.Raise) and x.exc is not None) or found(x) for x in nodes)

    return found(ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0])


@pytest.mark.parametrize("module", MODULES)
def test_functions_that_raise_say_so(module):
    for name, x in public(module):
        if inspect.isfunction(x) and raises(x):
            text = inspect.getdoc(x).lower()
            assert "raises" in text or "error" in text, (
                f"{module}.{name} does not say what it raises"
            )


@pytest.mark.parametrize("module", MODULES)
def test_fields_are_documented(module):
    """Each field of a public NamedTuple or dataclass has a string below it."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        record = any("NamedTuple" in ast.unparse(x) for x in node.bases)
        record |= any("dataclass" in ast.unparse(x) for x in node.decorator_list)
        if record:
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    documented = isinstance(after, ast.Expr) and isinstance(
                        after.value, ast.Constant
                    )
                    assert documented, f"{module}.{node.name}.{ast.unparse(field.target)}"


CITED = [x for x in MODULES if x.startswith("jaxmeta.algorithms.")]


@pytest.mark.parametrize("module", CITED)
def test_algorithms_name_their_source(module):
    assert YEAR.search(inspect.getdoc(importlib.import_module(module)))


def test_surrogates_name_their_source():
    """Those that are weights of one sum say it of the weights."""
    for name, surrogate in surrogates.SURROGATES.items():
        source = surrogate
        while isinstance(source, functools.partial):
            source = source.keywords.get("weights", source.func)
        assert YEAR.search(inspect.getdoc(source)), name
