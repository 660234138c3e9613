"""Chat messages of a row: which are read, and what they say that is not; and rows that cannot be used.

What deliberately does not live here: prompts and answers (formats.py), how messages are written (encode.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, str]
ROLES = ("system", "developer", "user", "assistant", "tool")
_BARRED = {  # what messages may say beside their content, which is not read
    *("tool_calls", "tool_call_id", "function_call", "tools", "documents", "prefix", "refusal"),
    *("reasoning_content", "reasoning", "thinking", "image", "images", "video", "videos", "audio", "audios"),
}
_OFF: dict[str, Any] = {"weight": 0, "train": False, "training": False, "loss": False}  # an answer not to be trained


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
    found = {key for key, each in said if key not in ("role", "content") and each not in (None, "", [], {}, False)}
    return found.union(*(message_keys(item) for item in items if isinstance(item, list)))


def barred_key(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The first thing of messages that would be lost, or the mark of an answer that is not to be trained."""
    barred = sorted(message_keys(messages) & _BARRED)
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else {}
    off = [key for key, value in _OFF.items() if last.get(key) is not None and last[key] == value]
    return next(iter([*barred, *off]), None)


def as_messages(value: Any) -> list[Message] | None:
    """A list of messages reduced to `role` and `content`, or None if it is not one."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return None
    if not all("role" in item and "content" in item for item in value):
        return None
    messages = [{"role": item["role"], "content": item["content"]} for item in value]
    if not all(isinstance(part, str) for item in messages for part in item.values()):
        return None
    return messages
