"""`--config file.yaml`: a file of fields becomes arguments, which the command line comes after and so overrides."""

import argparse
import difflib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

_NOT_OFFERED = {  # what runs made for TRL's preference trainers and SFTTrainer may bring along, and what to do instead
    "activation_offloading": "gradient_checkpointing, and one pack of draws at a time, keep memory low",
    "alpha": "alphapo is not among the losses; leave it out",
    "assistant_only_loss": "only the last answer is trained on",
    "completion_only_loss": "only the completion is trained on",
    "cpo_alpha": "name sft in loss_type, with its weight in loss_weights",
    "device_map": "each process trains on one device; what does not fit is sharded (recipes/accelerate)",
    "disable_dropout": "dropout is refused anyway; leave it out",
    "discopop_tau": "discopop is not among the losses; leave it out",
    "f_alpha_divergence_coef": "only DPO's reverse KL; leave it out",
    "f_divergence_type": "only DPO's reverse KL: the others' ratios would be of likelihoods, of which a bound is none",
    "generate_during_eval": "sample_steps writes answers during training",
    "is_encoder_decoder": "encoder-decoder models are not trained; leave it out",
    "ld_alpha": "it weighs tokens by their place, and a bound has no terms of single places",
    "max_completion_length": "set max_length, and max_prompt_length",
    "packing": "leave it out",
    "pad_to_multiple_of": "nothing is computed on padding that could be shared; leave it out",
    "padding_free": "leave it out",
    "precompute_ref_batch_size": "max_tokens_per_forward limits these passes, too",
    "ref_model_init_kwargs": "dtype and attn_implementation hold for the reference too",
    "model_init_kwargs": "set dtype and attn_implementation",
    "rpo_alpha": "set sft_coef, or name sft in loss_type with its weight in loss_weights",
    "torch_dtype": "set dtype",
    "trust_remote_code": "no remote code is run; leave it out",
    "use_weighting": "WPO weighs pairs by the policy's likelihood per token, which a bound is not; a column weight "
    "weighs pairs",
}


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one ValueError instead of its whole usage and an exit."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, with the closest name for a flag that does not exist."""
        found, rest = self.parse_known_args(args, namespace)
        for word in rest:
            if word.startswith("--"):
                name = word.removeprefix("--").partition("=")[0]
                raise ValueError(f"{word}: {unknown_field(name, [action.dest for action in self._actions])}")
            raise ValueError(f"{word!r} belongs to no flag")
        return found

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def unknown_field(name: str, known: Collection[str]) -> str:
    """What to say of a field that does not exist: TRL's are named as such, others get the closest name."""
    if name in _NOT_OFFERED:
        return f"TRL's field {name!r} is not offered: {_NOT_OFFERED[name]}"
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown field {name!r}" + (f"; did you mean {close[0]}?" if close else "")


def with_config(parser: argparse.ArgumentParser, argv: Sequence[str], *, mappings: Collection[str] = ()) -> list[str]:
    """The arguments of the YAML file that --config names, then the given ones.

    Args:
        mappings: fields whose value may be a mapping, which becomes JSON.

    Raises:
        ValueError: the file is missing, is not a YAML mapping, has a key that is no field of the parser, or a value
            that the field cannot have.
    """
    flag = Parser(add_help=False, allow_abbrev=False)
    flag.add_argument("--config", type=Path)
    path = flag.parse_known_args(argv)[0].config
    if path is None:
        return list(argv)
    actions = {
        action.dest: action
        for action in parser._actions
        if f"--{action.dest}" in action.option_strings and action.dest not in ("config", "help", "help_all")
    }  # not --no_x, whose dest is x
    given: list[str] = []
    for key, value in _content(path).items():
        if key not in actions:
            raise ValueError(f"{path}: {unknown_field(str(key), actions)}")
        try:
            given += _arguments(actions[key], value, key in mappings)
        except ValueError as error:
            raise ValueError(f"{path}: {key} {error}") from error
    return [*given, *argv]


def _content(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise ValueError(f"--config {path}: no such file")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of fields to values")
    return content


def _arguments(action: argparse.Action, value: Any, may_map: bool) -> list[str]:
    """One field as arguments; argparse then converts and checks the type.

    Raises:
        ValueError: the value cannot be written as arguments of this field.
    """
    flag = f"--{action.dest}"
    if value is None:
        if action.default is not None:
            raise ValueError(f"cannot be null; leave it out for its default, {action.default!r}")
        return []
    if isinstance(value, dict):
        if not may_map:
            raise ValueError(f"takes no mapping: {value}")
        return [f"{flag}={json.dumps(value)}"]
    if isinstance(action, argparse._AppendAction):
        return [f"{flag}={item}" for item in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        return _listed(action, value)
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"takes true or false, not {value!r}")
        return [flag] if value else []
    if value is False and action.choices is not None:
        value = "no"  # YAML reads a bare no as False
    return [f"{flag}={value}"]


def _listed(action: argparse.Action, values: list[Any]) -> list[str]:
    if action.nargs not in ("+", "*"):
        raise ValueError(f"takes one value, not the list {values}")
    items = [str(item) for item in values]
    if not items or any(item.startswith("-") for item in items):
        raise ValueError(f"takes one or more items, none of which begins with a dash, not {values}")
    return [f"--{action.dest}", *items]
