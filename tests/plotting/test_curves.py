import matplotlib.image
import numpy as np
import pytest

from jaxmeta import evaluation, plotting
from tests.plotting.shared import colours


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


def test_what_is_no_summary_is_said(tmp_path):
    path = tmp_path / "none.png"
    for wrong, message in (
        (np.zeros((3, 2)), r"summaries is a ndarray of shape \(3, 2\); it must be a dictionary"),
        ({}, "summaries is a dict; it must be a dictionary, title of a panel to summaries"),
        (
            {"test": np.zeros((3, 2))},
            r"summaries\['test'\] is a ndarray of shape \(3, 2\); .* of evaluation.summarize",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            plotting.adaptation(path, wrong)
    right = dict(curve={"after": np.zeros((2, 20))}, env_steps=1, random=-1.0, reference=0.0)
    for wrong, message in (
        (
            dict(random=np.zeros(5)),
            r"\['random'\] has shape \(5,\); .* one number: the mean over tasks",
        ),
        (dict(reference=np.zeros(5)), r"\['reference'\] has shape \(5,\); it must be one number"),
        (
            dict(curve={"after": np.zeros(20)}),
            r"\['after'\] has shape \(20,\); it must be \[S, U\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            plotting.learning(path, {"one": {"maml": right | wrong}})
    assert not path.exists()


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


def test_a_legend_of_long_names_stays_within_the_picture(tmp_path):
    line = {"x": [1, 10], "mean": [0.0, 1.0], "intervals": [(0.0, 0.0), (1.0, 1.0)]}
    names = [f"a name of some length, number {i}" for i in range(3)]
    path = tmp_path / "legend.png"
    plotting.lifetimes(path, {"one": {"contestants": dict.fromkeys(names, line)}}, x_label="x")
    pixels = matplotlib.image.imread(path)
    assert np.all(pixels[:, :3] == 1)
    assert np.all(pixels[:, -3:] == 1)


def test_a_population_is_a_line_a_setting_with_a_band_behind_it(tmp_path):
    rng = np.random.default_rng(0)
    steady = np.cumsum(rng.uniform(size=(5, 60)), axis=1) * np.linspace(1, 1.5, 5)[:, None]
    plotting.population(tmp_path / "apart.png", {"a": steady, "b": 2 * steady})
    plotting.population(tmp_path / "range.png", {"a": steady, "b": 2 * steady}, band="range")
    plotting.population(tmp_path / "one.png", {"a": steady[:1], "b": 2 * steady[:1]})
    white = []
    for name in ("one.png", "apart.png", "range.png"):
        seen, pixels = colours(tmp_path / name)
        assert {plotting.PALETTE[0], plotting.PALETTE[1]} <= seen
        white.append(np.mean(np.all(pixels == 255, axis=-1)))
    assert white[0] > white[1] + 0.02  # the band is shaded
    assert white[1] != white[2]
    for curves, options, message in (
        ({"a": steady}, dict(band="all"), "band='all' is unknown"),
        (steady, {}, "curves is ndarray; it must be a dictionary"),
        ({"a": steady[0]}, {}, r"curves\['a'\] has shape \(60,\); it must be"),
        ({"a": np.zeros((2, 0))}, {}, "it must hold a number"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            plotting.population(tmp_path / "x.png", curves, **options)


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
