"""`vrpo train` with rounds: generate, judge, pair, train, again; each stage once, whatever happened in between."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vrpo.cli import main
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
    return main(["train", "--config", "loop.yaml"])


def files(folder: str) -> dict[str, bytes]:
    names = ("samples.jsonl", "pairs.jsonl", "model.safetensors", "done.json")
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.name in names}


@pytest.mark.parametrize(("peft", "refresh"), [(False, False), (True, True)])
def test_a_round_begins_where_the_last_one_ended(config: dict[str, Any], peft: bool, refresh: bool) -> None:
    """Kills: samples of the first model in every round; the reference of another round; seeds used twice."""
    config |= {"use_peft": peft, "refresh_reference": refresh}
    assert run(config) == 0
    done = [json.loads(Path(f"loop/round_{number}/done.json").read_text()) for number in (1, 2)]
    assert done[0] == {"policy": "first", "reference": None}
    assert done[1] == {"policy": "loop/round_1/model", "reference": None if refresh else "first"}
    samples = [Path(f"loop/round_{number}/samples.jsonl").read_text().split("\n")[0] for number in (1, 2)]
    settings = [json.loads(line)["settings"] for line in samples]
    assert [each["model_name_or_path"] for each in settings] == ["first", "loop/round_1/model"]
    assert settings[0]["seed"] != settings[1]["seed"]
    before = files("loop")
    assert len(before) == 2 * (4 + 0)
    assert run(config) == 0
    assert files("loop") == before


def test_a_stopped_loop_goes_on(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: a round begun again from its start; a stage taken for done that was not."""
    import vrpo.commands.rounds as command

    assert run(config) == 0
    whole = files("loop")
    real, calls = command.pairs, []

    def stops(argv: Any) -> None:
        calls.append(argv)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(argv)

    monkeypatch.setattr(command, "pairs", stops)
    Path("loop").rename("whole")
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert Path("loop/round_1/done.json").is_file()
    assert not Path("loop/round_2/done.json").exists()
    assert run(config) == 0
    assert len(calls) == 3
    assert files("loop") == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, not 0"),
        ({"pairs": None}, "rounds needs a mapping pairs"),
        ({"generate": {"prompts": "prompts.jsonl", "seed": 3}}, "generate: seed is what the rounds themselves say"),
        ({"dataset_name": "prompts.jsonl"}, "dataset_name: rounds make their pairs themselves"),
        ({"rounds": None}, "generate goes with rounds"),
    ],
)
def test_mistakes_are_one_line(
    config: dict[str, Any], change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {name: value for name, value in (config | change).items() if value is not None}
    assert run(config) == 2
    assert message in capsys.readouterr().err
    assert not Path("loop/round_1").exists()
