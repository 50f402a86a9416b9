"""Figures of one stream of experience: observations, actions and rewards, as an image or a GIF."""

import math
import os
from collections.abc import Mapping

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxmeta import checks
from jaxmeta.plotting.style import BLUE, GREY, ORANGE, PALETTE, look, tidy


def rollout(
    path: str | os.PathLike,
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    last: np.ndarray,
    *,
    num_frames: int = 8,
    shape: tuple[int, ...] | None = None,
) -> None:
    """One stream of experience: observations, actions and rewards, with lines between episodes.

    Images are shown at a few steps, with a colour for each channel. Vectors are shown at all steps,
    with a row for each entry in units of its own range.

    Args:
        path: The image to write.
        observations: ``[T, *O]``; an image if O is ``(height, width)`` or ``(height, width,
            channels)``.
        actions: ``[T]`` or ``[T, A]``.
        rewards: ``[T]``.
        last: ``[T]``, bool: last steps of episodes.
        num_frames: Number of images.
        shape: ``(height, width)`` or ``(height, width, channels)`` of images that are observed flat, for example
            ``(5, 5)`` for GridNavi; None leaves observations as they are.
    """
    observations = _reshaped(observations, shape)
    steps = len(observations)
    figure = Figure(figsize=(9.0, 5.2), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.2, 1.0))[:, 0]
    if observations.ndim >= 3:
        shown = np.unique(np.linspace(0, steps - 1, num_frames).round().astype(int))
        for axes, t in zip(np.atleast_1d(above.subplots(1, len(shown))), shown, strict=True):
            _draw_image(axes, observations[t])
            axes.set_title(f"step {t}", fontsize=9)
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
        done.plot(range(steps), action, ".", markersize=4, **look(i) | {"linestyle": ""})
    if np.issubdtype(np.asarray(actions).dtype, np.integer):
        done.yaxis.set_major_locator(MaxNLocator(integer=True))
    done.set_ylabel("action")
    done.set_xlabel("step")
    for axes in (earned, done):
        for t in np.flatnonzero(last):
            axes.axvline(t + 0.5, color=GREY, linestyle=":", linewidth=1)
        tidy(axes)
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
    shape: tuple[int, ...] | None = None,
) -> None:
    """One stream of experience as a GIF: the observation, and beside it the episode's return so far.

    Images are shown as in `rollout`. Observations of two numbers are drawn as a path through the
    plane, and longer ones as a bar for each entry, in units of its own range.

    Args:
        path: The GIF to write.
        observations: ``[T, *O]``. Of observations of several parts, one: `tasks.unflatten` gives the parts.
        rewards: ``[T]``.
        last: ``[T]``, bool: last steps of episodes.
        goal: ``[2]``, marked in the plane.
        num_frames: The most frames; a longer stream is shown at that many of its steps.
        frames_per_second: Frames per second of the GIF.
        shape: As in `rollout`.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.
    """
    observations = _reshaped(observations, shape)
    observations, rewards = checks.numbers("T... T", observations=observations, rewards=rewards)
    checks.shapes("T", rewards=rewards, last=np.asarray(last))
    checks.at_least("num_frames", num_frames, 1)
    checks.at_least("frames_per_second", frames_per_second, 1)
    steps = len(observations)
    shown = np.unique(np.linspace(0, steps - 1, num_frames).round().astype(int))
    episode = np.concatenate([[0], np.cumsum(np.asarray(last, bool))[:-1]])
    earned = np.concatenate([np.cumsum(rewards[episode == i]) for i in np.unique(episode)])
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    film = PillowWriter(fps=frames_per_second)
    with film.saving(figure, os.fspath(path), dpi=80):
        for t in shown:
            start = int(np.flatnonzero(episode == episode[t])[0])
            left.clear()
            _draw_observation(left, observations, start, t, goal)
            left.set_title(f"step {t - start} of episode {episode[t] + 1}", fontsize=9)
            right.clear()
            _draw_return(right, earned, t)
            film.grab_frame()


def _draw_observation(
    axes: Axes, observations: np.ndarray, start: int, t: int, goal: np.ndarray | None
) -> None:
    """Draws the observation at step t of ``observations [T, *O]``; ``start`` is the episode's first step."""
    vectors = observations.reshape(len(observations), -1)
    if observations.ndim >= 3:
        _draw_image(axes, observations[t])
    elif vectors.shape[1] == 2:
        _draw_path(axes, vectors, start, t, goal)
    else:
        _draw_bars(axes, vectors, t)


