"""Experiments as data: which algorithm on which family, with which settings.

An `Experiment` says all that it takes to train, and a run's folder keeps it in ``config.json``. So what a run has
learned can be loaded by the folder's name alone:

    trained = jaxmeta.load("runs/maml-navigation")
    trained.learner, trained.meta, trained.family

`presets.PRESETS` holds the experiments whose figures are measured.
"""

import dataclasses
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxmeta import checkpoints, checks, tasks, training
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.checkpoints import CheckpointError
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Learner, MetaAlgorithm

PRETRAINED = Path(__file__).parent / "pretrained"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An algorithm, a family, and those settings that are not their defaults."""

    algorithm: str = "maml"
    """A name in `algorithms.ALGORITHMS`."""
    family: str = "navigation"
    """A name in `tasks.FAMILIES`."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the algorithm's ``Config``."""
    hyper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Of its ``Hyper``."""
    family_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the family's constructor."""
    plan: training.Config = dataclasses.field(default_factory=training.Config)
    """How long, on how many tasks and from which seed."""

    def __post_init__(self) -> None:
        checks.fields(self)
        checks.choice("algorithm", self.algorithm, ALGORITHMS)
        checks.choice("family", self.family, tasks.FAMILIES)
        module = ALGORITHMS[self.algorithm]
        known = {
            "config": [field.name for field in dataclasses.fields(module.Config)],
            "hyper": module.Hyper._fields,
            "family_settings": inspect.signature(tasks.FAMILIES[self.family]).parameters,
        }
        for settings, names in known.items():
            for name in getattr(self, settings):
                checks.choice(f"{settings} of {self.algorithm} on {self.family}", name, names)


def make(experiment: Experiment) -> tuple[MetaAlgorithm, TaskFamily]:
    """The algorithm and the family.

    Raises:
        ValueError, TypeError: a setting is out of range; the message names it.
        ImportError: the family needs a package that is not installed.
    """
    family = tasks.make(experiment.family, **experiment.family_settings)
    return make_algorithm(experiment, family), family


def make_algorithm(experiment: Experiment, family: TaskFamily) -> MetaAlgorithm:
    """The algorithm on a family that is not, or not only, the experiment's own: a transformed one, say."""
    module = ALGORITHMS[experiment.algorithm]
    config, hyper = module.Config(**experiment.config), module.Hyper(**experiment.hyper)
    return getattr(module, experiment.algorithm)(family, config, hyper)


def describe(experiment: Experiment) -> dict[str, Any]:
    """Every setting by name, defaults too, JSON-able: the ``description`` of `training.train`."""
    module = ALGORITHMS[experiment.algorithm]
    constructor = tasks.FAMILIES[experiment.family]
    family_settings = {
        name: parameter.default
        for name, parameter in inspect.signature(constructor).parameters.items()
    }
    return {
        "algorithm": experiment.algorithm,
        "config": dataclasses.asdict(module.Config(**experiment.config)),
        "hyper": module.Hyper(**experiment.hyper)._asdict(),
        "family": experiment.family,
        "family_settings": family_settings | dict(experiment.family_settings),
    }


def train(experiment: Experiment, **keywords: Any) -> training.Run:
    """`training.train` of an experiment; ``keywords`` are its ``folder``, ``resume``, ``sink`` and ``console``."""
    algorithm, family = make(experiment)
    return training.train(
        algorithm, family, experiment.plan, description=describe(experiment), **keywords
    )


class Trained(NamedTuple):
    """What a run's folder holds."""

    experiment: Experiment
    algorithm: MetaAlgorithm
    family: TaskFamily
    run: training.Run
    """At its newest checkpoint; of a population, with leading ``[H, S]``."""

    @property
    def learner(self) -> Learner:
        """One lifetime, as `evaluation` and `adaptation` take it."""
        return self.algorithm.learner

    @property
    def meta(self) -> Any:
        """What was learned, as the learner reads it."""
        return self.run.state.meta


def read(folder: str | os.PathLike) -> Experiment:
    """The experiment of a run's folder.

    Raises:
        CheckpointError: ``config.json`` is not there, not JSON, or not of an algorithm, family and settings that
            this version knows.
    """
    return _experiment(_description(Path(folder)), Path(folder))


def load(folder: str | os.PathLike) -> Trained:
    """What was trained into ``folder``: learner, parameters and family.

    Of the run, `training.train` or `train_population` must have been told `describe` of its experiment, as
    `train` and ``benchmarks/train.py`` do. Nothing in the folder is executed: arrays and JSON alone are read.

    Raises:
        CheckpointError: there is no such run, its newest checkpoint is damaged, or it is of another version.
        ImportError: its family needs a package that is not installed.
    """
    folder = Path(folder)
    description = _description(folder)
    experiment = _experiment(description, folder)
    algorithm, family = make(experiment)
    population = description.get("population")

    def newborn() -> training.Run:
        seed = experiment.plan.seed
        if population is None:
            return training.begin(jax.random.key(seed), algorithm=algorithm)
        seeds = [seed + i for i in range(population["num_seeds"])]
        hypers = [ALGORITHMS[experiment.algorithm].Hyper(**x) for x in population["hypers"]]
        return training.begin_population(seeds, hypers or None, algorithm=algorithm)

    _, run = checkpoints.restore(
        folder / training.CHECKPOINT_FOLDER,
        jax.eval_shape(newborn),
        description,
        ignore=training.MAY_CHANGE,
    )
    return Trained(experiment, algorithm, family, run)


def pretrained(name: str) -> Path:
    """The folder of a run that comes with the library, for `load`: ``load(pretrained("maml-navigation"))``.

    Its figures are in the README. Raises ValueError where there is none of that name, with those that there are.
    """
    checks.choice("name", name, pretrained_names())
    return PRETRAINED / name


def pretrained_names() -> list[str]:
    """The names that `pretrained` knows, sorted: each the preset's that it was trained by."""
    return sorted(path.name for path in PRETRAINED.iterdir() if (path / "config.json").is_file())


def _description(folder: Path) -> dict[str, Any]:
    path = folder / training.CONFIG_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: {folder} is no run's folder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(description, dict):
        raise CheckpointError(f"{path} holds no description of a run")
    return description


def _experiment(description: Mapping[str, Any], folder: Path) -> Experiment:
    try:
        return Experiment(
            description["algorithm"],
            description["family"],
            config=_settings(description["config"]),
            hyper=_settings(description["hyper"]),
            family_settings=_settings(description["family_settings"]),
            plan=training.Config(**_settings(description["training"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / training.CONFIG_FILE} is not of an experiment that this version knows ({error})"
        ) from error


def _settings(read: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where settings are tuples."""
    return {name: tuple(x) if isinstance(x, list) else x for name, x in read.items()}
