"""Checks of arguments: each error names the argument, its value and what would be right."""

import dataclasses
import difflib
import functools
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta.types import Description


def plain(value: Any) -> Any:
    """The Python number of a NumPy or jax scalar; anything else as it is."""
    is_array = isinstance(value, np.generic | np.ndarray | jax.Array)
    if not is_array or isinstance(value, jax.core.Tracer) or value.shape != ():
        return value
    number = jnp.issubdtype(value.dtype, np.number) or value.dtype == bool
    return np.asarray(value).item() if number else value


def choice(
    name: str,
    value: object,
    choices: Iterable[str] | Iterable[int],
    *,
    listed_by: str | None = None,
) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``; the message names the nearest three, and all others.

    Of a list too long to read, ``listed_by`` names the place instead, for example ``"tasks.names()"``.
    """
    known, value = sorted(choices), plain(value)
    if any(isinstance(value, type(x)) and value == x for x in known):
        return
    cutoff = 0.5 if listed_by is None else 0.0
    near = difflib.get_close_matches(str(value), map(str, known), n=3, cutoff=cutoff)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    if listed_by is None:
        rest = f"known are {', '.join(map(repr, known))}"
    else:
        rest = f"{listed_by} lists all {len(known)}"
    raise ValueError(f"{name}={value!r} is unknown: {hint}{rest}")


def at_least(name: str, value: int, minimum: int, maximum: int = 2**31 - 1) -> int:
    """``value`` as a Python integer; raises unless it is an integer from ``minimum`` to ``maximum``."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be an integer of at least {minimum}")
    if value < minimum:
        raise ValueError(f"{name}={value} must be at least {minimum}")
    if value > maximum:
        raise ValueError(f"{name}={value} must be at most {maximum}")
    return value


def each_at_least(name: str, values: Iterable[int], minimum: int) -> tuple[int, ...]:
    """``values`` as a tuple of Python integers; raises unless they are a tuple or a list of integers from ``minimum`` on."""
    if not isinstance(values, tuple | list | range):
        raise TypeError(f"{name}={values!r} must be a tuple of integers of at least {minimum}")
    return tuple(at_least(name, value, minimum) for value in values)


def distinct(name: str, values: Iterable[Any]) -> None:
    """Raises ValueError if one of ``values`` occurs twice."""
    seen: list[Any] = []
    for value in values:
        if value in seen:
            raise ValueError(f"{name}={values!r} must name {value!r} once")
        seen.append(value)


def some(name: str, values: Iterable[Any]) -> None:
    """Raises ValueError if ``values`` is empty."""
    if not list(values):
        raise ValueError(f"{name}={values!r} must hold at least one")


def between(name: str, value: float, low: float, high: float) -> float:
    """``value`` as a Python number; raises unless ``low <= value <= high``."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} must be a number between {low} and {high}")
    if not low <= value <= high:
        raise ValueError(f"{name}={value} must lie between {low} and {high}")
    return value


def ignored(settings: Any, names: Iterable[str], because: str) -> None:
    """Raises ValueError unless the fields ``names`` of ``settings`` have their defaults: they have no effect.

    ``settings`` is a dataclass or a NamedTuple. Arrays, traced or not, are not checked. ``because``
    ends the sentence "... has no effect".
    """
    if dataclasses.is_dataclass(settings):
        defaults = {x.name: x.default for x in dataclasses.fields(settings)}
    else:
        defaults = settings._field_defaults
    for name in names:
        value, default = getattr(settings, name), defaults[name]
        if not hasattr(value, "shape") and value != default:
            raise ValueError(
                f"{name}={value!r} has no effect {because}; leave it at its default {default!r}"
            )


def path(name: str, value: str | os.PathLike) -> Path:
    """``value`` as a path; raises TypeError or ValueError if it names no path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}={value!r} must be a path: a string or a pathlib.Path")
    if not os.fspath(value) or "\0" in str(value):
        raise ValueError(f"{name}={value!r} names no path; '.' is the current folder")
    return Path(value)


