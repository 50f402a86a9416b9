"""Builds the API reference: python .reference/build.py FOLDER

pdoc renders the docstrings. Formulas become MathML, so that pages need no network: a cluster often has none.
"""

import re
import sys
from pathlib import Path

import latex2mathml.converter
import pdoc
import pdoc.render
from pdoc.render_helpers import to_html

import jaxmeta

FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)


def with_formulas(docstring: str) -> str:
    """The HTML of a docstring; what stands between $$ is a formula."""
    formulas = FORMULA.findall(docstring)
    html = to_html(FORMULA.sub("FORMULAPLACE", docstring))
    for formula in formulas:
        mathml = latex2mathml.converter.convert(formula.strip(), display="block")
        if "\\" in mathml:
            raise ValueError(f"a command in {formula!r} has no MathML; write it another way")
        html = type(html)(html.replace("FORMULAPLACE", mathml, 1))
    return html


def main(folder: Path) -> None:
    jaxmeta.load, jaxmeta.pretrained = jaxmeta.load, jaxmeta.pretrained  # else made when asked for
    pdoc.render.configure(docformat="google", template_directory=Path(__file__).parent, search=True)
    pdoc.render.env.filters["to_html"] = with_formulas
    pdoc.pdoc("jaxmeta", output_directory=folder)
    for page in folder.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "FORMULAPLACE" not in text, page
        assert "cdn." not in text, f"{page} needs the network"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} FOLDER")
    main(Path(sys.argv[1]))
