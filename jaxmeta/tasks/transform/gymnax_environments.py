"""Families of unchanged gymnax environments, and facts about these environments."""

import functools
from typing import Any

import gymnax
import jax

from jaxmeta import checks
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.tasks.transform.wrappers import strong
from jaxmeta.types import Task

UNSUPPORTED = {"MNISTBandit-bsuite": "its constructor downloads the images"}
"""Environments registered in gymnax that `from_gymnax` cannot make, with the reason."""

IDENTITY = {
    "BernoulliBandit-misc": ("reward_probs",),
    "DeepSea-bsuite": ("action_mapping",),
    "FourRooms-misc": ("goal",),
    "GaussianBandit-misc": ("mu",),
    "MemoryChain-bsuite": ("context", "query"),
    "MetaMaze-misc": ("goal",),
    "PointRobot-misc": ("goal",),
    "Reacher-misc": ("goal_xy",),
    "SimpleBandit-bsuite": ("rewards",),
    "Swimmer-misc": ("goal_xy", "urchin_xys"),
    "UmbrellaChain-bsuite": ("need_umbrella",),
}
"""Leaves of a gymnax environment's state that tell one task from another, for `pinned`.

DeepSea draws them only with the parameter ``sample_action_map``, FourRooms only with
``resample_goal_pos``."""


@functools.cache
def _environment(name: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    """The environment of a name and settings, made once: gymnax environments hash by identity, so a
    new one would compile again."""
    return gymnax.make(name, **dict(settings))[0]


def from_gymnax(name: str, *, horizon: int, **settings: Any) -> TaskFamily:
    """The family of a registered gymnax environment: its default task in every split.

    `drawn_parameters` draws its physics per task.

    Args:
        name: A name for ``gymnax.make``, also of your own environment after ``gymnax.register``.
        horizon: Time limit of an episode, in steps. An environment may end its episodes sooner.
        settings: Hashable keyword arguments of the environment's constructor.

    Raises:
        ValueError: the name is unknown, or the horizon below 1.
        TypeError: a setting cannot be hashed.
    """
    checks.choice("name", name, gymnax.registered_envs)
    horizon = checks.at_least("horizon", horizon, 1)
    for setting, value in settings.items():
        try:
            hash(value)
        except TypeError:
            raise TypeError(f"{setting}={value!r} must be hashable: a tuple, not a list") from None
    env = _environment(name, tuple(sorted(settings.items())))
    task = env.default_params
    if hasattr(task, "max_steps_in_episode"):
        # The environment's own limit must not cut off an episode before the horizon.
        task = task.replace(max_steps_in_episode=type(task.max_steps_in_episode)(horizon))

    def sample(key: jax.Array) -> Task:
        del key
        return jax.tree.map(strong, task)

    return TaskFamily(
        name=name,
        env=env,
        horizon=horizon,
        train=sample,
        test=sample,
        out_of_distribution=sample,
    )
