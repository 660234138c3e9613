"""What a step is compared with: DPO on bounds as one would write it down, and TRL's DPOTrainer."""

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

import vrpo
from benchmarks.harness.models import MASK_ID, backbone, llada, lora
from vrpo.data.collate import tokens_of

PAIRS = 8  # per batch
Batch = dict[str, Tensor]


def base_dtype(adapter: bool, bf16: bool) -> torch.dtype:
    """Trained weights are float32 masters; a frozen base is stored as it is computed with."""
    return torch.bfloat16 if adapter and bf16 else torch.float32


@dataclass
class Straightforward:
    """The padded batch, logits of the whole vocabulary at every position, a copy of the model as reference, and the
    graphs of all draws until the backward. `pairs_at_a_time` pairs share a backward, padded as in the batch."""

    module: nn.Module
    reference: nn.Module
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype | None
    num_draws: int
    pairs_at_a_time: int = PAIRS
    beta: float = 0.2

    @staticmethod
    def of(shape: str, *, adapter: bool, bf16: bool, num_draws: int, pairs_at_a_time: int) -> "Straightforward":
        base = llada(shape, base_dtype(adapter, bf16))
        reference = copy.deepcopy(base).requires_grad_(False)
        module = get_peft_model(base, lora()) if adapter else base
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-6)
        dtype = torch.bfloat16 if bf16 else None
        return Straightforward(module, reference, optimizer, dtype, num_draws, pairs_at_a_time)

    def step(self, batch: Batch) -> None:
        draws = vrpo.FixedCount(self.num_draws)(tokens_of(batch, seed=0, epoch=0))
        for start in range(0, len(batch["chosen"]), self.pairs_at_a_time):
            part = slice(start, start + self.pairs_at_a_time)
            rows = torch.cat([batch["chosen"][part], batch["rejected"][part]])
            self.loss(batch, draws, rows).mul(len(rows) / len(batch["ids"])).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, batch: Batch, draws: vrpo.Draws, rows: Tensor) -> Tensor:
        ids, attention = batch["ids"][rows], batch["attention"][rows]
        ratio = torch.zeros(len(rows), dtype=torch.float32)
        for k in range(self.num_draws):
            masked, weight = draws.masked[rows, k], draws.weight[rows, k].float()
            noisy = torch.where(masked, MASK_ID, ids)
            policy = (self.logp(self.module, noisy, attention, ids) * weight).sum(-1)
            with torch.no_grad():
                reference = (self.logp(self.reference, noisy, attention, ids) * weight).sum(-1)
            ratio = ratio + policy - reference
        chosen, rejected = ratio.chunk(2)
        return -nn.functional.logsigmoid(self.beta * (chosen - rejected)).mean()

    def logp(self, module: Any, noisy: Tensor, attention: Tensor, target: Tensor) -> Tensor:
        with autocast(self.dtype):
            base = base_of(module)
            hidden = base.model(input_ids=noisy, attention_mask=attention, use_cache=False)[0]
            logits = base.lm_head(hidden)
        return logits.float().log_softmax(-1).gather(-1, target[..., None])[..., 0]


def base_of(module: Any) -> Any:
    """The model without its adapter's wrapper."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def autocast(dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def as_trl(batch: Batch) -> Batch:
    """Our batch in the fields of TRL's collator: chosen rows first, then rejected ones, as ours."""
    masks = {"attention_mask": batch["attention"].long(), "completion_mask": batch["response"].long()}
    return {"input_ids": batch["ids"], **masks}


def dpo_trainer(shape: str, folder: str, *, adapter: bool, bf16: bool) -> Any:
    """The released trainer on a Llama of the same shape, gradient checkpointing off as in ours: its padded rectangle,
    its chunked head over completion tokens, its reference (adapter off, or a copy)."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import DPOConfig, DPOTrainer

    from vrpo.models.tiny import train_tokenizer

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**backbone(shape))).to(base_dtype(adapter, bf16))
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
    more: dict[str, Any] = {"peft_config": lora()} if adapter else {"ref_model": LlamaForCausalLM(model.config)}
    made = DPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, **more)
    assert made.model.config.pad_token_id is not None
    made.create_optimizer()
    made.current_gradient_accumulation_steps = 1  # as `train` sets it
    made.model_wrapped = made.accelerator.prepare_model(made.model)
    return made
