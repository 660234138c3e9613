"""Rows to examples: token ids of prompt and response, with an account of every row that was dropped or cut.

What deliberately does not live here: batches (collate.py), the formats (formats.py), the template's traps (encode.py).
"""

import gc
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets.table import MemoryMappedTable
from transformers import PreTrainedTokenizerBase

from vrpo.data.account import ACCOUNT, UNCUT, DataReport, RowsWarning, settled, write_account, write_usable
from vrpo.data.cache import kept, key_of
from vrpo.data.encode import Budget, Encoder, encoder_of
from vrpo.data.faults import check_example_ids, faults
from vrpo.data.formats import (
    COLUMNS,
    NUMBERS,
    Kind,
    Layout,
    Text,
    UnusableRow,
    has_text,
    is_repeated,
    is_shortened,
    layout_of,
    numbers_of,
    preference_of,
    shown,
    supervised_columns,
    supervised_of,
)
from vrpo.data.unread import check_table
from vrpo.store import write_whole

Example = dict[str, Any]
Encoding = Generator[list[str], list[list[int]], Any]  # asks for the token ids of texts; many rows are asked together
Making = Generator[list[str], list[list[int]], list[Example]]  # the examples of a row
IDS = List(Value("int32"))
_ARROW_IDS = Features({"ids": IDS}).arrow_schema.field("ids").type
_TOGETHER = 1000  # rows whose texts are encoded in one call


