"""A VRPO run of the paper's size on paper: operations, bytes, hours at 1, 8, 64 and 512 GPUs. Pure arithmetic.

    python benchmarks/scaling/model.py                                          # writes the tables of docs/scaling.md
    python benchmarks/scaling/model.py --gpu benchmarks/gpu_8b/result.json      # with a measured utilisation

The formulas are explained on that page, computed in predict.py and, for operations, in ../gpu_8b/cost.py.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu_8b"))

from cost import full_flops, lora_flops, lora_memory, mean_work, parts
from predict import (
    FSDP,
    FULL,
    GPUS,
    LENGTHS,
    LORA,
    SCHEMES,
    SHAPE,
    Inputs,
    cost,
    largest,
    largest_of_sums,
    mean,
    predict,
)

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def inputs_table(given: Inputs) -> str:
    tokens = [2 * pair[0] + pair[1] + pair[2] for pair in LENGTHS]
    paper, sheet = "arXiv 2505.19223, recipe of LLaDA 1.5", "data sheet"
    return markdown(
        ["input", "value", "where from"],
        [
            ["pairs, epochs", f"{given.pairs:,}, 1", paper],
            ["pairs per optimizer step", f"{given.batch}", paper],
            ["draws per answer, n", f"{given.draws}", paper],
            ["tokens per pack", f"{given.pack:,}", paper],
            [
                "tokens per pair, both answers with prompt",
                f"{mean([float(each) for each in tokens]):,.0f} on average, {max(tokens):,} at most",
                "ASSUMED: 996 pairs of UltraFeedback; the paper does not state its lengths",
            ],
            [
                "weights; adapter",
                f"{SHAPE.weights:,}; {SHAPE.adapter_weights:,}",
                "counted from the shape, LoRA r = 16",
            ],
            ["dense bf16 peak of a GPU", f"{given.peak / 1e12:.0f} TFLOPS", f"H100 SXM, {sheet}"],
            ["share of it, by executed operations", f"{100 * given.utilisation:.1f}%", given.utilisation_source],
            ["memory bandwidth", f"{given.hbm / 1e12:.2f} TB/s", f"H100 SXM, {sheet}"],
            ["NVLink, per GPU and direction", f"{given.nvlink / 1e9:.0f} GB/s", f"H100 SXM, {sheet}; ASSUMED reached"],
            ["network, per GPU and direction", f"{given.network / 1e9:.0f} GB/s", "ASSUMED: InfiniBand, 400 Gb/s each"],
        ],
    )


def step_table(given: Inputs) -> str:
    """One optimizer step, all GPUs together."""
    work = mean_work(LENGTHS, given.draws).times(given.batch)
    costs = [cost(pair, given) for pair in LENGTHS]
    element = 2 * SHAPE.layers * (25 * SHAPE.width + 6 * SHAPE.inner)  # bytes per token and forward
    rows = []
    for name, needed, done, calls, forwards in (
        (
            LORA,
            lora_flops(SHAPE, work),
            mean([each.lora for each in costs]),
            mean([each.row_packs for each in costs]),
            4,
        ),
        (FULL, full_flops(SHAPE, work), mean([each.full for each in costs]), mean([each.packs for each in costs]), 6),
    ):
        done, calls = given.batch * done, given.batch * calls
        moved = forwards * (calls * 2 * SHAPE.weights + work.tokens * element)
        rows.append(
            [
                name,
                f"{work.tokens:,.0f}",
                f"{calls:,.0f}",
                f"{needed / 1e15:.1f}",
                f"{done / 1e15:.1f}",
                f"{100 * given.utilisation * needed / done:.0f}%",
                f"{moved / 1e12:.1f}",
                f"{moved / given.hbm:.1f}",
                f"{done / given.speed:.1f}",
            ]
        )
    return markdown(
        [
            "mode",
            "policy tokens",
            "packs",
            "needed, PFLOP",
            "executed, PFLOP",
            "MFU that follows",
            "memory traffic, TB",
            "s for it",
            "s of computing, one GPU",
        ],
        rows,
    )


def network_table(given: Inputs) -> str:
    """Bytes that each GPU receives per optimizer step."""
    counts = [float(cost(pair, given).packs) for pair in LENGTHS]
    rows = []
    for scheme in SCHEMES:
        per_pack, once = scheme.gathers
        gathers = f"{per_pack} P - {-once}" if per_pack else "0"
        times = "each of the P b" if scheme.at_every_pack else "once"
        row = [scheme.name, gathers, f"{times}, {scheme.reduced / 1e9:.2f} GB"]
        for gpus in GPUS:
            micro = max(given.batch, gpus) // gpus
            row.append(f"{scheme.bytes(largest(counts, gpus), micro, gpus) / 1e9:,.1f}")
        rows.append(row)
    return markdown(["scheme", "gathers per pair", "gradient", *(f"GB at {gpus}" for gpus in GPUS)], rows)


def hours_table(given: Inputs) -> str:
    rows = []
    for mode in (LORA, FULL):
        for gpus in GPUS:
            found = predict(given, mode, gpus)
            best, worst = found.network
            balanced, waiting, exposed = found.hours
            rows.append(
                [
                    mode + (" (does not fit)" if mode == FULL and gpus == 1 else ""),
                    f"{gpus}",
                    f"{found.batch}",
                    f"{found.compute:.2f}",
                    f"{found.slowest:.2f}",
                    f"{best:.2g} to {worst:.2g}",
                    f"{balanced:.2f}",
                    f"{waiting:.2f}",
                    f"{exposed:.2f}",
                    f"{waiting * gpus:.0f}",
                ]
            )
    return markdown(
        [
            "mode",
            "GPUs",
            "batch",
            "s computing, balanced",
            "s, slowest rank",
            "s network",
            "hours, balanced",
            "hours",
            "hours, network not hidden",
            "GPU-hours",
        ],
        rows,
    )


def memory_table(given: Inputs) -> str:
    """GB per GPU."""
    lora = lora_memory(SHAPE, given.pack, checkpointed=True)
    work, weights = lora["activations"] + lora["head chunk"], SHAPE.weights
    layer = SHAPE.block_weights / SHAPE.layers
    gathered = 2 * (2 * layer + 2 * SHAPE.head_weights)
    rows = [[LORA, *[f"{sum(lora.values()) / 1e9:.1f}"] * len(GPUS)]]
    for name, bytes_each, whole in (
        (FULL, 20, 4 * weights),
        (f"{FULL}, `sync_each_batch`", 20, 0),
        (f"{FULL}, `sync_each_batch`, precomputed reference", 16, 0),
    ):
        cells = [(bytes_each * weights / gpus + (whole + gathered) * (gpus > 1) + work) / 1e9 for gpus in GPUS]
        rows.append([name, *(f"{cell:.1f}" for cell in cells)])
    return markdown(["mode", *(f"GB at {gpus}" for gpus in GPUS)], rows)


def findings(given: Inputs) -> str:
    """What follows, in numbers."""
    costs = [cost(pair, given).lora for pair in LENGTHS]
    wait = [f"{largest(costs, gpus) / mean(costs):.1f}" for gpus in GPUS[1:]]
    together = largest_of_sums(costs, 8, 8) / 8 / mean(costs)
    full, eight = predict(given, FULL, 512), [8 * hours for hours in predict(given, FULL, 8).hours]
    best, worst = given.bandwidth(512)
    items = given.batch * 2 * given.draws
    rows = mean([(2 * prompt + one + other) / 2 for prompt, one, other in LENGTHS])
    compute = mean([cost(pair, replace(given, pack=10**9)).full for pair in LENGTHS]) * given.batch / 512 / given.speed
    moved = (3 * 2 * SHAPE.weights + FSDP.reduced) * 511 / 512  # reference, forward, backward; the gradient
    even = [even_tokens(given, speed) for speed in (best, worst)]
    found = [
        f"The paper reports about 405 H100-hours. All weights on 8 GPUs come to {eight[1]:.0f} here, and would to "
        f"{eight[0]:.0f} if no rank waited: the same order, which is all that assumed lengths and an assumed "
        "utilisation can show.",
        f"A gather of all weights moves {2 * SHAPE.weights / 1e9:.1f} GB. At {best / 1e9:.0f} GB/s it takes as long as "
        f"a forward of {even[0]:,.0f} tokens, at {worst / 1e9:.0f} GB/s of {even[1]:,.0f}: with smaller packs sharding "
        "is bound by the network, however well it overlaps with computing.",
        f"The slowest of 8, 64 and 512 ranks has {wait[0]}, {wait[1]} and {wait[2]} times the mean work of a random "
        f"pair. With eight pairs in a rank's micro-batch instead of one, the slowest of 8 has {together:.2f} times "
        "the mean.",
        f"512 GPUs with one pair each make a batch of {full.batch} and {given.pairs / full.batch:,.0f} optimizer steps "
        f"instead of {given.pairs / given.batch:,.0f}. At a batch of {given.batch}, {512 - given.batch} of them would "
        "have no pair.",
        f"Were draws the unit, a batch of {given.batch} pairs would give each of 512 GPUs {items / 512:.0f} of its "
        f"{items:,} (answer, draw) items, {items / 512 * rows:,.0f} tokens: {compute:.2f} s of computing per step "
        f"with all weights, against {moved / best:.2f} to {moved / worst:.2f} s of network.",
    ]
    return "\n".join(f"- {each}" for each in found)


def even_tokens(given: Inputs, bandwidth: float) -> float:
    """Tokens whose forward takes as long as a gather of all weights."""
    work = mean_work(LENGTHS, 1)
    one = parts(SHAPE, work)
    seconds_per_token = (one.blocks + one.attention + one.head) / work.tokens / given.speed
    return 2 * SHAPE.weights / bandwidth / seconds_per_token


TABLES = {
    "inputs": inputs_table,
    "step": step_table,
    "network": network_table,
    "hours": hours_table,
    "memory": memory_table,
    "findings": findings,
}


def filled(page: str, given: Inputs) -> str:
    """The page with its tables as they are now."""
    for name, make in TABLES.items():
        before, rest = page.split(f"<!-- {name}: generated -->\n", 1)
        page = f"{before}<!-- {name}: generated -->\n{make(given)}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return page


def measured(path: Path) -> Inputs:
    """Peak and utilisation as the one-GPU benchmark found them, at n = 8 in one pass.

    Raises:
        ValueError: that row, or the device's peak, is not in the result.
    """
    result = json.loads(path.read_text())
    wanted = ("one_pass", "pairs", 8)
    rows = [
        row for row in result["rows"] if (row["mode"], row["workload"], row["draws"]) == wanted and "seconds" in row
    ]
    if not rows or result["peak_flops"] is None or result["settings"]["tiny"]:
        raise ValueError(f"{path}: no row of one_pass, pairs, n = 8 at the 8B shape on a device of known peak")
    share = rows[0]["executed_flops_per_second"] / result["peak_flops"]
    source = f"measured on {result['device']} with LoRA in one pass; ASSUMED for all weights"
    return Inputs(peak=result["peak_flops"], utilisation=share, utilisation_source=source)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", type=Path, help="benchmarks/gpu_8b/result.json, instead of an assumed utilisation.")
    parser.add_argument("--utilisation", type=float, help="Another assumption, 0 to 1.")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    inputs = Inputs() if arguments.gpu is None else measured(arguments.gpu)
    if arguments.utilisation is not None:
        inputs = replace(inputs, utilisation=arguments.utilisation, utilisation_source="ASSUMED")
    arguments.page.write_text(filled(arguments.page.read_text(), inputs))
    for name, make in TABLES.items():
        print(f"{name}\n\n{make(inputs)}\n")
