"""`SFTTrainer`: masked-diffusion supervised fine-tuning, and pretraining from scratch."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from vrpo.data.account import DataReport
from vrpo.data.collate import SFTCollator, counted, rows_of
from vrpo.data.tokenize import tokenize_sft
from vrpo.estimator import Engine
from vrpo.models.hf import HFDenoiser
from vrpo.preference import Step, preference_loss
from vrpo.reference import NoReference
from vrpo.structures import Rows
from vrpo.training.base import EVAL_EPOCH, Batch, DiffusionTrainer
from vrpo.training.config import SFTConfig
from vrpo.training.given import check_parts, config_of, policy_of
from vrpo.training.metrics import Columns, row_metrics
from vrpo.training.readable import check_prompts
from vrpo.types import Denoiser, Draws, Tokens


class SFTTrainer(DiffusionTrainer):
    """Minimises -B(y) / L over rows. Used like TRL's SFTTrainer, whose arguments stand in the same order.

    Rows are prompt + completion or messages (the last answer is the response), or text (all of it is the response:
    pretraining), or already tokenised by `data.tokenize_sft`.
    """

    args: SFTConfig
    method = "masked-diffusion SFT"
    token_columns = example_columns = ("prompt_ids", "response_ids")

    def __init__(
        self,
        model: HFDenoiser | nn.Module | str | Path | Any,
        args: SFTConfig | Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | Any = None,
        compute_loss_func: Any = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | Any = None,
        optimizers: Any = (None, None),
        peft_config: Any = None,
        **others: Any,
    ):
        others |= {"data_collator": data_collator, "compute_loss_func": compute_loss_func}
        args = config_of(args, SFTConfig, {**others, "compute_metrics": compute_metrics})
        check_parts(processing_class, peft_config, callbacks, train_dataset, eval_dataset)
        denoiser = policy_of(model, processing_class, peft_config, args)
        if args.plan == "exact":
            self.method = "SFT"
        self.remember(denoiser)
        super().__init__(
            model=denoiser,
            args=args,
            callbacks=callbacks or [],
            data_collator=SFTCollator(denoiser.pad_id),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            optimizers=optimizers,
        )

    def tokenize(self, rows: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, DataReport]:
        if self.args.plan == "exact" and "text" in rows.column_names:
            raise ValueError(
                "rows of text have no prompt, and plan=exact says nothing of a first token: give prompt and completion"
            )
        return tokenize_sft(
            rows,
            tokenizer,
            max_length=self.args.max_length,
            max_prompt_length=self.args.max_prompt_length,
            truncation_mode=self.args.truncation_mode,
            eos_padding=self.args.eos_padding,
            on_bad_rows=self.args.on_bad_rows,
            strings_as_chat=self.args.strings_as_chat,
            mask_id=self.denoiser.mask_id,
            num_proc=self.args.dataset_num_proc,
            chunk=self.args.chunk_text and "text" in rows.column_names,
        )

    def tokenized(self, dataset: Any) -> Any:
        examples = super().tokenized(dataset)
        if self.args.plan == "exact" and isinstance(examples, Dataset):
            check_prompts(examples)
        return examples

    def items_in(self, batch: Batch) -> int:
        return len(batch["row"] if "row" in batch else batch["ids"])

    def batch_backward(self, policy: Denoiser, batch: Batch, scale: float) -> Float[Tensor, ""]:
        tokens, rows = self.tokens(batch, epoch=self.draw_epoch), rows_of(counted(batch))
        draws = self.recipe.plan(tokens, rows)
        asked = torch.zeros_like(rows.length, dtype=torch.bool).index_fill(0, rows.imitated, True)
        self.weigh_routers(tokens, draws.in_use & asked[:, None], scale)
        step = self._step(policy, tokens, rows, draws)
        self.watch.add(step, batch["example_id"])
        self.backward(step.loss * scale)
        self.check_reached()
        self.window.add(row_metrics(step, rows))
        return step.loss.detach()

    def _step(self, policy: Denoiser, tokens: Tokens, rows: Rows, draws: Draws) -> Step:
        return preference_loss(
            policy,
            NoReference(),
            tokens,
            rows,
            draws,
            self.recipe.objective,
            Engine(self.args.max_tokens_per_forward, self.agree),
        )

    def batch_metrics(self, policy: Denoiser, batch: Batch) -> Columns:
        tokens, rows = self.tokens(batch, epoch=EVAL_EPOCH), rows_of(counted(batch))
        draws = self.recipe.eval_plan(tokens, rows)
        per_token = row_metrics(self._step(policy, tokens, rows, draws), rows)
        return {"loss": -per_token["elbo/per_token"], **per_token}
