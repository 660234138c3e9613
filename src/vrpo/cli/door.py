"""What is said of a command line before anything heavy is imported: its help, unknown fields, files that are missing.

A command's page is made of its parser (page.py) and committed, so that help and the names of fields need no import. The
values of fields are checked later, by the parsers. A field of another version of transformers is left to them as well.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from vrpo.fields.config_file import NUMBERS, as_number, content_of, unknown_field


@dataclass(frozen=True)
class Command:
    """Where a command is: a function of the dataclasses `fields`."""

    module: str
    function: str
    about: str
    fields: tuple[str, ...]

    def classes(self) -> list[Any]:
        found = [name.rpartition(".") for name in self.fields]
        return [getattr(import_module(module), name) for module, _, name in found]


_ARGUMENTS, _TRAINING = "vrpo.training.arguments", "vrpo.training"
_PREFERENCE = (
    *(f"{_ARGUMENTS}.PreferenceDataArguments", f"{_ARGUMENTS}.ModelArguments"),
    f"{_TRAINING}.preference_config.VRPOConfig",
)
COMMANDS = {
    "sft": Command(
        "vrpo.training.run",
        "sft",
        "supervised fine-tuning, or pretraining from scratch",
        (
            *(f"{_ARGUMENTS}.{name}" for name in ("SFTDataArguments", "ModelArguments", "ScratchArguments")),
            f"{_TRAINING}.config.SFTConfig",
        ),
    ),
    "train": Command(
        "vrpo.training.run",
        "train",
        "preference optimisation (VRPO)",
        _PREFERENCE,
    ),
    "rounds": Command(
        "vrpo.rounds",
        "rounds",
        "generate, judge, pair and train, again and again, then evaluate",
        (*_PREFERENCE[:2], "vrpo.rounds.RoundArguments", *_PREFERENCE[2:]),
    ),
    "generate": Command(
        "vrpo.answering.run",
        "generate_command",
        "answer prompts with a model",
        ("vrpo.answering.run.GenerateArguments",),
    ),
    "pairs": Command(
        "vrpo.pairs.run",
        "pairs",
        "judge sampled answers and make preference pairs of them",
        ("vrpo.pairs.run.PairsArguments",),
    ),
    "eval": Command(
        "vrpo.evals.run",
        "evaluate",
        "models on benchmarks, compared on the same items",
        ("vrpo.evals.wanted.EvalArguments",),
    ),
    "variance": Command(
        "vrpo.variance.run",
        "variance",
        "how noisy the preference gradient is, and what to do about it",
        ("vrpo.variance.run.VarianceArguments",),
    ),
    "estimate": Command(
        "vrpo.planning.run",
        "estimate",
        "memory and time of a training step, before anything is loaded",
        ("vrpo.planning.report.EstimateArguments", *_PREFERENCE),
    ),
    "export": Command(
        "vrpo.export",
        "export",
        "merge an adapter, and write a model in its official layout",
        ("vrpo.export.ExportArguments",),
    ),
    "demo": Command(
        "vrpo.demo.run",
        "demo",
        "a few minutes on a laptop: train, collect pairs, align, compare",
        ("vrpo.demo.run.DemoArguments", "vrpo.demo.run.Settings"),
    ),
}

PAGES = Path(__file__).with_name("pages")
RARE = "more of transformers' TrainingArguments"  # the last group of a page, which --help_all shows
_HELP, _HELP_ALL = ("-h", "--help"), "--help_all"
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".txt", ".yaml")
_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DATA = ("dataset_name", "eval_dataset_name")
_FOLDERS = (  # hub names, or folders
    *("model_name_or_path", "ref_model_name_or_path", "causal_ref_model_name_or_path", "adapter"),
    *("reward_model_name_or_path", "reward_model"),
)
_LOCAL = {  # field -> what it must be
    "include_path": Path.is_dir,
    "data": Path.is_dir,
    "prompts": Path.is_file,
    "samples": Path.is_file,
    "endpoint_template": Path.is_file,
}


def page_of(command: str, *, whole: bool) -> str:
    """The help of a command; `whole`: with the fields that few need."""
    text = (PAGES / f"{command}.txt").read_text(encoding="utf-8")
    return text if whole else text.partition(f"\n{RARE}")[0]


def asks_for_help(argv: Sequence[str]) -> bool:
    return any(word in (*_HELP, _HELP_ALL) for word in argv)


def help_of(command: str, argv: Sequence[str]) -> str:
    return page_of(command, whole=_HELP_ALL in argv)


def check(command: str, argv: Sequence[str]) -> None:
    """
    Raises:
        ValueError: a flag or a key of the file is no field of the command, a flag is there twice, or what a field names
            is not there.
    """
    page = page_of(command, whole=True)
    known = dict(re.findall(r"^  --(\w+)(.*)$", page, re.MULTILINE))
    given: dict[str, list[str]] = {}
    for name, word, values in _flags(argv):
        if name not in known and _is_of_here(page):
            raise ValueError(f"{word}: {unknown_field(name, known)}")
        if name in given and "may be repeated" not in known.get(name, ""):
            raise ValueError(f"--{name} is there twice: keep one")
        _check_values(word, known.get(name, ""), values)
        given.setdefault(name, []).extend(values)
    if given.get("config"):
        path = Path(given["config"][0])
        content = content_of(path)
        for key in content:
            if (key not in known or key == "config") and _is_of_here(page):
                raise ValueError(f"{path}: {unknown_field(str(key), known)}")
        _check_places({**content, **given})
    else:
        _check_places(given)


def _flags(argv: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Each flag as a field's name, as it was written, and with its values; `--no_x` is a value of x."""
    at = [index for index, word in enumerate(argv) if word.startswith("--") and len(word) > 2]
    for index, end in pairwise([*at, len(argv)]):
        head, equals, value = argv[index].partition("=")
        name = head.removeprefix("--").replace("-", "_")
        yield name.removeprefix("no_"), argv[index], [value] if equals else list(argv[index + 1 : end])


