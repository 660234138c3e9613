"""TRL's own losses, on given log-likelihoods or on a model, to compare ours with; nothing is downloaded or sent.

TRL is imported when a `TRL` is made, which takes 10 to 15 s. Its models are float64, but its fused head computes in
float32, which costs about 3e-7 nats a token.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import torch
from datasets import Dataset
from torch import Tensor

from tests.causal import causal, tokenizer

Example = Mapping[str, Any]  # prompt_ids, chosen_ids, rejected_ids
TEXTS = [  # prompts and answers of different lengths, which TRL tokenises and we do
    {"prompt": "the sky", "chosen": " is blue", "rejected": " is in the sun and the sky"},
    {"prompt": "the sun is", "chosen": " in the sky and blue", "rejected": " red"},
    {"prompt": "is", "chosen": " a", "rejected": " the sky blue"},
    {"prompt": "blue and the", "chosen": " sun in the sky", "rejected": " in the sun the blue sky is"},
]


class TRL:
    """TRL's trainers with a policy (`causal(seed=0)`) and a reference (`causal(seed=1)`)."""

    def __init__(self, folder: Path | str):
        os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # read when it was imported
        import trl
        from trl.experimental.cpo import CPOConfig, CPOTrainer
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        common: dict[str, Any] = {
            "output_dir": str(folder),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
            "max_length": 512,
            "per_device_train_batch_size": len(TEXTS),
        }
        rows = Dataset.from_list(TEXTS)
        labelled = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in TEXTS]
        given = {"train_dataset": rows, "processing_class": tokenizer()}
        self.dpo: Any = trl.DPOTrainer(causal(), ref_model=causal(seed=1), args=trl.DPOConfig(**common), **given)
        self.orpo: Any = ORPOTrainer(causal(), args=ORPOConfig(**common), **given)
        self.cpo: Any = CPOTrainer(causal(), args=CPOConfig(loss_type="simpo", cpo_alpha=0.0, **common), **given)
        given["train_dataset"] = Dataset.from_list(labelled)
        self.kto: Any = trl.KTOTrainer(causal(), ref_model=causal(seed=1), args=trl.KTOConfig(**common), **given)
        self.version = trl.__version__

    # DPOTrainer -------------------------------------------------------------------------------------------------------

    def pairs(self, examples: Sequence[Example], **settings: Any) -> Tensor:
        """DPOTrainer's loss of these examples on its model; `aot`, which sorts its batch, one pair at a time."""
        batch = dict(self._dpo(settings).data_collator([dict(each) for each in examples]))
        return self._one_by_one(batch, len(examples), self.dpo.model)

    def pairs_given(self, terms: Mapping[str, Tensor], lengths: Mapping[str, Sequence[int]], **settings: Any) -> Tensor:
        """DPOTrainer's loss where log p of the answers is given, in its dtype: `chosen`, `rejected`, `ref_chosen` and
        `ref_rejected` [P], each spread evenly over its tokens."""
        self._dpo(settings).precompute_ref_logps = True
        chosen, rejected = lengths["chosen"], lengths["rejected"]
        count = len(chosen)
        mask = torch.zeros(2 * count, max(*chosen, *rejected) + 1, dtype=torch.long)
        for row, length in enumerate([*chosen, *rejected]):
            mask[row, 1 : 1 + length] = 1  # behind a prompt of one token
        total = torch.cat([terms["chosen"], terms["rejected"]])
        each = total[:, None] / mask.sum(-1, keepdim=True) * mask[:, 1:]

        def model(input_ids: Tensor, **unused: Any) -> SimpleNamespace:
            zeros, part = torch.zeros_like(each[: len(input_ids)]), each[input_ids[:, 0]]
            return SimpleNamespace(log_probs=part, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

        batch = {
            "input_ids": torch.arange(2 * count)[:, None].expand_as(mask),  # the number of the row
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "ref_chosen_logps": terms["ref_chosen"],
            "ref_rejected_logps": terms["ref_rejected"],
        }
        try:
            return self._one_by_one(batch, count, model)
        finally:
            self.dpo.precompute_ref_logps = False

    def _dpo(self, settings: Mapping[str, Any]) -> Any:
        """The trainer with `loss` (a name or several), `weights`, `beta` and `smoothing`."""
        names = [settings["loss"]] if isinstance(settings["loss"], str) else list(settings["loss"])
        self.dpo.loss_types, self.dpo.loss_weights = names, list(settings.get("weights", [1.0] * len(names)))
        self.dpo.beta, self.dpo.label_smoothing = settings["beta"], settings.get("smoothing", 0.0)
        return self.dpo

    def _one_by_one(self, batch: Mapping[str, Tensor], count: int, model: Any) -> Tensor:
        if self.dpo.loss_types != ["aot"]:
            return self.dpo.compute_loss(model, dict(batch))
        single = [
            {
                name: part[[index]] if len(part) == count else part[[index, count + index]]
                for name, part in batch.items()
            }
            for index in range(count)
        ]
        return torch.stack([self.dpo.compute_loss(model, each) for each in single]).mean()

    # KTOTrainer, ORPOTrainer, CPOTrainer ------------------------------------------------------------------------------

    def labels(self, rows: Sequence[Example], *, beta: float, desirable: float, undesirable: float) -> Tensor:
        """KTOTrainer's loss of rows with prompt_ids, completion_ids, label and mismatched KL_completion_ids."""
        self.kto.beta, self.kto.desirable_weight, self.kto.undesirable_weight = beta, desirable, undesirable
        return self.kto.compute_loss(self.kto.model, self.kto.data_collator([dict(row) for row in rows]))

    def labels_given(
        self,
        terms: Mapping[str, Tensor],
        label: Tensor,
        *,
        beta: float,
        desirable: float,
        undesirable: float,
    ) -> Tensor:
        """KTOTrainer's loss where log p is given: `own` and `mismatched` [M], and `ref_own` and `ref_mismatched`."""
        self.kto.beta, self.kto.desirable_weight, self.kto.undesirable_weight = beta, desirable, undesirable
        each = torch.cat([terms["own"], terms["mismatched"]])[:, None]

        def model(input_ids: Tensor, **unused: Any) -> SimpleNamespace:
            part = each[input_ids[:, 0]]
            zeros = torch.zeros_like(part)
            return SimpleNamespace(log_probs=part, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

        number, mask = torch.arange(len(each))[:, None].expand(-1, 2), torch.tensor([[0, 1]]).expand(len(label), -1)
        batch = {
            "input_ids": number[: len(label)],
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "KL_input_ids": number[len(label) :],
            "KL_attention_mask": torch.ones_like(mask),
            "KL_completion_mask": mask,
            "label": label,
            "ref_logps": terms["ref_own"],
            "ref_KL_logps": terms["ref_mismatched"],
        }
        self.kto.precompute_ref_logps = True
        try:
            return self.kto.compute_loss(model, batch)
        finally:
            self.kto.precompute_ref_logps = False

    def odds(self, examples: Sequence[Example], *, beta: float) -> Tensor:
        """ORPOTrainer's loss."""
        self.orpo.beta = beta
        return self.orpo.compute_loss(self.orpo.model, self.orpo.data_collator(list(map(_labelled, examples))))

    def odds_given(self, chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
        """ORPO's loss of each pair's mean log p per token, in float32."""
        self.orpo.beta = beta
        return -chosen - self.orpo.odds_ratio_loss(chosen, rejected)[0]

    def simple(self, examples: Sequence[Example], *, beta: float, gamma: float) -> Tensor:
        """CPOTrainer's SimPO."""
        self.cpo.beta, self.cpo.simpo_gamma = beta, gamma
        return self.cpo.compute_loss(self.cpo.model, self.cpo.data_collator(list(map(_labelled, examples))))

    def simple_given(self, chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> Tensor:
        """SimPO of each pair's mean log p per token."""
        self.cpo.beta, self.cpo.simpo_gamma = beta, gamma
        return self.cpo.cpo_loss(chosen, rejected)[0]


def _labelled(example: Example) -> dict[str, Any]:
    """As ORPOTrainer's and CPOTrainer's collator wants an example."""
    prompt = list(example["prompt_ids"])
    found: dict[str, Any] = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for side in ("chosen", "rejected"):
        whole = [*prompt, *example[f"{side}_ids"]]
        found[f"{side}_input_ids"], found[f"{side}_attention_mask"] = whole, [1] * len(whole)
        found[f"{side}_labels"] = [-100] * len(prompt) + whole[len(prompt) :]
    return found
