"""Examples to a batch: a flat dict of tensors, which transformers.Trainer and accelerate can move, and what the core
reads in it.

Rows are padded on the right, prompt first; a row's content and replay key do not depend on its neighbours. What
deliberately does not live here: any randomness (draws.py), any cutting (tokenize.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vrpo.draws import draw_key
from vrpo.structures import Labels, Rankings, Rows
from vrpo.types import Pairs, Tokens

Row = tuple[Sequence[int], Sequence[int], int, int]  # prompt ids, response ids, example id, side


@dataclass(frozen=True)
class PreferenceCollator:
    """Preference examples to a batch of N = 2P rows: all chosen answers, then all rejected ones.

    `ids` [N, L], `response` [N, L] and `attention` [N, L] Bool, `example_id` [N], `side` [N] (0 chosen, 1 rejected),
    and the row indices `chosen` [P], `rejected` [P]; `weight` [P] and `reward` [N] where the examples have them.
    """

    pad_id: int

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        rows = [
            (example["prompt_ids"], example[field], example["example_id"], side)
            for side, field in enumerate(("chosen_ids", "rejected_ids"))
            for example in examples
        ]
        index = torch.arange(len(examples))
        batch = {"chosen": index, "rejected": index + len(examples), **_numbers("weight", examples)}
        if "chosen_reward" in examples[0]:
            sides = [_numbers(f"{side}_reward", examples)[f"{side}_reward"] for side in ("chosen", "rejected")]
            batch["reward"] = torch.cat(sides)
        return {**_padded(rows, self.pad_id), **batch}


@dataclass(frozen=True)
class LabelCollator:
    """Labelled answers to a batch: `row` [M] and `desirable` [M]; and, where `mismatched`, as many further rows
    `mismatched` [M], the same prompts with answers to other prompts (`mismatched.with_other_answers`), else none.

    A pair gives two answers, next to each other: the chosen one is desirable. `side` is 0 and 1 as in
    `PreferenceCollator`, 0 for a single answer, and 2 more for a mismatched one, whose draws are its own.

    Args:
        max_length: tokens of prompt and response; answers to other prompts are cut to what the prompt leaves.
    """

    pad_id: int
    mismatched: bool
    max_length: int | None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        answers = [(example, *answer) for example in examples for answer in _labelled(example)]
        rows: list[Row] = [
            (example["prompt_ids"], example[field], example["example_id"], side) for example, field, side, _ in answers
        ]
        if self.mismatched:
            rows += [
                (example["prompt_ids"], self._cut(example, f"other_{field}"), example["example_id"], 2 + side)
                for example, field, side, _ in answers
            ]
        row = torch.arange(len(answers))
        batch = {"row": row, "mismatched": torch.arange(len(answers), len(rows))}
        batch["desirable"] = torch.tensor([label for *_, label in answers])
        weight = _numbers("weight", [example for example, *_ in answers])
        return {**_padded(rows, self.pad_id), **batch, **weight}

    def _cut(self, example: Mapping[str, Any], field: str) -> Sequence[int]:
        room = None if self.max_length is None else max(self.max_length - len(example["prompt_ids"]), 0)
        return example[field][:room]


@dataclass(frozen=True)
class RankingCollator:
    """Ranked examples to a batch: `order` [Q, A], the rows of each list, best first, and -1 behind the last; `weight`
    [Q] and `reward` [N] where the examples have them.

    `side` is an answer's place in the list as it stands in the data, so that its draws do not depend on its rank.
    """

    pad_id: int

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        rows: list[Row] = [
            (example["prompt_ids"], ids, example["example_id"], place)
            for example in examples
            for ids, place in zip(example["completions_ids"], example["places"], strict=True)
        ]
        counts = [len(example["completions_ids"]) for example in examples]
        order = torch.full((len(examples), max(counts)), -1)
        for row, (start, count) in enumerate(zip(accumulate(counts, initial=0), counts, strict=False)):
            order[row, :count] = torch.arange(start, start + count)
        batch = {"order": order, **_numbers("weight", examples)}
        if "rewards" in examples[0]:
            rewards = [reward for example in examples for reward in example["rewards"]]
            batch["reward"] = torch.tensor(rewards, dtype=torch.float64)
        return {**_padded(rows, self.pad_id), **batch}


def _labelled(example: Mapping[str, Any]) -> list[tuple[str, int, bool]]:
    """Field, side and label of each answer of an example."""
    if "chosen_ids" in example:
        return [("chosen_ids", 0, True), ("rejected_ids", 1, False)]
    return [("completion_ids", 0, bool(example["label"]))]


def _numbers(name: str, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """A number of each example under its name, if they have one."""
    if name not in examples[0]:
        return {}
    return {name: torch.tensor([example[name] for example in examples], dtype=torch.float64)}


@dataclass(frozen=True)
class SFTCollator:
    """Supervised examples to a batch: `ids`, `response`, `attention` [N, L], `example_id`, `side` [N].

    `side` is 0, or the number of the chunk where a text was cut into several, so that chunks have keys of their own.
    """

    pad_id: int

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        rows = [
            (
                example["prompt_ids"],
                example["response_ids"],
                example["example_id"],
                example.get("chunk", 0),
            )
            for example in examples
        ]
        return _padded(rows, self.pad_id)


def _padded(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """Rows as rectangles, padded on the right.

    Raises:
        ValueError: a row has no response token, so there is nothing to mask.
    """
    longest = max(len(prompt) + len(response) for prompt, response, _, _ in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    response_at = torch.zeros((len(rows), longest), dtype=torch.bool)
    attention = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, (prompt, response, example_id, side) in enumerate(rows):
        if not len(response):
            raise ValueError(f"example {example_id}, side {side} has no response token: leave it out (see on_bad_rows)")
        end = len(prompt) + len(response)
        ids[index, :end] = torch.tensor([*prompt, *response], dtype=torch.int64)
        response_at[index, len(prompt) : end] = True
        attention[index, :end] = True
    names = {"example_id": [row[2] for row in rows], "side": [row[3] for row in rows]}
    numbers = {name: torch.tensor(values, dtype=torch.int64) for name, values in names.items()}
    return {"ids": ids, "response": response_at, "attention": attention, **numbers}


def tokens_of(batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> Tokens:
    """The rows of a batch with the replay keys hash(seed, example id, side, epoch) (`draws.draw_key`).

    Args:
        epoch: 0 where reference values are cached, so that the same draws come back at every epoch.
    """
    key = draw_key(seed, batch["example_id"], batch["side"], epoch)
    return Tokens(batch["ids"], batch["response"], batch["attention"], key)


def structure_of(batch: Mapping[str, Tensor]) -> Pairs | Labels | Rankings:
    """What a preference batch says about its rows: which are compared, ranked or labelled, and the facts about them."""
    if "desirable" in batch:
        length = batch["response"].sum(-1)
        return Labels(batch["row"], batch["desirable"], batch["mismatched"], length, batch.get("weight"))
    if "order" in batch:
        return Rankings(batch["order"], batch["response"].sum(-1), batch.get("weight"), batch.get("reward"))
    return pairs_of(batch)


def pairs_of(batch: Mapping[str, Tensor]) -> Pairs:
    """Which rows of a batch are compared, with the pairs' weights and the answers' rewards if they have any."""
    length = batch["response"].sum(-1)
    return Pairs(batch["chosen"], batch["rejected"], length, batch.get("weight"), batch.get("reward"))


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
