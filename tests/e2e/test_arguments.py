"""Fields in YAML and on the command line: every kind of value arrives as it was written, or is refused by name."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from tests.loops import each
from vrpo.fields.config_file import content_of
from vrpo.fields.parser import parse
from vrpo.models import load as loading
from vrpo.rounds import RoundArguments
from vrpo.training import inherited
from vrpo.training import run as command
from vrpo.training.arguments import ModelArguments, PreferenceDataArguments, ScratchArguments, SFTDataArguments
from vrpo.training.config import SFTConfig
from vrpo.training.preference_config import VRPOConfig

RECIPES = Path(__file__).parents[2] / "recipes"
ACCELERATE = RECIPES / "accelerate"
CLASSES = {
    "train": (PreferenceDataArguments, ModelArguments, VRPOConfig),
    "rounds": (PreferenceDataArguments, ModelArguments, RoundArguments, VRPOConfig),
    "sft": (SFTDataArguments, ModelArguments, ScratchArguments, SFTConfig),
}


@pytest.fixture
def fields(tmp_path: Path) -> Callable[..., Any]:
    """The training fields of `vrpo train` with a YAML file of the given text and more arguments."""

    def of(yaml: str, *arguments: str) -> Any:
        path = tmp_path / "run.yaml"
        path.write_text(f"dataset_name: data\noutput_dir: {tmp_path / 'out'}\nuse_cpu: true\n{yaml}")
        return parse(CLASSES["train"], ["--config", str(path), *arguments], prog="vrpo train")

    return of


@pytest.mark.parametrize(("text", "value"), [("false", False), ("true", True)])
def test_yaml_sets_a_field_that_is_true_by_default(fields: Callable[..., Any], text: str, value: bool) -> None:
    """Kills: `share_draws: false` ignored, because --no_share_draws is the parser's last argument of that name."""
    *_, config = fields(f"share_draws: {text}\nwarn_displacement: {text}\n")
    assert config.share_draws is value
    assert config.warn_displacement is value


def test_yaml_mapping(fields: Callable[..., Any]) -> None:
    """Kills: str(dict), which is not JSON; json.dumps of the items of a list."""
    checkpointing = "gradient_checkpointing_kwargs: {use_reentrant: false}\n"
    schedule = "lr_scheduler_type: cosine\nlr_scheduler_kwargs: {num_cycles: 2}\n"
    *_, config = fields(checkpointing + schedule)
    assert config.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert config.lr_scheduler_kwargs == {"num_cycles": 2}


@pytest.mark.parametrize(
    ("yaml", "arguments", "value"),
    [
        ("report_to: [tensorboard, wandb]\n", [], ["tensorboard", "wandb"]),
        ("report_to: tensorboard\n", [], ["tensorboard"]),
        ("report_to: [tensorboard]\n", ["--report_to", "none"], []),
        ("", ["--report_to", "tensorboard", "trackio"], ["tensorboard", "trackio"]),
    ],
)
def test_report_to(
    fields: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, yaml: str, arguments: list[str], value: list[str]
) -> None:
    """One or several. Kills: a list refused; a list joined into one name; YAML after the command line."""
    monkeypatch.setattr(inherited, "get_available_reporting_integrations", lambda: ["tensorboard", "trackio", "wandb"])
    *_, config = fields(yaml, *arguments)
    assert config.report_to == value


def test_a_parser_changes_no_type(fields: Callable[..., Any], tmp_path: Path) -> None:
    """In Python, after a command line was read. Kills: types of fields as HfArgumentParser leaves them."""
    fields("")
    for kind in (VRPOConfig, SFTConfig):
        assert kind(output_dir=str(tmp_path), use_cpu=True, report_to="none").plan_kwargs is None


