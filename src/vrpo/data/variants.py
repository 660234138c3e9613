"""Preference rows that are no pairs to examples: single labelled answers, and ranked lists of answers.

What deliberately does not live here: pairs, and the table of examples with its account (tokenize.py).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from datasets import Dataset, LargeList, List, Value
from transformers import PreTrainedTokenizerBase

from vrpo.data.account import DataReport
from vrpo.data.encode import Budget, Encoder, encoder_of
from vrpo.data.formats import COLUMNS, UnusableRow, check_different, label_of, numbers_of, ranked_of, supervised_of
from vrpo.data.tokenize import (
    IDS,
    Example,
    Making,
    as_chat,
    check_columns,
    fitted,
    holds_messages,
    number_columns,
    tokenized,
)
from vrpo.data.unread import check_table


def tokenize_unpaired(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = 1024,
    max_prompt_length: int | None = None,
    truncation_mode: str = "keep_start",
    eos_padding: int | None = None,
    on_bad_rows: str = "drop",
    strings_as_chat: bool = False,
    mask_id: int | None = None,
    num_proc: int | None = None,
) -> tuple[Dataset, DataReport]:
    """Labelled answers (`prompt`, `completion`, `label`; TRL's KTO format) to `prompt_ids`, `completion_ids`, `label`,
    `example_id`, and `weight` if there is one. The rest is as in `tokenize_preferences`.

    Raises:
        ValueError: columns are missing, no row is usable, or, on request, a row is not.
    """
    check_columns(rows, ("prompt", "completion", "label"))
    check_table(rows, COLUMNS["labels"], "the rows")
    encoder = encoder_of(tokenizer, chat=strings_as_chat or holds_messages(rows, "completion"))
    budget = Budget(max_length, max_prompt_length, truncation_mode, eos_padding, encoder.header)
    numbers = number_columns(rows, "labels")
    make = partial(_labelled_examples, encoder, budget, strings_as_chat, numbers)
    features = {"prompt_ids": IDS, "completion_ids": IDS, "label": Value("bool")}
    features |= dict.fromkeys(numbers, Value("float64"))
    return tokenized(rows, encoder, make, features, on_bad_rows, num_proc, mask_id)


def tokenize_ranked(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    ties: bool = True,
    max_length: int | None = 1024,
    max_prompt_length: int | None = None,
    truncation_mode: str = "keep_start",
    eos_padding: int | None = None,
    on_bad_rows: str = "drop",
    strings_as_chat: bool = False,
    mask_id: int | None = None,
    num_proc: int | None = None,
) -> tuple[Dataset, DataReport]:
    """Lists of answers (`prompt`, `completions`, and `rewards` unless they stand best first) to `prompt_ids`,
    `completions_ids` (best first), `places` (of each in the row's list), `example_id`, and `rewards` and `weight` if
    there are any. The rest is as in `tokenize_preferences`.

    Args:
        ties: take rows in which some answers, not all, have the same reward.

    Raises:
        ValueError: columns are missing, no row is usable, or, on request, a row is not.
    """
    check_columns(rows, ("prompt", "completions"))
    check_table(rows, COLUMNS["rankings"], "the rows")
    encoder = encoder_of(tokenizer, chat=strings_as_chat or _lists_messages(rows))
    budget = Budget(max_length, max_prompt_length, truncation_mode, eos_padding, encoder.header)
    numbers, rewarded = number_columns(rows, "rankings"), "rewards" in rows.column_names
    make = partial(_ranked_examples, encoder, budget, strings_as_chat, numbers, rewarded, ties)
    features = {"prompt_ids": IDS, "completions_ids": List(IDS), "places": List(Value("int64"))}
    features |= {"rewards": List(Value("float64"))} if rewarded else {}
    features |= dict.fromkeys(numbers, Value("float64"))
    return tokenized(rows, encoder, make, features, on_bad_rows, num_proc, mask_id)


def _lists_messages(rows: Dataset) -> bool:
    """Whether `completions` holds lists of messages, not of strings."""
    kind = rows.features["completions"]
    return isinstance(kind, List | LargeList) and not isinstance(kind.feature, Value)


def _labelled_examples(
    encoder: Encoder, budget: Budget, strings_as_chat: bool, numbers: Sequence[str], row: Mapping[str, Any]
) -> Making:
    label = label_of(row)
    prompt, answer = supervised_of(row, "completion")
    if strings_as_chat:
        prompt, answer = as_chat(prompt, answer)
    kept, [cut], account = yield from fitted(encoder, budget, prompt, [answer])
    return [{"prompt_ids": kept, "completion_ids": cut, "label": label, **numbers_of(row, numbers), **account}]


def _ranked_examples(
    encoder: Encoder,
    budget: Budget,
    strings_as_chat: bool,
    numbers: Sequence[str],
    rewarded: bool,
    ties: bool,
    row: Mapping[str, Any],
) -> Making:
    ranked = ranked_of(row, rewarded=rewarded, ties=ties)
    prompt, *answers = (ranked.prompt, *ranked.answers)
    if strings_as_chat:
        prompt, *answers = as_chat(prompt, *answers)
    kept, cut, account = yield from fitted(encoder, budget, prompt, answers)
    try:
        check_different(cut, ranked.rewards)
    except UnusableRow as error:
        raise UnusableRow(error.reason, f"{error.detail}, in max_length={budget.max_length}") from error
    found: Example = {"prompt_ids": kept, "completions_ids": cut, "places": list(ranked.places)}
    found |= {} if ranked.rewards is None else {"rewards": list(ranked.rewards)}
    return [{**found, **numbers_of(row, numbers), **account}]
