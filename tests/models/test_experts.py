"""Implementations of experts: the same values and gradients, whatever the sizes and precisions."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from tests.loops import each
from tests.moe import tiny_moe
from vrpo.models import experts as implementations

WORDS, USED, CHOICES = 9, 5, 3


def layer(dtype: torch.dtype, *, width: int = 16) -> Any:
    config = Qwen3MoeConfig(hidden_size=width, moe_intermediate_size=width, num_experts=7, num_experts_per_tok=CHOICES)
    config._experts_implementation = "eager"
    made = Qwen3MoeExperts(config)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return made.to(dtype)


def inputs(dtype: torch.dtype, *, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Two of the seven experts get no token."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(WORDS, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight, chosen = torch.rand(WORDS, USED, generator=generator, dtype=torch.float64).topk(CHOICES, -1)
    return hidden, 2 * chosen % 7, weight.to(dtype).requires_grad_()


def computed(made: Any, name: str, dtype: torch.dtype, *, width: int = 16) -> dict[str, Tensor]:
    """Output and all gradients, in float64."""
    hidden, chosen, weight = inputs(dtype, width=width)
    made.config._experts_implementation = name
    made.zero_grad()
    output = made(hidden, chosen, weight)
    (output * torch.arange(width)).sum().backward()
    grads = {"hidden": hidden.grad, "weight": weight.grad, **{name: p.grad for name, p in made.named_parameters()}}
    assert all(gradient is not None for gradient in grads.values())
    return {name: value.detach().double() for name, value in ({"output": output} | grads).items()}


@each("name", ["auto", "batched_mm"])
@each("width", [16, 6])
def test_values_and_gradients_in_float64(name: str, width: int) -> None:
    """Kills: tokens given back in the order of experts, a weight of another token, an expert without tokens skipped in
    the numbering."""
    made = layer(torch.float64, width=width)
    expected = computed(made, "eager", torch.float64, width=width)
    for key, value in computed(made, name, torch.float64, width=width).items():
        torch.testing.assert_close(value, expected[key], atol=1e-12, rtol=1e-12, msg=key)


@each("name", ["auto", "batched_mm", "grouped_mm"])
@each("checkpointed", [False, True])
def test_values_and_gradients_in_float32(name: str, checkpointed: bool) -> None:
    """`auto` runs torch's grouped product here. Kills: offsets off by one, the weights not transposed."""
    made = layer(torch.float32)
    expected = computed(made, "eager", torch.float32)
    if checkpointed:
        whole = made.forward
        made.forward = lambda *given: torch.utils.checkpoint.checkpoint(whole, *given, use_reentrant=False)
    for key, value in computed(made, name, torch.float32).items():
        torch.testing.assert_close(value, expected[key], atol=2e-4, rtol=2e-5, msg=key)


def test_grouped_product_is_used_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: a silent fallback to one expert after the other; a call that torch refuses, of rows of 24 bytes."""
    calls: list[torch.dtype] = []
    grouped = implementations._GROUPED_MM
    if grouped is None:
        pytest.skip("torch has no grouped_mm before 2.10")
    monkeypatch.setattr(
        implementations,
        "_GROUPED_MM",
        lambda *given, **named: (calls.append(given[1].dtype), grouped(*given, **named))[1],
    )
    computed(layer(torch.float32), "auto", torch.float32)
    assert calls == [torch.float32] * 2
    computed(layer(torch.float32, width=6), "auto", torch.float32, width=6)
    computed(layer(torch.float64), "auto", torch.float64)
    assert len(calls) == 2
    with torch.autocast("cpu", torch.bfloat16):
        computed(layer(torch.float32), "auto", torch.float32)
    assert calls[2:] == [torch.bfloat16] * 2


@each("name", ["auto", "eager", "batched_mm", "grouped_mm"])
def test_autocast(name: str) -> None:
    """float32 weights under bfloat16 autocast: float32 gradients, values to bfloat16's precision. Kills: a product of
    two dtypes, which torch refuses."""
    made = layer(torch.float32)
    expected = computed(made, "eager", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = computed(made, name, torch.float32)
    assert all(parameter.grad.dtype == torch.float32 for parameter in made.parameters())
    for key, value in found.items():
        assert (value - expected[key]).norm() < 0.02 * expected[key].norm(), key


@each("name", ["auto", "grouped_mm", "batched_mm"])
def test_whole_model_checkpointed(name: str) -> None:
    """Gradient checkpointing changes no gradient, and equals the eager loop. Kills: routing that differs when a layer
    runs again."""
    gradients = []
    for experts, checkpointed in (("eager", False), (name, False), (name, True)):
        module = tiny_moe(torch.float32).module
        module.config._experts_implementation = experts
        if checkpointed:
            module.gradient_checkpointing_enable({"use_reentrant": False})
            module.train()
        ids = torch.arange(24).view(2, 12) + 10
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        module(ids, everywhere, ids % 3 == 0, ids % 3 == 0).sum().backward()
        gradients.append({key: p.grad for key, p in module.named_parameters()})
    for key, value in gradients[0].items():
        scale = float(value.abs().max())
        torch.testing.assert_close(gradients[1][key], value, atol=1e-4 * scale, rtol=1e-4, msg=key)
        assert torch.equal(gradients[2][key], gradients[1][key]), key
