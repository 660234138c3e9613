"""One block of experts at its published shape: milliseconds of transformers' implementations, forward and backward.

Floors: the operations at the speed of a large product, and the bytes of the experts that are hit at the speed of a
copy, both measured in the same run. On a CPU too.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_8b.cost import Shape
from benchmarks.gpu_8b.step import random_module
from benchmarks.harness.machine import peak_bytes, product_flops, reset_peak, seconds
from benchmarks.harness.study import Row, Run
from benchmarks.model_matrix.checks import choose
from benchmarks.model_matrix.published import FAMILIES

IMPLEMENTATIONS = ("grouped_mm", "eager", "batched_mm")
PASSES = ("forward", "and backward, frozen", "and backward, trained")
REPEATS = 20
ROOM = 0.8  # of the device's free memory that a case may ask for


def cases(run: Run) -> list[Row]:
    """Tokens are random, so all experts are in demand."""
    families = [each.name for each in FAMILIES if each.name in run.options.published and each.shape.experts]
    every = [(f, t, i, p) for f in families for t in run.options.tokens for i in IMPLEMENTATIONS for p in PASSES]
    return [{"family": f, "tokens": t, "implementation": i, "pass": p} for f, t, i, p in every]


@cache
def block_of(run: Run, name: str) -> tuple[Shape, Any]:
    family = next(each for each in FAMILIES if each.name == name)
    shape = family.tiny() if run.options.tiny else family.shape
    config = family.config(replace(shape, layers=1), "sdpa")
    return shape, random_module(family.module, config, torch.device(run.options.device), torch.bfloat16)


@cache
def speeds(run: Run) -> tuple[float, float]:
    """Operations per second of a large product, bytes per second of a copy."""
    device = run.options.device
    size = 256 if run.options.tiny else 4096
    one = torch.ones(2**22 if run.options.tiny else 2**30, device=device)
    other = torch.empty_like(one)
    copy = statistics.median(seconds(other.copy_, one, device=device)[0] for _ in range(5))
    return product_flops(size, size, 3 * size, torch.bfloat16, device=device), 2 * one.nbytes / copy


def measure(run: Run, case: Row) -> Row:
    device, (shape, module) = run.options.device, block_of(run, case["family"])
    row = {"floor_ms": floor(shape, case["tokens"], case["pass"], speeds(run))}
    choose(module, case["implementation"])
    block = module.model.layers[0].mlp
    copies = 2.0 * case["tokens"] * shape.active * shape.expert_weights  # batched_mm: each token's experts, in bf16
    asked = copies * (1 + PASSES.index(case["pass"])) if case["implementation"] == "batched_mm" else 0.0
    room = torch.cuda.mem_get_info()[0] if device.startswith("cuda") else 8e9
    if asked > ROOM * room:
        return row | {"skipped": f"would copy {asked / 1e9:.0f} GB of weights"}
    hidden = torch.randn(1, case["tokens"], shape.width, device=device, dtype=torch.bfloat16)
    action = passing(block, hidden, case["pass"])
    action()  # not timed
    reset_peak(device)
    first = seconds(action, device=device)[0]
    repeats = min(REPEATS, max(2, int(0.3 / first)))
    times = [seconds(action, device=device)[0] for _ in range(repeats)]
    block.zero_grad(set_to_none=True)
    return row | {"ms": 1e3 * statistics.median(times), "peak_bytes": peak_bytes(device)}


def floor(shape: Shape, tokens: int, which: str, speed: tuple[float, float]) -> float:
    """What no implementation beats; a backward is one or two more products of that size."""
    products = 1 + PASSES.index(which)
    flops = products * 2 * tokens * shape.active * shape.expert_weights
    hit = shape.experts * (1 - (1 - shape.active / shape.experts) ** tokens)
    moved = products * 2 * hit * shape.expert_weights  # weights read, read again, and their gradient written, in bf16
    return 1e3 * max(flops / speed[0], moved / speed[1])


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
