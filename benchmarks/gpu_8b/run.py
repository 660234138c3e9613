"""A VRPO step at the 8B LLaDA shape on one GPU: seconds, model FLOPs utilisation and peak memory against the draws n.

    python benchmarks/gpu_8b/run.py                                  # writes result.json and README.md's table here
    python benchmarks/gpu_8b/run.py --tiny --device cpu              # the same code in seconds, written elsewhere

Random weights and token ids; the lengths are real. What is timed is what `VRPOTrainer` does with an adapter: draws, the
gradient, the reference being the adapter turned off, clipping, AdamW. The whole script keeps to --budget_seconds: what
does not fit is left out and named in the table. cost.py says which operations are counted.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from cost import Shape, Work, again_flops, lora_flops, lora_memory
from peft import LoraConfig
from table import goals, table

import vrpo
from vrpo.models.adapter import with_adapter
from vrpo.models.llada import LLaDA, LLaDAConfig
from vrpo.models.load import adapt
from vrpo.preference import Step, backward_by_draw, backward_in_one_pass

START = time.perf_counter()
HERE = Path(__file__).parent
TINY = Shape(layers=2, width=64, inner=192, vocabulary=512, rank=4)
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


def random_llada(shape: Shape, device: torch.device, attention: str, *, checkpointing: bool) -> Any:
    """The bf16 model with normal weights made where they stay, and a float32 adapter on the blocks' linear maps."""
    config = LLaDAConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 128 if shape.width >= 256 else 2,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        tie_word_embeddings=False,
        mask_token_id=shape.vocabulary - 1,
        bos_token_id=None,
        eos_token_id=shape.vocabulary - 2,
        pad_token_id=shape.vocabulary - 2,
        use_cache=False,
        attn_implementation=attention,
    )
    with torch.device("meta"):
        module = LLaDA(config).to(torch.bfloat16)
    module.to_empty(device=device)
    module.model.rotary_emb = type(module.model.rotary_emb)(config).to(device)  # its buffer is lost in the above
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, 0.02)
    denoiser = with_adapter(adapt(module, None), LoraConfig(r=shape.rank, lora_alpha=2 * shape.rank), seed=0)
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
        step = backward_in_one_pass(*given, trained, pairs.family, max_tokens=most)
    else:
        step = backward_by_draw(*given, max_tokens=most)
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return step, draws


