"""Whether the models of a run can read its examples: refused before the first step, not in the middle of the run.

What deliberately does not live here: what a row must contain (data/formats.py), which models go together
(references.py).
"""

from collections.abc import Mapping

import pyarrow.compute as pc
from datasets import Dataset

from vrpo.training.balance import token_counts


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
