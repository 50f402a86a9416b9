"""Style of all figures. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from typing import Any

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000", GREY)
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":")


def look(i: int) -> dict[str, Any]:
    """Colour and line style of the i-th line; the line style changes after each round of colours."""
    stroke = LINE_STYLES[i // len(PALETTE) % len(LINE_STYLES)]
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": stroke}


def tidy(axes: Any) -> None:
    """Removes the upper and right spines and draws a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
