"""`--config file.yaml`: a file of fields becomes arguments, which the command line comes after and so overrides."""

import argparse
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from vrpo.fields.not_offered import unknown_field


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one ValueError instead of its whole usage and an exit."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, with the closest name for a flag that does not exist."""
        found, rest = self.parse_known_args(args, namespace)
        for word in rest:
            if word.startswith("--"):
                name = word.removeprefix("--").partition("=")[0].replace("-", "_")
                raise ValueError(f"{word}: {unknown_field(name, [action.dest for action in self._actions])}")
            raise ValueError(f"{word!r} belongs to no flag")
        return found

    def error(self, message: str) -> NoReturn:
        """Names a flag by its first form: `--lora_r`, not argparse's "argument --lora_r/--lora-r"."""
        raise ValueError(re.sub(r"^argument (--\w+)(/--[\w-]+)*:", r"\1:", message))

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """As argparse's, for numbers that are numbers."""
        if action.type in NUMBERS and as_number(action.type, arg_string) is None:
            raise argparse.ArgumentError(action, f"takes {NUMBERS[action.type]}, not {arg_string!r}")
        return super()._get_value(action, arg_string)

    def check(self, action: argparse.Action, words: Sequence[str]) -> None:
        """
        Raises:
            ValueError: the field cannot have these values.
        """
        try:
            for word in words:
                self._check_value(action, self._get_value(action, word))
        except argparse.ArgumentError as error:
            raise ValueError(error.message) from error


NUMBERS: dict[Any, str] = {int: "a whole number below 2^63", float: "a finite number"}


def as_number(kind: Any, text: str) -> int | float | None:
    """The number that a text is; None if it is none, is not finite, or is beyond what a tensor can hold."""
    try:
        value: int | float = kind(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and (kind is float or abs(value) < 2**63) else None


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
    return [*arguments_of(parser, content_of(path), str(path), mappings), *argv]


def arguments_of(
    parser: argparse.ArgumentParser, content: Mapping[Any, Any], place: str, mappings: Collection[str]
) -> list[str]:
    """Fields and their values as arguments. `place`: where they stand, for messages.

    Raises:
        ValueError: a key is no field of the parser, or a value is none that the field can have.
    """
    actions = {
        action.dest: action
        for action in parser._actions
        if f"--{action.dest}" in action.option_strings and action.dest not in ("config", "help", "help_all")
    }  # not --no_x, whose dest is x
    given: list[str] = []
    for key, value in content.items():
        if key not in actions:
            raise ValueError(f"{place}: {unknown_field(str(key), actions)}")
        try:
            given += _arguments(parser, actions[key], value, key in mappings)
        except ValueError as error:
            raise ValueError(f"{place}: {key} {error}") from error
    return given


class _Loader(yaml.SafeLoader):
    """YAML whose mappings name a key once, and whose numbers are those that a command line has: 5e-3 is one, 010 is 10,
    and times and dates stay text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for key in (key for key in keys if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"{key.value!r} is there twice: keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_REPLACED = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_DIGITS = r"[0-9](?:_?[0-9])*"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in _REPLACED]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_REPLACED[0], re.compile(rf"^[-+]?(0|(?!0){_DIGITS})$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _REPLACED[1],
    re.compile(
        rf"^[-+]?(?:(?:{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?|{_DIGITS}[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
_MOST = 10_000  # values in a file, those that an alias repeats counted again


def content_of(path: Path) -> dict[Any, Any]:
    """The fields of a YAML file.

    Raises:
        ValueError: naming the file, and the line that is wrong.
    """
    if not path.is_file():
        raise ValueError(f"--config {path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        content = yaml.load(path.read_bytes(), _Loader)
        sum(1 for _ in _values(content, [_MOST]))
    except yaml.MarkedYAMLError as error:
        place = path if error.problem_mark is None else f"{path}:{error.problem_mark.line + 1}"
        raise ValueError(f"--config {place}: not YAML that can be read: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        reason = f"{str(error).splitlines()[0]}. Save it as text in UTF-8"
        raise ValueError(f"--config {path}: not YAML that can be read: {reason}") from error
    except RecursionError as error:
        raise ValueError(f"--config {path}: too deeply nested to be a file of fields") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"--config {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path}: must hold a mapping of fields to values, `field: value` on each line")
    return content


def _values(value: Any, left: list[int]) -> Iterator[Any]:
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"more than {_MOST:,} values: that is no file of fields")
    yield value
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    for part in parts:
        yield from _values(part, left)


def _arguments(parser: argparse.ArgumentParser, action: argparse.Action, value: Any, may_map: bool) -> list[str]:
    """One field as arguments, of the field's type.

    Raises:
        ValueError: the value cannot be written as arguments of this field.
    """
    flag = f"--{action.dest}"
    if value is None:
        if action.default is not None or action.required:
            default = "" if action.default is None else f"; leave it out for its default, {action.default!r}"
            raise ValueError(f"cannot be null{default}")
        return []
    if isinstance(value, dict):
        if not may_map:
            raise ValueError(f"takes no mapping: {value}")
        return [f"{flag}={_json(value)}"]
    many = isinstance(value, list)
    if many and not (isinstance(action, argparse._AppendAction) or action.nargs in ("+", "*")):
        raise ValueError(f"takes one value, not the list {value}")
    words = [_word(action, item) for item in (value if many else [value])]
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"takes true or false, not {value!r}")
        no = f"--no-{action.dest}"
        return [flag] if value else [no] if no in action.option_strings else []
    if isinstance(parser, Parser):
        parser.check(action, words)
    if isinstance(action, argparse._AppendAction) or not many:
        return [f"{flag}={word}" for word in words]
    if not words or any(word.startswith("-") for word in words):
        raise ValueError(f"takes one or more items, none of which begins with a dash, not {value}")
    return [flag, *words]


def _word(action: argparse.Action, value: Any) -> str:
    """
    Raises:
        ValueError: the value is of a type that the field has not.
    """
    if isinstance(value, bool) and action.nargs != 0:
        if value is False and action.choices is not None:
            return "no"  # YAML reads a bare no as False
        if action.type in (None, str, Path) and action.dest not in _TRUE_OR_TEXT:
            raise ValueError(f"takes text, and YAML reads {str(value).lower()} from it: put it in quotes")
    if not isinstance(value, str | int | float):
        raise ValueError(f"takes text, numbers, true or false, not {value!r}")
    return str(value)


_TRUE_OR_TEXT = ("resume_from_checkpoint", "fsdp", "include_num_input_tokens_seen")


def _json(value: dict[Any, Any]) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"holds what JSON has not: {error}") from error
