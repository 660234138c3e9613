"""The documentation says what is: its Python runs, and the tests, mutants and code that it names exist."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants.catalogue import FIELD, MUTANTS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
METHODS = ROOT / "docs" / "methods.md"


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """(line, code) of every block marked python."""
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[: match.start(1)].count("\n") + 1, match[1]


def run(page: Path) -> None:
    """Execute a page's blocks in order in one namespace. Tracebacks point into the page."""
    namespace: dict[str, object] = {"__name__": page.stem}
    for line, code in blocks(page.read_text()):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


def names_in(text: str) -> dict[str, set[str]]:
    """What a page cites in backticks: `tests/file.py::test` and `vrpo.module.name`."""
    spans = re.findall(r"`([^`\n]+)`", text)
    return {
        "test": {span for span in spans if span.startswith("tests/") and "::" in span},
        "code": {span for span in spans if re.fullmatch(r"vrpo(\.\w+)+", span)},
    }


def guards(text: str) -> list[str]:
    """The mutants in the last column of the table of mistakes."""
    section = text.split("got wrong", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip().strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[-1])]


def resolve(name: str) -> object:
    """The object of a dotted name: module, then attributes.

    Raises:
        AttributeError, ImportError: there is no such thing.
    """
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page.read_text()))], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder. Every block asserts something, so a page that is out of date fails."""
    monkeypatch.chdir(tmp_path)
    run(page)


def test_cited_tests_exist() -> None:
    functions: dict[str, set[str]] = {}
    for name in names_in(METHODS.read_text())["test"]:
        file, test = name.split("::")
        body = ast.parse((ROOT / file).read_text()).body if file not in functions else []
        functions.setdefault(file, {node.name for node in body if isinstance(node, ast.FunctionDef)})
        assert test in functions[file], name


def test_cited_code_exists() -> None:
    assert all(resolve(name) is not None for page in PAGES for name in names_in(page.read_text())["code"])


def test_every_mistake_has_its_mutant() -> None:
    """All mutants that the table names exist, and it names every mutant made from a mistake in the field."""
    cited = guards(METHODS.read_text())
    assert set(cited) <= {mutant.name for mutant in MUTANTS}
    assert {mutant.name for mutant in FIELD} <= set(cited)


def test_local_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_page_names_a_machine() -> None:
    """A path of the machine it was written on helps no reader."""
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(work|tmp|home|root|mnt)/|\.\./shared", page.read_text()), page.name


def test_these_tests_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as error:
        run(page)
    assert error.traceback[-1].lineno == 5  # counted from 0: line 6 of the page
    assert [line for line, _ in blocks(page.read_text())] == [2, 6]
    assert guards("what they got wrong\n| a | `b` |\n\n## Next\n| c | `d` |\n") == ["b"]
    for name in ("vrpo.nonsense", "vrpo.draws.Nonsense", "nonsense.x"):
        with pytest.raises((AttributeError, ImportError)):
            resolve(name)
