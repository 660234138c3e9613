"""What preference training is given as data: which kind of rows, whether the loss takes them, and how they become
batches.

What deliberately does not live here: what a row must contain (data/formats.py), any loss (losses.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vrpo.data.collate import LabelCollator, PreferenceCollator
from vrpo.data.formats import Kind
from vrpo.data.mismatched import with_other_answers
from vrpo.data.tokenize import tokenize_preferences
from vrpo.training.preference_config import VRPOConfig

Collator = Callable[[list[Mapping[str, Any]]], dict[str, Tensor]]


@dataclass(frozen=True)
class PreferenceData:
    """Rows of one kind, for the losses of a configuration."""

    config: VRPOConfig
    kind: Kind

    @property
    def labelled(self) -> bool:
        """Whether the loss is about single answers; pairs are then taken apart."""
        return self.config.structure == "labels"

    @property
    def structure(self) -> str:
        """What batches are: pairs, rankings or labels."""
        return "labels" if self.labelled else self.kind

    @property
    def mismatched(self) -> bool:
        """Whether batches have rows with answers to other prompts."""
        return self.labelled and self.config.kto_baseline == "mismatched"

    @property
    def items_per_example(self) -> int:
        return 2 if self.labelled and self.kind == "pairs" else 1

    @property
    def ids_column(self) -> str:
        return _IDS[self.kind][0]

    @property
    def token_columns(self) -> tuple[str, ...]:
        names = [*_IDS[self.kind], *(f"other_{name}" for name in _IDS[self.kind] if self.mismatched)]
        return tuple(column for name in names for column in ("prompt_ids", name))

    def collator(self, pad_id: int) -> Collator:
        if self.labelled:
            return LabelCollator(pad_id, self.mismatched, self.config.max_length)
        return PreferenceCollator(pad_id)

    def tokenized(self, rows: Any, tokenizer: PreTrainedTokenizerBase, mask_id: int) -> Dataset:
        """Rows of text as examples of token ids."""
        examples, _ = tokenize_preferences(
            rows,
            tokenizer,
            max_length=self.config.max_length,
            max_prompt_length=self.config.max_prompt_length,
            truncation_mode=self.config.truncation_mode,
            eos_padding=self.config.eos_padding,
            on_bad_rows=self.config.on_bad_rows,
            strings_as_chat=self.config.strings_as_chat,
            mask_id=mask_id,
        )
        return examples

    def completed(self, examples: Dataset) -> Dataset:
        """Examples with what the loss needs beside their own answers."""
        if not self.mismatched or f"other_{self.ids_column}" in examples.column_names:
            return examples
        return with_other_answers(examples)


_IDS: dict[Kind, tuple[str, ...]] = {
    "pairs": ("chosen_ids", "rejected_ids"),
    "labels": ("completion_ids",),
}
