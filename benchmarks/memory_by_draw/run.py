"""Peak memory of a training step against the number of draws: by-draw backward against all graphs at once.

    python benchmarks/memory_by_draw/run.py

Every figure comes from a fresh process: the model is loaded and the optimizer's state made by one small step; then the
resident peak counter is reset, one full step (values, reference, backward, AdamW) runs, and the peak above what was
resident is read (VmHWM of /proc, so Linux). MALLOC_MMAP_THRESHOLD_ is fixed at 64 KiB, so that the C library gives
freed tensors back instead of keeping them in a fragmented heap. Writes result.json and the table of README.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SHAPE = {"hidden_size": 256, "num_layers": 6, "num_heads": 4, "intermediate_size": 768, "length": 512, "pairs": 1}
DRAWS = (1, 2, 4, 8, 16, 64)
ALL_GRAPHS = (1, 8)


def resident(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure(mode: str, num_draws: int) -> dict[str, float]:
    """One step in this process."""
    import copy
    import dataclasses

    import torch

    import vrpo
    from vrpo.models.tiny import from_config, train_tokenizer

    torch.set_num_threads(1)
    model = {name: value for name, value in SHAPE.items() if name not in ("length", "pairs")}
    denoiser = from_config(train_tokenizer(["a"], 300), **model)
    denoiser.module.resize_token_embeddings(4096)
    reference = vrpo.FrozenReference(dataclasses.replace(denoiser, module=copy.deepcopy(denoiser.module)))
    optimizer = torch.optim.AdamW(denoiser.module.parameters(), lr=1e-4)
    rows, length = 2 * SHAPE["pairs"], SHAPE["length"]
    ids = torch.randint(300, 4000, (rows, length), generator=torch.Generator().manual_seed(0))
    response = torch.arange(length).expand(rows, -1) >= length // 4
    tokens = vrpo.Tokens(ids, response, torch.ones_like(response), torch.arange(rows))
    pairs = vrpo.Pairs(torch.arange(rows // 2), torch.arange(rows // 2) + rows // 2, tokens.length)

    def step(tokens: vrpo.Tokens, pairs: vrpo.Pairs, draws: int) -> None:
        plan = vrpo.FixedCount(draws)(tokens)
        arguments = (denoiser, reference, tokens, pairs, plan, vrpo.DPO(0.2))
        if mode == "by_draw":
            vrpo.backward_by_draw(*arguments)
        else:
            vrpo.preference_loss(*arguments).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    every = torch.ones(rows, 8, dtype=torch.bool)
    short = vrpo.Tokens(ids[:, :8], every, every, tokens.key)
    step(short, vrpo.Pairs(pairs.chosen, pairs.rejected, short.length), 1)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    step(tokens, pairs, num_draws)
    return {"mode": mode, "draws": num_draws, "resident": before, "above": resident("VmHWM") - before}


def report(results: list[dict[str, float]]) -> str:
    def above(mode: str, draws: int) -> list[float]:
        return [entry["above"] for entry in results if (entry["mode"], entry["draws"]) == (mode, draws)]

    base = {mode: statistics.median(above(mode, 1)) for mode in ("by_draw", "all_graphs")}
    rows = []
    for mode, draws in [*(("by_draw", n) for n in DRAWS), *(("all_graphs", n) for n in ALL_GRAPHS)]:
        values = above(mode, draws)
        middle = statistics.median(values)
        spread = f"{min(values):.0f} to {max(values):.0f}"
        rows.append(f"| {mode} | {draws} | {middle:.0f} | {spread} | {middle / base[mode]:.2f} |")
    return "\n".join(
        [
            "# Memory of a step against the number of draws",
            "",
            (__doc__ or "").split("\n\n")[2].replace("\n", " "),
            "",
            f"Shape: {SHAPE}, vocabulary 4,096, float32, one CPU thread; {len(above('by_draw', 1))} processes each.",
            "",
            "| backward | draws n | peak above resident, MiB (median) | range | against n = 1 |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("MODE", "DRAWS"))
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        sys.exit()
    jobs = [*(("by_draw", n) for n in DRAWS), *(("all_graphs", n) for n in ALL_GRAPHS)] * arguments.repeats
    results = []
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    for mode, draws in jobs:
        command = [sys.executable, __file__, "--one", mode, str(draws)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        results.append(json.loads(done.stdout.strip().split("\n")[-1]))
        print(results[-1], flush=True)
    (HERE / "result.json").write_text(json.dumps({"shape": SHAPE, "results": results}, indent=1) + "\n")
    (HERE / "README.md").write_text(report(results))
