"""Figures. Each function writes an image file and needs no display."""

from jaxmeta.plotting.bias import estimators, meta_gradients
from jaxmeta.plotting.costs import lifetime_memory, roofline, second_order
from jaxmeta.plotting.curves import adaptation, learning, lifetimes, lines, population
from jaxmeta.plotting.paths import adaptation_film, cells_of, trajectories, walks
from jaxmeta.plotting.rollouts import animation, rollout
from jaxmeta.plotting.style import BLUE, CYCLE, GREEN, GREY, ORANGE, PALETTE

__all__ = [
    "BLUE",
    "CYCLE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PALETTE",
    "adaptation",
    "adaptation_film",
    "animation",
    "cells_of",
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
    "walks",
]
