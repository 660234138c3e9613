"""The answers that `vrpo generate` wrote, by prompt, as `vrpo pairs` reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from vrpo.data.json_rows import Record, read_records
from vrpo.data.messages import as_messages
from vrpo.data.unread import STRUCTURE, TURNS, refuse
from vrpo.models.load import end_ids_of
from vrpo.rewards.extract import before_end
from vrpo.rewards.pairing import Sample, distinct

Unit = Literal["characters", "tokens"]


@dataclass(frozen=True)
class Group:
    """The samples of one prompt. `origin`: the line of the first. `row`: the other fields of the prompt's row. `chat`:
    a prompt that is a string was given to the model as a user's turn."""

    prompt_index: int
    origin: str
    prompt: Any
    row: Mapping[str, Any]
    chat: bool
    samples: tuple[Sample, ...]

    def judged(self, drop_unfinished: bool) -> list[Sample]:
        """The different answers with text, those that are known to be unfinished left out on request."""
        return [sample for sample in distinct(self.samples) if not (drop_unfinished and sample.finished is False)]

    @property
    def as_messages(self) -> bool:
        """Whether its pairs are messages: the prompt is, or was put through the chat template."""
        return self.chat or not isinstance(self.prompt, str)

    def texts(self, chosen: str, rejected: str) -> dict[str, Any]:
        """Prompt and answers in the form in which the prompt was asked."""
        if not self.as_messages:
            return {"prompt": self.prompt, "chosen": chosen, "rejected": rejected}
        prompt = [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt
        answers = {"chosen": chosen, "rejected": rejected}
        return {"prompt": prompt} | {side: [{"role": "assistant", "content": text}] for side, text in answers.items()}


@dataclass(frozen=True)
class Reader:
    """How samples are read. A literal end token in an answer (<|eot_id|>, ...) is its end, and no part of it.

    Args:
        unit: of lengths.
        look_for_ends: find out whether answers are finished, by `end_ids` or, if None, by the end tokens of the model
            that a row's settings name.
    """

    unit: Unit
    look_for_ends: bool
    end_ids: frozenset[int] | None

    def read(self, path: Path) -> list[Group]:
        """Groups by prompt index.

        Raises:
            ValueError: naming the line and the field that cannot be used.
        """
        if not path.is_file():
            raise ValueError(f"--samples {path}: no such file")
        groups: dict[int, list[tuple[Record, Sample]]] = {}
        for record in read_records(path, path.name):
            if record.unusable is not None:
                raise ValueError(f"{record.origin} is {record.unusable}")
            refuse(record.fields, ("prompt",), record.origin, TURNS | STRUCTURE)
            index = _integer(record, "prompt_index")
            groups.setdefault(index, []).append((record, self._sample(record)))
        if not groups:
            raise ValueError(f"--samples {path} holds no answers")
        found = [_group(index, members) for index, members in sorted(groups.items())]
        _check_one_form(found)
        return found

    def _sample(self, record: Record) -> Sample:
        found = _field(record, "answer")
        if not isinstance(found, str):
            raise ValueError(f"{record.origin} has no text in its field 'answer' (a model without a tokenizer?)")
        index, text = _integer(record, "sample_index"), before_end(found)
        ended = text != found
        if self.unit == "characters" and (ended or not self.look_for_ends):
            return Sample(index, text, len(text), ended or None)
        tokens, has_end = self._end(record)
        if self.unit == "characters":
            return Sample(index, text, len(text), has_end)
        if text.strip() and not tokens:
            raise ValueError(f"{record.origin}: field 'answer' has a text, and 'answer_ids' no token before the end")
        return Sample(index, text, tokens, ended or has_end)

    def _end(self, record: Record) -> tuple[int, bool]:
        """How many tokens of an answer are before its end token, and whether it has one."""
        ids = record.fields.get("answer_ids")
        if ids is None:
            need = "lengths in tokens need it" if self.unit == "tokens" else (
                "whether its answer came to an end is not known, give --unfinished keep to take all as they are"
            )  # fmt: skip
            raise ValueError(f"{record.origin} has no field 'answer_ids': {need}")
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise ValueError(f"{record.origin}: field 'answer_ids' is no list of integers")
        ends = self._ends(record)
        length = next((at for at, token in enumerate(ids) if token in ends), len(ids))
        return length, length < len(ids)

    def _ends(self, record: Record) -> frozenset[int]:
        if self.end_ids is not None:
            return self.end_ids
        name = _settings(record).get("model_name_or_path")
        if not isinstance(name, str):
            raise ValueError(
                f"{record.origin}: field 'settings' names no model whose end tokens could be looked up: give "
                "--end_ids, or --unfinished keep and --length_in characters"
            )
        try:
            return _ends_of_model(name)
        except ValueError as error:
            raise ValueError(
                f"{record.origin}: the end tokens of its model are not known ({error}): give --end_ids, or "
                "--unfinished keep and --length_in characters"
            ) from error


@lru_cache
def _ends_of_model(name: str) -> frozenset[int]:
    return frozenset(end_ids_of(name))


def _field(record: Record, name: str) -> Any:
    if name not in record.fields:
        raise ValueError(f"{record.origin} has no field '{name}': --samples takes what `vrpo generate --output` writes")
    return record.fields[name]


def _integer(record: Record, name: str) -> int:
    value = _field(record, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{record.origin}: field '{name}' is no index: {value!r}")
    return value


def _settings(record: Record) -> Mapping[str, Any]:
    found = record.fields.get("settings", {})
    if not isinstance(found, dict):
        raise ValueError(f"{record.origin}: field 'settings' is no object")
    return found


def _group(index: int, members: Sequence[tuple[Record, Sample]]) -> Group:
    first = members[0][0]
    prompt, row, chat = _field(first, "prompt"), first.fields.get("row", {}), bool(_settings(first).get("chat", False))
    if not isinstance(prompt, str) and not as_messages(prompt):
        raise ValueError(f"{first.origin}: field 'prompt' holds neither text nor messages")
    if not isinstance(row, dict):
        raise ValueError(f"{first.origin}: field 'row' is no object")
    seen: dict[int, str] = {}
    for record, sample in members:
        if _field(record, "prompt") != prompt:
            raise ValueError(
                f"{record.origin}: field 'prompt' is not that of {first.origin}, with the same prompt_index"
            )
        if sample.index in seen:
            raise ValueError(f"{record.origin}: field 'sample_index' is that of {seen[sample.index]}: {sample.index}")
        seen[sample.index] = record.origin
    samples = tuple(sorted((sample for _, sample in members), key=lambda sample: sample.index))
    return Group(index, first.origin, prompt, row, chat, samples)


def _check_one_form(groups: Sequence[Group]) -> None:
    """Text and messages in one file of pairs do not load together."""
    other = next((group for group in groups if group.as_messages != groups[0].as_messages), None)
    if other is not None:
        raise ValueError(
            f"field 'prompt' holds text and messages ({groups[0].origin}, {other.origin}): ask in one form, or with "
            "--chat"
        )
