"""Command-line and YAML arguments: one flat namespace over several dataclasses, as in TRL.

Precedence: command line over YAML over defaults. A YAML key that no field has is an error that names file and key.
"""

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

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


def parse(classes: Sequence[Any], argv: Sequence[str], *, prog: str, description: str) -> tuple[Any, ...]:
    """Instances of the dataclasses from `--config file.yaml` and `--field value` arguments.

    Raises:
        ValueError: the YAML file has a key that no field has, or is not a mapping.
    """
    parser = HfArgumentParser(list(classes), prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file of fields; the command line overrides it.")
    parser.add_argument("--help_all", action="store_true", help="Also show every field of transformers' arguments.")
    argv = list(argv)
    if "--help_all" not in argv:
        _hide_rare(parser)
    else:
        argv = ["--help"]
    config, _ = _config_flag().parse_known_args(argv)
    if config.config is not None:
        _apply_yaml(parser, Path(config.config))
    *values, _rest = parser.parse_args_into_dataclasses(argv)
    return tuple(values)


def _config_flag() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    return parser


def _hide_rare(parser: argparse.ArgumentParser) -> None:
    rare = {item.name for item in dataclasses.fields(TrainingArguments)} - set(_COMMON)
    rare -= set(DiffusionConfig.__annotations__)
    for action in parser._actions:
        if action.dest in rare or (action.option_strings and action.option_strings[0].startswith("--no_")):
            action.help = argparse.SUPPRESS


def _apply_yaml(parser: argparse.ArgumentParser, path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"--config {path}: no such file")
    content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of fields to values")
    actions = {action.dest: action for action in parser._actions}
    for key, value in content.items():
        if key not in actions or key in ("config", "help", "help_all"):
            close = difflib.get_close_matches(str(key), actions, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{path}: unknown field {key!r}{hint}")
        actions[key].required = False
        parser.set_defaults(**{key: value})
