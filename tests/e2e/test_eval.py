"""`vrpo eval`: models and files in, tables out, interruptions survived, mistakes in one line."""

import json
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from vrpo.cli import main
from vrpo.commands import evaluate as command
from vrpo.commands.evaluate_models import files_fingerprint, named
from vrpo.evals import own_run
from vrpo.evals.compare import mcnemar
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.rewards.verdict import Answer, Verdict


class ByLength:
    """Right if prompt and answer together have an even number of characters."""

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        return [Verdict(float(len(one.prompt + one.text) % 2 == 0)) for one in answers]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["How many ducks are there? one two three"], 300)
    for seed in (0, 1):
        shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
        from_config(tokenizer, **shape, seed=seed).save_pretrained(folder / str(seed))
    return [f"before={folder}/0", f"after={folder}/1"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command, "verifier", lambda name: ByLength())
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    rows = [{"question": "How many ducks" + " are there" * (i % 4) + "?", "answer": f"#### {i}"} for i in range(11)]
    file = tmp_path / "data" / "gsm8k" / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def arguments(checkpoints: list[str], data: Path, output: Path) -> list[str]:
    return [
        *["eval", "--models", *checkpoints, "--task", f"gsm8k={data}", "--output_dir", str(output), "--device", "cpu"],
        *[
            "--max_new_tokens",
            "8",
            "--block_size",
            "4",
            "--batch_size",
            "2",
            "--part_size",
            "4",
            "--num_resamples",
            "199",
        ],
    ]


