"""The door of the command line: help, and what is wrong with a command that needs no import to be known."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loops import each
from vrpo.cli import main
from vrpo.cli.door import COMMANDS, PAGES, RARE, check, page_of
from vrpo.cli.page import page, parser_of

HEAVY = {"torch", "numpy", "transformers", "peft", "datasets", "accelerate", "matplotlib", "rich", "tqdm"}


@each("name", COMMANDS)
def test_pages_are_those_of_the_parsers(name: str) -> None:
    """Kills: a field without its help; a page that tells of a field that has gone."""
    assert (PAGES / f"{name}.txt").read_text(encoding="utf-8") == page(name), "run `make pages`"


@each("name", COMMANDS)
def test_every_field_is_on_the_page_once(name: str) -> None:
    """In a group with a title. Kills: a field in two groups, or under two spellings; one that the page has lost."""
    lines = page_of(name, whole=True).splitlines()
    listed = [line.split()[0].removeprefix("--") for line in lines if line.startswith("  --")]
    known = {action.dest for action in parser_of(name)._actions} - {"help"}
    assert sorted(listed) == sorted(known)
    titles = [line for before, line in zip(["", *lines], lines, strict=False) if line[:1].isalpha() and not before]
    assert len(titles) >= (3 if name == "export" else 2)


@each("name", COMMANDS)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: transformers' hundred fields before ours; help that a broken file of fields prevents."""
    assert main([name, "--config", "nowhere.yaml", "--help"]) == 0
    short = capsys.readouterr().out
    assert short.startswith(f"usage: vrpo {name} ")
    assert RARE not in short
    assert main([name, "--help_all"]) == 0
    whole = capsys.readouterr().out
    assert whole.startswith(short)
    assert ("--adam_beta1" in whole) == (name in ("sft", "train", "rounds", "estimate"))
    for field in ("--remove_unused_columns", "--logging_nan_inf_filter", "--ddp_broadcast_buffers", "Deprecated"):
        assert field not in short


@each("titles", [["data", "model", "LoRA", "loss", "draws", "trainer"]])
def test_groups(titles: list[str]) -> None:
    """Fields stand where one looks for them. Kills: fields of LoRA under the model's, draws among the loss's."""
    found: dict[str, str] = {}
    title = ""
    for line in page_of("train", whole=False).splitlines()[3:]:
        title = line if line and not line.startswith(" ") else title
        if line.startswith("  --"):
            found[line.split()[0].removeprefix("--")] = title
    assert list(dict.fromkeys(found.values())) == ["general", *titles]
    of = {"data": "max_length", "LoRA": "lora_r", "loss": "beta", "draws": "num_times", "trainer": "learning_rate"}
    assert {title: found[name] for title, name in of.items()} == {title: title for title in of}


NOTHING_IMPORTED = [
    (["train", "--help"], 0, "usage: vrpo train"),
    (["train", "--betta", "1"], 2, "--betta: unknown field 'betta'; did you mean beta?"),
    (["train", "--dataset_name", "nowhere.jsonl"], 2, "--dataset_name nowhere.jsonl: no such file or folder"),
    (["sft", "--num_times", "two"], 2, "--num_times: takes a whole number below 2^63, not 'two'"),
    (["generate", "--prompts", "nowhere.txt"], 2, "--prompts nowhere.txt: no such file"),
    (["eval", "--config", "nowhere.yaml"], 2, "--config nowhere.yaml: no such file"),
]


def test_what_the_door_knows_imports_nothing() -> None:
    """In one process, after all of them. Kills: seconds of torch before a word about a misspelt flag."""
    code = (
        "import sys, vrpo.cli\n"
        f"for given, code, words in {NOTHING_IMPORTED!r}:\n"
        "    assert vrpo.cli.main(given) == code, given\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for _, _, words in NOTHING_IMPORTED:
        assert words in done.stdout + done.stderr


@pytest.mark.slow
def test_a_value_of_the_wrong_kind_needs_the_parser_only() -> None:
    """Kills: the trainers, the datasets and the judges imported before `beta: 0` is refused."""
    code = (
        "import sys, vrpo.cli\n"
        "assert vrpo.cli.main(['train', '--output_dir', 'x', '--use_cpu', 'true', '--beta', '0']) == 2\n"
        "own = {'vrpo.training.base', 'vrpo.models.load', 'vrpo.data.sources', 'vrpo.rounds', 'datasets'}\n"
        "assert not own & set(sys.modules), own & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "beta must be positive" in done.stderr


@each(
    ("given", "words"),
    [
        (["--beta", "1", "--beta=2"], "--beta is there twice: keep one"),
        (["--learning_rate", "1", "--learning-rate", "2"], "--learning_rate is there twice"),
        (["--config", "a.yaml", "--config", "b.yaml"], "--config is there twice"),
        (["--share_draws", "true", "--no_share_draws"], "--share_draws is there twice"),
        (["--beta", "nan"], "--beta: takes a finite number, not 'nan'"),
        (["--beta=-inf"], "--beta=-inf: takes a finite number, not '-inf'"),
        (["--max_steps", "1e23"], "--max_steps: takes a whole number"),
        (["--seed", "1" * 23], "--seed: takes a whole number"),
        (["--eval_strategy", "stepps"], "--eval_strategy: takes no, steps, epoch; not 'stepps'"),
        (["--model_name_or_path", "a/b/c"], "--model_name_or_path a/b/c: no such folder"),
        (["--model_name_or_path", __file__], "a file: give its folder"),
        (["--ref_model_name_or_path", "policy", "./nowhere"], "--ref_model_name_or_path ./nowhere: no such folder"),
        (["--dataset_name", "a\0b"], "no file has such a name"),
    ],
)
def test_the_door_names_the_flag(given: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *given]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_a_repeated_prompt_is_two_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: the one field that may be given twice refused."""
    given = ["generate", "--prompt", "a", "--prompt", "b", "--model_name_or_path", "./nowhere"]
    assert main(given) == 2
    assert "--model_name_or_path ./nowhere: no such folder" in capsys.readouterr().err


def test_another_version_of_transformers_has_other_fields(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser, which knows them, has the last word. Kills: a field refused by a page of another version."""
    monkeypatch.setattr("vrpo.cli.door.version", lambda name: "5.99")
    assert main(["train", "--a_new_field", "1", "--output_dir", str(tmp_path)]) == 2
    assert "--a_new_field: unknown field 'a_new_field'" in capsys.readouterr().err


def test_a_line_without_flags_goes_on_to_the_parser() -> None:
    """Kills: pairs of flags and ends where there is no flag, which ends in a message of Python's."""
    check("train", [])


def test_a_command_takes_what_it_is_given() -> None:
    """Kills: a dataclass that the function wants and the parser does not make."""
    for name, command in COMMANDS.items():
        function = getattr(importlib.import_module(command.module), command.function)
        wanted = [each.annotation for each in inspect.signature(function).parameters.values()]
        assert wanted == command.classes(), name
