"""A VRPO step at the 8B LLaDA shape on one GPU: seconds, model FLOPs utilisation and peak memory against the draws n.

Random weights and token ids; the lengths are real. What is timed is what `VRPOTrainer` does with an adapter: draws, the
gradient, the reference being the adapter turned off, clipping, AdamW. cost.py says which operations are counted; the
part `counted` holds its formulas against torch's own counter, on a CPU.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_8b.cost import Shape, Work, again_flops, kept_bytes, lora_flops, lora_memory
from benchmarks.gpu_8b.step import (
    BY_DRAW,
    ONE_PASS,
    Bench,
    Case,
    Counting,
    batch,
    peak_flops,
    random_module,
    run_step,
    spread,
    with_lora,
)
from benchmarks.harness.machine import product_flops
from benchmarks.harness.study import Options, Part, Row, Run, Study, option
from benchmarks.harness.tables import table
from vrpo.models.llada import LLaDA, LLaDAConfig

LENGTHS = Path(__file__).parent / "lengths.json"
SMALL = Shape(layers=2, width=64, inner=192, vocabulary=512, rank=4, heads=2, key_heads=2, head_width=32)
GOAL_BYTES, GOAL_MFU, GOAL_FLAT = 24e9, 0.5, 1.02  # 24 GB; half of the peak; 2 % more at the largest n than at n = 1


@dataclass
class Step(Options):
    device: str = option("cuda", "Device of the study.")
    budget_seconds: float | None = option(450.0, "Seconds after which no case begins.")
    attn_implementation: list[str] = option(["flex_attention"], "flex_attention, sdpa; or both.")
    draws: list[int] = option([1, 8, 32], "Draws n.")
    pairs: int = option(4, "Pairs in a step.")
    max_tokens: int = option(4096, "Tokens in a pack.")
    gradient_checkpointing: bool = option(True, "Compute blocks again in the backward pass.")
    repeats: int = option(3, "Timed steps of a row, after one that is not.")
    peak_tflops: float | None = option(None, "Dense bf16 peak of the device. An unknown GPU needs it.")


def random_llada(shape: Shape, device: torch.device, attention: str, *, checkpointing: bool) -> Any:
    """The bf16 model and a float32 adapter on the blocks' linear maps."""
    config = LLaDAConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        tie_word_embeddings=False,
        mask_token_id=shape.vocabulary - 1,
        bos_token_id=None,
        eos_token_id=shape.vocabulary - 2,
        pad_token_id=shape.vocabulary - 2,
        use_cache=False,
        attn_implementation=attention,
    )
    module = random_module(LLaDA, config, device, torch.bfloat16)
    return with_lora(module, shape.rank, checkpointing=checkpointing)


def lengths(tiny: bool) -> list[list[int]]:
    """[prompt, chosen, rejected] of UltraFeedback's pairs."""
    found = json.loads(LENGTHS.read_text())
    return [[1 + each // 32 for each in row] for row in found] if tiny else found


@cache
def bench(run: Run) -> Bench:
    """The model and what all rows share."""
    options, device = run.options, torch.device(run.options.device)
    shape, checkpointing = SMALL if options.tiny else Shape(), options.gradient_checkpointing
    module = random_llada(shape, device, options.attn_implementation[0], checkpointing=checkpointing)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    prompt = options.max_tokens // 4
    return Bench(
        shape=shape,
        device=device,
        model=Counting(module, device),
        optimizer=torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), fused=device.type == "cuda"),
        workloads={
            "pairs": spread(lengths(options.tiny), options.pairs),
            "full": [[prompt, options.max_tokens - prompt, options.max_tokens - prompt]],
        },
        max_tokens=options.max_tokens,
        checkpointing=checkpointing,
        repeats=options.repeats,
        left=run.left,
    )


def device_facts(run: Run, case: Row) -> Row:
    """What the other parts' numbers are divided by, and memory on paper."""
    options = run.options
    shape = SMALL if options.tiny else Shape()
    tokens, width, inner, times = (256, 256, 768, 4) if options.tiny else (4096, 4096, 12288, 50)
    name = run.facts["hardware"]["gpu"] or "cpu"
    speed = product_flops(tokens, width, inner, torch.bfloat16, device=options.device, times=times)
    paper = lora_memory(shape, options.max_tokens, checkpointed=options.gradient_checkpointing)
    return {"peak_flops": peak_flops(name, options.peak_tflops), "matmul_flops": speed, "paper_memory": paper}


