"""What rows carry beside what is read: each is refused, dropped with its reason, or named in one warning."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.data.data_rows import pair, preferences, said, supervised
from vrpo.answering.prompts import read_prompts
from vrpo.data import load_rows, tokenize_preferences, tokenize_ranked, tokenize_sft, tokenize_unpaired
from vrpo.data.formats import preference_columns, supervised_columns

ANSWERS = {"chosen": "The capital is Paris.", "rejected": "The capital is Lyon."}
CALL = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
LOST = [  # rows of pairs, and the column that the model would not be given
    ({"system": "Be brief", "question": "What is the capital of France?", **ANSWERS}, "system"),
    ({"question": "What is the capital of France?", **ANSWERS}, "question"),
    ({"instruction": "Name a fruit", "input": "", "chosen": "Apple", "rejected": "Stone"}, "instruction"),
    (pair(input="a table"), "input"),
    (pair(System="Be brief"), "System"),
    (pair(systemPrompt="Be brief"), "systemPrompt"),
    ({"prompt ": "What is the capital of France?", **ANSWERS}, "prompt "),
    ({"User Prompt": "What is the capital of France?", **ANSWERS}, "User Prompt"),
    (pair(context="Paris is a city"), "context"),
    (pair(history=[["a", "b"]]), "history"),
    (pair(images=["a.png"]), "images"),
    (pair(image={"path": "a.png", "bytes": None}), "image"),
    (pair(tools=[{"name": "f"}]), "tools"),
    (pair(chat_template_kwargs={"enable_thinking": False}), "chat_template_kwargs"),
    (pair(conversations=[{"from": "human", "value": "more"}]), "conversations"),
    ({"messages": said("What is it?"), **ANSWERS}, "messages"),
]


def test_what_the_model_would_not_be_given(tokenizer, write):
    """From a file and as a table. Kills: a question, a system turn or pictures that a run trains without."""
    for row, column in LOST:
        for source in ["file", "table"]:
            where = {"file": "train.jsonl:1", "table": "the rows, row 0"}[source]
            with pytest.raises(
                ValueError, match=f"^{where}: column '{column}' holds what the model would not be given"
            ):
                load_rows(write(row), columns=preference_columns) if source == "file" else preferences(tokenizer, row)


HARMLESS = [  # nothing is said, or it is said where it is read
    pair(system=None, input=" ", images=[], tools="[]", history=None),
    pair("What is it?", question="What is it?"),
    pair(labels={"quality": 0.8}),
    {"prompt": "q", "messages": said("q", "a"), "chosen": said("q", "a"), "rejected": said("q", "b")},
]


def test_what_says_nothing_more(tokenizer, write):
    for row in HARMLESS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len(load_rows(write(row), columns=preference_columns)) == len(preferences(tokenizer, row)[0]) == 1


def test_everything_else_is_named_once(tokenizer, write):
    """Whatever it is called, in how many rows, from either source. Kills: a column dropped in silence; a warning each;
    a warning at the first reading of a file only."""
    rows: list[dict[str, Any]] = [
        pair(source="a", margin=0.5, score_chosen=None),
        pair(source="b", margin=None, score_chosen=3.0),
        pair(source=" ", margin=1.5, score_chosen=None),
    ]
    path = write(*rows)
    for _ in range(2):
        with pytest.warns(UserWarning, match="not read") as caught:
            load_rows(path, columns=preference_columns)
        expected = f"{path}: not read: source (2 rows), margin (2 rows), score_chosen (1 rows)"
        assert [str(each.message) for each in caught] == [expected]
    with pytest.warns(UserWarning, match="not read") as caught:
        preferences(tokenizer, *rows)
    assert [str(each.message) for each in caught] == [
        "the rows: not read: source (3 rows), margin (2 rows), score_chosen (1 rows)"
    ]
    with pytest.warns(UserWarning, match=r"not read: source \(2 rows\)"):
        load_rows(path)


def test_rows_that_nobody_said_how_to_read(tokenizer, write):
    """`load_rows(path)`, as the trainers ask for in place of a path. Kills: weights and labels that are not loaded; a
    system turn dropped at loading; a message list that preference training passes over."""
    weighted = load_rows(write(pair(weight=2.0, chosen_reward=1.0, rejected_reward=0.0)))
    assert {"weight", "chosen_reward", "rejected_reward"} <= {*weighted.column_names}
    assert load_rows(write({"prompt": "q", "completion": "a", "label": True}))["label"][:] == [True]
    with pytest.raises(ValueError, match="column 'system' holds what"):
        load_rows(write(pair(system="Be brief")))
    beside = load_rows(write({"messages": said("What is it?"), **ANSWERS}))
    with pytest.raises(ValueError, match="column 'messages' holds what"):
        tokenize_preferences(beside, tokenizer)
    with pytest.warns(UserWarning, match=r"the rows: not read: text \(1 rows\)"):
        tokenize_preferences(load_rows(write(pair(text="more"))), tokenizer)


def test_fields_of_messages_are_named(tokenizer, write):
    named = [{"role": "user", "content": "q", "name": "Ann", "id": None}]
    row = {"prompt": named, "chosen": said("a", first="assistant"), "rejected": said("b", first="assistant")}
    with pytest.warns(UserWarning, match=r"not read: 'name' of messages in prompt \(1 rows\)"):
        load_rows(write(row), columns=preference_columns)
    with pytest.warns(UserWarning, match=r"not read: 'name' of messages in prompt \(1 rows\)"):
        preferences(tokenizer, row)


BARRED = [
    {"tool_calls": CALL},
    {"function_call": {"name": "f"}},
    {"reasoning_content": "so"},
    {"thinking": "so"},
    {"images": ["a.png"]},
    {"weight": 0},
    {"weight": 0.0},
    {"train": False},
    {"train": "false"},
    {"train_on_turn": False},
    {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
    {"prefix": True},
]


def test_messages_that_say_more(tokenizer, write):
    """Kills: calls, thoughts or pictures left out of an answer; an answer trained that is marked as not to be."""
    for more in BARRED:
        for source in ["file", "table"]:
            bad = {"messages": [*said("q"), {"role": "assistant", "content": "a", **more}]}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows = (
                    load_rows(write(bad, {"messages": said("q", "a")}))
                    if source == "file"
                    else Dataset.from_list([bad])
                )
                columns = [rows[index] for index in range(len(rows))]
                with pytest.raises(
                    ValueError, match=f"wrong type: field 'messages' .*messages with '{next(iter(more))}'"
                ):
                    supervised(tokenizer, *columns, on_bad_rows="error")


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


def test_content_in_parts_of_text(tokenizer, write):
    """OpenAI's format. Kills: rows lost for their form; the second part left out."""
    for source in ["file", "table"]:
        whole = {side: said("Name a fruit", answer) for side, answer in (("chosen", "Apple"), ("rejected", "Stone"))}
        row = {
            side: [{"role": m["role"], "content": parts(m["content"][:3], m["content"][3:])} for m in messages]
            for side, messages in whole.items()
        }
        rows = load_rows(write(row)) if source == "file" else Dataset.from_list([row])
        assert tokenize_preferences(rows, tokenizer)[0][0] == preferences(tokenizer, whole)[0][0]


