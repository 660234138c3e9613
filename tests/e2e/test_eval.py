"""`vrpo eval`: models and files in, tables out, interruptions survived, mistakes in one line."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.loops import each
from tests.rewards.machine import WITHOUT
from tests.rewards.test_endpoint import Server, said, start  # noqa: F401
from vrpo.cli import main
from vrpo.evals import own_run
from vrpo.evals import wanted as command
from vrpo.evals.compare import mcnemar
from vrpo.evals.models import files_fingerprint, named
from vrpo.evals.own import OWN
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
    assert main(arguments(checkpoints, data, tmp_path / "stopped")) == 130
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


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "own.jsonl"
    texts: list[Any] = ["How many ducks?", "one two", [{"role": "user", "content": "three"}]]
    file.write_text("".join(json.dumps({"prompt": text, "truth": 3}) + "\n" for text in texts))
    return file


def of_prompts(checkpoints: list[str], prompts: Path, output: Path, *given: str) -> list[str]:
    fixed = ["--output_dir", str(output), "--device", "cpu", "--max_new_tokens", "8", "--num_resamples", "199"]
    return ["eval", "--models", *checkpoints, "--prompts", str(prompts), *fixed, *given]


def test_own_prompts_by_a_verifier(checkpoints: list[str], prompts: Path, tmp_path: Path) -> None:
    """Kills: judge_arguments that are not passed on, verdicts of another judge taken for this one's."""
    once = of_prompts(checkpoints, prompts, tmp_path / "out", "--judge", "numeric")
    given = [*once, "--judge_arguments", '{"field": "truth"}']
    assert main(given) == 0
    (result,) = json.loads((tmp_path / "out" / "eval.json").read_text())["results"]
    assert (result["task"], result["metric"], len(result["items"])) == ("prompts", "reward", 3)
    assert main([*once, "--judge_arguments", '{"field": "prompt"}']) == 2


