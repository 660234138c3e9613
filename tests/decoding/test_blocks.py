"""Block diffusion models write their own blocks: the published samplers' token ids, and a cache that is exact."""

from itertools import product
from pathlib import Path

import pytest
import torch

import vrpo
from tests.models.test_block import FAMILIES, a_model
from vrpo.decoding.flight import Flight
from vrpo.evals.likelihood import Request, written_greedily
from vrpo.models.hf import HFDenoiser

PROMPTS = [[5, 9, 33, 7], [11], [10, 31, 12, 13, 14, 15], [1, 2, 3], [20, 21, 22, 23, 24, 25, 26, 27]]
WAYS = [{"steps": 12}, {"steps": 6}, {"threshold": 0.012}]


@pytest.fixture(scope="module")
def wide(golden: Path) -> HFDenoiser:
    return a_model(golden, "sdar", dtype=torch.float64)


@torch.no_grad()
def published(
    denoiser: HFDenoiser, prompt: list[int], length: int, steps: int = 12, threshold: float = 2.0
) -> tuple[list[int], int]:
    """Response ids and calls, as in SDAR's block_diffusion_generate and LLaDA2's generate, at temperature 0: a block is
    full after so many steps, each writing a share of it, or all above the threshold if those are more. A last block
    that is not full is cut, where they write it to its end and cut then."""
    size = denoiser.block_size
    x, calls = torch.tensor(prompt + [denoiser.mask_id] * length), 0
    per_block = steps * size // length
    shares = [size // per_block + (step < size % per_block) for step in range(per_block)]
    for block in range(len(prompt) // size, -(-len(x) // size)):
        own = slice(block * size, min((block + 1) * size, len(x)))
        for share in shares:
            hidden = x[own] == denoiser.mask_id
            if not hidden.any():
                break
            calls += 1
            probability, token = plain_logits(denoiser, x[: own.stop])[own].softmax(-1).max(-1)
            assert not (token[hidden] == denoiser.mask_id).any()
            confidence = torch.where(hidden, probability, -torch.inf)
            sure = confidence > threshold
            if int(sure.sum()) < share:
                sure = torch.zeros_like(hidden)
                sure[confidence.topk(min(share, int(hidden.sum()))).indices] = True
            x[own] = torch.where(sure, token, x[own])
    return x[len(prompt) :].tolist(), calls


def plain_logits(denoiser: HFDenoiser, ids: torch.Tensor) -> torch.Tensor:
    """One pass of the backbone over a row, under a mask written out."""
    sees = torch.full((1, 1, len(ids), len(ids)), torch.finfo(denoiser.module.dtype).min, dtype=denoiser.module.dtype)
    for query, key in product(range(len(ids)), repeat=2):
        if key // denoiser.block_size <= query // denoiser.block_size:
            sees[0, 0, query, key] = 0
    return denoiser.module.lm_head(denoiser.module.model(ids[None], attention_mask=sees, use_cache=False)[0][0])


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("way", WAYS)
def test_the_published_samplers_token_ids(wide: HFDenoiser, way: dict[str, float], batch_size: int | None) -> None:
    """Prompts that end anywhere in a block, rows beside each other. Kills: blocks counted from the response, a first
    block that is waited for, a share of another step, blocks to come seen."""
    found = vrpo.generate(wide, PROMPTS, max_new_tokens=12, batch_size=batch_size, **way)
    expected = [published(wide, prompt, 12, **way) for prompt in PROMPTS]
    assert [(row.ids, row.nfe) for row in found] == expected
    if "threshold" in way:
        assert min(row.nfe for row in found) < 12
    if way == {"steps": 12}:
        assert {row.nfe for row in found} == {12}
    if way == {"steps": 6}:
        assert [row.nfe for row in found] == [6, 7, 6, 7, 6]  # a block of one token, and one of three, take a call more


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_what_its_sampler_writes(golden: Path, family: str) -> None:
    denoiser = a_model(golden, family)
    found = vrpo.generate(denoiser, PROMPTS[:3], max_new_tokens=8)
    assert [row.ids for row in found] == [published(denoiser, prompt, 8, steps=8)[0] for prompt in PROMPTS[:3]]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("way", [*WAYS, {"steps": 12, "cfg_scale": 0.7}])
def test_a_cache_changes_nothing(wide: HFDenoiser, way: dict[str, float], batch_size: int | None, cache: str) -> None:
    """What is before a block is written, and what is behind it not seen: the text, and confidences to rounding.

    Kills: keys and values computed with later blocks in sight; a first or last block of another length; stale columns.
    """
    given = {"max_new_tokens": 12, "batch_size": batch_size, **way}
    plain, cached = vrpo.generate(wide, PROMPTS, **given), vrpo.generate(wide, PROMPTS, **given, cache=cache)
    assert [(row.ids, row.written) for row in cached] == [(row.ids, row.written) for row in plain]
    for one, other in zip(cached, plain, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-9)


def test_a_canvas_shorter_than_a_block(wide: HFDenoiser, golden: Path) -> None:
    """With a cache too: there are fewer columns than a block has. Kills: columns before the first."""
    big = a_model(golden, "sdar", dtype=torch.float64)
    big.module.config.block_size = 16
    for cache in ("none", "dual", "prefix"):
        found = vrpo.generate(big, [[5], [7, 9, 3]], max_new_tokens=16, threshold=0.012, cache=cache)
        assert all(len(row.ids) == 16 for row in found)
    assert vrpo.generate(wide, [[]], max_new_tokens=4, cache="dual")[0].nfe == 4


def test_a_call_sees_no_later_block(wide: HFDenoiser) -> None:
    """Of a row of 20 only the blocks up to the one that is written are run. Kills: the whole canvas in every call."""
    widths: list[int] = []
    hook = wide.module.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(args[0].shape[1]), with_kwargs=True
    )
    vrpo.generate(wide, PROMPTS[4:], max_new_tokens=12)
    hook.remove()
    assert widths == [12] * 4 + [16] * 4 + [20] * 4


def test_the_mask_token_is_never_written(golden: Path) -> None:
    """A block is left when it is full, so a slot spent on the mask token would stay empty."""
    denoiser = a_model(golden, "sdar")
    with torch.no_grad():
        denoiser.module.lm_head.weight[denoiser.mask_id] *= 40
    found = vrpo.generate(denoiser, PROMPTS, max_new_tokens=8)
    assert all(denoiser.mask_id not in row.ids for row in found)


def test_another_block_is_refused(wide: HFDenoiser) -> None:
    with pytest.raises(ValueError, match="writes blocks of 4 tokens"):
        vrpo.generate(wide, PROMPTS, max_new_tokens=8, block_size=8)
    assert vrpo.generate(wide, PROMPTS, max_new_tokens=8, block_size=4) == vrpo.generate(
        wide, PROMPTS, max_new_tokens=8
    )


def test_steps_can_be_watched(wide: HFDenoiser) -> None:
    """Blocks of a row are left one after the other, the first when its few tokens are written."""
    blocks: list[list[int]] = []

    def look(flight: Flight) -> None:
        blocks.append(flight.block.tolist())

    vrpo.generate(wide, [[1, 2, 3], [4, 5, 6, 7]], max_new_tokens=4, on_step=look)
    assert blocks == [[0, 1], [0, 1], [0, 1], [1, 2]]  # the longer prompt is the first row


def test_greedy_continuations(wide: HFDenoiser) -> None:
    """A continuation is what decoding writes, or not, whatever its length. Kills: one block as long as the
    continuation."""
    texts = [published(wide, prompt, length, steps=length)[0] for prompt in PROMPTS[:2] for length in (4, 8)]
    requests = [Request(PROMPTS[at // 2], text, at) for at, text in enumerate(texts)]
    requests += [Request(PROMPTS[1], texts[3][:-1], 5), Request(PROMPTS[0], [*texts[0][:-1], 77], 6)]
    right = written_greedily(wide, requests, batch_size=2)
    assert right[:4] == [True] * 4
    assert right[5] is False
