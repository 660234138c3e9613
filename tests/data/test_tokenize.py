import copy
import dataclasses
import json
import warnings

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.data_rows import HEADER, POLITE_TEMPLATE, TEMPLATE, decoded, pair, preferences, said, supervised, texts
from vrpo.data import load_rows, tokenize_preferences, tokenize_sft
from vrpo.data.encode import Budget, dangling_header, encoder_of
from vrpo.data.formats import split_transcripts


def test_explicit_strings_stay_raw(tokenizer):
    examples, report = preferences(tokenizer, pair("the sky is", " blue", " red"))
    assert texts(tokenizer, examples[0], "prompt", "chosen", "rejected") == [
        "the sky is",
        " blue<|endoftext|>",
        " red<|endoftext|>",
    ]
    assert set(examples.column_names) == {"prompt_ids", "chosen_ids", "rejected_ids", "example_id"}
    assert (report.kept, dict(report.dropped)) == (1, {})


def test_an_answer_that_ends_itself_gets_no_second_end(tokenizer):
    examples, _ = preferences(tokenizer, pair(chosen="yes<|endoftext|>"))
    assert texts(tokenizer, examples[0], "chosen") == ["yes<|endoftext|>"]


def test_no_token_straddles_the_boundary(tokenizer):
    """Kills encoding prompt + answer together and cutting: 'the' + ' sky' and 'th' + 'e sky' must stay apart."""
    for cut in range(1, 14):
        prompt, answer = "what colour is"[:cut], "what colour is"[cut:] + "!"
        examples, _ = preferences(tokenizer, pair(prompt, answer, "no"))
        assert texts(tokenizer, examples[0], "prompt", "chosen") == [prompt, answer + "<|endoftext|>"]


def test_messages(with_template):
    """Kills the dangling header of the official template as part of the answer."""
    for template in [TEMPLATE, POLITE_TEMPLATE]:
        tokenizer = with_template(template)
        row = {
            "prompt": said("the sky?"),
            "chosen": said("blue", first="assistant"),
            "rejected": said("red", first="assistant"),
        }
        examples, _ = preferences(tokenizer, row)
        prompt = "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nthe sky?<|eot_id|>" + HEADER
        assert texts(tokenizer, examples[0], "prompt", "chosen", "rejected") == [
            prompt,
            "blue<|eot_id|>",
            "red<|eot_id|>",
        ]


def test_the_official_template_dangles(with_template):
    """The premise of the trap, and what is found for it."""
    tokenizer = with_template(TEMPLATE)
    assert tokenizer.apply_chat_template(said("a", "b"), tokenize=False, add_generation_prompt=False).endswith(HEADER)
    assert dangling_header(tokenizer) == HEADER
    assert dangling_header(with_template(POLITE_TEMPLATE)) == ""


def test_templates_without_a_header_or_without_an_end(with_template):
    """Mistral's kind has no header and fails on an empty conversation; one that ends no turn gets end-of-text."""
    instruct = (
        "{% if messages[0]['role'] == 'system' %}{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '[INST]' + m['content'] + '[/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    row = {"messages": said("q", "a")}
    assert texts(with_template(instruct), supervised(with_template(instruct), row)[0][0], "prompt", "response") == [
        "[INST]q[/INST]",
        "a<|endoftext|>",
    ]
    endless = (
        "{% for m in messages %}{{ '(' + m['role'] + ')' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '(assistant)' }}{% endif %}"
    )
    assert texts(with_template(endless), supervised(with_template(endless), row)[0][0], "prompt", "response") == [
        "(user)q(assistant)",
        "a<|endoftext|>",
    ]


def test_a_dangling_header_that_cannot_be_isolated(with_template):
    hostile = (
        "{% if messages[0]['role'] == 'system' %}{% endif %}"
        "{% for m in messages %}{{ m['content'] + '|' }}{% endfor %}A:"
    )
    with pytest.raises(ValueError, match="ignores add_generation_prompt"):
        supervised(with_template(hostile), {"messages": said("q", "a")})


def test_a_template_that_refuses_a_row(with_template):
    strict = POLITE_TEMPLATE.replace(
        "{{ bos_token }}",
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}",
    )
    tokenizer = with_template(strict)
    refused = {"messages": [{"role": "system", "content": "s"}, *said("q", "a")]}
    with pytest.warns(UserWarning, match=r"dropped 1: chat template \(first: row 1\)"):
        _, report = supervised(tokenizer, {"messages": said("q", "a")}, refused)
    assert report.kept == 1
    with pytest.raises(ValueError, match="row 1: chat template: it refuses the conversation: no system turn"):
        supervised(tokenizer, {"messages": said("q", "a")}, refused, on_bad_rows="error")


