import itertools

import matplotlib.image
import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from jaxmeta import evaluation, plotting


def colours(path):
    """The set of opaque colours in an image, as hex."""
    pixels = np.round(matplotlib.image.imread(path)[..., :3] * 255).astype(int).reshape(-1, 3)
    return {"#{:02X}{:02X}{:02X}".format(*rgb) for rgb in np.unique(pixels, axis=0)}, pixels


def test_adaptation_shows_curve_random_and_optimum(tmp_path):
    rng = np.random.default_rng(0)
    returns = np.array([-10.0, -2.0, -1.0]) + rng.normal(size=(20, 3))
    known = evaluation.summarize(returns, np.full(20, -30.0), np.zeros(20))
    unknown = evaluation.summarize(returns, np.full(20, -30.0), None)
    plotting.adaptation(tmp_path / "both.png", {"one": known, "two": known})
    plotting.adaptation(tmp_path / "unknown.png", {"one": unknown})
    returns[0, 2] = np.nan  # diverged: the curve has a gap, and there is a figure
    broken = evaluation.summarize(returns, np.full(20, -30.0), np.zeros(20))
    plotting.adaptation(tmp_path / "broken.png", {"one": broken})
    seen, both = colours(tmp_path / "both.png")
    assert {plotting.BLUE, plotting.GREEN, plotting.GREY} <= seen
    seen, single = colours(tmp_path / "unknown.png")
    assert plotting.GREEN not in seen
    assert {plotting.BLUE, plotting.GREY} <= seen
    assert len(both) > 1.5 * len(single)