def _check_values(word: str, kind: str, values: Sequence[str]) -> None:
    """Numbers that are none and misspelt choices are known without the parser, by what the page says of the field."""
    for value in values:
        for shown, number in (("INTEGER", int), ("NUMBER", float)):
            if kind.split()[:1] == [shown] and as_number(number, value) is None:
                raise ValueError(f"{word}: takes {NUMBERS[number]}, not {value!r}")
        choices = kind.partition("(")[0].split(" | ")
        if len(choices) > 2 and value not in map(str.strip, choices):
            raise ValueError(f"{word}: takes {', '.join(map(str.strip, choices))}; not {value!r}")


def _is_of_here(page: str) -> bool:
    """Whether the page lists all fields: it is of the version of transformers that is installed, or of none."""
    made_with = re.search(rf"^{re.escape(RARE)} \((\S+)\)", page, re.MULTILINE)
    return made_with is None or made_with[1] == version("transformers")


def _check_places(given: Mapping[str, Any]) -> None:
    for name, values in given.items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, str):
                _check_place(name, value)


def _check_place(name: str, value: str) -> None:
    path = Path(value).expanduser()
    if "\0" in value:
        raise ValueError(f"--{name} {value!r}: no file has such a name")
    if name in _DATA and not path.exists() and not _may_be_of_the_hub(value):
        raise ValueError(f"--{name} {value}: no such file or folder")
    if name in _FOLDERS and not path.is_dir() and (path.exists() or not _may_be_of_the_hub(value)):
        raise ValueError(f"--{name} {value}: {'a file: give its folder' if path.exists() else 'no such folder'}")
    if name in _LOCAL and not _LOCAL[name](path):
        wrong = "" if not path.exists() else ", but a folder" if path.is_dir() else ", but a file"
        kind = "folder" if _LOCAL[name] is Path.is_dir else "file"
        raise ValueError(f"--{name} {value}: no such {kind}{wrong}")


def _may_be_of_the_hub(value: str) -> bool:
    return bool(_HUB.fullmatch(value)) and not value.startswith(".") and not value.endswith(_SUFFIXES)
