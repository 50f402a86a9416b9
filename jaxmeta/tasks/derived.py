"""Parameters of gymnax's environments that follow from other parameters, so that a task's physics stay consistent.

gymnax's CartPole reads two products beside their factors, and ``params.replace(length=...)`` changes no product. Its Acrobot
reads where each link's centre of mass is, which is the middle of a uniform rod. Gymnax's other environments have no such
parameters.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from gymnax.environments.classic_control import acrobot, cartpole


class Derived(NamedTuple):
    """A parameter that follows from others."""

    sources: tuple[str, ...]
    """The parameters that it follows from."""
    derive: Callable[..., Any]
    """``(*sources) -> value``."""
    free: bool = False
    """Whether another value makes sense too, so that it may be set."""


DERIVED: dict[type, dict[str, Derived]] = {
    cartpole.EnvParams: {
        "total_mass": Derived(("masscart", "masspole"), lambda cart, pole: cart + pole),
        "polemass_length": Derived(("masspole", "length"), lambda mass, length: mass * length),
    },
    acrobot.EnvParams: {
        "link_com_pos_1": Derived(("link_length_1",), lambda length: 0.5 * length, free=True),
        "link_com_pos_2": Derived(("link_length_2",), lambda length: 0.5 * length, free=True),
    },
}
"""Derived parameters by name, of each class of parameters that has some."""


def fixed_by_others(params: Any) -> dict[str, tuple[str, ...]]:
    """The parameters that must not be set by themselves, with the names of those that they follow from."""
    known = DERIVED.get(type(params), {})
    return {name: one.sources for name, one in known.items() if not one.free}


def refuse_derived(params: Any, names: Iterable[str]) -> None:
    """Raises ValueError if one of ``names`` is a parameter that follows from others."""
    fixed = fixed_by_others(params)
    for name in names:
        if name in fixed:
            raise ValueError(
                f"parameter={name!r} follows from {' and '.join(fixed[name])}: set those instead"
            )


def with_derived(params: Any, changed: Iterable[str]) -> Any:
    """``params`` with the parameters that follow from those ``changed``. Parameters that are among ``changed`` stay."""
    names = set(changed)
    return params.replace(
        **{
            name: one.derive(*(getattr(params, source) for source in one.sources))
            for name, one in DERIVED.get(type(params), {}).items()
            if names & set(one.sources) and name not in names
        }
    )
