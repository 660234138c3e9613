"""`vrpo rounds`: generate, judge, pair, train, again; each stage once, whatever happened in between."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vrpo.cli import main
from vrpo.models.load import load
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.rewards.judges import VERIFIERS


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(VERIFIERS, "numeric", ("tests.rewards.stub", "Vowels"))
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer(["hello there"], 300)
    from_config(tokenizer, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32).save_pretrained("first")
    rows = [{"prompt": f"{'hello ' * (number % 3)}{number}"} for number in range(6)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "rounds": 2,
        "generate": {"prompts": "prompts.jsonl", "num_samples": 4, "max_new_tokens": 6, "temperature": 1.0},
        "pairs": {"judge": "numeric", "rule": "best_worst", "unfinished": "keep"},
        "model_name_or_path": "first",
        "output_dir": "loop",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
    }


def run(config: dict[str, Any]) -> int:
    Path("loop.yaml").write_text(yaml.safe_dump(config))
    return main(["rounds", "--config", "loop.yaml"])


def files(folder: str) -> dict[str, bytes]:
    names = ("samples.jsonl", "pairs.jsonl", "model.safetensors", "done.json")
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.name in names}


@pytest.mark.parametrize(("peft", "refresh"), [(False, False), (True, True)])
def test_a_round_begins_where_the_last_one_ended(config: dict[str, Any], peft: bool, refresh: bool) -> None:
    """Kills: samples of the first model in every round; the reference of another round; seeds used twice."""
    config |= {"use_peft": peft, "refresh_reference": refresh}
    assert run(config) == 0
    done = [json.loads(Path(f"loop/round_{number}/done.json").read_text()) for number in (1, 2)]
    assert [each["policy"] for each in done] == ["first", "loop/round_1/model"]
    assert [each["reference"] for each in done] == [None, None if refresh else "first"]
    samples = [Path(f"loop/round_{number}/samples.jsonl").read_text().split("\n")[0] for number in (1, 2)]
    settings = [json.loads(line)["settings"] for line in samples]
    assert [each["model_name_or_path"] for each in settings] == ["first", "loop/round_1/model"]
    assert settings[0]["seed"] != settings[1]["seed"]
    before = files("loop")
    assert len(before) == 2 * (4 + 0)
    assert run(config) == 0
    assert files("loop") == before


def test_a_stopped_loop_goes_on(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kills: a round begun again from its start; a stage taken for done that was not."""
    import vrpo.rounds as command

    assert run(config) == 0
    whole = files("loop")
    real, calls = command.pairs, []

    def stops(args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(args)

    monkeypatch.setattr(command, "pairs", stops)
    Path("loop").rename("whole")
    assert run(config) == 130
    assert "what is done is kept in loop; the same command goes on" in capsys.readouterr().err
    assert Path("loop/round_1/done.json").is_file()
    assert not Path("loop/round_2/done.json").exists()
    assert run(config) == 0
    assert len(calls) == 3
    assert files("loop") == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds must be from 1 to 1,048,576, not 0"),
        ({"pairs": None}, "the following arguments are required: --pairs"),
        ({"generate": {"prompts": "prompts.jsonl", "seed": 3}}, "generate: seed is what the rounds themselves say"),
        ({"dataset_name": "prompts.jsonl"}, "dataset_name: rounds make their pairs themselves"),
        ({"rounds": None}, "the following arguments are required: --rounds"),
        ({"prompts_per_round": 0}, "prompts_per_round must be from 1 to 1,048,576, not 0"),
        ({"prompts_per_round": 4}, "2 rounds of prompts_per_round 4 need 8 prompts: prompts.jsonl has 6"),
        ({"eval_strategy": "epoch"}, "eval_strategy in rounds needs pairs to hold out: eval_fraction"),
        ({"eval_fraction": 0.5}, "eval_fraction is given, but eval_strategy is 'no'"),
        ({"generate": {"prompts": "prompts.jsonl", "temprature": 1}}, "error: generate: unknown field 'temprature'"),
        ({"generate": {"prompts": "nowhere.jsonl"}}, "generate: --prompts nowhere.jsonl: no such file"),
        ({"generate": {"prompts": "prompts.jsonl", "block_size": 3}}, "generate: block_size 3 does not divide"),
        ({"pairs": {"judge": "numerical"}}, "pairs: judge invalid choice: 'numerical'"),
        ({"pairs": {"judge": "numeric", "rule": "margin"}}, "pairs: --rule margin needs --margin"),
        ({"pairs": {"judge": "sudoku"}}, "pairs: prompts.jsonl:1: judge sudoku: its row is no 4x4 Sudoku"),
        ({"pairs": {"judge": "endpoint", "endpoint_url": "host", "endpoint_model": "m"}}, "pairs: the endpoint's url"),
        ({"evaluate": {"task": ["sudoku=nowhere.jsonl"], "max_new_tokens": 8}}, "evaluate: sudoku: no such file"),
        ({"evaluate": {"task": ["sudoku=prompts.jsonl"]}}, "evaluate: sudoku: no preset says how long"),
        (
            {"evaluate": {"task": ["sudoku=prompts.jsonl"], "max_new_tokens": 8, "steps": 3, "block_size": 4}},
            "evaluate: sudoku: steps must be a multiple of the 2 block(s)",
        ),
        (
            {"evaluate": {"task": ["sudoku=prompts.jsonl"], "max_new_tokens": 8}},
            "evaluate: prompts.jsonl:1 cannot be judged: its row is no 4x4 Sudoku",
        ),
    ],
)
def test_mistakes_of_every_stage_come_first(
    config: dict[str, Any], change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first answer. Kills: fields of a later stage that are read when it begins, hours after the start."""
    config = {name: value for name, value in (config | change).items() if value is not None}
    assert run(config) == 2
    assert message in capsys.readouterr().err
    assert not list(Path("loop").rglob("*.jsonl"))


def test_each_round_has_prompts_of_its_own(config: dict[str, Any]) -> None:
    """Kills: the same prompts in every round; prompts that lose their other fields, in which judges find the truth."""
    rows = [{"prompt": f"{'hello ' * (number % 3)}{number}", "truth": number} for number in range(6)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(config | {"prompts_per_round": 3}) == 0
    for number, expected in ((1, rows[:3]), (2, rows[3:])):
        lines = Path(f"loop/round_{number}/samples.jsonl").read_text().splitlines()
        samples = [json.loads(line) for line in lines]
        assert [{"prompt": one["prompt"], **one["row"]} for one in samples[::4]] == expected


def test_a_round_of_other_settings_is_refused(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: a finished round taken for one of another rate, other samples or another first model; a loop that cannot
    have more rounds than before, or log more often."""
    assert run(config | {"rounds": 1}) == 0
    capsys.readouterr()
    assert run(config | {"learning_rate": 1e-4}) == 2
    message = "loop/round_1 was made with other settings: learning_rate was 0.001 and is 0.0001. Give another"
    assert message in capsys.readouterr().err
    assert run(config | {"generate": config["generate"] | {"num_samples": 3}}) == 2
    assert "settings: generate was {" in capsys.readouterr().err
    assert run(config | {"loss_type": "hinge"}) == 2
    assert "settings: loss_type was ['sigmoid'] and is ['hinge']" in capsys.readouterr().err
    assert run(config | {"loss_type": "plackett_luce"}) == 2
    assert "loss_type plackett_luce takes ranked lists, and rounds make pairs" in capsys.readouterr().err
    shutil.copytree("first", "other")
    assert run(config | {"model_name_or_path": "other"}) == 2
    assert "settings: policy was 'first' and is 'other'" in capsys.readouterr().err
    assert run(config | {"gradient_accumulation_steps": 2}) == 2
    assert "settings: examples in a step was" in capsys.readouterr().err
    kept = Path("first/config.json").read_text()
    Path("first/config.json").write_text(kept + " ")
    assert run(config) == 2
    assert "settings: weights was" in capsys.readouterr().err
    Path("first/config.json").write_text(kept)
    assert run(config | {"rounds": 2, "logging_steps": 1}) == 0
    assert Path("loop/round_2/done.json").is_file()


def test_a_file_that_is_gone_is_made_again(config: dict[str, Any]) -> None:
    """Kills: a round whose model was deleted taken for done, which fails in the next one."""
    assert run(config) == 0
    whole = files("loop")
    shutil.rmtree("loop/round_2")
    shutil.rmtree("loop/round_1/model")
    Path("loop/round_1/pairs.jsonl").unlink()
    assert run(config) == 0
    assert files("loop") == whole


def test_a_round_without_pairs_says_so(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: a trainer that is given an empty file."""
    row = {"prompt": "hello", "Puzzle": "3102200002100320", "Solution": "3142243142131324"}
    Path("prompts.jsonl").write_text(json.dumps(row) + "\n")
    assert run(config | {"pairs": {"judge": "sudoku"}}) == 2
    assert "no pairs in round 1, the reasons are in loop/round_1/pairs/pairs.md" in capsys.readouterr().err


def test_the_account_and_the_evaluation(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: the first model compared with that of another round; an account of the rounds that leaves one out."""
    config |= {"generate": config["generate"] | {"prompts": write_instructions()}, "pairs": INSTRUCTIONS}
    config |= {"evaluate": {"task": ["ifeval=prompts.jsonl"], "max_new_tokens": 6}}
    assert run(config) == 0
    shown = capsys.readouterr()
    assert "| task | metric | items | before | after_round_2 |" in shown.out
    assert "== round 2 of 2: loop/round_1/model answers" in shown.err
    models = json.loads(Path("loop/evaluation/eval.json").read_text())["models"]
    assert [one["path"] for one in models] == ["first", "loop/round_2/model"]
    lines = Path("loop/rounds.md").read_text().splitlines()
    assert [line.split("|")[1:3] for line in lines[2:4]] == [[" 1     ", " 24      "], [" 2     ", " 24      "]]


INSTRUCTIONS = {"judge": "instructions", "unfinished": "keep"}


def write_instructions() -> str:
    """Prompts whose judge is nothing of this test's process: an answer is right if it has the letter e."""
    about = {"letter": "e", "let_relation": "at least", "let_frequency": 1}
    truth = {"instruction_id_list": ["keywords:letter_frequency"], "kwargs": [about]}
    rows = [{"prompt": f"{'hello ' * (number % 3)}{number}", **truth} for number in range(6)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "prompts.jsonl"


def launched(*arguments: str) -> str:
    """What two processes of `accelerate launch` said, on a machine without GPUs."""
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    two = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [accelerate, "launch", *two, "-m", "vrpo", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(Path("home").resolve())},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
def test_two_processes_share_the_rounds(config: dict[str, Any]) -> None:
    """Samples and pairs are those of one process, and so is the model, to float32 rounding. Kills: processes that take
    each other for strangers and each do all of the work; a stage begun before the last one has ended everywhere."""
    config |= {"generate": config["generate"] | {"prompts": write_instructions(), "batch_size": 1}}
    config |= {"pairs": INSTRUCTIONS, "evaluate": {"task": ["ifeval=prompts.jsonl"], "max_new_tokens": 6}}
    assert run(config | {"rounds": 1}) == 0
    Path("loop").rename("one")
    half = {"rounds": 1, "per_device_train_batch_size": 1}
    Path("loop.yaml").write_text(yaml.safe_dump(config | half))
    said = launched("rounds", "--config", "loop.yaml")
    assert said.count("24 answers in loop/round_1/samples.jsonl") == 1
    assert said.count("== round 1 of 1: first answers") == 1
    for name in ("round_1/samples.jsonl", "round_1/pairs.jsonl", "rounds.md"):
        assert Path("loop", name).read_bytes() == Path("one", name).read_bytes(), name
    parts = [load(f"{folder}/round_1/model").module.parameters() for folder in ("one", "loop")]
    for ours, theirs in zip(*parts, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert Path("loop/evaluation/eval.md").is_file()


@pytest.mark.slow
def test_two_processes_share_the_answers(config: dict[str, Any]) -> None:
    """`vrpo generate` on its own. Kills: each process answering everything."""
    given = ["generate", "--model_name_or_path", "first", "--prompts", "prompts.jsonl", "--max_new_tokens", "6"]
    given += ["--num_samples", "4", "--temperature", "1", "--batch_size", "1", "--device", "cpu", "--output"]
    assert main([*given, "one.jsonl"]) == 0
    said = launched(*given, "two.jsonl")
    assert said.count("24 answers in two.jsonl") == 1
    assert Path("two.jsonl").read_bytes() == Path("one.jsonl").read_bytes()
