"""Makes the help page of each command from its parser; `make pages` writes them, a test compares.

Fields are listed by what they are about: by name where classes of several commands share it, else by the class that
declares them.
"""

import argparse
import dataclasses
import inspect
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from vrpo.cli.door import COMMANDS, PAGES, RARE, Command
from vrpo.fields.config_file import Parser
from vrpo.fields.parser import field_parser, mapping
from vrpo.training.config import DiffusionConfig

_COMMON = (  # fields of transformers.TrainingArguments that --help shows; --help_all shows all
    "output_dir",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta2",
    "bf16",
    "seed",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "resume_from_checkpoint",
    "report_to",
    "push_to_hub",
)
_FIXED = (  # fields of ours that have one sensible value, which --help need not repeat
    "remove_unused_columns",
    "logging_nan_inf_filter",
    "ddp_find_unused_parameters",
    "ddp_broadcast_buffers",
)
_ORDER = {  # the groups of a page; fields that belong to none of them are in the last one
    "sft": ("general", "data", "model", "LoRA", "new model", "draws", "trainer"),
    "train": ("general", "data", "model", "LoRA", "loss", "draws", "trainer"),
    "rounds": ("general", "rounds", "data", "model", "LoRA", "loss", "draws", "trainer"),
    "estimate": ("general", "estimate", "data", "model", "LoRA", "loss", "draws", "trainer"),
    "generate": ("general", "data", "model", "decoding"),
    "pairs": ("general", "reward model", "endpoint", "pairs"),
    "variance": ("general", "data", "model", "measurement"),
    "eval": ("general", "data", "model", "likelihoods", "report", "decoding"),
    "export": ("general", "model", "export"),
    "demo": ("general", "settings"),
}
_TITLES = {  # by the class that declares a field
    "DataArguments": "data",
    "PreferenceDataArguments": "data",
    "SFTDataArguments": "data",
    "SFTConfig": "data",
    "ModelArguments": "model",
    "ScratchArguments": "new model",
    "RoundArguments": "rounds",
    "DiffusionConfig": "trainer",
    "VRPOConfig": "draws",
    "TrainingArguments": "trainer",
    "EstimateArguments": "estimate",
}
_NAMED = {  # by name, in pages that have the group
    "general": "config output_dir output report samples",
    "data": "dataset_name dataset_config dataset_train_split max_length max_prompt_length truncation_mode eos_padding "
    "strings_as_chat on_bad_rows prompt prompts chat tasks task data preset num_fewshot "
    "system_instruction fewshot_as_multiturn include_path limit confirm_run_unsafe_code apply_chat_template judge "
    "judge_arguments",
    "model": "model_name_or_path ref_model_name_or_path models adapter dtype device device_map attn_implementation "
    "experts_implementation mask_token_id shift_logits",
    "LoRA": "use_peft lora_r lora_alpha lora_dropout lora_target_modules load_in_4bit load_in_8bit "
    "bnb_4bit_quant_type use_bnb_nested_quant",
    "loss": "loss_type loss_weights loss_kwargs beta label_smoothing simpo_gamma desirable_weight undesirable_weight "
    "sft_coef temperature temperature_kwargs reference_free ref_pool ref_pool_kwargs precompute_ref_log_probs "
    "ref_terms_dir sync_ref_model ref_model_mixup_alpha ref_model_sync_steps warn_displacement",
    "likelihoods": "num_draws enumerate_short check_greedy",
    "report": "num_resamples",
    "draws": "plan plan_kwargs num_times eval_num_times draw_seed max_tokens_per_forward",
    "reward model": "reward_model reward_form reward_label batch_size max_length too_long dtype device",
    "endpoint": "endpoint_url endpoint_model endpoint_key_variable endpoint_extra endpoint_template unreadable refused "
    "comparisons concurrency timeout retries",
}
_GROUP_OF = {(title, name): title for title, names in _NAMED.items() for name in names.split()}
_KINDS: dict[Any, str] = {int: "INTEGER", float: "NUMBER", Path: "PATH", mapping: "JSON"}
_WIDTH, _INDENT = 100, " " * 6


def write_pages() -> None:
    """Write the page of every command."""
    PAGES.mkdir(exist_ok=True)
    for name in COMMANDS:
        (PAGES / f"{name}.txt").write_text(page(name), encoding="utf-8")


def page(name: str) -> str:
    """The help of a command, with every field once."""
    command = COMMANDS[name]
    parser = parser_of(name)
    groups: dict[str, list[str]] = {title: [] for title in _ORDER[name]}
    rare = f"{RARE} ({version('transformers')})"
    for action in parser._actions:
        if action.dest != "help" and not action.option_strings[0].startswith("--no_"):
            groups.setdefault(_group(name, action.dest, command, rare), []).extend(_entry(parser, action))
    config = "[--config FILE.yaml] " if any(action.dest == "config" for action in parser._actions) else ""
    lines = [f"usage: vrpo {name} {config}[--field VALUE ...]", "", f"{command.about[0].upper()}{command.about[1:]}."]
    for title in (*_ORDER[name], rare):
        if title in groups:
            lines += ["", title, *groups[title]]
    return "\n".join([*lines, ""])


def parser_of(name: str) -> Parser:
    """The parser that reads a command's arguments."""
    return field_parser(COMMANDS[name].classes(), f"vrpo {name}")


def _group(name: str, field: str, command: Command, rare: str) -> str:
    owner = _owners(command).get(field, "")
    ours = DiffusionConfig.__annotations__.keys() - set(_FIXED)
    if field in {each.name for each in dataclasses.fields(TrainingArguments)} - set(_COMMON) - ours and owner:
        return rare
    order = _ORDER[name]
    named = next((title for title in order if (title, field) in _GROUP_OF), _TITLES.get(owner))
    return named if named in order else order[-1]


def _owners(command: Command) -> dict[str, str]:
    """The class that declares each field first."""
    bases = [base for one in command.classes() for base in reversed(one.__mro__)]
    return {name: base.__name__ for base in reversed(bases) for name in inspect.get_annotations(base)}


def _entry(parser: Parser, action: argparse.Action) -> list[str]:
    words = " ".join((argparse.HelpFormatter(parser.prog)._expand_help(action) if action.help else "").split())
    value, default = _value(action), _default(action)
    if len(value) > _WIDTH:
        words, value = f"{words} One of: {value.replace(' |', ',')}.", "TEXT"
    if default and "default" not in words:
        words = f"{words} (default: {default})"
    head = f"  --{action.dest} {value}".rstrip() + " (required)" * action.required
    return [head, *textwrap.wrap(words, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)]


def _default(action: argparse.Action) -> str:
    value = action.default
    if value is None or action.nargs == 0:
        return ""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(getattr(value, "value", value))


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "" if isinstance(action.const, bool) else "true | false"
    if action.choices is not None:
        kind = " | ".join(map(str, action.choices))
    elif getattr(action.type, "__name__", "") == "string_to_bool":
        kind = "true | false"
    else:
        kind = _KINDS.get(action.type, "TEXT")
    several = f"{kind} ..." if action.nargs in ("+", "*") else kind
    return several + (", may be repeated" if isinstance(action, argparse._AppendAction) else "")
