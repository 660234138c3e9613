"""Each instruction: an answer that follows it, and near misses that do not."""

import gzip
import json

import pytest

from tests.loops import each
from vrpo.rewards import instructions
from vrpo.rewards.instructions import CHECKS, Instructions
from vrpo.rewards.verdict import Answer, Judge

ENGLISH = "this is a plain sentence about the weather in the morning and the people who walk there"
PARTS = "one\n***\ntwo\n***\nthree"

CASES = [
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        ["NASA and I", "THE END"],
        ["NASA and you", "Nasa And I", ""],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "less than", "capital_frequency": 2},
        ["one NASA", "none"],
        ["NASA and USA"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem. "},
        ["Write a poem.\nRoses", "write a poem. Roses"],
        ["Roses", "Sure! Write a poem. Roses", "Write a poem."],
    ),
    (
        "combination:two_responses",
        {},
        ["one\n******\ntwo", "******\none ****** two"],
        ["one", "one ****** one", "one ****** two ****** three", "one ***** two", "one ******* two", "one ******"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[a] and [b]", "[a][b][c]"],
        ["[a] and b", "[] and [a]", "[[a]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. more", "Bye. p.s. more", "Bye\n**P.S.** more", "P.S: x"],
        ["Bye", "Bye P.P.S. more", "Bye P.S.", "stops. x"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S more", "P.P.S. more"],
        ["P.S. more", "P.P.S"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well: My answer is maybe."],
        ["My answer is yes", "my answer is no.", "Yes."],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1]}\n```', "[1]\n"],
        ['Here: {"a": 1}', "{'a': 1}", '"text"', "{", "[" * 5000, "```", '{"a": NaN}', "[-Infinity]"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "SECTION I SECTION II SECTION III"],
        ["SECTION 1", "SECTION 1 SECTION 1", "Section 1 Section 2"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  - b\ntext"],
        ["* a", "* a\n* b\n* c", "*a*\n*b*", "***\n---"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b c*", "**a** and *b*", "* *a* *b*"],
        ["*a*", "* a\n* b", "**a**", "*a\nb* *c*", "** ** * *"],
    ),
    ("detectable_format:title", {}, ["<<Title>>\ntext", "x << My title >>"], ["<Title>", "<< >>", "<<a\nb>>"]),
    ("keywords:existence", {"keywords": ["cat", "Dog"]}, ["Cats and dogs", "dog, cat"], ["cat", "concatenate dog"]),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "can"]},
        ["rocket candy", "none"],
        ["Rock", "we can.", "can't"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "relation": "at least", "frequency": 2},
        ["war and wars", "War, war, war"],
        ["war", "toward war"],
    ),
    ("keywords:frequency", {"keyword": "war", "relation": "less than", "frequency": 2}, ["war", "none"], ["war war"]),
    (
        "keywords:letter_frequency",
        {"letter": "t", "let_relation": "less than", "let_frequency": 2},
        ["a T", "a"],
        ["Tt", "state"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_relation": "at least", "let_frequency": 2},
        ["!!", "a! b!"],
        ["!"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"first_word": "weekend", "num_paragraphs": 2, "nth_paragraph": 2},
        ["a\n\nWeekend b", 'a\n\n"weekend" b'],
        ["weekend\n\na", "a\n\nb", "a\n\nweekend\n\nc", "a\n\nweekends", "weekend"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 3},
        [PARTS, f"***\n{PARTS}\n***"],
        ["one\n\ntwo\n\nthree", "one ***\n*** three", f"{PARTS}\n***\nfour", "a **** b *** c"],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 3},
        ["One. Two."],
        ["One. Two. Three."],
    ),
    (
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 3},
        ["a b c", "don't you go"],
        ["a b", "don't go"],
    ),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
    ("startend:end_checker", {"end_phrase": "Peace! "}, ["x Peace!", '"x PEACE!"\n'], ["Peace! x", "x Peace"]),
    ("startend:quotation", {}, ['"a"', ' "a "b" c"\n'], ['"a', "a", '"', '""', "'a'"]),
]


@each(("name", "arguments", "right", "wrong"), CASES)
def test_instructions(name, arguments, right, wrong):
    """Kills, for each: "at least", "less than" and "exactly" exchanged, or off by one; parts of words as words."""
    check(name, arguments, right, wrong)


def check(name, arguments, right, wrong):
    row = {"instruction_id_list": [name], "kwargs": [arguments]}
    for texts, reward in ((right, 1), (wrong, 0)):
        for text in texts:
            assert Instructions()([Answer("q", text, row)])[0].reward == reward, (name, text)


