"""Answers to other prompts, for a baseline that looks at what the policy says anywhere (`losses.KTO`).

Which one stands beside which prompt is a fact of the data set, not of a batch: it is the same in every epoch, for any
batch size and any number of processes.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids")  # of an example of a pair, or of a single answer


def with_other_answers(examples: Dataset) -> Dataset:
    """The examples, each with the answers of the next one that has another prompt, as `other_chosen_ids` and so on.
    After the last one comes the first.

    Raises:
        ValueError: all prompts are the same.
    """
    names = [name for name in ANSWERS if name in examples.column_names]
    tables = examples.select_columns(["prompt_ids"]).with_format("arrow").iter(batch_size=1000)
    following = _following([digest for table in tables for digest in _digests(table["prompt_ids"].combine_chunks())])
    others = examples.select_columns(names).select(following).rename_columns({name: f"other_{name}" for name in names})
    return concatenate_datasets([examples, others], axis=1)


def _digests(prompts: pa.ListArray) -> list[bytes]:
    """What stands for each prompt: all of them would be a lot of integers."""
    ids, ends = prompts.flatten().to_numpy(), np.cumsum(pc.list_value_length(prompts).to_numpy())
    return [blake2b(prompt.tobytes(), digest_size=16).digest() for prompt in np.split(ids, ends[:-1])]


def _following(prompts: Sequence[bytes]) -> list[int]:
    """The place of the next prompt that is another one, of each.

    Twice around: the first time sets the values that the second time starts from.
    """
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
