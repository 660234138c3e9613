"""Rows that are no plain pairs: labelled answers, ranked lists, and pairs with rewards and weights."""

import math
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from tests.data.data_rows import pair, said
from vrpo.data import load_rows, split_rows, tokenize_preferences, tokenize_ranked, tokenize_unpaired
from vrpo.data.formats import kind_of, preference_columns, supervised_columns

GOOD = {
    "pairs": pair(chosen_reward=2, rejected_reward=1, weight=1.0),
    "rankings": {"prompt": "p", "completions": ["yes", "no", "so"], "rewards": [1, 3.5, 2], "weight": 0.5},
    "labels": {"prompt": "p", "completion": "yes", "label": True, "weight": 0},
}
TOKENIZE = {"pairs": tokenize_preferences, "rankings": tokenize_ranked, "labels": tokenize_unpaired}


def made(kind: str, tokenizer: Any, *rows: dict[str, Any], **options: Any) -> Any:
    return TOKENIZE[kind](Dataset.from_list(list(rows)), tokenizer, **options)


def test_kinds():
    """Kills: rows taken for another kind because of a column that another format has."""
    assert kind_of(["prompt", "chosen", "rejected", "completions", "label"]) == "pairs"
    assert kind_of(["prompt", "completions", "completion", "label"]) == "rankings"
    assert kind_of(["prompt", "completion", "label"]) == "labels"
    with pytest.raises(ValueError, match=r"preference rows need .* found \['completion', 'prompt'\]"):
        kind_of(["prompt", "completion"])


def test_labels(tokenizer):
    examples, _ = made("labels", tokenizer, GOOD["labels"], {**GOOD["labels"], "label": False, "weight": 2})
    ids = tokenizer("yes", add_special_tokens=False)["input_ids"]
    assert examples["completion_ids"][:] == [[*ids, tokenizer.eos_token_id]] * 2
    assert (examples["label"][:], examples["weight"][:]) == ([True, False], [0.0, 2.0])
    plain, _ = made("labels", tokenizer, {"prompt": "p", "completion": "yes", "label": True})
    assert "weight" not in plain.column_names


def test_an_answer_is_the_same_tokens_in_every_format(tokenizer):
    """Strings, messages, strings as chat. Kills: a template or an end token that one of the formats forgets."""
    for prompt, answers, chat in [
        ("p", ["yes", "no"], False),
        ("p", ["yes", "no"], True),
        (said("p"), [said(text, first="assistant") for text in ("yes", "no")], False),
    ]:
        best, worst = answers
        paired = made("pairs", tokenizer, {"prompt": prompt, "chosen": best, "rejected": worst}, strings_as_chat=chat)
        single = made(
            "labels", tokenizer, {"prompt": prompt, "completion": worst, "label": False}, strings_as_chat=chat
        )
        ranked = made("rankings", tokenizer, {"prompt": prompt, "completions": answers}, strings_as_chat=chat)
        pair_, label, ranking = (found[0][0] for found in (paired, single, ranked))
        assert pair_["prompt_ids"] == label["prompt_ids"] == ranking["prompt_ids"]
        assert pair_["rejected_ids"] == label["completion_ids"]
        assert [pair_["chosen_ids"], pair_["rejected_ids"]] == ranking["completions_ids"]


def test_a_ranking_is_sorted_by_its_rewards(tokenizer):
    """Best first, with each answer's place in the file. Kills: worst first; places by rank; rewards left unsorted."""
    example = made("rankings", tokenizer, GOOD["rankings"])[0][0]
    words = [tokenizer.decode(ids[:-1]) for ids in example["completions_ids"]]
    assert (words, example["places"], example["rewards"]) == (["no", "so", "yes"], [1, 2, 0], [3.5, 2.0, 1.0])
    plain = made("rankings", tokenizer, {"prompt": "p", "completions": ["yes", "no"]})[0]
    assert plain["places"][:] == [[0, 1]]
    assert "rewards" not in plain.column_names


def test_tied_answers_stay_in_order_and_are_refused_where_an_order_is_needed(tokenizer):
    row = {"prompt": "p", "completions": ["a", "b", "c"], "rewards": [1.0, 2.0, 1.0]}
    assert made("rankings", tokenizer, row)[0]["places"][:] == [[1, 0, 2]]
    with pytest.raises(ValueError, match=r"tied answers: field 'rewards' repeats .* plackett_luce"):
        made("rankings", tokenizer, row, ties=False)
    same = {**row, "completions": ["a", "b", "a"]}
    assert made("rankings", tokenizer, same)[0]["places"][:] == [[1, 0, 2]]  # never compared


