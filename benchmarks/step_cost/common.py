"""What the stages of this benchmark share: model shapes, UltraFeedback batches, trainers, a FLOP counter that knows the
CPU's attention, and the straightforward implementation that ours is compared with.
"""

import copy
import gzip
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import vrpo
from vrpo.data.collate import PreferenceCollator
from vrpo.models.llada import LLaDA, LLaDAConfig

VOCAB, MASK_ID, PAD_ID = 50304, 50257, 50256  # GPT-2's 50,257 tokens, and room for a mask token
SHAPES = {  # about 26M and 124M parameters, embedding and head tied
    "25M": {"hidden_size": 320, "num_hidden_layers": 8, "num_attention_heads": 5, "intermediate_size": 896},
    "125M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
}
MAX_LENGTH = 1024
MAX_TOKENS = 4096  # per call of the model, ours: the default
PAIRS = 8  # per batch
PRECISIONS = {"float32": None, "bf16": torch.bfloat16}
Batch = dict[str, Tensor]


def backbone_config(shape: str) -> dict[str, Any]:
    fields: dict[str, Any] = dict(SHAPES[shape])
    fields |= {"num_key_value_heads": fields["num_attention_heads"], "vocab_size": VOCAB, "tie_word_embeddings": True}
    return fields | {
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": PAD_ID,
        "pad_token_id": PAD_ID,
    }


def model(shape: str, dtype: torch.dtype = torch.float32) -> LLaDA:
    """A LLaDA-layout model with random weights."""
    torch.manual_seed(0)
    return LLaDA(LLaDAConfig(**backbone_config(shape), mask_token_id=MASK_ID, use_cache=False)).to(dtype)


def base_dtype(adapter: bool, bf16: bool) -> torch.dtype:
    """Trained weights are float32 masters; a frozen base is stored as it is computed with."""
    return torch.bfloat16 if adapter and bf16 else torch.float32


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, target_modules=list(LLaDA.lora_targets))


def examples(data: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """UltraFeedback's training pairs as token ids, rows cut to MAX_LENGTH at their end."""
    folder = data / "tokenizers" / "gpt2"
    tokenizer = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    found = []
    with gzip.open(data / "ultrafeedback" / "train.jsonl.gz", "rt") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            prompt = tokenizer.encode(row["prompt"]).ids[-MAX_LENGTH // 2 :]
            sides = {
                f"{side}_ids": [*tokenizer.encode(row[side]).ids, PAD_ID][: MAX_LENGTH - len(prompt)]
                for side in ("chosen", "rejected")
            }
            if row["chosen"] != row["rejected"]:
                found.append({"prompt_ids": prompt, **sides, "example_id": number})
            if len(found) == limit:
                break
    return found


def batches(rows: Sequence[dict[str, Any]], count: int, pairs: int = PAIRS, seed: int = 0) -> list[Batch]:
    """Shuffled batches, as a trainer would see them."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    collate = PreferenceCollator(PAD_ID)
    return [collate([rows[i] for i in order[pairs * b : pairs * (b + 1)]]) for b in range(count)]


def first(batch: Batch, pairs: int) -> Batch:
    """The first pairs of a batch, padded as in the batch."""
    rows = torch.cat([batch["chosen"][:pairs], batch["rejected"][:pairs]])
    index = torch.arange(pairs)
    part = {name: batch[name][rows] for name in ("ids", "response", "attention", "example_id", "side")}
    return {**part, "chosen": index, "rejected": index + pairs}


def trainer(
    shape: str,
    rows: Any,
    folder: str,
    *,
    adapter: bool,
    bf16: bool,
    num_draws: int,
    plan: str = "fixed_count",
    **fields: Any,
) -> vrpo.VRPOTrainer:
    """Ours, as a user has it."""
    from datasets import Dataset

    args = vrpo.VRPOConfig(
        output_dir=folder,
        plan=plan,
        num_times=num_draws,
        bf16=bf16,
        use_cpu=True,
        learning_rate=1e-6,
        per_device_train_batch_size=PAIRS,
        max_tokens_per_forward=fields.pop("max_tokens_per_forward", MAX_TOKENS),
        report_to="none",
        **fields,
    )
    options = {"peft_config": lora()} if adapter else {}
    base = model(shape, base_dtype(adapter, bf16))
    made = vrpo.VRPOTrainer(base, args=args, train_dataset=Dataset.from_list(rows), **options)
    made.create_optimizer()
    made.model_wrapped = made.accelerator.prepare_model(made.model)
    return made


def training_step(trainer: Any, batch: Batch, pairs: int = PAIRS) -> None:
    """One optimizer step of a transformers Trainer, ours or TRL's, on one batch."""
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.training_step(trainer.model_wrapped, batch, torch.tensor(pairs))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


@dataclass
class Straightforward:
    """DPO on bounds as one would write it down: the padded batch, logits of the whole vocabulary at every position, a
    copy of the model as reference, and the graphs of all draws until the backward.

    Where the whole batch does not fit in memory, `pairs_at_a_time` pairs share a backward, padded as before.
    """

    module: nn.Module
    reference: nn.Module
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype | None
    num_draws: int
    pairs_at_a_time: int = PAIRS
    beta: float = 0.2

    @staticmethod
    def of(shape: str, *, adapter: bool, bf16: bool, num_draws: int, pairs_at_a_time: int) -> "Straightforward":
        from peft import get_peft_model

        base = model(shape, base_dtype(adapter, bf16))
        reference = copy.deepcopy(base).requires_grad_(False)
        module = get_peft_model(base, lora()) if adapter else base
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-6)
        dtype = torch.bfloat16 if bf16 else None
        return Straightforward(module, reference, optimizer, dtype, num_draws, pairs_at_a_time)

    def step(self, batch: Batch) -> None:
        draws = vrpo.FixedCount(self.num_draws)(vrpo.data.collate.tokens_of(batch, seed=0, epoch=0))
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
            base = module.get_base_model() if hasattr(module, "get_base_model") else module
            hidden = base.model(input_ids=noisy, attention_mask=attention, use_cache=False)[0]
            logits = base.lm_head(hidden)
        return logits.float().log_softmax(-1).gather(-1, target[..., None])[..., 0]


def autocast(dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def counted(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of matrix products and attention that a function executes."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *a, out_shape=None, **kw: sdpa_flop_count(
            q, k, v
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *a, out_shape=None, **kw: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        function(*args)
    return float(counter.get_total_flops())


def seconds(function: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def matmul_speed(dtype: torch.dtype | None) -> float:
    """FLOP/s of a product of 2048 x 2048 matrices here and now: the fastest of ten."""
    a, b = (torch.ones(2048, 2048, dtype=dtype or torch.float32) for _ in range(2))
    return 2 * 2048**3 / min(seconds(torch.mm, a, b) for _ in range(10))


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the smallest and largest."""
    return statistics.median(values), min(values), max(values)
