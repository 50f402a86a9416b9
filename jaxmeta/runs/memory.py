"""The memory of a program's intermediate values, before it is compiled.

The estimate walks through the traced program with the lives of its arrays. It keeps what the compiler keeps: results of
products, loops, sorts and gathers, and what these read. Elementwise results are computed where they are read and take no
memory. A loop takes what it stacks from the beginning, and once what its body takes.

The rules are those of jax's compiler for CPUs. For meta-updates of RL² with a GRU the estimate is within 15 % of what the
compiler plans (`tests/runs/test_memory.py`). Compilers for accelerators plan otherwise.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxmeta.checks import device_memory
from jaxmeta.types import MetaAlgorithm

LOOPS = ("scan", "while")
WHOLE = {
    *LOOPS,
    *("cond", "conv_general_dilated", "copy", "dot_general", "gather", "sort", "concatenate"),
    *("cummax", "cummin", "cumprod", "cumsum", "random_bits", "threefry2x32", "top_k"),
}
"""Operations whose arguments and results are in memory; names that begin with `scatter` and `reduce_window` are, too."""
REDUCTIONS = {"argmax", "argmin", *(f"reduce_{x}" for x in ("and", "max", "min", "or", "sum"))}
"""Operations whose results are in memory, and that compute what they read."""
ELSEWHERE = {"copy", "dot_general", "gather", "sort", "transpose"}
"""Operations whose result can't take the place of an argument."""


def predicted_bytes(function: Callable, *arguments: Any) -> int:
    """The bytes of the intermediate values of ``function(*arguments)``; nothing is compiled or run.

    ``arguments`` are arrays or their shapes and dtypes (`jax.eval_shape`). Their own memory is not counted, and
    the results' is.
    """
    return program_bytes(jax.make_jaxpr(function)(*arguments).jaxpr)


def check(algorithm: MetaAlgorithm, program: Jaxpr, num_tasks: int) -> None:
    """Raises ValueError if a learner with memory needs more memory for a meta-update than the device has.

    ``program`` is the traced program of meta-updates. Devices share its intermediate values.
    """
    config: Any = algorithm.description and algorithm.description.config
    if not hasattr(config, "trials_per_chunk"):
        return
    there = device_memory()
    takes = program_bytes(program) // jax.device_count()
    if there is not None and takes > there:
        raise ValueError(
            f"a meta-update with num_tasks={num_tasks} and trials_per_chunk={config.trials_per_chunk} takes about "
            f"{takes / 1e9:.1f} GB, and the device has {there / 1e9:.1f} GB: set trials_per_chunk to a smaller number, or "
            "num_tasks if the trials themselves do not fit"
        )


def program_bytes(program: Jaxpr, *, looped: bool = False) -> int:
    """The most bytes of intermediate values of ``program`` that are in memory at a time.

    A program that is ``looped`` is a loop's body: loops in it change the body's own arrays in place.
    """
    flat = _Flat()
    inputs = [flat.new(x.aval) for x in program.invars]
    results = flat.walk(program, inputs)
    steps = _needed(flat.steps, results)
    kept = _kept(steps, {x for x in results if x not in inputs}) - {NOTHING, *inputs}
    reads, last = _lives(steps, kept, inputs, results)
    early = {x for step in steps for x in step.stacked if x in last}
    in_place: set[int] = set()
    now = most = sum(flat.size[x] for x in early)
    for i, step in enumerate(steps):
        made = [x for x in step.makes if x in kept and x in last and x not in early]
        if looped and step.name in LOOPS:
            in_place.update(made)
            made = []
        dying = [flat.size[x] for x in reads[i] if last[x] == i and x not in in_place]
        sizes = [flat.size[x] for x in made]
        spare = [] if step.name in ELSEWHERE else list(dying)
        grows = 0
        for size in sizes:
            if size in spare:
                spare.remove(size)
            else:
                grows += size
        most = max(most, now + grows + step.inside)
        now += sum(sizes) - sum(dying)
    return most


NOTHING = -1
"""The value of a constant, which takes no memory."""


@dataclasses.dataclass
class _Step:
    """An operation of a program without calls."""

    name: str
    reads: list[int]
    makes: list[int]
    stacked: Sequence[int] = ()
    """Those of ``makes`` that a loop stacks."""
    inside: int = 0
    """The bytes that a loop's body takes."""


