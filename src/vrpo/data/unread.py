"""What rows carry beside what is read: refused if the model should be given it, else named in one warning.

What deliberately does not live here: what is read, and which messages cannot be (formats.py, messages.py).
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from datasets import Dataset, LargeList, List

from vrpo.data.formats import READ
from vrpo.data.messages import message_keys

Read = Callable[[Sequence[str]], Sequence[str]]  # which of the columns that are there rows are read from
INTERNAL = ("origin", "example_id", "unusable")  # columns of `load_rows`
TURNS = {  # columns of turns that a prompt or transcript should hold; harmless where it does
    *("system", "system_prompt", "system_message", "developer", "messages", "conversation", "conversations"),
    *("dialog", "dialogue", "history", "chat", "chat_history", "system_instruction", "system_instructions"),
    *("sys_prompt", "developer_message", "developer_prompt"),
}
ASKED = {  # the same, of what is asked
    *("prompt", "instruction", "instructions", "question", "query", "problem", "input", "inputs", "context"),
    *("contexts", "passage", "passages", "document", "documents", "prefix", "suffix", "background", "article", "story"),
    *("prompts", "prompt_text", "input_text", "user_prompt", "user_input", "user_message", "user_query", "questions"),
}
STRUCTURE = {  # columns that say how the model is asked, or hold what is no text
    *("tools", "functions", "chat_template", "chat_template_kwargs", "labels"),
    *("image", "images", "video", "videos", "audio", "audios"),
}
SAID = frozenset(TURNS | ASKED | STRUCTURE)
_PLAIN = {name.replace("_", ""): name for name in SAID}
_NOTHING = ("", "[]", "{}", "null", "none")
_NAMES = ("role", "from", "type")  # fields of turns that are no text


def refuse(fields: Mapping[str, Any], read: Iterable[str], origin: str, names: Set[str] = SAID) -> None:
    """
    Raises:
        ValueError: a row has something for the model, by these names, in columns that are not read.
    """
    for name, value in fields.items():
        if plain(name) not in names or name in read or is_nothing(value):
            continue
        if plain(name) == "labels" and "completions" not in read:  # of a row, and not of the steps of an answer
            continue
        said = "\n".join(_texts([fields.get(each) for each in read]))
        texts = [text.strip() for text in _texts(value)]
        if plain(name) in STRUCTURE or not texts or not all(text in said for text in texts):
            own = [repr(each) for each in read]
            write = f"Rename it to 'prompt' if it is what is asked, else write it into {' and '.join(own[:2])}"
            write = write if own and "'prompt'" not in own else "Write it into 'prompt'"
            raise ValueError(
                f"{origin}: column '{name}' holds what the model would not be given. {write}, or remove it"
            )


@cache
def plain(name: str) -> str:
    """A column's name as `SAID` spells it, of systemPrompt, "System Prompt" or "prompt "; else as it is."""
    return _PLAIN.get("".join(filter(str.isalnum, name.lower())), name)


def is_nothing(value: Any) -> bool:
    """Whether a value is null, blank, or a list or object of such values."""
    if isinstance(value, str):
        return value.strip()[:5].lower() in _NOTHING  # which are shorter
    if isinstance(value, Mapping):
        return all(map(is_nothing, value.values()))
    return value is None or (isinstance(value, Sequence) and all(map(is_nothing, value)))


def _texts(value: Any) -> Iterator[str]:
    """The strings in a value, without the names of roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([each for name, each in value.items() if name not in _NAMES])
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


@dataclass
class Carried:
    """In how many rows a column says something, and messages of a column something beside their content."""

    columns: Counter[str] = field(default_factory=Counter)
    keys: Counter[tuple[str, str]] = field(default_factory=Counter)

    def look(self, fields: Mapping[str, Any]) -> None:
        self.columns.update(name for name, value in fields.items() if name not in INTERNAL and not is_nothing(value))
        lists = [(name, value) for name, value in fields.items() if isinstance(value, list)]
        self.keys.update((name, key) for name, value in lists for key in message_keys(value))

    def unread(self, read: Sequence[str]) -> str:
        """What is carried and not read, where these columns are."""
        found = {name: count for name, count in self.columns.items() if count and name not in read}
        found |= {f"{key!r} of messages in {name}": count for (name, key), count in self.keys.items() if name in read}
        return ", ".join(f"{name} ({count} rows)" for name, count in found.items())


def warn_of(unread: str, label: str) -> None:
    """One warning that names everything which is not read, if there is anything."""
    if unread:
        warnings.warn(f"{label}: not read: {unread}", UserWarning, stacklevel=4)


def check_table(rows: Dataset, read: Sequence[str], label: str) -> None:
    """Name what a table carries beside these columns in one warning; tables of `load_rows` have been looked at, and are
    held to the columns that they are now read from, of which they had more then.

    Raises:
        ValueError: it carries something that the model should be given.
    """
    known = {"origin", "example_id"} <= {*rows.column_names}
    own = [name for name in rows.column_names if name in read]
    beside = [name for name in rows.column_names if name not in read and name not in INTERNAL]
    asked = [name for name in beside if plain(name) in SAID]
    carried = Carried()
    if asked or any(_has_more_fields(rows.features[name]) and not known for name in own):
        table = rows.select_columns([*own, *asked]).with_format("arrow")  # without decoding images
        for number, record in enumerate(record for part in table.iter(1000) for record in part.to_pylist()):
            refuse(record, own, f"{label}, row {number}")
            carried.look(record)
    carried.keys = Counter() if known else carried.keys
    others = [name for name in beside if name not in asked and (name in READ or not known)]
    carried.columns.update({name: len(rows.data) - rows.data.column(name).null_count for name in others})
    warn_of(carried.unread(read), label)


def _has_more_fields(feature: Any) -> bool:
    """Whether the messages in a column, lists of lists included, have fields beside role and content."""
    while isinstance(feature, List | LargeList):
        feature = feature.feature
    return isinstance(feature, Mapping) and len(feature) > 2
