"""The recipe recipes/sudoku_rounds_cpu as a newcomer runs it, timed, and what came out.

    python benchmarks/rounds/run.py          # in the root of the repository; minutes on one CPU core

The commands are those in the recipe's comments, and once more `vrpo eval` with greedy answers, which the recipe does
not look at. Leaves result.json, eval.png and the table of README.md here. What is in runs/sudoku already is not made
again, and its seconds are those of finding that out: begin without it.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE, RUNS = Path(__file__).parent, Path("runs/sudoku")
RECIPE = "recipes/sudoku_rounds_cpu"
AFTER = "after_round_3"
VRPO = [sys.executable, "-m", "vrpo"]
COMMANDS = {
    "data": [sys.executable, f"{RECIPE}/data.py"],
    "base": [*VRPO, "sft", "--config", f"{RECIPE}/base.yaml"],
    "rounds": [*VRPO, "rounds", "--config", f"{RECIPE}/rounds.yaml"],
    "greedy": [
        *[*VRPO, "eval", "--models", f"before={RUNS}/base", f"{AFTER}={RUNS}/rounds/round_3/model"],
        *["--task", f"sudoku={RUNS}/data/test.jsonl", "--max_new_tokens", "17", "--batch_size", "50"],
        *["--output_dir", f"{RUNS}/greedy"],
    ],
}


def run() -> dict[str, float]:
    """Seconds of each command."""
    seconds = {}
    for name, command in COMMANDS.items():
        print("$", " ".join(command).replace(sys.executable, "python"), flush=True)
        start = time.time()
        subprocess.run(command, check=True)
        seconds[name] = round(time.time() - start, 1)
    return seconds


def evaluated(folder: Path) -> dict[str, object]:
    """The values of an evaluation, without where files were."""
    found = json.loads((folder / "eval.json").read_text())
    return {name: found[name] for name in ("tasks", "versions", "results")}


def shown(result: dict[str, dict]) -> str:
    """The tables of README.md."""
    blocks = [result["rounds"]["account"].strip(), ""]
    blocks += ["| answers | before | after three rounds | difference | McNemar's exact p |", "|---|---|---|---|---|"]
    for name in ("sampled", "greedy"):
        (found,) = result[name]["results"]
        (versus,) = found["comparisons"]
        cells = [percent(found["models"][model]) for model in ("before", AFTER)]
        cells += [percent(versus["difference"]), f"{versus['p_value']:.1e}"]
        blocks.append(f"| {name} | {' | '.join(cells)} |")
    seconds = result["seconds"]
    return "\n".join([*blocks, "", ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())])


def percent(found: dict[str, float]) -> str:
    value, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    seconds = run()
    account = {"account": (RUNS / "rounds" / "rounds.md").read_text()}
    result = {"seconds": seconds, "rounds": account, "sampled": evaluated(RUNS / "rounds" / "evaluation")}
    result["greedy"] = evaluated(RUNS / "greedy")
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    shutil.copy(RUNS / "rounds" / "evaluation" / "eval.png", HERE / "eval.png")
    page = HERE / "README.md"
    marks = r"(<!-- tables of result\.json -->\n).*(<!-- end -->)"
    page.write_text(re.sub(marks, rf"\g<1>{shown(result)}\n\g<2>", page.read_text(), flags=re.DOTALL))
