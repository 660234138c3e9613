"""A command that is stopped: what it says, and that the same command goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_pairs import sampled
from vrpo.answering import run as generate
from vrpo.cli import main
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.pairs import run as pairs
from vrpo.training.preference import VRPOTrainer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["hello there"], 300)
    from_config(tokenizer, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32).save_pretrained(folder)
    rows = [{"prompt": f"{number}", "chosen": "yes", "rejected": "no"} for number in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def interrupt(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


def code_of(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as done:
        return int(str(done.code))


def training(model: Path, output: Path) -> list[str]:
    fields = {"max_steps": 3, "save_steps": 1, "num_times": 1, "use_cpu": "true", "report_to": "none"}
    given = {"model_name_or_path": model, "dataset_name": model / "rows.jsonl", "output_dir": output, **fields}
    return ["train", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def test_training(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after a checkpoint. Kills: "the model is in ..." of a run that did not come to its end."""
    command, step = training(model, tmp_path), VRPOTrainer.training_step
    for stop, said in (
        (0, "no checkpoint is whole yet"),
        (2, f"{tmp_path}/checkpoint-2 is whole: the same command with"),
    ):

        def until(trainer: Any, *args: Any, last: int = stop, **kwargs: Any) -> Any:
            return interrupt() if trainer.state.global_step == last else step(trainer, *args, **kwargs)

        monkeypatch.setattr(VRPOTrainer, "training_step", until)
        assert code_of(command) == 130
        error = capsys.readouterr().err
        assert f"stopped before the end; {said}" in error
        assert "the model is in" not in error
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.setattr(VRPOTrainer, "training_step", step)
    assert code_of([*command, "--resume_from_checkpoint", "auto"]) == 0
    assert "the model is in" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "part"), [("generate", "_into_file"), ("pairs", "_judge")])
def test_what_goes_on_by_itself(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    part: str,
) -> None:
    """Kills: a command that ends with "interrupted" and no word of what is kept."""
    monkeypatch.setattr({"generate": generate, "pairs": pairs}[command], part, interrupt)
    given = {"output": str(tmp_path / "out.jsonl")}
    if command == "generate":
        given |= {"model_name_or_path": str(model), "prompts": str(model / "rows.jsonl"), "device": "cpu"}
    else:
        samples = tmp_path / "samples.jsonl"
        samples.write_text(json.dumps(sampled(0, 0, "1+1=", "2", row={"truth": "2"})))
        given |= {"samples": str(samples), "judge": "numeric", "report": str(tmp_path / "report"), "end_ids": "1"}
    assert code_of([command, *(word for name, value in given.items() for word in (f"--{name}", value))]) == 130
    assert f"what is done is kept in {tmp_path}; the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output_dir": None}, "output_dir is missing"),
        ({"output_dir": "rows.jsonl"}, "cannot be written"),
        ({"resume_from_checkpoint": "nowhere"}, "--resume_from_checkpoint nowhere: no such folder"),
        ({"push_to_hub": "true"}, "push_to_hub: "),
        ({"dataloader_drop_last": "true", "per_device_train_batch_size": "9"}, "no step to make"),
    ],
    ids=str,
)
def test_refusals(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str | None],
    said: str,
) -> None:
    """One line and exit code 2; all but the last before a model is loaded."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    command = training(model, tmp_path)
    for name, value in change.items():
        if f"--{name}" in command:
            at = command.index(f"--{name}")
            del command[at : at + 2]
        command += [] if value is None else [f"--{name}", str(model / value) if value == "rows.jsonl" else value]
    assert code_of(command) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
