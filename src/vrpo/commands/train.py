"""`vrpo sft` and `vrpo train`: from arguments to a trained, saved model."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers.trainer_utils import get_last_checkpoint

from vrpo.commands.arguments import DataArguments, ModelArguments, ScratchArguments, SFTDataArguments, parse
from vrpo.data.sources import load_rows, split_rows
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.training.base import DiffusionTrainer
from vrpo.training.config import DiffusionConfig, SFTConfig, VRPOConfig
from vrpo.training.preference import VRPOTrainer
from vrpo.training.sft import SFTTrainer


def train(argv: Sequence[str]) -> None:
    """Preference optimisation (VRPO) of a diffusion language model."""
    data, model, config = parse(
        (DataArguments, ModelArguments, VRPOConfig), argv, prog="vrpo train", description=train.__doc__ or ""
    )
    rows, eval_rows = datasets(data, config)
    reference = None
    if model.ref_model_name_or_path is not None:
        reference = load(model.ref_model_name_or_path, dtype=dtype_of(model))
    trainer = VRPOTrainer(
        policy(model),
        ref_model=reference,
        args=config,
        train_dataset=rows,
        eval_dataset=eval_rows,
        peft_config=adapter_config(model),
    )
    run(trainer)


def sft(argv: Sequence[str]) -> None:
    """Masked-diffusion supervised fine-tuning, or pretraining of a new model with --from_scratch."""
    data, model, scratch, config = parse(
        (SFTDataArguments, ModelArguments, ScratchArguments, SFTConfig),
        argv,
        prog="vrpo sft",
        description=sft.__doc__ or "",
    )
    rows, eval_rows = (answers_of(part, data.completion_column) for part in datasets(data, config))
    denoiser = new_model(scratch, rows, config) if scratch.from_scratch else policy(model)
    trainer = SFTTrainer(
        denoiser, args=config, train_dataset=rows, eval_dataset=eval_rows, peft_config=adapter_config(model)
    )
    run(trainer)


def run(trainer: DiffusionTrainer) -> None:
    """Train, from a checkpoint if asked, and leave model, tokenizer, card and state in output_dir."""
    args = trainer.args
    checkpoint: Any = args.resume_from_checkpoint
    if checkpoint is not None and str(checkpoint).lower() == "true":
        checkpoint = get_last_checkpoint(str(args.folder))
        if checkpoint is None:
            raise ValueError(f"--resume_from_checkpoint true: {args.folder} holds no checkpoint")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    trainer.create_model_card()
    trainer.save_model()  # uploads too, with push_to_hub


def datasets(data: DataArguments, config: DiffusionConfig) -> tuple[Dataset, Dataset | None]:
    """Training rows, and evaluation rows if the configuration evaluates or samples."""
    rows = load_rows(data.dataset_name, name=data.dataset_config, split=data.dataset_train_split)
    wanted = config.eval_strategy != "no" or config.eval_on_start or config.sample_steps is not None
    if data.eval_fraction is not None:
        rows, held_out = split_rows(rows, data.eval_fraction, config.seed)
        return rows, held_out if wanted else None
    if not wanted:
        return rows, None
    source = data.eval_dataset_name or data.dataset_name
    if Path(source).is_file() and source == data.dataset_name:
        raise ValueError(f"{source} is one file: give --eval_dataset_name or --eval_fraction to evaluate on")
    return rows, load_rows(source, name=data.dataset_config, split=data.dataset_test_split)


def answers_of(rows: Dataset | None, column: str) -> Dataset | None:
    """The rows with the column to imitate under its usual name."""
    if rows is None or column == "completion":
        return rows
    if column not in rows.column_names:
        raise ValueError(f"--completion_column {column}: the rows have {rows.column_names}")
    return rows.rename_column(column, "completion")


def policy(model: ModelArguments) -> HFDenoiser:
    if model.model_name_or_path is None:
        raise ValueError("--model_name_or_path is missing (or --from_scratch, for vrpo sft)")
    return load(model.model_name_or_path, dtype=dtype_of(model), attn_implementation=model.attn_implementation)


def dtype_of(model: ModelArguments) -> torch.dtype | str:
    """Trained weights are float32 masters (bf16=true computes in bfloat16); a frozen base stays as it is stored."""
    if model.dtype is None:
        return "auto" if model.use_peft else torch.float32
    return model.dtype


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
        intermediate_size=scratch.intermediate_size,
        max_length=config.max_length,
        tie_embeddings=scratch.tie_embeddings,
        seed=config.seed,
    )


def texts(rows: Dataset) -> Iterator[str]:
    """Every string of every row's text columns, messages included, without duplicates inside a row."""
    for row in rows:
        for name, value in row.items():
            if name != "origin":
                yield from dict.fromkeys(_strings(value))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item["content"] if isinstance(item, dict) else item)
