"""Whether the models of a run can read its examples: refused before the first step, not in the middle of the run. This
is the door that examples come through, whether they were tokenised here or given as token ids.

What deliberately does not live here: what a row must contain (data/formats.py), which models go together
(references.py).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, List, Value
from transformers import PreTrainedTokenizerBase

from vrpo.data.account import without
from vrpo.data.faults import ANSWERS, KNOWN, check_types, faults_of, notes_of, rows_where
from vrpo.data.tokenize import number_columns
from vrpo.data.unread import Carried, warn_of
from vrpo.models.hf import HFDenoiser
from vrpo.training.balance import answer_token_counts, token_counts
from vrpo.training.config import DiffusionConfig
from vrpo.training.given import check_dataset


def examples_of(
    dataset: Any,
    needed: Sequence[str],
    denoiser: HFDenoiser,
    args: DiffusionConfig,
    tokenize: Callable[[Dataset, PreTrainedTokenizerBase], Dataset],
) -> Dataset:
    """Examples that the model can read, of rows of text or of token ids.

    Args:
        needed: columns of examples of this kind, the prompt's and an answer's first.
        tokenize: rows of text as examples.
    """
    check_dataset(dataset, "dataset")
    if needed[1] in dataset.column_names:
        examples = given_examples(dataset, needed, denoiser.mask_id, args.on_bad_rows)
    elif denoiser.tokenizer is None:
        raise ValueError(
            "the model has no tokenizer: put its tokenizer.json beside the weights (in Python: or pass "
            "processing_class, or rows of token ids)"
        )
    else:
        examples = tokenize(dataset, denoiser.tokenizer)
    check_readable(examples, denoiser, args.max_length)
    return examples


def given_examples(examples: Dataset, needed: Sequence[str], mask_id: int | None, on_bad_rows: str) -> Dataset:
    """Examples that come as token ids, held to what is asked of text: `on_bad_rows` drops and counts those of which an
    answer is empty or spells the mask token, and so on. An example without an `example_id` is named by its place, one
    of a list without `places` has its answers where they stand.

    Args:
        needed: columns that examples of this kind have.

    Raises:
        ValueError: a column is missing or of the wrong type, no example is usable, or, on request, one is not.
    """
    missing = [name for name in needed if name not in examples.column_names]
    if missing:
        raise ValueError(
            f"examples of token ids need the columns {list(needed)}: {missing} missing, found {examples.column_names}"
        )
    if not len(examples):
        raise ValueError("the dataset has no rows: check the file, the split and any filter")
    for column in examples.data.schema:
        if column.type == pa.list_(pa.null()):  # nothing but empty lists, of which no type is known
            examples = examples.cast_column(column.name, List(Value("int64")))
    check_types(examples)
    number_columns(examples, "pairs")
    unread = Counter({name: len(examples) for name in examples.column_names if name not in KNOWN})
    warn_of(Carried(unread).unread(()), "the rows of token ids")
    if "example_id" not in examples.column_names:
        examples = examples.add_column("example_id", list(range(len(examples))))
    if "completions_ids" in examples.column_names and "places" not in examples.column_names:
        counts = examples.select_columns(["completions_ids"]).with_format("arrow")[:]["completions_ids"]
        places = [list(range(count or 0)) for count in pc.list_value_length(counts).to_pylist()]
        examples = examples.add_column("places", places)
    repeated, notes = notes_of(examples)
    return without(examples, repeated | faults_of(examples, mask_id), notes, on_bad_rows)


def check_readable(examples: Dataset, denoiser: HFDenoiser, max_length: int | None) -> None:
    """
    Raises:
        ValueError: an example has a token id that the model's vocabulary has not, or is longer than `max_length` or
            than what the model was made for.
    """
    _check_ids(examples, denoiser)
    config = denoiser.module.config
    context = getattr(config, "max_position_embeddings", None)  # some causal models have no such limit
    limits = {"max_length": max_length, "config.json: max_position_embeddings": context}
    names = [name for name in ANSWERS if name in examples.column_names]
    counts = [
        answer_token_counts(examples, "prompt_ids", name, longest=True)
        if name == "completions_ids"
        else token_counts(examples, ["prompt_ids", name])
        for name in names
    ]
    longest = list(map(max, *counts)) if len(counts) > 1 else counts[0]
    row = max(range(len(longest)), key=longest.__getitem__)
    for name, limit in limits.items():
        if limit is not None and longest[row] > limit:
            raise ValueError(
                f"example {examples[row]['example_id']} has {longest[row]} tokens of prompt and answer, and {name} is "
                f"{limit}: cut the token ids, or give text, which is cut to max_length"
            )


def _check_ids(examples: Dataset, denoiser: HFDenoiser) -> None:
    known = denoiser.module.config.vocab_size
    if denoiser.tokenizer is not None:  # the rows of a vocabulary are rounded up
        known = min(known, max(denoiser.tokenizer.get_vocab().values()) + 1)
    names = [name for name in examples.column_names if name.endswith("_ids")]
    start = 0
    for table in examples.select_columns(names).with_format("arrow").iter(batch_size=1000):
        for name in names:
            extremes = pc.min_max(pc.list_flatten(table[name], recursive=True)).values()
            for wrong in (each.as_py() for each in extremes):
                if wrong is not None and not 0 <= wrong < known:
                    row = start + rows_where(table[name], partial(pc.equal, wrong))[0]
                    raise ValueError(
                        f"row {row}: {name} has the token id {wrong}, and the model knows 0 to {known - 1}: tokenise "
                        "the rows with the model's own tokenizer"
                    )
        start += len(table)


def check_prompts(examples: Dataset) -> None:
    """
    Raises:
        ValueError: a prompt is empty, so that nothing stands before the first token of its answer.
    """
    lengths = token_counts(examples, ["prompt_ids"])
    if 0 in lengths:
        raise ValueError(
            f"example {examples[lengths.index(0)]['example_id']} has an empty prompt: nothing stands before the first "
            "token of its answer, of which a causal language model then says nothing. Begin the prompt with a token, "
            "such as the one that begins a text, or leave the row out"
        )


def check_known(examples: Dataset, unknown: Mapping[int, str]) -> None:
    """
    Args:
        unknown: tokens, by number, that the policy has and a reference has not.

    Raises:
        ValueError: an example has one of them, of which the reference would look up whatever has its number.
    """
    names = [name for name in examples.column_names if name.endswith("_ids")] if unknown else []
    for name in names:
        for table in examples.select_columns([name]).with_format("arrow").iter(batch_size=1000):
            used = set(pc.unique(pc.list_flatten(table[name], recursive=True)).to_pylist()) & unknown.keys()
            if used:
                raise ValueError(
                    f"{name.removesuffix('_ids')} of some rows has the token {unknown[min(used)]!r}, which a reference "
                    "does not know: leave it out of the rows and of the chat template, or take another reference"
                )
