"""What the GPU benchmarks share: a model of random weights, batches of real lengths, a step that is timed.

What is timed is what `VRPOTrainer` does with an adapter, without the trainer. cost.py says which operations count.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from peft import LoraConfig
from torch._dynamo.utils import counters

import vrpo
from benchmarks.gpu_8b.cost import Shape, Work, again_flops, lora_flops
from benchmarks.harness.machine import peak_bytes, reset_peak, seconds
from vrpo.estimator import Engine
from vrpo.kept_graphs import backward_keeping_graphs
from vrpo.models.adapter import with_adapter
from vrpo.models.load import adapt
from vrpo.one_pass import OnePass
from vrpo.preference import Step

PEAK_FLOPS = {  # dense bf16, by the name that the driver gives; other cards of these families are slower
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
}
ONE_PASS, BY_DRAW = "one_pass", "by_draw"


@dataclass(frozen=True)
class Case:
    """One row of the table. Workload `pairs`: UltraFeedback lengths; `full`: one pair whose rows fill a pack each."""

    attention: str
    mode: str
    workload: str
    draws: int


@dataclass
class Counting:
    """A denoiser under autocast, as accelerate's prepared forward is, that counts the tokens it is given."""

    module: Any
    device: torch.device
    real: int = 0
    computed: int = 0

    def __call__(self, **given: torch.Tensor) -> torch.Tensor:
        mask = given["attention_mask"]
        real = int(mask.sum())
        flex = self.module.config._attn_implementation == "flex_attention"
        self.real += real
        self.computed += real + -real % 128 if flex else mask.numel()
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.module(**given)


