"""The only place that adapts a transformers module to a diffusion language model.

The adaptation is a forward: corrupt, run the backbone in both directions, apply the head where something is scored. It
happens inside the module's own forward, so every wrapper (DDP, FSDP, DeepSpeed, peft) sees ordinary calls.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vrpo.models.head import logits_of, target_logp


class MaskedDiffusion:
    """Mixin that turns a causal-LM class of transformers into a masked diffusion model; put it first among the bases.

    The class it is mixed into supplies `model` (backbone), `lm_head` and a config with `mask_token_id` and
    `is_causal = False`.
    """

    config: Any
    model: Any
    lm_head: Any

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
        scored: Bool[Tensor, "B L"],
        output: Literal["logp", "logits"] = "logp",
        **unused: Any,
    ) -> Float[Tensor, " S"] | Float[Tensor, "S V"]:
        """Log-probabilities of `input_ids` (or logits) at the `scored` positions, the `masked` ones being hidden.

        Only hidden states at scored positions reach the head, a chunk of them at a time (models/head.py): memory does
        not depend on the vocabulary times the length. At least float32. `unused` takes the None arguments that peft's
        task wrappers pass along.
        """
        given = [name for name, value in unused.items() if value is not None]
        if given:
            raise TypeError(f"a masked diffusion model takes no {', '.join(given)}")
        corrupted = torch.where(masked, self.config.mask_token_id, input_ids)
        hidden = self.model(input_ids=corrupted, attention_mask=attention_mask, use_cache=False).last_hidden_state
        if output == "logits":
            return logits_of(self.lm_head, hidden[scored])
        return target_logp(self.lm_head, hidden[scored], input_ids[scored])


@dataclass(frozen=True)
class HFDenoiser:
    """A loaded diffusion language model: the module, its tokenizer and its special tokens. What `vrpo.load` returns.

    Callable as `types.Denoiser`; `logits` is what decoding needs. `module` is a transformers PreTrainedModel, or a peft
    wrapper of one.
    """

    module: Any  # a PreTrainedModel of ours, or a wrapper of one
    tokenizer: PreTrainedTokenizerBase | None
    mask_id: int
    eos_id: int
    pad_id: int
    eot_id: int | None

    def __call__(
        self,
        *,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
        scored: Bool[Tensor, "B L"],
    ) -> Float[Tensor, " S"]:
        return self.module(input_ids=input_ids, attention_mask=attention_mask, masked=masked, scored=scored)

    def logits(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        wanted: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "S V"]:
        """Logits at the wanted positions, row-major, of ids that may contain the mask token."""
        return self.module(
            input_ids=input_ids,
            attention_mask=attention_mask,
            masked=torch.zeros_like(wanted),
            scored=wanted,
            output="logits",
        )

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def merged(self) -> "HFDenoiser":
        """The denoiser with its adapter merged into the weights; the adapter is used up.

        Raises:
            ValueError: there is no adapter.
        """
        if not isinstance(self.module, PeftModel):
            raise ValueError("there is no adapter to merge")
        return dataclasses.replace(self, module=self.module.merge_and_unload())

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write weights (official names), config.json (official fields) and the tokenizer; an adapter if peft."""
        self.module.save_pretrained(str(folder), **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(folder))