def _draw_path(
    axes: Axes, positions: np.ndarray, start: int, t: int, goal: np.ndarray | None
) -> None:
    """Draws the way through the plane, ``positions [T, 2]``, from step ``start`` to step t."""
    axes.plot(*positions[start : t + 1].T, color=BLUE)
    axes.plot(*positions[t], "o", color=BLUE)
    plane = positions
    if goal is not None:
        axes.plot(*goal, "*", color=ORANGE, markersize=12)
        plane = np.vstack([positions, np.asarray(goal)[None]])
    margin = 0.05 * np.ptp(plane, axis=0).max() + 1e-6
    axes.set_xlim(plane[:, 0].min() - margin, plane[:, 0].max() + margin)
    axes.set_ylim(plane[:, 1].min() - margin, plane[:, 1].max() + margin)
    axes.set_aspect("equal")
    tidy(axes)


def _draw_bars(axes: Axes, vectors: np.ndarray, t: int) -> None:
    """Draws a bar for each entry of ``vectors [T, O]`` at step t, in units of the entry's range."""
    low, high = vectors.min(0), vectors.max(0)
    scaled = (vectors - low) / np.where(high > low, high - low, 1.0)
    axes.barh(range(vectors.shape[1]), scaled[t], color=BLUE)
    axes.set_xlim(0, 1)
    axes.set_ylim(vectors.shape[1] - 0.5, -0.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("observation")
    axes.set_xticks([])
    tidy(axes)


def _draw_return(axes: Axes, earned: np.ndarray, t: int) -> None:
    """Draws the episodes' returns so far, ``earned [T]``, up to step t."""
    axes.step(range(t + 1), earned[: t + 1], where="mid", color=BLUE)
    axes.set_xlim(-0.5, len(earned) - 0.5)
    room = 0.05 * (np.ptp(earned) or 1.0)
    axes.set_ylim(earned.min() - room, earned.max() + room)
    axes.set_xlabel("step")
    axes.set_ylabel("return so far")
    tidy(axes)


def _reshaped(observations: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """``observations [T, *O]`` as floats, as images of ``shape`` if it is given.

    Raises TypeError if they are no array of numbers, and ValueError if the shape does not fit.
    """
    if isinstance(observations, Mapping | tuple):
        raise TypeError(
            "observations has several parts; draw one of them: "
            "tasks.unflatten(space, observations)['image'], for example"
        )
    (observations,) = checks.numbers("...", observations=observations)
    if shape is None:
        return observations
    if len(shape) not in (2, 3) or math.prod(shape) != math.prod(observations.shape[1:]):
        raise ValueError(
            f"shape={shape} must be (height, width) or (height, width, channels) of observations of shape "
            f"{observations.shape[1:]}"
        )
    return observations.reshape(len(observations), *shape)


MAX_LINED = 24
"""The most cells along a side of an image between which lines are drawn."""


def _draw_image(axes: Axes, image: np.ndarray) -> None:
    """Draws ``image [H, W]`` or ``[H, W, C]``; a small one as a grid, with lines between its cells."""
    axes.imshow(_coloured(image), interpolation="nearest")
    height, width = image.shape[:2]
    axes.tick_params(which="both", length=0)
    axes.set_xticks([])
    axes.set_yticks([])
    if max(height, width) <= MAX_LINED:
        axes.set_xticks(np.arange(width + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(height + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=GREY, linewidth=0.3, alpha=0.6)


def _coloured(image: np.ndarray) -> np.ndarray:
    """``[H, W]`` or ``[H, W, C]`` as RGB ``[H, W, 3]``: each channel in its colour on white, later channels on top."""
    channels = image[..., None] if image.ndim == 2 else image
    top = np.abs(channels).max()
    painted = np.ones((*channels.shape[:2], 3))
    for i, channel in enumerate(np.moveaxis(channels, -1, 0)):
        opacity = (np.abs(channel) / (top or 1.0))[..., None]
        painted = (1 - opacity) * painted + opacity * np.array(to_rgb(PALETTE[i % len(PALETTE)]))
    return painted