BAD = [
    ("pairs", {"chosen_reward": None}, "missing number", "'chosen_reward'"),
    ("pairs", {"rejected_reward": math.nan}, "number not finite", "'rejected_reward'"),
    ("pairs", {"weight": math.inf}, "number not finite", "'weight'"),
    ("pairs", {"weight": -0.1}, "negative weight", "'weight' is -0.1"),
    ("labels", {"label": None}, "missing field", "'label'"),
    ("labels", {"completion": None}, "missing field", "'completion'"),
    ("labels", {"prompt": None}, "missing field", "'prompt'"),
    ("labels", {"completion": " "}, "empty answer", "'completion'"),
    ("labels", {"weight": None}, "missing number", "'weight'"),
    ("labels", {"weight": -1.0}, "negative weight", "'weight'"),
    ("rankings", {"completions": None}, "missing field", "'completions'"),
    ("rankings", {"completions": ["yes"], "rewards": [1.0]}, "fewer than two answers", "has 1"),
    ("rankings", {"completions": []}, "fewer than two answers", "has 0"),
    ("rankings", {"completions": ["yes", None, "no"]}, "wrong type", "'completions'"),
    ("rankings", {"completions": ["yes", "", "no"]}, "empty answer", r"'completions\[1\]'"),
    ("rankings", {"completions": ["yes", "no", "yes"]}, "equal answers", "twice"),
    ("rankings", {"rewards": None}, "missing field", "'rewards'"),
    ("rankings", {"rewards": [1.0, 2.0]}, "other number of rewards", "has 2, field 'completions' 3"),
    ("rankings", {"rewards": [1.0, None, 2.0]}, "missing number", r"'rewards\[1\]'"),
    ("rankings", {"rewards": [1.0, 2.0, math.nan]}, "number not finite", r"'rewards\[2\]'"),
    ("rankings", {"rewards": [1.0, 1.0, 1.0]}, "all answers tied", "'rewards'"),
    ("rankings", {"prompt": None}, "missing field", "'prompt'"),
    ("rankings", {"weight": math.nan}, "number not finite", "'weight'"),
]


@pytest.mark.parametrize(("kind", "change", "reason", "detail"), BAD)
def test_unusable_rows_are_counted_by_reason(kind, change, reason, detail, tokenizer):
    """Each reason, with a detail that names the field. Kills: a default for what is missing; a row kept in silence."""
    rows = Dataset.from_list([GOOD[kind], {**GOOD[kind], **change}])
    with pytest.warns(UserWarning, match=f"kept 1 of 2 rows; dropped 1: {reason} .first: row 1"):
        examples, report = TOKENIZE[kind](rows, tokenizer)
    assert (report.kept, {name: drop.count for name, drop in report.dropped.items()}) == (1, {reason: 1})
    assert examples["example_id"][:] == [0]
    with pytest.raises(ValueError, match=f"row 1: {reason}: .*{detail}"):
        TOKENIZE[kind](rows, tokenizer, on_bad_rows="error")


def test_types_of_a_typed_table(tokenizer):
    """Of a table that is not read from JSON. Kills: labels of 0 and 1 taken for false and true; a reward of text."""
    rows = Dataset.from_list([{"prompt": "p", "completion": "yes", "label": 1}])
    rows = rows.cast(
        Features({"prompt": Value("string"), "completion": Value("string"), "label": ClassLabel(names=["a", "b"])})
    )
    with pytest.raises(ValueError, match="wrong type: field 'label' is 1, not true or false"):
        tokenize_unpaired(rows, tokenizer)
    with pytest.raises(ValueError, match="wrong type: field 'chosen_reward' is 'high', not a number"):
        made("pairs", tokenizer, pair(chosen_reward="high", rejected_reward="low"))
    with pytest.raises(ValueError, match="wrong type: field 'rewards' is no list"):
        made("rankings", tokenizer, {"prompt": "p", "completions": ["a", "b"], "rewards": 1.0})
    with pytest.raises(ValueError, match=r"wrong type: fields 'prompt' and 'completions\[0\]' must both be"):
        made("rankings", tokenizer, {"prompt": said("p"), "completions": ["a", "b"]})
    wide = Features({"prompt": Value("string"), "completions": List(Value("large_string"))})
    rows = Dataset.from_list([{"prompt": "p", "completions": ["a", "b"]}], features=wide)
    assert len(tokenize_ranked(rows, tokenizer)[0]) == 1


