"""Experiments as data: an algorithm, a family, and their settings.

An `Experiment` holds all settings of a training run, and the run's folder keeps it in
``config.json``. So a trained run is loaded from its folder:

    trained = jaxmeta.load("runs/maml-navigation")
    trained.learner, trained.meta, trained.family

The folder of `training.train` keeps the algorithm's name and settings, too, and a hash of the
family's tasks. A run on a family of your own is loaded with it, ``jaxmeta.load(folder,
family=...)``; a run of an algorithm, a policy or a network of your own with the algorithm, too:
``jaxmeta.load(folder, algorithm=..., family=...)``.

`presets.PRESETS` holds the experiments with measured figures.
"""

import dataclasses
import inspect
import json
import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import checks, tasks, types
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.runs import checkpoints, descriptions, records, run_folder, training
from jaxmeta.runs.checkpoints import CheckpointError
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Curriculum, Hyper, Learner, MetaAlgorithm

PRETRAINED = Path(__file__).parent / "pretrained"
"""Folder of the runs that come with the library."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An algorithm, a family, and their settings beside the defaults."""

    algorithm: str = "maml"
    """A name in `algorithms.ALGORITHMS`."""
    family: str = "navigation"
    """A name in `tasks.FAMILIES`."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the algorithm's ``Config``."""
    hyper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Settings of the algorithm's ``Hyper``."""
    family_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the family's constructor."""
    plan: training.Config = dataclasses.field(default_factory=training.Config)
    """The run's length, its tasks and its seed."""

    def __post_init__(self) -> None:
        checks.fields(self)
        checks.choice("algorithm", self.algorithm, ALGORITHMS)
        checks.choice("family", self.family, tasks.FAMILIES, listed_by="tasks.names()")
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
    """The algorithm and the family of an experiment.

    Raises:
        ValueError, TypeError: a setting is out of range; the message names it.
        ImportError: the family needs a package that is not installed.
    """
    family = tasks.make(experiment.family, **experiment.family_settings)
    return make_algorithm(experiment, family), family


def make_algorithm(experiment: Experiment, family: TaskFamily) -> MetaAlgorithm:
    """The experiment's algorithm on another family, for example a transformed one."""
    module = ALGORITHMS[experiment.algorithm]
    config, hyper = module.Config(**experiment.config), module.Hyper(**experiment.hyper)
    return getattr(module, experiment.algorithm)(family, config, hyper)


def describe(experiment: Experiment) -> dict[str, Any]:
    """All settings by name, defaults included: the ``description`` for `training.train`."""
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
    """The meta-trained run of an experiment.

    ``keywords`` are those of `training.train`: ``initial``, ``folder``, ``resume``, ``sink`` and
    ``console``.
    """
    algorithm, family = make(experiment)
    return training.train(
        algorithm, family, experiment.plan, description=describe(experiment), **keywords
    )


class Trained(NamedTuple):
    """A trained run, loaded from its folder."""

    experiment: Experiment | None
    """The experiment; None if the run has an algorithm or a family of your own."""
    algorithm: MetaAlgorithm
    """The trained meta-algorithm."""
    family: TaskFamily
    """The family."""
    run: training.Run
    """The run at its newest checkpoint; leaves of a population have a leading ``[H, S]``."""

    @property
    def learner(self) -> Learner:
        """The learner, for `evaluation` and `rollouts`."""
        return self.algorithm.learner

    @property
    def meta(self) -> Any:
        """The learned parameters, which the learner reads."""
        return self.run.state.meta


def read(folder: str | os.PathLike) -> Experiment:
    """The experiment of a run's folder.

    Raises:
        CheckpointError: ``config.json`` is missing, is not JSON, or names an algorithm, a family or
            settings that this version does not know.
    """
    return _experiment(_description(Path(folder)), Path(folder))


@checks.arguments
def load(
    folder: str | os.PathLike,
    *,
    algorithm: MetaAlgorithm | None = None,
    family: TaskFamily | None = None,
    curriculum: Curriculum | None = None,
) -> Trained:
    """The trained run in ``folder``: learner, parameters and family.

    Only arrays and JSON are read; no code in the folder is executed.

    Args:
        folder: Folder of a run of `training.train` or `training.train_population`.
        algorithm: The trained algorithm; None makes it from the name and the settings in ``config.json``. It is needed if
            it is your own, or was made with an object such as a policy, a network or an optimiser. Its state must have
            the shapes and types of the checkpoint's arrays.
        family: The family; None makes it from ``config.json``. It is needed if it is your own, or was made with other
            settings than the horizon by code that is no `Experiment`. Instead of an experiment's family it may be
            another one, for example a transformed one.
        curriculum: The curriculum, where the run was trained under one: its state is in the checkpoint, too.

    Raises:
        CheckpointError: there is no run in the folder; its newest checkpoint is damaged; or it
            belongs to another version, algorithm or family.
        ImportError: the family needs a package that is not installed.
    """
    folder = checks.path("folder", folder)
    description = _description(folder)
    experiment, algorithm, family = _parts(description, folder, algorithm, family)
    if "curriculum" in description and curriculum is None:
        name = description["curriculum"].get("name")
        raise CheckpointError(
            f"{folder} was trained under the curriculum {name!r}. Pass curriculum= to load"
        )
    taught = dict(curriculum=curriculum, num_tasks=description["training"]["num_tasks"])
    one = jax.eval_shape(partial(training.begin, algorithm=algorithm, **taught), jax.random.key(0))
    members: tuple[int, ...] = ()
    if "population" in description:
        population = description["population"]
        members = (max(1, len(population["hypers"])), population["num_seeds"])
    _, run = checkpoints.restore(
        folder / run_folder.CHECKPOINT_FOLDER,
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((*members, *x.shape), x.dtype), one),
        records.plain(description),
        ignore=training.MAY_CHANGE,
    )
    return Trained(experiment, algorithm, family, run)


