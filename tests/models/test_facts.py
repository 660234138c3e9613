"""The table of models: what pages show is what the code knows, and no other file knows a token."""

from pathlib import Path

from tests.loops import each
from vrpo.models.facts import TABLE, Facts, table_for_readers
from vrpo.models.load import _ADAPTERS

ROOT = Path(__file__).parents[2]


@each(("page", "short"), [("docs/models.md", False), ("README.md", True)])
def test_pages_show_the_table(page: str, short: bool) -> None:
    """Kills: a page that says another id than the code. To write it again: table_for_readers()."""
    text = (ROOT / page).read_text()
    shown = text.split("<!-- facts", 1)[1].split("-->\n", 1)[1].split("\n<!-- /facts -->")[0]
    assert shown == table_for_readers(short=short)


def test_every_adapter_has_its_facts() -> None:
    assert {entry.architecture for entry in TABLE} >= {klass.config_class.architecture for klass in _ADAPTERS.values()}  # type: ignore[attr-defined]
    assert len({entry.architecture for entry in TABLE}) == len(TABLE)


@each("entry", TABLE, ids=[entry.architecture for entry in TABLE])
def test_facts_agree_with_the_class(entry: Facts) -> None:
    """Kills: targets that a class has not; an alignment that the table and the configuration say differently."""
    klass = _ADAPTERS[entry.architecture]
    assert tuple(klass.lora_targets) == entry.lora_targets  # type: ignore[attr-defined]
    config = klass.config_class  # type: ignore[attr-defined]
    assert config().shift_logits == (entry.alignment == "next")  # type: ignore[misc]
