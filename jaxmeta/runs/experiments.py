"""Experiments as data: which algorithm on which family, with which settings.

An `Experiment` says all that it takes to train, and a run's folder keeps it in ``config.json``. So a trained run is
loaded from its folder:

    trained = jaxmeta.load("runs/maml-navigation")
    trained.learner, trained.meta, trained.family

A run of an algorithm or a family of your own is loaded with both: ``jaxmeta.load(folder, algorithm=..., family=...)``.

`presets.PRESETS` holds the experiments whose figures are measured.
"""

import dataclasses
import inspect
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxmeta import checks, tasks
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.runs import checkpoints, records, training
from jaxmeta.runs.checkpoints import CheckpointError
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
    """Every setting by name, defaults too: the ``description`` of `training.train`."""
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
    """`training.train` of an experiment; ``keywords`` are its ``initial``, ``folder``, ``resume``, ``sink`` and
    ``console``."""
    algorithm, family = make(experiment)
    return training.train(
        algorithm, family, experiment.plan, description=describe(experiment), **keywords
    )


class Trained(NamedTuple):
    """What a run's folder holds."""

    experiment: Experiment | None
    """None of a run whose algorithm and family are one's own."""
    algorithm: MetaAlgorithm
    family: TaskFamily
    run: training.Run
    """At its newest checkpoint; of a population, with leading ``[H, S]``."""

    @property
    def learner(self) -> Learner:
        """One lifetime, as `evaluation` and `lifetime` take it."""
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


@checks.arguments
def load(
    folder: str | os.PathLike,
    *,
    algorithm: MetaAlgorithm | None = None,
    family: TaskFamily | None = None,
) -> Trained:
    """What was trained into ``folder``: learner, parameters and family.

    Nothing in the folder is executed: arrays and JSON alone are read.

    Args:
        folder: Of a run of `training.train` or `training.train_population`.
        algorithm: What was trained; None makes it of the experiment in ``config.json``, which `train` and
            ``benchmarks/train.py`` leave. A run with a policy, a network or a family of one's own needs both. Its
            state must have the shapes and types of the checkpoint's arrays.
        family: Likewise. A family that stands for the experiment's may be another one, a transformed one say.

    Raises:
        CheckpointError: there is no such run, its newest checkpoint is damaged, it is of another version or of another
            algorithm or family than those that are given.
        ImportError: its family needs a package that is not installed.
    """
    folder = checks.path("folder", folder)
    description = _description(folder)
    experiment = None
    if "algorithm" in description or algorithm is None or family is None:
        try:
            experiment = _experiment(description, folder)
        except CheckpointError as error:
            if algorithm is None or family is None:
                raise CheckpointError(f"{error}: give load its algorithm= and family=") from error
    elif (family.name, family.horizon) != (description.get("family"), description.get("horizon")):
        raise CheckpointError(
            f"{folder} is of family {description.get('family')!r} with horizon {description.get('horizon')}, and "
            f"family={family.name!r} with horizon {family.horizon} is given"
        )
    if experiment is not None:
        family = family or tasks.make(experiment.family, **experiment.family_settings)
        algorithm = algorithm or make_algorithm(experiment, family)
    assert algorithm is not None
    assert family is not None
    one = jax.eval_shape(partial(training.begin, algorithm=algorithm), jax.random.key(0))
    members: tuple[int, ...] = ()
    if "population" in description:
        population = description["population"]
        members = (max(1, len(population["hypers"])), population["num_seeds"])
    _, run = checkpoints.restore(
        folder / training.CHECKPOINT_FOLDER,
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((*members, *x.shape), x.dtype), one),
        records.plain(description),
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
        description = records.read(json.loads(path.read_text(encoding="utf-8")))
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
