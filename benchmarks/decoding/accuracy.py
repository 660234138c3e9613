"""What each way to decode does to accuracy, passes and tokens per second, on small trained models.

    python benchmarks/decoding/accuracy.py --data FOLDER --models runs/verified_gain [--stage all]

The base models of benchmarks/verified_gain (Sudoku, Countdown; a canvas as long as the answer), and the Sudoku one
trained further on canvases of 64 tokens that end-of-text fills (stage `train`), as LLaDA's are. Stage `measure`
answers puzzles that none of them was trained on, in every way; stage `report` writes README.md and the picture.
"""

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path
from statistics import mean, variance
from typing import Any

import torch
from datasets import Dataset
from matplotlib.figure import Figure

from vrpo import SFTConfig, SFTTrainer, generate, load
from vrpo.rewards.judges import verifier
from vrpo.rewards.verdict import Answer

sys.path.insert(0, str(Path(__file__).parent.parent / "variance_training"))
sys.path.insert(0, str(Path(__file__).parent.parent / "verified_gain"))
from common import trainer_settings
from tasks import TASKS, Row

HERE = Path(__file__).parent
CANVAS, BLOCK, STEPS, SEED = 64, 32, 4000, 0
PUZZLES, ROWS = 1000, 100  # answered, and at a time
OFFICIAL = "one token a pass (official)"
WAYS: dict[str, dict[str, Any]] = {
    OFFICIAL: {},
    "by margin": {"remasking": "margin"},
    "by entropy": {"remasking": "entropy"},
    "in random order": {"remasking": "random"},
    "2 tokens a pass": {"tokens": 2},
    "4 tokens a pass": {"tokens": 4},
    "threshold 0.99": {"threshold": 0.99},
    "threshold 0.98": {"threshold": 0.98},
    "threshold 0.95": {"threshold": 0.95},
    "threshold 0.9": {"threshold": 0.9},
    "threshold 0.8": {"threshold": 0.8},
    "prefix cache": {"cache": "prefix"},
    "dual cache": {"cache": "dual"},
    "dual cache, again every 4": {"cache": "dual", "refresh": 4},
}
LONG = {
    "stop at the end token": {"stop_at_end": True},
    "threshold 0.99, stop": {"threshold": 0.99, "stop_at_end": True},
    "threshold 0.985, stop": {"threshold": 0.985, "stop_at_end": True},
    "threshold 0.98, stop": {"threshold": 0.98, "stop_at_end": True},
    "threshold 0.95, stop": {"threshold": 0.95, "stop_at_end": True},
    "threshold 0.9, stop": {"threshold": 0.9, "stop_at_end": True},
    "threshold 0.99, stop, dual cache": {"threshold": 0.99, "stop_at_end": True, "cache": "dual"},
}


def train(models: Path, data: Path) -> None:
    """The Sudoku model, further, with end-of-text up to the end of a canvas of 64."""
    task, folder = TASKS["sudoku"], models / "canvas64"
    if (folder / "model.safetensors").is_file():
        return
    rows = [{"prompt": row["prompt"], "completion": task.completion(row)} for row in task.rows(data, "sft")]
    fields = {"max_steps": STEPS, "per_device_train_batch_size": 64, "learning_rate": 3e-3, "logging_steps": 50.0}
    config = SFTConfig(
        **trainer_settings(folder, warmup_steps=20.0, eos_padding=CANVAS, log_gradient_snr=False, **fields)
    )
    trainer = SFTTrainer(
        load(models / "sudoku" / "base", dtype=torch.float32), args=config, train_dataset=Dataset.from_list(rows)
    )
    trainer.train()
    trainer.save_model()


def problems(name: str, data: Path) -> list[Row]:
    """Those of the test file, and for Sudoku as many more of the training file as make a thousand, none trained on."""
    rows = TASKS[name].rows(data, "test")
    if name == "sudoku":
        more = [*TASKS[name].rows(data, "validate"), *TASKS[name].rows(data, "pairs")]
        rows = [*rows, *more[: PUZZLES - len(rows)]]
    return rows


