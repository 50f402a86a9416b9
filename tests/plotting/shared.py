"""What the tests of figures share."""

import matplotlib.image
import numpy as np


def colours(path):
    """The set of opaque colours in an image, as hex."""
    pixels = np.round(matplotlib.image.imread(path)[..., :3] * 255).astype(int).reshape(-1, 3)
    # As one number each, for rows are slow to sort.
    return {f"#{rgb:06X}" for rgb in np.unique(pixels @ [1 << 16, 1 << 8, 1])}, pixels
