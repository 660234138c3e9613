"""The truth of a row: fields that a judge needs, found or missed by name."""

from collections.abc import Mapping
from typing import Any


def field_of(row: Mapping[str, Any], name: str, answer: int) -> Any:
    """A field of the row of the answer with that index; a dot leads into an inner object ("extra_info.numbers").

    Raises:
        ValueError: there is no such field, or it is null.
    """
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or value.get(part) is None:
            raise ValueError(f"answer {answer}: its row has no field {name!r} (it has {sorted(row)})")
        value = value[part]
    return value


def has_fields(row: Mapping[str, Any], *names: str) -> bool:
    """Whether `field_of` finds all of them."""
    try:
        for name in names:
            field_of(row, name, 0)
    except ValueError:
        return False
    return True
