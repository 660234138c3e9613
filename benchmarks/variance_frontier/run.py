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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import save_file

from vrpo import FixedCount, FrozenReference, Tokens, load
from vrpo.data import PreferenceCollator, load_rows, tokenize_preferences, tokens_of
from vrpo.diagnostics.replicates import Replicates, replicate
from vrpo.draws import fold, mask_bits, orders, times
from vrpo.models.hf import HFDenoiser
from vrpo.plans import BalancedMasks, Complementary, IndependentMasks, Levels, NestedMasks, Paired
from vrpo.sketch import Sketch
from vrpo.types import Draws, Plan, Structure

HERE = Path(__file__).parent
SETS = ("gsm8k", "ultrafeedback")
STEP = 40  # of the policy that is measured
PAIRS, PER_ROUND = 64, 2
FIELDS = ("policy", "reference", "gradient")
SINGLES = 1.0  # exponent of the law of counts of single draws
N = 8  # forward passes per answer, of every plan


@dataclass(frozen=True)
class OneOrder:
    """The paper's counts, all masks cut from one order: what is left when the order's own noise is not averaged."""

    num_times: int = N

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        time, group = times(tokens, self.num_times, 1)
        count = 1 + (time * tokens.length[:, None]).floor().long()
        masked = (orders(tokens, 1) < count[..., None]) & tokens.response[:, None]
        return Draws(masked, masked * (tokens.length[:, None] / count.double() / self.num_times)[..., None], group)


@dataclass(frozen=True)
class Star:
    """Masks inside the largest one of their group, balanced there, and that one the control variate of all others:
    sum_k w_k [A_k + c (A_J - C_k)], C_k = (L/m_k) sum_{i in S_k} f_i(S_J). An alternative to nested masks, whose
    contexts are one chain."""

    levels: Levels
    control: float

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        count, weight, group = self.levels(tokens)
        shape, length = (self.levels.num_groups, self.levels.per_group), tokens.length[:, None, None]
        count, weight = (part.unflatten(1, shape) for part in (count, weight))
        order = orders(tokens, self.levels.num_groups)[:, :, None]
        top = count[..., -1:]
        start = (count.cumsum(-1) - count)[..., None]
        arc = (order - start) % top[..., None] < count[..., None]
        masked = (arc & (order < top[..., None])) & tokens.response[:, None, None]
        own = (weight * length / count)[..., None] * masked
        debt = self.control * own[:, :, :-1].sum(2)
        passed = self.control * weight[..., :-1].sum(-1, keepdim=True) * length / top
        own[:, :, -1] += passed * masked[:, :, -1] - debt
        return Draws(masked.flatten(1, 2), own.flatten(1, 2), group)


@dataclass(frozen=True)
class Rotated:
    """Balanced masks as arcs of the circle of random numbers instead of ranks: draw k masks the first m_k tokens from a
    start that both answers of a pair have in common."""

    levels: Levels
    gap: float = 1 / 32

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        count, weight, group = self.levels(tokens)
        share = self.levels.quantiles(tokens) ** (1 / (1 - self.levels.exponent)) + self.gap
        arcs = share.unflatten(1, (self.levels.num_groups, -1))
        start = ((arcs.cumsum(-1) - arcs).flatten(1) % 1 * 2.0**53).long() << 11
        bits = mask_bits(tokens, self.levels.num_groups).repeat_interleave(self.levels.per_group, 1)
        bits = (bits - start[..., None]).masked_fill(~tokens.response[:, None], torch.iinfo(torch.int64).max)
        masked = bits.argsort(-1).argsort(-1) < count[..., None]
        masked = masked & tokens.response[:, None]
        return Draws(masked, masked * (weight * tokens.length[:, None] / count)[..., None], group)


@dataclass(frozen=True)
class Whole:
    """A plan whose draws count as one group, so that an estimate costs one backward pass."""

    plan: Plan

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        draws = self.plan(tokens, structure)
        return replace(draws, group=draws.group.clamp(max=0))


def few(groups: int = 1, exponent: float = 0.5) -> Levels:
    return Levels(N, groups, exponent)