LANGUAGES = [
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, ENGLISH.upper() + "x", "123"]),
    ("change_case:english_lowercase", {}, [ENGLISH], [ENGLISH.upper(), "T" + ENGLISH]),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist ein einfacher Satz über das Wetter."],
        [ENGLISH, "123"],
    ),
    ("language:response_language", {"language": "hi"}, ["यह मौसम के बारे में एक सरल वाक्य है।"], [ENGLISH]),
]


@each(("name", "arguments", "right", "wrong"), LANGUAGES)
def test_languages(name, arguments, right, wrong):
    """Kills: capitals given to the detector as they are; digits that crash it."""
    pytest.importorskip("langdetect")
    check(name, arguments, right, wrong)


def test_languages_are_found_the_same_way_each_time():
    """Kills: a detector without a seed, or with one set for everybody who uses the library."""
    langdetect = pytest.importorskip("langdetect")
    row = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "nl"}]}
    text = "was is"
    found = {Instructions()([Answer("q", text, row)])[0].reward for _ in range(20)}
    assert len(found) == 1
    assert langdetect.DetectorFactory.seed is None


def test_without_the_library(monkeypatch):
    """Kills: an import at the top, which everybody would need."""
    monkeypatch.setitem(__import__("sys").modules, "langdetect", None)
    instructions._detectors.cache_clear()
    row = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "de"}]}
    with pytest.raises(ValueError, match=r"vrpo\[eval\]"):
        Instructions()([Answer("q", "ja", row)])
    instructions._detectors.cache_clear()


def test_lines_that_end_in_another_way():
    """Kills: CRLF that joins paragraphs."""
    row = {
        "instruction_id_list": ["length_constraints:nth_paragraph_first_word", "detectable_format:number_bullet_lists"],
        "kwargs": [{"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "two"}, {"num_bullets": 2}],
    }
    for text in ("* one\n\ntwo\n* three", "* one\r\n\r\ntwo\r\n* three", "* one\r\rtwo\r* three"):
        assert Instructions()([Answer("q", text, row)])[0].reward == 1, text


def test_a_language_that_is_never_found():
    """Kills: 0 for every answer, whatever it is; an error that comes only with the answers."""
    pytest.importorskip("langdetect")
    row = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "zh"}]}
    for text in ("", "\u4f60\u597d"):
        with pytest.raises(
            ValueError, match=r"answer 0: instruction 'language:.*'zh': langdetect never finds it.* zh-cn"
        ):
            Instructions()([Answer("q", text, row)])


def test_shares_and_all_or_nothing():
    """Kills: the mean of followed ones over known ones; end tokens judged; an empty answer that has no comma."""
    assert isinstance(Instructions(), Judge)
    names = ["punctuation:no_comma", "startend:quotation", "detectable_format:title"]
    row = {"instruction_id_list": names, "kwargs": [{}, {}, {}]}
    texts = ['"<<a>>"<|eot_id|>,', '"a"', ",", "  "]
    shares = Instructions()([Answer("q", text, row) for text in texts])
    assert [one.reward for one in shares] == pytest.approx([1, 2 / 3, 0, 0])
    assert [one.reason for one in shares][:2] == [None, "detectable_format:title"]
    assert [one.reward for one in Instructions(True)([Answer("q", text, row) for text in texts])] == [1, 0, 0, 0]


def test_rows_that_lack_something():
    for row, message in (
        ({"kwargs": [{}]}, "answer 0: .*'instruction_id_list'"),
        ({"instruction_id_list": ["a:b"], "kwargs": [{}]}, "answer 0: unknown instruction 'a:b'"),
        ({"instruction_id_list": ["a:b"], "kwargs": []}, "1 instructions, 0 kwargs"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}, "'keywords:existence' lacks .*'keywords'"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": None}]}, "lacks .*'keywords'"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": 3}]}, "cannot use its arguments .*3"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [None]}, "list of objects, not .None."),
    ):
        with pytest.raises(ValueError, match=message):
            Instructions()([Answer("q", "x", row)])
    relation = {"relation": "at most", "num_words": 3}
    with pytest.raises(ValueError, match="at most"):
        Instructions()(
            [Answer("q", "x", {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [relation]})]
        )


def test_all_real_rows_are_understood(vrpo_data):
    """All 541 prompts; every check occurs; an answer that repeats its prompt is judged without an error."""
    pytest.importorskip("langdetect")
    lines = gzip.decompress(vrpo_data("ifeval/input_data.jsonl.gz").read_bytes()).split(b"\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    assert {name for row in rows for name in row["instruction_id_list"]} == set(CHECKS)
    assert len(CHECKS) == 25
    verdicts = Instructions()([Answer(row["prompt"], row["prompt"], row) for row in rows])
    assert 0.1 < sum(verdict.reward for verdict in verdicts) / len(rows) < 0.7
