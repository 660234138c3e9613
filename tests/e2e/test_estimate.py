"""`vrpo estimate` as a user runs it; and that it counts what the trainer does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vrpo.cli import main
from vrpo.data.sources import load_rows
from vrpo.diagnostics.cost import GPUS
from vrpo.models.load import load
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.planning import step as estimate_step
from vrpo.planning.report import StepCost
from vrpo.planning.run import step_cost_of, tokenized
from vrpo.training.arguments import ModelArguments
from vrpo.training.preference import VRPOTrainer
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.run import adapter_config

SIZE = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 96}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, a model, and its folder without the weights."""
    folder = tmp_path_factory.mktemp("plan")
    rows = [{"prompt": f"{n}+{n}=", "chosen": "7" * (3 + 5 * n), "rejected": str(3000 - n)} for n in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = from_config(train_tokenizer(["0123456789+="], 270), **SIZE, max_length=64)
    for name in ("whole", "bare"):
        model.save_pretrained(folder / name)
    (folder / "bare" / "model.safetensors").unlink()
    return folder


@pytest.fixture
def planned(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str, Any]]:
    """Runs `vrpo estimate` on the folder without weights: exit code, stdout, stderr, plan file."""

    def run(*arguments: str) -> tuple[int, str, str, Any]:
        given = ["--dataset_name", str(workplace / "pairs.jsonl"), "--output_dir", str(tmp_path / "out")]
        given += ["--model_name_or_path", str(workplace / "bare"), "--estimate_file", str(tmp_path / "estimate.json")]
        batch = "--per_device_train_batch_size"
        given += ["--report_to", "none", "--use_cpu", "true", *([] if batch in arguments else [batch, "4"])]
        capsys.readouterr()
        code = main(["estimate", *given, *arguments])
        said, file = capsys.readouterr(), tmp_path / "estimate.json"
        return code, said.out, said.err, json.loads(file.read_text()) if file.is_file() else None

    return run


def test_it_needs_no_weights_and_says_where_the_bytes_go(planned: Callable[..., Any]) -> None:
    """Full fine-tuning in float32: weights, a copy, gradients and two optimizer states. Kills: weights read; a tied or
    a missing component; adapters' states for all weights."""
    code, out, err, found = planned("--device", "h100")
    assert code == 0, err
    model = from_config(train_tokenizer(["0123456789+="], 270), **SIZE, max_length=64).module
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    held = found["held"]
    for name in ("weights", "reference copy"):
        assert held[name] == pytest.approx(weights, rel=1e-3)  # and the rotary frequencies
    assert held["gradients"] == pytest.approx(weights, rel=1e-3)
    assert held["optimizer states"] == pytest.approx(2 * weights, rel=1e-2)
    assert "It fits" in out
    assert "at least" in out
    assert found["switches"] == []
    assert found["passes"] == "two"


def test_an_adapter_holds_little(planned: Callable[..., Any]) -> None:
    _, _, err, found = planned("--device", "h100", "--use_peft", "true", "--lora_r", "2", "--bf16", "true")
    held = found["held"]
    assert held["reference copy"] == 0, err
    assert 0 < held["optimizer states"] < held["weights"]
    assert found["calls"]["values"] == 0
    assert found["passes"] == "one"


def test_a_loss_without_reference_runs_none(planned: Callable[..., Any]) -> None:
    """Kills: the copy, or the passes, of a reference that SimPO has not."""
    _, _, err, found = planned("--device", "h100", "--loss_type", "simpo")
    assert (found["held"]["reference copy"], found["calls"]["reference"]) == (0, 0), err


@pytest.mark.slow
def test_it_says_which_switch_to_flip(planned: Callable[..., Any]) -> None:
    """Kills: advice that does not lower the peak, or goes on although it fits; a verdict that is always yes."""
    code, out, err, found = planned("--device", "h100")
    peak = sum(found["held"].values()) + found["activations"] + found["process"]
    code, out, err, found = planned("--device", "h100", "--memory_gb", str((peak - 4e5) / 1e9))
    assert code == 0, err
    assert "does NOT fit" in out
    assert found["switches"]
    assert f"set the switches down to {found['switches'][-1]['switch']}" in " ".join(out.split())
    peaks = [sum(each["held"].values()) + each["activations"] + each["process"] for each in found["switches"]]
    assert peaks[-1] <= peak - 4e5 < min([peak, *peaks[:-1]])
    code, out, _, found = planned("--device", "h100", "--memory_gb", "0.1")
    assert [each["switch"].split(":")[0] for each in found["switches"]][-2:] == ["use_peft", "load_in_4bit"]
    assert "No switch makes it fit" in out
    assert not found["switches"][-1]["shards"]  # FSDP refuses quantised weights