def folder(name: str, value: Path) -> None:
    """Raises OSError unless ``value`` is a folder to write to, or such a folder can be made."""
    there = value.absolute()
    while not there.exists() and there != there.parent:
        if there.is_symlink():
            raise NotADirectoryError(
                f"{name}={str(value)!r}: {there} is a link to a place that does not exist; name another folder"
            )
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"{name}={str(value)!r}: {there} is a file; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{name}={str(value)!r}: {there} may not be written to; name another folder"
        )


def missing(package: str, extra: str) -> ImportError:
    """The error to raise if ``package`` is not installed."""
    return ImportError(f'{package} is missing: pip install "jaxmeta[{extra}]"')


def core(name: str, value: int | None) -> None:
    """Raises ValueError unless ``value`` is a core that a process can be pinned to, or None for no pinning."""
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if value is not None and value not in there:
        cores = f"one of {', '.join(map(str, there))} or " if there else ""
        raise ValueError(f"{name}={value!r} must be {cores}None")


def shapes(expected: str, /, **arrays: Any) -> None:
    """Raises unless the ``arrays`` have the ``expected`` shapes: one word for each array in order, or one for all.

    In a word like ``"NTF"`` each letter is an axis, of one size in all words. A digit is an axis of
    that size. ``...`` stands for any number of axes, the same in all words. A word that ends in
    ``?`` also accepts a scalar, and ``?`` alone accepts only a scalar. Arguments may be traced,
    because only shapes are read. The check prevents wrong results from silent broadcasting of an
    array with a missing axis or an axis of size 1.
    """
    words = expected.split()
    known: dict[
        str, tuple[Any, str]
    ] = {}  # size of each axis, and the first argument with that axis
    for word, (name, array) in zip(
        words * len(arrays) if len(words) == 1 else words, arrays.items(), strict=True
    ):
        axes, or_scalar = re.findall(r"\.{3}|\w", word), word.endswith("?")
        wanted = " or ".join([f"[{', '.join(axes)}]"] * (word != "?") + ["a scalar"] * or_scalar)
        number = isinstance(array, int | float) and not isinstance(array, bool)
        if not hasattr(array, "shape") and not (or_scalar and number):
            raise TypeError(f"{name} is {_short(array)}; it must be {wanted}")
        sizes = shape = tuple(np.shape(array))
        if or_scalar and not shape:
            continue
        if "..." in axes and len(shape) >= len(axes) - 1:
            at, end = axes.index("..."), len(shape) - len(axes) + axes.index("...") + 1
            sizes = (*shape[:at], shape[at:end], *shape[end:])
        if len(sizes) != len(axes):
            raise ValueError(f"{name} has shape {shape}; it must be {wanted}")
        for axis, size in zip(axes, sizes, strict=True):
            right, where = known.setdefault(axis, (int(axis) if axis.isdigit() else size, name))
            if size != right:
                raise ValueError(
                    f"{name} has shape {shape}; it must be {wanted}, {axis} = {right} as in {where}"
                )


def _short(value: Any) -> str:
    """Type and beginning of a value, for messages."""
    return f"{type(value).__name__} {str(value)[:40]!r}"


def numbers(expected: str, /, **values: Any) -> list[np.ndarray]:
    """``values`` as float64 arrays; raises unless they have the ``expected`` shapes (see `shapes`)."""
    arrays = {}
    for name, value in values.items():
        try:
            array = np.asarray(value)
        except ValueError:  # rows of several lengths
            array = np.asarray(None)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} is {_short(value)}; it must be an array of numbers")
        arrays[name] = array.astype(np.float64)
    shapes(expected, **arrays)
    return list(arrays.values())


def same_structure(**trees: Any) -> None:
    """Raises ValueError unless all ``trees`` have the structure and the leaves' shapes of the first."""
    (first, tree), *others = trees.items()
    for name, other in others:
        if str(jax.tree.structure(tree)) != str(jax.tree.structure(other)):
            here, there = structures(tree, other)
            raise ValueError(
                f"{name} has the structure {there}; it must have the structure of {first}, {here}"
            )
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        for (path, x), y in zip(leaves, jax.tree.leaves(other), strict=True):
            if np.shape(x) != np.shape(y):
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)} has shape {np.shape(y)}; in {first} it is {np.shape(x)}"
                )


