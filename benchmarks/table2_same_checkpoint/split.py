"""Draws or pairs, stage by stage: how the noise of a minibatch gradient splits, and how many draws a pair deserves.

    python benchmarks/table2_same_checkpoint/split.py [--runs runs/table2]

Reads the replicates that run.py left (the paper's plan, one mask per level), writes split.json and split.md.
"""

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from vrpo.diagnostics.minibatch import minibatch
from vrpo.diagnostics.replicates import Replicates
from vrpo.diagnostics.statistics import noise

HERE = Path(__file__).parent
BETA = 0.2
BUDGETS = (1, 2, 4, 8, 16)
COSTS = (1, 10, 100)  # of making a pair, in draws


def stage(path: Path) -> dict[str, Any]:
    stored = load_file(path)
    parts = (stored[f"1/{name}"].double() for name in ("policy", "reference", "gradient"))
    pairs = [Replicates(*part) for part in zip(*parts, strict=True)]
    found = minibatch({n: [noise(one.at(n), BETA) for one in pairs] for n in BUDGETS}, pair_cost=0.0)
    task, step = path.stem.rsplit("_", 1)
    kept = ("draws", "pairs", "share", "bias_squared", "ratio")  # how well gradients agree is not resolved here
    curves = {name: {n: vars(value) for n, value in found[name].items()} for name in kept}
    return {"task": task, "step": int(step), "pairs": len(pairs), "curves": curves}


def shown(value: dict[str, float], digits: int = 2) -> str:
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def page(results: list[dict[str, Any]]) -> str:
    lines = [
        "| stage | share of draws: n = 1 | n = 4 | n = 8 | n = 16 | relative squared bias: n = 1 | n = 8 "
        "| best n at a pair's cost of 1, 10, 100 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        curves = one["curves"]
        share = [shown(curves["share"][n]) for n in (1, 4, 8, 16)]
        worth = [shown(curves["bias_squared"][n], 3) for n in (1, 8)]
        ratio = curves["draws"][1]["value"] / curves["pairs"][1]["value"]
        best = [max(1.0, math.sqrt(cost * ratio)) if ratio > 0 else math.nan for cost in COSTS]
        cells = " | ".join([*share, *worth, ", ".join(f"{n:.1f}" for n in best)])
        lines.append(f"| {one['task']}, step {one['step']} | {cells} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/table2"))
    args = parser.parse_args()
    paths = sorted(args.runs.glob("*_*.safetensors"), key=lambda path: int(re.findall(r"\d+", path.stem)[-1]))
    results = sorted((stage(path) for path in paths), key=lambda one: (one["task"] != "text", one["step"]))
    (HERE / "split.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "split.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