ODD = [  # messages, and what is said of them
    ([{"role": "user", "content": [*parts("q"), {"type": "image_url", "image_url": {"url": "x"}}]}], "'image_url'"),
    ([{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}], "'refusal'"),
    ([{"role": "user", "content": [{**parts("q")[0], "cache_control": {"type": "x"}}]}], "'cache_control'"),
    ([{"role": "user", "content": ["q"]}], "'parts of no type'"),
    ([{"role": "user", "content": []}], "messages without a text"),
    ([{"role": "user", "content": None}], "messages without a text"),
    ([{"role": "assistant", "content": None, "tool_calls": CALL}], "'tool_calls'"),
    ({"role": "user", "content": "q"}, "messages without a list"),
    ([{"from": "human", "value": "q"}], "turns of 'from' and 'value': rename"),
]


def test_what_is_no_text_is_named(tokenizer, write):
    """Kills: "an object, a list or a huge integer", of which nobody knows what to change."""
    for messages, named in ODD:
        for source in ["file", "table", "prompts"]:
            row = {"prompt": messages, "completion": said("a", first="assistant")}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if source == "prompts":
                    with pytest.raises(ValueError, match=f"train.jsonl:1.*{named}"):
                        read_prompts(Path(write(row)))
                    continue
                rows = load_rows(write(row)) if source == "file" else Dataset.from_list([row])
                with pytest.raises(ValueError, match=f"wrong type: field 'prompt' holds .*{named}"):
                    tokenize_sft(rows, tokenizer)


def test_roles_that_nobody_knows(tokenizer):
    for role in ["usr", "human", "gpt", "function", "User", ""]:
        odd = [{"role": role, "content": "q"}]
        row = {"prompt": odd, "chosen": said("a", first="assistant"), "rejected": said("b", first="assistant")}
        with pytest.raises(ValueError, match=f"unknown role: field 'prompt' has the role '{role}'"):
            preferences(tokenizer, row, on_bad_rows="error")
        ranked = {"prompt": said("q"), "completions": [odd, said("a", first="assistant")]}
        with pytest.raises(ValueError, match=r"unknown role: field 'completions\[0\]'"):
            tokenize_ranked(Dataset.from_list([ranked]), tokenizer, on_bad_rows="error")


