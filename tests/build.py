"""Small values to test with: rows of token ids, tokens padded in any way, draws with masks given by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vrpo.types import Draws, Pairs, Tokens


@dataclass(frozen=True)
class Row:
    """One (prompt, response) and its replay key."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    key: int = 0


def make_tokens(rows: Sequence[Row], *, left: int = 0, right: int = 0, align: str = "left", pad_id: int = 0) -> Tokens:
    """Tokens of the rows, with `left` and `right` extra columns of padding.

    `align="right"` pads short rows on the left. Pads get a legitimate token id, so that attending to one shows.
    """
    width = max(len(row.prompt) + len(row.response) for row in rows) + left + right
    ids = torch.full((len(rows), width), pad_id)
    response = torch.zeros(len(rows), width, dtype=torch.bool)
    attention = torch.zeros(len(rows), width, dtype=torch.bool)
    for n, row in enumerate(rows):
        size = len(row.prompt) + len(row.response)
        start = left if align == "left" else width - right - size
        ids[n, start : start + size] = torch.tensor(row.prompt + row.response)
        attention[n, start : start + size] = True
        response[n, start + len(row.prompt) : start + size] = True
    return Tokens(ids, response, attention, torch.tensor([row.key for row in rows]))


def copies(row: Row, count: int) -> Tokens:
    """The same row under the keys 0..count-1."""
    one = make_tokens([row])
    return Tokens(
        one.ids.expand(count, -1), one.response.expand(count, -1), one.attention.expand(count, -1), torch.arange(count)
    )


def two_pairs() -> tuple[list[Row], Pairs]:
    """Two pairs over a vocabulary of 3, at most 5 tokens a row; rows in no particular order."""
    rows = [
        Row((2, 0), (1, 0, 2), 11),
        Row((1,), (0, 2, 2, 1), 12),
        Row((2, 0), (0, 0), 13),
        Row((1,), (2,), 14),
    ]
    length = torch.tensor([len(row.response) for row in rows])
    return rows, Pairs(torch.tensor([2, 1]), torch.tensor([0, 3]), length)


def rekey(rows: Sequence[Row], offset: int) -> list[Row]:
    return [replace(row, key=row.key + offset) for row in rows]


def draws_of(tokens: Tokens, masks: Sequence[Tensor]) -> Draws:
    """Fixed-count draws with given masks: masks[n] is [K, response length] of row n; K may differ between rows.

    Weight L / m / K by the definition (Eq. 15), every draw a group of its own; surplus draws weigh 0 in group -1.
    """
    most = max(len(mask) for mask in masks)
    masked = torch.zeros(len(masks), most, tokens.ids.shape[1], dtype=torch.bool)
    weight = torch.zeros(masked.shape, dtype=torch.float64)
    group = torch.full((len(masks), most), -1)
    for n, mask in enumerate(masks):
        for k, chosen in enumerate(mask.bool()):
            columns = tokens.response[n].nonzero()[:, 0][chosen]
            masked[n, k, columns] = True
            weight[n, k, columns] = chosen.numel() / int(chosen.sum()) / len(mask)
            group[n, k] = k
    return Draws(masked, weight, group)


def in_response(tokens: Tokens, values: Tensor) -> list[Tensor]:
    """Per row, `values` [N, K, L] at its response positions: what draws look like without their padding."""
    return [values[n][:, tokens.response[n]] for n in range(len(values))]