def cases(run: Run) -> list[Row]:
    """What matters most comes first, for the time may run out."""
    draws = run.options.draws
    middle = 8 if 8 in draws else draws[len(draws) // 2]
    found: list[tuple[str, str, int]] = []
    for attention in run.options.attn_implementation:
        found += [(attention, "pairs", n) for n in [middle, *(n for n in draws if n != middle)]]
        found += [(attention, "full", n) for n in sorted(draws)]
    rows = [{"attention": a, "mode": ONE_PASS, "workload": w, "draws": n} for a, w, n in found]
    first = {"attention": run.options.attn_implementation[0], "mode": BY_DRAW, "workload": "pairs", "draws": middle}
    return [*rows, first]


def measure(run: Run, case: Row) -> Row:
    return bench(run).measure(Case(**case))


def counted(run: Run, case: Row) -> Row:
    """What cost.py says a step executes, against torch's counter; what a block keeps for its backward, against the
    storages that autograd holds.

    Not needed by the first block, which cost.py counts all the same: gradients of the inputs of q, k, v. Attention is
    eager, because the counter does not know the CPU's fused one.
    """
    return operations(case["checkpointed"]) if case["what"] == "operations" else kept()


def operations(checkpointed: bool) -> Row:
    device, shape = torch.device("cpu"), SMALL
    model = Counting(random_llada(shape, device, "eager", checkpointing=checkpointed), device)
    sizes = [sum(p.numel() for p in model.module.parameters() if p.requires_grad is kind) for kind in (True, False)]
    assert sizes == [shape.adapter_weights, shape.weights], sizes
    optimizer = torch.optim.AdamW([p for p in model.module.parameters() if p.requires_grad])
    tokens, pairs = batch([[8, 24, 24]], shape, device, 0)
    with FlopCounterMode(display=False) as counter:
        _, draws = run_step(Case("eager", ONE_PASS, "full", 4), model, optimizer, tokens, pairs, 128)
    work = Work(4 * 64, 4 * 2 * 32**2, float((draws.weight != 0).sum()))
    expected = lora_flops(shape, work) + again_flops(shape, work, checkpointed=checkpointed, value_share=0.0)
    expected -= work.tokens * 2 * 3 * (shape.width**2 + shape.rank * shape.width)
    return {"found": counter.get_total_flops(), "expected": expected, "tolerance": 1e-3}


def kept() -> Row:
    """One more block keeps so many bytes more per token."""
    length, found = 256, []
    ids, on = torch.arange(length)[None], torch.ones(1, length, dtype=torch.bool)
    for layers in (1, 2):
        shape = Shape(layers=layers, width=512, inner=1536, vocabulary=512, rank=2, heads=4, key_heads=4)
        module = random_llada(shape, ids.device, "sdpa", checkpointing=False)
        weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        storages: dict[int, Any] = {}

        def hold(tensor: torch.Tensor, into: dict[int, Any] = storages) -> torch.Tensor:
            into[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            out = Counting(module, ids.device)(input_ids=ids, attention_mask=on, masked=~on, scored=on)
        assert out.requires_grad
        found.append(sum(each.nbytes() for place, each in storages.items() if place not in weights) / length)
    return {"found": found[1] - found[0], "expected": kept_bytes(shape), "tolerance": 0.02}


def goals(run: Run) -> Row:
    """Whether each goal is met; None: not measured. Memory is flat in n where packs are full at every n: `full`."""
    draws, attention = run.options.draws, run.options.attn_implementation[0]
    done = run.rows("steps", attention=attention, mode=ONE_PASS)
    full = {row["draws"]: row["peak_bytes"] for row in done if row["workload"] == "full"}
    largest = max((row["peak_bytes"] for row in done), default=None)
    ratio = full[max(draws)] / full[min(draws)] if {min(draws), max(draws)} <= set(full) else None
    middle = [row for row in done if row["workload"] == "pairs" and row["draws"] == 8]
    peak = run.rows("device")[0]["peak_flops"] if run.rows("device") else None
    mfu = middle[0]["flops_per_second"] / peak if middle and peak else None
    complete = set(draws) <= {row["draws"] for row in done}
    return {
        "peak memory below 24 GB": (largest and largest / 1e9, largest < GOAL_BYTES if largest and complete else None),
        "memory flat in n, full packs": (ratio, None if ratio is None else ratio <= GOAL_FLAT),
        "MFU at n = 8 at least one half": (mfu, None if mfu is None else mfu >= GOAL_MFU),
    }


def line(row: Row, device: Row) -> list[Any]:
    few = "" if len(row["seconds"]) == row["asked_repeats"] else f" ({len(row['seconds'])} of {row['asked_repeats']})"
    matmul, peak = device["matmul_flops"], device["peak_flops"]
    return [
        *(row[name] for name in ("attention", "mode", "workload", "draws")),
        f"{row['seconds_per_step']:.3f}{few}",
        f"{row['seconds_per_pair']:.3f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['forward_tokens_per_second']:,.0f}",
        f"{row['real_share']:.1%}",
        f"{row['flops_per_second'] / peak:.1%}" if peak else "not known",
        f"{row['flops_per_second'] / matmul:.1%}",
        f"{row['executed_flops_per_second'] / matmul:.1%}",
        f"{row['peak_bytes'] / 1e9:.2f}",
    ]


HEAD = ["attention", "backward", "rows", "n", "s per step", "s per pair", "policy tokens/s", "tokens/s of all forwards"]
HEAD += ["real of computed", "MFU", "of matmul", "with recomputation, of matmul", "peak GB"]


def report(run: Run) -> str:
    lines = []
    for device in run.rows("device"):
        known = f"{device['peak_flops'] / 1e12:.0f} TFLOPS" if device["peak_flops"] else "not known"
        paper = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in device["paper_memory"].items())
        lines += [f"Dense bf16 peak {known}, matmul measured {device['matmul_flops'] / 1e12:.3g} TFLOPS.", ""]
        lines += [f"On paper {sum(device['paper_memory'].values()) / 1e9:.1f} GB: {paper}.", ""]
        lines.append(table(HEAD, [line(row, device) for row in run.rows("steps")]))
    words = {True: "met", False: "MISSED", None: "not measured"}
    lines += [
        f"- {name}: {words[met]}" + (f" ({value:.3g})" if value else "") for name, (value, met) in goals(run).items()
    ]
    rows = [[row["what"], row["checkpointed"], row["found"], row["expected"]] for row in run.rows("counted")]
    return "\n".join([*lines, "", table(["counted", "checkpointing", "by torch", "by cost.py"], rows)])


def check(run: Run) -> None:
    """Kills: passes counted wrongly; a backward counted double for frozen weights; a head at all positions; a reference
    forgotten; a formula of memory that moved."""
    for row in run.rows("counted"):
        assert abs(row["found"] - row["expected"]) <= row["tolerance"] * row["expected"], row
    for row in run.rows("steps"):
        passes = row["forward_tokens_per_second"] / row["tokens_per_second"]
        assert abs(passes - 2) < 1e-6 if row["mode"] == ONE_PASS else 2 < passes < 3, row
        assert row["executed_flops_per_second"] > row["flops_per_second"], row
    on, off = (sum(lora_memory(Shape(), 4096, checkpointed=each).values()) for each in (True, False))
    assert on < GOAL_BYTES < off


def counted_cases(run: Run) -> list[Row]:
    found: list[Row] = [{"what": "operations", "checkpointed": each} for each in (False, True)]
    return [*found, {"what": "bytes a token and block", "checkpointed": False}]


PARTS = {
    "device": Part(lambda run: [{"what": "speed"}], device_facts),
    "steps": Part(cases, measure),
    "counted": Part(counted_cases, counted),
}
TINY = {"device": "cpu", "attn_implementation": ["sdpa"], "draws": [1, 4], "pairs": 2, "max_tokens": 128, "repeats": 1}
STUDY = Study(PARTS, report, TINY, Step, check=check)
