"""Every family at its published shape on one GPU, with random weights: right? how fast? how large? how soon loaded?

    python benchmarks/model_matrix/gpu.py --parts checks                 # right? writes gpu_checks.json
    python benchmarks/model_matrix/gpu.py                                # the rest: gpu_result.json
    python benchmarks/model_matrix/gpu.py --tiny --device cpu            # the same code in a minute, written elsewhere

Steps are those of ../gpu_8b: UltraFeedback's lengths, LoRA, gradient checkpointing. Every row is written as soon as it
is there; what does not fit --budget_seconds is left out and says so. gpu_table.py writes gpu.md's table.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

HERE = Path(__file__).parent
GPU_8B = HERE.parent / "gpu_8b"
sys.path.insert(0, str(GPU_8B))

from cost import Shape, Work, parts  # noqa: E402
from gpu_checks import choose, golden_rows, gradient_rows, problem  # noqa: E402
from gpu_experts import IMPLEMENTATIONS, TOKENS, expert_rows  # noqa: E402
from gpu_families import FAMILIES, Family  # noqa: E402
from gpu_load import fresh, load_row  # noqa: E402
from gpu_table import summary, write_table  # noqa: E402
from step import (  # noqa: E402
    ONE_PASS,
    Bench,
    Case,
    Counting,
    matmul_flops,
    peak_bytes,
    peak_flops,
    random_module,
    reset_peak,
    spread,
    timed,
    with_lora,
)

START = time.perf_counter()
PARTS = ("experts", "forward", "steps", "load")
ROWS, LENGTH = 16, 512  # of a forward that is timed
LOAD_SECONDS = 40  # to save and load a checkpoint at least once


class Run:
    """What all parts share: the device, the clock, and the file that every row goes to at once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.tiny, self.deadline = args.tiny, START + args.budget_seconds
        self.draws, self.pairs, self.pack = (2, 2, 128) if args.tiny else (8, 4, 4096)
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        self.speeds = {"matmul_flops": matmul_flops(self.device, self.tiny), "copy_bytes": copy_bytes(self.device)}
        release()
        self.result: dict[str, Any] = {
            "device": name,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "peak_flops": peak_flops(name, args.peak_tflops),
            **self.speeds,
            "settings": {
                "tiny": args.tiny,
                "draws": self.draws,
                "pairs": self.pairs,
                "pack": self.pack,
                "parts": args.parts,
            },
            "finished": False,
            "rows": [],
        }

    def left(self) -> float:
        return self.deadline - time.perf_counter()

    def add(self, part: str, rows: Iterable[dict[str, Any]], **facts: Any) -> None:
        """Write each row when it is there, and print it, for a log that breaks off. A part that fails is a row, too."""
        try:
            for row in rows:
                self.keep({"part": part, **facts, **row})
        except Exception as error:  # the other parts may still be had
            self.keep({"part": part, **facts, "failed": problem(error)})

    def keep(self, row: dict[str, Any]) -> None:
        self.result["rows"].append(row | {"at": time.perf_counter() - START})
        print(json.dumps(self.result["rows"][-1]), flush=True)
        self.write()

    def write(self) -> None:
        name = "gpu_checks.json" if self.args.parts == ["checks"] else "gpu_result.json"
        (self.args.output / name).write_text(json.dumps(self.result, indent=1) + "\n")


