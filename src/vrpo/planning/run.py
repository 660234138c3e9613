"""`vrpo estimate`: what a training step will take, in memory and time, before anything is loaded.

From the fields of `vrpo train`: config.json, the tokenizer and a sample of the rows say the shapes; estimate_step.py
records a step of these shapes; diagnostics/cost.py charges it to a machine. No weights are read.
"""

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from vrpo.data.collate import PreferenceCollator, pairs_of, tokens_of
from vrpo.data.formats import FIELDS, preference_columns
from vrpo.data.sources import load_rows
from vrpo.data.tokenize import tokenize_preferences
from vrpo.diagnostics.cost import GPUS, KINDS, Machine, Measured, Roofline
from vrpo.estimator import Engine, plan_packs
from vrpo.kept_graphs import all_graphs_fit, kept_packs
from vrpo.models.block import BlockDiffusion
from vrpo.models.head import HEAD_CHUNK
from vrpo.models.load import config_fields, model_class, tokenizer_of
from vrpo.models.shape import check_tensors
from vrpo.one_pass import units
from vrpo.planning.report import KERNELS, PROCESS, EstimateArguments, StepCost, show, show_advice
from vrpo.planning.step import PASSES, Call, Setup, Simulation, points_of, quiet_transformers, simulate
from vrpo.training.arguments import POLICY, ModelArguments, PreferenceDataArguments
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.references import check_references
from vrpo.training.run import adapter_config
from vrpo.types import Tokens


@dataclass(frozen=True)
class Batches:
    """Calls of the model in sampled batches, and those among them that keep their graphs."""

    calls: list[list[Call]]
    kept: list[list[Call]]
    real: float  # share of computed tokens that are no padding

    @property
    def all(self) -> list[Call]:
        return [call for batch in self.calls for call in batch]


def estimate(
    wanted: EstimateArguments, data: PreferenceDataArguments, model: ModelArguments, config: VRPOConfig
) -> None:
    """Predict the peak memory and the time of a training step, before anything is loaded."""
    if model.model_name_or_path is None:
        raise ValueError("--model_name_or_path is missing")
    machine = machine_of(wanted)
    tokenizer = tokenizer_of(model.model_name_or_path)
    if tokenizer is None:
        raise ValueError(f"{model.model_name_or_path} has no tokenizer.json: lengths are counted in its tokens")
    rows = load_rows(
        data.source, name=data.dataset_config, split=data.dataset_train_split, columns=FIELDS, read=preference_columns
    )
    examples = tokenized(rows.select(range(min(len(rows), wanted.sample_pairs))), tokenizer, config)
    with quiet_transformers():
        found = step_cost_of(model, config, examples, machine)
        show(found, Console())
        advice = [] if found.fits else advise(model, config, examples, machine, found)
    if not found.fits:
        show_advice(found, advice, Console())
    if wanted.estimate_file is not None:
        entry = {**asdict(found), "switches": [{"switch": text, **asdict(after)} for text, after in advice]}
        Path(wanted.estimate_file).write_text(json.dumps(entry, indent=1) + "\n")


