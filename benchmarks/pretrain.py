"""Trains presets and puts what they learned where `jaxmeta.pretrained` finds it.

    python benchmarks/pretrain.py rl2-gridnavi varibad-gridnavi

Of each run, made by `benchmarks/train.py` in a folder below --output, the settings, the evaluation and the last
checkpoint go to jaxmeta/pretrained/NAME. Runs that are there already are taken as they are; what
jaxmeta/pretrained holds under the name is replaced.
"""

import shutil
from pathlib import Path
from typing import Annotated

import study
import train
import tyro

from jaxmeta.runs import experiments, presets, run_folder
from jaxmeta.runs.experiments import PRETRAINED


class Main(study.Study, kw_only=True):
    """Presets to be shipped."""

    names: Annotated[study.Names, tyro.conf.Positional, study.known(presets.PRESETS)]
    output: Annotated[Path, tyro.conf.arg(help="Folder of the runs.")] = Path("runs/pretrained")


def ship(run: Path, folder: Path) -> None:
    """Copies of a finished run what `experiments.load` needs, and its evaluation."""
    experiments.load(run)  # whole, and of this version
    checkpoints = sorted((run / run_folder.CHECKPOINT_FOLDER).iterdir(), key=lambda x: int(x.name))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoints[-1], folder / run_folder.CHECKPOINT_FOLDER / checkpoints[-1].name)
    for path in folder.rglob("commit_success.txt"):  # says where it was written, on whose machine
        path.write_text("Checkpoint commit was successful\n", encoding="utf-8")
    for name in (run_folder.CONFIG_FILE, "evaluation.json"):
        shutil.copy(run / name, folder / name)


def run(main: Main) -> None:
    for name in main.names:
        folder = main.output / name
        if not (folder / "evaluation.json").exists():
            train.main(["--preset", name, "--output", str(folder)])
        ship(folder, PRETRAINED / name)


if __name__ == "__main__":
    study.main({Main: run}, __doc__, new=False)
