"""Rows to examples: token ids of prompt and answers, with an account of every row that was dropped or cut.

What deliberately does not live here: batches (collate.py), the formats (formats.py), the template's traps (encode.py).
"""

import gc
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, LargeList, List, Value
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
    label_of,
    layout_of,
    numbers_of,
    preference_of,
    ranked_of,
    shown,
    supervised_columns,
    supervised_of,
)
from vrpo.data.unread import check_table
from vrpo.store import write_whole

Example = dict[str, Any]
Making = Generator[list[str], list[list[int]], list[Example]]  # examples of a row; asks for the token ids of texts
Make = Callable[[Mapping[str, Any]], Making]
Reading = tuple[Text, Sequence[Text], Example]  # prompt, answers, and what else an example has
IDS, REAL = List(Value("int32")), Value("float64")
_ARROW_IDS = Features({"ids": IDS}).arrow_schema.field("ids").type
_TOGETHER = 1000  # rows whose texts are encoded in one call


@dataclass(frozen=True)
class Options:
    """How rows become token ids; lengths and padding are those of `encode.Budget`.

    Args:
        on_bad_rows: "drop" drops unusable rows, with one warning that counts them by reason; "error" raises.
        strings_as_chat: take a string prompt as the user's message and string answers as the assistant's; rows that
            hold messages stay as they are.
        mask_id: the model's mask token; None: rows are not searched for it.
        num_proc: processes to tokenise with.
    """

    max_length: int | None = 1024
    max_prompt_length: int | None = None
    truncation_mode: str = "keep_start"
    eos_padding: int | None = None
    on_bad_rows: str = "drop"
    strings_as_chat: bool = False
    mask_id: int | None = None
    num_proc: int | None = None

    def __post_init__(self) -> None:
        if self.on_bad_rows not in ("error", "drop"):
            raise ValueError(f"on_bad_rows must be 'error' or 'drop', not {self.on_bad_rows!r}")

    def encoder(self, tokenizer: PreTrainedTokenizerBase, messages: bool) -> tuple[Encoder, Budget]:
        encoder = encoder_of(tokenizer, chat=self.strings_as_chat or messages)
        limits = (self.max_length, self.max_prompt_length, self.truncation_mode, self.eos_padding)
        return encoder, Budget(*limits, encoder.header)


