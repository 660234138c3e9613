"""Every command over every family of models: a folder in, a folder in the same layout out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vrpo.cli import main
from vrpo.models.load import load
from vrpo.models.tiny import from_config, train_tokenizer

SIZE = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
ARCHITECTURES: dict[str, dict[str, Any]] = {  # with what each needs besides; a new family is a line
    "DreamModel": {},
    "ILLaDAForCausalLM": {"tie_embeddings": True},
    "LLaDAMoEModelLM": EXPERTS,
    "LlamaForCausalLM": {},
    "Qwen3ForCausalLM": {"shift_logits": True, "tie_embeddings": True},
}
TOKENIZER = train_tokenizer(["0123456789+="], 270)
QUIET = [
    "--report_to",
    "none",
    "--disable_tqdm",
    "true",
    "--use_cpu",
    "true",
    "--max_steps",
    "2",
    "--logging_steps",
    "1",
]
QUIET += ["--per_device_train_batch_size", "2", "--learning_rate", "0.05", "--num_times", "2"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of the architecture."""
    folder = tmp_path_factory.mktemp("model")
    more = ARCHITECTURES[request.param]
    from_config(TOKENIZER, **SIZE, max_length=64, architecture=request.param, **more).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    lines = [{"prompt": f"{n}+{n}=", "chosen": str(2 * n), "rejected": str(3001 - n)} for n in range(8)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("sft", ["--completion_column", "chosen"]),
        ("train", []),
        ("train", ["--use_peft", "true", "--gradient_checkpointing", "true"]),
    ],
)
def test_it_trains_and_comes_back(model: Path, rows: str, tmp_path: Path, command: str, arguments: list[str]) -> None:
    """Two steps; the layout is what it was, the weights are not, and what was saved answers. Kills: a family that
    loses its architecture, its alignment or a tensor's name on the way; weights that stand still."""
    given = ["--model_name_or_path", str(model), "--dataset_name", rows, "--output_dir", str(tmp_path / "out")]
    assert main([command, *given, *QUIET, *arguments]) == 0
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in log if "loss" in line)
    before, after = load(model), load(tmp_path / "out")
    assert after.module.config.shift_logits == before.module.config.shift_logits
    if "--use_peft" not in arguments:
        ours, theirs = (load_file(place / "model.safetensors") for place in (tmp_path / "out", model))
        assert ours.keys() == theirs.keys()
        assert sum(not torch.equal(ours[name], theirs[name]) for name in ours) > len(ours) / 2
        fields = [json.loads((place / "config.json").read_text()) for place in (tmp_path / "out", model)]
        assert fields[0] == fields[1]
    output = tmp_path / "answers.jsonl"
    asked = [
        "--prompt",
        "1+1=",
        "--num_samples",
        "2",
        "--temperature",
        "1.0",
        "--max_new_tokens",
        "4",
        "--output",
        str(output),
    ]
    assert main(["generate", "--model_name_or_path", str(tmp_path / "out"), *asked]) == 0
    answers = [json.loads(line)["answer_ids"] for line in output.read_text().splitlines()]
    assert [len(ids) for ids in answers] == [4, 4]
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    ids = torch.tensor([[20, 21, 22, 23]])
    with torch.no_grad():
        assert not torch.equal(before.logits(ids, everywhere, everywhere), after.logits(ids, everywhere, everywhere))


@pytest.mark.parametrize("model", ["LLaDAMoEModelLM", "Qwen3ForCausalLM"], indirect=True)
def test_it_is_planned(model: Path, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: a plan that knows LLaDA's names of modules; a tied head counted twice; numbers for experts, whose share of
    tokens shapes do not say."""
    run = [
        "estimate",
        "--model_name_or_path",
        str(model),
        "--dataset_name",
        rows,
        "--output_dir",
        str(tmp_path / "out"),
    ]
    run += ["--device", "h100", "--per_device_train_batch_size", "4", "--report_to", "none", "--use_cpu", "true"]
    code = main([*run, "--estimate_file", str(tmp_path / "estimate.json")])
    if "num_experts" in json.loads((model / "config.json").read_text()):
        assert code == 2
        assert "has experts" in capsys.readouterr().err
        return
    assert code == 0
    held = json.loads((tmp_path / "estimate.json").read_text())["held"]
    size = 4 * sum(parameter.numel() for parameter in load(model).module.parameters())
    assert held["weights"] == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize("model", ["DreamModel", "LLaDAMoEModelLM"], indirect=True)
def test_it_is_measured_and_evaluated(model: Path, rows: str, tmp_path: Path) -> None:
    """Kills: commands that know LLaDA's names of modules or fields."""
    measured = ["--num_pairs", "3", "--num_replicates", "3", "--budgets", "1", "2", "--sketch_size", "16"]
    measured += ["--plan_draws", "2", "--ref_model_name_or_path", str(model), "--device", "cpu"]
    measured += ["--model_name_or_path", str(model), "--dataset_name", rows, "--output_dir", str(tmp_path / "out")]
    assert main(["variance", *measured]) == 0
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "1+1=", "answer": "#### 2"}\n')
    evaluated = ["--models", f"it={model}", "--task", f"gsm8k={tmp_path / 'gsm8k.jsonl'}", "--max_new_tokens", "4"]
    assert main(["eval", *evaluated, "--output_dir", str(tmp_path / "eval"), "--device", "cpu"]) == 0
