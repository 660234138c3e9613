"""From the runs to result.json, logs/, the plot and the tables of README.md (called by run.py --stage report)."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure

from vrpo import VRPOConfig, VRPOTrainer, load
from vrpo.data.sources import load_rows

HERE = Path(__file__).parent
LABELS = {
    "vrpo": "VRPO, n = 8, shared draws",
    "naive_same_steps": "naive DPO, n = 1, nothing shared: same pairs and steps",
    "naive_same_passes": "naive DPO, n = 1, nothing shared: same forward passes (8x the steps)",
    "sft_chosen": "SFT on the chosen answers: about the same FLOPs",
}
BASE_TERMS: dict[int, torch.Tensor] = {}
SHOWN = ("rewards/accuracies", "rewards/margins", "elbo/chosen_change", "elbo/rejected_change", "score/variance")


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def evaluation(policy: Path, base: Path, data: Path, beta: float, cache: Path) -> dict[str, list[float]]:
    """Per-pair metrics of a checkpoint against the base, on the evaluation split and the draws all arms share."""
    if cache.is_file():
        return json.loads(cache.read_text())
    fields = yaml.safe_load((HERE / "preference.yaml").read_text())
    config = VRPOConfig(**fields, beta=beta, output_dir=str(cache.parent / "evaluation"))
    models = [load(folder, dtype=torch.float32) for folder in (policy, base)]
    trainer = VRPOTrainer(models[0], ref_model=models[1], args=config, eval_dataset=load_rows(str(data), split="eval"))
    trainer._eval_reference = BASE_TERMS  # the base's terms on these draws are the same for every policy
    found: dict[str, list[float]] = {}
    with torch.no_grad(), trainer.accelerator.autocast():
        for batch in trainer.get_eval_dataloader():
            for name, values in trainer.batch_metrics(trainer.denoiser.module, batch).items():
                found.setdefault(name, []).extend(values.tolist())
    cache.write_text(json.dumps(found))
    return found


def mean_interval(values: list[float]) -> list[float]:
    """Mean and 95 % interval over pairs (normal)."""
    table = torch.tensor(values, dtype=torch.float64)
    half = 1.96 * float(table.std()) / math.sqrt(len(table))
    return [float(table.mean()), float(table.mean()) - half, float(table.mean()) + half]


def collect(
    data: Path, runs: Path, grid: dict[str, Any], best: dict[str, Any], seconds: dict[str, Any]
) -> dict[str, Any]:
    """Everything that README.md states, in one JSON."""
    items, curves = {}, {}
    beta = float(best["vrpo"]["beta"])
    for name in LABELS:
        folder = runs / "arms" / name
        own = float(best[name].get("beta", beta))
        items[name] = evaluation(folder, runs / "base", data, own, folder / "items.json")
        if name == "sft_chosen":
            checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
            evaluated = [
                {"step": int(path.name.split("-")[1])}
                | {
                    f"eval_{metric}": mean_interval(values)[0]
                    for metric, values in evaluation(path, runs / "base", data, own, path / "items.json").items()
                }
                for path in checkpoints
            ]
        else:
            evaluated = [entry for entry in entries(folder / "log.jsonl") if "eval_rewards/accuracies" in entry]
        curves[name] = [
            {"step": entry["step"], **{metric: entry[f"eval_{metric}"] for metric in SHOWN}} for entry in evaluated
        ]
    base_log = entries(runs / "base" / "log.jsonl")
    arms = {
        name: {
            "settings": best[name],
            "seconds": seconds[name],
            "final": {metric: mean_interval(items[name][metric]) for metric in SHOWN},
            "accuracy_minus_vrpo": mean_interval(
                [
                    a - b
                    for a, b in zip(items[name]["rewards/accuracies"], items["vrpo"]["rewards/accuracies"], strict=True)
                ]
            ),
            "curve": curves[name],
        }
        for name in LABELS
    }
    return {
        "pairs_evaluated": len(items["vrpo"]["rewards/margins"]),
        "base": {"eval_loss": [[entry["step"], entry["eval_loss"]] for entry in base_log if "eval_loss" in entry]},
        "grid": grid,
        "arms": arms,
    }


def keep_logs(data: Path, runs: Path) -> None:
    logs = HERE / "logs"
    logs.mkdir(exist_ok=True)
    shutil.copy(runs / "base" / "log.jsonl", logs / "base.jsonl")
    for name in LABELS:
        shutil.copy(runs / "arms" / name / "log.jsonl", logs / f"{name}.jsonl")
        command = (runs / "arms" / name / "output.log").read_text().split("\n")[0]
        (logs / f"{name}.command").write_text(
            command.replace(str(runs), "RUNS").replace(str(data), "DATA").replace(str(HERE.parent.parent), ".") + "\n"
        )


def plot(result: dict[str, Any]) -> None:
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    panels = figure.subplots(1, 4)
    titles = {
        "rewards/accuracies": "held-out pairs ordered rightly",
        "rewards/margins": "held-out reward margin",
        "elbo/chosen_change": "bound of chosen answers, change in nats",
        "score/variance": "variance of a pair's score, 8 draws",
    }
    for axis, (metric, title) in zip(panels, titles.items(), strict=True):
        for colour, (name, arm) in enumerate(result["arms"].items()):
            last = arm["curve"][-1]["step"]
            share = [point["step"] / last for point in arm["curve"]]
            values = [point[metric] for point in arm["curve"]]
            axis.plot(share, values, marker="o", markersize=3, color=f"C{colour}", label=LABELS[name])
        axis.set(xlabel="share of the run", title=title)
    for colour, arm in enumerate(result["arms"].values()):  # intervals of the last point, side by side
        mean, low, high = arm["final"]["rewards/accuracies"]
        bar = {"yerr": [[mean - low], [high - mean]], "capsize": 3, "color": f"C{colour}", "alpha": 0.6}
        panels[0].errorbar(1.03 + 0.03 * colour, mean, **bar)
    panels[0].axhline(0.5, color="grey", linewidth=0.8)
    panels[2].axhline(0, color="grey", linewidth=0.8)
    panels[3].set_yscale("symlog", linthresh=1e-3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(HERE / "curves.png", dpi=110)


def tables(result: dict[str, Any]) -> str:
    """The part of README.md that is generated."""

    def show(values: list[float]) -> str:
        return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"

    rows = [
        f"| {LABELS[name]} | {arm['settings']['learning_rate']} | {arm['settings'].get('beta', '')} | "
        f"{show(arm['final']['rewards/accuracies'])} | {show(arm['accuracy_minus_vrpo']) if name != 'vrpo' else ''} | "
        f"{arm['final']['rewards/margins'][0]:.3f} | {arm['final']['elbo/chosen_change'][0]:.1f} | "
        f"{arm['final']['elbo/rejected_change'][0]:.1f} | {arm['final']['score/variance'][0]:.3g} | "
        f"{arm['seconds'] / 60:.0f} |"
        for name, arm in result["arms"].items()
    ]
    grid = []
    for name, points in result["grid"].items():
        for point in points:
            (measure,) = (field for field in point if field.startswith("eval_"))
            grid.append(
                f"| {name} | {point['learning_rate']} | {point.get('beta', '')} | {measure.removeprefix('eval_')} "
                f"{point[measure]:.3f} |"
            )
    return "\n".join(
        [
            f"Held out: {result['pairs_evaluated']} pairs of the eval split, the same 8 draws per answer for every arm "
            "and step; means over pairs with 95 % intervals; differences paired.",
            "",
            "| arm | rate | beta | accuracy | minus VRPO | margin | chosen, nats | rejected, nats | score variance "
            "| minutes |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "![curves](curves.png)",
            "",
            "The grid, on validation prompts:",
            "",
            "| arm | rate | beta | validation |",
            "|---|---|---|---|",
            *grid,
            "",
        ]
    )


def report(data: Path, runs: Path, grid: dict[str, Any], best: dict[str, Any]) -> None:
    seconds = {name: json.loads((runs / "arms" / name / "seconds.json").read_text()) for name in LABELS}
    result = collect(data, runs, grid, best, seconds)
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    keep_logs(data, runs)
    plot(result)
    page = HERE / "README.md"
    marker = "<!-- generated by report.py -->\n"
    written = page.read_text().split(marker)[0] if page.is_file() else ""
    page.write_text(written + marker + tables(result))
