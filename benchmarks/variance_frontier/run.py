"""How much noise each plan leaves in the score and in the gradient, at the same number of forward passes.

    python benchmarks/variance_frontier/run.py --data FOLDER [--stage all] [--set ultrafeedback gsm8k]

FOLDER holds gsm8k/ and ultrafeedback/ (see texts.py). Stages: `base` (a small model from scratch), `policy` (VRPO from
it), `measure` (replicates of every plan on held-out pairs; what is measured is not measured again), `report`.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from plans import BY_DRAW, PLANS, N, OneLevel, Whole
from safetensors.torch import save_file
from torch import Tensor

from vrpo import FrozenReference, Tokens, load
from vrpo.data import PreferenceCollator, load_rows, tokenize_preferences, tokens_of
from vrpo.diagnostics.replicates import Replicates, replicate, replicated
from vrpo.draws import fold
from vrpo.estimator import pack_terms
from vrpo.models.hf import HFDenoiser
from vrpo.plans import IndependentMasks, Levels
from vrpo.sketch import Sketch
from vrpo.types import Plan

HERE = Path(__file__).parent
SETS = ("gsm8k", "ultrafeedback")
STEP = 40  # of the policy that is measured
PAIRS, PER_ROUND = 64, 2
FIELDS = ("policy", "reference", "gradient")
SINGLES = 1.0  # exponent of the law of counts of single draws


def vrpo(*arguments: str, log: Path) -> None:
    """Run a vrpo command on one thread; its output goes to `log`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, "-m", "vrpo", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
            env=environment,
        )


def train_base(runs: Path) -> None:
    if not (runs / "base" / "model.safetensors").is_file():
        fields = ("--config", str(HERE / "base.yaml"), "--dataset_name", str(runs / "data" / "base.jsonl"))
        vrpo("sft", *fields, "--output_dir", str(runs / "base"), log=runs / "base.log")


def train_policy(runs: Path) -> None:
    if not (runs / "policy" / "model.safetensors").is_file():
        fields = ("--config", str(HERE / "policy.yaml"), "--dataset_name", str(runs / "data" / "pairs.jsonl"))
        start = ("--model_name_or_path", str(runs / "base"), "--output_dir", str(runs / "policy"))
        vrpo("train", *fields, *start, log=runs / "policy.log")


def held_out(runs: Path, name: str, denoiser: HFDenoiser, count: int) -> list[Tokens]:
    """The first `count` held-out pairs, each as two rows."""
    rows = load_rows(str(runs / "data" / f"{name}.jsonl"))
    assert denoiser.tokenizer is not None
    limits = {"max_length": 112, "max_prompt_length": 40, "truncation_mode": "keep_end"}
    examples, _ = tokenize_preferences(rows, denoiser.tokenizer, **limits)
    collate = PreferenceCollator(denoiser.pad_id)
    return [tokens_of(collate([examples[index]]), seed=0, epoch=-2) for index in range(min(count, len(examples)))]


Measured = dict[str, Tensor]  # of all pairs, by name


def measure(runs: Path, name: str, rounds: dict[str, int], labels: Sequence[str]) -> None:
    """Replicates of single draws, of plans draw by draw, and of plans as a whole: `rounds` of each kind. Round after
    round, so that all plans gain precision together; what is there is not measured again."""
    torch.set_num_threads(1)
    policy = load(runs / "policy" / f"checkpoint-{STEP}", dtype=torch.float32)
    reference = FrozenReference(load(runs / "base", dtype=torch.float32))
    pairs = held_out(runs, name, policy, PAIRS)

    def keep(label: str, turn: int, one: Callable[[Tokens], Measured]) -> None:
        path = runs / "measured" / name / label / f"{turn}.safetensors"
        if not path.is_file():
            start = time.time()
            found = [one(pair) for pair in pairs]
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({field: torch.stack([part[field] for part in found]) for field in found[0]}, path)
            print(f"{name}, round {turn}: {label}: {time.time() - start:.0f} s", flush=True)

    for turn in range(rounds["singles"]):
        keep("singles", turn, lambda pair, turn=turn: singles(policy, reference, pair, turn))
    for turn, label in product(range(rounds["draws"]), labels):
        if label in BY_DRAW:
            at = f"by draw/{label}"
            keep(at, turn, lambda pair, turn=turn, plan=BY_DRAW[label]: by_draw(policy, reference, pair, plan, turn))
    for turn, label in product(range(rounds["whole"]), labels):
        if label in PLANS:
            plan = Whole(PLANS[label])
            keep(label, turn, lambda pair, turn=turn, plan=plan: whole(policy, reference, pair, plan, turn))


