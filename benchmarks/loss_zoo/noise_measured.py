"""What each loss does with the noise of a trained model's bounds: no Gaussian, the draws of the plans themselves.

    python benchmarks/loss_zoo/noise_measured.py [--runs runs/loss_noise]

Models are made as `vrpo demo` makes them, the policy by fewer steps. Answers have nine tokens, hence 511 masks: the sum
of log-probabilities under each, and a sketch of its gradient, are computed once. Every plan's estimate is a weighted
sum of these, and the enumeration of all masks, weighted as the bound weighs them, is the truth. So replicates cost
nothing, and biases are against exact values. Writes noise.json.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from vrpo import FixedCount, load
from vrpo.data import PreferenceCollator, tokenize_preferences, tokens_of
from vrpo.demo.run import Settings, align, answers_of, collect_pairs, imitate_chosen, imitate_students
from vrpo.demo.task import LENGTH, problems, right_bases
from vrpo.diagnostics.replicates import replicated
from vrpo.diagnostics.statistics import jackknife
from vrpo.draws import Enumerate
from vrpo.estimator import elbo, pack_terms
from vrpo.losses import KTO, ItemObjective, Preference
from vrpo.pair_losses import IPO, ORPO, APODown, APOZero, Hinge, ReverseKL, Robust, Sigmoid
from vrpo.pools import Fixed, Pooled, ReferenceFree, geometric, harmonic
from vrpo.slopes import CrossFit, Jackknife, _without
from vrpo.temperature import Constant
from vrpo.training.preference_config import VRPOConfig
from vrpo.types import Draws, Labels, Pairs, Plan, Tokens

HERE = Path(__file__).parent
PAIRS, REPLICATES, SKETCH, TOKENS = 64, 256, 256, LENGTH + 1
STEPS = 60  # of the policy
BETA = 0.3  # that the policy was trained with
BETAS = {"simpo": 2.0, "ipo": 0.1, "orpo": 0.1}


@dataclass(frozen=True)
class Known:
    """A pair's sums of log-probabilities under every mask (by its bits), of policy and references; and gradients."""

    tokens: Tokens
    policy: Tensor  # [2, 2^L]
    reference: Tensor  # [2, R, 2^L]
    gradient: Tensor  # [2, 2^L, D]


@dataclass(frozen=True)
class Case:
    """`references`: how many of them; `labels`: whether it is about single answers."""

    objective: ItemObjective
    references: int = 1
    labels: bool = False


def cases(zero: float) -> dict[str, Case]:
    """`zero`: kto's baseline, taken as known: the mean log-ratio of all answers."""
    summed, half = Constant(BETA), Fixed((0.5, 0.5))
    leaves = {
        "sigmoid": Sigmoid(),
        "sigmoid, label_smoothing 0.1": Sigmoid(0.1),
        "robust, label_smoothing 0.1": Robust(0.1),
        "ipo_sum": IPO(),
        "hinge": Hinge(),
        "exo_pair, label_smoothing 0.1": ReverseKL(0.1),
        "dmpo_rkl, alpha 0.01": ReverseKL(0.01),
        "apo_zero": APOZero(),
        "apo_down": APODown(),
    }
    found = {name: Case(Preference(leaf, summed)) for name, leaf in leaves.items()}
    free = ReferenceFree()
    return found | {
        "ipo": Case(Preference(IPO(), Constant(BETAS["ipo"]), per_token=True)),
        "simpo, gamma 0.5": Case(Preference(Sigmoid(gamma=0.5), Constant(BETAS["simpo"]), free, per_token=True)),
        "orpo": Case(Preference(ORPO(), Constant(BETAS["orpo"]), free, per_token=True)),
        "kto": Case(
            KTO(summed, baseline="batch_mean", over_processes=lambda _: torch.tensor([zero, 1.0])), labels=True
        ),
        "sigmoid, harmonic pool of 2": Case(Preference(Sigmoid(), summed, Pooled(harmonic, half)), 2),
        "sigmoid, geometric pool of 2": Case(Preference(Sigmoid(), summed, Pooled(geometric, half)), 2),
    }


# The table of all masks ----------------------------------------------------------------------------------------------


def every_mask(tokens: Tokens) -> Draws:
    """Draw c masks the response positions whose bits c has; draw 0 masks none."""
    bits = (torch.arange(1 << TOKENS)[:, None] >> torch.arange(TOKENS)) & 1
    masked = torch.zeros(len(tokens.ids), 1 << TOKENS, tokens.ids.shape[1], dtype=torch.bool)
    for row in range(len(masked)):
        masked[row][:, tokens.response[row]] = bits.bool()
    return Draws(masked, masked.double(), torch.zeros(masked.shape[:2], dtype=torch.long))


