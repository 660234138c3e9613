"""TRL's dataset formats: from a row to a prompt and its answers, as strings or as chat messages.

What deliberately does not live here: files (sources.py, json_rows.py), tokens and chat templates (encode.py).
"""

import math
import re
import unicodedata
from bisect import bisect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vrpo.data.messages import Message, UnusableRow, as_messages, check_messages, kind_of_turns

Text = str | list[Message]
Layout = Literal["completion", "messages", "text"]
Kind = Literal["pairs", "rankings", "labels"]  # of preference rows

FIELDS = ("prompt", "chosen", "rejected", "completion", "messages", "text")
NUMBERS: dict[Kind, tuple[str, ...]] = {  # columns that rows of a kind may have, one number in each row
    "pairs": ("chosen_reward", "rejected_reward", "weight"),
    "rankings": ("weight",),
    "labels": ("weight",),
}
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "pairs": ("prompt", "chosen", "rejected", *NUMBERS["pairs"]),
    "rankings": ("prompt", "completions", "rewards", *NUMBERS["rankings"]),
    "labels": ("prompt", "completion", "label", *NUMBERS["labels"]),
}
ASSISTANT = "\n\nAssistant:"  # where the assistant's turn begins in a transcript that is a string
LISTS = ("completions", "rewards")  # columns that hold several values in each row
SURE = 4  # words, signs or tokens of a prompt that answers do not begin with by chance
_PIECES = re.compile(r"\w+|[^\w\s]")
READ = tuple(dict.fromkeys((*FIELDS, *(name for names in COLUMNS.values() for name in names))))


_OURS = ("origin", "example_id", "unusable")  # columns that a table of rows has of us (sources.py)


def shown(columns: Sequence[str]) -> list[str]:
    """Columns as their owner knows them."""
    return sorted(name for name in columns if name not in _OURS)


def kind_of(columns: Sequence[str]) -> Kind:
    """Which kind of preference rows has these columns: `chosen` pairs; else `completions` ranked lists; else
    `completion` and `label` labelled answers.

    Raises:
        ValueError: none of them is there.
    """
    if "chosen" in columns:
        return "pairs"
    if "completions" in columns:
        return "rankings"
    if "completion" in columns and "label" in columns:
        return "labels"
    raise ValueError(
        "preference rows need the columns prompt, chosen and rejected (pairs), or prompt and completions (lists, best "
        f"first or with rewards), or prompt, completion and label (single answers); found {shown(columns)}"
    )


def preference_columns(present: Sequence[str]) -> list[str]:
    """The columns, of those that are there, which rows of their kind are read from. The others may hold anything."""
    return [name for name in COLUMNS[kind_of(present)] if name in present]


def readable_columns(present: Sequence[str]) -> list[str]:
    """The columns, of those that are there, which rows of any kind are read from."""
    return [name for name in READ if name in present]


