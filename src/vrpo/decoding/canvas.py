"""The canvas: a left-padded batch of prompts, each followed by a response that starts as mask tokens.

What lives here: which columns are prompt and which response, what is still hidden, what guidance blanks. What does not:
any probability (select.py), any call of a model (calls.py), which rows are written together (flight.py).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Canvas:
    """Sequences being written: columns before `start` are prompt (padded on the left), the rest response.

    `attention` is False on padding only: mask tokens are attended, in both directions. "Hidden" is said of response
    columns alone, so a padding token that equals the mask token does no harm. Padding on the left puts the responses of
    prompts of any length into the same columns.
    """

    ids: Int[Tensor, "B L"]
    attention: Bool[Tensor, "B L"]
    start: int
    mask_id: int
    pad_id: int

    @property
    def response(self) -> Int[Tensor, "B G"]:
        return self.ids[:, self.start :]

    def hidden(self, length: Int[Tensor, " B"]) -> Bool[Tensor, "B L"]:
        """Positions among the first `length` of a row's response that hold the mask token."""
        column = torch.arange(self.ids.shape[1], device=self.ids.device) - self.start
        return (self.ids == self.mask_id) & (column >= 0) & (column < length[:, None])

    def without_prompt(self) -> "Canvas":
        """The unconditional half of guidance: every prompt column blanked, pads included; text written so far kept."""
        ids = self.ids.clone()
        ids[:, : self.start] = self.mask_id
        return replace(self, ids=ids)

    def rows(self, index: Int[Tensor, " R"]) -> "Canvas":
        """These rows, without the padding that all of them have."""
        attention = self.attention[index]
        pads = int((~attention).sum(-1).min()) if len(index) else self.start
        return replace(self, ids=self.ids[index, pads:], attention=attention[:, pads:], start=self.start - pads)

    def and_below(self, other: "Canvas") -> "Canvas":
        """Both batches as one, padded to the longest prompt; responses are as long in both."""
        start = max(self.start, other.start)
        parts = [canvas._padded(start - canvas.start) for canvas in (self, other)]
        ids, attention = (torch.cat(each) for each in zip(*parts, strict=True))
        return replace(self, ids=ids, attention=attention, start=start)

    def _padded(self, pads: int) -> tuple[Tensor, Tensor]:
        return pad(self.ids, (pads, 0), value=self.pad_id), pad(self.attention, (pads, 0), value=False)


def blank(prompts: list[list[int]], max_new_tokens: int, mask_id: int, pad_id: int, device: torch.device) -> Canvas:
    """Prompts, left-padded to the longest, each followed by `max_new_tokens` mask tokens."""
    start = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), start + max_new_tokens), mask_id, dtype=torch.int64)
    attention = torch.ones_like(ids, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        pads = start - len(prompt)
        ids[row, :start] = torch.tensor([pad_id] * pads + prompt, dtype=torch.int64)
        attention[row, :pads] = False
    return Canvas(ids.to(device), attention.to(device), start, mask_id, pad_id)