def structures(*trees: Any) -> tuple[str, ...]:
    """The structures of pytrees in the names of their types and fields, or as jax writes them if those are the same."""
    told = tuple(map(structure, trees))
    alike = len(set(told)) < len(told)
    return tuple(str(jax.tree.structure(x)) for x in trees) if alike else told


def structure(tree: Any) -> str:
    """The structure of a pytree in the names of its types and fields: ``tasks.navigation.NavigationParams(goal)``."""
    if tree is None or jax.tree_util.all_leaves([tree]):
        return "None" if tree is None else "an array" if hasattr(tree, "shape") else _cut(tree)
    entries = _entries(tree)
    if not entries:
        whole = str(jax.tree.structure(tree))
        return whole.removeprefix("PyTreeDef(").removesuffix(")")
    parts = []
    for name, x in entries.items():
        leaf = jax.tree_util.all_leaves([x])
        parts.append(
            name if leaf else structure(x) if name.isdigit() else f"{name}: {structure(x)}"
        )
    return f"{_type_name(type(tree))}({', '.join(parts)})"


def _entries(tree: Any) -> dict[str, Any]:
    """The parts of a dictionary, a NamedTuple, a tuple, a list or a dataclass by name; of anything else none."""
    if isinstance(tree, dict):
        return {str(name): x for name, x in tree.items()}
    if hasattr(tree, "_asdict"):
        return tree._asdict()
    if isinstance(tree, tuple | list):
        return {str(i): x for i, x in enumerate(tree)}
    if dataclasses.is_dataclass(tree) and not jax.tree_util.all_leaves([tree]):
        return {x.name: getattr(tree, x.name) for x in dataclasses.fields(tree)}
    return {}


def random_key(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is one random key: a typed one, or the raw numbers of ``jax.random.PRNGKey``."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if shape == ():
            return
        raise TypeError(f"{name} holds random keys of shape {shape}; it must be one: map over them")
    if dtype == np.uint32 and len(shape or ()) == 1:
        return
    told = (
        f"an array of {dtype}{list(shape)}"
        if shape is not None
        else f"{_type_name(type(value))} {_cut(value)}"
    )
    seed = value if isinstance(value, int) and not isinstance(value, bool) else 0
    raise TypeError(f"{name} is {told}; it must be a random key: use jax.random.key({seed})")


def like(name: str, value: Any, one: Any, one_name: str, *, leading: int = 0) -> None:
    """Raises ValueError unless the pytree ``value`` has the structure of ``one`` and the number of
    axes in each leaf, with ``leading`` more axes in front. ``one_name`` describes ``one`` in the
    message.

    Sizes of axes may differ: a family's tasks may have other sizes than its environment's default
    task.
    """
    if str(jax.tree.structure(value)) != str(jax.tree.structure(one)):
        given, right = structures(value, one)
        missing = [x for x in _entries(one) if x not in _entries(value)]
        lacks = f": {', '.join(missing)} is missing" if missing and _entries(value) else ""
        raise ValueError(f"{name} has the structure {given}; {one_name} has {right}{lacks}")
    leaves = jax.tree_util.tree_leaves_with_path(value)
    for (path, leaf), single in zip(leaves, jax.tree.leaves(one), strict=True):
        shape, wanted = np.shape(leaf), np.shape(single)
        if len(shape) != len(wanted) + leading:
            axes = ", ".join([*"MN"[:leading], *map(str, wanted)])
            how = (
                ". A single one gets a leading axis by jax.tree.map(lambda x: x[None], ...)"
                * leading
            )
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has shape {shape}; it must be like [{axes}]: the shape in {one_name} is "
                f"{wanted}{how}"
            )


