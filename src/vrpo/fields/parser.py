"""Dataclasses from a command line, a YAML file or a mapping: one flat namespace over several, as in TRL."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from vrpo.fields.config_file import Parser, arguments_of, with_config

T = TypeVar("T")
_HELP = {  # in place of transformers'
    "gradient_checkpointing": "Recompute activations in the backward pass: less memory, more time.",
    "gradient_checkpointing_kwargs": "Its options as JSON, or as a mapping in YAML: use_reentrant.",
    "resume_from_checkpoint": "A checkpoint's folder to go on from; true: the last whole one of output_dir; auto: the "
    "same, and if there is none the run begins, so that one command does both.",
    "report_to": "Where to log, one or several: none, all, tensorboard, wandb, trackio.",
}


class FieldParser(HfArgumentParser, Parser):
    """transformers' parser of dataclasses, with one-line errors, and with lists and mappings where a field's type has
    them beside a string (report_to, gradient_checkpointing_kwargs).

    `mappings` names the fields that may hold a mapping.
    """

    def __init__(self, classes: Sequence[Any], **kwargs: Any):
        super().__init__(classes, **kwargs)
        hints = {name: hint for one in classes for name, hint in get_type_hints(one).items()}
        self.mappings = {name for name, hint in hints.items() if _admits(hint, dict)}
        self.one_or_more = []
        for action in self._actions:
            hint = hints.get(action.dest)
            if _admits(hint, dict) and action.type is not str:
                action.type = mapping
            if _admits(hint, list) and action.nargs is None:
                action.nargs = "+"
                self.one_or_more.append(action.dest)
            if _admits(hint, bool) and action.nargs is None:  # a bare flag is true
                action.nargs, action.const = "?", True
            if _admits(hint, Callable):  # in Python
                action.type = str
            action.help = _HELP.get(action.dest, action.help)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Of the fields that hold one value or a list, a single value is no list."""
        space, rest = super().parse_known_args(args, namespace)
        for name in self.one_or_more:
            value = getattr(space, name)
            setattr(space, name, value[0] if isinstance(value, list) and len(value) == 1 else value)
        return space, rest


def _admits(hint: Any, kind: Any) -> bool:
    """Whether a type is `kind`, or a union with it."""
    return any((get_origin(part) or part) is kind for part in (hint, *get_args(hint)))


def mapping(text: str) -> dict[str, Any]:
    """A JSON object."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"takes a mapping, as JSON or in YAML, not {text}")
    return found


def field_parser(classes: Sequence[Any], prog: str) -> FieldParser:
    """The parser of the dataclasses' fields and of --config. Help is in pages/."""
    parser = FieldParser(list(classes), prog=prog, allow_abbrev=False, add_help=False)
    parser.add_argument("--config", help="YAML file of fields; the command line overrides it.")
    return parser


def parse(classes: Sequence[Any], argv: Sequence[str], *, prog: str) -> tuple[Any, ...]:
    """Instances of the dataclasses from `--config file.yaml` and `--field value` arguments.

    Raises:
        ValueError: an argument or a field of the file is unknown or has a wrong type.
    """
    parser = field_parser(classes, prog)
    given = with_config(parser, argv, mappings=parser.mappings)
    parser.parse_args(given)
    *values, _ = parser.parse_args_into_dataclasses(given, look_for_args_file=False)
    return tuple(values)


def made_of(kind: type[T], content: Mapping[str, Any], place: str) -> T:
    """An instance of a command's dataclass from a mapping, with the rules of its command line.

    Args:
        place: what the mapping is called, for messages.

    Raises:
        ValueError: naming the place, and the field that is unknown or has a wrong value.
    """
    parser = field_parser((kind,), "vrpo")
    given = arguments_of(parser, content, place, parser.mappings)
    try:
        return parser.parse_args_into_dataclasses(given, look_for_args_file=False)[0]
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
