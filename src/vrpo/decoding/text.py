"""Prompts to token ids, and response ids to text.

What does not live here: special tokens of a model (the denoiser says them) and any decoding of masks (decode.py).
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from vrpo.data.encode import asked


def prompt_ids(tokenizer: Any, prompts: Sequence[Any], mask_id: int) -> list[list[int]]:
    """Token ids of each prompt: a string (tokenised without special tokens), a list of messages, or a list of ids.

    Raises:
        ValueError: naming the prompt that cannot be read, or that holds the mask token (it would be written over).
    """
    if isinstance(prompts, str | Mapping):
        raise ValueError(f"prompts must be a list with one item per prompt, not one {type(prompts).__name__}")
    rows = [_ids(tokenizer, prompt, f"prompts[{row}]") for row, prompt in enumerate(prompts)]
    for row, ids in enumerate(rows):
        if mask_id in ids:
            raise ValueError(f"prompts[{row}] contains the mask token {mask_id}, at position {ids.index(mask_id)}")
    return rows


def answer_text(tokenizer: Any, ids: list[int], ends: set[int]) -> str | None:
    """The response up to its first end token, special tokens skipped; None without a tokenizer."""
    if tokenizer is None:
        return None
    length = next((position for position, token in enumerate(ids) if token in ends), len(ids))
    return tokenizer.decode(ids[:length], skip_special_tokens=True)


def _ids(tokenizer: Any, prompt: Any, name: str) -> list[int]:
    if isinstance(prompt, str):
        return _encode(tokenizer, prompt, name)
    if not isinstance(prompt, Mapping):
        items = _items(prompt, name)
        if items and all(isinstance(item, Mapping) for item in items):
            _require(tokenizer, name)
            return _encode(tokenizer, asked(tokenizer, items, name), name)
        try:
            return [operator.index(item) for item in items]
        except TypeError:
            pass
    raise ValueError(f"{name} must be a string, a list of token ids or a list of messages")


def _items(prompt: Any, name: str) -> list[Any]:
    try:
        return list(prompt)
    except TypeError:
        raise ValueError(
            f"{name} is one {type(prompt).__name__}: prompts is a list of prompts, even for one prompt"
        ) from None


def _encode(tokenizer: Any, text: str, name: str) -> list[int]:
    _require(tokenizer, name)
    return list(tokenizer.encode(text, add_special_tokens=False))


def _require(tokenizer: Any, name: str) -> None:
    if tokenizer is None:
        raise ValueError(
            f"{name} is text, but the model has no tokenizer: put its tokenizer.json beside the weights (in Python: or "
            "give token ids)"
        )
