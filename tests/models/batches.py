"""Calls of a model to test with, and a model whose answers are known."""

import re

import torch
from torch import Tensor

from tests.build import Row
from tests.models.families import Family
from vrpo.draws import FixedCount
from vrpo.models.hf import HFDenoiser
from vrpo.types import Pairs, Tokens

ROWS = [
    Row((15, 19, 30), tuple(range(40, 50)), 1),
    Row((17,), tuple(range(60, 66)), 2),
    Row((), tuple(range(70, 77)), 3),
]


def batch(tokens: Tokens) -> dict[str, Tensor]:
    """One draw of every row, as the estimator would call the model."""
    draws = FixedCount(1)(tokens)
    masked, scored = draws.masked[:, 0], draws.scored[:, 0]
    return {"input_ids": tokens.ids, "attention_mask": tokens.attention, "masked": masked, "scored": scored}


def at(length: int, *columns: int) -> Tensor:
    found = torch.zeros(1, length, dtype=torch.bool)
    found[0, list(columns)] = True
    return found


def one_row(length: int = 12, first: int = 15) -> dict[str, Tensor]:
    """A row of consecutive tokens with nothing hidden, all of it scored."""
    ids = torch.arange(first, first + length)[None]
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    return {"input_ids": ids, "attention_mask": everywhere, "masked": ~everywhere, "scored": everywhere}


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=tolerance, atol=tolerance, msg=name)


def pair(tokens: Tokens) -> Pairs:
    return Pairs(torch.tensor([0]), torch.tensor([1]), tokens.length)


@torch.no_grad()
def confident(family: Family) -> HFDenoiser:
    """A model whose layers add nothing and whose head answers a token with itself, or if logits are shifted with the
    next number; the mask token with all tokens alike."""
    denoiser = family.fresh(torch.float64)
    module = denoiser.module
    silenced = [p for name, p in module.named_parameters() if re.search(r"\.(o_proj|down_proj|dense)(\.|$)", name)]
    assert len(silenced) >= 2 * len(module.model.layers)
    for parameter in silenced:
        parameter.zero_()
    embedding = module.get_input_embeddings().weight
    says = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    says /= says.norm(dim=-1, keepdim=True)
    says[denoiser.mask_id] = 0
    embedding.copy_(says)
    module.model.norm.weight.fill_(1)
    module.lm_head.weight = torch.nn.Parameter(50 * says.roll(int(family.shift), 0))
    module.lm_head.weight[denoiser.mask_id] = 0
    return denoiser
