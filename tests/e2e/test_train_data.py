"""`vrpo train` on every kind of preference rows, from files and YAML; rewards from a reward model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.training.runs import tiny
from vrpo.cli import main
from vrpo.models.reward_model import load_reward_model
from vrpo.rewards.verdict import Answer
from vrpo.training import pair_rewards as train_rewards
from vrpo.training.arguments import PreferenceDataArguments
from vrpo.training.pair_rewards import with_rewards
from vrpo.training.preference_config import VRPOConfig

QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true", "--max_steps", "1"]
QUIET += ["--logging_steps", "1", "--output_dir"]
SCALING = "temperature: reward_scaling\ntemperature_kwargs: {scale: 0.5}\n"
ROWS: dict[str, list[dict[str, Any]]] = {
    "pairs": [{"prompt": f"{n}?", "chosen": "blue", "rejected": str(n)} for n in range(6)],
    "rewarded": [
        {
            "prompt": f"{n}?",
            "chosen": "blue",
            "rejected": str(n),
            "chosen_reward": n,
            "rejected_reward": 0.5,
            "weight": 2,
        }
        for n in range(6)
    ],
    "labels": [{"prompt": f"{n}?", "completion": "blue", "label": n % 3 == 0} for n in range(6)],
    "ranked": [{"prompt": f"{n}?", "completions": ["a", "sky", "blue"], "rewards": [n, 2.5, 7]} for n in range(6)],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy and a reward model."""
    folder = tmp_path_factory.mktemp("models")
    policy = tiny(torch.float32)
    policy.save_pretrained(folder / "policy")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        config = LlamaConfig(**sizes, num_attention_heads=2, num_labels=2, pad_token_id=0, max_position_embeddings=40)
        LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    policy.tokenizer.save_pretrained(folder / "reward")
    return folder


@pytest.fixture
def train(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, Path]]:
    """Runs `vrpo train` on rows of this name with more YAML: exit code, stderr, output folder."""

    def run(rows: str, yaml: str, output: Path = tmp_path / "out") -> tuple[int, str, Path]:
        data, config = tmp_path / f"{rows}.jsonl", tmp_path / "run.yaml"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[rows]))
        policy = "" if "\nmodel_name_or_path" in yaml else f"model_name_or_path: {models / 'policy'}\n"
        config.write_text(f"dataset_name: {data}\n{policy}{yaml}")
        capsys.readouterr()
        code = main(["train", "--config", str(config), *QUIET, str(output)])
        return code, capsys.readouterr().err, output

    return run


@pytest.mark.parametrize(
    ("rows", "yaml"),
    [
        ("pairs", "loss_type: kto\n"),
        ("labels", "loss_type: kto\nloss_kwargs: {baseline: batch_mean}\nuse_peft: true\n"),
        ("ranked", "loss_type: plackett_luce\neval_fraction: 0.4\neval_strategy: steps\neval_steps: 1\n"),
        ("ranked", f"loss_type: hinge\n{SCALING}"),
        ("rewarded", f"loss_type: [sigmoid, sft]\nloss_weights: [1.0, 0.1]\n{SCALING}"),
    ],
)
def test_each_kind(train: Callable[..., Any], rows: str, yaml: str) -> None:
    """Kills: columns that the reader drops; a plan, an adapter or an evaluation that goes with pairs only."""
    code, err, output = train(rows, yaml)
    assert code == 0, err
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert {"loss", "rewards/accuracies"} < lines[0].keys()
    assert ("eval_rewards/margins" in {name for line in lines for name in line}) == ("eval" in yaml)


@pytest.mark.parametrize(
    ("rows", "yaml", "message"),
    [
        ("labels", "loss_type: ipo\n", "ipo does not take single labelled answers"),
        ("ranked", "loss_type: kto\n", "kto does not take ranked lists"),
        ("pairs", "loss_type: plackett_luce\n", "plackett_luce does not take pairs"),
        ("pairs", SCALING, "no chosen_reward and no rejected_reward: add the columns, name a reward_model"),
        ("rewarded", f"{SCALING}reward_model_name_or_path: x\n", "have chosen_reward and rejected_reward already"),
        ("ranked", f"{SCALING}reward_model_name_or_path: x\n", "gives rewards to pairs"),
        ("pairs", "reward_model_name_or_path: x\n", "gives rewards to temperature=reward_scaling"),
        ("pairs", "reward_model_label: 1\n", "reward_model_label goes with reward_model_name_or_path"),
        ("pairs", f"{SCALING}reward_model_name_or_path: x\nreward_model_form: essay\n", "reward_model_form"),
    ],
)
def test_refused_before_a_model_is_loaded(train: Callable[..., Any], rows: str, yaml: str, message: str) -> None:
    """The policy's folder does not exist. Kills: a refusal that comes after loading."""
    code, err, _ = train(rows, f"{yaml}\nmodel_name_or_path: nobody/nowhere\n")
    assert code == 2
    assert message in err
    assert "nowhere" not in err


