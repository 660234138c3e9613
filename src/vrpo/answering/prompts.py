"""The prompts of `vrpo generate`: from the command line or a file, each with the place where it stands."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrpo.data.json_rows import SUFFIXES, read_records
from vrpo.data.messages import UnusableRow, as_messages, check_messages, kind_of_turns
from vrpo.data.unread import STRUCTURE, TURNS, refuse
from vrpo.decoding.text import prompt_ids


@dataclass(frozen=True)
class Prompt:
    """Text or messages, the other fields of its row, which go along, and where it stands."""

    content: Any
    row: dict[str, Any]
    origin: str

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else json.dumps(self.content, ensure_ascii=False)

    def token_ids(self, tokenizer: Any, mask_id: int, chat: bool) -> list[int]:
        """`chat`: text is put through the chat template, as a user's turn.

        Raises:
            ValueError: naming where the prompt stands.
        """
        as_turn = chat and isinstance(self.content, str)
        given = [{"role": "user", "content": self.content}] if as_turn else self.content
        try:
            self.text.encode()  # half of a surrogate pair is no text, which tokenizers say in other ways
            return prompt_ids(tokenizer, [given], mask_id)[0]
        except ValueError as error:
            raise ValueError(f"{self.origin}: {str(error).removeprefix('prompts[0] ')}") from error


def given_prompts(texts: Sequence[str]) -> list[Prompt]:
    """Those of the command line."""
    return [Prompt(text, {}, f"--prompt number {number}") for number, text in enumerate(texts, start=1)]


def read_prompts(path: Path) -> list[Prompt]:
    """Those of a file: JSON lines, an array or parquet by its name, else text.

    Raises:
        ValueError: naming the file, and the line that cannot be used.
    """
    if not path.is_file():
        raise ValueError(f"--prompts {path}: no such file")
    found = _rows(path) if path.name.endswith(SUFFIXES) else _lines(path)
    if not found:
        raise ValueError(f"--prompts {path} holds no prompt")
    return found


def _rows(path: Path) -> list[Prompt]:
    found = []
    for record in read_records(path, str(path)):
        if record.unusable is not None:
            raise ValueError(f"{record.origin} is {record.unusable}")
        content = record.fields.get("prompt")
        messages = [] if isinstance(content, str) else as_messages(content)
        if messages is None or not (content or isinstance(content, str)):
            said = f": it holds {kind_of_turns(content)}" if kind_of_turns(content) else ""
            raise ValueError(f"{record.origin} has no field 'prompt' that holds text or messages{said}")
        refuse(record.fields, ("prompt",), record.origin, TURNS | STRUCTURE)
        try:
            check_messages([] if isinstance(content, str) else content, "prompt")
        except UnusableRow as error:
            raise ValueError(f"{record.origin}: {error}") from error
        others = {name: value for name, value in record.fields.items() if name != "prompt"}
        found.append(Prompt(content, others, record.origin))
    return found


def _lines(path: Path) -> list[Prompt]:
    """Lines end at "\\n" (or "\\r\\n") only: text may contain U+2028. Blank ones are no prompts."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--prompts {path} is not text in UTF-8 ({error}), nor named as rows: {', '.join(SUFFIXES)}"
        ) from error
    lines = enumerate(text.split("\n"), start=1)
    return [Prompt(line, {}, f"{path}:{number}") for number, line in lines if line.strip()]
