"""Is what a GPU computes right? Logits against the official code's, and gradients against float64 on the same GPU.

float32 is compared with TF32 off. Nothing here is timed.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cost import Shape
from gpu_families import GOLDEN, Family
from safetensors.torch import load_file
from step import random_module
from torch import Tensor
from torch._dynamo.utils import counters

import vrpo

LOGITS, GRADIENT, BF16 = 1e-5, 1e-4, 0.1  # most that float32 logits, float32 and bf16 gradients may be off
ROWS = ((700, 130, 257, 64, 500), (300, 200, 90), (128, 800))  # one call each: three lengths of a pack


def golden_rows(family: Family, device: torch.device, attentions: list[str]) -> Iterator[dict[str, Any]]:
    """Largest difference of logits from those of the official code (float32, CPU), padded on the left or not at all."""
    for folder, honoured, mask in family.golden:
        for attention in attentions:
            row = {"check": f"logits of {folder}", "family": family.name, "attention": attention}
            try:
                off = logits_off(GOLDEN / folder, honoured, mask, device, attention)
                yield row | {"off": off, "most": LOGITS, "ok": off <= LOGITS}
            except Exception as error:  # whatever it is, the other rows may still be had
                yield row | {"failed": problem(error)}


def logits_off(folder: Path, honoured: str, mask: int | None, device: torch.device, attention: str) -> float:
    stored = load_file(folder / "golden.safetensors")
    denoiser = vrpo.load(folder, dtype=torch.float32, device=device, attn_implementation=attention, mask_token_id=mask)
    off = 0.0
    for prefix, logits in (("", "logits"), ("left_", honoured)):
        ids = stored[f"{prefix}input_ids"].long()
        on = stored[f"{prefix}attention_mask"].bool() if prefix else torch.ones_like(ids, dtype=torch.bool)
        with torch.no_grad():
            found = denoiser.logits(ids.to(device), on.to(device), on.to(device)).cpu()
        expected = aligned(stored[logits], on, denoiser.module.config.shift_logits)[on]
        off = max(off, float(((found - expected).abs() / (1 + expected.abs())).max()))
    return off


def aligned(logits: Tensor, on: Tensor, shifted: bool) -> Tensor:
    """Logits at the position they are about: the one before, or of a row's first token its own."""
    if not shifted:
        return logits
    before = on.roll(1, 1)
    before[:, 0] = False
    return torch.where(before[..., None], logits.roll(1, 1), logits)


def problem(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().split(chr(10))[0][:300]}"


def gradient_rows(
    family: Family, device: torch.device, attentions: list[str], *, width: int, shorter: int
) -> Iterator[dict[str, Any]]:
    """Gradient of a weighted sum of log-probabilities, of rows of many lengths, against each row alone in float64.

    Rectangles with padding for sdpa, one sequence without padding for flex_attention; then the same in bf16.
    """
    shape = family.tiny(width)
    wide = made(family, shape, "sdpa", "eager", device, torch.float64)
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))  # the same weights in every dtype
    calls = [inputs([each // shorter for each in row], shape.vocabulary, device) for row in ROWS]
    true = [gradient(wide, [alone(call, i) for i in range(len(call["input_ids"]))]) for call in calls]
    ways = [(attention, "eager") for attention in attentions]
    for attention, experts in [*ways, ("sdpa", "grouped_mm")] if shape.experts else ways:
        for dtype in (torch.float32, torch.bfloat16):
            row = {"check": "gradient against float64", "family": family.name, "attention": attention}
            row |= {"dtype": str(dtype).removeprefix("torch."), "experts": experts if shape.experts else None}
            start = time.perf_counter()
            try:
                module = made(family, shape, attention, experts, device, dtype)
                module.load_state_dict(wide.state_dict())
                row |= judged(max(distance(gradient(module, [c]), e) for c, e in zip(calls, true, strict=True)), row)
            except Exception as error:  # whatever it is, the other rows may still be had
                row |= {"failed": problem(error)}
            yield row | {"seconds": time.perf_counter() - start, "graphs": counters["stats"]["unique_graphs"]}


def made(family: Family, shape: Shape, attention: str, experts: str, device: torch.device, dtype: torch.dtype) -> Any:
    module = random_module(family.module, family.config(shape, attention), device, dtype).train()
    choose(module, experts)
    return module


def judged(off: float, row: dict[str, Any]) -> dict[str, Any]:
    """In bf16 a router near a tie takes other experts: nothing is said of that."""
    if row["dtype"] == "bfloat16" and row["experts"] is not None:
        return {"off": off, "most": None, "ok": None}
    most = GRADIENT if row["dtype"] == "float32" else BF16
    return {"off": off, "most": most, "ok": off <= most}


def choose(module: Any, experts: str) -> None:
    """What transformers' `set_experts_implementation` does, for classes in whose file it looks for experts in vain."""
    module.config._experts_implementation = experts


def inputs(lengths: list[int], vocabulary: int, device: torch.device) -> dict[str, Tensor]:
    """Random rows of these lengths, every other one padded on the left; a third of the tokens hidden and scored."""
    generator, width = torch.Generator().manual_seed(sum(lengths)), max(lengths)
    place = torch.arange(width).expand(len(lengths), -1)
    length = torch.tensor(lengths)[:, None]
    left = torch.arange(len(lengths))[:, None] % 2 == 1
    on = torch.where(left, place >= width - length, place < length)
    ids = torch.randint(vocabulary - 2, on.shape, generator=generator)
    hidden = on & (torch.rand(on.shape, generator=generator) < 1 / 3)
    weight = torch.rand(on.shape, generator=generator).double() * hidden
    made = {"input_ids": ids, "attention_mask": on, "masked": hidden, "scored": hidden, "weight": weight}
    return {name: each.to(device) for name, each in made.items()}


def alone(call: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """One row of a call, without its padding."""
    on = call["attention_mask"][number]
    return {name: each[number, on][None] for name, each in call.items()}


def gradient(module: Any, calls: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of sum w log p over these calls, by parameter, in float64."""
    module.zero_grad(set_to_none=True)
    for call in calls:
        weight = call["weight"][call["scored"]]
        logp = module(**{name: each for name, each in call.items() if name != "weight"})
        (weight * logp.double()).sum().backward()
    return {name: each.grad.double() for name, each in module.named_parameters()}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """||found - expected|| / ||expected|| over all parameters."""
    assert found.keys() == expected.keys()
    square = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return math.sqrt(square / sum(float(each.square().sum()) for each in expected.values()))
