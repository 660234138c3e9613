"""`vrpo variance`: how noisy the preference gradient of a checkpoint is, and what to do about it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from vrpo.data.collate import PreferenceCollator, tokens_of
from vrpo.data.formats import FIELDS, preference_columns
from vrpo.data.sources import load_rows
from vrpo.data.tokenize import tokenize_preferences
from vrpo.diagnostics.designs import Design, allocations, merged
from vrpo.diagnostics.measure import Meter, Store, measured
from vrpo.diagnostics.plots import figure_class, variance_pictures
from vrpo.diagnostics.replicates import Replicates
from vrpo.diagnostics.report import report, tables
from vrpo.diagnostics.statistics import scores
from vrpo.diagnostics.summary import Measurements, finite, summarise
from vrpo.draws import draw_key
from vrpo.fields.options import MASK_HELP, SHIFT_HELP, check_device
from vrpo.sketch import Sketch
from vrpo.types import Tokens
from vrpo.variance.models import Models, models_of
from vrpo.variance.plans import named_designs, trained_by_default

_MOST = {  # what a measurement may be asked for
    **dict.fromkeys(("num_pairs", "max_length", "max_prompt_length", "eos_padding", "sketch_size"), 1 << 24),
    **dict.fromkeys(("num_replicates", "budgets", "plan_draws"), 1 << 16),
}
_LEAST = 3  # pairs and replicates that a jackknife needs here


@dataclass
class VarianceArguments:
    """What is measured, on what, and how finely."""

    model_name_or_path: str = field(metadata={"help": "The policy: hub name, folder, or folder of an adapter."})
    dataset_name: str = field(metadata={"help": "Hub id, folder, or .jsonl(.gz), .json(.gz), .parquet file."})
    output_dir: str = field(metadata={"help": "Where report, pictures and measurements go; run again to go on."})
    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The reference. None: the policy with its adapter off."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split that pairs are taken from."})
    num_pairs: int = field(default=32, metadata={"help": "Pairs to measure, chosen by seed; more may be added later."})
    num_replicates: int = field(default=8, metadata={"help": "Independent replicates of each design and pair."})
    budgets: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8, 16],
        metadata={"help": "Draws per answer, n, of the paper's plan at every n_t x n_y; divisors of the largest."},
    )
    plans: list[str] = field(
        default_factory=lambda: [trained_by_default()[0]],
        metadata={
            "help": "Plans beside the paper's, fixed_count, by vrpo train's fields: stratified "
            "balanced:exponent=0.75,num_groups=1 ...; recommended is an n of the first one."
        },
    )
    plan_draws: list[int] | None = field(
        default=None,
        metadata={"help": "Draws per answer of these plans. None: 1, 2, 4, 8, as far as a plan has them."},
    )
    beta: float = field(default=0.2, metadata={"help": "Inverse temperature of the scores."})
    pair_cost: float = field(
        default=0.0,
        metadata={
            "help": "What making a pair costs, in draws of a pair. 0: pairs are given; on-policy pairs cost about the "
            "forward passes of their generation, divided by those of a draw."
        },
    )
    trainable: str | None = field(
        default=None, metadata={"help": "Regex of parameter names. None: all; of an adapter's folder, the adapter's."}
    )
    sketch_size: int = field(default=1024, metadata={"help": "Numbers that a gradient is kept as."})
    seed: int = field(default=0, metadata={"help": "Of the choice of pairs, the draws and the sketch."})
    max_tokens_per_forward: int = field(
        default=4096, metadata={"help": "Tokens, padding included, per call of a model."}
    )
    dtype: str = field(default="float32", metadata={"help": "Of the weights: float32, bfloat16; auto: as stored."})
    device: str | None = field(default=None, metadata={"help": "Where to run. None: cuda if there is one, else cpu."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flex_attention."})
    experts_implementation: str | None = field(
        default=None, metadata={"help": "Of a mixture of experts: auto, eager, batched_mm, grouped_mm."}
    )
    mask_token_id: int | None = field(default=None, metadata={"help": MASK_HELP})
    shift_logits: bool | None = field(default=None, metadata={"help": SHIFT_HELP})
    max_length: int = field(
        default=1024,
        metadata={"help": "Tokens of prompt and response together; longer is cut, as truncation_mode says."},
    )
    max_prompt_length: int | None = field(default=None, metadata={"help": "Tokens of the prompt; longer is cut."})
    truncation_mode: str = field(
        default="keep_start",
        metadata={"help": "What stays of a long row: keep_start or keep_end, of its prompt, as in `vrpo train`."},
    )
    eos_padding: int | None = field(
        default=None, metadata={"help": "Extend responses with end-of-text tokens to a multiple of this many tokens."}
    )
    strings_as_chat: bool = field(default=False, metadata={"help": "Put plain strings through the chat template."})
    on_bad_rows: str = field(default="drop", metadata={"help": "Unusable rows: drop or error."})

    def __post_init__(self) -> None:
        for name in ("num_pairs", "num_replicates"):
            if getattr(self, name) < _LEAST:
                raise ValueError(f"{name} must be at least {_LEAST} for an interval, not {getattr(self, name)}")
        check_device(self.device)
        for name, most in _MOST.items():
            value = getattr(self, name)
            for each in value if isinstance(value, list) else [] if value is None else [value]:
                if not 1 <= each <= most:
                    raise ValueError(f"{name} must be from 1 to {most:,}, not {each}")
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, not {self.beta}")
        if self.pair_cost < 0:
            raise ValueError(f"pair_cost must not be negative, not {self.pair_cost}")
        if self.max_tokens_per_forward < 1:
            raise ValueError(f"max_tokens_per_forward must be at least 1, not {self.max_tokens_per_forward}")

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)


@dataclass(frozen=True)
class _Pair:
    """Row 0 chosen, row 1 rejected, under the name of its row in the source."""

    example: int
    tokens: Tokens


def variance(args: VarianceArguments) -> None:
    """Measure the noise of the preference gradient of a checkpoint: by budget, allocation and plan; draws or pairs."""
    figure_class()  # refuses now, not after an hour, if there is no matplotlib
    paper = allocations(args.budgets)
    designs = merged([*paper, *named_designs(args.plans, args.plan_draws, max(args.budgets))])
    try:
        _run(args, designs)
    except KeyboardInterrupt:  # while loading, summarising or drawing, or before there was enough for a report
        kept = len(list((args.folder / "pairs").glob("*.safetensors")))
        print(
            f"interrupted: {kept} measurements (of one pair under one design each) are kept in {args.folder}/pairs; "
            "the same command goes on from here",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


def _run(args: VarianceArguments, designs: Sequence[Design]) -> None:
    models = models_of(args)
    pairs = pairs_of(args, models)
    meter = Meter(
        models.policy,
        models.reference,
        models.parameters,
        args.num_replicates,
        Sketch(args.sketch_size, args.seed),
        args.max_tokens_per_forward,
    )
    store = Store.open(args.folder, settings_of(args, models))
    print(_planned(meter, designs, pairs), file=sys.stderr)
    found, interrupted = measure(meter, store, pairs, designs)
    write(args, found, [pair.example for pair in pairs[: _count(found)]], interrupted)
    if interrupted:
        raise SystemExit(130)


def pairs_of(args: VarianceArguments, models: Models) -> list[_Pair]:
    """Pairs in the order of a keyed hash of (seed, example), so that more pairs are the same ones and others.

    Raises:
        ValueError: fewer usable rows than pairs are asked for.
    """
    rows = load_rows(
        args.dataset_name,
        name=args.dataset_config,
        split=args.dataset_train_split,
        columns=FIELDS,
        read=preference_columns,
    )
    examples = _tokenised(rows.select(_order(args.seed, rows)[: 4 * args.num_pairs]), args, models.tokenizer)
    if len(examples) < args.num_pairs < len(rows):
        examples = _tokenised(rows, args, models.tokenizer)
    if len(examples) < args.num_pairs:
        raise ValueError(
            f"{args.dataset_name} has {len(examples)} usable pairs for num_pairs = {args.num_pairs}: lower num_pairs"
        )
    collator = PreferenceCollator(models.pad_id)
    chosen = [examples[row] for row in _order(args.seed, examples)[: args.num_pairs]]
    return [
        _Pair(int(row["example_id"]), tokens_of(collator([row]), seed=args.seed, epoch=0).to(models.device))
        for row in chosen
    ]


def _order(seed: int, rows: Dataset) -> list[int]:
    example = torch.tensor(rows["example_id"], dtype=torch.int64)
    return draw_key(seed, example, torch.zeros_like(example), 0).argsort(stable=True).tolist()


def _tokenised(rows: Dataset, args: VarianceArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    return tokenize_preferences(
        rows,
        tokenizer,
        max_length=args.max_length,
        max_prompt_length=args.max_prompt_length,
        truncation_mode=args.truncation_mode,
        eos_padding=args.eos_padding,
        on_bad_rows=args.on_bad_rows,
        strings_as_chat=args.strings_as_chat,
    )[0]


def settings_of(args: VarianceArguments, models: Models) -> dict[str, Any]:
    """What measurements depend on beside pairs and plans, which their files are named by. Not beta: it comes later."""
    given = {name: getattr(args, name) for name in ("mask_token_id", "shift_logits", "experts_implementation")}
    asked = {name: value for name, value in given.items() if value is not None}  # others keep what was measured before
    return {
        **models.fingerprints,
        "num_replicates": args.num_replicates,
        "sketch_size": args.sketch_size,
        "seed": args.seed,
        "dtype": args.dtype,
        "attn_implementation": args.attn_implementation,
        **asked,
    }


def _planned(meter: Meter, designs: Sequence[Design], pairs: Sequence[_Pair]) -> str:
    passes = meter.passes(designs) * len(pairs)
    size = sum(parameter.numel() for parameter in meter.parameters)
    return (
        f"{len(pairs)} pairs, {len(designs)} designs, {meter.num_replicates} replicates: {passes:,} forward and "
        f"backward passes of the policy, each of one draw of one answer (gradient of {size:,} parameters), and "
        f"{passes:,} forward passes of the reference"
    )


def measure(
    meter: Meter, store: Store, pairs: Sequence[_Pair], designs: Sequence[Design]
) -> tuple[dict[Design, list[Replicates]], bool]:
    """Replicates by design, for the pairs that were finished; whether Ctrl-C came before all of them were.

    Raises:
        KeyboardInterrupt: it came before there were enough for a report.
    """
    found: dict[Design, list[Replicates]] = {design: [] for design in designs}
    total = meter.passes(designs) * len(pairs)
    with tqdm(total=total, desc="measuring", unit="pass", smoothing=0.05, mininterval=1) as bar:
        try:
            for pair in pairs:
                replicates = measured(meter, store, pair.tokens, pair.example, designs, bar.update)
                for design, one in zip(designs, replicates, strict=True):
                    found[design].append(one)
        except KeyboardInterrupt:
            if _count(found) < _LEAST:
                raise
            return found, True
    return found, False


def _count(found: Measurements) -> int:
    """Pairs that are finished under every design."""
    return min(map(len, found.values()))


def write(args: VarianceArguments, found: Measurements, examples: list[int], interrupted: bool) -> None:
    """variance.json, variance.md and the pictures, and the tables on the terminal."""
    summary = summarise(found, args.beta, args.pair_cost, trained_by_default())
    state = f"{len(examples)} of {args.num_pairs} pairs" + (", because interrupted" if interrupted else "")
    heading = f"{state}; {args.num_replicates} replicates; beta = {args.beta:g}; pair_cost = {args.pair_cost:g}."
    content = {
        "settings": json.loads((args.folder / "settings.json").read_text()),
        "beta": args.beta,
        "pair_cost": args.pair_cost,
        "interrupted": interrupted,
        "examples": examples,
        **summary.as_json(),
    }
    text = json.dumps(finite(content), indent=1, allow_nan=False)
    (args.folder / "variance.json").write_text(text + "\n")
    (args.folder / "variance.md").write_text(report(summary, heading))
    pictures = variance_pictures(args.folder, summary, _shown_scores(found, args.beta))
    print(f"\n{tables(summary)}\n")
    if interrupted:
        print(
            f"Interrupted: this is from {len(examples)} of {args.num_pairs} pairs. The same command goes on from here."
        )
    print(f"{args.folder}: variance.json, variance.md, {', '.join(path.name for path in pictures)}")


def _shown_scores(found: Measurements, beta: float) -> dict[int, list[float]]:
    """Scores of all pairs at the smallest budget and at n = 8, or else the largest."""
    design = next(design for design in found if design.single)
    budgets = design.budgets
    larger = 8 if 8 in budgets else max(budgets)
    return {
        n: torch.cat([_scores(pair, design.groups(n), beta) for pair in found[design]]).tolist()
        for n in sorted({min(budgets), larger})
    }


def _scores(pair: Replicates, groups: int, beta: float) -> Tensor:
    return scores(pair.at(groups), beta)