ASKED = "What is the capital of France?"
UNUSABLE = [
    (pair(ASKED, f"{ASKED} Paris", f"{ASKED} Lyon"), "repeated prompt"),
    (pair("2+2=", "2+2=4", "2+2=5"), "repeated prompt"),
    ({"prompt": "other", "chosen": said("q", "a"), "rejected": said("q", "b")}, "two prompts"),
    ({"chosen": said("q", "a", "r", "x"), "rejected": said("q", "a", "s", "y")}, "not an assistant turn"),
    ({"chosen": said("q", "a", "r", "x"), "rejected": said("q", "b")}, "not an assistant turn"),
    (
        {
            side: [{"role": "system", "content": side}, *said("q", "a")] for side in ("chosen", "rejected")
        },  # other system turns
        "not an assistant turn",
    ),
    (
        {side: f"\n\nHuman: q\n\nAssistant: a\n\nHuman: {side}\n\nAssistant: b" for side in ("chosen", "rejected")},
        "not an assistant turn",
    ),
    (
        {
            "prompt": said("q", "It is"),
            "chosen": said("so", first="assistant"),
            "rejected": said("not", first="assistant"),
        },
        "not the user's turn",
    ),
]


def test_rows_that_are_another_format(tokenizer):
    """Kills: the question trained inside the answer; one of two prompts lost; a turn continued as a new one."""
    for row, reason in UNUSABLE:
        with pytest.raises(ValueError, match=f"row 0: {reason}: "):
            preferences(tokenizer, row, on_bad_rows="error")


def test_short_prompts_that_answers_begin_with(tokenizer):
    """Some rows are kept and counted; mostly, it is how the table is written. Kills: greetings lost; 'The' trained
    inside of all answers."""
    hello = pair("Hello!", "Hello! How can I help?", "Hello! Go away.")
    with pytest.warns(UserWarning, match="kept 12 of 12 rows; in 6 rows the answers begin with the short prompt"):
        assert preferences(tokenizer, *[hello, pair()] * 6)[1].repeated_prompts == 6
    assert preferences(tokenizer, hello)[1].kept == 1
    with pytest.raises(ValueError, match="prompt: the answers of 7 of 12 usable rows begin with it"):
        preferences(tokenizer, *[hello, pair()] * 5, hello, hello)


def test_answers_that_only_look_like_the_prompt(tokenizer):
    for prompt, answer in [("Hi", "Highly so"), ("the sky", "the sky"), ("p", "pear")]:
        assert len(supervised(tokenizer, {"prompt": prompt, "completion": answer})[0]) == 1


def test_repeated_prompts_of_every_kind(tokenizer):
    for tokenize, row in (
        (tokenize_unpaired, {"prompt": ASKED, "completion": f"{ASKED} Paris", "label": True}),
        (tokenize_ranked, {"prompt": ASKED, "completions": [f"{ASKED} Paris", f"{ASKED} Lyon"]}),
    ):
        with pytest.raises(ValueError, match="repeated prompt"):
            tokenize(Dataset.from_list([row]), tokenizer, on_bad_rows="error")
    with pytest.raises(ValueError, match="repeated prompt"):
        supervised(tokenizer, {"prompt": ASKED, "completion": f"{ASKED} Paris"}, on_bad_rows="error")


def test_tables_without_a_prompt(tokenizer):
    """Kills: answers trained without a question. One empty prompt of several is a prompt, and counted."""
    for row in [pair(""), pair(" \n"), {"chosen": "Apple", "rejected": "Stone"}]:
        with pytest.raises(ValueError, match="prompt: it is empty in all 2 usable rows"):
            preferences(tokenizer, row, row)
        assert preferences(tokenizer, pair(""), pair())[1].empty_prompts == 1


def test_columns_that_another_kind_would_read(tokenizer, write):
    """Kills: stepwise labels taken for a ranking; a text beside messages; answers beside those to imitate."""
    with pytest.raises(ValueError, match="column 'labels' holds what"):
        load_rows(
            write({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}), columns=preference_columns
        )
    with pytest.raises(ValueError, match="column 'prompt' holds what"):
        load_rows(write({"prompt": "p", "messages": said("q", "a")}), read=supervised_columns)
    with pytest.warns(UserWarning, match=r"not read: text \(1 rows\), weight \(1 rows\)$"):
        load_rows(write({"text": "x", "messages": said("q", "a"), "weight": 2}), read=supervised_columns)


def test_prompts_to_generate_from(write):
    """Kills: a system turn that goes along into the answers' file and not into the model."""
    for row, wrong in [
        ({"prompt": "q", "system": "Be brief"}, "column 'system' holds what the model would not be given"),
        ({"prompt": "q", "images": ["a.png"]}, "column 'images' holds what"),
        ({"prompt": [{"role": "usr", "content": "q"}]}, "unknown role: field 'prompt' has the role 'usr'"),
        ({"prompt": []}, "has no field 'prompt' that holds text or messages"),
    ]:
        path = Path(write({"prompt": "q", "question": "what", "answer": "a", "system": ""}, row))
        with pytest.raises(ValueError, match=f"{path}:2:? {wrong}"):
            read_prompts(path)
