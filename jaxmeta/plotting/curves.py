"""Figures of returns against meta-updates, environment steps, updates of a lifetime or adaptation steps."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from jaxmeta import checks
from jaxmeta.plotting.style import BLUE, GREEN, GREY, PALETTE, look, tidy


def adaptation(
    path: str | os.PathLike,
    summaries: Mapping[str, Mapping[str, Any]],
    *,
    unit: str = "gradient step",
) -> None:
    """Mean return with its interval after each update; lines mark the random and the optimal agent.

    Args:
        path: The image to write.
        summaries: Title of a panel to the result of `evaluation.summarize`.
        unit: The unit of adaptation, in the singular.

    Raises TypeError if a panel is not the result of `evaluation.summarize`.
    """
    _check_panels("summaries", summaries, "summaries")
    for title, summary in summaries.items():
        if not isinstance(summary, Mapping) or "intervals" not in summary:
            raise TypeError(
                f"summaries[{title!r}] is a {_kind_of(summary)}; it must be the result of "
                "evaluation.summarize(returns, random=..., optimal=...)"
            )
    figure = Figure(figsize=(0.6 + 4.2 * len(summaries), 3.6), layout="constrained")
    panels = figure.subplots(1, len(summaries), squeeze=False)[0]
    for axes, (title, summary) in zip(panels, summaries.items(), strict=True):
        returns = np.asarray(summary["returns"], float)  # None becomes NaN, a gap in the line
        low, high = np.asarray(summary["intervals"], float).T
        updates = np.arange(len(returns))
        for name, color, style in (("random", GREY, ":"), ("optimal", GREEN, "--")):
            if (
                summary[name] is not None
            ):  # as after a run that diverged, or where no optimum is known
                axes.axhline(summary[name], color=color, linestyle=style, label=f"{name} agent")
        axes.fill_between(updates, low, high, color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(updates, returns, color=BLUE, marker="o", label="adapted, 95 % interval")
        axes.set_xticks(updates)
        axes.set_xlabel(f"{unit}s in the new task")
        axes.set_ylabel("mean return")
        axes.set_title(f"{title} ({summary['num_tasks']} tasks)")
        tidy(axes)
    _legend_below(figure, panels)
    figure.savefig(path, dpi=150)


def learning(
    path: str | os.PathLike, panels: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
    """Normalised return after adaptation against environment steps; a panel for each family, a line for each algorithm.

    Args:
        path: The image to write.
        panels: Title of a panel to algorithm to a cell: ``curve["after"] [S, U]`` (returns of S
            seeds over U meta-updates), ``env_steps`` of all U meta-updates, ``random`` and
            ``reference`` returns, a number each. Lines are means over seeds, smoothed over a tenth of the updates.

    Raises TypeError or ValueError if a cell is not so.
    """
    _check_panels("panels", panels, "cells by algorithm")
    for title, cells in panels.items():
        for name, cell in cells.items():
            where = f"panels[{title!r}][{name!r}]"
            checks.numbers("SU", **{f"{where}['curve']['after']": cell["curve"]["after"]})
            for entry in ("random", "reference", "env_steps"):
                if np.ndim(cell[entry]):
                    raise ValueError(
                        f"{where}[{entry!r}] has shape {np.shape(cell[entry])}; it must be one number"
                        + ("" if entry == "env_steps" else ": the mean over tasks")
                    )
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows + 1.0), layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, cells) in zip(every, panels.items(), strict=False):
        for i, (name, cell) in enumerate(cells.items()):
            after = np.asarray(cell["curve"]["after"], float).mean(0)
            width = max(1, len(after) // 10)
            smooth = np.convolve(after, np.ones(width) / width, mode="valid")
            share = (smooth - cell["random"]) / (cell["reference"] - cell["random"])
            steps = cell["env_steps"] * np.arange(width, len(after) + 1) / len(after)
            axes.plot(steps / 1e6, share, label=name, **look(i))
        axes.axhline(1.0, color=GREY, linestyle=":", linewidth=1)
        axes.axhline(0.0, color=GREY, linestyle=":", linewidth=1)
        axes.set_ylim(
            -0.6, 1.1
        )  # a run that diverges leaves the picture instead of squeezing the others
        axes.set_title(title)
        axes.set_xlabel("environment steps, millions")
        axes.set_ylabel("normalised return")
        tidy(axes)
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    handles, names = every[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def population(
    path: str | os.PathLike,
    curves: Mapping[str, np.ndarray],
    *,
    y_label: str = "return after adaptation",
    band: Literal["interval", "range"] = "interval",
) -> None:
    """A metric against meta-updates, one line for each setting: the mean over seeds, with a band behind it.

    Args:
        path: The image to write.
        curves: Name of a setting to ``[S, U]``. Curves are smoothed over a twentieth of the
            updates.
        y_label: Label of the y-axis.
        band: ``"interval"``, the 95 % interval of the mean by Student's t, or ``"range"``, from the lowest seed to the
            highest. One seed has no band.

    Raises:
        TypeError, ValueError: a curve is not as above; the message names it.
    """
    checks.choice("band", band, ("interval", "range"))
    if not isinstance(curves, Mapping) or not curves:
        raise TypeError(
            f"curves is {type(curves).__name__}; it must be a dictionary of [S, U] by name"
        )
    (*tables,) = (checks.numbers("SU", **{f"curves[{name!r}]": x})[0] for name, x in curves.items())
    curves = dict(zip(curves, tables, strict=True))
    for name, table in curves.items():
        if table.size == 0:
            raise ValueError(f"curves[{name!r}] has shape {table.shape}; it must hold a number")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for i, (name, curve) in enumerate(curves.items()):
        width = max(1, curve.shape[1] // 20)
        kernel = np.ones(width) / width
        smooth = np.stack([np.convolve(seed, kernel, mode="valid") for seed in curve])
        updates = np.arange(width, curve.shape[1] + 1)
        shown = look(i)
        axes.plot(updates, smooth.mean(0), label=name, **shown)
        if len(smooth) > 1:
            low, high = _band(smooth, band)
            axes.fill_between(updates, low, high, alpha=0.2, linewidth=0, color=shown["color"])
    axes.set_xlabel("meta-updates")
    axes.set_ylabel(y_label)
    tidy(axes)
    _legend_below(figure, [axes])
    figure.savefig(path, dpi=150)


def lines(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    x_label: str,
    logarithmic: bool = False,
) -> None:
    """Lines in panels side by side that share the label of x.

    Args:
        path: The image to write.
        panels: Label of a panel's y to name of a line to its x and y.
        x_label: Label of x.
        logarithmic: Draw both axes on logarithmic scales, mark the points, and put ticks at their
            x.
    """
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (label, named) in zip(every, panels.items(), strict=True):
        for i, (name, (x, y)) in enumerate(named.items()):
            axes.plot(x, y, marker="o" if logarithmic else None, label=name, **look(i))
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
            ticks = sorted({float(value) for x, _ in named.values() for value in x})
            axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
            axes.xaxis.minorticks_off()
        axes.set_xlabel(x_label)
        axes.set_ylabel(label)
        tidy(axes)
    _legend_below(figure, every)
    figure.savefig(path, dpi=150)


def lifetimes(
    path: str | os.PathLike,
    results: Mapping[str, Mapping[str, Any]],
    *,
    x_label: str = "updates since birth",
    y_label: str = "normalised return",
    logarithmic: bool = False,
) -> None:
    """Return through a lifetime with its interval; a panel for each setting, a line for each learner.

    Args:
        path: The image to write.
        results: Title of a panel to ``contestants``: name to ``x [C]``, ``mean [C]`` and
            ``intervals [C, 2]``.
        x_label: Label of x.
        y_label: Label of y, on which 1 is the best.
        logarithmic: Draw x on a logarithmic scale.
    """
    columns = min(len(results), 4)
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.6, 3.2 * rows + 0.4), layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, entry) in zip(every, results.items(), strict=False):
        for colour, (name, line) in zip(PALETTE, entry["contestants"].items(), strict=False):
            low, high = np.asarray(line["intervals"], float).T
            axes.fill_between(line["x"], low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(line["x"], line["mean"], color=colour, label=name)
            if len(line["x"]) == 1:  # a policy that does not learn is measured once
                bars = np.abs([low, high] - np.asarray(line["mean"]))
                axes.errorbar(line["x"], line["mean"], bars, color=colour, marker="o")
        axes.axhline(1.0, color=GREY, linestyle=":", linewidth=1)
        axes.axhline(0.0, color=GREY, linestyle=":", linewidth=1)
        axes.set_ylim(-0.3, 1.1)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        if logarithmic:
            axes.set_xscale("log")
        axes.set_ylabel(y_label)
        tidy(axes)
    for axes in every[len(results) :]:
        axes.set_visible(False)
    _legend_below(figure, every[: len(results)])
    figure.savefig(path, dpi=150)


def _check_panels(name: str, panels: Any, what: str) -> None:
    """Raises TypeError unless ``panels`` is a dictionary with something in it."""
    if not isinstance(panels, Mapping) or not panels:
        raise TypeError(
            f"{name} is a {_kind_of(panels)}; it must be a dictionary, title of a panel to {what}"
        )


def _kind_of(x: Any) -> str:
    """A few words on ``x`` for messages: its type, and its shape if it has one."""
    shape = getattr(x, "shape", None)
    return type(x).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")


def _band(curves: np.ndarray, band: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends ``[U]`` of the band of ``curves [S, U]``."""
    if band == "range":
        return curves.min(0), curves.max(0)
    seeds = len(curves)
    reach = scipy.stats.t.ppf(0.975, seeds - 1) * curves.std(0, ddof=1) / np.sqrt(seeds)
    return curves.mean(0) - reach, curves.mean(0) + reach


def _legend_below(figure: Figure, panels: Any) -> None:
    """One legend below all panels, off their lines, in which each name stands once."""
    named: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    for columns in range(max(min(len(named), 2 + len(panels)), 1), 0, -1):
        legend = figure.legend(
            named.values(),
            named.keys(),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=8,
        )
        # Names can be long and panels few: fewer columns until the legend is within the figure.
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
