"""Figures. Each function draws into a file and needs no display; colours are Okabe and Ito's."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000", GREY)
ROUNDING = 1e-11  # a relative bias below this is none
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":")


def adaptation(
    path: str | os.PathLike,
    summaries: Mapping[str, Mapping[str, Any]],
    *,
    unit: str = "gradient step",
) -> None:
    """Mean return with its interval after each update, with the random and the optimal agent as lines.

    Args:
        path: The image to write.
        summaries: Title of a panel to what `evaluation.summarize` returned for it.
        unit: What a learner has had k of, in the singular.
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
        axes.set_xlabel(f"{unit}s in the new task")
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


def rollout(
    path: str | os.PathLike,
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    last: np.ndarray,
    *,
    num_frames: int = 8,
) -> None:
    """One stream of experience: what was seen, what was done and what it earned, episodes told apart.

    Images are shown at a few steps, a colour a channel; vectors at all steps, a row a number, each
    in units of its own range.

    Args:
        path: The image to write.
        observations: ``[T, *O]``; an image where O is ``(height, width)`` or ``(height, width, channels)``.
        actions: ``[T]`` or ``[T, A]``.
        rewards: ``[T]``.
        last: ``[T]``, bool: an episode ended here.
        num_frames: Images shown.
    """
    observations = np.asarray(observations, float)
    steps = len(observations)
    figure = Figure(figsize=(9.0, 5.2), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.2, 1.0))[:, 0]
    if observations.ndim >= 3:
        shown = np.unique(np.linspace(0, steps - 1, num_frames).round().astype(int))
        for axes, t in zip(np.atleast_1d(above.subplots(1, len(shown))), shown, strict=True):
            axes.imshow(_coloured(observations[t]), interpolation="nearest")
            axes.set_title(f"step {t}", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
    else:
        numbers = observations.reshape(steps, -1).T
        low, high = (f(numbers, axis=1, keepdims=True) for f in (np.min, np.max))
        axes = above.subplots()
        scaled = (numbers - low) / np.where(high > low, high - low, 1.0)
        axes.imshow(scaled, aspect="auto", cmap="cividis", interpolation="nearest")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("observation")
    earned, done = below.subplots(2, 1, sharex=True)
    earned.step(range(steps), rewards, where="mid", color=BLUE)
    earned.set_ylabel("reward")
    for i, action in enumerate(np.asarray(actions, float).reshape(steps, -1).T):
        done.plot(range(steps), action, ".", markersize=4, **_look(i) | {"linestyle": ""})
    if np.issubdtype(np.asarray(actions).dtype, np.integer):
        done.yaxis.set_major_locator(MaxNLocator(integer=True))
    done.set_ylabel("action")
    done.set_xlabel("step")
    for axes in (earned, done):
        for t in np.flatnonzero(last):
            axes.axvline(t + 0.5, color=GREY, linestyle=":", linewidth=1)
        _tidy(axes)
        axes.set_xlim(-0.5, steps - 0.5)
    figure.savefig(path, dpi=120)


def animation(
    path: str | os.PathLike,
    observations: np.ndarray,
    rewards: np.ndarray,
    last: np.ndarray,
    *,
    goal: np.ndarray | None = None,
    num_frames: int = 60,
    frames_per_second: int = 10,
) -> None:
    """One stream of experience as a GIF: what is seen, and beside it the return of the episode so far.

    Images are shown as in `rollout`; of two numbers the way through the plane; of more a bar each, in units of
    its own range.

    Args:
        path: The GIF to write.
        observations: ``[T, *O]``.
        rewards: ``[T]``.
        last: ``[T]``, bool: an episode ended here.
        goal: ``[2]``, shown in the plane.
        num_frames: Frames at most; a long stream is shown at as many of its steps.
        frames_per_second: Of the GIF.
    """
    observations, rewards = np.asarray(observations, float), np.asarray(rewards, float)
    steps = len(observations)
    shown = np.unique(np.linspace(0, steps - 1, num_frames).round().astype(int))
    episode = np.concatenate([[0], np.cumsum(np.asarray(last, bool))[:-1]])
    earned = np.concatenate([np.cumsum(rewards[episode == i]) for i in np.unique(episode)])
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    seen, sum_of = figure.subplots(1, 2)
    vectors = observations.reshape(steps, -1)
    low, high = vectors.min(0), vectors.max(0)
    scaled = (vectors - low) / np.where(high > low, high - low, 1.0)
    plane = vectors if goal is None else np.vstack([vectors, np.asarray(goal)[None]])
    margin = 0.05 * np.ptp(plane, axis=0).max() + 1e-6

    def draw(t: int) -> None:
        start = int(np.flatnonzero(episode == episode[t])[0])
        seen.clear()
        if observations.ndim >= 3:
            seen.imshow(_coloured(observations[t]), interpolation="nearest")
            seen.set_axis_off()
        elif vectors.shape[1] == 2:
            seen.plot(*vectors[start : t + 1].T, color=BLUE)
            seen.plot(*vectors[t], "o", color=BLUE)
            if goal is not None:
                seen.plot(*goal, "*", color=ORANGE, markersize=12)
            seen.set_xlim(plane[:, 0].min() - margin, plane[:, 0].max() + margin)
            seen.set_ylim(plane[:, 1].min() - margin, plane[:, 1].max() + margin)
            seen.set_aspect("equal")
            _tidy(seen)
        else:
            seen.barh(range(vectors.shape[1]), scaled[t], color=BLUE)
            seen.set_xlim(0, 1)
            seen.set_ylim(vectors.shape[1] - 0.5, -0.5)
            seen.yaxis.set_major_locator(MaxNLocator(integer=True))
            seen.set_ylabel("observation")
            seen.set_xticks([])
            _tidy(seen)
        seen.set_title(f"step {t - start} of episode {episode[t] + 1}", fontsize=9)
        sum_of.clear()
        sum_of.step(range(t + 1), earned[: t + 1], where="mid", color=BLUE)
        sum_of.set_xlim(-0.5, steps - 0.5)
        room = 0.05 * (np.ptp(earned) or 1.0)
        sum_of.set_ylim(earned.min() - room, earned.max() + room)
        sum_of.set_xlabel("step")
        sum_of.set_ylabel("return so far")
        _tidy(sum_of)

    film = PillowWriter(fps=frames_per_second)
    with film.saving(figure, os.fspath(path), dpi=80):
        for t in shown:
            draw(t)
            film.grab_frame()


def _coloured(image: np.ndarray) -> np.ndarray:
    """``[H, W]`` or ``[H, W, C]`` as RGB ``[H, W, 3]``: on white, each channel in its colour, later ones on top."""
    channels = image[..., None] if image.ndim == 2 else image
    top = np.abs(channels).max()
    painted = np.ones((*channels.shape[:2], 3))
    for i, channel in enumerate(np.moveaxis(channels, -1, 0)):
        opacity = (np.abs(channel) / (top or 1.0))[..., None]
        painted = (1 - opacity) * painted + opacity * np.array(to_rgb(PALETTE[i % len(PALETTE)]))
    return painted


def learning(
    path: str | os.PathLike, panels: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
    """Normalised return after adaptation against environment steps, a panel a family, a line an algorithm.

    Args:
        path: The image to write.
        panels: Title of a panel to algorithm to a cell: ``curve["after"] [S, U]`` (returns of S seeds
            over U meta-updates), ``env_steps`` of all of them, ``random`` and ``reference`` returns. Lines
            are means over seeds, smoothed over a tenth of the updates.
    """
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
            axes.plot(steps / 1e6, share, label=name, **_look(i))
        axes.axhline(1.0, color=GREY, linestyle=":", linewidth=1)
        axes.axhline(0.0, color=GREY, linestyle=":", linewidth=1)
        axes.set_ylim(-0.6, 1.1)  # a run that diverges leaves the picture, not the others squeezed
        axes.set_title(title)
        axes.set_xlabel("environment steps, millions")
        axes.set_ylabel("normalised return")
        _tidy(axes)
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
) -> None:
    """A metric against meta-updates, a line a setting: the mean over seeds, with their range behind it.

    Args:
        path: The image to write.
        curves: Name of a setting to ``[S, U]``. All is smoothed over a twentieth of the updates.
        y_label: What the metric is.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for i, (name, curve) in enumerate(curves.items()):
        width = max(1, curve.shape[1] // 20)
        kernel = np.ones(width) / width
        smooth = np.stack([np.convolve(seed, kernel, mode="valid") for seed in curve])
        updates = np.arange(width, curve.shape[1] + 1)
        look = _look(i)
        axes.plot(updates, smooth.mean(0), label=name, **look)
        axes.fill_between(
            updates, smooth.min(0), smooth.max(0), alpha=0.15, linewidth=0, color=look["color"]
        )
    axes.set_xlabel("meta-updates")
    axes.set_ylabel(y_label)
    _tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def second_order(
    path: str | os.PathLike, results: Mapping[int, Mapping[str, Mapping[str, Any]]]
) -> None:
    """Memory and time of a meta-update against the number of inner steps, a line a variant.

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
        _tidy(axes)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def lines(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    x_label: str,
    logarithmic: bool = False,
) -> None:
    """Lines side by side in panels of the same x.

    Args:
        path: The image to write.
        panels: Label of a panel's y to name of a line to its x and y.
        x_label: Label of x.
        logarithmic: Draw both axes so, and mark the points, whose x are the ticks.
    """
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    for axes, (label, named) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for i, (name, (x, y)) in enumerate(named.items()):
            axes.plot(x, y, marker="o" if logarithmic else None, label=name, **_look(i))
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
            ticks = sorted({float(value) for x, _ in named.values() for value in x})
            axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
            axes.xaxis.minorticks_off()
        axes.set_xlabel(x_label)
        axes.set_ylabel(label)
        _tidy(axes)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def lifetimes(
    path: str | os.PathLike,
    results: Mapping[str, Mapping[str, Any]],
    *,
    x_label: str = "updates since birth",
    logarithmic: bool = False,
) -> None:
    """Normalised return through a lifetime with its interval, a panel a setting, a line a learner.

    Args:
        path: The image to write.
        results: Title of a panel to ``contestants``: name to ``x [C]``, ``mean [C]`` and
            ``intervals [C, 2]``.
        x_label: What x counts.
        logarithmic: Draw x so.
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
        axes.axhline(1.0, color=GREY, linestyle=":", linewidth=1)
        axes.axhline(0.0, color=GREY, linestyle=":", linewidth=1)
        axes.set_ylim(-0.3, 1.1)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        if logarithmic:
            axes.set_xscale("log")
        axes.set_ylabel("normalised return")
        _tidy(axes)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    for axes in every[len(results) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=150)


def lifetime_memory(
    path: str | os.PathLike, results: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> None:
    """Memory of intermediate values against the length of a lifetime, a line a meta-gradient.

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
    _tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def estimators(
    path: str | os.PathLike, rows: Mapping[str, Mapping[str, Any]], *, title: str = ""
) -> None:
    """Bias against standard deviation of estimators of the gradient and of the Hessian, a panel each.

    Args:
        path: The image to write.
        rows: Name of an estimator to ``{"gradient": {"bias", "std"}, "hessian": {"bias", "std"}}``, relative
            to the norm of what is estimated. Estimators at the same point share a label.
        title: Of both panels.
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
        _tidy(axes)
    figure.savefig(path, dpi=150)


def roofline(
    path: str | os.PathLike,
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    flop_per_second: float,
    bytes_per_second: float,
) -> None:
    """How near to what a device can do (Williams et al. 2009, "Roofline: an insightful visual performance model").

    Args:
        path: The image to write.
        points: Name of a program to its operations a byte and its operations a second, at any number of sizes.
        flop_per_second: The device's arithmetic, the flat part of the roof.
        bytes_per_second: Its memory, the slope.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    ridge = flop_per_second / bytes_per_second
    widest = [ridge, *(x for intensity, _ in points.values() for x in intensity)]
    x = np.array([min(widest) / 4, ridge, 4 * max(widest)])
    roof = np.minimum(x * bytes_per_second, flop_per_second) / 1e9
    axes.plot(x, roof, color="black", label="the device, out of its caches")
    for i, (name, (intensity, speed)) in enumerate(points.items()):
        axes.plot(intensity, np.asarray(speed) / 1e9, marker="o", label=name, **_look(i))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations of matrix products a byte of their factors and results")
    axes.set_ylabel("GFLOP/s")
    _tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def meta_gradients(
    path: str | os.PathLike, columns: Mapping[int, Mapping[str, Mapping[str, float]]]
) -> None:
    """Bias and standard deviation of estimators of the meta-gradient by the size of the batch adapted to.

    Args:
        path: The image to write.
        columns: Number of trajectories N to name to ``{"bias", "bias_limit", "std"}``, relative to the norm
            of what is estimated: the meta-gradient at that N, and the one of infinitely many.
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
            # Lines that lie on each other stay visible: the later the thinner.
            width, size = 4.0 - 3.0 * i / len(lines), 9.0 - 5.0 * i / len(lines)
            axes.plot(sizes, drawn, label=name, linewidth=width, markersize=size, **style)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("trajectories adapted to (N)")
        axes.set_title(title)
        _tidy(axes)
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
    """Makes y logarithmic, with a line below all positive ``values`` that stands for 0; its height."""
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
    """Names points ``(x, y)`` in a column to the right, a line leading to each, so that none overlap."""
    ordered = sorted(labels.items(), key=lambda item: (-item[0][1], -item[0][0]))
    to_axes = axes.transData + axes.transAxes.inverted()
    half = [0.025 * (text.count("\n") + 1.4) for _, text in ordered]
    heights: list[float] = []
    ceiling = 1.1
    for (point, _), size in zip(ordered, half, strict=True):  # each at its point, or below the last
        heights.append(min(to_axes.transform(point)[1], ceiling - size))
        ceiling = heights[-1] - size
    floor = -0.05
    for i in reversed(range(len(heights))):  # what hangs over the bottom pushes up
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


def _look(i: int) -> dict[str, Any]:
    """Of the i-th line: its colour and, after each round of colours, another stroke."""
    stroke = LINE_STYLES[i // len(PALETTE) % len(LINE_STYLES)]
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": stroke}


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
