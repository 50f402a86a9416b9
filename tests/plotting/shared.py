"""What the tests of figures share."""

import matplotlib.image
import numpy as np


def colours(path):
    """The set of opaque colours in an image, as hex."""
    pixels = np.round(matplotlib.image.imread(path)[..., :3] * 255).astype(int).reshape(-1, 3)
    return {"#{:02X}{:02X}{:02X}".format(*rgb) for rgb in np.unique(pixels, axis=0)}, pixels
