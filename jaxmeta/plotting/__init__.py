"""Figures. Each function writes an image file and needs no display."""

from jaxmeta.plotting.bias import estimators, meta_gradients
from jaxmeta.plotting.costs import lifetime_memory, roofline, second_order
from jaxmeta.plotting.curves import adaptation, learning, lifetimes, lines, population
from jaxmeta.plotting.rollouts import animation, rollout, trajectories
from jaxmeta.plotting.style import BLUE, CYCLE, GREEN, GREY, ORANGE, PALETTE

__all__ = [
    "BLUE",
    "CYCLE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PALETTE",
    "adaptation",
    "animation",
    "estimators",
    "learning",
    "lifetime_memory",
    "lifetimes",
    "lines",
    "meta_gradients",
    "population",
    "rollout",
    "roofline",
    "second_order",
    "trajectories",
]