def batch(name: str, many: Any, one: Any, one_name: str) -> int:
    """The number M of entries that the pytree ``many`` holds, each with the structure of ``one``.

    Raises:
        ValueError: ``many`` is not `like` ``one`` with a leading axis, of one length in all leaves;
            the message names the leaf. Without this check a leaf's own first axis would pass for
            the leading one.
    """
    like(name, many, one, one_name, leading=1)
    count: int | None = None
    for path, leaf in jax.tree_util.tree_leaves_with_path(many):
        size = np.shape(leaf)[0]
        if count not in (None, size):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has shape {np.shape(leaf)}; other leaves hold {count}"
            )
        count = size
    if not count:
        raise ValueError(f"{name} holds nothing")
    return count


def fields(settings: Any) -> None:
    """Raises unless every field of a dataclass has its annotated type and no number is NaN.

    Lists become tuples, and scalars of NumPy and jax become Python numbers, so that equal settings
    compare equal and can be hashed. Entries of mappings are not checked.
    """
    for name, kind in typing.get_type_hints(type(settings)).items():
        object.__setattr__(settings, name, field(name, getattr(settings, name), kind))


def field(name: str, value: Any, kind: Any) -> Any:
    """``value`` with lists as tuples and scalars as Python numbers; raises unless it has the type ``kind``."""
    value = _plain_tuples(value)
    if typing.get_origin(kind) is Literal:
        choice(name, value, typing.get_args(kind))
    elif not _is_a(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else kind
        raise TypeError(f"{name}={value!r} must be of type {wanted}")
    numbers = value if isinstance(value, tuple) else [value]
    if any(isinstance(x, float) and math.isnan(x) for x in numbers):
        raise ValueError(f"{name}={value!r} must not be NaN")
    return value


def _plain_tuples(value: Any) -> Any:
    """Lists as tuples and scalars as Python numbers; a NamedTuple keeps its type."""
    if type(value) in (tuple, list):
        return tuple(map(_plain_tuples, value))
    return plain(value)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether ``value`` has the annotated type ``kind``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if len(_options(kind)) > 1:
        return any(_is_a(value, x) for x in arguments)
    if origin is tuple and arguments[1:] == (...,):
        return isinstance(value, tuple | list) and all(_is_a(x, arguments[0]) for x in value)
    if kind in (int, float):
        return not isinstance(value, bool) and isinstance(
            value, int if kind is int else int | float
        )
    kind = origin or kind
    return isinstance(value, kind) if isinstance(kind, type) else True


Function = TypeVar("Function", bound=Callable[..., Any])


def arguments(function: Function) -> Function:
    """``function`` with a check of its arguments: TypeError unless they have the annotated types.

    Objects are checked: a family, a Config, a policy, a function, and a random key that is named ``key``. Numbers, names
    and other arrays have other checks.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in _given(function, args, kwargs).items():
            if name == "key":
                random_key(name, value)
            if name in _annotations(function):
                instance(name, value, _annotations(function)[name])
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def constructor(
    takes: Literal["tasks", "windows"] = "tasks", /, **ranges: tuple[float, float]
) -> Callable[[Function], Function]:
    """A decorator of ``algorithm(family, config, hyper, ...)`` that adds checks.

    It checks the `arguments`, the hyper-parameters (by `hyper` with ``ranges``), also those of
    ``init(key, hyper)``, and that the tasks of a ``step`` are a `batch` of the family's tasks, unless it takes
    windows of experience, which it checks itself. The algorithm's ``description`` holds its name, its settings and its family.
    """
    standard = ("family", "config", "hyper")

    def decorate(function: Function) -> Function:
        checked = arguments(function)

        @functools.wraps(function)
        def construct(*args: Any, **kwargs: Any) -> Any:
            _known_arguments(function, kwargs)
            kind = _annotations(function)["hyper"]
            given = _given(function, args, kwargs).get("hyper")
            if isinstance(given, kind):  # else `arguments` raises
                hyper(given, **ranges)
            algorithm = checked(*args, **kwargs)

            def init(key: jax.Array, *values: Any, **named: Any) -> Any:
                random_key("key", key)
                for value in (*values, *named.values()):
                    instance("hyper", value, kind)
                    hyper(value, **ranges)
                return algorithm.init(key, *values, **named)

            def checked_step(step: Callable) -> Callable:
                def call(key: jax.Array, state: Any, tasks: Any, *learns: Any) -> Any:
                    random_key("key", key)
                    if takes == "tasks":
                        with jax.ensure_compile_time_eval():
                            one = family.env.default_params
                        batch("tasks", tasks, one, f"a task of family {family.name!r}")
                    if not hasattr(state, "meta"):
                        raise TypeError(
                            f"state is {_type_name(type(state))} {_cut(state)}; it must be what init, or the last step, returned"
                        )
                    return step(key, state, tasks, *learns)

                return call

            bound = inspect.signature(function).bind(*args, **kwargs)
            objects = {x: bound.arguments[x] for x in bound.arguments if x not in standard}
            bound.apply_defaults()
            family, config, numbers = (bound.arguments[x] for x in standard)
            made = algorithm._replace(init=init, step=checked_step(algorithm.step))
            if algorithm.step_with_results is not None:
                with_results = checked_step(algorithm.step_with_results)
                made = made._replace(step_with_results=with_results)
            parts = {x: y for x, y in made._asdict().items() if x != "description"}
            return made._replace(
                description=Description(
                    function.__name__, family, config, numbers, _not_none(objects), parts
                )
            )

        return construct  # type: ignore[return-value]

    return decorate


def _known_arguments(function: Callable, given: dict[str, Any]) -> None:
    """Raises TypeError if an algorithm's constructor has no argument of that name; the message says where it belongs."""
    known = inspect.signature(function).parameters
    kinds = {name: _annotations(function)[name] for name in ("config", "hyper")}
    settings: dict[str, Iterable[str]] = {
        name: [x.name for x in dataclasses.fields(kind)]
        if dataclasses.is_dataclass(kind)
        else kind._fields
        for name, kind in kinds.items()
    }
    for name in given:
        if name in known:
            continue
        called = f"{function.__name__} has no argument {name}="
        for kind, fields in settings.items():
            if name in fields:
                where = f"{function.__name__}(family, {kind}={kind.title()}({name}=...))"
                raise TypeError(f"{called}; it is a setting: {where}")
        if name == "encoder" and "network" in known:
            made = "network=networks.recurrent_actor_critic(family, memory, encoder=...)"
            raise TypeError(f"{called}; give it {made}")
        if name == "encoder" and "policy" in known:
            raise TypeError(f"{called}; give it policy=networks.encoded_policy(family, encoder)")
        raise TypeError(f"{called}; it has {', '.join(known)}")


def _not_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _given(function: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name; empty if they do not fit the signature, for which Python raises the error."""
    try:
        return inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        return {}


@functools.cache
def _annotations(function: Callable) -> dict[str, Any]:
    """Types of the arguments that `arguments` checks, by name."""
    hints = typing.get_type_hints(function)
    hints.pop("return", None)
    elsewhere = (int, float, bool, str, tuple, Any, Literal, jax.Array, Sequence, type(None))
    return {
        name: kind
        for name, kind in hints.items()
        if not getattr(kind, "_is_protocol", False)
        and not all((typing.get_origin(x) or x) in elsewhere for x in _options(kind))
    }


def instance(name: str, value: Any, kind: Any) -> None:
    """Raises TypeError unless ``value`` is an instance of ``kind``: a class, or a union of classes and None.

    The message names the given and the wanted type, and where to find an instance of it.
    """
    wanted = tuple(typing.get_origin(x) or x for x in _options(kind))
    if not isinstance(value, wanted):
        names = " or ".join(map(_type_name, wanted))
        raise TypeError(
            f"{name} is {_type_name(type(value))} {_cut(value)}; it must be {names}{_hint(value, wanted)}"
        )
    for option in _options(kind):
        result = (typing.get_args(option) or (None,))[-1]
        if callable(value) and getattr(result, "__name__", "") == "GradientTransformation":
            _makes_optimizers(name, value)


def _makes_optimizers(name: str, value: Callable) -> None:
    """Raises TypeError unless ``value`` is ``learning_rate -> optax.GradientTransformation``."""
    wanted = "it must be a function of the learning rate that makes an optax.GradientTransformation"
    try:
        made = value(1e-3)
    except TypeError as error:
        raise TypeError(f"{name}(1e-3) fails, {error}; {wanted}") from error
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise TypeError(f"{name}(1e-3) is {_type_name(type(made))} {_cut(made)}; {wanted}")


def reading(learner: Any, kind: type) -> Any:
    """``learner`` with a check of its ``meta``: TypeError unless it is of ``kind``, for example if it is a whole state."""

    def checked(function: Callable, position: int) -> Callable:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            if position == 1:
                random_key("key", args[0])
            instance("meta", args[position], kind)
            return function(*args)

        return call

    positions = dict(init=1, memory=0, act=1, update=1)
    return learner._replace(**{x: checked(getattr(learner, x), i) for x, i in positions.items()})


def device_memory() -> int | None:
    """The bytes of the first device's memory, of the machine's on a CPU; None where it is not known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _options(kind: Any) -> tuple[Any, ...]:
    """The types of a union; of any other type, the type alone."""
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if is_union else (kind,)


def _type_name(kind: type) -> str:
    """The name under which a user imports a class."""
    if kind is type(None):
        return "None"
    module = kind.__module__.removeprefix("jaxmeta.")
    names = {"builtins": kind.__qualname__, "collections.abc": "a function"}
    return names.get(module, f"{module}.{kind.__qualname__}")


def _cut(value: Any) -> str:
    """The beginning of a value's text, for messages."""
    text = " ".join(str(value).split())
    return repr(text if len(text) < 60 else f"{text[:57]}...") if text else "''"


def _hint(value: Any, wanted: tuple[type, ...]) -> str:
    """Where to find an instance of a wanted type, given ``value`` instead."""
    if isinstance(value, type) and issubclass(value, wanted):
        return f": call it, {value.__name__}()"
    wanted = tuple(x for x in wanted if x is not type(None))
    names = {x.__name__ for x in wanted}
    parts = getattr(value, "_fields", ()) or getattr(value, "__dataclass_fields__", ())
    found = [x for x in parts if isinstance(getattr(value, x, None), wanted)]
    if found and "Callable" not in names:  # not any function will do
        return f"; its .{found[0]} is one"
    if "TaskFamily" in names:
        return "; tasks.make makes one from a name"
    if "Memory" in names:
        return "; networks.recurrent.gru(size=64) is one"
    if "Callable" in names and hasattr(value, "update"):
        return ": optax.adam, say, and not optax.adam(1e-3)"
    return ""


def hyper(values: Any, **ranges: tuple[float, float]) -> None:
    """Raises unless the numbers in an algorithm's ``Hyper`` lie in their ranges, ``name=(low, high)``.

    Traced fields need only be scalars. The ranges of fields that several algorithms share are
    below; a step size, a cost or a bonus has its range by the end of its name.
    """
    known = {
        "discount": (0, 1),
        "gae_lambda": (0, 1),
        "trace_lambda": (0, 1),
        "learning_rate": (0, 1e6),
        "max_grad_norm": (1e-12, math.inf),
        "anneal_updates": (1, math.inf),
        "clip": (1e-6, math.inf),
        "noise_std": (1e-12, 1e6),
    }
    ends = {"step_size": (0, 1e6), "cost": (0, 1e12), "bonus": (0, 1e12)}
    for name, value in values._asdict().items():
        value = plain(value)
        if hasattr(value, "shape"):
            shapes("?", **{name: value})
            continue
        (low, high), *_ = [x for end, x in (ranges | known | ends).items() if name.endswith(end)]
        between(name, value, low, high)
