"""`vrpo.generate`: semi-autoregressive remasking, as in the official LLaDA sampler, and faster ways to write the same.

The response starts as mask tokens. Blocks are written left to right; each step proposes a token for every hidden
position and keeps the most confident ones, an equal quota per step or all above a threshold.

What does not live here: one step (flight.py), arithmetic on logits (select.py), padding (canvas.py), text (text.py),
loading a model (models/). Decoding only reads a model: put it in evaluation mode before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from vrpo.decoding.calls import LogitDenoiser
from vrpo.decoding.flight import Flight, Pilot
from vrpo.decoding.sampling import Sampling
from vrpo.decoding.text import answer_text, prompt_ids


@dataclass(frozen=True)
class Generation:
    """One decoded response.

    `ids` has exactly `max_new_tokens` tokens, end tokens and what follows them included. It can hold mask tokens: where
    the model's best token was the mask token, the slot was spent on it. `text` is the part before the first end token,
    None without a tokenizer. `nfe`: the model calls that carried the row, each counted as 1, whether it carried the row
    twice (guidance) or a few of its columns (a cache). `written`: which call wrote each position, from 1 (0: none, see
    `stop_at_end`), and `confidence` the confidence of its token then.
    """

    prompt_ids: list[int]
    ids: list[int]
    text: str | None
    nfe: int
    written: list[int]
    confidence: list[float] = field(compare=False)  # moves with the rows beside it, in the last digits


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
    threshold: float | None = None,
    cache: str = "none",
    refresh: int | None = None,
    stop_at_end: bool = False,
    generator: torch.Generator | None = None,
    first_row: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
    on_step: Callable[[Flight], None] | None = None,
) -> list[Generation]:
    """Answer each prompt by semi-autoregressive remasking (LLaDA, arXiv 2502.09992); outputs in the prompts' order.

    By default reproduces the token ids of the official sampler. Rows that are done leave, and prompts that wait take
    their places, longest first, padded on the left; a row's result does not depend on the rows beside it, up to the
    4e-7 by which padding moves float32 logits. With randomness, row i has its own stream, seeded from one draw of
    `generator` and i, hence the same property.

    Args:
        prompts: strings (tokenised without special tokens), lists of token ids, or lists of messages (rendered with the
            chat template and a generation header).
        block_size: tokens per block, dividing max_new_tokens; None = max_new_tokens, one block. Of a block diffusion
            model its own, counted from the first token of the prompt, so that first and last block may be shorter.
        steps: model calls per row, a multiple of the number of blocks; None = max_new_tokens, one token a step.
        temperature: 0 = argmax; otherwise Gumbel-max in float64.
        cfg_scale: unconditional + (cfg_scale + 1) * (conditional - unconditional); 0 = no guidance.
        remasking: which proposals of a step are kept: "low_confidence" the most probable, "margin" those furthest above
            the second best, "entropy" those of least entropy (the last two as in Dream's sampler), "random" any.
        logits_eos_inf: never propose end-of-sequence (end-of-turn is still proposed).
        confidence_eos_eot_inf: end tokens have confidence 0, not -inf: they are kept last, but can be kept. At
            temperature > 0 end-of-turn only, as in the official sampler.
        threshold: instead of `steps`: keep every proposal of at least this confidence, at least one a step (Fast-dLLM,
            arXiv 2505.22618). The mask token is never proposed then.
        cache: "prefix" or "dual": keys and values of earlier blocks, or of all other blocks, are computed when a block
            begins and kept (Fast-dLLM). Approximate; the mask token is never proposed then.
        refresh: compute them again after so many steps in a block; None = at its beginning only.
        stop_at_end: a row is done once all before its first end token is written; the rest becomes end-of-sequence. Its
            text is the same.
        generator: on any device; needed for temperature > 0 and for remasking "random".
        first_row: number of the first prompt, where the prompts are part of more: row i's stream is that of this + i.
        batch_size: rows per model call; None = all of them.
        progress: None = a bar on a terminal once ten seconds have passed.
        on_step: called with the rows in flight after every step, to look at.

    Raises:
        ValueError: naming the argument, or the prompt; also where the model's logits for it are not numbers.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    sampling = Sampling.of(
        max_new_tokens,
        denoiser.block_size if block_size is None else block_size,
        steps,
        temperature=temperature,
        cfg_scale=cfg_scale,
        remasking=remasking,
        logits_eos_inf=logits_eos_inf,
        confidence_eos_eot_inf=confidence_eos_eot_inf,
        threshold=threshold,
        cache=cache,
        refresh=refresh,
        stop_at_end=stop_at_end,
    )
    pilot = Pilot.of(denoiser, sampling)
    rows = prompt_ids(denoiser.tokenizer, prompts, denoiser.mask_id)
    generators = row_generators(sampling, generator, len(rows), denoiser.device, first_row)
    ends = {denoiser.eos_id} if denoiser.eot_id is None else {denoiser.eos_id, denoiser.eot_id}
    found: dict[int, Generation] = {}
    with _bar(len(rows) * max_new_tokens, progress) as bar:
        for flight, done in pilot.fly(rows, batch_size or max(len(rows), 1), generators):
            if on_step is not None:
                on_step(flight)
            leaving = done.nonzero()[:, 0].tolist()
            for at in leaving:
                row = flight.row[at]
                ids = flight.canvas.response[at].tolist()
                text = answer_text(denoiser.tokenizer, ids, ends)
                written, confidence = flight.written[at].tolist(), flight.confidence[at].tolist()
                found[row] = Generation(rows[row], ids, text, int(flight.calls[at]), written, confidence)
            bar.n = len(found) * max_new_tokens + int((flight.written[~done] > 0).sum())
            bar.update(0)
    return [found[row] for row in range(len(rows))]


def row_generators(
    sampling: Sampling, generator: torch.Generator | None, count: int, device: torch.device, first: int = 0
) -> list[torch.Generator | None]:
    """A stream per row on the model's device, seeded by its index and one draw of `generator`; None if not random."""
    if not sampling.random:
        return [None] * count
    if generator is None:
        raise ValueError("generator is needed for temperature > 0 and for remasking 'random': pass a torch.Generator")
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return [torch.Generator(device).manual_seed(seed + first + row) for row in range(count)]


def _bar(total: int, progress: bool | None) -> Any:
    """tqdm's None means: only on a terminal."""
    disable = None if progress is None else not progress
    return tqdm(total=total, desc="generate", unit="token", disable=disable, delay=0 if progress else 10)