def tokenize_preferences(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> tuple[Dataset, DataReport]:
    """Preference pairs in TRL's formats to `prompt_ids`, `chosen_ids`, `rejected_ids`, `example_id`, and the numbers
    `chosen_reward`, `rejected_reward`, `weight` of rows that have such columns.

    A dataset with a column `prompt` has explicit prompts, one without has implicit ones (`formats.preference_of`).
    Strings stay raw, messages go through the chat template (`encode.Encoder`). `example_id` is the row's index in its
    source: it survives selection and dropped rows.

    A row is unusable if a field is missing or of the wrong type, if it is no JSON object, if an answer is empty or not
    the assistant's, if the answers are equal (also once rendered, or cut), if its prompt is too long, if the chat
    template refuses it, if its text spells the mask token, or if a reward or weight is missing or not finite, or a
    weight negative.

    Args:
        options: fields of `Options`.

    Raises:
        ValueError: columns are missing, no row is usable, or, on request, a row is not.
    """
    given, numbers = Options(**options), _numbers_of_kind(rows, "pairs", ("chosen", "rejected"))
    explicit, messages = "prompt" in rows.column_names, _holds_messages(rows, "chosen")
    if given.strings_as_chat and not explicit and not messages:
        raise ValueError(
            "strings_as_chat needs a column 'prompt': a string transcript is not one user turn (set it False)"
        )
    features = {"chosen_ids": IDS, "rejected_ids": IDS, **dict.fromkeys(numbers, REAL)}
    return _read_and_tokenized(rows, tokenizer, messages, partial(_pair, explicit, numbers), features, given)


def tokenize_sft(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, chunk: bool = False, **options: Any
) -> tuple[Dataset, DataReport]:
    """Supervised rows in TRL's formats to `prompt_ids`, `response_ids`, `example_id`, `chunk`.

    `prompt` + `completion`, or `messages` (the response is the last one), or `text` (pretraining: no prompt, everything
    is response). The rest is as in `tokenize_preferences`.

    Args:
        chunk: for `text`, cut a row longer than `max_length` into several examples, numbered in `chunk`, rather than
            truncate it; every chunk but the last is full and has no end token.
    """
    given, layout = Options(**options), layout_of(rows.column_names)
    check_table(rows, supervised_columns(rows.column_names), "the rows")
    messages = _holds_messages(rows, layout)
    if chunk and (layout != "text" or given.max_length is None):
        raise ValueError(
            f"chunk=True needs rows of 'text' and a max_length; these have the layout {layout!r} (set it False)"
        )
    if given.strings_as_chat and layout != "completion" and not messages:
        raise ValueError(f"strings_as_chat needs 'prompt' and 'completion'; these rows have the layout {layout!r}")
    features = {"response_ids": IDS, "chunk": Value("int64")}
    if not chunk:
        return _read_and_tokenized(rows, tokenizer, messages, partial(_supervised, layout), features, given)
    encoder, budget = given.encoder(tokenizer, messages)
    return _tokenized(rows, encoder, partial(_chunks, encoder, budget), features, given)


def tokenize_unpaired(rows: Dataset, tokenizer: PreTrainedTokenizerBase, **options: Any) -> tuple[Dataset, DataReport]:
    """Labelled answers (`prompt`, `completion`, `label`; TRL's KTO format) to `prompt_ids`, `completion_ids`, `label`,
    `example_id`, and `weight` if there is one. The rest is as in `tokenize_preferences`."""
    numbers = _numbers_of_kind(rows, "labels", ("prompt", "completion", "label"))
    messages = _holds_messages(rows, "completion")
    features = {"completion_ids": IDS, "label": Value("bool"), **dict.fromkeys(numbers, REAL)}
    return _read_and_tokenized(rows, tokenizer, messages, partial(_labelled, numbers), features, Options(**options))


def tokenize_ranked(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, ties: bool = True, **options: Any
) -> tuple[Dataset, DataReport]:
    """Lists of answers (`prompt`, `completions`, and `rewards` unless they stand best first) to `prompt_ids`,
    `completions_ids` (best first), `places` (of each in the row's list), `example_id`, and `rewards` and `weight` if
    there are any. The rest is as in `tokenize_preferences`.

    Args:
        ties: take rows in which some answers, not all, have the same reward.
    """
    numbers = _numbers_of_kind(rows, "rankings", ("prompt", "completions"))
    rewarded, messages = "rewards" in rows.column_names, _holds_messages(rows, "completions")
    features = {"completions_ids": List(IDS), "places": List(Value("int64")), **dict.fromkeys(numbers, REAL)}
    features |= {"rewards": List(REAL)} if rewarded else {}
    read = partial(_ranking, numbers, rewarded, ties)
    return _read_and_tokenized(rows, tokenizer, messages, read, features, Options(**options))


def number_columns(rows: Dataset, kind: Kind) -> tuple[str, ...]:
    """The columns of numbers that rows of this kind have.

    Raises:
        ValueError: rewards of one answer only.
    """
    found = tuple(name for name in NUMBERS[kind] if name in rows.column_names)
    if ("chosen_reward" in found) != ("rejected_reward" in found):
        raise ValueError(f"rewards go with both answers or none: found {found[0]} alone, add the other or remove it")
    return found


def _numbers_of_kind(rows: Dataset, kind: Kind, needed: tuple[str, ...]) -> tuple[str, ...]:
    missing = [name for name in needed if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"preference rows need the columns {needed}; {missing} missing, found {shown(rows.column_names)}"
        )
    check_table(rows, COLUMNS[kind], "the rows")
    return number_columns(rows, kind)


def _holds_messages(rows: Dataset, column: str) -> bool:
    kind = rows.features[column]
    if column != "completions":
        return not isinstance(kind, Value)
    return isinstance(kind, List | LargeList) and not isinstance(kind.feature, Value)


def _pair(explicit: bool, numbers: Sequence[str], row: Mapping[str, Any]) -> Reading:
    prompt, *answers = preference_of(row, explicit)
    shortened = not explicit and is_shortened(row["chosen"], row["rejected"])
    return prompt, answers, {"prompt_shortened": shortened, **numbers_of(row, numbers)}


def _supervised(layout: Layout, row: Mapping[str, Any]) -> Reading:
    prompt, answer = supervised_of(row, layout)
    return prompt, [answer], {"chunk": 0, **({"prompt_empty": False} if layout == "text" else {})}


def _labelled(numbers: Sequence[str], row: Mapping[str, Any]) -> Reading:
    label = label_of(row)
    prompt, answer = supervised_of(row, "completion")
    return prompt, [answer], {"label": label, **numbers_of(row, numbers)}


def _ranking(numbers: Sequence[str], rewarded: bool, ties: bool, row: Mapping[str, Any]) -> Reading:
    prompt, answers, places, rewards = ranked_of(row, rewarded=rewarded, ties=ties)
    return prompt, answers, {"places": places, **({"rewards": rewards} if rewarded else {}), **numbers_of(row, numbers)}


def _examples(
    encoder: Encoder,
    budget: Budget,
    chat: bool,
    columns: Sequence[str],
    read: Callable[[Mapping[str, Any]], Reading],
    row: Mapping[str, Any],
) -> Making:
    prompt, answers, more = read(row)
    if chat:
        prompt, answers = _as_turn(prompt, "user"), [_as_turn(answer, "assistant") for answer in answers]
    whole, *bare = yield encoder.texts(prompt, answers)
    full = [encoder.closed(prompt, answer, ids) for answer, ids in zip(answers, bare, strict=True)]
    kept = budget.prompt(whole, max(map(len, full)))
    cut = [budget.response(ids, len(kept), encoder.end) for ids in full]
    found: Example = {"prompt_ids": kept}
    found |= {"completions_ids": cut} if "completions_ids" in columns else zip(columns, cut, strict=True)
    shorter = sum(len(after) < len(before) for after, before in zip(cut, full, strict=True))
    account = {"prompt_cut": len(kept) < len(whole), "responses_cut": shorter, "prompt_empty": not has_text(prompt)}
    return [{**found, **account, "prompt_repeated": is_repeated(prompt, answers), **more}]


def _as_turn(text: Text, role: str) -> Text:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _chunks(encoder: Encoder, budget: Budget, row: Mapping[str, Any]) -> Making:
    prompt, text = supervised_of(row, "text")
    _, ids = yield encoder.texts(prompt, [text])
    full, size = encoder.closed(prompt, text, ids), budget.max_length
    assert size is not None
    pieces = [full[start : start + size] for start in range(0, len(full), size)]
    return [
        {"prompt_ids": [], "response_ids": budget.response(ids, 0, encoder.end), "chunk": k}
        for k, ids in enumerate(pieces)
    ]


def _read_and_tokenized(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    messages: bool,
    read: Callable[[Mapping[str, Any]], Reading],
    features: Mapping[str, Any],
    options: Options,
) -> tuple[Dataset, DataReport]:
    encoder, budget = options.encoder(tokenizer, messages)
    columns = [name for name in features if name.endswith("_ids")]
    make = partial(_examples, encoder, budget, options.strings_as_chat, columns, read)
    return _tokenized(rows, encoder, make, features, options)


def _tokenized(
    rows: Dataset, encoder: Encoder, make: Make, features: Mapping[str, Any], options: Options
) -> tuple[Dataset, DataReport]:
    """Map `make` over the rows, account for the unusable ones, and keep the columns, of these types, of the others.

    The table is kept in datasets' cache, named by the rows, `make` and its options, the tokenizer and this code.
    """
    if not len(rows):
        raise ValueError("the dataset has no rows: check the file, the split and any filter")
    check_example_ids(rows)
    every = Features({"prompt_ids": IDS, **features, "example_id": Value("int64"), **ACCOUNT})
    batches = partial(_batch_of_examples, encoder, make, every, options.mask_id)
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
                    features=every,
                    cache_file_name=str(Path(folder) / "made.arrow"),
                    load_from_cache_file=False,
                    new_fingerprint=key,
                    num_proc=options.num_proc,
                    desc="tokenising",
                )
                write_whole(account, partial(write_account, made))
                write_whole(path, partial(write_usable, made))
    report = settled(MemoryMappedTable.from_file(str(account)).table, options.on_bad_rows, RowsWarning)
    return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=key), report