def _parts(
    description: Mapping[str, Any],
    folder: Path,
    algorithm: MetaAlgorithm | None,
    family: TaskFamily | None,
) -> tuple[Experiment | None, MetaAlgorithm, TaskFamily]:
    """The experiment, if the run is one, the algorithm and the family: those that are given, or made from the description."""
    experiment, fault = None, ""
    if "family_settings" in description or family is None:
        try:
            experiment = _experiment(description, folder)
        except CheckpointError as error:
            fault = str(error)
    elif (family.name, family.horizon) != (description.get("family"), description.get("horizon")):
        raise CheckpointError(
            f"{folder} is of family {description.get('family')!r} with horizon {description.get('horizon')}, and "
            f"family={family.name!r} with horizon {family.horizon} is given"
        )
    if experiment is not None:
        family = family or tasks.make(experiment.family, **experiment.family_settings)
        return experiment, algorithm or make_algorithm(experiment, family), family
    if family is None or algorithm is None:
        known = None if family is None else _known_algorithm(description, folder, family)
        if family is None or known is None:
            needed = "family=" if _is_made_by_name(description) else "algorithm= and family="
            fault = (
                fault or f"{folder / run_folder.CONFIG_FILE} does not say how to make the algorithm"
            )
            raise CheckpointError(f"{fault}. Pass {needed} to load")
        algorithm = known
    return None, algorithm, family


def _is_made_by_name(description: Mapping[str, Any]) -> bool:
    """Whether the algorithm is the library's, made of nothing but ``config`` and ``hyper``."""
    name = description.get("algorithm")
    known = isinstance(name, str) and name in ALGORITHMS
    return known and not (description.get("arguments") or description.get("replaced"))


def _known_algorithm(
    description: Mapping[str, Any], folder: Path, family: TaskFamily
) -> MetaAlgorithm | None:
    """The algorithm of a description on ``family``; None if a description does not suffice to make it."""
    if not _is_made_by_name(description):
        return None
    module = ALGORITHMS[description["algorithm"]]
    try:
        config = module.Config(**_settings(description["config"]))
        hyper = module.Hyper(**_settings(description.get("hyper", {})))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / run_folder.CONFIG_FILE} has settings that this version does not know ({error}). Pass algorithm= "
            "and family= to load"
        ) from error
    return getattr(module, description["algorithm"])(family, config, hyper)


