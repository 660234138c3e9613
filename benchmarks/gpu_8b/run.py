"""A VRPO step at the 8B LLaDA shape on one GPU: seconds, model FLOPs utilisation and peak memory against the draws n.

    python benchmarks/gpu_8b/run.py                                  # writes result.json and README.md's table here
    python benchmarks/gpu_8b/run.py --tiny --device cpu              # the same code in seconds, written elsewhere

Random weights and token ids; the lengths are real. What is timed is what `VRPOTrainer` does with an adapter: draws, the
gradient, the reference being the adapter turned off, clipping, AdamW. The whole script keeps to --budget_seconds: what
does not fit is left out and named in the table. step.py has what other benchmarks share; cost.py says which operations
are counted.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from cost import Shape, lora_memory
from step import BY_DRAW, ONE_PASS, Bench, Case, Counting, matmul_flops, peak_flops, random_module, spread, with_lora
from table import goals, table

from vrpo.models.llada import LLaDA, LLaDAConfig

START = time.perf_counter()
HERE = Path(__file__).parent
TINY = Shape(layers=2, width=64, inner=192, vocabulary=512, rank=4, heads=2, key_heads=2, head_width=32)


def random_llada(shape: Shape, device: torch.device, attention: str, *, checkpointing: bool) -> Any:
    """The bf16 model and a float32 adapter on the blocks' linear maps."""
    config = LLaDAConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
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
    module = random_module(LLaDA, config, device, torch.bfloat16)
    return with_lora(module, shape.rank, checkpointing=checkpointing)


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
    given.output.mkdir(parents=True, exist_ok=True)
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
