"""Is what a device computes right? Logits against the official code's, and gradients against float64 there.

float32 is compared with TF32 off. Nothing here is timed.
"""

import math
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import vrpo
from benchmarks.gpu_8b.step import random_module
from benchmarks.harness.study import Row, Run
from benchmarks.model_matrix.published import FAMILIES, GOLDEN, Family

LOGITS, GRADIENT, BF16 = 1e-5, 1e-4, 0.1  # most that float32 logits, float32 and bf16 gradients may be off
ROWS = ((700, 130, 257, 64, 500), (300, 200, 90), (128, 800))  # one call each: three lengths of a pack


def cases(run: Run) -> list[Row]:
    cuda = run.options.device.startswith("cuda")
    fused = ["sdpa", *(["flex_attention"] if cuda else [])]
    found: list[Row] = []
    for family in (each for each in FAMILIES if each.name in run.options.published):
        for folder, *_ in family.golden:
            found += [
                {"family": family.name, "check": f"logits of {folder}", "attention": a} for a in (*fused, "eager")
            ]
        ways = [(attention, "eager") for attention in fused]
        for attention, experts in [*ways, ("sdpa", "grouped_mm")] if family.shape.experts else ways:
            row = {"family": family.name, "check": "gradient against float64", "attention": attention}
            row |= {"experts": experts if family.shape.experts else None}
            found += [{**row, "dtype": dtype} for dtype in ("float32", "bfloat16")]
    return found


def measure(run: Run, case: Row) -> Row:
    family = next(each for each in FAMILIES if each.name == case["family"])
    torch._dynamo.reset()  # graphs of other head counts are not this family's
    if "dtype" not in case:
        golden = next(each for each in family.golden if case["check"].endswith(f" {each[0]}"))
        off, most = logits_off(*golden, torch.device(run.options.device), case["attention"]), LOGITS
    else:
        off, most = gradient_off(run, family, case), GRADIENT if case["dtype"] == "float32" else BF16
        if case["dtype"] == "bfloat16" and case["experts"] is not None:  # a router near a tie takes other experts
            return {"off": off, "most": None, "ok": None}
    return {"off": off, "most": most, "ok": off <= most}


def logits_off(folder: str, honoured: str, mask: int | None, device: torch.device, attention: str) -> float:
    """Largest difference of logits from those of the official code (float32, CPU), padded on the left or not at all."""
    stored = load_file(GOLDEN / folder / "golden.safetensors")
    fields = {"dtype": torch.float32, "attn_implementation": attention, "mask_token_id": mask}
    denoiser, off = vrpo.load(GOLDEN / folder, device=device, **fields), 0.0
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


def gradient_off(run: Run, family: Family, case: Row) -> float:
    """Of a weighted sum of log-probabilities, of rows of many lengths in one call, against each alone in float64."""
    wide, calls, true = truth(run, family.name)
    module = made(run, family, case["attention"], case["experts"] or "eager", getattr(torch, case["dtype"]))
    module.load_state_dict(wide.state_dict())
    return max(distance(gradient(module, [call]), each) for call, each in zip(calls, true, strict=True))


@cache
def truth(run: Run, name: str) -> tuple[Any, list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    family, shorter = next(each for each in FAMILIES if each.name == name), 16 if run.options.tiny else 1
    wide = made(run, family, "sdpa", "eager", torch.float64)
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))  # the same weights in every dtype
    calls = [inputs([each // shorter for each in row], wide.config.vocab_size, run.options.device) for row in ROWS]
    return wide, calls, [gradient(wide, [alone(call, i) for i in range(len(call["input_ids"]))]) for call in calls]


def made(run: Run, family: Family, attention: str, experts: str, dtype: torch.dtype) -> Any:
    shape = family.tiny(64 if run.options.tiny else 512)
    config, device = family.config(shape, attention), torch.device(run.options.device)
    module = random_module(family.module, config, device, dtype).train()
    choose(module, experts)
    return module


def choose(module: Any, experts: str) -> None:
    """What transformers' `set_experts_implementation` does, for classes in whose file it looks for experts in vain."""
    module.config._experts_implementation = experts


def inputs(lengths: list[int], vocabulary: int, device: str) -> dict[str, Tensor]:
    """Random rows of these lengths, every other one padded on the left; a third of the tokens hidden and scored."""
    generator, width = torch.Generator().manual_seed(sum(lengths)), max(lengths)
    place = torch.arange(width).expand(len(lengths), -1)
    length = torch.tensor(lengths)[:, None]
    left = torch.arange(len(lengths))[:, None] % 2 == 1
    on = torch.where(left, place >= width - length, place < length)
    ids = torch.randint(vocabulary - 2, on.shape, generator=generator)
    hidden = on & (torch.rand(on.shape, generator=generator) < 1 / 3)
    weight = torch.rand(on.shape, generator=generator).double() * hidden
    found = {"input_ids": ids, "attention_mask": on, "masked": hidden, "scored": hidden, "weight": weight}
    return {name: each.to(device) for name, each in found.items()}


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
