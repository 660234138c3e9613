"""Decoding where the logits of a position are the next token's: Dream, whose sampler shifts what the model gives."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import vrpo
from tests.conftest import GOLDEN
from tests.decoding.oracle import oracle
from vrpo.models.hf import HFDenoiser

PROMPTS = [[5, 9, 33, 70, 2], [11], [100, 101, 102, 103, 104, 105, 106, 107]]


@pytest.fixture(scope="module")
def dream() -> HFDenoiser:
    return vrpo.load(GOLDEN / "dream", dtype=torch.float64)


@dataclass(frozen=True)
class ByHand:
    """The official sampler's way: all logits of one row without padding, then moved one position to the right."""

    loaded: HFDenoiser
    mask_id: int
    eos_id: int
    eot_id: int | None
    vocab: int

    def logits(self, input_ids: Tensor, attention_mask: Tensor, wanted: Tensor) -> Tensor:
        module: Any = self.loaded.module
        assert attention_mask.all()
        logits = module.lm_head(module.model(input_ids=input_ids, use_cache=False)[0])
        return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)[wanted]


@pytest.fixture(scope="module")
def by_hand(dream: HFDenoiser) -> ByHand:
    return ByHand(dream, dream.mask_id, dream.eos_id, dream.eot_id, dream.module.config.vocab_size)


@pytest.mark.parametrize(
    "way",
    [
        {"block_size": 8, "steps": 8},
        {"block_size": 8, "steps": 3},
        {"block_size": 4, "steps": 4},
        {"block_size": 4, "steps": 8, "cfg_scale": 0.7},
        {"block_size": 2, "steps": 4, "logits_eos_inf": True},
    ],
)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_ids_are_those_of_a_loop_that_shifts(
    dream: HFDenoiser, by_hand: ByHand, way: dict[str, Any], batch_size: int | None
) -> None:
    """Prompts of different lengths, padded on the left, against each alone. Kills: no shift, two shifts; the first
    position of a response said by itself or by a pad; a shift across rows."""
    found = vrpo.generate(dream, PROMPTS, max_new_tokens=8, **way, batch_size=batch_size)
    expected = [oracle(by_hand, prompt, max_new_tokens=8, **way) for prompt in PROMPTS]
    assert [row.ids for row in found] == expected
    assert len({tuple(row) for row in expected}) == len(PROMPTS)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("way", [{"threshold": 0.02}, {"steps": 8}, {"steps": 8, "cfg_scale": 0.7}])
def test_a_cache_computed_at_every_step_changes_nothing(dream: HFDenoiser, cache: str, way: dict[str, Any]) -> None:
    """Kills: another alignment with a cache. The mask token is never best here, which a cache would not write."""
    given = {"max_new_tokens": 8, "block_size": 4, **way}
    plain = vrpo.generate(dream, PROMPTS, **given)
    assert all(dream.mask_id not in row.ids for row in plain)
    assert vrpo.generate(dream, PROMPTS, **given, cache=cache, refresh=1) == plain


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@torch.no_grad()
def test_a_column_is_said_by_the_one_before_it_as_it_is_now(dream: HFDenoiser, cache: str) -> None:
    """Within a block by what was just computed, at its beginning by what was kept. Kills: kept hidden states within the
    block; those of another column at its beginning."""
    ids = torch.tensor([[5, 9, 33, 70, 2, 6, 7, 8, 21, 22]])
    everywhere, wanted = torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    wanted[0, 4:8] = True
    _, kept = dream.logits_and_columns(ids, everywhere, wanted)
    changed = ids.clone()
    changed[0, 5] = 99
    column = torch.arange(4, 8 if cache == "dual" else 10)[None]
    asked = wanted.gather(1, column)
    found = dream.logits_of_columns(changed.gather(1, column), column, everywhere, asked, kept)
    exact = dream.logits(changed, everywhere, wanted)
    before = dream.logits(ids, everywhere, wanted)
    near = [float((found[at] - exact[at]).abs().max()) for at in range(4)]
    far = [float((found[at] - before[at]).abs().max()) for at in range(4)]
    assert torch.allclose(found[0], before[0], atol=1e-9)  # said by column 3, which is kept
    assert near[2] < 0.6 * far[2]  # said by column 5, whose token has changed