def preference_of(row: Mapping[str, Any], explicit: bool) -> tuple[Text, Text, Text]:
    """Prompt, chosen and rejected answer of a preference row.

    With an explicit prompt the three fields are taken as they are. With an implicit one, `chosen` and `rejected` are
    full transcripts and the prompt is what both begin with (`split_transcripts`), also where a `prompt` string stands
    beside message lists that repeat it (UltraFeedback-binarized): TRL's rule.

    Raises:
        UnusableRow: a field is missing or has the wrong type, an answer is empty, is not the assistant's or repeats the
            prompt, the answers are equal, or the prompt is not the one that the transcripts begin with.
    """
    chosen, rejected = text_field(row, "chosen"), text_field(row, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UnusableRow("wrong type", "fields 'chosen' and 'rejected' must both be strings or both be messages")
    if chosen == rejected:
        raise UnusableRow("equal answers", "fields 'chosen' and 'rejected' are the same")
    prompt = text_field(row, "prompt") if explicit else None
    if prompt is None or (isinstance(prompt, str) and not isinstance(chosen, str)):
        given = prompt
        prompt, chosen, rejected = split_transcripts(chosen, rejected)
        _check_transcripts(given, prompt, chosen, rejected)
    check_pair_of(prompt, chosen, "chosen")
    check_pair_of(prompt, rejected, "rejected")
    check_not_repeated(prompt, chosen, rejected)
    return prompt, chosen, rejected


def _check_transcripts(given: str | None, prompt: Text, chosen: Text, rejected: Text) -> None:
    """Raise `UnusableRow` where the prompt of two transcripts is another than the one given beside them, or where the
    answers go on to the next turn of the human, as messages may not either."""
    if isinstance(prompt, str):
        if prompt.endswith(ASSISTANT) and any("\n\nHuman:" in str(answer) for answer in (chosen, rejected)):
            raise UnusableRow("not an assistant turn", "the transcripts differ before the human's last turn")
    elif given is not None and not prompt:
        raise UnusableRow(
            "wrong type", "field 'prompt' is a string and the answers are messages without it: make it messages, too"
        )
    elif given is not None and not any(given.strip() in message["content"] for message in prompt):
        raise UnusableRow("two prompts", "field 'prompt' is in no message that 'chosen' and 'rejected' share")


def check_not_repeated(prompt: Text, *answers: Text) -> None:
    """Raise `UnusableRow` where strings are given whole, the prompt included: it would be trained as response. Answers
    may happen to begin with what a short prompt says ("Hello!"), of which the whole table tells (account.py)."""
    if is_repeated(prompt, answers) and len(_PIECES.findall(str(prompt))) >= SURE:
        raise UnusableRow("repeated prompt", "every answer begins with the prompt, which is no part of an answer")


def is_repeated(prompt: Text, answers: Sequence[Text]) -> bool:
    """Whether every answer begins with the prompt; messages have been looked at."""
    asked = prompt.strip() if isinstance(prompt, str) else ""
    return bool(asked) and all(_begins(str(answer).lstrip(), asked) for answer in answers)


def _begins(text: str, beginning: str) -> bool:
    """Whether a text begins with this one, as whole words, and goes on."""
    rest = text.removeprefix(beginning)
    joined = beginning[-1:].isalnum() and rest[:1].isalnum()
    return text.startswith(beginning) and bool(rest.strip()) and not joined


def split_transcripts(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """What two transcripts ask, and what each answers.

    Of messages the prompt is the common leading ones (TRL's rule), less one should a transcript be the beginning of the
    other. Strings are asked up to the last "\\n\\nAssistant:" that they share (HH-RLHF). Without that mark they are
    asked up to the last white space that they share, so that no word is cut, and a space there goes with the answers.
    Unlike TRL's `extract_prompt`, words that two answers begin with are then no prompt where the mark says so.
    """
    shared = shared_length(chosen, rejected)
    end = min(shared, max(min(len(chosen), len(rejected)) - 1, 0))
    if isinstance(chosen, str):
        mark = chosen.rfind(ASSISTANT, 0, shared)  # an answer after it may be empty, which makes the row unusable
        end = mark + len(ASSISTANT) if mark >= 0 else _last_word(chosen[:end])
    return chosen[:end], chosen[end:], rejected[end:]


def shared_length(one: Text, other: Text) -> int:
    """How many leading characters or messages are the same."""
    most = min(len(one), len(other))  # equal beginnings have equal beginnings
    return bisect(range(1, most + 1), False, key=lambda end: one[:end] != other[:end])


def _last_word(common: str) -> int:
    """Where the last word of a text begins, white space that is no space before it being left out. Chinese and Japanese
    are written without spaces: their wide punctuation is no part of a word."""
    end = len(common)
    while end > 0 and not (common[end - 1].isspace() or _is_wide_sign(common[end - 1])):
        end -= 1
    return end - 1 if common[end - 1 : end] == " " else end


def _is_wide_sign(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF" and unicodedata.category(character).startswith("P")


def is_shortened(chosen: Text, rejected: Text) -> bool:
    """Whether two string transcripts share words beyond what they ask, which TRL takes for prompt."""
    prompt = split_transcripts(chosen, rejected)[0]
    return isinstance(chosen, str) and bool(chosen[len(prompt) : shared_length(chosen, rejected)].strip())


def has_text(text: Text) -> bool:
    """Whether a string, or any of the messages, is more than white space."""
    return bool(text.strip() if isinstance(text, str) else any(message["content"].strip() for message in text))


def layout_of(columns: Sequence[str]) -> Layout:
    """How the rows of a supervised dataset are laid out, by its columns: `prompt` + `completion`, else `messages`,
    else `text`.

    Raises:
        ValueError: none of the three is there.
    """
    if "prompt" in columns and "completion" in columns:
        return "completion"
    if "messages" in columns:
        return "messages"
    if "text" in columns:
        return "text"
    raise ValueError(
        f"supervised rows need the columns 'prompt' and 'completion', or 'messages', or 'text'; found "
        f"{shown(columns)} (rename the columns; to imitate preferred answers: vrpo sft --completion_column chosen, or "
        "rename 'chosen' to 'completion')"
    )


def supervised_columns(present: Sequence[str], completion_column: str = "completion") -> list[str]:
    """The columns, of those that are there, which supervised rows are read from."""
    if completion_column != "completion":
        return [name for name in ("prompt", completion_column) if name in present]
    layout = layout_of(present)
    return ["prompt", "completion"] if layout == "completion" else [layout]


def supervised_of(row: Mapping[str, Any], layout: Layout) -> tuple[Text, Text]:
    """Prompt and response of a supervised row.

    `messages`: the response is the last message, which must be the assistant's, and everything before it is prompt.
    `text`: no prompt, everything is response (pretraining).

    Raises:
        UnusableRow: a field is missing or has the wrong type, or the response is empty.
    """
    if layout == "completion":
        prompt, response = text_field(row, "prompt"), text_field(row, "completion")
    elif layout == "messages":
        messages = text_field(row, "messages")
        if isinstance(messages, str):
            raise UnusableRow("wrong type", "field 'messages' is a string, not a list of messages")
        prompt, response = messages[:-1], messages[-1:]
    else:
        prompt, response = "", text_field(row, "text")
        if not isinstance(response, str):
            raise UnusableRow("wrong type", "field 'text' is not a string")
    check_pair_of(prompt, response, layout)
    check_not_repeated(prompt, response)
    return prompt, response


def text_field(row: Mapping[str, Any], field: str) -> Text:
    """A field as a string or as a list of messages, of which only `role` and `content` are kept."""
    value = row.get(field)
    if value is None:
        raise UnusableRow("missing field", f"field '{field}' is absent or null")
    if isinstance(value, str):
        return value
    messages = as_messages(value)
    if messages is None:
        said = kind_of_turns(value)
        what = f"holds {said}" if said else "is neither a string nor a list of messages with 'role' and 'content'"
        raise UnusableRow("wrong type", f"field '{field}' {what}")
    check_messages(value, field)
    return messages


def check_pair_of(prompt: Text, answer: Text, field: str) -> None:
    """Raise `UnusableRow` unless `answer` is a non-empty answer to `prompt`, in the same form."""
    if isinstance(prompt, str) != isinstance(answer, str):
        raise UnusableRow("wrong type", f"fields 'prompt' and '{field}' must both be strings or both be messages")
    contents = [answer] if isinstance(answer, str) else [message["content"] for message in answer]
    if not contents or not all(content.strip() for content in contents):
        raise UnusableRow("empty answer", f"field '{field}' has no text in its answer")
    if isinstance(answer, str):
        return
    roles = sorted({message["role"] for message in answer} - {"assistant"})
    if roles:
        raise UnusableRow("not an assistant turn", f"the answer in field '{field}' contains a turn of {roles}")
    if not prompt:
        raise UnusableRow("empty prompt", f"field '{field}' answers no message")
    if prompt[-1]["role"] == "assistant":  # type: ignore[index]  # both are messages
        raise UnusableRow(
            "not the user's turn", f"what field '{field}' answers ends with the assistant: put the two turns together"
        )


def prompt_identity(row: Mapping[str, Any]) -> str:
    """What rows about the same prompt have in common, for splitting; for other rows, the row itself.

    Of string transcripts it is the common beginning up to its last "Assistant:", if it has one, because the answers of
    another pair on the same prompt may begin alike for longer or shorter.
    """
    fields = {name: value for name, value in row.items() if name in FIELDS and value is not None}
    if "prompt" in fields:
        return repr(fields["prompt"])
    chosen, rejected = fields.pop("chosen", None), fields.pop("rejected", None)
    if isinstance(chosen, str | list) and type(chosen) is type(rejected):
        prompt = split_transcripts(chosen, rejected)[0]
        turn = prompt.rfind(ASSISTANT) if isinstance(prompt, str) else -1
        return repr(prompt[:turn] if turn >= 0 else prompt)
    if "messages" in fields:
        return repr(fields["messages"][:-1])
    return repr((chosen, rejected, fields))


def ranked_of(
    row: Mapping[str, Any], *, rewarded: bool, ties: bool
) -> tuple[Text, list[Text], list[int], list[float] | None]:
    """Prompt and answers of a row of `prompt` and `completions`, best first: as they stand, or sorted by the row's
    `rewards`, where tied ones stay in their order; and of each answer its place in the list, and its reward.

    Args:
        rewarded: the rows have a column `rewards`.
        ties: some answers may be tied, but not all.

    Raises:
        UnusableRow: a field is missing or has the wrong type, there are fewer than two answers or one is empty, or
            answers are tied that must not be.
    """
    prompt = text_field(row, "prompt")
    answers = _answers(row)
    for place, answer in enumerate(answers):
        check_pair_of(prompt, answer, f"completions[{place}]")
    check_not_repeated(prompt, *answers)
    places = list(range(len(answers)))
    if not rewarded:
        return prompt, answers, places, None
    rewards = _rewards(row, len(answers))
    places.sort(key=lambda place: -rewards[place])  # stable
    best = [rewards[place] for place in places]
    if not ties and 1 < len(set(best)) < len(best):
        raise UnusableRow("tied answers", "field 'rewards' repeats a number, and plackett_luce needs an order")
    return prompt, [answers[place] for place in places], places, best


def _answers(row: Mapping[str, Any]) -> list[Text]:
    value = row.get("completions")
    if value is None:
        raise UnusableRow("missing field", "field 'completions' is absent or null")
    if not isinstance(value, list) or None in value:
        raise UnusableRow("wrong type", "field 'completions' is no list of strings, nor of lists of messages")
    names = [f"completions[{place}]" for place in range(len(value))]
    answers = [text_field({name: each}, name) for name, each in zip(names, value, strict=True)]
    if len(answers) < 2:
        raise UnusableRow("fewer than two answers", f"field 'completions' has {len(answers)}")
    return answers


def _rewards(row: Mapping[str, Any], count: int) -> list[float]:
    value = row.get("rewards")
    if value is None:
        raise UnusableRow("missing field", "field 'rewards' is absent or null")
    if not isinstance(value, list):
        raise UnusableRow("wrong type", "field 'rewards' is no list of numbers")
    if len(value) != count:
        raise UnusableRow("other number of rewards", f"field 'rewards' has {len(value)}, field 'completions' {count}")
    return [_finite(each, f"rewards[{place}]") for place, each in enumerate(value)]


def label_of(row: Mapping[str, Any]) -> bool:
    """Whether the answer of a labelled row is desirable."""
    value = row.get("label")
    if value is None:
        raise UnusableRow("missing field", "field 'label' is absent or null")
    if not isinstance(value, bool):
        raise UnusableRow("wrong type", f"field 'label' is {value!r}, not true or false")
    return value


def numbers_of(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Rewards and weight of a row, of those names that its table has.

    Raises:
        UnusableRow: a number is missing or not finite, or a weight is negative.
    """
    numbers = {name: _finite(row.get(name), name) for name in names}
    if numbers.get("weight", 0.0) < 0:
        raise UnusableRow("negative weight", f"field 'weight' is {numbers['weight']}")
    return numbers


def _finite(value: Any, field: str) -> float:
    if value is None:
        raise UnusableRow("missing number", f"field '{field}' is absent or null")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnusableRow("wrong type", f"field '{field}' is {value!r}, not a number")
    if not math.isfinite(value):
        raise UnusableRow("number not finite", f"field '{field}' is {value}")
    return float(value)