def test_before_and_after(
    checkpoints: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables, JSON and picture from the verdicts in the samples. Kills: models mixed up, items of one model missing."""
    output = tmp_path / "out"
    assert main(arguments(checkpoints, data, output)) == 0
    shown = capsys.readouterr()
    assert "gsm8k (11 items): stop_at_end True, max_new_tokens 8, block_size 4" in shown.err
    found = json.loads((output / "eval.json").read_text())
    (result,) = found["results"]
    rewards = {}
    for name in ("before", "after"):
        rows = [
            json.loads(line) for line in (output / name / "gsm8k" / "samples.jsonl").read_text().split("\n") if line
        ]
        rewards[name] = [row["reward"] for row in rows]
        assert [row["item"] for row in rows] == list(range(11))
        assert all(row["reward"] == float(len(row["prompt"] + row["answer"]) % 2 == 0) for row in rows)
        assert result["values"][name] == rewards[name]
    only = [sum(a > b for a, b in zip(*pair, strict=True)) for pair in (rewards.values(), list(rewards.values())[::-1])]
    assert result["comparisons"][0]["p_value"] == mcnemar(*only)
    assert found["settings"]["max_new_tokens"] == 8
    assert {"torch", "transformers", "vrpo", "python"} <= set(found["versions"])
    assert found["models"][0]["weights"] != found["models"][1]["weights"]
    assert "| gsm8k | reward | 11 |" in shown.out
    assert "| gsm8k | reward | before | after |" in (output / "eval.md").read_text()
    assert (output / "eval.png").stat().st_size > 5000


def test_an_interrupted_run_goes_on(
    checkpoints: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C in the fifth of six parts, only that part is made again; the files are the same, byte for byte."""
    assert main(arguments(checkpoints, data, tmp_path / "whole")) == 0
    answer, calls = own_run.OwnRun._answered, []

    def stop(self: Any, denoiser: Any, prompts: Any, first: int) -> Any:
        calls.append((self.settings["model"], first))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return answer(self, denoiser, prompts, first)

    monkeypatch.setattr(own_run.OwnRun, "_answered", stop)
    with pytest.raises(SystemExit) as stopped:
        main(arguments(checkpoints, data, tmp_path / "stopped"))
    assert stopped.value.code == 130
    assert main(arguments(checkpoints, data, tmp_path / "stopped")) == 0
    assert calls == [
        ("before", 0),
        ("before", 4),
        ("before", 8),
        ("after", 0),
        ("after", 4),
        ("after", 4),
        ("after", 8),
    ]
    for file in (tmp_path / "whole").rglob("*.jsonl"):
        other = tmp_path / "stopped" / file.relative_to(tmp_path / "whole")
        assert file.read_bytes() == other.read_bytes(), file.name
    assert not list((tmp_path / "stopped").rglob("*.parts"))


def test_a_preset_is_printed_and_overridden(
    checkpoints: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(checkpoints[:1], data, tmp_path / "out"), "--preset", "llada15", "--limit", "2"]) == 0
    shown = capsys.readouterr()
    assert "gsm8k (2 items): stop_at_end True, max_new_tokens 8, block_size 4, confidence_eos_eot_inf True" in shown.err
    assert "published for llada15: 83.8 internal, 83.6 OpenCompass" in shown.err
    assert "83.8 / 83.6" in shown.out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give --tasks, or --task name=path"),
        (["--task", "chess=x.jsonl"], "--task chess=x.jsonl: expected name=path"),
        (["--task", "gsm8k=nowhere.jsonl", "--max_new_tokens", "8"], "gsm8k: no such file: nowhere.jsonl"),
        (["--task", "mbpp=x.json"], "add --confirm_run_unsafe_code"),
        (["--task", "countdown=x.jsonl", "--preset", "llada15"], "countdown: no preset says how long"),
        (["--task", "gsm8k=x.jsonl", "--preset", "llama"], "no preset 'llama'; there are llada15, llada_instruct"),
        (["--task", "gsm8k=x.jsonl", "--num_resamples", "1000"], "num_resamples + 1 must be a multiple of 40"),
        (["--taks", "gsm8k"], "did you mean task"),
    ],
)
def test_mistakes_are_one_line(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--models", "m=nowhere", "--output_dir", "unused", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_models_have_names(checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """name=path, name=path:adapter, or a path; a fingerprint that sees other weights, and not how long their training
    took. Kills: the same model trained twice taken for two."""
    assert (named("a=org/model").path, named("a=org/model").adapter) == ("org/model", None)
    assert (named("a=x/base:x/lora").path, named("a=x/base:x/lora").adapter) == ("x/base", "x/lora")
    assert named("org/model").name == "model"
    prints = [files_fingerprint(one.partition("=")[2]) for one in checkpoints]
    assert prints[0] != prints[1]
    assert prints[0] == files_fingerprint(checkpoints[0].partition("=")[2])
    assert files_fingerprint("org/model") == "org/model"
    trained = tmp_path / "trained"
    shutil.copytree(checkpoints[0].partition("=")[2], trained)
    for name in ("trainer_state.json", "training_args.bin"):
        (trained / name).write_text('{"train_runtime": 1.5}')
    assert files_fingerprint(str(trained)) == prints[0]
    (trained / "config.json").write_text("{}")
    assert files_fingerprint(str(trained)) != prints[0]
    same = ["m=x", "m=y"]
    assert main(["eval", "--models", *same, "--output_dir", "unused", "--tasks", "gsm8k"]) == 2
    assert "two are called m" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_tasks_of_lm_eval(
    checkpoints: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A local task by name, offline: accuracies compared, seeds and plan with every likelihood in the samples."""
    from vrpo.evals import harness_run

    manager = harness_run.TaskManager
    monkeypatch.setattr(harness_run, "TaskManager", lambda **given: manager(include_defaults=False, **given))
    docs = [{"question": f"How many? {i}", "choices": [" one", " two quite others"], "label": i % 2} for i in range(6)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = {
        "task": "how_many",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "how_many.yaml").write_text(yaml.safe_dump(task))
    output = tmp_path / "out"
    given = ["--tasks", "how_many", "--include_path", str(tmp_path / "tasks"), "--num_draws", "4", "--seed", "7"]
    call = ["eval", "--models", *checkpoints, "--output_dir", str(output), "--device", "cpu", *given]
    assert main([*call, "--num_resamples", "199"]) == 0
    assert "| how_many | acc | 6 |" in capsys.readouterr().out
    lines = (output / "before" / "how_many" / "samples.jsonl").read_text().split("\n")
    samples = [json.loads(line) for line in lines if line]
    assert len(samples) == 6
    rows = [row for sample in samples for row in sample["vrpo"]]
    assert {row["seed"] for row in rows} == {7}
    assert {row["plan"] for row in rows} == {"Enumerate(max_length=2)", "FixedCount(num_times=4, num_masks=1)"}
    assert len(rows) == 12
