"""Which implementation of experts is fastest on a CPU, at how many tokens: a layer by itself, and a pair of answers.

    python benchmarks/model_matrix/experts.py --output benchmarks/model_matrix
    python benchmarks/model_matrix/experts.py --output FOLDER --shapes small --tokens 32 512 --dtypes float32

Shapes: `LLaDA-MoE`, width 2048, 64 experts of 1024, 8 for each token; `small`, width 256, 8 experts of 128, 2 for each
token. A layer: one call of the experts on random tokens, routed at random; values; with the gradient of its input
(experts frozen, as under LoRA on attention); with all gradients. A pair: a model of one layer, one draw of both
answers, loss and backward of `vrpo.preference_loss` on given reference terms, in float32: LoRA on attention, and all
weights. Seconds are medians of repeats that are interleaved between implementations, on one thread. Left out, by name:
what would copy more weights than --gigabytes (batched_mm copies them for each token), and what the number of tokens
before says to take longer than --limit seconds. Writes experts.json and experts.md, the table, generated from it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from vrpo.draws import FixedCount
from vrpo.losses.pairwise import DPO
from vrpo.models.adapter import with_adapter
from vrpo.models.experts import IMPLEMENTATIONS
from vrpo.models.llada_moe import LLaDAMoE, LLaDAMoEConfig
from vrpo.models.load import adapt
from vrpo.preference import preference_loss
from vrpo.reference import GivenReference
from vrpo.types import Pairs, Tokens

VOCABULARY = 1024
LAYER = ("values", "input's gradient", "all gradients")
PAIR = ("LoRA on attention", "all weights")


@dataclass(frozen=True)
class Shape:
    width: int
    experts: int
    inner: int
    chosen: int
    heads: int

    def copied(self, tokens: int, size: int) -> float:
        """Gigabytes of weights that batched_mm copies for these tokens."""
        return tokens * self.chosen * 3 * self.width * self.inner * size / 1e9


SHAPES = {"LLaDA-MoE": Shape(2048, 64, 1024, 8, 16), "small": Shape(256, 8, 128, 2, 4)}
Work = Callable[[str], None]  # of an implementation


def layer_work(shape: Shape, dtype: torch.dtype, tokens: int, mode: str, made: Any) -> Work:
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, shape.width, generator=generator).to(dtype)
    weight, chosen = torch.randn(tokens, shape.experts, generator=generator).softmax(-1).topk(shape.chosen, -1)
    made.requires_grad_(mode == "all gradients")

    def work(name: str) -> None:
        made.config._experts_implementation = name
        made.zero_grad(set_to_none=True)
        given = hidden.detach().requires_grad_(mode != "values")
        output = made(given, chosen, weight.to(dtype))
        if mode != "values":
            output.square().sum().backward()

    return work


def layer_of(shape: Shape, dtype: torch.dtype) -> Any:
    config = Qwen3MoeConfig(
        hidden_size=shape.width,
        moe_intermediate_size=shape.inner,
        num_experts=shape.experts,
        num_experts_per_tok=shape.chosen,
    )
    config._experts_implementation = "eager"
    made = Qwen3MoeExperts(config).to(dtype)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    return made


def model_of(shape: Shape, mode: str) -> Any:
    config = LLaDAMoEConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        moe_intermediate_size=shape.inner,
        intermediate_size=shape.inner,
        num_experts=shape.experts,
        num_experts_per_tok=shape.chosen,
        num_hidden_layers=1,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        norm_topk_prob=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5e4},
        rms_norm_eps=1e-5,
        mask_token_id=VOCABULARY - 1,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    denoiser = adapt(LLaDAMoE(config), None)
    return denoiser if mode == "all weights" else with_adapter(denoiser, LoraConfig(r=16, lora_alpha=32), 0)


def pair_work(tokens: int, denoiser: Any) -> Work:
    """Both answers together have this many tokens."""
    length = tokens // 2
    ids = torch.randint(1, VOCABULARY - 1, (2, length), generator=torch.Generator().manual_seed(tokens))
    everywhere = torch.ones(2, length, dtype=torch.bool)
    rows = Tokens(ids, everywhere, everywhere, torch.arange(2))
    pair = Pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([length, length]))
    draws = FixedCount(1)(rows)
    reference = GivenReference(torch.zeros(2, 1, 1, dtype=torch.float64))

    def work(name: str) -> None:
        denoiser.module.config._experts_implementation = name
        denoiser.module.zero_grad(set_to_none=True)
        preference_loss(denoiser.module, reference, rows, pair, draws, DPO(0.2)).loss.backward()

    return work


def seconds(work: Work, names: list[str], repeats: int, limit: float) -> dict[str, float]:
    """Medians; fewer repeats, one at least, of what takes long."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        for name in names:
            if repeat and sum(found[name]) > limit:
                continue
            start = time.perf_counter()
            work(name)
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:] or values) for name, values in found.items()}


