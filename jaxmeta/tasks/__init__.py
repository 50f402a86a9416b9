"""Families of tasks: distributions of environments that differ from one lifetime to the next.

`make` returns a family by its name in `FAMILIES`. `from_functions` makes a family of two functions of your own,
`TaskFamily` of a gymnax environment, `from_list` of a fixed list of tasks, and `transform` makes one family from
another. `check` tries a family before training. `craftax.craftax` makes Craftax's worlds tasks, `jumanji.jumanji`
boards of Jumanji's games, and `playground.playground` bodies of MuJoCo Playground; they have no name in `FAMILIES`.
The outputs of an environment and its samplers are checked before anything compiles; an
`InvalidEnvironment` names the part that is wrong and what would be right:

| | |
|---|---|
| observation space | `Discrete`, `Box`, or a `MultiDiscrete`, `Dict` or `Tuple`, which are flattened (see `composite`) |
| action space | `Discrete`; `Box` of floats; `MultiDiscrete` or a bounded `Box` of integers, whose entries are chosen independently |
| observation, reward, flags | what the observation space says; one number; one boolean each |
| state | from step to step the same structure, shapes and kinds of numbers |
| tasks | in every split the structure of `env.default_params`, and as many axes leaf by leaf |

The environment gets actions clipped to the bounds of its `Box`; trajectories hold them as they were drawn. The
family's `horizon` is the one time limit. Where an environment does not promise by `ends_by` that it keeps to it,
`family.env` is a `TimeLimit` and `family.env.env` the environment that you gave. `check` also acts at random. It
lists what is allowed but is probably a mistake: tasks that do not differ, observations outside of their space, a
reset that draws the fields in which tasks differ.
"""

import inspect
import typing
from collections.abc import Callable
from typing import Any

from jaxmeta import checks, types
from jaxmeta.tasks import (
    bandits,
    boxes,
    bus,
    catch,
    composite,
    control,
    craftax,
    dark_room,
    deep_sea,
    discounting_chain,
    gridnavi,
    gridworld,
    informed,
    jumanji,
    locomotion,
    maze,
    minatar,
    navigation,
    playground,
    reaching,
    summarisation,
    t_maze,
    tabular,
    translation,
    xland,
)
from jaxmeta.tasks.composite import MultiDiscrete, unflatten
from jaxmeta.tasks.environments import InvalidEnvironment
from jaxmeta.tasks.family import SPLITS, Parameters, TaskFamily, content_hash, sample_tasks
from jaxmeta.tasks.functions import from_functions, from_list
from jaxmeta.tasks.inspection import Checked, check
from jaxmeta.tasks.promises import check_promises

FAMILIES: dict[str, Callable[..., TaskFamily]] = {
    "navigation": navigation.navigation,
    "sparse_navigation": navigation.sparse_navigation,
    "half_circle": navigation.half_circle,
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
    "bus": bus.bus,
    "dark_room": dark_room.dark_room,
    "dark_key_to_door": dark_room.dark_key_to_door,
    "t_maze": t_maze.t_maze,
    "discounting_chain": discounting_chain.discounting_chain,
    "gridworld": gridworld.gridworld,
    "catch": catch.catch,
    "deep_sea": deep_sea.deep_sea,
    "maze": maze.maze,
    "breakout": minatar.breakout,
    "freeway": minatar.freeway,
    "asterix": minatar.asterix,
    "space_invaders": minatar.space_invaders,
    "seaquest": minatar.seaquest,
    "reacher": reaching.reacher,
    "swimmer": reaching.swimmer,
    "half_cheetah_direction": locomotion.half_cheetah_direction,
    "half_cheetah_velocity": locomotion.half_cheetah_velocity,
    "ant_direction": locomotion.ant_direction,
    "ant_goal": locomotion.ant_goal,
    "walker_params": locomotion.walker_params,
    "xland": xland.xland,
    "translation": translation.translation,
    "summarisation": summarisation.summarisation,
}
"""Constructors by name; each takes keyword settings with defaults. You may add your own under a new
name."""


def names() -> list[str]:
    """The names that `make` knows, sorted."""
    return sorted(FAMILIES)


def describe(name: str) -> str:
    """A line on the family called ``name``: the first line of its constructor's docstring."""
    checks.choice("family", name, FAMILIES, listed_by="tasks.names()")
    return inspect.getdoc(FAMILIES[name]).splitlines()[0]  # type: ignore[union-attr]


def make(name: str, **settings: Any) -> TaskFamily:
    """The family called ``name`` with the given settings.

    Raises:
        ValueError: the name or a setting's name is unknown, or a setting's value is out of range.
        TypeError: a setting is not of the type that the constructor annotates.
    """
    checks.choice("family", name, FAMILIES, listed_by="tasks.names()")
    constructor = FAMILIES[name]
    known = inspect.signature(constructor).parameters
    kinds = typing.get_type_hints(constructor)
    for setting, value in settings.items():
        checks.choice(f"setting of family {name!r}", setting, known)
        settings[setting] = value = checks.plain(value)
        # A user's constructor may have no annotations. Integers are checked by the constructor,
        # with their range.
        if setting in kinds and kinds[setting] is not int:
            checks.field(setting, value, kinds[setting])
    return constructor(**settings)


__all__ = [
    "FAMILIES",
    "SPLITS",
    "Checked",
    "InvalidEnvironment",
    "MultiDiscrete",
    "Parameters",
    "TaskFamily",
    "bandits",
    "boxes",
    "bus",
    "catch",
    "check",
    "check_promises",
    "composite",
    "content_hash",
    "control",
    "craftax",
    "dark_room",
    "deep_sea",
    "describe",
    "discounting_chain",
    "environments",
    "from_functions",
    "from_list",
    "gridnavi",
    "gridworld",
    "informed",
    "jumanji",
    "keys",
    "locomotion",
    "make",
    "maze",
    "minatar",
    "names",
    "navigation",
    "playground",
    "reaching",
    "sample_tasks",
    "summarisation",
    "t_maze",
    "tabular",
    "transform",
    "translation",
    "unflatten",
    "xland",
]

types.document_fields()