def test_messages_without_a_template(with_template):
    with pytest.raises(ValueError, match="tokenizer has no chat template"):
        supervised(with_template(None), {"messages": said("q", "a")})


def test_strings_as_chat(tokenizer):
    row = pair("the sky?", "blue", "red")
    examples, _ = preferences(tokenizer, row, strings_as_chat=True)
    spoken = {
        "prompt": said("the sky?"),
        "chosen": said("blue", first="assistant"),
        "rejected": said("red", first="assistant"),
    }
    assert examples[0] == preferences(tokenizer, spoken)[0][0]
    completion = supervised(tokenizer, {"prompt": "the sky?", "completion": "blue"}, strings_as_chat=True)[0][0]
    assert completion["response_ids"] == examples[0]["chosen_ids"]
    with pytest.raises(ValueError, match="strings_as_chat needs"):
        preferences(tokenizer, {"chosen": "ab", "rejected": "ac"}, strings_as_chat=True)
    with pytest.raises(ValueError, match="strings_as_chat needs"):
        supervised(tokenizer, {"text": "ab"}, strings_as_chat=True)


def test_strings_as_chat_leaves_messages_alone(tokenizer):
    """So that one recipe serves rows of either kind. Kills: a column `prompt` demanded of rows that hold messages."""
    answers = [said("the sky?") + said(colour, first="assistant") for colour in ("blue", "red")]
    row = dict(zip(("chosen", "rejected"), answers, strict=True))
    assert preferences(tokenizer, row, strings_as_chat=True)[0][0] == preferences(tokenizer, row)[0][0]
    row = {"messages": answers[0]}
    assert supervised(tokenizer, row, strings_as_chat=True)[0][0] == supervised(tokenizer, row)[0][0]
    with pytest.raises(ValueError, match="strings_as_chat needs"):
        supervised(tokenizer, {"messages": "ab"}, strings_as_chat=True)


def test_implicit_prompt_of_strings(tokenizer):
    ask = "\n\nHuman: what is it?\n\nAssistant:"
    row = {"chosen": f"{ask} Blue.", "rejected": f"{ask} Red."}
    examples, _ = preferences(tokenizer, row)
    assert texts(tokenizer, examples[0], "prompt", "chosen", "rejected") == [
        ask,
        " Blue.<|endoftext|>",
        " Red.<|endoftext|>",
    ]


TURNS = "\n\nHuman: Is it?\n\nAssistant:"


def test_split_transcripts():
    for chosen, rejected, expected in [
        ("a b c", "a b d", ("a b", " c", " d")),  # a space before the difference goes with the answers
        ("a bc", "a bd", ("a", " bc", " bd")),  # kills TRL's cut inside a word
        ("ab", "abc", ("", "ab", "abc")),  # one is the beginning of the other
        ("a b", "a b c", ("a", " b", " b c")),
        ("Assistant: Yes", "Assistant: Yes, sure", ("Assistant:", " Yes", " Yes, sure")),
        ("Q\nA:\n\nx y", "Q\nA:\n\nxz", ("Q\nA:\n\n", "x y", "xz")),  # other white space stays with the prompt
        ("x ", "y ", ("", "x ", "y ")),  # kills the index -1 at position 0
        (" x", " y", ("", " x", " y")),
        (TURNS + " Yes", TURNS + " Yes, sure", (TURNS, " Yes", " Yes, sure")),
        (TURNS + " It is so.", TURNS + " It is not.", (TURNS, " It is so.", " It is not.")),  # kills: words swallowed
        (TURNS + " So." + TURNS + "a", TURNS + " So." + TURNS + "b", (TURNS + " So." + TURNS, "a", "b")),
        (TURNS, TURNS + " y", (TURNS, "", " y")),  # kills: the mark trained as an answer, where there is none
        ("首都是哪里。巴黎是", "首都是哪里。巴黎不", ("首都是哪里。", "巴黎是", "巴黎不")),  # no spaces there
    ]:
        assert split_transcripts(chosen, rejected) == expected