def measured(name: str, folder: Path, rows: list[Row], length: int, block: int, ways: dict[str, Any]) -> list[Row]:
    """Marks, passes and seconds of each way; groups of rows alternate between the ways, in an order of chance."""
    denoiser = load(folder, dtype=torch.float32)
    denoiser.module.eval()
    judge = verifier(TASKS["sudoku" if name == "canvas64" else name].judge)
    found = {way: {"model": name, "way": way, "marks": "", "passes": [], "seconds": []} for way in ways}
    rng = random.Random(SEED)
    for first in range(0, len(rows), ROWS):
        group = rows[first : first + ROWS]
        for way in rng.sample(list(ways), len(ways)):
            options = dict(ways[way])
            tokens = options.pop("tokens", 1)
            start = time.perf_counter()
            out = generate(
                denoiser,
                [row["prompt"] for row in group],
                max_new_tokens=length,
                block_size=block,
                steps=None if "threshold" in options else -(-length // tokens),
                batch_size=ROWS,
                generator=torch.Generator().manual_seed(SEED),
                progress=False,
                **options,
            )
            each = found[way]
            each["seconds"].append(time.perf_counter() - start)
            each["passes"] += [answer.nfe for answer in out]
            answers = [Answer(row["prompt"], one.text or "", row) for row, one in zip(group, out, strict=True)]
            each["marks"] += "".join(str(int(verdict.reward)) for verdict in judge(answers))
        print(name, first + len(group), "of", len(rows), file=sys.stderr, flush=True)
    return [{**each, "length": length, "block": block} for each in found.values()]


def table(found: list[Row]) -> list[str]:
    head = [
        "way",
        "right",
        "minus official, points [95 %]",
        "passes",
        "times fewer",
        "tokens/s",
        "times official [10 groups' range]",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    official = next(each for each in found if each["way"] == OFFICIAL)
    for each in found:
        marks, base = ([int(mark) for mark in one["marks"]] for one in (each, official))
        difference = [a - b for a, b in zip(marks, base, strict=True)]
        half = 1.96 * math.sqrt(variance(difference) / len(difference))
        centre, passes = mean(difference), mean(each["passes"])
        speed = len(marks) * each["length"] / sum(each["seconds"])
        times = [a / b for a, b in zip(official["seconds"], each["seconds"], strict=True)]
        gain = sum(official["seconds"]) / sum(each["seconds"])
        cells = [
            each["way"],
            f"{mean(marks):.3f}",
            f"{100 * centre:+.1f} [{100 * (centre - half):+.1f}, {100 * (centre + half):+.1f}]",
            f"{passes:.1f}",
            f"{mean(official['passes']) / passes:.1f}",
            f"{speed:,.0f}",
            f"{gain:.1f} [{min(times):.1f}, {max(times):.1f}]",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def family(way: str) -> str:
    """What is drawn as one curve."""
    if way == OFFICIAL or "tokens a pass" in way:
        return "1, 2, 4 tokens a pass"
    if way.startswith("threshold") and "cache" not in way:
        return "by threshold, until the end token" if "stop" in way else "by threshold"
    return way


def draw(axis: Any, rows: list[Row]) -> None:
    """Right answers against passes, by family."""
    for number, name in enumerate(dict.fromkeys(family(each["way"]) for each in rows)):
        points = [
            (mean(each["passes"]), mean(map(int, each["marks"])), each["way"])
            for each in rows
            if family(each["way"]) == name
        ]
        passes, right, ways = zip(*sorted(points), strict=True)
        axis.plot(passes, right, marker="osD^v<>P*XhpH"[number % 13], markersize=5, color=f"C{number % 10}", label=name)
        for x, y, way in zip(passes, right, ways, strict=True):
            if name == "by threshold":
                axis.annotate(way.split()[1], (x, y), fontsize=7, xytext=(5, -8), textcoords="offset points")
    axis.set_xscale("log")
    axis.set_xlabel("forward passes per answer")
    axis.set_ylabel("right answers")
    axis.grid(alpha=0.3, which="both")


def report() -> None:
    found: list[Row] = json.loads((HERE / "accuracy.json").read_text())
    lines: list[str] = []
    names = list(dict.fromkeys(each["model"] for each in found))
    figure = Figure(figsize=(5.2 * len(names), 4.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = [each for each in found if each["model"] == name]
        length, block, count = rows[0]["length"], rows[0]["block"], len(rows[0]["marks"])
        lines += [f"**{name}**: {count} problems, a canvas of {length} tokens in blocks of {block}", "", *table(rows)]
        draw(axis, rows)
        axis.set_title(f"{name}, canvas of {length}")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(HERE / "accuracy.png", dpi=120)
    readme = HERE / "README.md"
    head, rest = readme.read_text().split("<!-- accuracy")
    rest = rest[rest.index("<!-- speed") :]
    text = "\n".join([*lines, "![accuracy against passes](accuracy.png)", ""])
    readme.write_text(f"{head}<!-- accuracy: generated by accuracy.py -->\n\n{text}\n{rest}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("runs/verified_gain"))
    parser.add_argument("--stage", choices=("all", "train", "measure", "report"), default="all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.stage in ("all", "train"):
        train(given.models, given.data)
    if given.stage in ("all", "measure"):
        results: list[Row] = []
        for name in TASKS:
            length = TASKS[name].length
            results += measured(name, given.models / name / "base", problems(name, given.data), length, length, WAYS)
        rows = problems("sudoku", given.data)
        results += measured("canvas64", given.models / "canvas64", rows, CANVAS, BLOCK, WAYS | LONG)
        (HERE / "accuracy.json").write_text(json.dumps(results) + "\n")
    if given.stage in ("all", "report"):
        report()
