"""What only changes the slope: its bias with n draws, cross-fitted, jackknifed; the reference as a control variate.

    python benchmarks/table2_same_checkpoint/slopes.py [--runs runs/table2]

Reads the replicates that run.py left, writes slopes.json and slopes.md. The gradient of a pair's loss is slope times
grad s; grad s is the same for all. Truth is the slope at the mean score of all draws of the pair.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vrpo.diagnostics.statistics import squared_mean, total_variance

HERE = Path(__file__).parent
BETA = 0.2


def gradient(score: Tensor, margin_gradient: Tensor) -> Tensor:
    return -torch.sigmoid(-BETA * score)[:, None] * BETA * margin_gradient


def estimates(margin: Tensor, sketches: Tensor) -> dict[str, Tensor]:
    """Loss gradients [B, D] of every block from its draws' margins [B, n] and gradients [B, n, D]."""
    n = margin.shape[1]
    whole = gradient(margin.mean(1), sketches.mean(1))
    if n == 1:
        return {"plain": whole}
    halves = [(margin[:, part].mean(1), sketches[:, part].mean(1)) for part in (slice(0, n // 2), slice(n // 2, n))]
    (h, g), (k, f) = halves
    return {
        "plain": whole,
        "cross-fitted": (gradient(k, g) + gradient(h, f)) / 2,
        "jackknifed": 2 * whole - (gradient(h, g) + gradient(k, f)) / 2,
    }


def at(policy: Tensor, reference: Tensor, sketches: Tensor, n: int) -> dict[str, dict[str, float]]:
    """Per estimator: bias of a pair's gradient, bias of the mean over pairs, and variance, all relative."""
    sums: dict[str, dict[str, float]] = {}
    mean_bias: dict[str, Tensor] = {}
    mean_truth = torch.zeros(sketches.shape[-1], dtype=torch.float64)
    size = 0.0
    for pair in range(len(policy)):
        margin = (policy[pair] - reference[pair]).double()
        margin = (margin[:, 0] - margin[:, 1]).reshape(-1, n)  # blocks of n draws
        vectors = sketches[pair].double().reshape(len(margin), n, -1)
        slope = -torch.sigmoid(-BETA * margin.mean()) * BETA
        truth = slope * vectors.mean(1)
        size += squared_mean(truth)
        mean_truth += truth.mean(0) / len(policy)
        for name, found in estimates(margin, vectors).items():
            bias = found - truth
            entry = sums.setdefault(name, {"bias_squared": 0.0, "variance": 0.0})
            entry["bias_squared"] += squared_mean(bias)
            entry["variance"] += total_variance(found)
            mean_bias[name] = mean_bias.get(name, 0) + bias.mean(0) / len(policy)
    along = mean_truth / mean_truth.norm()
    return {
        name: {
            "relative_bias_squared": entry["bias_squared"] / size,
            "relative_bias_of_mean": float(mean_bias[name] @ along / mean_truth.norm()),
            "variance": entry["variance"] / sums["plain"]["variance"],
        }
        for name, entry in sums.items()
    }


def controlled(policy: Tensor, reference: Tensor) -> dict[str, float]:
    """Score variance of one draw with the reference as a control variate of coefficient c, relative to c = 1."""
    h, r = ((part[:, :, 0] - part[:, :, 1]).double().flatten(1) for part in (policy, reference))
    h, r = h - h.mean(1, keepdim=True), r - r.mean(1, keepdim=True)
    shared = (h - r).square().sum()
    own = (h * r).sum(1) / r.square().sum(1)  # the best coefficient of each pair
    common = (h * r).sum() / r.square().sum()
    return {
        "best_common_c": float(common),
        "variance_at_common_c": float((h - common * r).square().sum() / shared),
        "variance_at_each_pair_s_c": float((h - own[:, None] * r).square().sum() / shared),
        "variance_at_c_0": float(h.square().sum() / shared),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/table2"))
    args = parser.parse_args()
    results = []
    for path in sorted(args.runs.glob("*_*.safetensors"), key=lambda path: int(re.findall(r"\d+", path.stem)[-1])):
        stored = load_file(path)
        parts = [stored[f"1/{name}"] for name in ("policy", "reference", "gradient")]
        found = {str(n): at(*parts, n) for n in (1, 2, 4, 8)}
        task, step = path.stem.rsplit("_", 1)
        results.append({"task": task, "step": int(step), "slopes": found, "control": controlled(*parts[:2])})
    results.sort(key=lambda one: (one["task"] != "text", one["step"]))
    (HERE / "slopes.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "slopes.md").write_text(page(results))
    print(page(results))


def page(results: list[dict]) -> str:
    lines = ["| stage | n | estimator | squared bias of a pair's gradient | bias of the mean gradient | variance |"]
    lines.append("|---|---|---|---|---|---|")
    for one in results:
        for n, found in one["slopes"].items():
            for name, entry in found.items():
                values = f"{entry['relative_bias_squared']:.1e} | {entry['relative_bias_of_mean']:+.2%}"
                lines.append(
                    f"| {one['task']}, step {one['step']} | {n} | {name} | {values} | {entry['variance']:.3f} |"
                )
    lines += [
        "",
        "| stage | best common c | variance at it | at each pair's own c | at c = 0 |",
        "|---|---|---|---|---|",
    ]
    for one in results:
        c = one["control"]
        values = f"{c['variance_at_common_c']:.3f} | {c['variance_at_each_pair_s_c']:.3f} | {c['variance_at_c_0']:.1f}"
        lines.append(f"| {one['task']}, step {one['step']} | {c['best_common_c']:.4f} | {values} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