def measured(
    args: argparse.Namespace, shape: Shape, size: int, counts: list[int], make: Callable[[int], Work]
) -> Iterator[dict[str, Any]]:
    """A row per number of tokens: seconds by implementation, or why there are none."""
    last: dict[str, tuple[int, float]] = {}
    for tokens in counts:
        left_out: dict[str, str] = {}
        for name in IMPLEMENTATIONS:
            before, took = last.get(name, (tokens, 0.0))
            if name == "batched_mm" and shape.copied(tokens, size) > args.gigabytes:
                left_out[name] = f"copies {shape.copied(tokens, size):.0f} GB"
            elif took * tokens / before > args.limit:
                left_out[name] = f"over {args.limit:.0f} s"
        names = [name for name in IMPLEMENTATIONS if name not in left_out]
        found = seconds(make(tokens), names, args.repeats, args.limit / 4)
        last |= {name: (tokens, took) for name, took in found.items()}
        yield {"tokens": tokens, "seconds": found, "left_out": left_out}


def layer_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in args.shapes:
        for dtype in args.dtypes:
            shape, kind = SHAPES[name], getattr(torch, dtype)
            made = layer_of(shape, kind)
            for mode in LAYER:

                def make(tokens: int, mode: str = mode, shape: Shape = shape, made: Any = made) -> Work:
                    return layer_work(shape, next(made.parameters()).dtype, tokens, mode, made)

                for row in measured(args, shape, kind.itemsize, args.tokens, make):
                    yield {"what": "layer", "shape": name, "dtype": dtype, "mode": mode, **row}


def pair_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in args.shapes:
        for mode in PAIR:
            denoiser = model_of(SHAPES[name], mode)

            def make(tokens: int, denoiser: Any = denoiser) -> Work:
                return pair_work(tokens, denoiser)

            for row in measured(args, SHAPES[name], 4, args.tokens, make):
                yield {"what": "pair", "shape": name, "dtype": "float32", "mode": mode, **row}


def table(result: dict[str, Any]) -> str:
    names = list(IMPLEMENTATIONS)
    lines = [
        f"Milliseconds on one thread of {result['cpu']}, torch {result['torch']}, "
        f"transformers {result['transformers']}; medians of up to {result['repeats']} interleaved repeats. "
        "The fastest is bold.\n",
        f"| | shape | weights | with | tokens | {' | '.join(names)} |",
        "|" + "---|" * (5 + len(names)),
    ]
    for row in result["rows"]:
        best = min(row["seconds"].values(), default=0.0)
        cells = []
        for name in names:
            took = row["seconds"].get(name)
            text = row["left_out"].get(name, "") if took is None else f"{1000 * took:.3g}"
            cells.append(f"**{text}**" if took == best else text)
        about = (row["what"], row["shape"], row["dtype"], row["mode"], str(row["tokens"]))
        lines.append(f"| {' | '.join([*about, *cells])} |")
    return "\n".join(lines) + "\n"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "an unknown CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[32, 512, 8192])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument("--gigabytes", type=float, default=7.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = {"cpu": processor(), "torch": torch.__version__, "transformers": transformers.__version__}
    shapes = {name: asdict(SHAPES[name]) for name in args.shapes}
    result: dict[str, Any] = {**about, "repeats": args.repeats, "shapes": shapes, "rows": []}
    args.output.mkdir(parents=True, exist_ok=True)
    for rows in (pair_rows(args), layer_rows(args)):
        for row in rows:
            print(row, flush=True)
            result["rows"].append(row)
            (args.output / "experts.json").write_text(json.dumps(result, indent=1) + "\n")
            (args.output / "experts.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