def test_own_prompts_by_an_endpoint(
    checkpoints: list[str],
    prompts: Path,
    tmp_path: Path,
    start: Callable[..., Server],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Models are compared with each other; equal answers are a tie that costs nothing, and nothing is asked twice."""
    server = start(lambda body, count: said("Verdict: A" if count % 2 else "Verdict: B"))
    texts = iter(["same", "first", "first", "same", "second", "second"])
    one = own_run.written
    monkeypatch.setattr(own_run, "written", lambda *a, **k: [replace(each, text=next(texts)) for each in one(*a, **k)])
    about = json.dumps({"endpoint_url": server.url, "endpoint_model": "m", "concurrency": 1})
    given = of_prompts(checkpoints, prompts, tmp_path / "out", "--judge", "endpoint", "--judge_arguments", about)
    for _ in range(2):
        assert main(given) == 0
    (result,) = json.loads((tmp_path / "out" / "eval.json").read_text())["results"]
    assert result["metric"] == "win rate"
    assert result["values"] == {"before": [0.5, 1.0, 1.0], "after": [0.5, 0.0, 0.0]}
    assert len(server.got) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--judge_arguments", '{"feild": "truth"}'], "--judge_arguments for numeric: no 'feild'. It takes field"),
        (["--judge_arguments", '{"field": 3}'], "--judge_arguments for numeric: field must be text, not 3"),
        ([], "own.jsonl:1 cannot be judged: its row has no field 'answer' (it has ['prompt', 'truth'])"),
        (["--judge", "nobody"], "--judge nobody: there is numeric, math"),
        (["--judge", "endpoint"], "--judge endpoint needs --endpoint_url"),
        (
            ["--judge", "reward_model", "--judge_arguments", '{"rewad_model": "x"}'],
            "--judge_arguments: unknown field 'rewad_model'; did you mean reward_model?",
        ),
        (["--judge", "mbpp"], "add --confirm_run_unsafe_code"),
    ],
)
def test_judges_that_cannot_judge_own_prompts(
    checkpoints: list[str],
    prompts: Path,
    tmp_path: Path,
    given: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judge = [] if "--judge" in given else ["--judge", "numeric"]
    assert main(of_prompts(checkpoints, prompts, tmp_path / "out", *judge, *given)) == 2
    assert message in capsys.readouterr().err


@each(
    ("given", "message"),
    [
        ([], "give --tasks, or --task name=path"),
        (["--prompts", "x.jsonl"], "--prompts"),
        (["--tasks", "gsm8kk"], "lm-eval has no task 'gsm8kk'; did you mean gsm8k?"),
        (["--tasks", "../../gsm8k"], "--tasks ../../gsm8k: give the task's name"),
        (["--task", "chess=x.jsonl"], "--task chess=x.jsonl: expected name=path"),
        (["--task", "gsm8k=nowhere.jsonl", "--max_new_tokens", "8"], "gsm8k: no such file: nowhere.jsonl"),
        (["--task", "mbpp=x.json"], "add --confirm_run_unsafe_code"),
        (["--task", "countdown=x.jsonl", "--preset", "llada15"], "countdown: no preset says how long"),
        (["--task", "gsm8k=x.jsonl", "--preset", "llama"], "no preset 'llama'; there are llada15, llada_instruct"),
        (["--task", "gsm8k=x.jsonl", "--num_resamples", "9"], "num_resamples must be from 99"),
        (["--taks", "gsm8k"], "did you mean task"),
        (
            ["--tasks", "gsm8k", "--data", ".", "--preset", "llada15", "--max_new_tokens", "8"],
            "gsm8k: block_size 16",
        ),
        (
            ["--task", "gsm8k=x.jsonl", "--max_new_tokens", "8", "--remasking", "best"],
            "--remasking: takes low_confidence, margin, entropy, random; not 'best'",
        ),
        (
            ["--task", "gsm8k=x.jsonl", "--max_new_tokens", "8", "--num_fewshot", "5"],
            "--num_fewshot is for tasks of lm",
        ),
        (["--tasks", "arc_easy", "--include_path", "nowhere"], "--include_path nowhere: no such folder"),
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
    with pytest.raises(ValueError, match=r"without / or \| in the name"):
        named("a|b=org/model")
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


def test_models_that_are_not_there_are_said_before_others_answer(
    checkpoints: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kills: hours of answers of the first model, and then the second one's misspelt path."""
    base = checkpoints[0].partition("=")[2]
    nowhere = f"{tmp_path}/nowhere"
    for after, message in ((nowhere, f"{nowhere} is neither a folder"), (f"{base}:{nowhere}", "no adapter at")):
        assert main(arguments([checkpoints[0], f"after={after}"], data, tmp_path / "out")) == 2
        assert message in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"_lock"}


def test_an_adapter_by_itself_stands_for_its_base_too(checkpoints: list[str], tmp_path: Path) -> None:
    """Kills: answers of an adapter on another base taken for these."""
    from peft import LoraConfig

    from vrpo.models.adapter import with_adapter
    from vrpo.models.load import load

    shutil.copytree(checkpoints[0].partition("=")[2], tmp_path / "base")
    tuned = with_adapter(load(tmp_path / "base"), LoraConfig(r=2), seed=1)
    tuned.save_pretrained(tmp_path / "adapter")
    before = named(f"tuned={tmp_path}/adapter").about
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(checkpoints[1].partition("=")[2], tmp_path / "base")
    after = named(f"tuned={tmp_path}/adapter").about
    assert before["weights"] == after["weights"]
    assert before != after