def test_rewards_of_a_reward_model(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of messages and of strings, kept on disk, made anew for other rows. Kills: rewards of the wrong answer; a file of
    other rows that is taken for theirs; rewards computed again; a default for what could not be judged."""
    name = str(models / "reward")
    config = VRPOConfig(
        output_dir=str(tmp_path), temperature="reward_scaling", temperature_kwargs={"scale": 1.0}, use_cpu=True
    )
    data = PreferenceDataArguments(reward_model_name_or_path=name, reward_model_label=1, reward_model_form="text")
    rows = [{"prompt": f"{n}?", "chosen": "blue", "rejected": str(n)} for n in range(70)]
    rows[3]["rejected"] = "blue"
    rows[65]["chosen"] = "far too long " * 20
    found, held = with_rewards(data, config, Dataset.from_list(rows), Dataset.from_list(rows[:2]))
    judge = load_reward_model(name, label=1, form="text")
    for at in (0, 1, 64, 69):
        both = judge([Answer(rows[at]["prompt"], rows[at][side]) for side in ("chosen", "rejected")])
        expected = [verdict.reward for verdict in both]
        assert [found[at]["chosen_reward"], found[at]["rejected_reward"]] == pytest.approx(expected, rel=1e-5)
    empty = [at for at in range(70) if found[at]["chosen_reward"] is None and found[at]["rejected_reward"] is None]
    assert empty == [3, 65]
    assert held["chosen_reward"][:] == pytest.approx(found["chosen_reward"][:2])
    kept = sorted((tmp_path / "rewards").glob("*.jsonl"))
    assert [path.name.split("-")[0] for path in kept] == ["eval", "train"]
    with monkeypatch.context() as patch:
        patch.setattr(train_rewards, "_judged", lambda *given: pytest.fail("judged again"))
        again, _ = with_rewards(data, config, Dataset.from_list(rows), None)
    assert again["chosen_reward"][:] == found["chosen_reward"][:]
    rows[0]["rejected"] = "another"
    other, _ = with_rewards(data, config, Dataset.from_list(rows), None)
    assert other[0]["rejected_reward"] != found[0]["rejected_reward"]
    assert sorted((tmp_path / "rewards").glob("*.jsonl"))[0] == kept[0]
    assert len(list((tmp_path / "rewards").glob("train-*.jsonl"))) == 1


def test_interrupted_rewards_go_on(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: parts that are made again; a row's rewards at another row."""
    config = VRPOConfig(
        output_dir=str(tmp_path), temperature="reward_scaling", temperature_kwargs={"scale": 1.0}, use_cpu=True
    )
    data = PreferenceDataArguments(reward_model_name_or_path=str(models / "reward"), reward_model_label=0)
    rows = Dataset.from_list([{"prompt": f"{n}?", "chosen": "blue", "rejected": str(n)} for n in range(130)])
    judged, calls = train_rewards._judged, []

    def stopped(part: Any, model: Any) -> Any:
        calls.append(part[0]["prompt"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judged(part, model)

    monkeypatch.setattr(train_rewards, "_judged", stopped)
    with pytest.raises(KeyboardInterrupt):
        with_rewards(data, config, rows, None)
    found, _ = with_rewards(data, config, rows, None)
    assert calls == ["0?", "64?", "64?", "128?"]
    judge = load_reward_model(str(models / "reward"), label=0)
    last = judge([Answer(rows[129]["prompt"], rows[129]["rejected"])])[0].reward
    assert found[129]["rejected_reward"] == pytest.approx(last, rel=1e-5)
    assert len(set(found["rejected_reward"][:])) > 100


def test_a_run_with_a_reward_model(train: Callable[..., Any], models: Path) -> None:
    """Kills: rewards that do not arrive at the loss; messages whose answer is judged without its prompt."""
    yaml = f"{SCALING}reward_model_name_or_path: {models / 'reward'}\nreward_model_label: 1\n"
    code, err, output = train("pairs", yaml)
    assert code == 0, err
    assert len(list((output / "rewards").glob("train-*.jsonl"))) == 1
