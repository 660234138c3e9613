"""Block diffusion: text is written block by block, each block by masked diffusion given the clean blocks before it.

Blocks are counted from a row's first real token, as the published samplers do, so the block in which a prompt ends
holds tokens of prompt and response. A masked block must not be seen by later ones, which see it clean: so one pass runs
the clean text and, behind it, noised copies of the blocks that are scored (Block Diffusion, arXiv 2503.09573).

What does not live here: which positions are masked in each block (`plans.PerBlock`), names of fields and tensors.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.functional import pad

from vrpo.models.hf import PACK_MULTIPLE, MaskedDiffusion
from vrpo.models.key_values import additive, positions


class BlockDiffusion(MaskedDiffusion):
    """Mixin that turns a causal-LM class of transformers into a block diffusion model; put it first among the bases.

    The class it is mixed into supplies what `MaskedDiffusion` asks for, and a config with `block_size`.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        if config.block_size is None or config.block_size < 1:
            raise ValueError(
                f"block_size is {config.block_size}: pass block_size, the tokens per block that the model was trained "
                "with (--block_size of vrpo train, sft and export, which save it), or set it in config.json"
            )
        if config.shift_logits:
            raise ValueError("block diffusion models say the token of the same position: leave out shift_logits")
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]

    @property
    def block_size(self) -> int:
        return int(self.config.block_size)

    def hidden_at(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
        scored: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "S D"]:
        """The hidden states at the scored positions, row-major, of masked tokens given their block and clean blocks
        before it.

        Costs the tokens of the blocks before the last scored one, and once more those of the blocks that are scored
        with masked positions: less than twice the row, and no more than the row where one block is scored.
        """
        copies = Copies.of(input_ids, attention_mask, masked, scored, self.block_size, self.config.mask_token_id)
        row, place = copies.row_and_place(scored)
        if self.config._attn_implementation == "flex_attention":
            start = copies.real.sum(-1).cumsum(0) - copies.real.sum(-1)
            return self._end_to_end(copies).to(row.device)[start[row] + place]
        mask = additive(copies.sees, self.model.dtype)
        hidden = self.model(copies.ids, attention_mask=mask, position_ids=copies.position, use_cache=False)[0]
        return hidden.to(row.device)[row, place]  # the last layer may be elsewhere (device_map)

    def _end_to_end(self, copies: "Copies") -> Float[Tensor, "T D"]:
        """Hidden states of all rows' tokens as one sequence without padding, whose rows do not see each other."""
        row = copies.real.nonzero()[:, 0]
        surplus = -len(row) % PACK_MULTIPLE + PACK_MULTIPLE * (not len(row))  # something is run in any case
        parts = (copies.ids, copies.position, copies.block, copies.noised)
        ids, position, block, noised = (pad(part[copies.real], (0, surplus)) for part in parts)
        row = pad(row, (0, surplus), value=len(copies.ids))
        mask = create_block_mask(
            lambda b, h, query, key: (
                (row[query] == row[key]) & seen(block[query], noised[query], block[key], noised[key])
            ),
            None,
            None,
            len(row),
            len(row),
            device=str(row.device),
        )
        return self.model(ids[None], attention_mask=mask, position_ids=position[None], use_cache=False)[0][0]


@dataclass(frozen=True)
class Copies:
    """The tokens of one pass: of each row the clean text, as far as it is needed, and behind it the noised blocks.

    `position` and `block` are those in the row, the same for both copies of a token; `real` is False behind shorter
    rows. `index`: for the columns of [clean row | noised row], where each went; meaningless for those left out.
    """

    ids: Int[Tensor, "B T"]
    position: Int[Tensor, "B T"]
    block: Int[Tensor, "B T"]
    noised: Bool[Tensor, "B T"]
    real: Bool[Tensor, "B T"]
    index: Int[Tensor, "B M"]
    apart: Bool[Tensor, "B L"]

    @staticmethod
    def of(
        ids: Int[Tensor, "B L"],
        attention: Bool[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
        scored: Bool[Tensor, "B L"],
        block_size: int,
        mask_id: int,
    ) -> "Copies":
        """A block is copied if something in it is scored and something masked. Its clean tokens, and those of blocks in
        which nothing is masked, are run as far as a scored position sees them."""
        position = positions(attention)
        block = position // block_size
        in_scored = _shared(scored, block)
        apart = attention & in_scored & _shared(masked & attention, block)
        last = block.masked_fill(~scored, -1).amax(-1, keepdim=True)
        clean = attention & ((block < last) | (block == last) & ~apart)
        kept = torch.cat((clean, apart), 1)
        order = kept.logical_not().long().argsort(dim=-1, stable=True)
        width = max(1, int(kept.sum(-1).max()))
        first = order[:, :width]
        corrupted = torch.where(masked, mask_id, ids)
        return Copies(
            torch.cat((ids, corrupted), 1).gather(1, first),
            position.repeat(1, 2).gather(1, first),
            block.repeat(1, 2).gather(1, first),
            first >= ids.shape[1],
            kept.gather(1, first),
            order.argsort(dim=-1),
            apart,
        )

    @property
    def sees(self) -> Bool[Tensor, "B T T"]:
        """Which token (the second index) each one sees. What stands behind a shorter row sees everything: a softmax
        over nothing is not a number, and would not stay where it is."""
        of_query = (self.block[:, :, None], self.noised[:, :, None])
        found = self.real[:, None] & seen(*of_query, self.block[:, None], self.noised[:, None])
        return found | ~self.real[:, :, None]

    def row_and_place(self, scored: Bool[Tensor, "B L"]) -> tuple[Int[Tensor, " S"], Int[Tensor, " S"]]:
        """Row and column, among these tokens, of every scored position."""
        row, column = scored.nonzero().unbind(1)
        return row, self.index[row, column + scored.shape[1] * self.apart[row, column]]


def seen(query_block: Any, query_noised: Any, key_block: Any, key_noised: Any) -> Any:
    """Whether a token sees another one: a clean one sees clean blocks up to its own, a noised one clean blocks before
    its own, and its own block noised. Of tensors that broadcast, since FlexAttention asks token by token."""
    clean = ~key_noised & ((key_block < query_block) | (key_block == query_block) & ~query_noised)
    return clean | (key_noised & query_noised & (key_block == query_block))


def _shared(flag: Bool[Tensor, "B L"], block: Int[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """Whether any position of the same block of the row has the flag."""
    count = torch.zeros_like(block).scatter_add(1, block, flag.long())  # blocks are fewer than columns
    return count.gather(1, block) > 0
