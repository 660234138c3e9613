"""`vrpo generate`: prompts in, answers out, mistakes in one line."""

import json
from pathlib import Path

import pytest

from vrpo.cli import main
from vrpo.models.load import load
from vrpo.models.tiny import from_config, train_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["hello there"], 300)
    from_config(tokenizer, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32).save_pretrained(folder)
    return str(folder)


def test_answers_on_the_terminal(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model_name_or_path", model, "--prompt", "hello", "--max_new_tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("> hello\n")


def test_answers_in_a_file_are_those_of_the_library(model: str, tmp_path: Path) -> None:
    """Kills: settings not passed on, rows out of order, the seed ignored."""
    import torch

    from vrpo import generate

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("hello", "a much longer one", "he")))
    config = tmp_path / "generate.yaml"
    config.write_text(f"model_name_or_path: {model}\nmax_new_tokens: 8\nblock_size: 4\ntemperature: 0.7\nseed: 1\n")
    output = tmp_path / "answers.jsonl"
    arguments = ["--prompts", str(prompts), "--output", str(output), "--seed", "5", "--batch_size", "2"]
    assert main(["generate", "--config", str(config), *arguments]) == 0
    rows = [json.loads(line) for line in output.read_text().strip().split("\n")]
    assert [row["prompt"] for row in rows] == ["hello", "a much longer one", "he"]
    assert rows[0]["settings"]["seed"] == 5
    expected = generate(
        load(model),
        [row["prompt"] for row in rows],
        max_new_tokens=8,
        block_size=4,
        temperature=0.7,
        generator=torch.Generator().manual_seed(5),
    )
    assert [row["answer_ids"] for row in rows] == [answer.ids for answer in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--prompt or --prompts"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--prompt", "x", "--max_new_tokens", "8", "--block_size", "3"], "block_size 3"),
        (["--prompt", "x", "--steps", "many"], "--steps"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_mistakes_are_one_line(
    model: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--model_name_or_path", model, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") or "\nerror: " in error
    assert "Traceback" not in error


def test_a_bad_line_is_named(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its number in the file. Kills: numbers given after the blank lines are gone."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n\n  \n{"question": "y"}\n')
    assert main(["generate", "--model_name_or_path", model, "--prompts", str(path)]) == 2
    assert "prompts.jsonl:4 has no field 'prompt' that holds text or messages" in capsys.readouterr().err


def sampled(model: str, folder: Path, *more: str) -> list[str]:
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        texts = [f"{'hello ' * (number % 5)}{number}" for number in range(23)]
        prompts.write_text("".join(json.dumps({"prompt": text, "truth": len(text)}) + "\n" for text in texts))
    common = ["--model_name_or_path", model, "--prompts", str(prompts), "--max_new_tokens", "6", "--temperature", "1"]
    return ["generate", *common, "--num_samples", "3", "--batch_size", "2", *more]


def test_a_stopped_run_goes_on_to_the_same_file(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kills: parts computed twice, a part that is half there, streams that depend on where a run was stopped."""
    import vrpo.commands.generate as command

    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    assert main(sampled(model, tmp_path, "--output", str(one))) == 0
    real, calls = command.generate, []

    def stops(*args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(command, "generate", stops)
    assert main(sampled(model, tmp_path, "--output", str(other))) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert not other.exists()
    assert len(list((tmp_path / "other.jsonl.parts").glob("0*.jsonl"))) == 2
    assert main(sampled(model, tmp_path, "--output", str(other))) == 0
    assert len(calls) == 3 + 3  # five parts of 16 of the 69 rows
    assert other.read_bytes() == one.read_bytes()
    assert not (tmp_path / "other.jsonl.parts").exists()
    rows = [json.loads(line) for line in other.read_text().split("\n") if line]
    assert [(row["prompt_index"], row["sample_index"]) for row in rows] == [(i, k) for i in range(23) for k in range(3)]
    assert all(row["row"] == {"truth": len(row["prompt"])} for row in rows)
    assert any(a["answer_ids"] != b["answer_ids"] for a, b in zip(rows[::3], rows[1::3], strict=True))
    assert main(sampled(model, tmp_path, "--output", str(other))) == 0  # nothing is left to do
    assert len(calls) == 6
    capsys.readouterr()
    assert main(sampled(model, tmp_path, "--output", str(other), "--seed", "1")) == 2
    assert "begun with other settings: seed was 0 and is 1" in capsys.readouterr().err


def test_a_file_of_someone_else_is_kept(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "notes.jsonl"
    output.write_text("mine")
    assert main(sampled(model, tmp_path, "--output", str(output))) == 2
    assert "exists and is no result of this command" in capsys.readouterr().err
    assert output.read_text() == "mine"


def test_a_page_that_plays(model: str, tmp_path: Path) -> None:
    """Kills: text of a model that ends the script, a position shown before its call, rows without their prompts."""
    page = tmp_path / "trace.html"
    given = ["--prompt", "</script><b>", "--prompt", "hello", "--max_new_tokens", "4", "--trace", str(page)]
    assert main(["generate", "--model_name_or_path", model, *given]) == 0
    text = page.read_text()
    assert text.count("</script>") == 1
    rows = json.loads(text.split("const rows = ")[1].split(";\nconst last")[0].replace("<\\/", "</"))
    assert [row["prompt"] for row in rows] == ["</script><b>", "hello"]
    assert all(sorted(call for _, call, _, _ in row["tokens"]) == [1, 2, 3, 4] for row in rows if row["nfe"] == 4)


def test_a_page_of_a_file(model: str, tmp_path: Path) -> None:
    page, output = tmp_path / "trace.html", tmp_path / "answers.jsonl"
    more = ["--output", str(output), "--trace", str(page), "--trace_rows", "4"]
    assert main(sampled(model, tmp_path, *more)) == 0
    assert page.read_text().count('"prompt":') == 4


def test_watching_shows_the_answer(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--prompt", "hello", "--max_new_tokens", "4", "--watch"]
    assert main(["generate", "--model_name_or_path", model, *given]) == 0
    assert "> hello" in capsys.readouterr().out