def _library_settings(description: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings with which `tasks.make` makes the family of a description, none or the horizon; None if it is another."""
    name, horizon = description.get("family"), description.get("horizon")
    if name not in tasks.FAMILIES or "tasks" not in description:
        return None
    takes_horizon = "horizon" in inspect.signature(tasks.FAMILIES[name]).parameters
    settings = {"horizon": horizon} if takes_horizon else {}
    try:
        family = tasks.make(name, **settings)
    except (ImportError, TypeError, ValueError):
        return None
    same = family.horizon == horizon and descriptions.hashes(family) == description["tasks"]
    return settings if same else None


@checks.arguments
def finetune(
    trained: str | os.PathLike | Trained,
    *,
    hyper: Hyper = None,
    family: TaskFamily | None = None,
    plan: training.Config = training.Config(),
    **keywords: Any,
) -> training.Run:
    """A run that starts from what another one learned, with other numbers or on another family.

    The new run takes the learned parameters of ``trained``, and all numbers that ``hyper`` does not name; learned step
    sizes are among them. The optimiser, agents that outlive a meta-update, and schedules begin anew. To go on with the same
    settings, resume the run instead: `training.train` with ``resume=True``.

    Args:
        trained: The folder of a run, or a run as `load` returns it.
        hyper: Entries of the algorithm's ``Hyper`` to change, a dictionary of numbers by name.
        family: Another family with the same observations and actions; None keeps the run's own.
        plan: Length, tasks and seed of the new run.
        keywords: ``folder``, ``resume``, ``sink`` and ``console`` of `training.train`.

    Raises:
        CheckpointError: as in `load`.
        ValueError: ``hyper`` names no number of the algorithm; ``trained`` is a population, or a run of your own
            algorithm on another family, for which the algorithm must be made anew.
        TypeError: the family has other observations or actions than the run's.
    """
    if hyper is not None and not isinstance(hyper, Mapping):
        raise TypeError(f"hyper={hyper!r} must be a dictionary of numbers by name")
    if not isinstance(trained, Trained):
        trained = load(trained)
    if trained.run.num_updates.shape != ():
        raise ValueError(
            "trained is a population; choose a member: trained._replace(run=jax.tree.map(lambda x: x[0, 0], "
            "trained.run))"
        )
    experiment, algorithm = trained.experiment, trained.algorithm
    if family is not None:
        algorithm = _on(family, trained)
        _check_same_interface(trained, algorithm, family)
    meta = trained.meta
    changed = dict(hyper or {})
    for name, value in changed.items():
        checks.choice("hyper", name, meta.hyper._fields)
        changed[name] = checks.between(f"hyper[{name!r}]", value, -math.inf, math.inf)
    jax.eval_shape(
        lambda key: algorithm.init(key, type(meta.hyper)(**changed)), jax.random.key(0)
    )  # raises where a number is out of its range
    numbers = {name: jnp.full_like(getattr(meta.hyper, name), x) for name, x in changed.items()}
    fresh = algorithm.init(jax.random.key(plan.seed))
    initial = fresh._replace(meta=meta._replace(hyper=meta.hyper._replace(**numbers)))
    if algorithm.description is not None:
        told = algorithm.description.hyper._replace(**changed)
        algorithm = algorithm._replace(
            description=dataclasses.replace(algorithm.description, hyper=told)
        )
    description: dict[str, Any] | None = None
    if experiment is not None and family is None:
        description = describe(
            dataclasses.replace(experiment, hyper=dict(experiment.hyper) | changed, plan=plan)
        )
    return training.train(
        algorithm,
        trained.family if family is None else family,
        plan,
        initial=None if keywords.get("resume") else initial,
        description=description,
        **keywords,
    )


def _check_same_interface(trained: Trained, algorithm: MetaAlgorithm, family: TaskFamily) -> None:
    """Raises TypeError if the parameters that ``algorithm`` starts from have other shapes on ``family``."""
    there = jax.eval_shape(algorithm.init, jax.random.key(0)).meta
    if not checkpoints.differences(checkpoints.arrays(there), checkpoints.arrays(trained.meta)):
        return
    ours, theirs = (
        f"{x.name!r} with observations {x.observation_shape} and actions {x.action_space}"
        for x in (family, trained.family)
    )
    raise TypeError(
        f"family is {ours}; the run is of {theirs}: its parameters fit families of the same observations and actions alone"
    )


def _on(family: TaskFamily, trained: Trained) -> MetaAlgorithm:
    """The algorithm of a run, made with the same settings and objects on another family."""
    made = trained.algorithm.description
    if (
        made is not None
        and made.name in ALGORITHMS
        and not descriptions.replaced(trained.algorithm)
    ):
        constructor = getattr(ALGORITHMS[made.name], made.name)
        return constructor(family, made.config, made.hyper, **made.arguments)
    raise ValueError(
        "trained is a run of an algorithm of your own: make the algorithm on the other family, and give "
        "training.train initial=trained.run.state"
    )


def pretrained(name: str) -> Path:
    """The folder of a run that comes with the library, for `load`: ``load(pretrained("maml-navigation"))``.

    Its figures are in `benchmarks/RESULTS.md`. Raises ValueError, with the known names, if there is no such run.
    """
    checks.choice("name", name, pretrained_names())
    return PRETRAINED / name


def pretrained_names() -> list[str]:
    """The names for `pretrained`, sorted; each is the name of the preset of the run."""
    return sorted(path.name for path in PRETRAINED.iterdir() if (path / "config.json").is_file())


def _description(folder: Path) -> dict[str, Any]:
    """The description in ``config.json``; raises CheckpointError if it cannot be read."""
    path = folder / run_folder.CONFIG_FILE
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
    """The experiment of a description; raises CheckpointError if this version does not know it."""
    path = folder / run_folder.CONFIG_FILE
    if "algorithm" not in description:
        raise CheckpointError(f"{path} names no algorithm")
    settings = description.get("family_settings")
    if settings is None:
        if not _is_made_by_name(description):
            objects = ", ".join(
                [*description.get("arguments", {}), *description.get("replaced", [])]
            )
            raise CheckpointError(
                f"{path} does not say how the algorithm {description['algorithm']!r} was made"
                + (f": it has parts of your own ({objects})" if objects else "")
            )
        settings = _library_settings(description)
        if settings is None:
            raise CheckpointError(
                f"{path} does not say how the family {description.get('family')!r} was made"
            )
    try:
        return Experiment(
            description["algorithm"],
            description["family"],
            config=_settings(description["config"]),
            hyper=_settings(description.get("hyper", {})),
            family_settings=_settings(settings),
            plan=training.Config(**_settings(description["training"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not of an experiment that this version knows ({error})"
        ) from error


def _settings(read: Mapping[str, Any]) -> dict[str, Any]:
    """Settings read from JSON, with tuples for its lists."""
    return {name: tuple(x) if isinstance(x, list) else x for name, x in read.items()}


types.document_fields()
