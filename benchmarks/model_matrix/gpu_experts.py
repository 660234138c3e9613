"""One block of experts at its published shape: milliseconds of transformers' implementations, forward and backward.

Floors: the operations at the speed of a large product, and the bytes of the experts that are hit at the speed of a
copy, both measured in the same run.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from cost import Shape
from gpu_checks import choose, problem
from gpu_families import Family
from step import peak_bytes, random_module, reset_peak, timed
from torch import Tensor

IMPLEMENTATIONS = ("grouped_mm", "eager", "batched_mm")
TOKENS = (32, 512, 8192)
PASSES = ("forward", "and backward, frozen", "and backward, trained")
REPEATS = 20
ROOM = 0.8  # of the device's free memory that a row may ask for


def expert_rows(
    family: Family, shape: Shape, counts: tuple[int, ...], device: torch.device, speeds: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """A row for each implementation, number of tokens and pass; tokens are random, so all experts are in demand."""
    module = random_module(family.module, family.config(replace(shape, layers=1), "sdpa"), device, torch.bfloat16)
    block = module.model.layers[0].mlp
    for tokens in counts:
        hidden = torch.randn(1, tokens, shape.width, device=device, dtype=torch.bfloat16)
        for implementation in IMPLEMENTATIONS:
            choose(module, implementation)
            for which in PASSES:
                row = {"implementation": implementation, "tokens": tokens, "pass": which}
                row |= floors(shape, tokens, which, speeds)
                yield row | measured(block, hidden, implementation, which, shape, device)


def floors(shape: Shape, tokens: int, which: str, speeds: dict[str, float]) -> dict[str, float]:
    """The larger of the two is what no implementation beats; a backward is one or two more products of that size."""
    products = 1 + PASSES.index(which)
    flops = products * 2 * tokens * shape.active * shape.expert_weights
    hit = shape.experts * (1 - (1 - shape.active / shape.experts) ** tokens)
    moved = products * 2 * hit * shape.expert_weights  # weights read, read again, and their gradient written, in bf16
    return {"flops_ms": 1e3 * flops / speeds["matmul_flops"], "bytes_ms": 1e3 * moved / speeds["copy_bytes"]}


def measured(
    block: Any, hidden: Tensor, implementation: str, which: str, shape: Shape, device: torch.device
) -> dict[str, Any]:
    copies = 2.0 * hidden.shape[1] * shape.active * shape.expert_weights  # batched_mm: each token's experts, in bf16
    asked = copies * (1 + PASSES.index(which)) if implementation == "batched_mm" else 0.0
    if device.type == "cuda" and asked > ROOM * torch.cuda.mem_get_info()[0]:
        return {"skipped": f"would copy {asked / 1e9:.0f} GB of weights"}
    action = passing(block, hidden, which)
    try:
        action()  # not timed
        reset_peak(device)
        held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        first = timed(action, device)[0]
        times = [timed(action, device)[0] for _ in range(min(REPEATS, max(2, int(0.3 / first))))]
    except RuntimeError as error:  # out of memory among them
        return {"failed": problem(error)}
    finally:
        block.zero_grad(set_to_none=True)
    return {"ms": 1e3 * statistics.median(times), "peak_bytes": peak_bytes(device) - held, "repeats": len(times)}


def passing(block: Any, hidden: Tensor, which: str) -> Callable[[], None]:
    """One pass of one kind over these hidden states."""
    for parameter in block.parameters():
        parameter.requires_grad_(which == PASSES[2])
    if which == PASSES[0]:

        def forward() -> None:
            with torch.no_grad():
                block(hidden)

        return forward
    given, slope = hidden.clone().requires_grad_(True), torch.randn_like(hidden)

    def both() -> None:
        block.zero_grad(set_to_none=True)
        given.grad = None
        block(given).backward(slope)

    return both
