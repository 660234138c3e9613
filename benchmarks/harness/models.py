"""The base models that studies share: LLaDA's layout with random weights at two sizes, a model of text with policies at
several distances from it, and a model of 4x4 Sudoku. What was trained is not trained again.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig

from benchmarks.harness.machine import vrpo_command
from benchmarks.harness.study import ROOT, Run
from benchmarks.harness.tasks import SUDOKU, puzzles, read, write_text
from vrpo import SFTConfig, SFTTrainer, load
from vrpo.data import PreferenceCollator, load_rows, tokenize_preferences, tokens_of
from vrpo.models.llada import LLaDA, LLaDAConfig
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.types import Tokens

VOCAB, MASK_ID, PAD_ID = 50304, 50257, 50256  # GPT-2's 50,257 tokens, and room for a mask token
SHAPES = {  # about 26M and 124M parameters, embedding and head tied
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "25M": {"hidden_size": 320, "num_hidden_layers": 8, "num_attention_heads": 5, "intermediate_size": 896},
    "125M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
}
LIMITS = {"max_length": 112, "max_prompt_length": 40, "truncation_mode": "keep_end"}  # of a row of text
STEPS = {  # of what a tiny run trains
    "base": {"max_steps": 4, "vocab_size": 300, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "bf16": "false"},
    "policy": {"max_steps": 4, "save_steps": 2, "bf16": "false"},
}


def backbone(shape: str) -> dict[str, Any]:
    """Fields of a configuration, which a Llama of transformers has, too."""
    heads = SHAPES[shape]["num_attention_heads"]
    fields = {"num_key_value_heads": heads, "vocab_size": VOCAB, "tie_word_embeddings": True, "use_cache": False}
    ids = {"bos_token_id": None, "eos_token_id": PAD_ID, "pad_token_id": PAD_ID}
    return {**SHAPES[shape], **fields, **ids, "max_position_embeddings": 4096}


def llada(shape: str, dtype: torch.dtype = torch.float32) -> LLaDA:
    """A LLaDA-layout model with random weights."""
    torch.manual_seed(0)
    return LLaDA(LLaDAConfig(**backbone(shape), mask_token_id=MASK_ID)).to(dtype)


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, target_modules=list(LLaDA.lora_targets))


def words(fields: dict[str, Any]) -> list[str]:
    """Fields as arguments of a command."""
    return [word for name, value in fields.items() for word in (f"--{name}", str(value))]


def text_base(run: Run) -> Path:
    """A model of 2.2M parameters, from scratch, on GSM8K and UltraFeedback text; `data` beside it has the pairs."""
    work = run.work / "text"
    if not (work / "data" / "gsm8k.jsonl").is_file():
        write_text(run.options.data, run.options.tiny, work / "data")
    if not (work / "base" / "model.safetensors").is_file():
        where = {"dataset_name": work / "data" / "base.jsonl", "output_dir": work / "base"}
        fields = where | (STEPS["base"] if run.options.tiny else {})
        config = ROOT / "variance_frontier" / "base.yaml"
        vrpo_command("sft", "--config", config, *words(fields), log=work / "base.log")
    return work / "base"


def text_policy(run: Run, step: int) -> Path:
    """A policy so many steps of VRPO (the paper's plan, four draws) away from the base."""
    base = text_base(run)
    folder = base.parent / "policy"
    if not (folder / f"checkpoint-{step}").is_dir():
        where = {"dataset_name": base.parent / "data" / "pairs.jsonl", "output_dir": folder}
        fields = {"model_name_or_path": base, **where} | (STEPS["policy"] if run.options.tiny else {})
        config = ROOT / "variance_frontier" / "policy.yaml"
        vrpo_command("train", "--config", config, *words(fields), log=base.parent / "policy.log")
    return folder / f"checkpoint-{step}"


def held_out(path: Path, model: Any, count: int) -> list[Tokens]:
    """The first held-out pairs of a file, each as two rows."""
    examples, _ = tokenize_preferences(load_rows(str(path)), model.tokenizer, **LIMITS)
    collate = PreferenceCollator(model.pad_id)
    return [tokens_of(collate([examples[index]]), seed=0, epoch=-2) for index in range(min(count, len(examples)))]


def text_rows(base: Path, name: str) -> list[dict[str, Any]]:
    return read(base.parent / "data" / f"{name}.jsonl")


def settings(folder: Path, **fields: Any) -> dict[str, Any]:
    """What all trainers of studies have in common."""
    common = {"lr_scheduler_type": "cosine", "weight_decay": 0.01, "adam_beta2": 0.95, "save_strategy": "no"}
    return {"output_dir": str(folder), **common, "report_to": "none", "disable_tqdm": True, "use_cpu": True, **fields}


def sudoku_base(run: Run, canvas: int = SUDOKU) -> Path:
    """A model of 45,152 parameters that is stopped at middling accuracy; on a longer canvas, trained further on answers
    that end-of-text fills up to it, as LLaDA's are."""
    tiny, folder = run.options.tiny, run.work / f"sudoku_{canvas}"
    if (folder / "model.safetensors").is_file():
        return folder
    rows = [{"prompt": row["prompt"], "completion": row["Solution"]} for row in puzzles(run.options.data, tiny, "sft")]
    fields: dict[str, Any] = {"warmup_steps": 20.0, "logging_steps": 50.0, "seed": run.options.seed}
    if canvas == SUDOKU:
        shape = {"hidden_size": 32, "intermediate_size": 85, "num_layers": 2, "num_heads": 4, "max_length": 128}
        model: Any = from_config(train_tokenizer(["01234="], 262), **shape, seed=0)  # no digits are merged
        fields |= {"max_steps": 1500, "per_device_train_batch_size": 128, "learning_rate": 4e-3}
    else:
        model = load(sudoku_base(run), dtype=torch.float32)
        fields |= {"max_steps": 4000, "per_device_train_batch_size": 64, "learning_rate": 3e-3}
        fields |= {"eos_padding": canvas, "log_gradient_snr": False}
    if tiny:
        fields |= {"max_steps": 3, "per_device_train_batch_size": 8}
    trainer = SFTTrainer(model, args=SFTConfig(**settings(folder, **fields)), train_dataset=Dataset.from_list(rows))
    trainer.train()
    trainer.save_model()
    return folder