def test_implicit_prompts_that_end_before_shared_words_are_counted(tokenizer):
    rows = [{"chosen": f"{TURNS} It is{end}", "rejected": f"{TURNS} It was{end}"} for end in (".", "!")]
    rows.append({"chosen": f"{TURNS} So.", "rejected": f"{TURNS} No."})
    assert preferences(tokenizer, *rows)[1].shortened_prompts == 2


@given(st.text("ab ", min_size=1), st.text("ab ", min_size=1))
def test_split_transcripts_loses_nothing(chosen, rejected):
    prompt, first, second = split_transcripts(chosen, rejected)
    assert (prompt + first, prompt + second) == (chosen, rejected)
    if chosen != rejected:
        assert first
        assert second


def test_a_transcript_without_its_answer(tokenizer):
    _, report = preferences(tokenizer, *({"chosen": f"{TURNS}{a}", "rejected": f"{TURNS} Yes"} for a in ("", " No")))
    assert report.dropped["empty answer"].count == 1


def test_implicit_prompt_of_messages(tokenizer):
    row = {"chosen": said("a", "b", "c", "yes"), "rejected": said("a", "b", "c", "no")}
    explicit = {
        "prompt": said("a", "b", "c"),
        "chosen": said("yes", first="assistant"),
        "rejected": said("no", first="assistant"),
    }
    expected = preferences(tokenizer, explicit)[0][0]
    assert preferences(tokenizer, row)[0][0] == expected
    repeated = {"prompt": "a", **row}  # UltraFeedback-binarized: a prompt string beside full transcripts
    assert preferences(tokenizer, repeated)[0][0] == expected


def test_supervised_layouts(tokenizer):
    spoken = supervised(tokenizer, {"messages": said("a", "b", "c", "yes")})[0][0]
    assert texts(tokenizer, spoken, "response") == ["yes<|eot_id|>"]
    assert decoded(tokenizer, spoken["prompt_ids"]).endswith("c<|eot_id|>" + HEADER)
    completion = {
        "prompt": said("a", "b", "c"),
        "completion": said("yes", first="assistant"),
        "messages": said("a", "b", "c", "yes"),
    }
    assert supervised(tokenizer, completion)[0][0] == spoken
    plain = supervised(tokenizer, {"prompt": "the ", "completion": "sky"})[0][0]
    assert texts(tokenizer, plain, "prompt", "response") == ["the ", "sky<|endoftext|>"]
    text = supervised(tokenizer, {"text": "the sky"})[0][0]
    assert text["prompt_ids"] == []
    assert texts(tokenizer, text, "response") == ["the sky<|endoftext|>"]


def test_columns_that_make_no_format(tokenizer):
    with pytest.raises(ValueError, match=r"found \['chosen', 'prompt', 'rejected'\] \(rename"):
        supervised(tokenizer, pair())
    with pytest.raises(ValueError, match=r"\['rejected'\] missing, found \['chosen'\]"):
        preferences(tokenizer, {"chosen": "x"})


