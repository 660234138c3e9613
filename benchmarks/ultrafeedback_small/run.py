"""VRPO against naive DPO and SFT on real preference data, at a size two CPU cores can train.

    python benchmarks/ultrafeedback_small/run.py --data FOLDER [--stage all] [--workers 2]

FOLDER holds train.jsonl.gz and eval.jsonl.gz (a subset of UltraFeedback-binarized; prompt, chosen, rejected). Stages:
`sft` (the model that all arms start from), `grid` (learning rate and beta of each arm on a validation split of the
training prompts), `arms` (on all training pairs, evaluated on the eval split), `report`. What is
finished is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
RATES = ("3e-5", "1e-4", "3e-4")
BETAS = ("0.05", "0.2")
EVALUATIONS = 5  # of each arm while it trains
GRID_STEPS = 8  # optimizer steps of a grid run: 128 pairs
# Per pair and draw, F being one forward pass of one answer: a preference step costs 2 x (policy F + reference F +
# policy 3F) = 10F, an SFT step 3F on the chosen answer. So naive_same_passes has the passes of vrpo, and three epochs
# of SFT have about its FLOPs.
ARMS = {
    "vrpo": {"num_times": 8, "share_draws": "true", "num_train_epochs": 1},
    "naive_same_steps": {"num_times": 1, "share_draws": "false", "num_train_epochs": 1},
    "naive_same_passes": {"num_times": 1, "share_draws": "false", "num_train_epochs": 8},
    "sft_chosen": {"num_times": 8, "num_train_epochs": 3},
}


def vrpo(*arguments: str, log: Path) -> float:
    """Run a vrpo command on one thread; returns its seconds. Its output goes to `log`."""
    command = [sys.executable, "-m", "vrpo", *arguments]
    start = time.time()
    with log.open("w") as file:
        print("$ vrpo", *arguments, file=file, flush=True)
        subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    return time.time() - start


def flags(settings: dict[str, object]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def train_base(data: Path, runs: Path) -> None:
    if not (runs / "base" / "config.json").is_file():
        vrpo(
            *("sft", "--config", str(HERE / "sft.yaml"), "--dataset_name", str(data), "--dataset_train_split", "train"),
            *("--dataset_test_split", "eval", "--eval_strategy", "epoch", "--output_dir", str(runs / "base")),
            log=runs / "base.log",
        )


def arm(name: str, data: Path, runs: Path, folder: Path, settings: dict[str, object]) -> None:
    """One training run of an arm into `folder`; marks it done with its seconds."""
    if (folder / "seconds.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = "sft" if name == "sft_chosen" else "train"
    extra = ["--completion_column", "chosen"] if command == "sft" else []
    drop = {"warn_displacement"} if command == "sft" else set()
    config = folder / "config.yaml"
    lines = (HERE / "preference.yaml").read_text().split("\n")
    config.write_text("\n".join(line for line in lines if line.split(":")[0] not in drop))
    seconds = vrpo(
        *(command, "--config", str(config), "--model_name_or_path", str(runs / "base"), "--output_dir", str(folder)),
        *flags({**ARMS[name], **settings}),
        *extra,
        log=folder / "output.log",
    )
    (folder / "seconds.json").write_text(json.dumps(seconds))


def grid_points(name: str) -> list[dict[str, str]]:
    betas = BETAS if name != "sft_chosen" else ("",)
    return [{"learning_rate": rate, **({"beta": beta} if beta else {})} for rate in RATES for beta in betas]


def run_grid(data: Path, runs: Path, workers: int) -> None:
    """Every arm's grid, for as many pairs as GRID_STEPS steps see (8 times as often where the arm repeats 8 times)."""

    def one(job: tuple[str, dict[str, str]]) -> None:
        name, point = job
        repeats = int(ARMS[name]["num_train_epochs"])  # type: ignore[call-overload]
        folder = runs / "grid" / name / "_".join(point.values())
        steps = GRID_STEPS * repeats
        settings = {
            "dataset_name": data / "train.jsonl.gz",
            "eval_fraction": 0.15,
            "max_steps": steps,
            **point,
        }
        arm(name, data, runs, folder, {**settings, "eval_strategy": "steps", "eval_steps": steps})

    jobs = [(name, point) for name in ARMS for point in grid_points(name)]
    jobs.sort(key=lambda job: -int(ARMS[job[0]]["num_train_epochs"]) * int(ARMS[job[0]]["num_times"]))  # type: ignore[call-overload]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, jobs))


def entries(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().split("\n") if line]


def grid_results(runs: Path) -> dict[str, list[dict[str, object]]]:
    """Validation figures of every grid point: accuracy of the margin, or the loss where answers are imitated."""
    measure = {name: "eval_loss" if name == "sft_chosen" else "eval_rewards/accuracies" for name in ARMS}
    return {
        name: [
            {**point, measure[name]: entries(runs / "grid" / name / "_".join(point.values()))[-2][measure[name]]}
            for point in grid_points(name)
        ]
        for name in ARMS
    }


def best(name: str, points: list[dict[str, object]]) -> dict[str, object]:
    """Highest validation accuracy (lowest loss for SFT); ties go to the smaller rate, then the smaller beta."""
    if name == "sft_chosen":
        chosen = min(points, key=lambda point: point["eval_loss"])
    else:
        chosen = max(points, key=lambda point: point["eval_rewards/accuracies"])
    return {field: chosen[field] for field in ("learning_rate", "beta") if field in chosen}


def run_arms(data: Path, runs: Path, workers: int) -> None:
    """Every arm at its best grid point, one epoch of pairs (eight of one draw in protocol b, three of SFT)."""
    grid = grid_results(runs)
    pairs = 994  # of the training split, what is left after unusable rows

    def one(name: str) -> None:
        steps = -(-pairs // 16) * int(ARMS[name]["num_train_epochs"])  # type: ignore[call-overload]
        settings = {"dataset_name": data, "dataset_train_split": "train", **best(name, grid[name])}
        if name == "sft_chosen":
            settings |= {"save_strategy": "steps", "save_steps": steps // EVALUATIONS, "save_only_model": "true"}
        else:
            settings |= {"dataset_test_split": "eval", "eval_on_start": "true", "eval_strategy": "steps"}
            settings |= {"eval_steps": steps // EVALUATIONS}
        arm(name, data, runs, runs / "arms" / name, settings)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, ARMS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/ultrafeedback_small"))
    parser.add_argument("--stage", default="all", choices=("all", "sft", "grid", "arms", "report"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    if arguments.stage in ("all", "sft"):
        train_base(arguments.data, arguments.runs)
    if arguments.stage in ("all", "grid"):
        run_grid(arguments.data, arguments.runs, arguments.workers)
    if arguments.stage in ("all", "arms"):
        run_arms(arguments.data, arguments.runs, arguments.workers)
    if arguments.stage in ("all", "report"):
        from report import report

        grid = grid_results(arguments.runs)
        report(arguments.data, arguments.runs, grid, {name: best(name, grid[name]) for name in ARMS})
