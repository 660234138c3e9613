"""The columns of the paper's Table 2 on one checkpoint at a time, at several stages of training.

    python benchmarks/table2_same_checkpoint/run.py --task text --base FOLDER --policy FOLDER --pairs FILE
    python benchmarks/table2_same_checkpoint/run.py --task sudoku ...       then: --report

FOLDER of the policy holds checkpoint-STEP folders of a VRPO run that started from the base; FILE is JSON lines of
held-out pairs. Every column comes from the same replicates: groups of one draw, of two and of four masks at one level.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vrpo import FixedCount, FrozenReference, load
from vrpo.data import PreferenceCollator, load_rows, tokenize_preferences, tokens_of
from vrpo.diagnostics.replicates import Replicates, replicate
from vrpo.diagnostics.statistics import Interval, averaged, noise
from vrpo.sketch import Sketch
from vrpo.types import Tokens

HERE = Path(__file__).parent
COLUMNS = {  # n_t, n_y, shared: as the paper's Table 2 names them, in its order
    "4 / 1 / yes": (4, 1, True),
    "1 / 1 / yes": (1, 1, True),
    "8 / 1 / yes": (8, 1, True),
    "1 / 4 / yes": (1, 4, True),
    "2 / 2 / yes": (2, 2, True),
    "4 / 1 / no": (4, 1, False),
}
MEASURES = ("score_variance", "loss_variance", "loss_gradient_variance", "score_gradient_variance")
DRAWS, REPLICATES, BETA = 16, 8, 0.2
LIMITS = {"max_length": 112, "max_prompt_length": 40, "truncation_mode": "keep_end"}


def held_out(path: Path, model: Any, count: int, limits: dict[str, Any]) -> list[Tokens]:
    examples, _ = tokenize_preferences(load_rows(str(path)), model.tokenizer, **limits)
    collate = PreferenceCollator(model.pad_id)
    return [tokens_of(collate([examples[index]]), seed=0, epoch=-2) for index in range(min(count, len(examples)))]


def measured(policy: Any, base: Any, pairs: list[Tokens]) -> dict[int, list[Replicates]]:
    """By the number of masks at one level: replicates of every pair."""
    found = {}
    for masks in (1, 2, 4):
        found[masks] = [
            replicate(
                policy,
                FrozenReference(base),
                pair,
                FixedCount(DRAWS // masks, masks),
                parameters=list(policy.module.parameters()),
                num_replicates=REPLICATES,
                sketch=Sketch(),
                max_tokens=8192,
            )
            for pair in pairs
        ]
    return found


def keep(path: Path, found: dict[int, list[Replicates]]) -> None:
    """The replicates themselves, for questions that come later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = ("policy", "reference", "gradient")
    save_file(
        {
            f"{masks}/{field}": torch.stack([getattr(one, field) for one in pairs]).float()
            for masks, pairs in found.items()
            for field in fields
        },
        path,
    )


def column(found: dict[int, list[Replicates]], name: str, measure: str) -> Interval:
    levels, masks, shared = COLUMNS[name]
    pairs = found[masks] if shared else [one.independent() for one in found[masks]]
    return averaged(pairs, lambda one: getattr(noise(one.at(levels), BETA), measure))


def lemma5(found: dict[int, list[Replicates]], measure: str) -> dict[str, float]:
    """V_t and V_y of one level, from levels of one mask and of four: V(n_y) = V_t + V_y / n_y."""
    one, four = (column(found, name, measure).value for name in ("1 / 1 / yes", "1 / 4 / yes"))
    within = (one - four) * 4 / 3
    between = one - within
    return {
        "between": between,
        "within": within,
        **{
            name: between / levels + within / (levels * masks)
            for name, (levels, masks, shared) in COLUMNS.items()
            if shared
        },
    }


def stage(args: argparse.Namespace, step: int, base: Any, pairs: list[Tokens]) -> dict[str, Any]:
    start = time.time()
    policy = load(args.policy / f"checkpoint-{step}", dtype=torch.float32)
    found = measured(policy, base, pairs)
    keep(args.runs / f"{args.task}_{step}.safetensors", found)
    every = [noise(one.at(8), BETA) for one in found[1]]
    return {
        "task": args.task,
        "step": step,
        "pairs": len(pairs),
        "replicates": REPLICATES,
        "mean_score": sum(one.score_mean for one in every) / len(every),
        "correlation": sum(one.correlation for one in every) / len(every),
        "columns": {name: {measure: vars(column(found, name, measure)) for measure in MEASURES} for name in COLUMNS},
        "lemma5": {measure: lemma5(found, measure) for measure in ("score_variance", "score_gradient_variance")},
        "seconds": round(time.time() - start),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("text", "sudoku"))
    parser.add_argument("--base", type=Path)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--steps", type=int, nargs="+")
    parser.add_argument("--num_pairs", type=int, default=16)
    parser.add_argument("--runs", type=Path, default=Path("runs/table2"))
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    path = HERE / "result.json"
    results = json.loads(path.read_text()) if path.is_file() else []
    if args.task:
        torch.set_num_threads(1)
        base = load(args.base, dtype=torch.float32)
        pairs = held_out(args.pairs, base, args.num_pairs, LIMITS)
        for step in args.steps:
            if not any(one["task"] == args.task and one["step"] == step for one in results):
                entry = stage(args, step, base, pairs)
                results = json.loads(path.read_text()) if path.is_file() else []  # another process may have written
                results.append(entry)
                path.write_text(json.dumps(results, indent=1) + "\n")
                print(args.task, step, entry["seconds"], "s", flush=True)
    if args.report:
        from report import report

        report(results)


if __name__ == "__main__":
    main()