BAD = [
    ("{broken", "not a JSON object"),
    ("7", "not a JSON object"),
    (json.dumps(pair(chosen="same", rejected="same")), "equal answers"),
    (json.dumps(pair(chosen="")), "empty answer"),
    (json.dumps(pair(rejected=" \n\t")), "empty answer"),
    (json.dumps({"prompt": "p", "chosen": "x"}), "missing field"),
    (json.dumps(pair(prompt=None)), "missing field"),
    (json.dumps(pair(chosen=5)), "wrong type"),
    (json.dumps(pair(prompt="the sky " * 100)), "prompt too long"),
]


def test_bad_rows_are_dropped_and_counted(write, tokenizer):
    for bad, reason in BAD:
        rows = load_rows(write(pair("a"), bad, bad, pair("b")))
        with pytest.warns(
            UserWarning, match=f"kept 2 of 4 rows; dropped 2: {reason} \\(first: train.jsonl:2\\)"
        ) as caught:
            examples, report = tokenize_preferences(rows, tokenizer, max_length=64)
        assert len(caught) == 1
        assert examples["example_id"][:] == [0, 3]  # kills renumbering after dropping
        assert report.kept == 2
        assert report.dropped[reason].count == 2
        assert report.dropped[reason].origins == ("train.jsonl:2", "train.jsonl:3")


def test_bad_rows_raise_on_request(write, tokenizer):
    for bad, reason in BAD:
        rows = load_rows(write(pair("a"), bad, pair("b"), name="set.jsonl.gz"))
        with pytest.raises(ValueError, match=f"^set.jsonl.gz:2: {reason}: .*on_bad_rows='drop'"):
            tokenize_preferences(rows, tokenizer, max_length=64, on_bad_rows="error")


def test_one_warning_for_all_reasons(write, tokenizer):
    rows = load_rows(write(pair("good"), *[bad for bad, _ in BAD]))
    with pytest.warns(UserWarning, match="kept 1 of 10") as caught:
        _, report = tokenize_preferences(rows, tokenizer, max_length=64)
    assert len(caught) == 1
    assert {reason: drop.count for reason, drop in report.dropped.items()} == {
        "not a JSON object": 2,
        "equal answers": 1,
        "empty answer": 2,
        "missing field": 2,
        "wrong type": 1,
        "prompt too long": 1,
    }
    for reason in report.dropped:
        assert reason in str(caught[0].message)


