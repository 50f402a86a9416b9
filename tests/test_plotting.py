import matplotlib.image
import numpy as np

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
