"""Fields of the training commands: one flat namespace over several dataclasses, as in TRL."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from vrpo.commands.config_file import Parser, with_config
from vrpo.training.config import DiffusionConfig

_COMMON = (  # fields of transformers.TrainingArguments that --help shows; --help_all shows all of them
    "output_dir",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "bf16",
    "seed",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_steps",
    "resume_from_checkpoint",
    "report_to",
    "push_to_hub",
)


@dataclass
class DataArguments:
    """Where rows come from."""

    dataset_name: str = field(metadata={"help": "Hub id, folder, or .jsonl(.gz), .json(.gz), .parquet file."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split (or file of a folder) to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split (or file of a folder) to evaluate on."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "A separate source of evaluation rows."})
    eval_fraction: float | None = field(
        default=None, metadata={"help": "Hold out this share of the training split (whole prompts) for evaluation."}
    )


@dataclass
class SFTDataArguments(DataArguments):
    """The same, for supervised rows."""

    completion_column: str = field(
        default="completion", metadata={"help": "The answer to imitate: chosen, for preference data."}
    )


@dataclass
class ModelArguments:
    """Which model, and whether to train an adapter on it."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Hub name or folder, official layout."})
    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Reference of preference training. None: the initial policy."}
    )
    dtype: str | None = field(
        default=None,
        metadata={"help": "Of the weights. None: float32 if trained, as stored under an adapter."},
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flex_attention."})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter; reference = adapter off."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter, divided by its rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Must stay 0: the same draw is evaluated twice."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Module names. None: all linear layers of the blocks."}
    )


@dataclass
class ScratchArguments:
    """A new model instead of a stored one (vrpo sft --from_scratch)."""

    from_scratch: bool = field(
        default=False, metadata={"help": "Train a BPE tokenizer on the training rows, and a new LLaDA-layout model."}
    )
    vocab_size: int = field(default=4096, metadata={"help": "Size of the tokenizer, at most."})
    hidden_size: int = field(default=256, metadata={"help": "Width of the new model."})
    num_layers: int = field(default=6, metadata={"help": "Layers of the new model."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads of the new model."})
    intermediate_size: int = field(default=768, metadata={"help": "Width of the new model's MLP."})
    tie_embeddings: bool = field(default=False, metadata={"help": "Share embedding and head weights."})


class FieldParser(HfArgumentParser, Parser):
    """transformers' parser of dataclasses, with one-line errors."""


def parse(classes: Sequence[Any], argv: Sequence[str], *, prog: str, description: str) -> tuple[Any, ...]:
    """Instances of the dataclasses from `--config file.yaml` and `--field value` arguments.

    Raises:
        ValueError: an argument or a field of the file is unknown or has a wrong type.
    """
    parser = FieldParser(list(classes), prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file of fields; the command line overrides it.")
    parser.add_argument("--help_all", action="store_true", help="Also show every field of transformers' arguments.")
    if "--help_all" in argv:
        argv = ["--help"]
    else:
        _hide_rare(parser)
    *values, _rest = parser.parse_args_into_dataclasses(with_config(parser, argv))
    return tuple(values)


def _hide_rare(parser: argparse.ArgumentParser) -> None:
    rare = {item.name for item in dataclasses.fields(TrainingArguments)} - set(_COMMON)
    rare -= set(DiffusionConfig.__annotations__)
    for action in parser._actions:
        if action.dest in rare or (action.option_strings and action.option_strings[0].startswith("--no_")):
            action.help = argparse.SUPPRESS