PLANS: dict[str, Plan] = {  # the most telling first
    "paper": FixedCount(N),
    "balanced in 2 groups, importance 1/2, aligned": Paired(BalancedMasks(few(2))),  # the default of VRPOConfig
    "balanced, importance 1/2, aligned": Paired(BalancedMasks(few())),
    "balanced, importance 1/2": BalancedMasks(few()),
    "importance 1/2": IndependentMasks(few(N)),
    "balanced": BalancedMasks(Levels(N)),
    "paired, aligned": Paired(FixedCount(N)),
    "one order": OneOrder(),
    "one level, 8 masks": FixedCount(1, N),
    "stratified": IndependentMasks(Levels(N)),
    "nested, c = 1": NestedMasks(Levels(N)),
    "complementary": Complementary(N),
    "paired quantiles": Paired(FixedCount(N), align=False),
    "stratified, importance 1/2": IndependentMasks(few()),
    "balanced, importance 1/4, aligned": Paired(BalancedMasks(few(1, 0.25))),
    "balanced, importance 3/4, aligned": Paired(BalancedMasks(few(1, 0.75))),
    "nested, c = 1/2, importance 1/2": NestedMasks(few(), 0.5),
    "star, c = 1/4, importance 1/2": Star(few(), 0.25),
    "rotated, importance 1/2, aligned": Paired(Rotated(few())),
    "systematic": IndependentMasks(Levels(N, systematic=True)),
    "nested, c = 0": NestedMasks(Levels(N), 0.0),
}


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
    examples, _ = tokenize_preferences(rows, denoiser.tokenizer, max_length=112, max_prompt_length=40)
    collate = PreferenceCollator(denoiser.pad_id)
    return [tokens_of(collate([examples[index]]), seed=0, epoch=-2) for index in range(min(count, len(examples)))]


def measure(runs: Path, name: str, labels: Sequence[str], rounds: int) -> None:
    """Replicates of plans on one set of pairs: round after round, so that all plans gain precision together."""
    torch.set_num_threads(1)
    policy = load(runs / "policy" / f"checkpoint-{STEP}", dtype=torch.float32)
    reference = FrozenReference(load(runs / "base", dtype=torch.float32))
    pairs = held_out(runs, name, policy, PAIRS)
    for turn, label in product(range(rounds), labels):
        path = runs / "measured" / name / label / f"{turn}.safetensors"
        if not path.is_file():
            start = time.time()
            found = [one_round(policy, reference, pair, PLANS[label], turn) for pair in pairs]
            stacked = {field: torch.stack([getattr(one, field) for one in found]).float() for field in FIELDS}
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(stacked, path)
            print(f"{name}, round {turn}: {label}: {time.time() - start:.0f} s", flush=True)


def measure_singles(runs: Path, name: str, rounds: int) -> None:
    """Single draws of every answer, few masks more often (q(m) ~ 1/m) and weighted: by exact reweighting they give the
    variance of every plan whose draws are independent, without the heavy tail that uniform counts have."""
    torch.set_num_threads(1)
    policy = load(runs / "policy" / f"checkpoint-{STEP}", dtype=torch.float32)
    reference = FrozenReference(load(runs / "base", dtype=torch.float32))
    pairs = held_out(runs, name, policy, PAIRS)
    for turn in range(rounds):
        path = runs / "measured" / name / "singles" / f"{turn}.safetensors"
        if not path.is_file():
            found = [
                one_round(policy, reference, pair, IndependentMasks(Levels(16, 16, SINGLES)), 100 + turn, single=True)
                for pair in pairs
            ]
            stacked = {field: torch.stack([getattr(one, field) for one in found]) for field in FIELDS}
            for field in ("masked", "square", "length"):
                stacked[field] = torch.stack([getattr(one.answers, field) for one in found])
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({**stacked, "gradient": stacked["gradient"].float()}, path)
            print(f"{name}: singles, round {turn}", flush=True)


def one_round(
    policy: HFDenoiser, reference: FrozenReference, pair: Tokens, plan: Plan, turn: int, single: bool = False
) -> Replicates:
    return replicate(
        policy,
        reference,
        replace(pair, key=fold(pair.key, turn)),
        plan if single else Whole(plan),
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
    parser.add_argument("--plans", nargs="+", choices=PLANS, help="Only these plans.")
    parser.add_argument("--rounds", type=int, default=8, help=f"Rounds of {PER_ROUND} replicates.")
    parser.add_argument("--single_rounds", type=int, default=2)
    args = parser.parse_args(argv)
    if args.stage in ("all", "base"):
        from texts import write

        write(args.data, args.runs / "data")
        train_base(args.runs)
    if args.stage in ("all", "policy"):
        train_policy(args.runs)
    if args.stage in ("all", "measure"):
        for name in args.set:
            measure_singles(args.runs, name, args.single_rounds)
            measure(args.runs, name, args.plans or list(PLANS), args.rounds)
    if args.stage in ("all", "report"):
        from report import report

        report(args.runs)


if __name__ == "__main__":
    main()
