"""`vrpo sft` and `vrpo train`: from arguments to a trained, saved model."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Value
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from vrpo.data.formats import FIELDS, preference_columns, shown, supervised_columns
from vrpo.data.json_rows import Wanted
from vrpo.data.sources import is_one_table, load_rows, split_rows
from vrpo.data.unread import Read
from vrpo.models.causal import check_causal, load_causal
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import class_of, load, require_bitsandbytes
from vrpo.models.precision import compute_dtype
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.training.arguments import (
    POLICY,
    DataArguments,
    ModelArguments,
    PreferenceDataArguments,
    ScratchArguments,
    SFTDataArguments,
)
from vrpo.training.base import DiffusionTrainer
from vrpo.training.checkpoints import check_named, sealed
from vrpo.training.config import DiffusionConfig, SFTConfig
from vrpo.training.pair_rewards import check_reward_model, with_rewards
from vrpo.training.preference import VRPOTrainer
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.preference_data import PreferenceData
from vrpo.training.processes import together
from vrpo.training.references import check_references
from vrpo.training.saving import check_hub, written
from vrpo.training.sft import SFTTrainer


def train(data: PreferenceDataArguments, model: ModelArguments, config: VRPOConfig) -> None:
    """Preference optimisation (VRPO) of a diffusion language model."""
    with writing(config), saying_what_is_kept(config):
        train_on(data, model, config)


def train_on(data: PreferenceDataArguments, model: ModelArguments, config: VRPOConfig) -> None:
    """One run on one set of rows."""
    check_run(data, model, config)
    quantized = quantization(model, config)
    rows, eval_rows = with_rewards(data, config, *datasets(data, config))
    PreferenceData.of(config, rows, eval_rows)  # refuses what the loss does not take, before any model is loaded
    trainer = VRPOTrainer(
        policy(model, quantized, exact=config.plan == "exact"),
        ref_model=references(model, quantized, exact=config.plan == "exact"),
        causal_ref_model=causal_references(model, quantized),
        args=config,
        train_dataset=rows,
        eval_dataset=eval_rows,
        peft_config=adapter_config(model),
    )
    run(trainer)


def check_run(data: PreferenceDataArguments, model: ModelArguments, config: VRPOConfig) -> None:
    """
    Raises:
        ValueError: fields that do not go together, or a package that is missing; said before anything is read.
    """
    check_reward_model(data, config)
    given, causal = model.ref_model_name_or_path or [], model.causal_ref_model_name_or_path or []
    check_references(config, len(given), len(causal), adapted=model.use_peft)
    for name in causal:
        check_causal(name)
    check_kind(model, config)
    quantization(model, config)
    evaluates(data, config)


def sft(data: SFTDataArguments, model: ModelArguments, scratch: ScratchArguments, config: SFTConfig) -> None:
    """Masked-diffusion supervised fine-tuning, or pretraining of a new model with --from_scratch."""
    with writing(config), saying_what_is_kept(config):
        sft_on(data, model, scratch, config)


def sft_on(data: SFTDataArguments, model: ModelArguments, scratch: ScratchArguments, config: SFTConfig) -> None:
    """The run itself."""
    if config.plan == "exact" and scratch.from_scratch:
        raise ValueError("from_scratch makes a diffusion model, and plan=exact is of a causal one: take another plan")
    if scratch.from_scratch and model.model_name_or_path is not None:
        raise ValueError("from_scratch makes a new model, and model_name_or_path names one: leave one of them out")
    if scratch.from_scratch:
        class_of(scratch.architecture, "--architecture: ")
    check_kind(model, config)
    quantized = quantization(model, config)
    if quantized is not None and scratch.from_scratch:
        raise ValueError("a new model is trained as a whole: from_scratch goes without load_in_4bit and load_in_8bit")
    columns = tuple(dict.fromkeys((*FIELDS, data.completion_column)))
    read = partial(supervised_columns, completion_column=data.completion_column)
    rows, eval_rows = (answers_of(part, data.completion_column) for part in datasets(data, config, columns, read))
    denoiser = (
        new_model(scratch, rows, config)
        if scratch.from_scratch
        else policy(model, quantized, exact=config.plan == "exact")
    )
    trainer = SFTTrainer(
        denoiser, args=config, train_dataset=rows, eval_dataset=eval_rows, peft_config=adapter_config(model)
    )
    run(trainer)


@contextmanager
def writing(config: DiffusionConfig) -> Iterator[None]:
    """A command that writes to output_dir, alone, before anything is loaded.

    Raises:
        ValueError: output_dir is not given, cannot be written, or another run writes there; or there is no hub, or no
            checkpoint to go on from.
    """
    if not config.output_dir_given:
        raise ValueError("output_dir is missing: say where checkpoints, logs and the model go")
    check_named(config.resume_from_checkpoint)
    with together(), written(config.folder) if config.process_index == 0 else nullcontext():
        if config.push_to_hub:
            check_hub(config)
        yield


@contextmanager
def saying_what_is_kept(config: DiffusionConfig) -> Iterator[None]:
    """After Ctrl-C or SIGTERM: what is there, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if config.process_index == 0:
            kept = "no checkpoint is whole yet (save_steps), so the same command begins anew"
            for last in sealed(config.folder)[-1:]:
                kept = f"{last} is whole: the same command with --resume_from_checkpoint auto goes on from there"
            print(f"stopped before the end; {kept}", file=sys.stderr, flush=True)
        raise SystemExit(130) from None


