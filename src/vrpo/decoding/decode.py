"""`vrpo.generate`: semi-autoregressive low-confidence remasking, as in the official LLaDA sampler.

The response starts as mask tokens. Blocks are written left to right; each step proposes a token for every hidden
position and keeps the most confident ones, an equal quota per step.

What does not live here: arithmetic on logits (select.py), padding (canvas.py), text (text.py), loading a model
(models/). Decoding only reads a model: put it in evaluation mode before.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from vrpo.decoding.canvas import Canvas, blank
from vrpo.decoding.select import Proposer, guided, most_confident, quotas
from vrpo.decoding.text import answer_text, prompt_ids


@runtime_checkable
class LogitDenoiser(Protocol):
    """What decoding needs of a model: logits at wanted positions of ids that contain mask tokens, and its ids.

    `logits` attends to `attention_mask` (True = real token) in both directions and answers row-major, at least in
    float32. Not to be confused with `types.Denoiser`, which is given the tokens and hides them itself.
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
    def device(self) -> torch.device: ...

    def logits(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"], wanted: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "S V"]: ...


@dataclass(frozen=True)
class Generation:
    """One decoded response.

    `ids` has exactly `max_new_tokens` tokens, end tokens and what follows them included. It can hold mask tokens: where
    the model's best token was the mask token, the slot was spent on it. `text` is the part before the first end token,
    None without a tokenizer. `nfe`: model calls (with guidance a call carries the row twice).
    """

    prompt_ids: list[int]
    ids: list[int]
    text: str | None
    nfe: int


@dataclass(frozen=True)
class Sampling:
    """The arguments of `generate` that say how a canvas is written, checked."""

    max_new_tokens: int
    block_size: int
    steps: int
    temperature: float
    cfg_scale: float
    remasking: str
    logits_eos_inf: bool
    confidence_eos_eot_inf: bool

    def __post_init__(self) -> None:
        for name, value in (("max_new_tokens", self.max_new_tokens), ("block_size", self.block_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.max_new_tokens % self.block_size:
            raise ValueError(f"block_size {self.block_size} does not divide max_new_tokens {self.max_new_tokens}")
        if self.steps % self.num_blocks or not 1 <= self.steps <= self.max_new_tokens:
            raise ValueError(
                f"steps must be a multiple of the {self.num_blocks} block(s), at least 1 and at most max_new_tokens "
                f"{self.max_new_tokens} (every step writes a token), not {self.steps}"
            )
        for name, number in (("temperature", self.temperature), ("cfg_scale", self.cfg_scale)):
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, not {number}")
        if self.remasking not in ("low_confidence", "random"):
            raise ValueError(f"remasking must be 'low_confidence' or 'random', not {self.remasking!r}")

    @property
    def num_blocks(self) -> int:
        return self.max_new_tokens // self.block_size

    @property
    def random(self) -> bool:
        return self.temperature > 0 or self.remasking == "random"

    def proposer(self, eos_id: int, eot_id: int | None) -> Proposer:
        """The rule of one step.

        The official code demotes both end tokens at temperature 0, and just end-of-turn at temperature > 0, where it
        edits a copy of the logits for end-of-sequence; reproduced, because published numbers rest on it.
        """
        turn = () if eot_id is None else (eot_id,)
        ends = turn if self.temperature > 0 else (eos_id, *turn)
        if self.confidence_eos_eot_inf and not ends:
            raise ValueError(
                "confidence_eos_eot_inf at temperature > 0 demotes only the end-of-turn token (as the official "
                "sampler does), and this denoiser has none: eot_id is None"
            )
        return Proposer(
            self.temperature,
            self.remasking == "random",
            banned=(eos_id,) if self.logits_eos_inf else (),
            demoted=ends if self.confidence_eos_eot_inf else (),
        )


def generate(
    denoiser: LogitDenoiser,
    prompts: Sequence[Any],
    *,
    max_new_tokens: int = 128,
    block_size: int | None = None,
    steps: int | None = None,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> list[Generation]:
    """Answer each prompt by semi-autoregressive remasking (LLaDA, arXiv 2502.09992); outputs in the prompts' order.

    Reproduces the token ids of the official sampler. Batches are formed by length and padded on the left; a row's
    result does not depend on its batch, up to the 4e-7 by which padding moves float32 logits. With randomness, row i
    has its own stream, seeded from one draw of `generator` and i, hence the same property.

    Args:
        prompts: strings (tokenised without special tokens), lists of token ids, or lists of messages (rendered with the
            chat template and a generation header).
        block_size: tokens per block, dividing max_new_tokens; None = max_new_tokens, one block.
        steps: model calls per row, a multiple of the number of blocks; None = max_new_tokens, one token a step.
        temperature: 0 = argmax; otherwise Gumbel-max in float64.
        cfg_scale: unconditional + (cfg_scale + 1) * (conditional - unconditional); 0 = no guidance.
        remasking: "low_confidence" keeps the most probable proposals of a step, "random" any.
        logits_eos_inf: never propose end-of-sequence (end-of-turn is still proposed).
        confidence_eos_eot_inf: end tokens have confidence 0, not -inf: they are kept last, but can be kept. At
            temperature > 0 end-of-turn only, as in the official sampler.
        generator: on any device; needed for temperature > 0 and for remasking "random".
        batch_size: prompts per model call; None = all of them.
        progress: None = a bar on a terminal once ten seconds have passed.

    Raises:
        ValueError: naming the argument, or the prompt.
    """
    sampling = Sampling(
        max_new_tokens,
        max_new_tokens if block_size is None else block_size,
        max_new_tokens if steps is None else steps,
        temperature,
        cfg_scale,
        remasking,
        logits_eos_inf,
        confidence_eos_eot_inf,
    )
    rows = prompt_ids(denoiser.tokenizer, prompts, denoiser.mask_id)
    generators = row_generators(sampling, generator, len(rows), denoiser.device)
    responses: dict[int, list[int]] = {}
    batches = _batches(rows, batch_size)
    with _bar(len(batches) * sampling.steps, progress) as bar:
        for batch in batches:
            answers = _answers(
                denoiser, [rows[row] for row in batch], sampling, [generators[row] for row in batch], bar
            )
            responses.update(zip(batch, answers, strict=True))
    ends = {denoiser.eos_id} if denoiser.eot_id is None else {denoiser.eos_id, denoiser.eot_id}
    return [
        Generation(prompt, responses[row], answer_text(denoiser.tokenizer, responses[row], ends), sampling.steps)
        for row, prompt in enumerate(rows)
    ]


def unmask(
    denoiser: LogitDenoiser, canvas: Canvas, sampling: Sampling, generators: Sequence[torch.Generator | None]
) -> Iterator[Canvas]:
    """Write a blank canvas, block by block; yields the canvas after each step (one model call each)."""
    propose = sampling.proposer(denoiser.eos_id, denoiser.eot_id)
    for block in range(sampling.num_blocks):
        for quota in quotas(sampling.block_size, sampling.steps // sampling.num_blocks):
            canvas = _step(
                denoiser, canvas, (block + 1) * sampling.block_size, quota, propose, sampling.cfg_scale, generators
            )
            yield canvas


def row_generators(
    sampling: Sampling, generator: torch.Generator | None, count: int, device: torch.device
) -> list[torch.Generator | None]:
    """A stream per row on the model's device, seeded by its index and one draw of `generator`; None if not random."""
    if not sampling.random:
        return [None] * count
    if generator is None:
        raise ValueError("generator is needed for temperature > 0 and for remasking 'random': pass a torch.Generator")
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return [torch.Generator(device).manual_seed(seed + row) for row in range(count)]


@torch.no_grad()
def _step(
    denoiser: LogitDenoiser,
    canvas: Canvas,
    length: int,
    quota: int,
    propose: Proposer,
    cfg_scale: float,
    generators: Sequence[torch.Generator | None],
) -> Canvas:
    """Write `quota` tokens of each row among the hidden ones of the first `length` response positions.

    Positions of earlier blocks that still hold the mask token compete again. Proposals are made row by row, so that
    noise is the row's own and float64 copies stay small.
    """
    hidden = canvas.hidden(length)
    logits = _logits(denoiser, canvas, hidden, cfg_scale)
    rows = zip(logits.split(hidden.sum(-1).tolist()), generators, strict=True)
    tokens, confidences = zip(*(propose(piece, generator) for piece, generator in rows), strict=True)
    confidence = torch.full(hidden.shape, -torch.inf, dtype=torch.float64, device=hidden.device)
    confidence[hidden] = torch.cat(confidences)
    proposal = canvas.ids.masked_scatter(hidden, torch.cat(tokens))
    kept = most_confident(confidence, quota)
    return canvas.write(kept, proposal.gather(1, kept))


def _logits(
    denoiser: LogitDenoiser, canvas: Canvas, wanted: Bool[Tensor, "B L"], cfg_scale: float
) -> Float[Tensor, "S V"]:
    """Logits at the wanted positions; with guidance, of both halves in one call."""
    if cfg_scale == 0:
        return denoiser.logits(canvas.ids, canvas.attention, wanted)
    both = torch.cat((canvas.ids, canvas.without_prompt().ids))
    conditional, unconditional = denoiser.logits(both, canvas.attention.repeat(2, 1), wanted.repeat(2, 1)).chunk(2)
    return guided(conditional, unconditional, cfg_scale)


def _answers(
    denoiser: LogitDenoiser,
    prompts: list[list[int]],
    sampling: Sampling,
    generators: list[torch.Generator | None],
    bar: Any,
) -> list[list[int]]:
    """Response ids of one batch."""
    canvas = blank(prompts, sampling.max_new_tokens, denoiser.mask_id, denoiser.pad_id, denoiser.device)
    for written in unmask(denoiser, canvas, sampling, generators):
        canvas = written
        bar.update()
    return canvas.response.tolist()


def _batches(rows: list[list[int]], batch_size: int | None) -> list[list[int]]:
    """Row indices, longest prompt first, so that rows of a batch are alike and lack of memory shows at once."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    size = len(rows) if batch_size is None else batch_size
    return [order[first : first + size] for first in range(0, len(rows), max(size, 1))]


def _bar(total: int, progress: bool | None) -> Any:
    """tqdm's None means: only on a terminal."""
    disable = None if progress is None else not progress
    return tqdm(total=total, desc="generate", unit="step", disable=disable, delay=0 if progress else 10)