def random_module(klass: Any, config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A module of this class with normal weights, made where they stay: nothing is read or copied."""
    with torch.device("meta"):
        module = klass(config).to(dtype)
    module.to_empty(device=device)
    module.model.rotary_emb = type(module.model.rotary_emb)(config).to(device)  # its buffer is lost in the above
    module.tie_weights()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, 0.02)
    return module


def with_lora(module: Any, rank: int, *, checkpointing: bool) -> Any:
    """The module, frozen, with a float32 adapter on what its family calls LoRA's targets, ready to be trained."""
    denoiser = with_adapter(adapt(module, None), LoraConfig(r=rank, lora_alpha=2 * rank), seed=0)
    if checkpointing:
        denoiser.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return denoiser.module.train()


def spread(lengths: list[list[int]], pairs: int) -> list[list[int]]:
    """So many pairs at equal quantiles of their number of tokens."""
    ordered = sorted(lengths, key=lambda each: 2 * each[0] + each[1] + each[2])
    return [ordered[int((i + 0.5) / pairs * len(ordered))] for i in range(pairs)]


def batch(lengths: list[list[int]], shape: Shape, device: torch.device, step: int) -> tuple[vrpo.Tokens, vrpo.Pairs]:
    """Random ids in the rows of these pairs, chosen ones first; each step has draws of its own."""
    rows = [(prompt, each[side]) for side in (1, 2) for each in lengths for prompt in [each[0]]]
    width = max(prompt + answer for prompt, answer in rows)
    ids = torch.randint(shape.vocabulary - 2, (len(rows), width), generator=torch.Generator().manual_seed(step))
    place = torch.arange(width).expand(len(rows), -1)
    prompt, answer = torch.tensor(rows).T[:, :, None]
    attention = place < prompt + answer
    response = attention & (place >= prompt)
    key = torch.arange(len(rows)) + 1000 * step
    tokens = vrpo.Tokens(*(part.to(device) for part in (ids, response, attention, key)))
    half = torch.arange(len(rows) // 2, device=device)
    return tokens, vrpo.Pairs(half, half + len(half), tokens.length)


def run_step(
    case: Case, model: Counting, optimizer: torch.optim.Optimizer, tokens: vrpo.Tokens, pairs: vrpo.Pairs, most: int
) -> tuple[Step, vrpo.Draws]:
    """What `VRPOTrainer` does in a step of one micro-batch."""
    trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    draws = vrpo.FixedCount(case.draws)(tokens)
    reference = vrpo.FrozenReference(model, model.module.disable_adapter)
    given = (model, reference, tokens, pairs, draws, vrpo.DPO(0.2))
    if case.mode == ONE_PASS:
        step = OnePass(trained)(*given, Engine(most))
    else:
        step = backward_keeping_graphs(*given, Engine(most))
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return step, draws


@dataclass
class Bench:
    """The model and what all rows share."""

    shape: Shape
    device: torch.device
    model: Counting
    optimizer: torch.optim.Optimizer
    workloads: dict[str, list[list[int]]]
    max_tokens: int
    checkpointing: bool
    repeats: int
    left: Callable[[], float]  # seconds
    largest: tuple[float, float] = (0.0, 0.0)  # tokens and seconds of the largest step so far: does the next one fit?

    def tokens_of(self, case: Case) -> int:
        """Policy tokens of a step."""
        return case.draws * sum(2 * prompt + one + other for prompt, one, other in self.workloads[case.workload])

    def step(self, case: Case, number: int) -> tuple[float, dict[str, float]]:
        """One timed step, with what was computed in it."""
        tokens, pairs = batch(self.workloads[case.workload], self.shape, self.device, number)
        self.model.real = self.model.computed = 0
        arguments = (case, self.model, self.optimizer, tokens, pairs, self.max_tokens)
        took, (step, draws) = seconds(run_step, *arguments, device=self.device)
        if not bool(step.loss.isfinite()):
            raise RuntimeError("the loss is not finite")
        length = tokens.size.double()
        work = Work(
            tokens=case.draws * float(length.sum()),
            squares=case.draws * float(length.square().sum()),
            scored=float((draws.weight != 0).sum()),
        )
        flops = lora_flops(self.shape, work)
        value_share = self.model.real / work.tokens - 2  # beyond one pass of the policy and one of the reference
        again = again_flops(self.shape, work, checkpointed=self.checkpointing, value_share=max(value_share, 0.0))
        return took, {
            "tokens": work.tokens,
            "forward_tokens": self.model.real,
            "real_share": self.model.real / self.model.computed,
            "flops": flops,
            "executed_flops": flops + again,
        }

    def measure(self, case: Case) -> dict[str, Any]:
        """A row of the table, or why there is none."""
        self.model.module.set_attn_implementation(case.attention)
        assert self.model.module.config._attn_implementation == case.attention
        row: dict[str, Any] = asdict(case) | {"pairs": len(self.workloads[case.workload])}
        first = case if case.workload == "pairs" else replace(case, draws=1)  # the same shapes, fewer of them
        size, slow = self.largest
        if self.left() < slow / max(size, 1) * (self.tokens_of(first) + self.tokens_of(case)):
            return row | {"skipped": "no time left"}
        try:
            self.step(first, 0)  # compiles; makes the optimizer's state
            if self.left() < 0:
                return row | {"skipped": "no time left after the warm-up"}
            reset_peak(self.device)
            taken, facts = [], []
            repeats = self.repeats if case.workload == "pairs" else 1
            while len(taken) < repeats and (not taken or self.left() > 1.2 * max(taken)):
                took, found = self.step(case, 1 + len(taken))
                taken.append(took)
                facts.append(found)
                self.largest = max(self.largest, (found["tokens"], took))
        except RuntimeError as error:  # out of memory among them; the other rows may still be had
            self.optimizer.zero_grad()
            return row | {"failed": str(error).split("\n")[0][:200]}
        total = {name: sum(each[name] for each in facts) for name in facts[0]}
        return row | {
            "seconds": taken,
            "asked_repeats": repeats,
            "seconds_per_step": statistics.median(taken),
            "seconds_per_pair": statistics.median(taken) / row["pairs"],
            "tokens_per_second": total["tokens"] / sum(taken),
            "forward_tokens_per_second": total["forward_tokens"] / sum(taken),
            "real_share": total["real_share"] / len(facts),
            "flops_per_second": total["flops"] / sum(taken),
            "executed_flops_per_second": total["executed_flops"] / sum(taken),
            "peak_bytes": peak_bytes(self.device),
            "compiled_graphs": counters["stats"]["unique_graphs"],  # of the whole process so far
        }


def peak_flops(name: str, given: float | None) -> float | None:
    """Dense bf16 operations per second of the device; None on a CPU, for which nobody states them.

    Raises:
        ValueError: a GPU that is not in the table.
    """
    if given is not None:
        return given * 1e12
    if name == "cpu":
        return None
    if name not in PEAK_FLOPS:
        raise ValueError(f"the peak of {name!r} is not known here: give --peak_tflops, dense bf16, from its data sheet")
    return PEAK_FLOPS[name]
