"""Examples to a batch: a flat dict of tensors, which transformers.Trainer and accelerate can move, and what the core
reads in it.

Rows are padded on the right, prompt first; a row's content and replay key do not depend on its neighbours. What
deliberately does not live here: any randomness (draws.py), any cutting (tokenize.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from vrpo.draws import draw_key
from vrpo.structures import Labels, Rankings, Rows
from vrpo.types import Pairs, Tokens

Example = Mapping[str, Any]
Row = tuple[Example, Sequence[int], int]  # whose prompt and id, response ids, side
_ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids")  # of an example of a pair, or of a single answer


@dataclass(frozen=True)
class PreferenceCollator:
    """Preference examples to a batch of N = 2P rows: all chosen answers, then all rejected ones.

    `ids` [N, L], `response` [N, L] and `attention` [N, L] Bool, `example_id` [N], `side` [N] (0 chosen, 1 rejected),
    and the row indices `chosen` [P], `rejected` [P]; `weight` [P] and `reward` [N] where the examples have them.
    """

    pad_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        answers = enumerate(("chosen_ids", "rejected_ids"))
        rows = [(example, example[field], side) for side, field in answers for example in examples]
        index = torch.arange(len(examples))
        batch = {"chosen": index, "rejected": index + len(examples), **_numbers("weight", examples)}
        if "chosen_reward" in examples[0]:
            batch["reward"] = _real(
                [example[f"{side}_reward"] for side in ("chosen", "rejected") for example in examples]
            )
        return {**_padded(rows, self.pad_id), **batch}


@dataclass(frozen=True)
class LabelCollator:
    """Labelled answers to a batch: `row` [M] and `desirable` [M]; and, where `mismatched`, as many further rows
    `mismatched` [M], the same prompts with answers to other prompts (`with_other_answers`), else none.

    A pair gives two answers, next to each other: the chosen one is desirable. `side` is 0 and 1 as in
    `PreferenceCollator`, 0 for a single answer, and 2 more for a mismatched one, whose draws are its own.

    Args:
        max_length: tokens of prompt and response; answers to other prompts are cut to what the prompt leaves.
    """

    pad_id: int
    mismatched: bool
    max_length: int | None

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        answers = [(example, *answer) for example in examples for answer in _labelled(example)]
        rows: list[Row] = [(example, example[field], side) for example, field, side, _ in answers]
        if self.mismatched:
            rows += [(example, self._other(example, field), 2 + side) for example, field, side, _ in answers]
        return {
            **_padded(rows, self.pad_id),
            "row": torch.arange(len(answers)),
            "mismatched": torch.arange(len(answers), len(rows)),
            "desirable": torch.tensor([label for *_, label in answers]),
            **_numbers("weight", [example for example, *_ in answers]),
        }

    def _other(self, example: Example, field: str) -> Sequence[int]:
        room = None if self.max_length is None else max(self.max_length - len(example["prompt_ids"]), 0)
        return example[f"other_{field}"][:room]


@dataclass(frozen=True)
class RankingCollator:
    """Ranked examples to a batch: `order` [Q, A], the rows of each list, best first, and -1 behind the last; `weight`
    [Q] and `reward` [N] where the examples have them.

    `side` is an answer's place in the list as it stands in the data, so that its draws do not depend on its rank.
    """

    pad_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        rows: list[Row] = [
            (example, ids, place)
            for example in examples
            for ids, place in zip(example["completions_ids"], example["places"], strict=True)
        ]
        counts = [len(example["completions_ids"]) for example in examples]
        order = torch.full((len(examples), max(counts)), -1)
        for row, (start, count) in enumerate(zip(accumulate(counts, initial=0), counts, strict=False)):
            order[row, :count] = torch.arange(start, start + count)
        batch = {"order": order, **_numbers("weight", examples)}
        if "rewards" in examples[0]:
            batch["reward"] = _real([reward for example in examples for reward in example["rewards"]])
        return {**_padded(rows, self.pad_id), **batch}


@dataclass(frozen=True)
class SFTCollator:
    """Supervised examples to a batch: `ids`, `response`, `attention` [N, L], `example_id`, `side` [N].

    `side` is 0, or the number of the chunk where a text was cut into several, so that chunks have keys of their own.
    """

    pad_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return _padded([(each, each["response_ids"], each.get("chunk", 0)) for each in examples], self.pad_id)


def _labelled(example: Example) -> list[tuple[str, int, bool]]:
    """Field, side and label of each answer of an example."""
    if "chosen_ids" in example:
        return [("chosen_ids", 0, True), ("rejected_ids", 1, False)]
    return [("completion_ids", 0, bool(example["label"]))]


def _numbers(name: str, examples: Sequence[Example]) -> dict[str, Tensor]:
    """A number of each example under its name, if they have one."""
    return {name: _real([example[name] for example in examples])} if name in examples[0] else {}


def _real(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _padded(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """Rows as rectangles, padded on the right.

    Raises:
        ValueError: a row has no response token, so there is nothing to mask.
    """
    longest = max(len(example["prompt_ids"]) + len(response) for example, response, _ in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    response_at, attention = (torch.zeros((len(rows), longest), dtype=torch.bool) for _ in range(2))
    for index, (example, response, side) in enumerate(rows):
        if not len(response):
            name = f"example {example['example_id']}, side {side}"
            raise ValueError(f"{name} has no response token: leave it out (see on_bad_rows)")
        start, end = len(example["prompt_ids"]), len(example["prompt_ids"]) + len(response)
        ids[index, :end] = torch.tensor([*example["prompt_ids"], *response], dtype=torch.int64)
        response_at[index, start:end] = True
        attention[index, :end] = True
    names = {"example_id": [example["example_id"] for example, _, _ in rows], "side": [side for _, _, side in rows]}
    numbers = {name: torch.tensor(values, dtype=torch.int64) for name, values in names.items()}
    return {"ids": ids, "response": response_at, "attention": attention, **numbers}


def tokens_of(batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> Tokens:
    """The rows of a batch with the replay keys hash(seed, example id, side, epoch) (`draws.draw_key`).

    Args:
        epoch: 0 where reference values are cached, so that the same draws come back at every epoch.
    """
    key = draw_key(seed, batch["example_id"], batch["side"], epoch)
    return Tokens(batch["ids"], batch["response"], batch["attention"], key)


def pairs_of(batch: Mapping[str, Tensor]) -> Pairs:
    """Which rows of a batch of `PreferenceCollator` are compared, and the facts about them."""
    length = batch["response"].sum(-1)
    return Pairs(batch["chosen"], batch["rejected"], length, batch.get("weight"), batch.get("reward"))


def labels_of(batch: Mapping[str, Tensor]) -> Labels:
    """The labelled rows of a batch of `LabelCollator`."""
    length = batch["response"].sum(-1)
    return Labels(batch["row"], batch["desirable"], batch["mismatched"], length, batch.get("weight"))


def rankings_of(batch: Mapping[str, Tensor]) -> Rankings:
    """The lists of a batch of `RankingCollator`."""
    return Rankings(batch["order"], batch["response"].sum(-1), batch.get("weight"), batch.get("reward"))


def rows_of(batch: Mapping[str, Tensor]) -> Rows:
    """The rows of a supervised batch, to be imitated."""
    return Rows(batch["response"].sum(-1), batch.get("row"))


_OF_ITEMS = ("chosen", "rejected", "order", "row", "desirable", "mismatched", "weight")
COUNTED = "counted"  # of a batch: how many of its examples count, and how many it has


def with_counted(batch: Mapping[str, Tensor], examples: int, counted: int) -> dict[str, Tensor]:
    """A batch of so many examples of which only the first ones count: the others fill it up (accelerate), so that all
    processes have equally many."""
    return {**batch, COUNTED: torch.tensor([counted, examples])}


def counted(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The batch with nothing said about rows that fill it up. They stay among its rows, as what a process without any
    of its own calls the model on."""
    if COUNTED not in batch:
        return batch
    some, all_of = batch[COUNTED].tolist()
    kept = {name: batch[name][: len(batch[name]) // all_of * some] for name in _OF_ITEMS if name in batch}
    return {**batch, **(kept or {"row": torch.arange(some, device=batch["ids"].device)})}


def with_other_answers(examples: Dataset) -> Dataset:
    """The examples, each with the answers of the next one that has another prompt, as `other_chosen_ids` and so on, for
    a baseline that looks at what the policy says anywhere (`losses.KTO`). After the last one comes the first.

    This is a fact of the data set, not of a batch: the same in every epoch, for any number of processes.

    Raises:
        ValueError: all prompts are the same.
    """
    names = [name for name in _ANSWERS if name in examples.column_names]
    tables = examples.select_columns(["prompt_ids"]).with_format("arrow").iter(batch_size=1000)
    following = _following([digest for table in tables for digest in _digests(table["prompt_ids"].combine_chunks())])
    others = examples.select_columns(names).select(following).rename_columns({name: f"other_{name}" for name in names})
    return concatenate_datasets([examples, others], axis=1)


def _digests(prompts: pa.ListArray) -> list[bytes]:
    """What stands for each prompt: all of them would be a lot of integers."""
    ids, ends = prompts.flatten().to_numpy(), np.cumsum(pc.list_value_length(prompts).to_numpy())
    return [blake2b(prompt.tobytes(), digest_size=16).digest() for prompt in np.split(ids, ends[:-1])]


def _following(prompts: Sequence[bytes]) -> list[int]:
    """The place of the next prompt that is another one, of each. Twice around: the first time sets the values that the
    second time starts from."""
    if len(set(prompts)) < 2:
        raise ValueError(
            "kto compares with answers to other prompts, and all rows have the same prompt. Give more rows, or set "
            "loss_kwargs: {baseline: batch_mean}"
        )
    count = len(prompts)
    following = [0] * count
    for step in reversed(range(2 * count)):
        place, behind = step % count, (step + 1) % count
        following[place] = following[behind] if prompts[behind] == prompts[place] else behind
    return following
