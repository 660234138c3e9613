"""The grid from which the demo takes its defaults: learning rate, beta, SFT coefficient, batch; rate of the control.

    python benchmarks/demo_grid/run.py [--runs runs/demo_grid]

One base model and one set of pairs, as the demo makes them; every arm judged on validation problems that the demo does
not use. Writes result.json beside this file after every arm; what is in it is not run again.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from vrpo.demo import run as demo
from vrpo.demo.report import wilson
from vrpo.models.load import load

HERE = Path(__file__).parent
VRPO = [
    {"learning_rate": rate, "beta": beta, "sft_coef": coef, "batch": batch}
    for rate, beta, coef, batch in (
        (5e-4, 0.3, 0.0, 8),
        (1e-3, 0.3, 0.0, 8),
        (1e-3, 0.3, 0.5, 8),
        (1e-3, 1.0, 0.0, 8),
        (5e-4, 0.1, 0.0, 8),
        (1e-3, 0.3, 0.0, 32),
        (2e-3, 0.3, 0.0, 32),
        (2e-3, 1.0, 0.0, 32),
    )
]
CONTROL = [{"sft_learning_rate": rate, "batch": 8} for rate in (5e-4, 1e-3, 2e-3)]


def measure(arm: str, point: dict[str, float], runs: Path) -> dict[str, object]:
    settings = dataclasses.replace(demo.Settings(), **point)
    pairs = [json.loads(line) for line in (runs / "pairs.jsonl").read_text().split("\n") if line]
    folder = runs / "_".join([arm, *(f"{value:g}" for value in point.values())])
    (demo.align if arm == "vrpo" else demo.imitate_chosen)(runs / "base", pairs, settings, folder)
    denoiser = load(folder, dtype=torch.float32)
    right = demo.answer_test(denoiser, settings, folder / "answers.jsonl", "validate")
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().split("\n") if line]
    bases = sum(demo.right_bases(entry["prompt"], entry["answer"]) for entry in answers) / len(answers) / demo.LENGTH
    return {"arm": arm, "point": point, "all_right": wilson(right), "right_bases": bases}


def report(results: list[dict]) -> str:
    rows = []
    for entry in sorted(results, key=lambda entry: (entry["arm"], -entry["all_right"]["mean"], -entry["right_bases"])):
        settings = ", ".join(f"{name} {value:g}" for name, value in entry["point"].items())
        right = entry["all_right"]
        rows.append(
            f"| {entry['arm']} | {settings} | {right['mean']:.3f} [{right['low']:.3f}, {right['high']:.3f}] "
            f"| {entry['right_bases']:.3f} |"
        )
    head = "| arm | settings | strands all right [95 %] | right bases |"
    introduction = (__doc__ or "").split("\n\n")
    return "\n".join(
        [
            "# The grid behind the demo's defaults",
            "",
            introduction[0],
            introduction[2].split(". Writes")[0].replace("\n", " ") + ".",
            "",
            "One run per line, greedy decoding, 1,000 validation problems that nothing else uses.",
            "Imitation of the preferred answers is held back by what they are: most of their bases are copies too.",
            "",
            head,
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/demo_grid"))
    runs = parser.parse_args().runs
    runs.mkdir(parents=True, exist_ok=True)
    base = demo.imitate_students(demo.Settings(), runs / "base")
    demo.collect_pairs(base, demo.Settings(), runs / "pairs.jsonl")
    path = HERE / "result.json"
    results = json.loads(path.read_text()) if path.is_file() else []
    for arm, point in [*(("vrpo", point) for point in VRPO), *(("sft_control", point) for point in CONTROL)]:
        if not any(entry["arm"] == arm and entry["point"] == point for entry in results):
            results.append(measure(arm, point, runs))
            path.write_text(json.dumps(results, indent=1) + "\n")
            (HERE / "README.md").write_text(report(results))
            print(results[-1], flush=True)