def tokenize_preferences(
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
    """Preference pairs in TRL's formats to `prompt_ids`, `chosen_ids`, `rejected_ids`, `example_id`, and the numbers
    `chosen_reward`, `rejected_reward`, `weight` of rows that have such columns.

    A dataset with a column `prompt` has explicit prompts, one without has implicit ones (`formats.preference_of`).
    Strings stay raw, messages go through the chat template (`encode.Encoder`); lengths and end-of-text padding are
    those of `encode.Budget`. `example_id` is the row's index in its source: it survives selection and dropped rows.

    A row is unusable if a field is missing or of the wrong type, if it is no JSON object, if an answer is empty or not
    the assistant's, if the answers are equal (also once rendered, or cut), if its prompt is too long, if the chat
    template refuses it, if its text spells the mask token, or if a reward or weight is missing or not finite, or a
    weight negative.

    Args:
        on_bad_rows: "drop" drops unusable rows, with one warning that counts them by reason; "error" raises.
        strings_as_chat: take a string prompt as the user's message and string answers as the assistant's; rows that
            hold messages stay as they are.
        mask_id: the model's mask token; None: rows are not searched for it.
        num_proc: processes to tokenise with.

    Raises:
        ValueError: columns are missing, no row is usable, or, on request, a row is not.
    """
    check_columns(rows, ("chosen", "rejected"))
    check_table(rows, COLUMNS["pairs"], "the rows")
    explicit = "prompt" in rows.column_names
    if strings_as_chat and not explicit and not holds_messages(rows, "chosen"):
        raise ValueError(
            "strings_as_chat needs a column 'prompt': a string transcript is not one user turn (set it False)"
        )
    encoder = encoder_of(tokenizer, chat=strings_as_chat or holds_messages(rows, "chosen"))
    budget = Budget(max_length, max_prompt_length, truncation_mode, eos_padding, encoder.header)
    numbers = number_columns(rows, "pairs")
    make = partial(_preference_examples, encoder, budget, explicit, strings_as_chat, numbers)
    features = {"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS, **dict.fromkeys(numbers, Value("float64"))}
    return tokenized(rows, encoder, make, features, on_bad_rows, num_proc, mask_id)


def tokenize_sft(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = 1024,
    max_prompt_length: int | None = None,
    truncation_mode: str = "keep_start",
    eos_padding: int | None = None,
    on_bad_rows: str = "drop",
    strings_as_chat: bool = False,
    chunk: bool = False,
    mask_id: int | None = None,
    num_proc: int | None = None,
) -> tuple[Dataset, DataReport]:
    """Supervised rows in TRL's formats to `prompt_ids`, `response_ids`, `example_id`, `chunk`.

    `prompt` + `completion`, or `messages` (the response is the last one), or `text` (pretraining: no prompt, everything
    is response). The rest is as in `tokenize_preferences`.

    Args:
        chunk: for `text`, cut a row longer than `max_length` into several examples, numbered in `chunk`, rather than
            truncate it; every chunk but the last is full and has no end token.

    Raises:
        ValueError: columns are missing, no row is usable, or, on request, a row is not.
    """
    layout = layout_of(rows.column_names)
    check_table(rows, supervised_columns(rows.column_names), "the rows")
    if chunk and (layout != "text" or max_length is None):
        raise ValueError(
            f"chunk=True needs rows of 'text' and a max_length; these have the layout {layout!r} (set it False)"
        )
    if strings_as_chat and layout != "completion" and not holds_messages(rows, layout):
        raise ValueError(f"strings_as_chat needs 'prompt' and 'completion'; these rows have the layout {layout!r}")
    encoder = encoder_of(tokenizer, chat=strings_as_chat or holds_messages(rows, layout))
    budget = Budget(max_length, max_prompt_length, truncation_mode, eos_padding, encoder.header)
    make = (
        partial(_chunks, encoder, budget) if chunk else partial(_sft_examples, encoder, budget, layout, strings_as_chat)
    )
    features = {"prompt_ids": IDS, "response_ids": IDS, "chunk": Value("int64")}
    return tokenized(rows, encoder, make, features, on_bad_rows, num_proc, mask_id)


def check_columns(rows: Dataset, needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"preference rows need the columns {needed}; {missing} missing, found {shown(rows.column_names)}"
        )


def number_columns(rows: Dataset, kind: Kind) -> tuple[str, ...]:
    """The columns of numbers that rows of this kind have.

    Raises:
        ValueError: rewards of one answer only.
    """
    found = tuple(name for name in NUMBERS[kind] if name in rows.column_names)
    if ("chosen_reward" in found) != ("rejected_reward" in found):
        raise ValueError(f"rewards go with both answers or none: found {found[0]} alone, add the other or remove it")
    return found


def holds_messages(rows: Dataset, column: str) -> bool:
    return not isinstance(rows.features[column], Value)


def as_chat(prompt: Text, *answers: Text) -> tuple[Text, ...]:
    """Strings as one user turn and assistant turns; messages as they are."""
    roles = ["user", *["assistant"] * len(answers)]
    texts = zip(roles, (prompt, *answers), strict=True)
    return tuple([{"role": role, "content": text}] if isinstance(text, str) else text for role, text in texts)


def _preference_examples(
    encoder: Encoder,
    budget: Budget,
    explicit: bool,
    strings_as_chat: bool,
    numbers: Sequence[str],
    row: Mapping[str, Any],
) -> Making:
    prompt, *answers = preference_of(row, explicit)
    if strings_as_chat:
        prompt, *answers = as_chat(prompt, *answers)
    kept, cut, account = yield from fitted(encoder, budget, prompt, answers)
    if cut[0] == cut[1]:
        raise UnusableRow(
            "equal answers", f"'chosen' and 'rejected' are the same tokens in max_length={budget.max_length}"
        )
    account["prompt_shortened"] = not explicit and is_shortened(row["chosen"], row["rejected"])
    ids = {"prompt_ids": kept, "chosen_ids": cut[0], "rejected_ids": cut[1]}
    return [{**ids, **numbers_of(row, numbers), **account}]


def fitted(encoder: Encoder, budget: Budget, prompt: Text, answers: Sequence[Text]) -> Encoding:
    """Token ids of a prompt and its answers, as cut by the budget, and what was cut."""
    whole, *bare = yield encoder.texts(prompt, answers)
    full = [encoder.closed(prompt, answer, ids) for answer, ids in zip(answers, bare, strict=True)]
    kept = budget.prompt(whole, max(map(len, full)))
    cut = [budget.response(ids, len(kept), encoder.end) for ids in full]
    shorter = sum(len(after) < len(before) for after, before in zip(cut, full, strict=True))
    account = {"prompt_cut": len(kept) < len(whole), "responses_cut": shorter, "prompt_empty": not has_text(prompt)}
    account["prompt_repeated"] = is_repeated(prompt, answers)
    return kept, cut, account


def _sft_examples(
    encoder: Encoder, budget: Budget, layout: Layout, strings_as_chat: bool, row: Mapping[str, Any]
) -> Making:
    prompt, answer = supervised_of(row, layout)
    if strings_as_chat:
        prompt, answer = as_chat(prompt, answer)
    kept, [cut], account = yield from fitted(encoder, budget, prompt, [answer])
    account |= {"prompt_empty": False} if layout == "text" else {}
    return [{"prompt_ids": kept, "response_ids": cut, "chunk": 0, **account}]


def _chunks(encoder: Encoder, budget: Budget, row: Mapping[str, Any]) -> Making:
    prompt, text = supervised_of(row, "text")
    _, ids = yield encoder.texts(prompt, [text])
    full, size = encoder.closed(prompt, text, ids), budget.max_length
    assert size is not None
    pieces = [full[start : start + size] for start in range(0, len(full), size)]
    return [
        {"prompt_ids": [], "response_ids": budget.response(ids, 0, encoder.end), "chunk": k, **UNCUT}
        for k, ids in enumerate(pieces)
    ]


def tokenized(
    rows: Dataset,
    encoder: Encoder,
    make: Callable[[Mapping[str, Any]], Making],
    columns: Mapping[str, Any],
    on_bad_rows: str,
    num_proc: int | None,
    mask_id: int | None,
) -> tuple[Dataset, DataReport]:
    """Map `make` over the rows, account for the unusable ones, and keep the columns, of these types, of the others.

    The table is kept in datasets' cache, named by the rows, `make` and its options, the tokenizer and this code.
    """
    if on_bad_rows not in ("error", "drop"):
        raise ValueError(f"on_bad_rows must be 'error' or 'drop', not {on_bad_rows!r}")
    if not len(rows):
        raise ValueError("the dataset has no rows: check the file, the split and any filter")
    check_example_ids(rows)
    features = Features({**columns, "example_id": Value("int64"), **ACCOUNT})
    batches = partial(_batch_of_examples, encoder, make, features, mask_id)
    key = key_of(rows._fingerprint, batches)
    with kept(key) as path:
        account = path.with_suffix(".account")
        if not path.is_file():
            with TemporaryDirectory(dir=path.parent) as folder:
                made = rows.with_format(None).map(
                    batches,
                    batched=True,
                    batch_size=_TOGETHER,
                    with_indices=True,
                    remove_columns=rows.column_names,
                    features=features,
                    cache_file_name=str(Path(folder) / "made.arrow"),
                    load_from_cache_file=False,
                    new_fingerprint=key,
                    num_proc=num_proc,
                    desc="tokenising",
                )
                write_whole(account, partial(write_account, made))
                write_whole(path, partial(write_usable, made))
    report = settled(MemoryMappedTable.from_file(str(account)).table, on_bad_rows, RowsWarning)
    return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=key), report


def _batch_of_examples(
    encoder: Encoder,
    make: Callable[[Mapping[str, Any]], Making],
    features: Features,
    mask_id: int | None,
    batch: Mapping[str, list[Any]],
    indices: list[int],
) -> pa.Table:
    rows = list(_rows_of(batch, indices))
    with _uncollected():
        made = _made_together(encoder, partial(_checked, make), rows)
    table, of = _table_of(rows, made, features)
    wrong = {of[place]: fault for place, fault in faults(table, mask_id).items()}
    wrong = {row: fault for row, fault in wrong.items() if not isinstance(made[row], UnusableRow)}
    if wrong:
        table, _ = _table_of(rows, [wrong.get(row, found) for row, found in enumerate(made)], features)
    return table


@contextmanager
def _uncollected() -> Iterator[None]:
    """While this holds, nobody looks for garbage among the many objects that rows are on their way."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _table_of(
    rows: Sequence[Mapping[str, Any]], made: Sequence[list[Example] | UnusableRow], features: Features
) -> tuple[pa.Table, list[int]]:
    """The examples of rows, of an unusable one a single example that says why; and the place of each one's row."""
    blank: Example = {name: [] if isinstance(kind, List) else None for name, kind in features.items()}
    blank |= UNCUT
    examples, of = [], []
    for place, (row, found) in enumerate(zip(rows, made, strict=True)):
        known = {"example_id": row["example_id"], "origin": str(row["origin"])}
        if isinstance(found, UnusableRow):
            found = [{"reason": found.reason, "detail": found.detail}]
        examples += [{**blank, **known, **example} for example in found]
        of += [place] * len(found)
    schema = features.arrow_schema
    columns = [_column([example[column.name] for example in examples], column.type) for column in schema]
    return pa.Table.from_arrays(columns, schema=schema), of


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values as Arrow has them; lists of token ids all at once, and not number by number."""
    if kind != _ARROW_IDS:
        return pa.array(values, kind)
    bounds = np.append(0, np.cumsum([len(ids) for ids in values], dtype=np.int32)).astype(np.int32)
    return pa.ListArray.from_arrays(bounds, np.fromiter(chain.from_iterable(values), np.int32, bounds[-1]), type=kind)


def _made_together(
    encoder: Encoder, make: Callable[[Mapping[str, Any]], Making], rows: Sequence[Mapping[str, Any]]
) -> list[list[Example] | UnusableRow]:
    """The examples of each row, or why it is unusable; the texts that the rows ask for are encoded in one call."""
    making = [make(row) for row in rows]
    found: dict[int, list[Example] | UnusableRow] = {}
    given: dict[int, list[list[int]] | None] = dict.fromkeys(range(len(rows)))
    while given:
        asked: dict[int, list[str]] = {}
        for place, ids in given.items():
            try:
                asked[place] = making[place].send(ids)  # type: ignore[arg-type]  # None, to begin with
            except StopIteration as done:
                found[place] = done.value
            except UnusableRow as error:
                found[place] = error
        ids_of = iter(encoder.encoded([text for texts in asked.values() for text in texts]))
        given = {place: [next(ids_of) for _ in texts] for place, texts in asked.items()}
    return [found[place] for place in range(len(rows))]


def _checked(make: Callable[[Mapping[str, Any]], Making], row: Mapping[str, Any]) -> Making:
    if row["unusable"] is not None:
        raise UnusableRow(*str(row["unusable"]).partition(": ")[::2])
    return (yield from make(row))


def _rows_of(batch: Mapping[str, list[Any]], indices: list[int]) -> Iterator[dict[str, Any]]:
    """The rows of a batch, with the defaults of a dataset that does not come from `load_rows`."""
    for index, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
        defaults = {"example_id": index, "origin": f"row {index}", "unusable": None}
        yield {**defaults, **dict(zip(batch, values, strict=True))}
