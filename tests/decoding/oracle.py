"""A second, deliberately naive decoder and a table model to run it on.

The decoder follows the official algorithm literally: whole sequence, whole vocabulary, one row, and (at temperature 0)
the aliasing of "noised logits" and logits that gives confidence_eos_eot_inf its meaning.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class TableDenoiser:
    """Logits are a sum over attended tokens near by of a table entry at (token, distance): relative and bidirectional.

    Entries are multiples of 2^-10, so sums are exact and padding cannot move them by a rounding error. `mask_bias`
    makes the mask token the best token at some positions, `end_bias` the end tokens.
    """

    seed: int = 0
    vocab: int = 9
    mask_bias: float = -4.0
    end_bias: float = 0.0
    mask_id: int = 8
    eos_id: int = 6
    eot_id: int | None = 7
    block_size: int | None = None
    pad_id: int = 6
    tokenizer: object = None
    reach: int = 4
    calls: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def logits(self, input_ids: Tensor, attention_mask: Tensor, wanted: Tensor) -> Tensor:
        self.calls.append((input_ids, attention_mask, wanted))
        generator = torch.Generator().manual_seed(self.seed)
        table = torch.randn(self.vocab, 2 * self.reach + 1, self.vocab, generator=generator, dtype=torch.float64)
        table = (table * 1024).round() / 1024
        table[:, [0, -1]] = 0  # at clipped distances
        column = torch.arange(input_ids.shape[1])
        offset = (column[None] - column[:, None]).clamp(-self.reach, self.reach) + self.reach
        logits = (table[input_ids[:, None, :], offset] * attention_mask[:, None, :, None]).sum(2)
        logits[..., self.mask_id] += self.mask_bias
        logits[..., [6, 7]] += self.end_bias
        return logits[wanted]


@torch.no_grad()
def oracle(
    denoiser,
    prompt,
    *,
    max_new_tokens,
    block_size,
    steps,
    temperature=0.0,
    cfg_scale=0.0,
    remasking="low_confidence",
    logits_eos_inf=False,
    confidence_eos_eot_inf=False,
    row_generator=None,
):
    """Response ids of one prompt; noise is drawn for hidden positions up to the current block, as in `generate`."""
    start = len(prompt)
    x = torch.tensor(prompt + [denoiser.mask_id] * max_new_tokens)
    blocks = max_new_tokens // block_size
    for block in range(blocks):
        end = start + (block + 1) * block_size
        per_block = steps // blocks
        for step in range(per_block):
            quota = len(range(step, block_size, per_block))  # deals tokens to steps like cards
            logits = _everywhere(denoiser, x)
            if cfg_scale > 0:
                blanked = torch.cat((torch.full((start,), denoiser.mask_id), x[start:]))
                other = _everywhere(denoiser, blanked)
                logits = other + (cfg_scale + 1) * (logits - other)
            if logits_eos_inf:
                logits[:, denoiser.eos_id] = -torch.inf
            candidates = [i for i in range(start, end) if x[i] == denoiser.mask_id]
            noised = logits
            if temperature > 0:
                uniform = torch.ones_like(logits)
                uniform[candidates] = torch.rand(
                    (len(candidates), denoiser.vocab), generator=row_generator, dtype=torch.float64
                )
                noised = logits.exp() / (-uniform.log()) ** temperature
            best = noised.argmax(-1)
            if confidence_eos_eot_inf:
                noised[:, denoiser.eos_id] = -torch.inf  # at temperature 0 this is `logits`, at > 0 a copy
                logits[:, denoiser.eot_id] = -torch.inf
            if remasking == "random":
                scores = torch.rand(len(candidates), generator=row_generator, dtype=torch.float64).tolist()
            else:
                probability = logits.softmax(-1)
                scores = [float(probability[i, best[i]]) for i in candidates]
            ranked = sorted(range(len(candidates)), key=lambda c: (-scores[c], c))
            for c in ranked[:quota]:
                x[candidates[c]] = best[candidates[c]]
    return x[start:].tolist()


def _everywhere(denoiser, x):
    ones = torch.ones(1, len(x), dtype=torch.bool)
    return denoiser.logits(x[None], ones, ones).clone()
