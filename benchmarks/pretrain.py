"""Trains presets and puts what they learned where `jaxmeta.pretrained` finds it.

    python benchmarks/pretrain.py rl2-gridnavi varibad-gridnavi

Of each run, made by `benchmarks/train.py` in a folder below --output, the settings, the evaluation and the last
checkpoint go to jaxmeta/pretrained/NAME. Runs that are there already are taken as they are; what
jaxmeta/pretrained holds under the name is replaced.
"""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Annotated

import train
import tyro

from jaxmeta import checks
from jaxmeta.runs import experiments, presets, training
from jaxmeta.runs.experiments import PRETRAINED


@dataclasses.dataclass(frozen=True)
class Main:
    """Presets to be shipped."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional]
    output: Path = Path("runs/pretrained")
    """Folder of the runs."""

    def __post_init__(self) -> None:
        checks.some("names", self.names)
        for name in self.names:
            checks.choice("names", name, presets.PRESETS)


def ship(run: Path, folder: Path) -> None:
    """Copies of a finished run what `experiments.load` needs, and its evaluation."""
    experiments.load(run)  # whole, and of this version
    checkpoints = sorted((run / training.CHECKPOINT_FOLDER).iterdir(), key=lambda x: int(x.name))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoints[-1], folder / training.CHECKPOINT_FOLDER / checkpoints[-1].name)
    for path in folder.rglob("commit_success.txt"):  # says where it was written, on whose machine
        path.write_text("Checkpoint commit was successful\n", encoding="utf-8")
    for name in (training.CONFIG_FILE, "evaluation.json"):
        shutil.copy(run / name, folder / name)


def main(main: Main) -> None:
    for name in main.names:
        run = main.output / name
        if not (run / "evaluation.json").exists():
            train.main(["--preset", name, "--output", str(run)])
        ship(run, PRETRAINED / name)


if __name__ == "__main__":
    try:
        main(tyro.cli(Main, description=__doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
