"""Families of tasks: what varies from one lifetime to the next."""

import inspect
from collections.abc import Callable
from typing import Any

from jaxmeta import checks
from jaxmeta.tasks import (
    bandits,
    catch,
    control,
    discounting_chain,
    gridnavi,
    gridworld,
    navigation,
    t_maze,
    tabular,
)
from jaxmeta.tasks.family import SPLITS, TaskFamily, content_hash, sample_tasks

FAMILIES: dict[str, Callable[..., TaskFamily]] = {
    "navigation": navigation.navigation,
    "sparse_navigation": navigation.sparse_navigation,
    "cartpole": control.cartpole,
    "pendulum": control.pendulum,
    "mountain_car": control.mountain_car,
    "acrobot": control.acrobot,
    "tabular": tabular.tabular,
    "latent_tabular": tabular.latent_tabular,
    "bernoulli_bandit": bandits.bernoulli_bandit,
    "gaussian_bandit": bandits.gaussian_bandit,
    "dependent_bandit": bandits.dependent_bandit,
    "gridnavi": gridnavi.gridnavi,
    "t_maze": t_maze.t_maze,
    "discounting_chain": discounting_chain.discounting_chain,
    "gridworld": gridworld.gridworld,
    "catch": catch.catch,
}
"""Constructors by name; each takes keyword settings with defaults. Add your own under a new name."""


def names() -> list[str]:
    """The names that `make` knows, sorted."""
    return sorted(FAMILIES)


def describe(name: str) -> str:
    """What varies in the family called ``name``, in one line: the first of its constructor's docstring."""
    checks.choice("family", name, FAMILIES)
    return inspect.getdoc(FAMILIES[name]).splitlines()[0]  # type: ignore[union-attr]


def make(name: str, **settings: Any) -> TaskFamily:
    """The family called ``name`` with the given settings.

    Raises:
        ValueError: the name or a setting's name is unknown, with the nearest ones; or a setting's
            value is out of range.
    """
    checks.choice("family", name, FAMILIES)
    constructor = FAMILIES[name]
    known = inspect.signature(constructor).parameters
    for setting in settings:
        checks.choice(f"setting of family {name!r}", setting, known)
    return constructor(**settings)


__all__ = [
    "FAMILIES",
    "SPLITS",
    "TaskFamily",
    "content_hash",
    "describe",
    "make",
    "names",
    "sample_tasks",
]
