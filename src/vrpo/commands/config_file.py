"""`--config file.yaml`: a file of fields becomes arguments, which the command line comes after and so overrides."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one ValueError instead of its whole usage and an exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def with_config(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The arguments of the YAML file that --config names, then the given ones.

    Raises:
        ValueError: the file is missing, is not a YAML mapping, or has a key that is no field of the parser.
    """
    flag = Parser(add_help=False, allow_abbrev=False)
    flag.add_argument("--config", type=Path)
    path = flag.parse_known_args(argv)[0].config
    if path is None:
        return list(argv)
    if not path.is_file():
        raise ValueError(f"--config {path}: no such file")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of fields to values")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("config", "help", "help_all")}
    given: list[str] = []
    for key, value in content.items():
        if key not in actions:
            close = difflib.get_close_matches(str(key), actions, n=1)
            raise ValueError(f"{path}: unknown field {key!r}" + (f"; did you mean {close[0]}?" if close else ""))
        given += _arguments(actions[key], value, path)
    return [*given, *argv]


def _arguments(action: argparse.Action, value: Any, path: Path) -> list[str]:
    """One field as arguments; argparse then converts and checks the type."""
    flag = f"--{action.dest}"
    if value is None:
        return []
    if action.nargs == 0:
        return [flag] if value else []
    if value is False and action.choices is not None:
        return [flag, "no"]  # YAML reads a bare no as False
    if isinstance(value, list) and action.nargs not in ("+", "*") and not isinstance(action, argparse._AppendAction):
        raise ValueError(f"{path}: {action.dest} takes one value, not the list {value}")
    if isinstance(action, argparse._AppendAction):
        return [part for item in (value if isinstance(value, list) else [value]) for part in (flag, str(item))]
    return [flag, *(str(item) for item in (value if isinstance(value, list) else [value]))]
