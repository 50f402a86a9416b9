import itertools

from matplotlib.figure import Figure
from matplotlib.text import Text

from jaxmeta import plotting
from jaxmeta.plotting import bias
from tests.plotting.shared import colours


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
    bias._label_beside(axes, labels)
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
