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
    assert "prompts.jsonl:4 has no string field 'prompt'" in capsys.readouterr().err
