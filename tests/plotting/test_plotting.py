from pathlib import Path

import jaxmeta.plotting
from jaxmeta import plotting


def test_everything_that_draws_is_found_in_one_place():
    assert all(hasattr(plotting, name) for name in plotting.__all__)
    folder = Path(jaxmeta.plotting.__file__).parent
    drawn = [
        line.split("(")[0].removeprefix("def ")
        for path in folder.glob("*.py")
        if path.stem != "style"
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("def ") and not line.startswith("def _")
    ]
    assert set(drawn) <= set(plotting.__all__)
