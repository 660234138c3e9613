"""Supervised fine-tuning and pretraining: it learns, and its runs are the same run however they are batched."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.loops import each
from tests.training.runs import answers, distance, lora, moved, sft_config, tiny, train
from vrpo.decoding.decode import generate
from vrpo.training.sft import SFTTrainer


def run(folder: Path, count: int, **fields: Any) -> Any:
    _, trajectory = train(SFTTrainer, sft_config(folder, **fields), answers(count))
    assert moved(trajectory) > 1e-3
    return trajectory


@each("count", [8, 6])
def test_accumulation_is_batching(tmp_path: Path, count: int) -> None:
    """Kills: a mean over micro-batches or over tokens; a short last window divided by the nominal number."""
    at_once = run(tmp_path / "a", count, per_device_train_batch_size=4)
    one_by_one = run(tmp_path / "b", count, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert distance(at_once, one_by_one) < 1e-9


@each("fields", [{"max_tokens_per_forward": 12}, {"gradient_checkpointing": True}], ids=str)
def test_packing_and_checkpointing_change_nothing(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Kills: a mean over packs; checkpointing that recomputes with another mask."""
    assert distance(run(tmp_path / "a", 8), run(tmp_path / "b", 8, **fields)) < 1e-9


def test_packs_are_as_small_as_asked(tmp_path: Path) -> None:
    """Kills: max_tokens_per_forward ignored by supervised fine-tuning, or by evaluation."""
    denoiser, sizes = tiny(), []
    denoiser.module.register_forward_pre_hook(
        lambda module, args, inputs: sizes.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    fields = {"max_tokens_per_forward": 20, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    train(SFTTrainer, sft_config(tmp_path, **fields), answers(8), denoiser=denoiser, eval_dataset=answers(8))
    assert max(sizes) <= 20


def fit(folder: Path, rows: Dataset, **fields: Any) -> tuple[SFTTrainer, list[float]]:
    """A run that should learn; its logged losses."""
    fast = {"optim": "adamw_torch", "learning_rate": 1e-2, "num_train_epochs": 100, "logging_steps": 20, "num_times": 4}
    options = {"peft_config": fields.pop("peft_config")} if "peft_config" in fields else {}
    trainer, _ = train(SFTTrainer, sft_config(folder, **fast | fields), rows, denoiser=tiny(seed=3), **options)
    return trainer, [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.slow
def test_learns_prompts_and_completions(tmp_path: Path) -> None:
    """4 answers of one word, learnt by heart and generated. Kills: a prompt that is scored, or that the response does
    not see; the sign of the loss."""
    colours = {"sky": "blue", "sun": "gold", "sea": "grey", "ice": "pale"}
    rows = Dataset.from_list([{"prompt": key, "completion": value} for key, value in colours.items()])
    trainer, losses = fit(tmp_path, rows, num_train_epochs=200)
    assert losses[-1] < 0.2 < 2 < losses[0]
    prompts = [trainer.denoiser.tokenizer.encode(key, add_special_tokens=False) for key in colours]
    texts = [answer.text for answer in generate(trainer.denoiser, prompts, max_new_tokens=5)]
    assert texts == list(colours.values())


@pytest.mark.slow
def test_learns_an_adapter(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": "sky", "completion": "blue"}])
    _, losses = fit(tmp_path, rows, peft_config=lora(), learning_rate=3e-2)
    assert losses[-1] < 0.5 * losses[0]


def test_pretraining_on_text(tmp_path: Path) -> None:
    """Rows of `text`, cut into chunks with draws of their own. Kills: text truncated at max_length; one key for all
    chunks of a row."""
    rows = Dataset.from_list([{"text": "the sky is blue and the sea is grey. " * 2}] * 2)
    trainer, losses = fit(tmp_path, rows, max_length=16, num_train_epochs=30, logging_steps=5)
    examples = trainer.train_dataset
    assert len(examples) > 4
    assert max(map(len, examples["response_ids"][:])) <= 16
    assert len({(row["example_id"], row["chunk"]) for row in examples}) == len(examples)
    batch = trainer.data_collator(list(examples))
    assert trainer.tokens(batch, epoch=0).key.unique().numel() == len(examples)
    assert losses[-1] < 0.8 * losses[0]


def test_messages(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "sky?"}, {"role": "assistant", "content": "blue"}]
    trainer, _ = fit(tmp_path, Dataset.from_list([{"messages": turns}]), max_steps=1)
    tokenizer = trainer.denoiser.tokenizer
    assert tokenizer.decode(trainer.train_dataset[0]["response_ids"]).startswith("blue<|eot_id|>")
