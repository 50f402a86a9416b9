"""Where metrics go beside ``metrics.jsonl``: a sink is a function of a line, for `training.train`.

    training.train(algorithm, family, config, sink=sinks.tensorboard("runs/board"))

Any function will do: ``sink=print``, or ``sink=lambda line: history.append(line["return/after"])``.
"""

import os
from collections.abc import Mapping
from typing import Any

from jaxmeta import checks
from jaxmeta.training import Sink


def tensorboard(folder: str | os.PathLike) -> Sink:
    """Scalars by meta-update into event files in ``folder``: ``tensorboard --logdir FOLDER`` shows them.

    The members of a population have a curve each. Needs tensorboardX; raises ImportError without it.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise checks.missing("tensorboardX", "tensorboard") from error
    writer = SummaryWriter(
        os.fspath(folder), flush_secs=2
    )  # its thread writes, and the rest at exit

    def sink(line: Mapping[str, Any]) -> None:
        for name, value in _values(line).items():
            writer.add_scalar(name, value, global_step=line["update"])

    return sink


def wandb(**settings: Any) -> Sink:
    """Scalars by meta-update into a run of Weights & Biases; ``settings`` are of ``wandb.init``.

    With ``mode="offline"`` no account is needed. Needs wandb; raises ImportError without it.
    """
    try:
        import wandb as client
    except ImportError as error:
        raise checks.missing("wandb", "wandb") from error
    run = client.init(**settings)
    return lambda line: run.log(_values(line), step=line["update"])


def _values(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line; a population's member is a part of their names."""
    member = "".join(f"{name} {line[name]}/" for name in ("setting", "seed") if name in line)
    place = ("update", "setting", "seed")
    return {f"{member}{name}": x for name, x in line.items() if name not in place and x is not None}
