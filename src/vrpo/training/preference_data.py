"""What preference training is given as data: which kind of rows, whether the loss takes them, and how they become
batches.

What deliberately does not live here: what a row must contain (data/formats.py), any loss (losses.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vrpo.data.account import DataReport
from vrpo.data.collate import (
    LabelCollator,
    PreferenceCollator,
    RankingCollator,
    labels_of,
    pairs_of,
    rankings_of,
    with_other_answers,
)
from vrpo.data.formats import Kind, kind_of
from vrpo.data.tokenize import tokenize_preferences, tokenize_ranked, tokenize_unpaired
from vrpo.structures import Labels, Rankings
from vrpo.training.balance import answer_token_counts, token_counts
from vrpo.training.preference_config import VRPOConfig
from vrpo.types import Pairs

Collator = Callable[[list[Mapping[str, Any]]], dict[str, Tensor]]
_IDS: dict[Kind, tuple[str, ...]] = {  # columns of an example's answers
    "pairs": ("chosen_ids", "rejected_ids"),
    "rankings": ("completions_ids",),
    "labels": ("completion_ids",),
}
_ITEM: dict[Kind, str] = {"pairs": "chosen", "labels": "desirable", "rankings": "order"}  # one entry for each
_READ: dict[Kind, Callable[[Mapping[str, Tensor]], Any]] = {
    "pairs": pairs_of,
    "labels": labels_of,
    "rankings": rankings_of,
}
_SAID: dict[Kind, str] = {
    "pairs": "pairs (chosen, rejected)",
    "rankings": "ranked lists (completions)",
    "labels": "single labelled answers (completion, label)",
}
_TAKES: dict[str, dict[Kind, str]] = {  # what the losses are about -> kinds they do not take, and what to do
    "pairs": {"labels": "it compares answers to one prompt: set loss_type to kto, or give pairs or ranked lists"},
    "labels": {"rankings": "it is about answers that are good or bad: give labels, or pairs, which it takes apart"},
    "rankings": {
        "pairs": "it is about the order of a list: give ranked lists; of two answers it is loss_type sigmoid",
        "labels": "it is about the order of a list: give ranked lists, or set loss_type to kto",
    },
}
_REWARDS: dict[Kind, tuple[str, ...]] = {"pairs": ("chosen_reward", "rejected_reward"), "rankings": ("rewards",)}


@dataclass(frozen=True)
class PreferenceData:
    """Rows of one kind, for the losses of a configuration."""

    config: VRPOConfig
    kind: Kind

    def __post_init__(self) -> None:
        names = ", ".join(name for _, name in self.config.losses)
        refused = _TAKES[self.config.structure].get(self.kind)
        if refused is not None:
            raise ValueError(f"loss_type {names} does not take {_SAID[self.kind]}: {refused}")
        self.config.make_recipe(kind=self.structure)  # refuses what is about other rows, before a model is loaded

    @classmethod
    def of(cls, config: VRPOConfig, *datasets: Any) -> "PreferenceData":
        """What these data sets (of text or of token ids, or dicts of them; None: there is none) are.

        Raises:
            ValueError: they are of different kinds, of a kind that the loss does not take, or lack what it needs.
        """
        parts = [part for one in datasets for part in (one.values() if isinstance(one, dict) else [one])]
        columns = [part.column_names for part in parts if part is not None]
        kinds = {_kind_of(each) for each in columns}
        if len(kinds) > 1:
            raise ValueError(f"training and evaluation rows are of one kind, not {' and '.join(sorted(kinds))}")
        data = cls(config, kinds.pop() if kinds else config.structure)
        for each in columns:
            data._check_rewards(each)
        return data

    def _check_rewards(self, columns: list[str]) -> None:
        missing = [name for name in self.reward_columns if name not in columns]
        if self.config.temperature == "reward_scaling" and missing:
            raise ValueError(
                f"temperature=reward_scaling needs rewards, and the rows have no {' and no '.join(missing)}: add the "
                "columns, name a reward_model, or set temperature=constant"
            )

    @property
    def reward_columns(self) -> tuple[str, ...]:
        """Where rows of this kind have rewards."""
        return _REWARDS.get(self.kind, ())

    @cached_property
    def labelled(self) -> bool:
        """Whether the loss is about single answers; pairs are then taken apart."""
        return self.config.structure == "labels"

    @property
    def structure(self) -> Kind:
        """What batches are."""
        return "labels" if self.labelled else self.kind

    @property
    def mismatched(self) -> bool:
        """Whether batches have rows with answers to other prompts."""
        return self.labelled and (self.config.loss_kwargs or {}).get("baseline", "mismatched") == "mismatched"

    @property
    def items_per_example(self) -> int:
        return 2 if self.labelled and self.kind == "pairs" else 1

    @property
    def ids_column(self) -> str:
        return _IDS[self.kind][0]

    @property
    def example_columns(self) -> tuple[str, ...]:
        """What examples of this kind need."""
        return ("prompt_ids", *_IDS[self.kind], *(("label",) if self.kind == "labels" else ()))

    def token_counts(self, examples: Dataset) -> list[int]:
        """Tokens that the model reads of each example."""
        if self.kind == "rankings":
            return answer_token_counts(examples, "prompt_ids", "completions_ids")
        names = [*_IDS[self.kind], *(f"other_{name}" for name in _IDS[self.kind] if self.mismatched)]
        return token_counts(examples, [column for name in names for column in ("prompt_ids", name)])

    def check_baseline(self, processes: int, rows: Any, eval_rows: Any) -> None:
        """
        Raises:
            ValueError: baseline batch_mean, and a batch with a single label, which would be compared with itself.
        """
        if not self.labelled or self.mismatched:
            return
        config = self.config
        parts = [("train", rows, config.dataloader_drop_last)]
        parts += [
            ("eval", part, False) for part in (eval_rows.values() if isinstance(eval_rows, dict) else [eval_rows])
        ]
        for name, part, drops in parts:
            size = getattr(config, f"per_device_{name}_batch_size") * processes
            last = 0 if drops or part is None else len(part) % size
            if 1 in (size * self.items_per_example, last * self.items_per_example):
                raise ValueError(
                    f"kto with baseline batch_mean compares each answer with the mean of its batch, and a batch of "
                    f"{name}_dataset has one label, over all processes: set per_device_{name}_batch_size so that none "
                    "has, or the baseline to mismatched (gradient_accumulation_steps does not help)"
                )

    def read(self, batch: Mapping[str, Tensor]) -> Pairs | Labels | Rankings:
        """The structure of a batch."""
        found: Pairs | Labels | Rankings = _READ[self.structure](batch)
        return found

    def items_in(self, batch: Mapping[str, Tensor]) -> int:
        """How many pairs, lists or labels a batch has."""
        return len(batch[_ITEM[self.structure]])

    def collator(self, pad_id: int) -> Collator:
        if self.labelled:
            return LabelCollator(pad_id, self.mismatched, self.config.max_length)
        return RankingCollator(pad_id) if self.kind == "rankings" else PreferenceCollator(pad_id)

    def tokenized(
        self, rows: Any, tokenizer: PreTrainedTokenizerBase, mask_id: int | None
    ) -> tuple[Dataset, DataReport]:
        """Rows of text as examples of token ids, and what became of them. Rewards of pairs that no temperature
        asks for are not looked at."""
        options: dict[str, Any] = {
            "max_length": self.config.max_length,
            "max_prompt_length": self.config.max_prompt_length,
            "truncation_mode": self.config.truncation_mode,
            "eos_padding": self.config.eos_padding,
            "on_bad_rows": self.config.on_bad_rows,
            "strings_as_chat": self.config.strings_as_chat,
            "mask_id": mask_id,
            "num_proc": self.config.dataset_num_proc,
        }
        if self.kind == "labels":
            return tokenize_unpaired(rows, tokenizer, **options)
        if self.kind == "rankings":
            ties = self.config.structure != "rankings"
            return tokenize_ranked(rows, tokenizer, ties=ties, **options)
        idle = self.reward_columns if self.labelled or self.config.temperature == "constant" else ()
        rows = rows.remove_columns([name for name in idle if name in rows.column_names])
        return tokenize_preferences(rows, tokenizer, **options)

    def completed(self, examples: Dataset) -> Dataset:
        """Examples with what the loss needs beside their own answers.

        Raises:
            ValueError: rewards of lists that the loss cannot use.
        """
        if self.config.structure == "rankings" and "rewards" in examples.column_names:
            _check_order(examples["rewards"])
        if not self.mismatched or f"other_{self.ids_column}" in examples.column_names:
            return examples
        return with_other_answers(examples)


def _kind_of(columns: list[str]) -> Kind:
    known = (kind for kind, names in _IDS.items() if names[0] in columns)
    return next(known, None) or kind_of(columns)


def _check_order(lists: Iterable[Sequence[float]]) -> None:
    """
    Raises:
        ValueError: rewards of answers that are tied or not best first.
    """
    for index, rewards in enumerate(lists):
        if any(better <= worse for better, worse in pairwise(rewards)):
            raise ValueError(
                f"row {index}: field 'rewards' must fall from answer to answer for plackett_luce, and is {rewards}: "
                "put the best answer first, and leave out tied ones"
            )