def test_half_of_the_rewards(tokenizer):
    with pytest.raises(ValueError, match="found chosen_reward alone"):
        made("pairs", tokenizer, pair(chosen_reward=1.0))


def test_answers_that_are_the_same_once_cut(tokenizer):
    """Kills: a list whose ranked answers became equal tokens."""
    row = {"prompt": "p", "completions": ["abcdef", "abcdeg"]}
    with pytest.raises(ValueError, match="equal answers: "):
        made("rankings", tokenizer, row, max_length=4)
    with pytest.warns(UserWarning, match="cut 1 responses"):
        _, report = made("rankings", tokenizer, {"prompt": "p", "completions": ["xyz" * 9, "b"]}, max_length=6)
    assert report.truncated_responses == 1


def test_the_mask_token_is_found_in_lists(tokenizer):
    """Kills: a list of answers that is searched for the token itself."""
    ids = tokenizer("#", add_special_tokens=False)["input_ids"]
    with pytest.raises(ValueError, match="mask token: its completions spells"):
        made("rankings", tokenizer, {"prompt": "p", "completions": ["a", "b#"]}, mask_id=ids[0])


LINES = {
    "pairs": [pair(chosen_reward=2, rejected_reward=1.5), pair("q", chosen_reward="good", rejected_reward=0)],
    "rankings": [
        {"prompt": "p", "completions": ["a", "b"], "rewards": [1, 2.5]},
        {"prompt": "q", "completions": ["a", 3], "rewards": [1, 2]},
    ],
    "labels": [{"prompt": "p", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": 1}],
}


@pytest.mark.parametrize("kind", LINES)
def test_from_a_file(kind, tokenizer, write):
    """A row of another type is named by its line; other columns may hold anything. Kills: a file that cannot be read
    because of one row, or of a column that this kind does not have."""
    others = {"label": {"a": 1}, "rewards": {"b": [2]}, "completions": {}, "chosen_reward": [1], "weight": {}}
    own = preference_columns(list(LINES[kind][0]))
    later = {"weight", "completions"} if kind == "labels" else {"weight"}
    idle = {name: value for name, value in others.items() if name not in {*own, *later}}
    rows = load_rows(write(*[{**idle, **line} for line in LINES[kind]]), columns=preference_columns)
    assert {*own} <= {*rows.column_names} <= {*own, "origin", "example_id", "unusable"}
    with pytest.raises(ValueError, match=r"train.jsonl:2: wrong type: field '(chosen_reward|completions|label)' holds"):
        TOKENIZE[kind](rows, tokenizer, on_bad_rows="error")
    with pytest.warns(UserWarning, match="dropped 1: wrong type"):
        assert len(TOKENIZE[kind](rows, tokenizer)[0]) == 1


def test_lists_of_messages_from_a_file(tokenizer, write):
    row = {"prompt": said("p"), "completions": [said("a", first="assistant"), said("b", first="assistant")]}
    rows = load_rows(write(row, {**row, "prompt": said("q")}), columns=preference_columns)
    assert len(tokenize_ranked(rows, tokenizer)[0]) == 2
    train, held = split_rows(rows, 0.5, seed=0)
    assert len(train) == len(held) == 1


@pytest.mark.parametrize("column", ["completions", "rewards"])
def test_empty_lists_from_a_file(column, tokenizer, write):
    """Kills: good rows that are unusable because most others have an empty list."""
    good = {"prompt": "p", "completions": ["a", "b"], "rewards": [1, 2]}
    rows = load_rows(write(good, *[{**good, column: []}] * 2), columns=preference_columns)
    with pytest.warns(UserWarning, match="kept 1 of 3 rows; dropped 2: (fewer than two answers|other number)"):
        assert tokenize_ranked(rows, tokenizer)[0]["example_id"][:] == [0]


def test_columns_of_no_kind(write):
    with pytest.raises(ValueError, match=r"train.jsonl: preference rows need .* found \['question'\]"):
        load_rows(write({"question": "a"}), columns=preference_columns)


def test_supervised_rows_do_not_look_at_numbers(write):
    """Kills: a column that only preference rows read, and that makes a supervised row unusable."""
    rows = load_rows(write({"prompt": "p", "completion": "a", "label": [1], "rewards": {}}), columns=supervised_columns)
    assert rows["unusable"][:] == [None]