class _Flat:
    """A program without calls: its operations, and the bytes of its values."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.size: list[int] = []
        self.transposed: set[int] = set()

    def new(self, aval: Any) -> int:
        """A new value."""
        self.size.append(_bytes(aval))
        return len(self.size) - 1

    def walk(self, program: Jaxpr, inputs: Sequence[int]) -> list[int]:
        """The results of ``program`` on values ``inputs``; its operations are added."""
        known: dict[Any, int] = dict(zip(program.invars, inputs, strict=True))
        known.update(dict.fromkeys(program.constvars, NOTHING))

        def value(atom: Any) -> int:
            return NOTHING if isinstance(atom, Literal) else known[atom]

        for equation in program.eqns:
            reads = [value(x) for x in equation.invars]
            called = _called(equation)
            if called is not None:
                makes = self.walk(called, reads)
            else:
                makes = [self.new(x.aval) for x in equation.outvars]
                self.add(equation, reads, makes)
            known.update(zip(equation.outvars, makes, strict=True))
        return [value(x) for x in program.outvars]

    def add(self, equation: Any, reads: list[int], makes: list[int]) -> None:
        """Adds one operation."""
        name = equation.primitive.name
        if name == "transpose":
            self.transposed.update(makes)
        stacked: list[int] = []
        if name == "scan":
            # The compiler copies what was transposed for a loop into the order in which the loop reads it.
            for i, (x, var) in enumerate(zip(reads, equation.invars, strict=True)):
                if x in self.transposed:
                    reads[i] = self.new(var.aval)
                    self.steps.append(_Step("copy", [x], [reads[i]]))
            (body,) = _bodies(equation)
            pairs: Any = zip(makes, equation.outvars, body.outvars, strict=True)
            stacked = [made for made, x, y in pairs if x.aval.ndim != y.aval.ndim]
        bodies = _bodies(equation)
        inside = max((program_bytes(x, looped=name in LOOPS) for x in bodies), default=0)
        self.steps.append(_Step(name, reads, makes, stacked, inside))


def _called(equation: Any) -> Jaxpr | None:
    """The program that a call runs in its own place; None for other operations."""
    if equation.primitive.name in (*LOOPS, "cond"):
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(name)
        inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
        if inner is not None and len(inner.invars) == len(equation.invars):
            return inner
    return None


def _bodies(equation: Any) -> Iterator[Jaxpr]:
    """The programs that a loop or a choice runs."""
    for parameter in equation.params.values():
        for x in parameter if isinstance(parameter, tuple | list) else [parameter]:
            if isinstance(x, ClosedJaxpr | Jaxpr):
                yield x.jaxpr if isinstance(x, ClosedJaxpr) else x


def _bytes(aval: Any) -> int:
    dtype = getattr(aval, "dtype", None)
    if dtype is None:
        return 0
    is_key = jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    return math.prod(aval.shape) * (8 if is_key else np.dtype(dtype).itemsize)


def _needed(steps: Sequence[_Step], results: Sequence[int]) -> list[_Step]:
    """The operations that the results need."""
    needed, found = set(results), []
    for step in reversed(steps):
        if not needed.isdisjoint(step.makes):
            needed.update(step.reads)
            found.append(step)
    return found[::-1]


def _kept(steps: Sequence[_Step], results: set[int]) -> set[int]:
    """The values that are in memory."""
    kept = set(results)
    for step in steps:
        if step.name in WHOLE or step.name.startswith(("scatter", "reduce_window")):
            kept.update(step.reads, step.makes)
        elif step.name in REDUCTIONS:
            kept.update(step.makes)
    return kept


def _lives(
    steps: Sequence[_Step], kept: set[int], inputs: Sequence[int], results: Sequence[int]
) -> tuple[list[set[int]], dict[int, int]]:
    """``(reads, last)``: the values in memory that each operation reads, if through others; and where each is read last."""
    sources: dict[int, set[int]] = {x: set() for x in (NOTHING, *inputs)}
    reads: list[set[int]] = []
    last: dict[int, int] = {}
    for i, step in enumerate(steps):
        read = set().union(*(sources[x] for x in step.reads))
        reads.append(read)
        sources |= {x: {x} if x in kept else read for x in step.makes}
        if not kept.isdisjoint(step.makes):
            last |= dict.fromkeys(read, i)
    for x in results:
        last |= dict.fromkeys(sources[x], len(steps))
    return reads, last