def test_all_our_tasks_from_real_files_by_real_judges(
    checkpoints: list[str], tmp_path: Path, vrpo_data: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline, the first two rows of each; of instructions both accuracies. Kills: a task without its judge's package,
    field or file."""
    if WITHOUT:
        pytest.skip(WITHOUT)
    given = ["--data", str(vrpo_data("gsm8k").parent), "--tasks", *OWN, "--limit", "2", "--confirm_run_unsafe_code"]
    how = ["--max_new_tokens", "8", "--num_resamples", "199", "--device", "cpu", "--apply_chat_template"]
    assert main(["eval", "--models", *checkpoints, *given, *how, "--output_dir", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "eval.json").read_text())["results"]
    assert [(one["task"], one["metric"]) for one in results if one["task"] != "ifeval"] == [
        (name, "reward") for name in OWN if name != "ifeval"
    ]
    assert [one["metric"] for one in results if one["task"] == "ifeval"] == ["reward", "all followed"]
    assert all(len(one["items"]) == 2 for one in results)
    assert "prompts go through the chat template" in capsys.readouterr().err
    assert "- prompts go through the chat template" in (tmp_path / "out" / "eval.md").read_text()


LM_EVAL = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval without its thousands of tasks, which take seconds to index."""
    from vrpo.evals import harness_run

    manager = harness_run.TaskManager
    monkeypatch.setattr(harness_run, "TaskManager", lambda **given: manager(include_defaults=False, **given))


def defined(folder: Path, name: str, docs: list[dict[str, Any]], **fields: Any) -> None:
    """A task of lm-eval in folder/tasks, with its data."""
    (folder / "tasks").mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    source = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": source, "test_split": "test", **fields}
    (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task))


@LM_EVAL
def test_rolling_likelihoods_are_compared(
    checkpoints: list[str], tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bits per byte of each text, from the bounds in the samples; a task without a number for each item is left out.
    A task that was changed is refused. Kills: a page that is lost after all models answered."""
    texts = [{"text": "one two three"}, {"text": "How many ducks are there?"}]
    kind = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    defined(tmp_path, "texts", texts, **kind, metric_list=[{"metric": "bits_per_byte"}])
    pair = {"output_type": "multiple_choice", "doc_to_choice": [" a", " b"], "doc_to_target": 0}
    defined(tmp_path, "pairs", texts, **pair, doc_to_text="{{text}}", metric_list=[{"metric": "f1"}])
    given = ["--include_path", str(tmp_path / "tasks"), "--num_draws", "4", "--num_resamples", "199"]
    call = ["eval", "--models", *checkpoints, "--output_dir", str(tmp_path / "out"), "--device", "cpu", *given]
    assert main([*call, "--tasks", "texts", "pairs"]) == 0
    shown = capsys.readouterr()
    assert "| texts | bits per byte (lower is better) | before | after |" in shown.out
    assert "pairs: left out, it has no metric that is one number for each item" in shown.err
    (result,) = json.loads((tmp_path / "out" / "eval.json").read_text())["results"]
    lines = (tmp_path / "out" / "after" / "texts" / "samples.jsonl").read_text().split("\n")
    bounds = [json.loads(line)["vrpo"][0]["elbo"] for line in lines if line]
    sizes = [len(text["text"].encode()) for text in texts]
    expected = [-bound / size / math.log(2) for bound, size in zip(bounds, sizes, strict=True)]
    assert result["values"]["after"] == pytest.approx(expected)
    assert main([*call, "--tasks", "pairs"]) == 2
    assert "nothing can be compared; answers are in" in capsys.readouterr().err
    defined(tmp_path, "texts", texts, **kind, metric_list=[{"metric": "byte_perplexity"}])
    assert main([*call, "--tasks", "texts"]) == 2
    assert "definitions was" in capsys.readouterr().err


@LM_EVAL
def test_tasks_of_lm_eval(
    checkpoints: list[str], tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A local task by name, offline: accuracies compared, seeds and plan with every likelihood in the samples."""
    docs = [{"question": f"How many? {i}", "choices": [" one", " two quite others"], "label": i % 2} for i in range(6)]
    choice = {"doc_to_text": "{{question}}", "doc_to_target": "{{label}}", "doc_to_choice": "{{choices}}"}
    defined(tmp_path, "how_many", docs, output_type="multiple_choice", **choice, metric_list=[{"metric": "acc"}])
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