def run(trainer: DiffusionTrainer) -> None:
    """Train, from a checkpoint if asked, and leave model, tokenizer, card and state in output_dir."""
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    if trainer.state.global_step < trainer.state.max_steps:  # transformers answered a signal (enable_jit_checkpoint)
        raise KeyboardInterrupt
    trainer.save_state()
    trainer.create_model_card()
    if trainer.is_fsdp_enabled:  # FSDP2 saves shards by default, from which nothing loads a model
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()  # uploads too, with push_to_hub
    if trainer.is_world_process_zero():
        print(f"the model is in {trainer.args.folder}", file=sys.stderr)


def datasets(
    data: DataArguments, config: DiffusionConfig, columns: Wanted = preference_columns, read: Read | None = None
) -> tuple[Dataset, Dataset | None]:
    """Training rows, and evaluation rows if the configuration evaluates or samples.

    Raises:
        ValueError: as `evaluates`; no such rows.
    """
    wanted = evaluates(data, config)
    rows = load_rows(data.source, name=data.dataset_config, split=data.dataset_train_split, columns=columns, read=read)
    if data.eval_fraction is not None:
        return split_rows(rows, data.eval_fraction, config.seed)
    return rows, evaluation_rows(data, columns, read) if wanted else None


def evaluates(data: DataArguments, config: DiffusionConfig) -> bool:
    """Whether the configuration evaluates or samples, for which it needs rows.

    Raises:
        ValueError: rows for an evaluation that does not take place, or from two sources.
    """
    wanted = config.eval_strategy != "no" or config.eval_on_start or config.sample_steps is not None
    given = [name for name in ("eval_fraction", "eval_dataset_name") if getattr(data, name) is not None]
    if len(given) == 2:
        raise ValueError("eval_fraction and eval_dataset_name exclude each other: give one of them")
    if given and not wanted:
        raise ValueError(f"{given[0]} is given, but eval_strategy is 'no': set eval_strategy to steps or epoch")
    if wanted and data.eval_fraction is None:
        _check_source(data)
    return wanted


def _check_source(data: DataArguments) -> None:
    """
    Raises:
        ValueError: the rows to evaluate on would be those to train on.
    """
    name, other = data.dataset_name, data.eval_dataset_name
    if name is None or not is_one_table(name):
        return
    if other is None:
        raise ValueError(f"dataset_name {name} is one table: set eval_dataset_name or eval_fraction to evaluate on")
    if Path(other).expanduser().resolve() == Path(name).expanduser().resolve():
        raise ValueError(
            f"eval_dataset_name {other} is dataset_name, whose rows are trained on: name another file, or set "
            "eval_fraction in its place"
        )


def evaluation_rows(data: DataArguments, columns: Wanted, read: Read | None = None) -> Dataset:
    """Rows of the evaluation split, or of a source that has no splits."""
    source = data.eval_dataset_name or data.source
    same = source == data.dataset_name
    split = (
        None
        if is_one_table(source) and data.dataset_test_split == DataArguments.dataset_test_split
        else data.dataset_test_split
    )
    name = data.dataset_config if same else None
    return load_rows(source, name=name, split=split, columns=columns, read=read)