def machine_of(wanted: EstimateArguments) -> Machine:
    """What to estimate, with the memory that was given.

    Raises:
        ValueError: no such device, or a GPU is here that the table does not have.
    """
    name = wanted.device or (gpu_here() if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        machine: Roofline | Measured = Measured("this CPU", float(psutil.virtual_memory().available))
    elif name in GPUS:
        machine = GPUS[name]
    else:
        raise ValueError(f"--device {name}: neither cpu nor in the table of {', '.join(GPUS)}")
    return machine if wanted.memory_gb is None else replace(machine, memory=wanted.memory_gb * 1e9)


def gpu_here() -> str:
    """The name in the table of the GPU at hand."""
    name = torch.cuda.get_device_name()
    memory = torch.cuda.get_device_properties(0).total_memory
    words = name.lower().replace(" ", "")
    found = [gpu for gpu in GPUS.values() if gpu.name.split("-")[0] in words and abs(gpu.memory / memory - 1) < 0.2]
    if not found:
        raise ValueError(f"{name} is not in the table of {', '.join(GPUS)}: give --device, the nearest of them, or cpu")
    return found[0].name


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


def step_cost_of(model: ModelArguments, config: VRPOConfig, examples: Any, machine: Machine) -> StepCost:
    """The cost of one optimizer step on this machine."""
    refuse_unknown(model, config)
    model_config, klass = _shape_of(model)
    setup = Setup(
        klass,
        model_config,
        _dtype(model, model_config),
        adapter_config(model),
        config,
        one_pass=False,
        copied_reference=config.compares
        and not config.precompute_ref_log_probs
        and (model.ref_model_name_or_path not in (None, [POLICY]) or not model.use_peft),
        accumulates=False,
        bits=4 if model.load_in_4bit else 8 if model.load_in_8bit else None,
        head_chunk=None if isinstance(machine, Measured) else HEAD_CHUNK,
    )
    one = config.one_pass(small=setup.small)
    batches = calls_of(examples, config, one)
    micro = config.gradient_accumulation_steps
    several = micro > 1 or max(map(len, batches.calls)) > 1
    setup = replace(setup, one_pass=one, accumulates=several)
    alive = max(batches.kept, key=lambda calls: sum(call.tokens for call in calls))
    simulation = simulate(setup, points_of(batches.all), alive)
    at = max(simulation.peak, key=lambda part: simulation.peak[part])
    return StepCost(
        device=machine.name,
        memory=machine.memory,
        floor=not isinstance(machine, Measured),
        passes="one" if one else "two",
        held=simulation.held,
        activations=simulation.highest - sum(simulation.held.values()),
        process=PROCESS + KERNELS * (config.bf16 and isinstance(machine, Measured)),
        highest_in=at.removesuffix(" 0"),
        seconds=_seconds(simulation, batches, machine, micro),
        calls={name: micro * count for name, count in _counts(batches, setup).items()},
        pairs_per_step=micro * config.per_device_train_batch_size,
        real_tokens=batches.real,
        longest=max(call.width for call in batches.all),
        layers=model_config.num_hidden_layers,
        trained=simulation.trained,
        root=simulation.root,
        shards=not model.load_in_4bit and not model.load_in_8bit,
    )


def refuse_unknown(model: ModelArguments, config: VRPOConfig) -> None:
    """
    Raises:
        ValueError: the step would be another one than is estimated here.
    """
    if not config.share_draws:
        raise ValueError("share_draws=false is for comparison and is not estimated: leave it out")
    if config.structure != "pairs" or config.plan == "exact":
        names = ", ".join(name for _, name in config.losses)
        raise ValueError(f"only masked diffusion on pairs is estimated, not {names} with plan={config.plan}")
    given, causal = model.ref_model_name_or_path or [], model.causal_ref_model_name_or_path or []
    check_references(config, len(given), len(causal), adapted=model.use_peft)
    if len(given) + len(causal) > 1 or causal:
        raise ValueError(
            "several references, and causal ones, are not estimated: give one ref_model_name_or_path, and add "
            "for each other one its weights and its passes (of a causal one, a pass for each answer)"
        )


def _shape_of(model: ModelArguments) -> tuple[Any, Any]:
    assert model.model_name_or_path is not None
    klass: Any = model_class(model.model_name_or_path)
    if issubclass(klass, BlockDiffusion):
        raise ValueError(
            f"{model.model_name_or_path} is a block diffusion model, whose calls run clean text and noised blocks: "
            "what they cost is not estimated yet (docs/block_diffusion.md says how many tokens it is)"
        )
    check_tensors(model.model_name_or_path, config_fields(model.model_name_or_path))
    config = klass.config_class.from_pretrained(model.model_name_or_path)
    if getattr(config, "num_experts", None):
        raise ValueError(
            f"{model.model_name_or_path} has experts, and how many tokens each of them gets cannot be known from "
            "shapes: train a few steps instead and look at their time and memory"
        )
    return config, klass


def _dtype(model: ModelArguments, model_config: Any) -> torch.dtype:
    dtype = model.loading["dtype"]
    if isinstance(dtype, torch.dtype):
        return dtype
    return torch.float32 if model_config.dtype is None else model_config.dtype


def calls_of(examples: Any, config: VRPOConfig, one_pass: bool) -> Batches:
    """The calls of the model that batches of these examples need."""
    collate, size, draws_of = PreferenceCollator(0), config.per_device_train_batch_size, config.make_recipe().plan
    calls, kept, real, computed = [], [], 0, 0
    engine = Engine(config.max_tokens_per_forward)
    for start in range(0, len(examples) - size + 1, size):
        batch = collate([examples[index] for index in range(start, start + size)])
        tokens = tokens_of(batch, seed=0, epoch=0)
        draws = draws_of(tokens, pairs_of(batch))
        wanted = draws.in_use
        own = one_pass and not (config.gradient_passes == "auto" and all_graphs_fit(tokens, draws, engine))
        together = units(draws, wanted, config.slope != "plain") if own else [wanted]
        packs = [pack for unit in together for pack in plan_packs(tokens, draws, unit, engine)]
        found = [_call(tokens, draws.scored, pack) for pack in packs]
        real += int((tokens.size[:, None] * wanted).sum())
        computed += sum(call.tokens for call in found)
        calls.append(found)
        kept.append(found if one_pass else found[: kept_packs(packs, tokens, engine)])
    return Batches(calls, kept, real / computed)


def _call(tokens: Tokens, scored: torch.Tensor, pack: torch.Tensor) -> Call:
    row, draw = pack.unbind(1)
    return Call(len(pack), int(tokens.size[row].max()), int(scored[row, draw].sum()))


def _counts(batches: Batches, setup: Setup) -> dict[str, float]:
    calls = len(batches.all) / len(batches.calls)
    known = setup.args.precompute_ref_log_probs or not setup.args.compares
    again = calls - sum(map(len, batches.kept)) / len(batches.calls)
    return {"reference": 0.0 if known else calls, "values": again, "gradient": calls}


def _seconds(simulation: Simulation, batches: Batches, machine: Machine, micro: int) -> dict[str, dict[str, float]]:
    """Of an optimizer step, by pass and kind of operation: the mean over the sampled batches."""
    every = torch.tensor([call.features for call in batches.all], dtype=torch.float64).sum(0)
    kept = torch.tensor([call.features for calls in batches.kept for call in calls], dtype=torch.float64).sum(0)
    total = {}
    for name in tqdm(PASSES, desc="timing operations", file=sys.stderr, disable=not isinstance(machine, Measured)):
        features = every - kept if name == "values" else every
        kinds = micro * features @ simulation.call_seconds(name, machine) / len(batches.calls)
        total[name] = dict(zip(KINDS, kinds.clamp(min=0).tolist(), strict=True))
    total["optimizer"] = simulation.recorder.seconds("optimizer", machine, simulation.vocab)
    return total


def advise(
    model: ModelArguments, config: VRPOConfig, examples: Any, machine: Machine, at_first: StepCost
) -> list[tuple[str, StepCost]]:
    """Flip one switch after the other, the cheapest first, until the step fits, and say what each leads to."""
    found: list[tuple[str, StepCost]] = []
    for text, model, config in switches(model, config, at_first):  # noqa: B020
        found.append((text, step_cost_of(model, config, examples, machine)))
        if found[-1][1].fits:
            break
    return found


def switches(
    model: ModelArguments, config: VRPOConfig, now: StepCost
) -> Iterator[tuple[str, ModelArguments, VRPOConfig]]:
    """What saves memory, in the order of what it costs, each on top of those before."""
    model, config = copy.copy(model), copy.copy(config)
    if config.max_tokens_per_forward is None or config.max_tokens_per_forward > now.longest:
        config.max_tokens_per_forward = now.longest
        yield f"max_tokens_per_forward: {now.longest}", copy.copy(model), copy.copy(config)
    if not config.gradient_checkpointing:
        config.gradient_checkpointing = True
        yield "gradient_checkpointing: true", copy.copy(model), copy.copy(config)
    if now.held["reference copy"] and config.share_draws:
        config.precompute_ref_log_probs = True
        yield "precompute_ref_log_probs: true", copy.copy(model), copy.copy(config)
    if not model.use_peft:
        model.use_peft = True
        yield "use_peft: true", copy.copy(model), copy.copy(config)
    if model.dtype not in (None, "auto", "bfloat16"):
        model.dtype = "bfloat16"
        yield "dtype: bfloat16", copy.copy(model), copy.copy(config)
    if not model.load_in_4bit:
        model.load_in_4bit, model.load_in_8bit = True, False
        yield "load_in_4bit: true (needs bitsandbytes)", copy.copy(model), copy.copy(config)