def test_trajectories_lift_the_pen_between_episodes(tmp_path):
    """One path that jumps from right to left: drawn as one episode it crosses the middle, as two it does not."""
    obs = np.zeros((1, 2, 1, 4, 2))
    obs[..., 0] = [-2.0, -1.0, 1.0, 2.0]
    first = np.zeros((1, 2, 1, 4), bool)
    first[..., 0] = True
    plotting.trajectories(tmp_path / "one.png", obs, first)
    first[..., 2] = True
    plotting.trajectories(tmp_path / "two.png", obs, first)
    dark = []
    for name in ("one.png", "two.png"):
        image = matplotlib.image.imread(tmp_path / name)[..., :3]
        height, width, _ = image.shape
        column = image[height // 4 : -height // 5, int(0.66 * width)]  # x = 0.3: no grid line
        dark.append(column.mean(axis=1).min() < 0.8)
    assert dark == [True, False]


def test_trajectories_draw_goals_and_any_number_of_tasks(tmp_path):
    obs = np.random.default_rng(0).normal(size=(4, 3, 2, 6, 2))
    first = np.zeros((4, 3, 2, 6), bool)
    first[..., 0] = True
    plotting.trajectories(tmp_path / "goals.png", obs, first, goals=np.zeros((4, 2)))
    plotting.trajectories(tmp_path / "free.png", obs, first, labels=("a", "b"))
    assert (tmp_path / "goals.png").stat().st_size > 10_000
    assert (tmp_path / "free.png").stat().st_size > 10_000


def test_learning_curves_of_any_number_of_families(tmp_path):
    def cell(level):
        after = np.full((2, 20), level) + np.linspace(0, 1, 20)[None, :]
        return {
            "curve": {"after": after},
            "env_steps": 2_000_000,
            "random": -10.0,
            "reference": 0.0,
        }

    many = {f"algorithm {i}": cell(-9.0 + i) for i in range(8)}
    plotting.learning(tmp_path / "many.png", {f"family {i}": many for i in range(4)})
    plotting.learning(tmp_path / "one.png", {"family": {"algorithm": cell(-5.0)}})
    seen, _ = colours(tmp_path / "many.png")
    assert set(plotting.PALETTE) <= seen
    seen, _ = colours(tmp_path / "one.png")
    assert plotting.BLUE in seen
    assert plotting.ORANGE not in seen


def test_second_order_shows_every_variant(tmp_path):
    row = {"memory_bytes": 2e8, "median_seconds": 0.5}
    results = {k: {"kept": row, "first order": row | {"memory_bytes": 1e8}} for k in (1, 3)}
    plotting.second_order(tmp_path / "figure.png", results)
    seen, _ = colours(tmp_path / "figure.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen


def test_estimators_show_who_is_unbiased(tmp_path):
    """Blue without bias, orange with it, and no trouble where all are at one point."""

    def row(bias, std):
        return {"gradient": {"bias": 0.0, "std": 2.0}, "hessian": {"bias": bias, "std": std}}

    rows = {"a": row(1e-15, 5.0), "b": row(1e-15, 5.0), "c": row(0.4, 2.0), "d": row(1e-4, 1.0)}
    plotting.estimators(tmp_path / "both.png", rows, title="on-policy")
    plotting.estimators(tmp_path / "unbiased.png", {"a": rows["a"]})
    seen, _ = colours(tmp_path / "both.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen
    seen, _ = colours(tmp_path / "unbiased.png")
    assert plotting.BLUE in seen
    assert plotting.ORANGE not in seen


def test_labels_beside_points_do_not_overlap():
    """Five points at one height, and one below: their names take a line each."""
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    axes.set_xlim(0, 6)
    axes.set_ylim(0, 1)
    labels = {(float(x), 0.02): f"point {x}" for x in range(5)} | {(5.0, 0.01): "two\nlines"}
    plotting._label_beside(axes, labels)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines to the points
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == len(labels)
    for below, above in itertools.pairwise(boxes):
        assert below.y1 <= above.y0


def test_meta_gradients_draw_every_estimator(tmp_path):
    def column(scale):
        rows = {"unbiased": 0.0, "biased": 0.1}
        return {
            name: {"bias": x, "bias_limit": 0.3 * scale, "std": scale} for name, x in rows.items()
        }

    plotting.meta_gradients(tmp_path / "meta.png", {1: column(1.0), 10: column(0.1)})
    seen, _ = colours(tmp_path / "meta.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen


def test_lifetimes_draw_every_rule_in_every_setting(tmp_path):
    def line(height):
        return {
            "x": [1, 10],
            "mean": [0.0, height],
            "intervals": [(-0.1, 0.1), (height - 0.1, height + 0.1)],
        }

    entry = {"contestants": {"LPG": line(0.9), "A2C": line(0.5)}}
    five = {str(i): entry for i in range(5)}
    plotting.lifetimes(
        tmp_path / "lifetimes.png", five, x_label="episodes in the task", logarithmic=True
    )
    seen, _ = colours(tmp_path / "lifetimes.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen


def test_lifetime_memory_draws_every_gradient(tmp_path):
    def cells(growth):
        return {10: {"temporary_bytes": 1e6}, 100: {"temporary_bytes": 1e6 * growth}}

    results = {"truncated": cells(1), "whole": cells(10)}
    plotting.lifetime_memory(tmp_path / "memory.png", results)
    seen, _ = colours(tmp_path / "memory.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen


def test_a_population_is_a_line_a_setting_with_the_range_of_its_seeds(tmp_path):
    rng = np.random.default_rng(0)
    steady = np.cumsum(rng.uniform(size=(3, 60)), axis=1)
    plotting.population(tmp_path / "apart.png", {"a": steady, "b": 2 * steady})
    plotting.population(tmp_path / "together.png", {"a": steady[:1], "b": 2 * steady[:1]})
    (seen, apart), (_, together) = (colours(tmp_path / f"{x}.png") for x in ("apart", "together"))
    assert {plotting.PALETTE[0], plotting.PALETTE[1]} <= seen
    assert len(apart) > 10**5
    white = [np.mean(np.all(x == 255, axis=-1)) for x in (apart, together)]
    assert white[0] < white[1] - 0.02  # the range is shaded


def test_a_roofline_of_any_number_of_programs_and_sizes(tmp_path):
    points = {f"program {i}": ([0.5 * i, 2.0 * i], [1e9, 5e9]) for i in range(1, 10)}
    plotting.roofline(tmp_path / "roof.png", points, flop_per_second=1e11, bytes_per_second=1e10)
    assert min(matplotlib.image.imread(tmp_path / "roof.png").shape[:2]) > 300


def test_lines_in_panels(tmp_path):
    """A colour a line, the same in every panel; logarithmic axes spread what others squeeze."""
    x = np.array([1.0, 10.0, 100.0])
    panels = {"y": {"a": (x, x), "b": (x, 0 * x + 1)}, "z": {"a": (x, 1 / x)}}
    plotting.lines(tmp_path / "plain.png", panels, x_label="x")
    plotting.lines(tmp_path / "log.png", panels, x_label="x", logarithmic=True)
    for name in ("plain.png", "log.png"):
        seen, pixels = colours(tmp_path / name)
        assert {plotting.PALETTE[0], plotting.PALETTE[1]} <= seen
        assert len(pixels) > 10**5
    one = {"y": {"a": (x, x)}}
    plotting.lines(tmp_path / "one.png", one, x_label="x")
    assert len(colours(tmp_path / "one.png")[1]) < 0.6 * len(pixels)


def test_a_rollout_of_images_shows_each_channel_in_its_colour(tmp_path):
    images = np.zeros((5, 4, 3, 2))
    images[:, 0, 0, 0] = images[:, 3, 2, 1] = 1.0
    last = np.array([0, 1, 0, 0, 1], bool)
    plotting.rollout(tmp_path / "grid.png", images, np.arange(5), np.arange(5.0), last)
    seen, _ = colours(tmp_path / "grid.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen
    # One channel alone, and no picture of what is not there.
    plotting.rollout(tmp_path / "empty.png", 0 * images[..., 0], np.arange(5), np.zeros(5), last)
    seen, _ = colours(tmp_path / "empty.png")
    assert plotting.ORANGE not in seen


def test_a_rollout_of_vectors_shows_every_number_in_its_own_range(tmp_path):
    steps = np.arange(40.0)
    vectors = np.stack([1e6 * steps, steps, np.ones(40)], axis=1)
    actions = np.stack([np.sin(steps), np.cos(steps)], axis=1)
    plotting.rollout(tmp_path / "rollout.png", vectors, actions, steps, steps == 20)
    seen, pixels = colours(tmp_path / "rollout.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen  # an action has two components
    # Both rows that change end at the light end of the scale, though one is a million times larger.
    light = np.array(matplotlib.colormaps["cividis"](1.0, bytes=True)[:3])
    is_light = (pixels == light).all(1).reshape(-1, 9 * 120)
    assert (is_light.sum(1) > 10).sum() > 120


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (2,), (7,), ()])
def test_an_animation_has_a_frame_a_step_up_to_what_is_asked(shape, tmp_path):
    rng = np.random.default_rng(0)
    steps, last = 12, np.arange(12) % 5 == 4
    goal = np.ones(2) if shape == (2,) else None
    stream = rng.random((steps, *shape)), rng.random(steps), last
    for num_frames, expected in ((60, 12), (4, 4)):
        path = tmp_path / f"{num_frames}.gif"
        plotting.animation(path, *stream, goal=goal, num_frames=num_frames)
        with PIL.Image.open(path) as image:
            assert image.n_frames == expected
            assert image.size == (512, 256)


def test_an_animation_shows_the_return_of_the_episode_so_far(tmp_path):
    """Two streams that differ in a reward look the same up to it, and not after it."""
    obs, last = np.zeros((6, 3)), np.array([0, 0, 1, 0, 0, 1], bool)
    frames = []
    for reward in (np.ones(6), np.array([1.0, 1, 1, 1, 0, 1])):
        path = tmp_path / "stream.gif"
        plotting.animation(path, obs, reward, last)
        with PIL.Image.open(path) as image:
            frames.append([np.asarray(f.convert("L")) for f in PIL.ImageSequence.Iterator(image)])
    same = [np.array_equal(a, b) for a, b in zip(*frames, strict=True)]
    assert same == [True] * 4 + [False] * 2
