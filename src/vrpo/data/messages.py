"""Chat messages of a row: which are read, and what they say that is not; and rows that cannot be used.

What deliberately does not live here: prompts and answers (formats.py), how messages are written (encode.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, str]
ROLES = ("system", "developer", "user", "assistant", "tool")
_BARRED = {  # what messages may say beside their content, which is not read
    *("tool_calls", "tool_call_id", "function_call", "tools", "documents", "prefix", "refusal", "train_detail"),
    *("reasoning_content", "reasoning", "thinking", "image", "images", "video", "videos", "audio", "audios"),
}
_TEXT = ("text", "input_text", "output_text")  # types of the parts of a content that are text
_NOTHING: tuple[Any, ...] = (None, "", [], {}, False)
_OFF = ("weight", "train", "training", "trainable", "train_on_turn", "loss")  # of an answer: false if not to be trained
_FALSE = (0, False, "false", "False", "no", "0")


class UnusableRow(ValueError):
    """A row that cannot be trained on: `reason` is what rows are counted by, `detail` names the field and the fact."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_messages(messages: Sequence[Mapping[str, Any]], field: str) -> None:
    """Raise `UnusableRow` for a role that no template knows, or for a message that says more than its content."""
    check_roles(messages, field)
    key = barred_key(messages)
    if key is not None:
        raise UnusableRow("wrong type", f"field '{field}' has messages with {key!r}, which is not read: remove it")


def check_roles(messages: Sequence[Mapping[str, Any]], field: str) -> None:
    """Raise `UnusableRow` for a role that no template knows."""
    for message in messages:
        if message["role"] not in ROLES:
            raise UnusableRow("unknown role", f"field '{field}' has the role {message['role']!r}: take one of {ROLES}")


def message_keys(value: Any) -> set[str]:
    """What else messages, or lists of them, say beside `role` and `content`."""
    items = value if isinstance(value, list) else []
    said = [(key, said) for item in items if isinstance(item, dict) for key, said in item.items()]
    found = {key for key, each in said if key not in ("role", "content") and each not in _NOTHING}
    return found.union(*(message_keys(item) for item in items if isinstance(item, list)))


def barred_key(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The first thing of messages that would be lost, or the mark of an answer that is not to be trained."""
    odd = sorted(name for message in messages for part in _parts(message.get("content")) if (name := _odd_name(part)))
    last = messages[-1] if messages and messages[-1].get("role") == "assistant" else {}
    off = [key for key in _OFF if last.get(key) in _FALSE]
    return next(iter([*sorted(message_keys(messages) & _BARRED), *odd, *off]), None)


def as_messages(value: Any) -> list[Message] | None:
    """A list of messages reduced to `role` and `content`, or None if it is not one. A content that is a list of parts
    of text, as OpenAI has it, is what they say one after the other."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return None
    messages = [{"role": item.get("role"), "content": _text_of(item.get("content"))} for item in value]
    return messages if all(isinstance(part, str) for item in messages for part in item.values()) else None


def kind_of_turns(value: Any) -> str | None:
    """What turns are that are no list of messages, in words; None for anything else."""
    if isinstance(value, dict) and ({"role", "content"} <= {*value} or {"from", "value"} <= {*value}):
        return "messages without a list: put the turn into one"
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return None
    if all({"from", "value"} <= {*item} for item in value):
        return "turns of 'from' and 'value': rename these to 'role' and 'content', human to user and gpt to assistant"
    key = barred_key(value)
    if key is not None:
        return f"messages with {key!r}, which is not read"
    return "messages without a text in 'content'" if all("role" in item for item in value) else None


def _text_of(content: Any) -> str | None:
    """The text of a content, or None if it is not text alone."""
    if isinstance(content, str):
        return content
    parts = _parts(content)
    return "".join(part["text"] for part in parts) if parts and not any(map(_odd_name, parts)) else None


def _odd_name(part: Any) -> str | None:
    """What a part of a content has that is no text; None if it is text alone."""
    if not isinstance(part, dict):
        return "parts of no type"
    if part.get("type") not in _TEXT:
        return str(part.get("type"))
    more = [key for key, said in part.items() if key not in ("type", "text") and said not in _NOTHING]
    return str([*more, part["type"]][0]) if more or not isinstance(part.get("text"), str) else None


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else []
