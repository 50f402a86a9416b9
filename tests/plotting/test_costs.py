import matplotlib.image

from jaxmeta import plotting
from tests.plotting.shared import colours


def test_second_order_shows_every_variant(tmp_path):
    row = {"memory_bytes": 2e8, "median_seconds": 0.5}
    results = {k: {"kept": row, "first order": row | {"memory_bytes": 1e8}} for k in (1, 3)}
    plotting.second_order(tmp_path / "figure.png", results)
    seen, _ = colours(tmp_path / "figure.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen


def test_lifetime_memory_draws_every_gradient(tmp_path):
    def cells(growth):
        return {10: {"temporary_bytes": 1e6}, 100: {"temporary_bytes": 1e6 * growth}}

    results = {"truncated": cells(1), "whole": cells(10)}
    plotting.lifetime_memory(tmp_path / "memory.png", results)
    seen, _ = colours(tmp_path / "memory.png")
    assert {plotting.BLUE, plotting.ORANGE} <= seen


def test_a_roofline_of_any_number_of_programs_and_sizes(tmp_path):
    points = {f"program {i}": ([0.5 * i, 2.0 * i], [1e9, 5e9]) for i in range(1, 10)}
    plotting.roofline(tmp_path / "roof.png", points, flop_per_second=1e11, bytes_per_second=1e10)
    assert min(matplotlib.image.imread(tmp_path / "roof.png").shape[:2]) > 300