def whole(policy: HFDenoiser, reference: FrozenReference, pair: Tokens, plan: Plan, turn: int) -> Measured:
    found = one_round(policy, reference, pair, plan, turn)
    return {field: getattr(found, field).float() for field in FIELDS}


def singles(policy: HFDenoiser, reference: FrozenReference, pair: Tokens, turn: int) -> Measured:
    """Single draws of every answer, few masks more often (q(m) ~ 1/m) and weighted: by exact reweighting they give the
    variance of every plan whose draws are independent, without the heavy tail that uniform counts have."""
    plan = IndependentMasks(Levels(16, 16, SINGLES))
    found = one_round(policy, reference, pair, plan, 100 + turn, single=True)
    assert found.answers is not None
    fields = {name: getattr(found.answers, name) for name in ("masked", "square", "length")}
    return {"policy": found.policy, "reference": found.reference, "gradient": found.gradient.float(), **fields}


def by_draw(policy: HFDenoiser, reference: FrozenReference, pair: Tokens, plan: Plan, turn: int) -> Measured:
    """Each answer's and draw's part of the margin (rejected: times -1): of the change of its bound, and of
    the sketched gradient. The parts sum up to the plan's estimate."""
    salt = 300 if isinstance(plan, OneLevel) else 200  # its centre comes from the other plans (ratios.py)
    tokens, structure = replicated(replace(pair, key=fold(pair.key, salt + turn)), PER_ROUND)
    draws = plan(tokens, structure)
    parameters, sketch = list(policy.module.parameters()), Sketch()
    change = torch.zeros(PER_ROUND, 2, N, dtype=torch.float64)
    gradient = torch.zeros(PER_ROUND, 2, N, sketch.size)
    with torch.no_grad():
        base = reference(tokens, draws, structure, max_tokens=8192)[:, 0]
    for r, side, k in product(range(PER_ROUND), range(2), range(N)):
        row, sign = r + side * PER_ROUND, 1 - 2 * side
        if draws.masked[row, k].any():
            term = pack_terms(policy, tokens, draws, torch.tensor([[row, k]])).sum()
            change[r, side, k] = sign * (term.detach() - base[row, k])
            gradient[r, side, k] = sign * sketch(torch.autograd.grad(term, parameters, allow_unused=True)).float()
    masked = draws.masked.sum(-1).double().unflatten(0, (2, PER_ROUND)).transpose(0, 1)
    return {"change": change, "gradient": gradient, "masked": masked.contiguous(), "length": pair.length}


def one_round(
    policy: HFDenoiser, reference: FrozenReference, pair: Tokens, plan: Plan, turn: int, single: bool = False
) -> Replicates:
    return replicate(
        policy,
        reference,
        replace(pair, key=fold(pair.key, turn)),
        plan,
        parameters=list(policy.module.parameters()),
        num_replicates=PER_ROUND,
        sketch=Sketch(),
        max_tokens=8192,
        by_answer=single,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/text"))
    parser.add_argument("--stage", default="all", choices=("all", "base", "policy", "measure", "report"))
    parser.add_argument("--set", nargs="+", default=SETS, choices=SETS)
    every = [*PLANS, *BY_DRAW]
    parser.add_argument("--plans", nargs="+", choices=every, default=every, help="Only these plans.")
    parser.add_argument("--rounds", type=int, default=5, help=f"Rounds of {PER_ROUND} replicates of a whole plan.")
    parser.add_argument("--draw_rounds", type=int, default=4, help="The same, of a plan that is measured by draw.")
    parser.add_argument("--single_rounds", type=int, default=5, help="The same, of 16 single draws of an answer.")
    args = parser.parse_args(argv)
    if args.stage in ("all", "base"):
        from texts import write

        write(args.data, args.runs / "data")
        train_base(args.runs)
    if args.stage in ("all", "policy"):
        train_policy(args.runs)
    if args.stage in ("all", "measure"):
        rounds = {"singles": args.single_rounds, "draws": args.draw_rounds, "whole": args.rounds}
        for name in args.set:
            measure(args.runs, name, rounds, args.plans)
    if args.stage in ("all", "report"):
        from report import report

        report(args.runs)


if __name__ == "__main__":
    main()
