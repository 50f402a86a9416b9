"""Every fault of `mutants.py` can be planted in its file, and its tests exist."""

import ast

from tests.mutants import MUTANTS, ROOT


def test_every_fault_can_be_planted_and_is_a_program():
    for mutant in MUTANTS:
        text = (ROOT / "jaxmeta" / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, f"{mutant.file} must hold {mutant.old!r} once"
        faulty = text.replace(mutant.old, mutant.new)
        assert ast.dump(ast.parse(faulty)) != ast.dump(ast.parse(text)), mutant
        for path in mutant.test_paths():
            assert (ROOT / path).is_file(), f"{path} does not exist"


def test_no_fault_is_listed_twice():
    assert len({(x.file, x.old, x.new) for x in MUTANTS}) == len(MUTANTS) >= 60
