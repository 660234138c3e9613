"""Tables that are kept: found again by equal content, and by nothing less."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from vrpo.data import cache as cache_module
from vrpo.data import load_rows, tokenize_preferences
from vrpo.data.cache import kept, key_of
from vrpo.data.encode import Encoder

ROWS = Dataset.from_list([{"prompt": f"p{n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(3)])


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts of rows were encoded, call by call; what the header of an answer is takes one more text."""
    seen: list[int] = []
    encoded = Encoder.encoded

    def counted(self: Encoder, texts: Any) -> list[list[int]]:
        seen.extend([len(texts)] if len(texts) > 1 else [])
        return encoded(self, texts)

    monkeypatch.setattr(Encoder, "encoded", counted)
    return seen


def test_a_table_is_made_once(tokenizer: Any, encodings: list[int]) -> None:
    """All texts of its rows in one call, and none the second time; the account comes again. Kills: a key that never
    repeats; a kept table without its warnings; dropped rows that are stepped over at every reading."""
    rows = Dataset.from_list([{"prompt": "once", "chosen": "a", "rejected": c} for c in "bca"])
    for texts in ([9 - 3], []):
        with pytest.warns(UserWarning, match="dropped 1: equal answers"):
            examples, report = tokenize_preferences(rows, tokenizer)
        assert (len(examples), report.kept, encodings) == (2, 2, texts)
        assert examples._indices is None, "each example is looked up one by one"
        encodings.clear()


CHANGES: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": 9},
    "max_prompt_length": {"max_prompt_length": 5},
    "eos_padding": {"eos_padding": 2},
    "mask": {"mask_id": 3},
    "chat": {"strings_as_chat": True},
}


@pytest.mark.parametrize("change", CHANGES)
def test_options_are_part_of_its_name(change: str, tokenizer: Any, encodings: list[int]) -> None:
    tokenize_preferences(ROWS, tokenizer)
    encodings.clear()
    tokenize_preferences(ROWS, tokenizer, **CHANGES[change])
    assert sum(encodings) == 9


@pytest.mark.parametrize("change", ["template", "token", "rows", "code"])
def test_what_else_is_part_of_its_name(
    change: str, tokenizer: Any, with_template: Any, encodings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills: the ids of another template, tokenizer, table or version of this code."""
    rows = ROWS.select([0, 1])
    tokenize_preferences(rows, tokenizer, strings_as_chat=True)
    encodings.clear()
    if change == "template":
        with_template(tokenizer.chat_template.replace("user", "human") + " ")
    elif change == "token":
        monkeypatch.setitem(tokenizer._special_tokens_map, "eos_token", "<|eot_id|>")
    elif change == "rows":
        rows = ROWS.select([0, 2])
    else:
        monkeypatch.setattr(cache_module, "_code", lambda: "another")
    tokenize_preferences(rows, tokenizer, strings_as_chat=True)
    assert sum(encodings) == 6


def test_rows_of_a_file_are_known_by_what_is_in_it(write: Callable[..., str], tmp_path: Path) -> None:
    """Kills: a file of another content under the same name; one that is parsed again; origins of another file."""
    path = write({"prompt": "p", "chosen": "a", "rejected": "b"})
    first = load_rows(path)
    assert load_rows(path).cache_files == first.cache_files != []
    assert load_rows(path)._fingerprint == first._fingerprint
    write({"prompt": "p", "chosen": "a", "rejected": "c"})
    assert load_rows(path)["rejected"][:] == ["c"]
    other = write({"prompt": "p", "chosen": "a", "rejected": "b"}, name="other.jsonl")
    assert load_rows(other)["origin"][:] == ["other.jsonl:1"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(ValueError, match=r"^HF_DATASETS_CACHE: .* cannot be written"), kept(key_of("x")):
        pass
