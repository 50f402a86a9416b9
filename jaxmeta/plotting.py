"""Figures. Each function draws into a file and needs no display; colours are Okabe and Ito's."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"


def adaptation(path: str | os.PathLike, summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Mean return with its interval after each update, with the random and the optimal agent as lines.

    Args:
        path: The image to write.
        summaries: Title of a panel to what `evaluation.summarize` returned for it.
    """
    figure = Figure(figsize=(0.6 + 4.2 * len(summaries), 3.6), layout="constrained")
    panels = figure.subplots(1, len(summaries), squeeze=False)[0]
    for axes, (title, summary) in zip(panels, summaries.items(), strict=True):
        returns = np.asarray(summary["returns"], float)  # None becomes NaN, a gap in the line
        low, high = np.asarray(summary["intervals"], float).T
        updates = np.arange(len(returns))
        axes.axhline(summary["random"], color=GREY, linestyle=":", label="random agent")
        if summary["optimal"] is not None:
            axes.axhline(summary["optimal"], color=GREEN, linestyle="--", label="optimal agent")
        axes.fill_between(updates, low, high, color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(updates, returns, color=BLUE, marker="o", label="adapted, 95 % interval")
        axes.set_xticks(updates)
        axes.set_xlabel("gradient steps in the new task")
        axes.set_ylabel("mean return")
        axes.set_title(f"{title} ({summary['num_tasks']} tasks)")
        _tidy(axes)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def trajectories(
    path: str | os.PathLike,
    observations: np.ndarray,
    first: np.ndarray,
    *,
    goals: np.ndarray | None = None,
    labels: tuple[str, str] = ("x", "y"),
) -> None:
    """Paths in the plane of the first two observations before and after adaptation, a panel a task.

    Args:
        path: The image to write.
        observations: ``[M, K + 1, N, T, obs_size]`` of M tasks; drawn are the first and last rounds.
        first: ``[M, K + 1, N, T]``, bool: where episodes begin.
        goals: ``[M, 2]``, where the tasks have goals.
        labels: Of the two axes.
    """
    num_tasks = len(observations)
    columns = min(num_tasks, 3)
    rows = -(-num_tasks // columns)
    figure = Figure(figsize=(3.2 * columns, 3.2 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    last = observations.shape[1] - 1
    rounds = ((0, ORANGE, "before adaptation"), (last, BLUE, f"after {last} gradient steps"))
    for task, axes in enumerate(panels[:num_tasks]):
        for which, colour, label in rounds:
            for stream in range(observations.shape[2]):
                xy = np.asarray(observations[task, which, stream, :, :2], float)
                # An episode's end is no move: lift the pen before the next one begins.
                starts = np.flatnonzero(first[task, which, stream])
                xy = np.insert(xy, starts, np.nan, axis=0)
                label_once = label if stream == 0 else None
                axes.plot(*xy.T, color=colour, alpha=0.45, linewidth=0.9, label=label_once)
        if goals is not None:
            axes.plot(*goals[task], marker="*", markersize=15, color="black", label="goal", ls="")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        if goals is not None:
            axes.set_aspect("equal")
        _tidy(axes)
    for axes in panels[num_tasks:]:
        axes.set_visible(False)
    handles, names = panels[0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside upper center", ncols=columns, frameon=False)
    for handle in filter(None, legend.legend_handles):
        handle.set_alpha(1.0)
    figure.savefig(path, dpi=150)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