def test_clean_rows_give_no_warning(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preferences(tokenizer, pair())


def test_no_usable_row_is_an_error(write, tokenizer):
    rows = load_rows(write(pair(chosen="x", rejected="x")))
    with pytest.raises(ValueError, match=r"no usable row.*equal answers.*train.jsonl:1"):
        tokenize_preferences(rows, tokenizer)
    with pytest.raises(ValueError, match="has no rows"):
        tokenize_preferences(rows.select([]), tokenizer)


def test_answers_equal_once_rendered_or_cut(tokenizer):
    """The official template trims: 'a' and 'a ' are one answer, whose margin is 0 for ever."""
    row = {"prompt": said("q"), "chosen": said("a", first="assistant"), "rejected": said("a ", first="assistant")}
    good = {"prompt": said("q"), "chosen": said("a", first="assistant"), "rejected": said("b", first="assistant")}
    with pytest.warns(UserWarning, match="dropped 1: equal answers"):
        preferences(tokenizer, row, good)
    with pytest.warns(UserWarning, match="dropped 1: equal answers"):
        preferences(tokenizer, pair("p", "x" * 9 + "a", "x" * 9 + "b"), pair("p", "y", "z"), max_length=5)


def test_answers_must_be_the_assistants(tokenizer):
    diverging = {"chosen": said("q", "a", "more", "b"), "rejected": said("q", "c")}
    unasked = {"chosen": said("a", first="assistant"), "rejected": said("b", first="assistant")}
    good = {"chosen": said("q", "a"), "rejected": said("q", "b")}
    with pytest.warns(UserWarning, match="kept 1 of 3") as caught:
        _, report = preferences(tokenizer, diverging, unasked, good)
    assert {reason: drop.origins for reason, drop in report.dropped.items()} == {
        "not an assistant turn": ("row 0",),
        "empty prompt": ("row 1",),
    }
    assert len(caught) == 1
    with pytest.raises(ValueError, match="not an assistant turn: the answer in field 'messages' contains a turn of"):
        supervised(tokenizer, {"messages": said("q", "a", "thanks")})


def test_a_field_of_mixed_form(tokenizer):
    with pytest.raises(ValueError, match="fields 'chosen' and 'rejected' must both be strings or both be messages"):
        preferences(tokenizer, {"chosen": said("q", "a"), "rejected": "b"})
    with pytest.raises(ValueError, match="fields 'prompt' and 'chosen' must both be strings or both be messages"):
        preferences(tokenizer, {"prompt": said("q"), "chosen": "a", "rejected": "b"})


def test_room_for_one_token_is_room(tokenizer):
    with pytest.warns(UserWarning, match="cut 2 responses"):
        examples, _ = preferences(tokenizer, pair("abc", "xy", "zw"), max_length=4)
    assert texts(tokenizer, examples[0], "chosen", "rejected") == ["x", "z"]
    with pytest.raises(ValueError, match="its 4 tokens leave no room for a response in max_length=4"):
        preferences(tokenizer, pair("abcd", "x", "y"), max_length=4)


def test_end_of_text_padding_is_a_switch(tokenizer):
    row = pair("p", "0123", "01234567")
    plain = preferences(tokenizer, row)[0][0]
    assert [len(plain[f"{side}_ids"]) for side in ("chosen", "rejected")] == [5, 9]  # off: one end token, as rendered
    padded = preferences(tokenizer, row, eos_padding=6)[0][0]
    assert texts(tokenizer, padded, "chosen", "rejected") == [
        "0123" + 2 * "<|endoftext|>",
        "01234567" + 4 * "<|endoftext|>",
    ]
    cramped = preferences(tokenizer, row, eos_padding=100, max_length=11)[0][0]
    assert [len(cramped[f"{side}_ids"]) for side in ("chosen", "rejected")] == [10, 10]
    spoken = supervised(tokenizer, {"messages": said("q", "abc")}, eos_padding=8)[0][0]
    assert texts(tokenizer, spoken, "response") == ["abc<|eot_id|>" + 4 * "<|endoftext|>"]


def test_text_in_chunks(tokenizer):
    rows = Dataset.from_list([{"text": "0123456789"}, {"text": ""}, {"text": "ab"}])
    with pytest.warns(UserWarning, match="kept 2 of 3 rows; dropped 1: empty answer"):
        examples, report = tokenize_sft(rows, tokenizer, max_length=4, chunk=True)
    pieces = [decoded(tokenizer, ids) for ids in examples["response_ids"]]
    assert pieces == ["0123", "4567", "89<|endoftext|>", "ab<|endoftext|>"]
    assert examples["example_id"][:] == [0, 0, 0, 2]
    assert examples["chunk"][:] == [0, 1, 2, 0]
    assert (report.kept, report.truncated_responses) == (2, 0)
    with pytest.warns(UserWarning, match="cut 1 responses"):
        whole, _ = supervised(tokenizer, {"text": "0123456789"}, max_length=4)
    assert texts(tokenizer, whole[0], "response") == ["0123"]
    with pytest.raises(ValueError, match="chunk=True needs"):
        supervised(tokenizer, {"messages": said("q", "a")}, chunk=True)
    with pytest.raises(ValueError, match="chunk=True needs"):
        supervised(tokenizer, {"text": "x"}, chunk=True, max_length=None)


def test_options_are_checked(tokenizer):
    for option, message in [
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"eos_padding": 0}, "eos_padding must be at least 1"),
        ({"max_prompt_length": -1}, "max_prompt_length must be at least 1"),
        ({"truncation_mode": "middle"}, "truncation_mode must be"),
        ({"on_bad_rows": "ignore"}, "on_bad_rows must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            preferences(tokenizer, pair(), **option)


def test_ids_that_cannot_name_draws(tokenizer):
    with pytest.raises(ValueError, match="'example_id' repeats a number"):
        preferences(tokenizer, pair(example_id=3), pair(example_id=3))
    with pytest.raises(ValueError, match="'example_id' must hold integers"):
        preferences(tokenizer, pair(example_id="x"))
    assert preferences(tokenizer, pair(example_id=3))[0]["example_id"][:] == [3]


def test_a_tokenizer_without_an_end(tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer has no eos_token"):
        preferences(endless, pair())


def test_several_processes_agree(tokenizer):
    rows = Dataset.from_list([pair(f"p{i}", "yes", "no" if i % 3 else "yes") for i in range(12)])
    with pytest.warns(UserWarning, match="dropped 4: equal answers"):
        alone, report = tokenize_preferences(rows, tokenizer)
    with pytest.warns(UserWarning, match="dropped 4: equal answers"):
        together, same = tokenize_preferences(rows, tokenizer, num_proc=2)
    assert alone[:] == together[:]
    assert dataclasses.asdict(report) == dataclasses.asdict(same)


content = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@settings(deadline=None, max_examples=150)
@given(prompt=content, answer=content.filter(str.strip), chat=st.booleans())
def test_round_trip(tokenizer, prompt, answer, chat):
    """Response ids decode to the content and its end, prompt ids to the prompt: no overlap, no straddling token."""
    encoder = encoder_of(tokenizer, chat=chat)
    if chat:
        asked, said_back = said(prompt), said(answer, first="assistant")
        rendered = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        expected = answer.strip() + "<|eot_id|>"
    else:
        asked, said_back, rendered, expected = prompt, answer, prompt, answer + "<|endoftext|>"
    prompt_ids, ids = encoder.encoded(encoder.texts(asked, [said_back]))
    assert decoded(tokenizer, prompt_ids) == rendered
    assert decoded(tokenizer, encoder.closed(said_back, ids)) == expected


@given(
    ids=st.lists(st.integers(5, 50), min_size=1, max_size=40),
    prompt=st.integers(0, 10),
    limit=st.none() | st.integers(11, 40),
    padding=st.none() | st.integers(1, 16),
)
def test_a_budgeted_response(ids, prompt, limit, padding):
    """It fits, begins with the response, and goes on with end tokens up to a multiple of `eos_padding` or the limit."""
    out = Budget(limit, None, "keep_end", padding).response(ids, prompt, end=0)
    room = len(ids) + 16 if limit is None else limit - prompt
    assert len(out) <= room
    shared = min(len(ids), room)
    assert out[:shared] == ids[:shared]
    assert set(out[shared:]) <= {0}
    if padding is None:
        assert len(out) == shared
    else:
        assert len(out) % padding == 0 or len(out) == room
        assert len(out) - shared < padding


def test_a_text_that_spells_the_mask_token_is_unusable(tokenizer):
    """Kills: a token of the text that the model sees as hidden, and a bound that scores the mask token."""
    for field in ["prompt", "chosen", "rejected"]:
        spelled = "<|start_header_id|>"  # any token will do
        mask = tokenizer.convert_tokens_to_ids(spelled)
        bad = {"prompt": "the sky is", "chosen": " blue", "rejected": " red"}
        bad[field] += spelled
        good = pair("the sky is", " blue", " red")
        with pytest.warns(UserWarning, match="dropped 1: mask token"):
            examples, report = preferences(tokenizer, good, bad, mask_id=mask)
        assert (examples["example_id"][:], report.dropped["mask token"].count) == ([0], 1)
        with pytest.raises(ValueError, match=f"its {field} spells the model's mask token"):
            preferences(tokenizer, bad, mask_id=mask, on_bad_rows="error")
        assert len(preferences(tokenizer, bad)[0]) == 1
        with pytest.raises(ValueError, match="mask token"):
            supervised(tokenizer, {"text": "a" + spelled}, mask_id=mask, on_bad_rows="error")
