from matplotlib.figure import Figure

from jaxmeta.plotting import style


def test_lines_can_be_told_apart_by_colour_or_by_stroke():
    count = len(style.PALETTE) * len(style.LINE_STYLES)
    looks = [tuple(style.look(i).values()) for i in range(count)]
    assert len(set(looks)) == count
    assert [colour for colour, _ in looks[: len(style.PALETTE)]] == list(style.PALETTE)


def test_tidy_axes_have_two_spines():
    axes = Figure().subplots()
    style.tidy(axes)
    assert [name for name, spine in axes.spines.items() if spine.get_visible()] == [
        "left",
        "bottom",
    ]
