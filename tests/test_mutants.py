"""The mutants still apply (always), and all of them are noticed (slow: minutes)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vrpo
from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_mutant_applies(mutant: Mutant) -> None:
    """Its text is found, the result differs and is Python, its tests exist."""
    source = (Path(vrpo.__file__).parent / mutant.file).read_text()
    mutated = mutant.applied_to(source)
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source))
    assert all((ROOT / test).is_file() for test in mutant.tests)


def test_mutants_have_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_a_text_that_is_gone_is_an_error() -> None:
    with pytest.raises(LookupError, match="occurs 0 times"):
        Mutant("gone", "types.py", (("no such text", ""),), ()).applied_to("")


@pytest.mark.slow
def test_every_mutant_is_killed() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.mutants.run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
