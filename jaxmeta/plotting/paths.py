"""Figures of paths: through a plane, before and after adaptation, and through the cells of a grid."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxmeta.plotting.style import BLUE, GREY, ORANGE, tidy

FAINTEST = 0.35
"""Opacity of a path where it begins; it ends opaque."""


def trajectories(
    path: str | os.PathLike,
    observations: np.ndarray,
    first: np.ndarray,
    *,
    goals: np.ndarray | None = None,
    labels: tuple[str, str] = ("x", "y"),
    num_paths: int = 2,
) -> None:
    """Paths in the plane of the first two observations before and after adaptation, a panel a task.

    A path is faint where it begins and strong where it ends; a dot marks its end.

    Args:
        path: The image to write.
        observations: ``[M, K + 1, N, T, obs_size]`` of M tasks; the first and last rounds are
            drawn.
        first: ``[M, K + 1, N, T]``, bool: first steps of episodes.
        goals: ``[M, 2]``, the tasks' goals; None if there are none.
        labels: Labels of the two axes.
        num_paths: The most streams of a round that are drawn.
    """
    figure, panels = _panels(len(observations), goals, labels)
    last = observations.shape[1] - 1
    for task, axes in enumerate(panels):
        for which, colour in ((0, ORANGE), (last, BLUE)):
            for stream in range(min(num_paths, observations.shape[2])):
                xy = np.asarray(observations[task, which, stream, :, :2], float)
                _draw_path(axes, xy, first[task, which, stream], colour)
        axes.autoscale()
    steps = f"after {last} gradient steps"
    _legend(figure, {"before adaptation": ORANGE, steps: BLUE}, goals is not None)
    figure.savefig(path, dpi=150)


def adaptation_film(
    path: str | os.PathLike,
    observations: np.ndarray,
    first: np.ndarray,
    *,
    goals: np.ndarray | None = None,
    labels: tuple[str, str] = ("x", "y"),
    num_paths: int = 2,
    frames_per_round: int = 8,
) -> None:
    """A GIF of `trajectories`: the paths of each round in turn, with the number of gradient steps before it.

    Args:
        path: The GIF to write.
        observations: As in `trajectories`; all K + 1 rounds are shown.
        first: As in `trajectories`.
        goals: As in `trajectories`.
        labels: As in `trajectories`.
        num_paths: As in `trajectories`.
        frames_per_round: Frames in which the paths of a round grow.
    """
    figure, panels = _panels(len(observations), goals, labels, size=2.2)
    num_rounds, num_streams, num_steps = observations.shape[1:4]
    seen = np.asarray(observations[..., :2], float)
    low, high = seen.min((0, 1, 2, 3)), seen.max((0, 1, 2, 3))
    margin = 0.05 * (high - low) + 1e-6
    title = figure.suptitle(" ")
    film = PillowWriter(fps=8)
    with film.saving(figure, os.fspath(path), dpi=70):
        for k in range(num_rounds):
            plural = "" if k == 1 else "s"
            title.set_text(f"after {k} gradient step{plural}" if k else "before adaptation")
            colour = ORANGE if k == 0 else BLUE
            for end in np.linspace(2, num_steps, frames_per_round).round().astype(int):
                for task, axes in enumerate(panels):
                    for old in [*axes.collections, *axes.lines]:
                        if old.get_gid() == "path":
                            old.remove()
                    for stream in range(min(num_paths, num_streams)):
                        starts = first[task, k, stream, :end]
                        _draw_path(axes, seen[task, k, stream, :end], starts, colour)
                    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
                    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
                film.grab_frame()
            for _ in range(frames_per_round // 2):  # time to look
                film.grab_frame()


def walks(
    path: str | os.PathLike,
    cells: np.ndarray,
    last: np.ndarray,
    *,
    size: int,
    goals: np.ndarray | None = None,
    walls: np.ndarray | None = None,
    num_episodes: int | None = None,
    returns: np.ndarray | None = None,
) -> None:
    """Walks through a grid: a row a task, a column an episode; faint where a walk begins and strong where it ends.

    Args:
        path: The image to write.
        cells: ``[M, T, 2]``, integers: column and row of the agent, row 0 at the bottom.
        last: ``[M, T]``, bool: last steps of episodes.
        size: Cells along a side.
        goals: ``[M, 2]``, integers: column and row of the goal; None if there is none.
        walls: ``[M, size, size]``, bool by row and column; None if there are none.
        num_episodes: Episodes to draw; None draws all that begin.
        returns: ``[M, E]``, the return that is written above each; None writes none.
    """
    last = np.asarray(last, bool)
    episode = np.cumsum(last, axis=1) - last
    count = int(episode.max()) + 1 if num_episodes is None else num_episodes
    figure = Figure(figsize=(1.7 * count + 0.4, 1.9 * len(cells) + 0.3), layout="constrained")
    panels = figure.subplots(len(cells), count, squeeze=False)
    for task, row in enumerate(panels):
        for i, axes in enumerate(row):
            _draw_grid(axes, size, None if walls is None else walls[task])
            steps = np.asarray(cells[task], float)[episode[task] == i]
            if goals is not None:
                axes.plot(*goals[task], "*", markersize=13, color=ORANGE)
            if len(steps):
                # A little aside with time, so that a way back does not cover the way there.
                aside = np.linspace(-0.18, 0.18, len(steps))[:, None]
                begins = np.arange(len(steps)) == 0
                _draw_path(axes, steps + aside, begins, BLUE)
            told = "" if returns is None else f": {returns[task][i]:.1f}"
            if task == 0 or returns is not None:
                axes.set_title(f"episode {i + 1}{told}", fontsize=9)
    figure.savefig(path, dpi=150)


def cells_of(observations: np.ndarray, size: int) -> np.ndarray:
    """Columns and rows ``[..., 2]`` of one-hot positions ``[..., size * size]`` whose index is column + size * row."""
    index = np.argmax(np.asarray(observations), axis=-1)
    return np.stack([index % size, index // size], axis=-1)


def _panels(
    num_tasks: int, goals: np.ndarray | None, labels: Sequence[str], size: float = 3.2
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel a task, at most three side by side, in which the goals are marked."""
    columns = min(num_tasks, 3)
    rows = -(-num_tasks // columns)
    figure = Figure(figsize=(size * columns, size * rows + 0.8), layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in panels[num_tasks:]:
        axes.set_visible(False)
    for task, axes in enumerate(panels[:num_tasks]):
        if goals is not None:
            axes.plot(*goals[task], marker="*", markersize=15, color="black", ls="", zorder=3)
            axes.set_aspect("equal")
        if task >= num_tasks - columns:
            axes.set_xlabel(labels[0])
        if task % columns == 0:
            axes.set_ylabel(labels[1])
        tidy(axes)
    return figure, list(panels[:num_tasks])


def _draw_path(axes: Axes, xy: np.ndarray, first: np.ndarray, colour: str) -> None:
    """Draws ``xy [T, 2]``, each episode from faint to strong, and a dot where each ends."""
    starts = np.flatnonzero(first)
    for episode in np.split(xy, starts[starts > 0]):
        segments = np.stack([episode[:-1], episode[1:]], axis=1)
        opacity = np.linspace(FAINTEST, 1.0, max(len(segments), 1))[: len(segments)]
        colours = np.column_stack([np.tile(to_rgb(colour), (len(segments), 1)), opacity])
        lines = LineCollection(list(segments), colors=colours, linewidths=0.9, gid="path")
        axes.add_collection(lines, autolim=True)
        if len(episode):
            axes.plot(*episode[-1], "o", markersize=4, color=colour, gid="path")


def _draw_grid(axes: Axes, size: int, walls: np.ndarray | None) -> None:
    """Draws the cells of a grid, and its walls."""
    for i in range(size + 1):
        axes.plot([i - 0.5, i - 0.5], [-0.5, size - 0.5], color=GREY, linewidth=0.4)
        axes.plot([-0.5, size - 0.5], [i - 0.5, i - 0.5], color=GREY, linewidth=0.4)
    if walls is not None:
        shown = np.where(np.asarray(walls, bool), 0.75, np.nan)
        axes.imshow(shown, origin="lower", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(-0.5, size - 0.5)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


def _legend(figure: Figure, colours: dict[str, str], with_goal: bool) -> None:
    """A legend above the panels."""
    handles = [Line2D([], [], color=x, label=name) for name, x in colours.items()]
    if with_goal:
        handles.append(
            Line2D([], [], color="black", marker="*", markersize=12, ls="", label="goal")
        )
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
