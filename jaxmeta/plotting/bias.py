"""Figures of bias and standard deviation of estimators of gradients, Hessians and meta-gradients."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxmeta.plotting.style import BLUE, CYCLE, GREY, ORANGE, tidy

ROUNDING = 1e-11  # a smaller relative bias is drawn as 0


def estimators(
    path: str | os.PathLike, rows: Mapping[str, Mapping[str, Any]], *, title: str = ""
) -> None:
    """Bias against standard deviation of estimators of the gradient (left) and of the Hessian (right).

    Args:
        path: The image to write.
        rows: Name of an estimator to ``{"gradient": {"bias", "std"}, "hessian": {"bias", "std"}}``,
            relative to the norm of the estimated quantity. Estimators at the same point share a
            label.
        title: Title of both panels.
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("gradient", "hessian"), strict=True):
        points: dict[tuple[float, float], list[str]] = {}
        for name, row in rows.items():
            std, bias = (float(f"{row[kind][x]:.3g}") for x in ("std", "bias"))
            points.setdefault((std, bias if bias > ROUNDING else 0.0), []).append(name)
        zero = _log_axis_with_zero(axes, [bias for _, bias in points])
        axes.set_xlim(0, 1.05 * max(std for std, _ in points))
        labels = {}
        for (std, bias), names in points.items():
            axes.plot(std, bias or zero, "o", color=ORANGE if bias else BLUE, markersize=7)
            labels[std, bias or zero] = textwrap.fill(", ".join(names), 26)
        _label_beside(axes, labels)
        axes.set_xlabel("relative standard deviation, one trajectory")
        axes.set_ylabel("relative bias")
        axes.set_title(f"{kind.capitalize()}{title and f', {title}'}")
        tidy(axes)
    figure.savefig(path, dpi=150)


def meta_gradients(
    path: str | os.PathLike, columns: Mapping[int, Mapping[str, Mapping[str, float]]]
) -> None:
    """Bias and standard deviation of estimators of the meta-gradient against the number of trajectories adapted to.

    Args:
        path: The image to write.
        columns: Number of trajectories N to name to ``{"bias", "bias_limit", "std"}``, relative to
            the norm of the meta-gradient: the one at that N for ``"bias"``, the one at N = ∞ for
            ``"bias_limit"``.
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {
        "bias": "bias, adapting to N trajectories",
        "bias_limit": "bias, adapting to the true gradient",
        "std": "standard deviation",
    }
    sizes = list(columns)
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        lines = {name: [columns[size][name][kind] for size in sizes] for name in columns[sizes[0]]}
        zero = 0.0
        if kind != "std":
            zero = _log_axis_with_zero(axes, [x for line in lines.values() for x in line])
        for i, (name, line) in enumerate(lines.items()):
            drawn = [x if kind == "std" or x > ROUNDING else zero for x in line]
            style = dict(color=CYCLE[i % len(CYCLE)], marker="osD^v<>P"[i % 8])
            # Later lines are thinner, so that lines on top of each other stay visible.
            width, size = 4.0 - 3.0 * i / len(lines), 9.0 - 5.0 * i / len(lines)
            axes.plot(sizes, drawn, label=name, linewidth=width, markersize=size, **style)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("trajectories adapted to (N)")
        axes.set_title(title)
        tidy(axes)
    panels[0].set_ylabel("relative to the meta-gradient's norm")
    panels[2].set_yscale("log")
    for which in (panels[2].yaxis.set_major_formatter, panels[2].yaxis.set_minor_formatter):
        which("{x:g}")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    figure.savefig(path, dpi=150)


def _log_axis_with_zero(axes: Any, values: Sequence[float]) -> float:
    """The height of a line that stands for 0, below all positive ``values``; makes the y-axis logarithmic."""
    positive = [x for x in values if x > ROUNDING] or [1.0]
    low, high = (int(np.floor(np.log10(x))) for x in (min(positive), max(positive)))
    zero = 10.0 ** (low - 1)
    axes.set_yscale("log")
    axes.set_ylim(zero / 2, 3 * max(positive))
    decades = [10.0**x for x in range(low, high + 1)]
    axes.set_yticks([zero, *decades], ["0", *(f"{x:g}" for x in decades)])
    axes.minorticks_off()
    axes.axhline(zero, color=GREY, linestyle=":")
    return zero


def _label_beside(axes: Any, labels: Mapping[tuple[float, float], str]) -> None:
    """Writes the names of points ``(x, y)`` in a column to the right, without overlap, with a line to each point."""
    ordered = sorted(labels.items(), key=lambda item: (-item[0][1], -item[0][0]))
    to_axes = axes.transData + axes.transAxes.inverted()
    half = [0.025 * (text.count("\n") + 1.4) for _, text in ordered]
    heights: list[float] = []
    ceiling = 1.1
    for (point, _), size in zip(
        ordered, half, strict=True
    ):  # at the height of its point, or below the name before
        heights.append(min(to_axes.transform(point)[1], ceiling - size))
        ceiling = heights[-1] - size
    floor = -0.05
    for i in reversed(range(len(heights))):  # names below the bottom push the others up
        heights[i] = max(heights[i], floor + half[i])
        floor = heights[i] + half[i]
    for (point, text), height in zip(ordered, heights, strict=True):
        axes.annotate(
            text,
            point,
            (1.05, height),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            annotation_clip=False,
            arrowprops=dict(
                arrowstyle="-", color=GREY, linewidth=0.6, relpos=(0, 0.5), shrinkA=2, shrinkB=5
            ),
        )