def test_one_value_is_no_list(fields: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: a field that is a string or a list always being a list ("all-linear" is a keyword)."""
    monkeypatch.setattr(inherited, "find_spec", lambda name: name)
    *_, config = fields("optim: galore_adamw\noptim_target_modules: all-linear\n")
    assert config.optim_target_modules == "all-linear"


def test_yaml_value_that_begins_with_a_dash(fields: Callable[..., Any]) -> None:
    """Kills: `--flag value` instead of `--flag=value`."""
    *_, config = fields("run_name: -a\n")
    assert config.run_name == "-a"


def test_yaml_null(fields: Callable[..., Any]) -> None:
    """Null where it is the default is nothing; elsewhere it is refused. Kills: null silently ignored."""
    *_, config = fields("max_prompt_length: null\n")
    assert config.max_prompt_length is None
    with pytest.raises(ValueError, match=r"run\.yaml: max_length cannot be null; leave it out for its default, 1024"):
        fields("max_length: null\n")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("beta: {a: 1}\n", "beta takes no mapping"),
        ("beta: [1, 2]\n", "beta takes one value"),
        ("lora_target_modules: []\n", "lora_target_modules takes one or more items"),
        ("lora_target_modules: [q_proj, --beta]\n", "lora_target_modules takes one or more items"),
        ("rpo_alpha: 1\n", "TRL's field 'rpo_alpha' is not offered: set sft_coef"),
    ],
)
def test_values_that_a_field_cannot_have(fields: Callable[..., Any], yaml: str, message: str) -> None:
    """Kills: a mapping as the text of a string; items read as flags; TRL's fields taken for typing errors."""
    with pytest.raises(ValueError, match=r"run\.yaml: " + re.escape(message)):
        fields(yaml)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--generate_during_eval", "TRL's field 'generate_during_eval' is not offered: sample_steps"),
        ("--ld-alpha=0.5", "TRL's field 'ld_alpha' is not offered"),
        ("--betta=1", "unknown field 'betta'; did you mean beta?"),
    ],
)
def test_unknown_arguments(fields: Callable[..., Any], argument: str, message: str) -> None:
    """Kills: transformers' message about its own parser; a dash or a value taken for part of the name."""
    with pytest.raises(ValueError, match="^" + re.escape(f"{argument}: {message}")):
        fields("", argument)


def commands_of(recipe: Path) -> list[list[str]]:
    """The commands that a recipe's comments name, from the launcher on."""
    lines = [line.removeprefix("#").strip() for line in recipe.read_text().splitlines() if line.startswith("#")]
    return [shlex.split(line) for line in lines if re.match(r"(accelerate launch .* -m )?vrpo ", line)]


