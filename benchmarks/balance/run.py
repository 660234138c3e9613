"""How unequal the work of processes is in a training step, in random order and with balance_batches.

    python benchmarks/balance/run.py --data FOLDER

FOLDER (or the environment's VRPO_DATA) holds ultrafeedback/train.jsonl.gz (a subset of UltraFeedback-binarized) and
tokenizers/gpt2. Pairs are tokenised at max_length 1024; the tokens of a pair are those of both rows that the model
reads, prompt + chosen and prompt + rejected. 40 epochs in random order, whole steps only, dealt out as accelerate has
it (batch i to process i modulo world). Figures are means over steps of the tokens of the busiest process over the mean
of all: over a whole step, for processes that meet at its end (DDP), and adding up the busiest one of every micro-step,
for processes that meet in all of them (FSDP, ZeRO). Counting only: no model runs, no time is measured. Writes
result.json and README.md, whose table is generated from it.
"""

import argparse
import json
import os
import statistics
from pathlib import Path

import torch
from transformers import GPT2TokenizerFast

from vrpo.data.sources import load_rows
from vrpo.data.tokenize import tokenize_preferences
from vrpo.training.balance import balanced, token_counts
from vrpo.training.preference import VRPOTrainer

HERE = Path(__file__).parent
MAX_LENGTH = 1024
EPOCHS = 40
SHAPES = [(world, *shape) for world in (2, 8) for shape in ((1, 8), (8, 1))]  # world, per-device batch, accumulation


def lengths(data: Path) -> list[int]:
    tokenizer = GPT2TokenizerFast.from_pretrained(str(data / "tokenizers" / "gpt2"))
    rows = load_rows(str(data / "ultrafeedback" / "train.jsonl.gz"))
    examples, account = tokenize_preferences(rows, tokenizer, max_length=MAX_LENGTH)
    print(account)
    return token_counts(examples, VRPOTrainer.token_columns)


def imbalance(order: list[int], sizes: list[int], world: int, batch: int, accumulation: int) -> list[tuple[float, ...]]:
    """Busiest process over the mean, of each step: of its sum, and summed over micro-steps."""
    loads = torch.tensor([sizes[example] for example in order], dtype=torch.float64)
    loads = loads.reshape(-1, accumulation, world, batch).sum(-1)
    mean = loads.sum((1, 2)) / world
    step = loads.sum(1).max(-1).values / mean
    micro = loads.max(-1).values.sum(-1) / mean
    return list(zip(step.tolist(), micro.tolist(), strict=True))


def measure(sizes: list[int], world: int, batch: int, accumulation: int) -> list[dict]:
    whole = len(sizes) // (world * batch * accumulation) * world * batch * accumulation
    found: dict[str, list[tuple[float, ...]]] = {"random": [], "balanced": []}
    for epoch in range(EPOCHS):
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(sizes), generator=generator)[:whole].tolist()
        found["random"] += imbalance(order, sizes, world, batch, accumulation)
        dealt = balanced(order, sizes, world, batch, accumulation)
        found["balanced"] += imbalance(dealt, sizes, world, batch, accumulation)
    shape = {"world": world, "batch": batch, "accumulation": accumulation}
    return [{**shape, "order": name, **summary(values)} for name, values in found.items()]


def summary(values: list[tuple[float, ...]]) -> dict[str, float]:
    step, micro = ([each[part] for each in values] for part in (0, 1))
    return {
        "steps": len(values),
        "step_mean": statistics.mean(step),
        "step_worst": max(step),
        "micro_mean": statistics.mean(micro),
        "micro_worst": max(micro),
    }


def report(result: dict) -> str:
    rows = [
        f"| {one['world']} | {one['batch']} x {one['accumulation']} | {one['order']} | {one['step_mean']:.3f} "
        f"| {one['step_worst']:.3f} | {one['micro_mean']:.3f} | {one['micro_worst']:.3f} |"
        for one in result["results"]
    ]
    tokens = result["tokens"]
    return "\n".join(
        [
            "# Balanced batches",
            "",
            (__doc__ or "").split("\n\n")[2].replace("\n", " ").strip(),
            "",
            f"{tokens['pairs']} pairs of {tokens['min']} to {tokens['max']} tokens, median {tokens['median']:.0f}. "
            "Busiest process over the mean, 1 being no waiting:",
            "",
            "| processes | pairs per process x micro-steps | order | step | worst step | all micro-steps | worst |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("VRPO_DATA"), required="VRPO_DATA" not in os.environ
    )
    sizes = lengths(Path(parser.parse_args().data))
    tokens = {"pairs": len(sizes), "min": min(sizes), "max": max(sizes), "median": statistics.median(sizes)}
    results = [entry for shape in SHAPES for entry in measure(sizes, *shape)]
    (HERE / "result.json").write_text(
        json.dumps({"tokens": tokens, "epochs": EPOCHS, "results": results}, indent=1) + "\n"
    )
    (HERE / "README.md").write_text(report(json.loads((HERE / "result.json").read_text())))