def answers_of(rows: Dataset | None, column: str) -> Dataset | None:
    """The rows with the column to imitate under its usual name: `completion`, or `messages` where it holds whole
    transcripts, that is messages without a prompt or beside a prompt string that they repeat."""
    if rows is None or column == "completion":
        return rows
    if column not in rows.column_names:
        raise ValueError(f"--completion_column {column}: no such column, the rows have {shown(rows.column_names)}")
    bare = "prompt" not in rows.column_names or isinstance(rows.features["prompt"], Value)
    transcripts = bare and not isinstance(rows.features[column], Value)
    others = {"completion", "messages", "text", *(["prompt"] if transcripts else [])} - {column}
    rows = rows.remove_columns([name for name in rows.column_names if name in others])
    target = "messages" if transcripts else "completion"
    return rows if column == target else rows.rename_column(column, target)


def check_kind(model: ModelArguments, config: DiffusionConfig) -> None:
    """
    Raises:
        ValueError: plan=exact with a diffusion model, or with what is said of one; before anything is read.
    """
    if config.plan != "exact":
        return
    for name in ("experts_implementation", "mask_token_id", "shift_logits", "block_size"):
        if getattr(model, name) is not None:
            raise ValueError(f"{name} is about diffusion models, and plan=exact is of a causal one: leave it out")
    for path in (model.model_name_or_path, *(model.ref_model_name_or_path or [])):
        if path not in (None, POLICY):
            check_causal(path)


def policy(model: ModelArguments, quantized: BitsAndBytesConfig | None, *, exact: bool) -> HFDenoiser:
    if model.model_name_or_path is None:
        raise ValueError("--model_name_or_path is missing (or --from_scratch, for vrpo sft)")
    return loaded(model.model_name_or_path, model, quantized, exact=exact)


def references(model: ModelArguments, quantized: BitsAndBytesConfig | None, *, exact: bool) -> list[HFDenoiser | None]:
    """The models that are references as the policy is one, each loaded once, however often it is named; None: the
    policy."""
    names = model.ref_model_name_or_path or []
    found = {name: None if name == POLICY else loaded(name, model, quantized, exact=exact) for name in set(names)}
    return [found[name] for name in names]


def causal_references(model: ModelArguments, quantized: BitsAndBytesConfig | None) -> list[HFDenoiser]:
    """The causal ones, likewise."""
    names = model.causal_ref_model_name_or_path or []
    found = {name: loaded(name, model, quantized, exact=True) for name in set(names)}
    return [found[name] for name in names]


def loaded(name: str, model: ModelArguments, quantized: BitsAndBytesConfig | None, *, exact: bool) -> HFDenoiser:
    """A model as the arguments say, policy and reference alike.

    Args:
        exact: a causal language model, as of plan=exact.
    """
    if exact:
        given = {name: model.loading[name] for name in ("dtype", "attn_implementation")}
        return load_causal(name, quantization_config=quantized, **given)
    return load(name, quantization_config=quantized, **model.loading)


def quantization(model: ModelArguments, config: DiffusionConfig) -> BitsAndBytesConfig | None:
    """How frozen weights are quantised; products with 4-bit ones are computed in the precision of training.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    if not (model.load_in_4bit or model.load_in_8bit):
        return None
    require_bitsandbytes()
    if model.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=compute_dtype(bf16=config.bf16, fp16=config.fp16),
        bnb_4bit_quant_type=model.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model.use_bnb_nested_quant,
    )


def adapter_config(model: ModelArguments) -> LoraConfig | None:
    if not model.use_peft:
        return None
    return LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        target_modules=model.lora_target_modules,
    )


def new_model(scratch: ScratchArguments, rows: Dataset | None, config: DiffusionConfig) -> HFDenoiser:
    assert rows is not None
    print("training a tokenizer on the training rows", file=sys.stderr)
    tokenizer = train_tokenizer(texts(rows), scratch.vocab_size)
    return from_config(
        tokenizer,
        hidden_size=scratch.hidden_size,
        num_layers=scratch.num_layers,
        num_heads=scratch.num_heads,
        num_kv_heads=scratch.num_kv_heads,
        architecture=scratch.architecture,
        intermediate_size=scratch.intermediate_size,
        max_length=config.max_length,
        tie_embeddings=scratch.tie_embeddings,
        seed=config.seed,
    )


def texts(rows: Dataset) -> Iterator[str]:
    """Every string of every row's text columns, messages included, without duplicates inside a row."""
    for row in rows:
        for name, value in row.items():
            if name not in ("origin", "unusable"):
                yield from dict.fromkeys(_strings(value))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item["content"] if isinstance(item, dict) else item)