def timed(action: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    value = action()
    wait()
    return time.perf_counter() - start, value


def matmul_flops(device: torch.device, tiny: bool) -> float:
    """Operations per second of bf16 [T, D] x [D, I] products of the model's size: median of five tries."""
    tokens, width, inner, times = (256, 256, 768, 4) if tiny else (4096, 4096, 12288, 50)
    one, other = (torch.randn(n, m, device=device, dtype=torch.bfloat16) for n, m in ((tokens, width), (width, inner)))
    tries = [timed(lambda: [one @ other for _ in range(times)], device)[0] for _ in range(6)][1:]
    return times * 2 * tokens * width * inner / statistics.median(tries)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, so Linux


def peak_bytes(device: torch.device) -> int:
    """Most bytes in tensors since the reset; on a CPU resident bytes of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


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
    deadline: float
    largest: tuple[float, float] = (0.0, 0.0)  # tokens and seconds of the largest step so far: does the next one fit?

    def left(self) -> float:
        return self.deadline - time.perf_counter()

    def tokens_of(self, case: Case) -> int:
        """Policy tokens of a step."""
        return case.draws * sum(2 * prompt + one + other for prompt, one, other in self.workloads[case.workload])

    def step(self, case: Case, number: int) -> tuple[float, dict[str, float]]:
        """One timed step, with what was computed in it."""
        tokens, pairs = batch(self.workloads[case.workload], self.shape, self.device, number)
        self.model.real = self.model.computed = 0
        arguments = (case, self.model, self.optimizer, tokens, pairs, self.max_tokens)
        seconds, (step, draws) = timed(lambda: run_step(*arguments), self.device)
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
        again = again_flops(
            self.shape, work, checkpointed=self.checkpointing, value_share=max(value_share, 0.0), lora=True
        )
        return seconds, {
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
            seconds, facts = [], []
            repeats = self.repeats if case.workload == "pairs" else 1
            while len(seconds) < repeats and (not seconds or self.left() > 1.2 * max(seconds)):
                taken, found = self.step(case, 1 + len(seconds))
                seconds.append(taken)
                facts.append(found)
                self.largest = max(self.largest, (found["tokens"], taken))
        except RuntimeError as error:  # out of memory among them; the other rows may still be had
            self.optimizer.zero_grad()
            return row | {"failed": str(error).split("\n")[0][:200]}
        total = {name: sum(each[name] for each in facts) for name in facts[0]}
        return row | {
            "seconds": seconds,
            "asked_repeats": repeats,
            "seconds_per_step": statistics.median(seconds),
            "seconds_per_pair": statistics.median(seconds) / row["pairs"],
            "tokens_per_second": total["tokens"] / sum(seconds),
            "forward_tokens_per_second": total["forward_tokens"] / sum(seconds),
            "real_share": total["real_share"] / len(facts),
            "flops_per_second": total["flops"] / sum(seconds),
            "executed_flops_per_second": total["executed_flops"] / sum(seconds),
            "peak_bytes": peak_bytes(self.device),
        }


def cases(attentions: list[str], draws: list[int]) -> list[Case]:
    """What matters most comes first, for the time may run out."""
    middle = 8 if 8 in draws else draws[len(draws) // 2]
    order = [middle, *(n for n in draws if n != middle)]
    found = []
    for attention in attentions:
        found += [Case(attention, ONE_PASS, "pairs", n) for n in order]
        found += [Case(attention, ONE_PASS, "full", n) for n in sorted(draws)]
        found += [Case(attention, BY_DRAW, "pairs", middle)]
    return found


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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="A small shape and short rows, to test the script.")
    parser.add_argument("--attn_implementation", nargs="+", help="flex_attention (default; tiny: sdpa), sdpa; or both.")
    parser.add_argument("--draws", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--pairs", type=int, default=4, help="Pairs in a step.")
    parser.add_argument("--max_tokens", type=int, help="Tokens in a pack: 4096; tiny: 128.")
    parser.add_argument("--gradient_checkpointing", choices=("on", "off"), default="on")
    parser.add_argument("--repeats", type=int, default=3, help="Timed steps of a row, after one that is not.")
    parser.add_argument("--budget_seconds", type=float, default=450)
    parser.add_argument("--peak_tflops", type=float, help="Dense bf16 peak of the device; needed for an unknown one.")
    parser.add_argument("--lengths", type=Path, default=HERE / "lengths.json", help="[[prompt, chosen, rejected], ...]")
    parser.add_argument(
        "--output", type=Path, help="Folder of result.json and the table. Default: here; tiny: a new one."
    )
    given = parser.parse_args()
    given.attn_implementation = given.attn_implementation or ["sdpa" if given.tiny else "flex_attention"]
    given.max_tokens = given.max_tokens or (128 if given.tiny else 4096)
    given.output = given.output or (Path(tempfile.mkdtemp()) if given.tiny else HERE)
    return given


def main() -> None:
    args = arguments()
    device, shape = torch.device(args.device), TINY if args.tiny else Shape()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    peak = peak_flops(name, args.peak_tflops)
    lengths = json.loads(args.lengths.read_text())
    if args.tiny:
        lengths = [[1 + each // 32 for each in row] for row in lengths]
    prompt = args.max_tokens // 4
    full = [[prompt, args.max_tokens - prompt, args.max_tokens - prompt]]
    checkpointing = args.gradient_checkpointing == "on"
    result: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "shape": asdict(shape),
        "settings": {name: value for name, value in vars(args).items() if name not in ("output", "lengths")},
        "peak_flops": peak,
        "matmul_flops": matmul_flops(device, args.tiny),
        "paper_memory": lora_memory(shape, args.max_tokens, checkpointed=checkpointing),
        "finished": False,
        "rows": [],
    }
    module = random_llada(shape, device, args.attn_implementation[0], checkpointing=checkpointing)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    bench = Bench(
        shape=shape,
        device=device,
        model=Counting(module, device),
        optimizer=torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), fused=device.type == "cuda"),
        workloads={"pairs": spread(lengths, args.pairs), "full": full},
        max_tokens=args.max_tokens,
        checkpointing=checkpointing,
        repeats=args.repeats,
        deadline=START + args.budget_seconds,
    )
    result["ready_seconds"] = time.perf_counter() - START
    for case in cases(args.attn_implementation, args.draws):
        result["rows"].append(bench.measure(case))
        write(result, args.output)
    result["finished"], result["total_seconds"] = True, time.perf_counter() - START
    write(result, args.output)
    print(table(result))
    print(f"\nwritten to {args.output}")


def write(result: dict[str, Any], folder: Path) -> None:
    """result.json and the table: in README.md between its markers where there is one, else as table.md."""
    result["goals"] = goals(result)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    page, marks = folder / "README.md", ("<!-- table of result.json -->\n", "<!-- end -->")
    if not page.exists():
        (folder / "table.md").write_text(table(result) + "\n")
        return
    before, rest = page.read_text().split(marks[0], 1)
    page.write_text(before + marks[0] + table(result) + "\n" + marks[1] + rest.split(marks[1], 1)[1])


if __name__ == "__main__":
    main()