def copy_bytes(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy on the device: median of five tries."""
    one = torch.ones(2**30 if device.type == "cuda" else 2**22, dtype=torch.float32, device=device)
    other = torch.empty_like(one)
    tries = [timed(lambda: other.copy_(one), device)[0] for _ in range(6)][1:]
    return 2 * one.nbytes / statistics.median(tries)


def checks(run: Run, families: list[Family]) -> None:
    attentions = ["sdpa", "eager"] + (["flex_attention"] if run.device.type == "cuda" else [])
    size = {"width": 64, "shorter": 16} if run.tiny else {"width": 512, "shorter": 1}
    without_eager = [each for each in attentions if each != "eager"]
    for family in families:
        torch._dynamo.reset()  # graphs of other head counts are not this family's
        run.add("checks", golden_rows(family, run.device, attentions), family=family.name)
        torch._dynamo.reset()
        run.add("checks", gradient_rows(family, run.device, without_eager, **size), family=family.name)


def forward_rows(run: Run, model: Counting, shape: Shape, attentions: list[str]) -> Iterator[dict[str, Any]]:
    """Tokens per second without a graph, half of the tokens hidden and scored, the adapter off."""
    rows, length = (2, 32) if run.tiny else (ROWS, LENGTH)
    ids = torch.randint(shape.vocabulary - 2, (rows, length), device=run.device)
    on, hidden = torch.ones_like(ids, dtype=torch.bool), torch.rand(ids.shape, device=run.device) < 0.5
    given = {"input_ids": ids, "attention_mask": on, "masked": hidden, "scored": hidden}
    one = parts(shape, Work(rows * length, rows * length**2, float(hidden.sum())))
    for attention in attentions:
        model.module.set_attn_implementation(attention)
        row = {"attention": attention, "tokens": rows * length}
        try:
            with torch.no_grad(), model.module.disable_adapter():
                first = timed(lambda: model(**given), run.device)[0]
                reset_peak(run.device)
                seconds = statistics.median(timed(lambda: model(**given), run.device)[0] for _ in range(3))
        except RuntimeError as error:
            yield row | {"failed": problem(error)}
            continue
        flops = (one.blocks + one.attention + one.head) / seconds
        yield row | {
            "first_seconds": first,
            "seconds": seconds,
            "tokens_per_second": rows * length / seconds,
            "flops_per_second": flops,
            "peak_bytes": peak_bytes(run.device),
        }


def step_rows(run: Run, model: Counting, shape: Shape, attentions: list[str]) -> Iterator[dict[str, Any]]:
    lengths = json.loads((GPU_8B / "lengths.json").read_text())
    if run.tiny:
        lengths = [[1 + each // 64 for each in row] for row in lengths]
    trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    bench = Bench(
        shape=shape,
        device=run.device,
        model=model,
        optimizer=torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), fused=run.device.type == "cuda"),
        workloads={"pairs": spread(lengths, run.pairs)},
        max_tokens=run.pack,
        checkpointing=True,
        repeats=1 if run.tiny else 2,
        deadline=run.deadline,
    )
    implementations = IMPLEMENTATIONS if shape.experts else (None,)
    for implementation in implementations:
        for attention in attentions if implementation in (None, IMPLEMENTATIONS[0]) else attentions[:1]:
            if implementation is not None:
                choose(model.module, implementation)
            yield {"experts": implementation} | bench.measure(Case(attention, ONE_PASS, "pairs", run.draws))
            release()


def family_parts(run: Run, family: Family) -> None:
    shape = family.tiny() if run.tiny else family.shape
    attentions = ["flex_attention", "sdpa"] if run.device.type == "cuda" else ["sdpa"]
    torch._dynamo.reset()
    build, module = timed(
        lambda: random_module(family.module, family.config(shape, attentions[0]), run.device, torch.bfloat16),
        run.device,
    )
    weights = sum(parameter.numel() for parameter in module.parameters())
    model = Counting(with_lora(module, shape.rank, checkpointing=True), run.device)
    trained = sum(parameter.numel() for parameter in model.module.parameters() if parameter.requires_grad)
    facts = {"family": family.name, "weights": weights, "trained": trained, "shape": asdict(shape)}
    run.add("built", [{"seconds": build}], **facts)
    if "forward" in run.args.parts:
        run.add("forward", forward_rows(run, model, shape, attentions), family=family.name)
    if "steps" in run.args.parts and family.name in run.args.steps:
        run.add("steps", step_rows(run, model, shape, attentions), family=family.name)
    if "load" in run.args.parts and family.name in run.args.load:
        if run.left() < LOAD_SECONDS:
            run.add("load", [{"skipped": "no time left"}], family=family.name)
            return
        base = model.module.unload().eval()
        release()
        folder = fresh(run.args.checkpoint_folder, family.name)
        run.add("load", [load_row(base, run.device, folder, run.left)], family=family.name)


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def arguments() -> argparse.Namespace:
    names = [family.name for family in FAMILIES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="Small shapes, to test the script.")
    parser.add_argument("--parts", nargs="+", choices=("checks", *PARTS), default=list(PARTS))
    parser.add_argument("--families", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", nargs="*", choices=names, default=names, help="Families whose step is timed.")
    parser.add_argument("--load", nargs="*", choices=names, default=names, help="Families to save and load.")
    parser.add_argument("--budget_seconds", type=float, default=450)
    parser.add_argument("--peak_tflops", type=float, help="Dense bf16 peak of the device; needed for an unknown one.")
    parser.add_argument("--checkpoint_folder", type=Path, default=Path(tempfile.gettempdir()), help="17 GB free.")
    parser.add_argument("--output", type=Path, help="Folder of the result. Default: here; tiny: a new one.")
    given = parser.parse_args()
    given.output = given.output or (Path(tempfile.mkdtemp()) if given.tiny else HERE)
    given.output.mkdir(parents=True, exist_ok=True)
    return given


def main() -> None:
    args = arguments()
    run = Run(args)
    families = [family for family in FAMILIES if family.name in args.families]
    if "checks" in args.parts:
        checks(run, families)
    if "experts" in args.parts:
        for family in families:
            if family.shape.experts:
                shape = family.tiny() if run.tiny else family.shape
                rows = expert_rows(family, shape, TOKENS[: 2 if run.tiny else None], run.device, run.speeds)
                run.add("experts", rows, family=family.name)
                release()
    for family in families if set(args.parts) & {"forward", "steps", "load"} else []:
        if run.left() < 0:
            run.add("built", [{"skipped": "no time left"}], family=family.name)
            continue
        try:
            family_parts(run, family)
        except RuntimeError as error:  # the other families may still be had
            run.add("built", [{"failed": problem(error)}], family=family.name)
        release()
    run.result["finished"], run.result["total_seconds"] = True, time.perf_counter() - START
    run.write()
    print(summary(run.result))
    write_table(args.output)
    print(f"\nwritten to {args.output}")


if __name__ == "__main__":
    main()
