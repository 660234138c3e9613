"""A step's calls of the model: logits of every row where it can be written, with guidance, with or without a cache.

With a cache, keys and values of all columns are computed when a row enters a block, and used for the columns that are
not computed again (Fast-dLLM, arXiv 2505.22618): "dual" computes the block alone, "prefix" the block and what follows.
That is an approximation: the columns kept do not see what was written since; those of a block diffusion model see
nothing later anyway. What does not live here: which positions
are wanted (flight.py), the attention over kept columns (models/key_values.py).
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vrpo.decoding.canvas import Canvas
from vrpo.decoding.sampling import Sampling
from vrpo.decoding.select import guided


@runtime_checkable
class LogitDenoiser(Protocol):
    """What decoding needs of a model: logits at wanted positions of ids that contain mask tokens, and its ids.

    `logits` attends to `attention_mask` (True = real token) in both directions, or as the model's blocks allow, and
    answers row-major, at least in float32. Not to be confused with `types.Denoiser`, which is given the tokens and
    hides them itself.
    """

    @property
    def mask_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def eot_id(self) -> int | None: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def block_size(self) -> int | None:
        """Of a model that was trained to write blocks of this size, counted from the first token of the prompt."""

    @property
    def device(self) -> torch.device: ...

    def logits(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"], wanted: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "S V"]: ...


@runtime_checkable
class KeptColumns(Protocol):
    """Keys and values of all columns of some rows, in every layer."""

    def rows(self, index: Int[Tensor, " R"]) -> "KeptColumns": ...

    def put(self, index: Int[Tensor, " R"], other: "KeptColumns") -> "KeptColumns": ...

    def resized(self, rows: int, columns: int) -> "KeptColumns":
        """More or fewer columns on the left; more rows below."""


@runtime_checkable
class CachingDenoiser(LogitDenoiser, Protocol):
    """What decoding with a cache needs besides."""

    def logits_and_columns(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"], wanted: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "S V"], KeptColumns]: ...

    def logits_of_columns(
        self,
        input_ids: Int[Tensor, "B C"],
        column: Int[Tensor, "B C"],
        attention_mask: Bool[Tensor, "B L"],
        wanted: Bool[Tensor, "B C"],
        kept: KeptColumns,
    ) -> Float[Tensor, "S V"]: ...


def plain_logits(
    denoiser: LogitDenoiser, canvas: Canvas, wanted: Bool[Tensor, "B L"], cfg_scale: float
) -> Float[Tensor, "S V"]:
    """Logits at the wanted positions, row-major, of one call; with guidance both halves are rows of it."""
    return _together(denoiser.logits(*_halves(canvas, wanted, cfg_scale)), cfg_scale)


class Caller:
    """Calls with a cache, of the rows in flight; `follow` says which of them stayed and how many are new."""

    def __init__(self, denoiser: CachingDenoiser, sampling: Sampling):
        self._denoiser, self._sampling = denoiser, sampling
        self._halves = 2 if sampling.cfg_scale > 0 else 1
        self._kept: KeptColumns | None = None

    def follow(self, before: int, stay: Int[Tensor, " R"], entering: int, columns: int) -> None:
        """Of `before` rows these stay, others enter below them; a row has so many columns now, added or cut on the
        left. What was kept of a row that enters is never read: its first step computes all of it."""
        if self._kept is None or not len(stay):
            self._kept = None
            return
        nothing = self._halves * before
        order = [torch.cat((stay + half * before, stay.new_full((entering,), nothing))) for half in range(self._halves)]
        self._kept = self._kept.resized(nothing + 1, columns).rows(torch.cat(order))

    def logits(
        self, canvas: Canvas, wanted: Bool[Tensor, "B L"], begin: Int[Tensor, " B"], step: Int[Tensor, " B"]
    ) -> Float[Tensor, "S V"]:
        """Logits at the wanted positions, row-major, of rows whose block begins there in the response, so many steps
        into it."""
        ids, attention, both = _halves(canvas, wanted, self._sampling.cfg_scale)
        stale = step == 0 if self._sampling.refresh is None else step % self._sampling.refresh == 0
        owner, found = wanted.nonzero()[:, 0], None
        for row in self._groups(begin, stale):
            index = torch.cat([row + half * len(wanted) for half in range(self._halves)])
            part = ids[index], attention[index], both[index]
            if stale[row[0]]:
                logits, columns = self._denoiser.logits_and_columns(*part)
                whole = len(row) == len(wanted)
                assert whole or self._kept is not None
                self._kept = columns if self._kept is None or whole else self._kept.put(index, columns)
            else:
                logits = self._again(*part, canvas.start + begin[row], index)
            logits = _together(logits, self._sampling.cfg_scale)
            if len(row) == len(wanted):
                return logits
            found = logits.new_empty(len(owner), logits.shape[1]) if found is None else found
            found[torch.isin(owner, row)] = logits
        assert found is not None
        return found

    def _groups(self, begin: Int[Tensor, " B"], stale: Bool[Tensor, " B"]) -> Iterator[Int[Tensor, " R"]]:
        """Rows that share a call: those computed as a whole; others that compute equally many columns."""
        if stale.any():
            yield stale.nonzero()[:, 0]
        rest = (~stale).nonzero()[:, 0]
        if self._sampling.cache == "dual" and len(rest):
            yield rest
        elif self._sampling.cache == "prefix":
            for value in begin[rest].unique():
                yield rest[begin[rest] == value]

    def _again(
        self,
        ids: Int[Tensor, "R L"],
        attention: Bool[Tensor, "R L"],
        wanted: Bool[Tensor, "R L"],
        begin: Int[Tensor, " Q"],
        index: Int[Tensor, " R"],
    ) -> Float[Tensor, "S V"]:
        """Logits in the columns that are computed again: the block, and with "prefix" all that follow."""
        assert self._kept is not None
        columns = ids.shape[1]
        count = min(self._sampling.block_size, columns) if self._sampling.cache == "dual" else columns - int(begin[0])
        first = begin.repeat(self._halves).clamp(max=columns - count)  # a model's last block may end beyond
        column = first[:, None] + torch.arange(count, device=ids.device)
        kept = self._kept.rows(index)
        return self._denoiser.logits_of_columns(
            ids.gather(1, column), column, attention, wanted.gather(1, column), kept
        )


def _halves(
    canvas: Canvas, wanted: Bool[Tensor, "B L"], cfg_scale: float
) -> tuple[Int[Tensor, "R L"], Bool[Tensor, "R L"], Bool[Tensor, "R L"]]:
    """Ids, attention and wanted positions of a call: with guidance the unconditional rows follow the others."""
    if cfg_scale == 0:
        return canvas.ids, canvas.attention, wanted
    both = torch.cat((canvas.ids, canvas.without_prompt().ids))
    return both, canvas.attention.repeat(2, 1), wanted.repeat(2, 1)


def _together(logits: Float[Tensor, "R V"], cfg_scale: float) -> Float[Tensor, "S V"]:
    if cfg_scale == 0:
        return logits
    conditional, unconditional = logits.chunk(2)
    return guided(conditional, unconditional, cfg_scale)
