"""Pictures. The only place that imports matplotlib, and only when a picture is drawn."""

import json
from pathlib import Path
from typing import Any


def _log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def demo_picture(folder: Path, results: dict[str, Any]) -> None:
    """folder/demo.png: the reward margin and the bounds while aligning, and accuracy before and after.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("the picture needs matplotlib: pip install 'vrpo[plots]'") from error
    log = [entry for entry in _log(folder / "vrpo" / "log.jsonl") if "rewards/margins" in entry]
    step = [entry["step"] for entry in log]
    figure = Figure(figsize=(13, 4), layout="constrained")
    margin, bounds, accuracy = figure.subplots(1, 3)
    margin.plot(step, [entry["rewards/margins"] for entry in log], color="C0", label="margin (left)")
    margin.set(xlabel="step", ylabel="reward margin", title="VRPO: the margin grows")
    twin = margin.twinx()
    twin.plot(step, [entry["rewards/accuracies"] for entry in log], color="C1", alpha=0.6, label="accuracy (right)")
    twin.set(ylim=(0, 1.02), ylabel="pairs ordered rightly")
    margin.legend(handles=[*margin.lines, *twin.lines], loc="lower right")
    for name, colour in (("chosen", "C2"), ("rejected", "C3")):
        bounds.plot(step, [entry[f"elbo/{name}_change"] for entry in log], color=colour, label=name)
    bounds.axhline(0, color="grey", linewidth=0.8)
    bounds.set(xlabel="step", ylabel="nats against the reference", title="Bounds of chosen and rejected answers")
    bounds.legend()
    names = ["base", "sft_control", "vrpo"]
    values = [results["accuracy"][name] for name in names]
    error_bars = [[v["mean"] - v["low"] for v in values], [v["high"] - v["mean"] for v in values]]
    place = [0.0, 1.0, 2.0]
    greedy = accuracy.bar(
        [x - 0.2 for x in place], [v["mean"] for v in values], 0.4, yerr=error_bars, capsize=4, label="strands, greedy"
    )
    sampled = accuracy.bar(
        [x + 0.2 for x in place], [results["sampled_right_bases"][name] for name in names], 0.4, label="bases, sampled"
    )
    for bars in (greedy, sampled):
        accuracy.bar_label(bars, fmt="%.2f", padding=4)
    accuracy.set_xticks(place, ["before", "SFT on chosen\n(control)", "VRPO"])
    accuracy.set(ylim=(0, 1.15), ylabel="share right, held out", title="Before and after (95 % intervals)")
    accuracy.legend(loc="upper left")
    figure.savefig(folder / "demo.png", dpi=120)
