"""What a run leaves behind: official weights, a model card, samples, logs, and what it would upload."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.loops import each
from tests.training.runs import answers, lora, pairs, sft_config, tiny, train, vrpo_config
from vrpo.data.collate import PreferenceCollator, tokens_of
from vrpo.draws import FixedCount
from vrpo.estimator import elbo
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load
from vrpo.training.preference import VRPOTrainer
from vrpo.training.run import run
from vrpo.training.sft import SFTTrainer

KEPT = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


def bounds(denoiser: HFDenoiser) -> torch.Tensor:
    tokens = tokens_of(PreferenceCollator(denoiser.pad_id)(list(pairs(4))), seed=0, epoch=0)
    with torch.no_grad():
        return elbo(denoiser, tokens, FixedCount(2)(tokens)).value


def test_output_loads(tmp_path: Path) -> None:
    """`vrpo.load` of output_dir gives the trained model. Kills: weights under transformers' names; a config.json that
    only we can read; a missing tokenizer."""
    trainer, _ = train(VRPOTrainer, vrpo_config(tmp_path), pairs(4))
    trainer.save_model()
    saved = load(tmp_path)
    assert torch.equal(bounds(saved), bounds(trainer.denoiser))
    assert not torch.equal(bounds(saved), bounds(tiny()))
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"model.transformer.wte.weight", "model.transformer.ff_out.weight"} <= names
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llada"
    assert saved.tokenizer is not None
    assert saved.tokenizer.encode("sky") == trainer.denoiser.tokenizer.encode("sky")
    assert (saved.mask_id, saved.eos_id, saved.eot_id) == (
        trainer.denoiser.mask_id,
        trainer.denoiser.eos_id,
        trainer.denoiser.eot_id,
    )


def test_adapter_loads(tmp_path: Path) -> None:
    """The folder of an adapter finds its base. Kills: a merged or a bare adapter."""
    tiny().save_pretrained(tmp_path / "base")
    base = load(tmp_path / "base")
    trainer, _ = train(VRPOTrainer, vrpo_config(tmp_path / "a"), pairs(4), denoiser=base, peft_config=lora())
    trainer.save_model()
    assert not (tmp_path / "a" / "model.safetensors").exists()
    assert torch.equal(bounds(load(tmp_path / "a")), bounds(trainer.denoiser))
    assert not torch.equal(bounds(load(tmp_path / "a")), bounds(tiny()))


@each("adapter", [False, True], ids=["full", "lora"])
def test_best_model_at_end(tmp_path: Path, adapter: bool) -> None:
    """A run that wants the highest loss ends with its first checkpoint. Kills: transformers' loading, which
    finds none of the official names and silently keeps the last weights."""
    options = {"peft_config": lora()} if adapter else {}
    fields = {"greater_is_better": True, "num_train_epochs": 3, "load_best_model_at_end": True}
    trainer, _ = train(
        SFTTrainer, sft_config(tmp_path, **KEPT | fields), answers(8), eval_dataset=answers(8), **options
    )
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    best = losses.index(max(losses))  # the wrong way round, so that it is not the last
    assert best < len(losses) - 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-12)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{2 * best + 2}")


def test_model_card(tmp_path: Path) -> None:
    """Kills: a card without the method, the settings, the evaluation; and one that names a folder as base model."""
    tiny().save_pretrained(tmp_path / "base")
    folder = tmp_path / "aligned"
    fields = {"beta": 0.75, "num_times": 3, "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    trainer, _ = train(
        VRPOTrainer, vrpo_config(folder, **fields), pairs(8), denoiser=load(tmp_path / "base"), eval_dataset=pairs(3)
    )
    trainer.create_model_card()
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    for part in ("# aligned", "**VRPO**", "| `beta` | 0.75 |", "| `num_times` | 3 |", "| `share_draws` | True |"):
        assert part in card
    evaluated = [line for line in trainer.state.log_history if "eval_loss" in line]
    first, last = evaluated[0]["eval_loss"], evaluated[-1]["eval_loss"]
    assert f"| `eval_loss` | {first:.4g} | {last:.4g} |" in card
    assert f"| evaluation | step 0 | step {trainer.state.global_step} |" in card
    assert str(tmp_path) not in card
    trainer.denoiser.module.config.name_or_path = "GSAI-ML/LLaDA-8B-Instruct"
    trainer.create_model_card()
    assert "base_model: GSAI-ML/LLaDA-8B-Instruct\n" in (folder / "README.md").read_text()


def test_samples(tmp_path: Path) -> None:
    """Kills: samples that change training (mode, randomness), or are not taken at step 0."""
    fields = {"sample_steps": 2, "num_samples": 2, "sample_max_new_tokens": 4}
    trainer, path = train(VRPOTrainer, vrpo_config(tmp_path / "a", **fields), pairs(8), eval_dataset=pairs(3))
    lines = [json.loads(line) for line in (tmp_path / "a" / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["index"]) for line in lines] == [(s, i) for s in (0, 2, 4) for i in (0, 1)]
    prompt = trainer.eval_dataset[1]["prompt_ids"]
    assert lines[1]["prompt"] == trainer.denoiser.tokenizer.decode(prompt)
    assert all(len(line["answer_ids"]) <= 4 for line in lines)
    _, without = train(VRPOTrainer, vrpo_config(tmp_path / "b"), pairs(8), eval_dataset=pairs(3))
    assert all(torch.equal(path[-1][name], without[-1][name]) for name in path[-1])


def test_tensorboard(tmp_path: Path) -> None:
    """Metrics reach transformers' loggers under their names, grouped by them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(VRPOTrainer, vrpo_config(tmp_path, report_to="tensorboard"), pairs(8))
    (event,) = tmp_path.rglob("events.*")
    events = accumulator.EventAccumulator(str(event))
    events.Reload()
    assert {"train/rewards/margins", "train/score/variance", "train/loss"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train/loss")) == 4


def test_push_to_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be uploaded, without a network: model, tokenizer and our card. Kills: transformers' own card."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, name: str, **options: Any) -> Any:
            calls.append(("create_repo", {"name": name}))

            class Repo:
                repo_id = f"someone/{name}"

            return Repo()

        def upload_folder(self, **options: Any) -> str:
            calls.append(("upload_folder", {**options, "card": (tmp_path / "README.md").read_text()}))
            return "done"

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    config = vrpo_config(tmp_path, push_to_hub=True, hub_model_id="aligned")
    trainer = VRPOTrainer(tiny(), args=config, train_dataset=pairs(4))
    run(trainer)
    name, last = calls[-1]
    assert calls[0][0] == "create_repo"
    assert name == "upload_folder"
    assert last["repo_id"] == "someone/aligned"
    assert "**VRPO**" in last["card"]
    assert Path(last["folder_path"]) == tmp_path
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= {
        file.name for file in tmp_path.iterdir()
    }


def test_run_leaves_everything(tmp_path: Path) -> None:
    """The function behind the command line. Kills: a run that ends without saving."""
    run(VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=pairs(4)))
    files = {file.name for file in tmp_path.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
        "log.jsonl",
        "trainer_state.json",
    } <= files


def test_resume_from_nothing(tmp_path: Path) -> None:
    trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path, resume_from_checkpoint="true"), train_dataset=pairs(4))
    tmp_path.mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        run(trainer)