def test_what_cannot_be_planned_is_refused_by_name(planned: Callable[..., Any]) -> None:
    for given, named in (
        (("--optim", "adafactor"), "optim"),
        (("--memory_gb", "0"), "memory_gb must be above 0"),
        (("--loss_type", "kto"), "only masked diffusion on pairs is estimated, not kto"),
        (("--plan", "exact"), "only masked diffusion on pairs is estimated, not sigmoid with plan=exact"),
        (("--ref_pool", "harmonic"), "ref_pool=harmonic puts several references together, and there is one"),
    ):
        code, _, err, _ = planned("--device", "h100", *given)
        assert code == 2
        assert named in err


def test_unknown_devices_and_too_few_pairs(planned: Callable[..., Any]) -> None:
    code, _, err, _ = planned("--device", "h100000")
    assert code == 2
    assert "h100000" in err
    assert "a100-80gb" in err
    code, _, err, _ = planned("--device", "h100", "--per_device_train_batch_size", "9")
    assert code == 2
    assert "per_device_train_batch_size = 9" in err


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("limit", [40, 4096])
def test_it_counts_the_calls_that_the_trainer_makes(
    workplace: Path, tmp_path: Path, adapter: bool, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills: a second pass of packs that keep their graphs; calls of one pass counted in the other."""
    args = VRPOConfig(
        output_dir=str(tmp_path),
        num_times=4,
        per_device_train_batch_size=7,
        max_tokens_per_forward=limit,
        max_steps=1,
        use_cpu=True,
        report_to="none",
        train_sampling_strategy="sequential",
    )
    model = ModelArguments(model_name_or_path=str(workplace / "whole"), use_peft=adapter, lora_r=2)
    rows = load_rows(str(workplace / "pairs.jsonl"))
    denoiser = load(workplace / "whole", dtype=torch.float32)
    assert denoiser.tokenizer is not None
    examples = tokenized(rows, denoiser.tokenizer, args).select(range(7))
    found: StepCost = step_cost_of(model, args, examples, GPUS["h100"])
    trainer = VRPOTrainer(denoiser, args=args, train_dataset=examples, peft_config=adapter_config(model))
    calls = {True: 0, False: 0}
    for module in {id(m): m for m in (trainer.model, getattr(trainer.ref_model, "module", trainer.model))}.values():
        base = module.get_base_model() if adapter else module
        base.model.register_forward_hook(
            lambda *_: calls.update({torch.is_grad_enabled(): 1 + calls[torch.is_grad_enabled()]})
        )
    trainer.train()
    assert calls[True] == found.calls["gradient"]
    assert calls[False] == found.calls["reference"] + found.calls["values"]


def test_the_cost_of_a_call_is_fitted_to_what_was_recorded(workplace: Path, tmp_path: Path) -> None:
    """Seconds by roofline of calls between the recorded ones, within 5 % of recording them. Kills: coefficients of
    other features; a call's fixed cost left out."""
    args = VRPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    loaded: Any = load(workplace / "whole", dtype=torch.float32).module
    setup = estimate_step.Setup(
        type(loaded), loaded.config, torch.float32, None, args, one_pass=False, copied_reference=True, accumulates=True
    )
    ends = [estimate_step.Call(16, 256, 2000), estimate_step.Call(4, 64, 100), estimate_step.Call(2, 256, 300)]
    between = estimate_step.Call(8, 128, 500)
    gpu = GPUS["h100"]
    points = estimate_step.points_of([*ends, estimate_step.Call(16, 64, 400)])
    fitted = estimate_step.simulate(setup, points).call_seconds("gradient", gpu)
    estimate = float((torch.tensor(between.features, dtype=torch.float64) @ fitted).sum())
    truth = sum(
        estimate_step.simulate(setup, [between]).recorder.seconds("gradient 0", gpu, loaded.config.vocab_size).values()
    )
    assert estimate == pytest.approx(truth, rel=0.05)
