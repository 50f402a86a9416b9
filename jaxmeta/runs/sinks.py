"""Sinks: destinations of metrics beside ``metrics.jsonl``, for `training.train`.

    training.train(algorithm, family, config, sink=sinks.tensorboard("runs/board"))

A sink is a function of a line: the numbers of a meta-update by name, with None for a number that is
not finite. For example ``sink=print``, or ``sink=lambda line:
history.append(line["return/after"])``. A sink that must be closed is a context manager that yields
such a function, or a `PerRun`. The run opens it before the first line and closes it at its end,
also on errors and interrupts.
"""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from jaxmeta import checks, types

Write: TypeAlias = Callable[[Mapping[str, Any]], Any]
"""A function that is called with each line."""


@dataclasses.dataclass(frozen=True)
class PerRun:
    """A sink that every run opens for itself, so that several runs can share it."""

    open: Callable[[], AbstractContextManager[Write]]
    """Opens it: ``with sink.open() as write: write(line)``."""


Sink: TypeAlias = Write | AbstractContextManager[Write] | PerRun
"""A function of a line, a context manager that yields one, or a `PerRun`."""


def tensorboard(folder: str | os.PathLike) -> PerRun:
    """A sink for TensorBoard: scalars in event files in ``folder``, for ``tensorboard --logdir FOLDER``.

    Each member of a population has its own curves. Needs tensorboardX; raises ImportError without
    it.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise checks.missing("tensorboardX", "tensorboard") from error

    @contextlib.contextmanager
    def opened() -> Iterator[Write]:
        writer = SummaryWriter(os.fspath(folder), flush_secs=2)

        def write(line: Mapping[str, Any]) -> None:
            for name, value in _values(line).items():
                writer.add_scalar(name, value, global_step=line["update"])

        try:
            yield write
        finally:
            writer.close()

    return PerRun(opened)


def wandb(**settings: Any) -> PerRun:
    """A sink for Weights & Biases: scalars by meta-update; ``settings`` are arguments of ``wandb.init``.

    Every training run becomes a new run there, beside any run that the program has open. With
    ``mode="offline"`` no account is needed. Needs wandb; raises ImportError without it.
    """
    try:
        import wandb as client
    except ImportError as error:
        raise checks.missing("wandb", "wandb") from error

    @contextlib.contextmanager
    def opened() -> Iterator[Write]:
        run = client.init(**{"reinit": "create_new", **settings})
        try:
            yield lambda line: run.log(_values(line), step=line["update"])
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()

    return PerRun(opened)


def check(sink: Any) -> None:
    """Raises TypeError unless ``sink`` is a `Sink`."""
    if sink in (tensorboard, wandb):
        raise TypeError(f"sink={sink.__name__} makes a sink and is none: call it")
    if isinstance(sink, type) or not (
        callable(sink) or isinstance(sink, AbstractContextManager | PerRun)
    ):
        raise TypeError(
            f"sink={sink!r} must be a function of a line, a context manager that gives one, or of jaxmeta.runs.sinks"
        )


@contextlib.contextmanager
def opened(sink: Sink) -> Iterator[Write]:
    """The sink's function of a line; the sink is closed at the end.

    An exception while closing becomes a warning, because the run is already saved.

    Raises:
        TypeError: the sink cannot be opened.
    """
    context = sink.open() if isinstance(sink, PerRun) else sink
    if not isinstance(context, AbstractContextManager):
        yield context
        return
    try:
        write = context.__enter__()
    except (AttributeError, RuntimeError) as error:
        raise TypeError(
            f"sink={sink!r} cannot be opened ({error}): a context manager is of one run; a PerRun is of several"
        ) from error

    def close(*failure: Any) -> None:
        try:
            context.__exit__(*failure)
        except Exception as error:
            if error is not failure[1]:
                warnings.warn(f"the sink could not be closed: {error!r}", stacklevel=2)

    try:
        yield write
    except BaseException as error:
        close(type(error), error, error.__traceback__)
        raise
    close(None, None, None)


def _values(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line by name; in a population the name includes the member."""
    member = "".join(f"{name} {line[name]}/" for name in ("setting", "seed") if name in line)
    place = ("update", "setting", "seed")
    return {f"{member}{name}": x for name, x in line.items() if name not in place and x is not None}


types.document_fields()