@each("recipe", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_recipes(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their commands parse as they stand, in the repository root. Kills: renamed fields, stale comments."""
    monkeypatch.chdir(RECIPES.parent)
    commands, distributed = commands_of(recipe), recipe.parent == ACCELERATE
    assert commands
    for words in commands:
        at = words.index("vrpo")
        if at:
            launch = launch_command_parser().parse_args(words[2:])
            assert Path(launch.config_file).resolve().parent == ACCELERATE
            assert not distributed or Path(launch.config_file).resolve() == recipe
            assert launch.module
            assert launch.training_script == "vrpo"
        given = [*words[at + 2 :], "--use_cpu", "true"]
        named = Path(given[given.index("--config") + 1]).resolve()
        assert distributed or named == recipe or named.parent == recipe.parent != RECIPES
        data, *_, config = parse(CLASSES[words[at + 1]], given, prog="vrpo")
        if at:  # the paper's batch of 64 pairs
            processes = load_config_from_file(launch.config_file).num_processes
            assert processes * config.per_device_train_batch_size * config.gradient_accumulation_steps == 64
        if "--dataset_name" in given:
            assert data.dataset_name == given[given.index("--dataset_name") + 1]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("load_in_4bit: true\nload_in_8bit: true\nuse_peft: true\n", "exclude each other"),
        ("load_in_4bit: true\n", "quantised weights cannot be trained: add --use_peft"),
        ("load_in_8bit: true\n", "quantised weights cannot be trained: add --use_peft"),
        ("load_in_4bit: true\nuse_peft: true\nbnb_4bit_quant_type: int4\n", "nf4 or fp4"),
        ("load_in_8bit: true\nuse_peft: true\nuse_bnb_nested_quant: true\n", "go with load_in_4bit"),
    ],
)
def test_quantisation_is_refused_by_name(fields: Callable[..., Any], yaml: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fields(yaml)


@each("name", ["train", "sft"])
@each("bits", ["--load_in_4bit", "--load_in_8bit"])
def test_the_extra_is_named_if_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, bits: str) -> None:
    """Before the data, of which there are none. Kills: transformers' PackageNotFoundError, after minutes of reading."""
    monkeypatch.setattr(loading, "find_spec", lambda package: None)
    words = ["--dataset_name", "nowhere", "--output_dir", str(tmp_path), "--use_cpu", "true", "--use_peft", bits]
    with pytest.raises(ValueError, match=r"vrpo\[quant\]"):
        getattr(command, name)(*parse(CLASSES[name], [*words, "--model_name_or_path", "nowhere"], prog=""))


def test_a_new_model_is_not_quantised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kills: a field that is ignored."""
    monkeypatch.setattr(command, "quantization", lambda model, config: object())
    words = ["--dataset_name", "nowhere", "--output_dir", str(tmp_path), "--use_cpu", "true", "--use_peft"]
    with pytest.raises(ValueError, match="from_scratch goes without"):
        command.sft(*parse(CLASSES["sft"], [*words, "--from_scratch", "--load_in_8bit"], prog=""))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("beta: 1\nbeta: 2\n", r"run\.yaml:5: not YAML that can be read: 'beta' is there twice: keep one"),
        ("seed: 1\nplan_kwargs: {steps: 1, steps: 2}\n", r"run\.yaml:5: .* 'steps' is there twice"),
        ("generate:\n  deep:\n    - {a: 1, a: 2}\n", r"run\.yaml:6: .* 'a' is there twice"),
        ("beta: true\n", r"run\.yaml: beta takes a finite number, not 'True'"),
        ("beta: .nan\n", r"run\.yaml: beta takes a finite number, not 'nan'"),
        ("beta: -.inf\n", r"run\.yaml: beta takes a finite number, not '-inf'"),
        ("num_times: 2.0\n", r"run\.yaml: num_times takes a whole number below 2\^63, not '2\.0'"),
        ("loss_weights: [1, two]\n", r"run\.yaml: loss_weights takes a finite number, not 'two'"),
        ("loss_type: [[sigmoid]]\n", r"run\.yaml: loss_type takes text, numbers, true or false"),
        ("loss_type: [{a: 1}]\n", r"run\.yaml: loss_type takes text, numbers, true or false"),
        ("run_name: yes\n", r"run\.yaml: run_name takes text, and YAML reads true from it: put it in quotes"),
        ("run_name: !!binary aGVsbG8=\n", r"run\.yaml: run_name takes text"),
        ("share_draws: 3\n", r"run\.yaml: share_draws .*3"),
        ("eval_strategy: stepps\n", r"run\.yaml: eval_strategy .*stepps"),
        ("plan_kwargs: 3\n", r"run\.yaml: plan_kwargs takes a mapping"),
        ("plan_kwargs: [1]\n", r"run\.yaml: plan_kwargs takes one value"),
        ("plan_kwargs: {when: .inf}\n", r"run\.yaml: plan_kwargs holds what JSON has not"),
        ("1: 2\n", r"run\.yaml: unknown field '1'"),
        ("[a, b]: 2\n", r"run\.yaml:\d: not YAML that can be read: found unhashable key"),
        ("config: other.yaml\n", r"run\.yaml: unknown field 'config'"),
    ],
)
def test_yaml_that_is_not_meant_so(fields: Callable[..., Any], yaml: str, message: str) -> None:
    """Kills: the last one of two values winning silently, also inside; a value of another type taken as text."""
    with pytest.raises(ValueError, match=message):
        fields(yaml)


@pytest.mark.parametrize(
    ("yaml", "name", "value"),
    [
        ("learning_rate: 5e-3\n", "learning_rate", 0.005),
        ("seed: 010\n", "seed", 10),
        ("run_name: 12:30:45\n", "run_name", "12:30:45"),
        ("run_name: 2024-01-01\n", "run_name", "2024-01-01"),
        ("run_name: 'yes'\n", "run_name", "yes"),
        ("max_steps: 1_000\n", "max_steps", 1000),
        ("common: &b {beta: 0.5}\n<<: *b\n", None, "unknown field 'common'"),
    ],
)
def test_yaml_is_read_as_it_is_meant(fields: Callable[..., Any], yaml: str, name: str | None, value: Any) -> None:
    """Kills: YAML 1.1's octal numbers, numbers of base 60 and dates; 5e-3 as a string in nested fields."""
    if name is None:
        with pytest.raises(ValueError, match=value):
            fields(yaml)
        return
    *_, config = fields(yaml)
    assert getattr(config, name) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("run_name: é\n".encode("latin-1"), "Save it as text in UTF-8"),
        (bytes(range(256)), "Save it as text in UTF-8"),
        (b"a:\n\tb: 1\n", r"run\.yaml:2: not YAML that can be read: .*'\\t'"),
        (b"", "must hold a mapping of fields"),
        (b"- 1\n", "must hold a mapping of fields"),
        (b"a: &a [1, *a]\n", "too deeply nested"),
        (b"a: " + b"[" * 3_000, "too deeply nested"),
        (b"a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c]\n"
         b"e: [*d,*d,*d,*d,*d,*d,*d]\n", "more than 10,000 values"),
        (b"a: !!python/object/apply:os.getcwd []\n", r"run\.yaml:1: not YAML that can be read"),
    ],
)  # fmt: skip
def test_files_that_are_no_fields(tmp_path: Path, content: bytes, message: str) -> None:
    """The file is named. Kills: UnicodeDecodeError without a file; an alias that takes the memory of the machine."""
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^--config .*run\.yaml.*{message}|{message}"):
        content_of(path)


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As Windows' editors write it, in UTF-8 and UTF-16. Kills: '\\ufeffbeta' as the name of a field."""
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "run.yaml").write_bytes("beta: 0.5\n".encode(encoding))
        assert content_of(tmp_path / "run.yaml") == {"beta": 0.5}
