"""Ours at n = 1 against TRL's DPOTrainer on a Llama of the same shape, on the same token ids and in the same precision.

TRL's side is the released trainer, gradient checkpointing off as in ours: its default collator's batch (the padded
rectangle), its chunked head over completion tokens, its reference (adapter off, or a copy).
"""

import tempfile
from pathlib import Path
from typing import Any

import common
import torch
from common import (
    PAIRS,
    backbone_config,
    base_dtype,
    batches,
    counted,
    examples,
    first,
    lora,
    seconds,
    trainer,
    training_step,
)

REPEATS = 5


def trl(data: Path) -> list[dict[str, Any]]:
    """Seconds per pair on batches of 8 pairs, alternating."""
    rows, found = examples(data), []
    shuffled = batches(rows, REPEATS + 1, seed=1)
    for batch in shuffled:
        batch["ids"] %= common.MASK_ID - 1  # a smaller vocabulary's
    for bf16 in (True, False):
        for adapter in (True, False):
            case = {"precision": "bf16" if bf16 else "float32", "mode": "LoRA" if adapter else "full"}
            folder = tempfile.mkdtemp(prefix="step_cost_")
            ours = trainer("25M", rows[:16], folder, adapter=adapter, bf16=bf16, num_draws=1)
            theirs = dpo_trainer(folder, adapter=adapter, bf16=bf16)
            training_step(ours, first(shuffled[-1], 1), 1)  # warm
            training_step(theirs, as_trl(first(shuffled[-1], 1)), 1)
            for batch in shuffled[:REPEATS]:
                row = {**case, "ours": seconds(training_step, ours, batch) / PAIRS}
                row["trl"] = seconds(training_step, theirs, as_trl(batch)) / PAIRS
                found.append(row)
                print(row, flush=True)
            counts = {"ours": counted(training_step, ours, shuffled[0]) / PAIRS}
            counts["trl"] = counted(training_step, theirs, as_trl(shuffled[0])) / PAIRS
            found.append({**case, "flops": counts})
            print(found[-1], flush=True)
    return found


def trl_profile(data: Path) -> list[dict[str, Any]]:
    """Where a TRL step on two pairs spends its time: seconds by operator, and those inside its chunked head."""
    from torch.profiler import ProfilerActivity, profile

    batch, found = first(batches(examples(data, 64), 1, seed=1)[0], 2), []
    for bf16 in (True, False):
        made = dpo_trainer(tempfile.mkdtemp(prefix="step_cost_"), adapter=True, bf16=bf16)
        training_step(made, as_trl(batch), 2)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            training_step(made, as_trl(batch), 2)
        events = seen.key_averages()
        total = sum(event.self_cpu_time_total for event in events) / 1e6
        own = {event.key: event.self_cpu_time_total / 1e6 for event in events}
        inside = {event.key: event.cpu_time_total / 1e6 for event in events if "Chunked" in event.key}
        top = dict(sorted(own.items(), key=lambda item: -item[1])[:8])
        found.append({"precision": "bf16" if bf16 else "float32", "seconds": total, "top": top, "head": inside})
        print(found[-1], flush=True)
    return found


def trl_small(data: Path) -> list[dict[str, Any]]:
    """The same with a vocabulary of 2,048, token ids modulo 2,000: what remains when the head is small. TRL's chunked
    head is written for Triton, and falls back to plain operations on a CPU."""
    before = common.VOCAB, common.MASK_ID, common.PAD_ID
    common.VOCAB, common.MASK_ID, common.PAD_ID = 2048, 2001, 2002
    try:
        return trl(data)
    finally:
        common.VOCAB, common.MASK_ID, common.PAD_ID = before


def as_trl(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our batch in the fields of TRL's collator: chosen rows first, then rejected ones, as ours."""
    return {
        "input_ids": batch["ids"],
        "attention_mask": batch["attention"].long(),
        "completion_mask": batch["response"].long(),
    }


def dpo_trainer(folder: str, *, adapter: bool, bf16: bool) -> Any:
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import DPOConfig, DPOTrainer

    from vrpo.models.tiny import train_tokenizer

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**backbone_config("25M"), use_cache=False)).to(base_dtype(adapter, bf16))
    model.config.name_or_path = folder
    args = DPOConfig(
        output_dir=folder,
        bf16=bf16,
        use_cpu=True,
        learning_rate=1e-6,
        beta=0.2,
        gradient_checkpointing=False,
        per_device_train_batch_size=PAIRS,
        report_to="none",
    )
    tokenizer = train_tokenizer(["a"], 300)  # of the dummy row below; the steps are given token ids
    tokenizer.pad_token_id = tokenizer.eos_token_id
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    ours: dict[str, Any] = {"peft_config": lora()} if adapter else {"ref_model": LlamaForCausalLM(model.config)}
    made = DPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, **ours)
    assert made.model.config.pad_token_id is not None
    made.create_optimizer()
    made.current_gradient_accumulation_steps = 1  # as `train` sets it
    made.model_wrapped = made.accelerator.prepare_model(made.model)
    return made