def _batch_of_examples(
    encoder: Encoder,
    make: Make,
    features: Features,
    mask_id: int | None,
    batch: Mapping[str, list[Any]],
    indices: list[int],
) -> pa.Table:
    rows, collecting = list(_rows_of(batch, indices)), gc.isenabled()
    gc.disable()  # nobody looks for garbage among the many objects that rows are on their way
    try:
        made = _made_together(encoder, make, rows)
    finally:
        if collecting:
            gc.enable()
    table, of = _table_of(rows, made, features)
    wrong = {of[place]: fault for place, fault in faults(table, mask_id).items()}
    wrong = {row: fault for row, fault in wrong.items() if not isinstance(made[row], UnusableRow)}
    if wrong:
        table, _ = _table_of(rows, [wrong.get(row, found) for row, found in enumerate(made)], features)
    return table


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
    encoder: Encoder, make: Make, rows: Sequence[Mapping[str, Any]]
) -> list[list[Example] | UnusableRow]:
    """The examples of each row, or why it is unusable; the texts that the rows ask for are encoded in one call."""
    making = [_checked(make, row) for row in rows]
    asked = [_sent(each, None) for each in making]
    ids = iter(encoder.encoded([text for texts in asked if not isinstance(texts, UnusableRow) for text in texts]))
    return [
        texts if isinstance(texts, UnusableRow) else _sent(each, [next(ids) for _ in texts])
        for each, texts in zip(making, asked, strict=True)
    ]


def _sent(making: Making, ids: Any) -> Any:
    """What a row asks for next, or its examples, or why it is unusable."""
    try:
        return making.send(ids)
    except StopIteration as done:
        return done.value
    except UnusableRow as error:
        return error


def _checked(make: Make, row: Mapping[str, Any]) -> Making:
    if row["unusable"] is not None:
        raise UnusableRow(*str(row["unusable"]).partition(": ")[::2])
    return (yield from make(row))


def _rows_of(batch: Mapping[str, list[Any]], indices: list[int]) -> Iterator[dict[str, Any]]:
    """The rows of a batch, with the defaults of a dataset that does not come from `load_rows`."""
    for index, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
        defaults = {"example_id": index, "origin": f"row {index}", "unusable": None}
        yield {**defaults, **dict(zip(batch, values, strict=True))}
