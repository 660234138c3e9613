"""`vrpo plan`: what a training step will take, in memory and time, before anything is loaded.

From the fields of `vrpo train`: config.json, the tokenizer and a sample of the rows say the shapes; plan_step.py records
a step of these shapes; diagnostics/cost.py charges it to a machine. No weights are read.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from vrpo.commands.arguments import ModelArguments, PreferenceDataArguments, parse
from vrpo.commands.plan_step import PASSES, Call, Setup, Simulation, points_of, quiet_transformers, simulate
from vrpo.commands.train import adapter_config, dtype_of
from vrpo.data.collate import PreferenceCollator, pairs_of, tokens_of
from vrpo.data.sources import load_rows
from vrpo.data.tokenize import tokenize_preferences
from vrpo.diagnostics.cost import GPUS, KINDS, Machine, Measured
from vrpo.estimator import plan_packs
from vrpo.models.load import load_tokenizer, model_class
from vrpo.training.config import VRPOConfig
from vrpo.types import Tokens

PROCESS = 0.5e9  # bytes of an interpreter with torch and transformers, beside the tensors


@dataclass
class PlanArguments:
    """What to plan for."""

    device: str | None = field(
        default=None,
        metadata={
            "help": f"A GPU of the table ({', '.join(GPUS)}), whose times are floors from data sheets; or cpu or cuda, the "
            "machine at hand, on which operations are timed. None: cuda if there is one, else cpu."
        },
    )
    sample_pairs: int = field(default=64, metadata={"help": "How many training pairs show the lengths."})
    memory_gb: float | None = field(default=None, metadata={"help": "Memory to fit into. None: the device's."})
    plan_file: str | None = field(default=None, metadata={"help": "Also write the plan to this JSON file."})


@dataclass(frozen=True)
class Plan:
    """Seconds of an optimizer step by pass and kind of operation; bytes by component; what the sample looked like."""

    device: str
    memory: float
    passes: str
    held: dict[str, float]
    activations: float
    highest: float
    at: str
    seconds: dict[str, dict[str, float]]
    calls: dict[str, float]
    pairs_per_step: int
    real_tokens: float

    @property
    def step(self) -> float:
        return sum(sum(kinds.values()) for kinds in self.seconds.values())

    @property
    def fits(self) -> bool:
        return self.highest <= self.memory


@dataclass(frozen=True)
class Batches:
    """Calls of the model in sampled batches, for gradients and values (all) and for the first pack of each batch."""

    calls: list[list[Call]]
    first: list[Call]
    real: float  # share of computed tokens that are no padding

    @property
    def all(self) -> list[Call]:
        return [call for batch in self.calls for call in batch]


def plan(argv: Sequence[str]) -> None:
    """Predict the peak memory and the time of a training step, before anything is loaded."""
    wanted, data, model, config = parse(
        (PlanArguments, PreferenceDataArguments, ModelArguments, VRPOConfig),
        argv,
        prog="vrpo plan",
        description=plan.__doc__ or "",
    )
    if model.model_name_or_path is None:
        raise ValueError("--model_name_or_path is missing")
    machine = machine_of(wanted)
    tokenizer = load_tokenizer(model.model_name_or_path)
    if tokenizer is None:
        raise ValueError(f"{model.model_name_or_path} has no tokenizer.json: lengths are counted in its tokens")
    rows = load_rows(data.dataset_name, name=data.dataset_config, split=data.dataset_train_split)
    examples = tokenized(rows.select(range(min(len(rows), wanted.sample_pairs))), tokenizer, config)
    with quiet_transformers():
        found = plan_of(model, config, examples, machine)
        table_of(found, Console())
        if not found.fits:
            advise(model, config, examples, machine)
    if wanted.plan_file is not None:
        Path(wanted.plan_file).write_text(
            json.dumps({**asdict(found), "seconds_per_step": found.step}, indent=1) + "\n"
        )


def machine_of(wanted: PlanArguments) -> Machine:
    """
    Raises:
        ValueError: no such device.
    """
    name = wanted.device or ("cuda" if torch.cuda.is_available() else "cpu")
    memory = None if wanted.memory_gb is None else wanted.memory_gb * 1e9
    if name in GPUS:
        gpu = GPUS[name]
        return gpu if memory is None else type(gpu)(gpu.name, gpu.matmul, gpu.bandwidth, memory)
    if name == "cuda" and torch.cuda.is_available():
        return Measured(torch.cuda.get_device_name(), torch.device("cuda"), memory or torch.cuda.mem_get_info()[1])
    if name == "cpu":
        return Measured("this CPU", torch.device("cpu"), memory or float(psutil.virtual_memory().available))
    raise ValueError(f"--device {name}: not here, and not in the table of {', '.join(GPUS)}")


def tokenized(rows: Any, tokenizer: PreTrainedTokenizerBase, config: VRPOConfig) -> Any:
    examples, _ = tokenize_preferences(
        rows,
        tokenizer,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        truncation_mode=config.truncation_mode,
        eos_padding=config.eos_padding,
        on_bad_rows="drop",
        strings_as_chat=config.strings_as_chat,
    )
    if len(examples) < config.per_device_train_batch_size:
        raise ValueError(
            f"{len(examples)} usable pairs in the sample, fewer than per_device_train_batch_size = "
            f"{config.per_device_train_batch_size}: raise --sample_pairs, or give more rows"
        )
    return examples


def plan_of(model: ModelArguments, config: VRPOConfig, examples: Any, machine: Machine) -> Plan:
    """The plan of one optimizer step on this machine."""
    model_config, klass = _shape_of(model)
    one = config.one_pass(adapter=model.use_peft)
    batches = calls_of(examples, config, one)
    micro = config.gradient_accumulation_steps
    setup = Setup(
        klass,
        model_config,
        _dtype(model, model_config),
        adapter_config(model),
        config,
        one_pass=one,
        copied_reference=not config.precompute_ref_log_probs
        and (model.ref_model_name_or_path is not None or not model.use_peft),
        accumulates=micro > 1 or max(map(len, batches.calls)) > 1,
    )
    simulation = simulate(setup, points_of(batches.all))
    at = max(simulation.peak, key=lambda part: simulation.peak[part])
    floor = sum(simulation.held.values())
    return Plan(
        machine.name,
        machine.memory,
        "one" if one else "two",
        simulation.held,
        simulation.highest - floor,
        simulation.highest + (PROCESS if machine.name == "this CPU" else 0.0),
        at.removesuffix(" 0"),
        _seconds(simulation, batches, machine, one, micro),
        {name: micro * count for name, count in _counts(batches, one).items()},
        micro * config.per_device_train_batch_size,
        batches.real,
    )


def _shape_of(model: ModelArguments) -> tuple[Any, Any]:
    assert model.model_name_or_path is not None
    klass = model_class(model.model_name_or_path)
    return klass.config_class.from_pretrained(model.model_name_or_path), klass


def _dtype(model: ModelArguments, model_config: Any) -> torch.dtype:
    dtype = dtype_of(model)
    if isinstance(dtype, torch.dtype):
        return dtype
    stored = model_config.dtype if dtype == "auto" else getattr(torch, dtype)
    return torch.float32 if stored is None else stored


def calls_of(examples: Any, config: VRPOConfig, one_pass: bool) -> Batches:
    """The calls of the model that batches of these examples need."""
    collate, size, draws_of = PreferenceCollator(0), config.per_device_train_batch_size, config.training_plan()
    calls, first, real, computed = [], [], 0, 0
    for start in range(0, len(examples) - size + 1, size):
        batch = collate([examples[index] for index in range(start, start + size)])
        tokens = tokens_of(batch, seed=0, epoch=0)
        draws = draws_of(tokens, pairs_of(batch))
        wanted = draws.in_use
        units = (
            [wanted & (torch.arange(len(wanted)) == row)[:, None] for row in range(len(wanted))]
            if one_pass
            else [wanted]
        )
        packs = [pack for unit in units for pack in plan_packs(tokens, draws, unit, config.max_tokens_per_forward)]
        found = [_call(tokens, draws.scored, pack) for pack in packs]
        real += int((tokens.size[:, None] * wanted).sum())
        computed += sum(call.tokens for call in found)
        calls.append(found)
        first.append(found[0])
    return Batches(calls, first, real / computed)


def _call(tokens: Tokens, scored: torch.Tensor, pack: torch.Tensor) -> Call:
    row, draw = pack.unbind(1)
    return Call(len(pack), int(tokens.size[row].max()), int(scored[row, draw].sum()))


def _counts(batches: Batches, one: bool) -> dict[str, float]:
    calls = len(batches.all) / len(batches.calls)
    return {"reference": calls, "values": 0.0 if one else calls - 1, "gradient": calls}


def _seconds(
    simulation: Simulation, batches: Batches, machine: Machine, one: bool, micro: int
) -> dict[str, dict[str, float]]:
    """Of an optimizer step, by pass and kind of operation: the mean over the sampled batches."""
    every = torch.tensor([call.features for call in batches.all], dtype=torch.float64).sum(0)
    kept = torch.tensor([call.features for call in batches.first], dtype=torch.float64).sum(0)
    total = {}
    for name in tqdm(PASSES, desc="timing operations", file=sys.stderr, disable=not isinstance(machine, Measured)):
        features = every - kept if name == "values" and not one else every
        kinds = micro * features @ simulation.call_seconds(name, machine) / len(batches.calls)
        total[name] = dict(zip(KINDS, kinds.clamp(min=0).tolist(), strict=True))
    total["optimizer"] = simulation.recorder.seconds("optimizer", machine, simulation.vocab)
    return total


def table_of(found: Plan, console: Console) -> None:
    """The plan as two tables."""
    memory = Table(title=f"peak memory, {found.device}")
    memory.add_column("component")
    memory.add_column("GB", justify="right")
    for name, size in found.held.items():
        if size:
            memory.add_row(name, f"{size / 1e9:.2f}")
    memory.add_row(f"activations, head and buffers (highest in: {found.at})", f"{found.activations / 1e9:.2f}")
    if found.highest > sum(found.held.values()) + found.activations:
        memory.add_row("the process itself", f"{PROCESS / 1e9:.2f}")
    memory.add_row("in all", f"{found.highest / 1e9:.2f}", style="bold")
    console.print(memory)
    seconds = Table(title="seconds of an optimizer step" + ("" if "CPU" in found.device else ", at least"))
    for name in ("pass", "calls", *KINDS, "in all"):
        seconds.add_column(name, justify="left" if name == "pass" else "right")
    for name, kinds in found.seconds.items():
        count = f"{found.calls[name]:.1f}" if name in found.calls else ""
        seconds.add_row(name, count, *(_figure(kinds[kind]) for kind in KINDS), _figure(sum(kinds.values())))
    seconds.add_row("in all", "", *[""] * len(KINDS), _figure(found.step), style="bold")
    console.print(seconds)
    console.print(
        f"{found.pairs_per_step} pairs a step: {_figure(found.step / found.pairs_per_step)} s a pair; gradients in "
        f"{found.passes} pass{'es' * (found.passes == 'two')}; {100 * found.real_tokens:.0f} % of the computed tokens are "
        f"no padding."
    )
    verdict = "fits" if found.fits else "does NOT fit"
    console.print(f"It {verdict}: {found.highest / 1e9:.2f} of {found.memory / 1e9:.2f} GB.")


def _figure(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def advise(model: ModelArguments, config: VRPOConfig, examples: Any, machine: Machine) -> None:
    """Flip one switch after the other, the cheapest first, until it fits; print what each does to the peak."""
    raise NotImplementedError
