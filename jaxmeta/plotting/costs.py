"""Figures of cost: memory, time, and a program's speed against the limits of its device."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxmeta.plotting.style import PALETTE, look, tidy


def second_order(
    path: str | os.PathLike, results: Mapping[int, Mapping[str, Mapping[str, Any]]]
) -> None:
    """Memory and time of a meta-update against the number of inner steps, one line for each variant.

    Args:
        path: The image to write.
        results: Number of inner steps to variant to ``memory_bytes`` and ``median_seconds``.
    """
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    panels = (("memory_bytes", 1e6, "memory, MB"), ("median_seconds", 1.0, "time, s"))
    updates = list(results)
    for axes, (field, unit, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for colour, name in zip(PALETTE, results[updates[0]], strict=False):
            values = [results[k][name][field] / unit for k in updates]
            axes.plot(updates, values, color=colour, marker="o", label=name)
        axes.set_xticks(updates)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("inner gradient steps")
        axes.set_ylabel(f"{label} a meta-update")
        tidy(axes)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def lifetime_memory(
    path: str | os.PathLike, results: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> None:
    """Memory of intermediate values against the length of a lifetime, one line for each meta-gradient.

    Args:
        path: The image to write.
        results: Name to updates in a lifetime to ``temporary_bytes``.
    """
    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for i, (name, cells) in enumerate(results.items()):
        values = [cell["temporary_bytes"] / 1e6 for cell in cells.values()]
        axes.plot(list(cells), values, color=PALETTE[i % len(PALETTE)], marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("updates in a lifetime")
    axes.set_ylabel("memory of intermediate values, MB")
    tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def roofline(
    path: str | os.PathLike,
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    flop_per_second: float,
    bytes_per_second: float,
) -> None:
    """A roofline plot (Williams et al. 2009, "Roofline: an insightful visual performance model").

    Args:
        path: The image to write.
        points: Name of a program to its operations per byte and its operations per second, at any
            number of sizes.
        flop_per_second: The device's peak arithmetic, the flat part of the roof.
        bytes_per_second: The device's peak memory bandwidth, the slope of the roof.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    ridge = flop_per_second / bytes_per_second
    widest = [ridge, *(x for intensity, _ in points.values() for x in intensity)]
    x = np.array([min(widest) / 4, ridge, 4 * max(widest)])
    roof = np.minimum(x * bytes_per_second, flop_per_second) / 1e9
    axes.plot(x, roof, color="black", label="the device, out of its caches")
    for i, (name, (intensity, speed)) in enumerate(points.items()):
        axes.plot(intensity, np.asarray(speed) / 1e9, marker="o", label=name, **look(i))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations of matrix products a byte of their factors and results")
    axes.set_ylabel("GFLOP/s")
    tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