class Linears:
    """The sketched gradient of each row of a batch, with respect to the linear weights of the model's last block."""

    def __init__(self, module: torch.nn.Module) -> None:
        linear = [(name, part) for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)]
        last = max(name.split(".layers.")[1].split(".")[0] for name, _ in linear if ".layers." in name)
        self.parts = [part for name, part in linear if f".layers.{last}." in name]
        module.requires_grad_(False)
        for part in self.parts:
            part.weight.requires_grad_(True)
            part.register_forward_hook(self._keep)
        self.size = sum(part.weight.numel() for part in self.parts)
        signs = 2.0 * torch.randint(0, 2, (self.size,), generator=torch.Generator().manual_seed(0)) - 1
        self.signs = signs.split([part.weight.numel() for part in self.parts])
        self.inputs: dict[Any, Tensor] = {}
        self.outputs: dict[Any, Tensor] = {}

    def _keep(self, part: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
        self.inputs[part], self.outputs[part] = given[0].detach(), out

    def of(self, terms: Tensor) -> Tensor:
        """[B, D], of terms [B] just computed."""
        at = torch.autograd.grad(terms.sum(), [self.outputs[part] for part in self.parts])
        total = torch.zeros(len(terms), SKETCH)
        for part, out, signs in zip(self.parts, at, self.signs, strict=True):
            assert out.shape[0] == len(terms)
            each = torch.einsum("bto,bti->boi", out, self.inputs[part]).flatten(1) * signs
            total += torch.nn.functional.pad(each, (0, -each.shape[1] % SKETCH)).unflatten(1, (-1, SKETCH)).sum(1)
        return total

    def error(self, policy: Any, pair: "Known") -> float:
        """Relative difference of a row's sketch to that of autograd's own gradient, as a check."""
        draws, code = every_mask(pair.tokens), 300
        term = pack_terms(policy, pair.tokens, draws, torch.tensor([[1, code]])).sum()
        parts = torch.autograd.grad(term, [part.weight for part in self.parts])
        total = torch.zeros(SKETCH)
        for part, signs in zip(parts, self.signs, strict=True):
            each = part.flatten() * signs
            total += torch.nn.functional.pad(each, (0, -len(each) % SKETCH)).unflatten(0, (-1, SKETCH)).sum(0)
        return float((total - pair.gradient[1, code]).norm() / total.norm())


def known(policy: Any, references: list[Any], tokens: Tokens, linears: Linears) -> Known:
    draws = every_mask(tokens)
    with torch.no_grad():
        values = [elbo(model, tokens, draws, max_tokens=8192).terms for model in references]
    terms = torch.zeros(2, 1 << TOKENS, dtype=torch.float64)
    gradient = torch.zeros(2, 1 << TOKENS, SKETCH)
    for row in range(2):
        for codes in torch.arange(1, 1 << TOKENS).split(128):
            found = pack_terms(policy, tokens, draws, torch.stack([torch.full_like(codes, row), codes], 1))
            gradient[row, codes] = linears.of(found)
            terms[row, codes] = found.detach()
    return Known(tokens, terms, torch.stack(values, 1), gradient)


def made(folder: Path) -> None:
    """The reference (base), the policy (vrpo) after STEPS steps, a second reference (sft_control): the demo's."""
    settings = Settings(collect=700)
    if not (folder / "base" / "config.json").is_file():
        imitate_students(settings, folder / "base")
    pairs = collect_pairs(load(folder / "base", dtype=torch.float32), settings, folder / "pairs.jsonl")
    align(folder / "base", pairs[: STEPS * settings.batch], settings, folder / "vrpo")
    imitate_chosen(folder / "base", pairs[: STEPS * settings.batch], settings, folder / "sft_control")


def held_out(model: Any) -> list[Tokens]:
    """Pairs of the reference's own answers to problems that nothing was trained on, each a batch of two rows."""
    prompts = problems("validate", 400)
    answers = [answers_of(model, prompts, 1.0, seed) for seed in (1, 2)]
    rows = []
    for text, *both in zip(prompts, *answers, strict=True):
        worse, better = sorted(both, key=lambda answer: right_bases(text, answer))
        if len(worse) == len(better) == LENGTH and right_bases(text, better) > right_bases(text, worse):
            rows.append({"prompt": text, "chosen": better, "rejected": worse})
    examples, _ = tokenize_preferences(Dataset.from_list(rows[:PAIRS]), model.tokenizer, max_length=64)
    collate = PreferenceCollator(model.pad_id)
    return [tokens_of(collate([example]), seed=0, epoch=-2) for example in examples]


# Estimates ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """R estimates of each of P pairs; rows are all chosen answers, pair by pair, then all rejected ones."""

    policy: Tensor  # [2PR, K]
    reference: Tensor  # [2PR, refs, K]
    gradient: Tensor  # [2, P, R, K, D], of the policy's terms


def drawn(table: list[Known], plan: Plan, count: int) -> Drawn:
    parts = [_drawn(pair, plan, count) for pair in table]
    policy, reference, gradient = (torch.stack(part, 1) for part in zip(*parts, strict=True))
    return Drawn(policy.flatten(0, 2), reference.flatten(0, 2), gradient)


def _drawn(pair: Known, plan: Plan, count: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens, pairs = replicated(pair.tokens, count)
    draws = plan(tokens, pairs)
    inside = draws.masked.transpose(1, 2)[tokens.response].unflatten(0, (2 * count, TOKENS)).transpose(1, 2)
    code = (inside.long() << torch.arange(TOKENS)).sum(-1)
    weight = draws.weight.amax(-1)  # equal at all masked positions
    assert bool((draws.weight == weight[..., None] * draws.masked).all())
    row = torch.arange(2).repeat_interleave(count)[:, None]
    reference = pair.reference.transpose(1, 2)[row, code].transpose(1, 2) * weight[:, None]
    found = (pair.policy[row, code] * weight, reference, pair.gradient[row, code] * weight[..., None].float())
    return tuple(part.unflatten(0, (2, count)) for part in found)


def structure(count: int, case: Case) -> Any:
    index, length = torch.arange(count), torch.full((2 * count,), TOKENS)
    if case.labels:
        rows = torch.arange(2 * count)
        return Labels(rows, rows < count, rows[:0], length)
    return Pairs(index, index + count, length)


def losses(objective: Any, policy: Tensor, reference: Tensor, facts: Any) -> Tensor:
    """The loss of each item; of a jackknifed one, put together from those of its parts."""
    if not isinstance(objective, Jackknife):
        inner = objective.inner if isinstance(objective, CrossFit) else objective
        return inner.items(policy, reference, facts)
    count = objective.num_groups
    parts = [(_without(policy, g, count), _without(reference, g, count)) for g in range(count)]
    without = torch.stack([objective.inner.items(*part, facts) for part in parts]).sum(0)
    return count * objective.inner.items(policy, reference, facts) - (count - 1) / count * without


def estimates(case: Case, objective: Any, found: Drawn) -> tuple[Tensor, Tensor]:
    """Loss [P, R] and its gradient [P, R, D] of each estimate."""
    policy, reference = found.policy, found.reference[:, : case.references]
    count, shape = len(policy) // 2, found.gradient.shape[:3]
    facts = structure(count, case)
    leaf = policy.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective(leaf, reference, facts), leaf)
    with torch.no_grad():
        each = losses(objective, policy, reference, facts)
    if case.labels:
        each = each.unflatten(0, (2, count)).mean(0)
    slope = (slope * count).unflatten(0, shape).float()
    return each.unflatten(0, shape[1:]), torch.einsum("sprk,sprkd->prd", slope, found.gradient).double()


def wrapped(case: Case, groups: int) -> Iterator[tuple[str, Any]]:
    yield "plain", case.objective
    if groups > 1:
        yield "cross_fit", CrossFit(case.objective, groups)
        yield "jackknife", Jackknife(case.objective, groups)
    if groups > 2 and groups % 2 == 0:
        yield "halves", Jackknife(case.objective, 2)


@dataclass(frozen=True)
class Moments:
    """Of one pair: what is averaged over pairs, and the two vectors of which pairs may share parts."""

    numbers: dict[str, float]
    bias: Tensor
    truth: Tensor


def moments(each: Tensor, gradient: Tensor, true_loss: float, truth: Tensor) -> Moments:
    count, mean = len(each), gradient.mean(0)
    variance = float((gradient - mean).square().sum() / (count - 1))
    numbers = {
        "loss": true_loss,
        "loss_bias": float(each.mean()) - true_loss,
        "loss_variance": float(each.var()),
        "gradient_variance": variance,
        "along": float(mean @ truth),
        "bias_squared": float((mean - truth).square().sum()) - variance / count,
        "truth_squared": float(truth.square().sum()),
    }
    return Moments(numbers, mean - truth, truth)


def combined(pairs: list[Moments]) -> dict[str, float]:
    """`signal`: <E g^, g> / |g|^2; `bias_squared`, `shared_bias`, `noise` (trace of the variance): by mean |g|^2."""
    count = len(pairs)
    mean = {name: sum(one.numbers[name] for one in pairs) / count for name in pairs[0].numbers}
    bias = torch.stack([one.bias for one in pairs])
    gram = bias @ bias.T
    shared = float((gram.sum() - gram.diagonal().sum()) / (count * (count - 1)))
    size = mean["truth_squared"]
    return {
        **{name: mean[name] for name in ("loss", "loss_bias", "loss_variance")},
        "signal": mean["along"] / size,
        "bias_squared": mean["bias_squared"] / size,
        "shared_bias": shared / size,
        "noise": mean["gradient_variance"] / size,
    }


def with_intervals(pairs: list[Moments]) -> dict[str, dict[str, float]]:
    """95 % intervals by leaving out pairs."""
    left = [combined([*pairs[:i], *pairs[i + 1 :]]) for i in range(len(pairs))]
    return {name: vars(jackknife(value, [one[name] for one in left])) for name, value in combined(pairs).items()}


def plans(folder: Path) -> dict[str, tuple[Plan, int]]:
    """By name: the plan and its independent groups."""
    found: dict[str, tuple[Plan, int]] = {f"n = {n}": (FixedCount(n), n) for n in (1, 2, 4, 8)}
    config = VRPOConfig(output_dir=str(folder), num_times=8)
    return found | {"n = 8, default plan": (config.training_plan(), config._training_groups())}


def measured(table: list[Known], folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    whole = drawn(table, lambda tokens, pairs: Enumerate(TOKENS)(tokens), 1)
    ratios = (whole.policy - whole.reference[:, 0]).sum(-1).unflatten(0, (2, -1))
    zero = float(ratios.mean())
    margin = ratios[0] - ratios[1]
    found: dict[str, Any] = {
        "beta": BETA, "betas": BETAS, "pairs": len(table), "replicates": REPLICATES, "z0": zero,
        "margin": {"mean": float(margin.mean()), "sd": float(margin.std())}, "plans": {},
    }  # fmt: skip
    for plan_name, (plan, groups) in plans(folder).items():
        every = drawn(table, plan, REPLICATES)
        change = (every.policy - every.reference[:, 0]).sum(-1).unflatten(0, (2, len(table), REPLICATES))
        variance = float((change[0] - change[1]).var(1).mean())
        here: dict[str, Any] = {"margin_variance": variance, "groups": groups, "losses": {}}
        for name, case in cases(zero).items():
            true_loss, truth = (part[:, 0] for part in estimates(case, case.objective, whole))
            here["losses"][name] = {}
            for slope, objective in wrapped(case, groups):
                parts = zip(*estimates(case, objective, every), true_loss.tolist(), truth, strict=True)
                here["losses"][name][slope] = with_intervals([moments(*part) for part in parts])
        found["plans"][plan_name] = here
        say(f"{plan_name}: Var h^ {variance:.2f}, {groups} groups")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/loss_noise"))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.time()
    if not (args.runs / "sft_control" / "config.json").is_file():
        made(args.runs)
    policy, *references = (load(args.runs / name, dtype=torch.float32) for name in ("vrpo", "base", "sft_control"))
    linears = Linears(policy.module)
    stored = args.runs / "known.pt"
    table = torch.load(stored, weights_only=False) if stored.is_file() else []
    for pair in held_out(references[0])[len(table) : args.pairs]:
        table.append(known(policy, references, pair, linears))
        if len(table) % 8 == 0 or len(table) == args.pairs:
            torch.save(table, stored)
            print(f"{len(table)} pairs, {time.time() - start:.0f} s", flush=True)
    error = linears.error(policy, table[0])
    result = measured(table, args.runs, lambda line: print(line, flush=True))
    path = HERE / "noise.json"
    everything = json.loads(path.read_text()) if path.is_file() else {}
    everything["measured"] = {
        **result,
        "weights": linears.size,
        "gradient_error": error,
        "cpu_seconds_of_this_call": round(time.process_time()),
    }
    path.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
