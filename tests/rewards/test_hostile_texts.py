"""No answer, however strange or long, crashes a judge or keeps it busy: judges see what models write."""

import time

import pytest

from tests.loops import each
from vrpo.rewards.choice import Choice
from vrpo.rewards.code import code_of, continued, defines
from vrpo.rewards.countdown import Countdown
from vrpo.rewards.instructions import CHECKS, Instructions
from vrpo.rewards.mathematics import Symbolic
from vrpo.rewards.numeric import Numeric
from vrpo.rewards.sudoku import Sudoku, SudokuCells
from vrpo.rewards.verdict import Answer

PIECES = (
    "\\boxed{",
    "<answer>",
    "</answer>",
    "####",
    "answer is ",
    "1",
    "1,",
    "1.",
    "-",
    "(",
    "\n",
    " ",
    ".",
    "*",
    "**a",
    "<<",
    "<<a",
    "[",
    "```\n",
    "\\frac{1}{",
    "{",
    "}",
    "=",
    "\\",
    "A",
    "(A)",
    '"',
    "\n\n",
    "\n \n*",
    "P.S",
    "SECTION 1",
    "a",
    "\ud800",
    "\0",
    "é",
    "。",
    "<|",
    "[BEGIN]",
    "_",
    "a.",
    "1/0",
)
ARGUMENTS = {
    "capital_relation": "at least",
    "capital_frequency": 3,
    "prompt_to_repeat": "a",
    "num_placeholders": 3,
    "postscript_marker": "P.P.S",
    "section_spliter": "SECTION",
    "num_sections": 2,
    "num_bullets": 3,
    "num_highlights": 3,
    "keywords": ["a"],
    "forbidden_words": ["b"],
    "keyword": "a",
    "relation": "less than",
    "frequency": 3,
    "letter": "a",
    "let_relation": "at least",
    "let_frequency": 3,
    "first_word": "a",
    "num_paragraphs": 2,
    "nth_paragraph": 1,
    "num_sentences": 3,
    "num_words": 3,
    "end_phrase": "a",
}
ROW = {
    "answer": 1,
    "choice": "A",
    "input": "1,2,3",
    "output": "6",
    "Puzzle": "0321003004002100",
    "Solution": "4321123434122143",
    "instruction_id_list": [name for name in CHECKS if "language" not in name and "english" not in name],
}
ROW["kwargs"] = [ARGUMENTS] * len(ROW["instruction_id_list"])
JUDGES = (Numeric(), Choice("choice"), Countdown(), Sudoku(), SudokuCells(), Instructions())


@each("piece", PIECES)
def test_long_repetitions(piece):
    """30,000 characters of one thing. Kills: patterns and loops whose time grows with the square of the text."""
    for text in (piece * (30_000 // len(piece)), "x " + piece * (30_000 // len(piece)) + " x"):
        start = time.process_time()
        for judge in JUDGES:
            (verdict,) = judge([Answer("q", text, ROW)])
            assert 0 <= verdict.reward <= 1
        defines(continued("", code_of(text, "f")[-1])[-1], "f")
        assert time.process_time() - start < 2, piece


TAILS = (
    *(" " * 5000, "\n" * 5000, "\nAnd so it goes on, as one can see." * 300, ".... " * 1000, "!" * 5000, "*" * 5000),
    *("\n---\n" * 500, "<|eot_id|>1 " * 900, "</answer>" * 500, "\\boxed{}" * 50, "<answer></answer>" * 50, "_" * 5000),
)
RIGHT = [
    (Numeric(), ["1", "The answer is 1.", "\\boxed{1}", "<answer>1</answer>", "#### 1"]),
    (Choice("choice"), ["(A)", "The answer is A.", "\\boxed{A}", "<answer>A</answer>"]),
    (Countdown(), ["<answer>1+2+3</answer>", "\\boxed{1+2+3}", "<answer>\\boxed{1+2+3}</answer>", "1+2+3"]),
    (Sudoku(), ["4321123434122143", "<answer>4321123434122143</answer>"]),
]


@each("tail", TAILS)
def test_a_tail_changes_no_verdict(tail):
    """Kills: the last box although it is empty, the last line although it says nothing, a cut from the end."""
    for judge, texts in RIGHT:
        for text in texts:
            assert judge([Answer("q", text + tail, ROW)])[0].reward == 1, (judge, text)


@each("tail", TAILS)
def test_a_tail_changes_no_expression(tail):
    pytest.importorskip("math_verify")
    for text in (r"\boxed{\frac{1}{2}}", r"The answer is $\frac{1}{2}$.", "1/2"):
        assert Symbolic()([Answer("q", text + tail, {"answer": "0.5"})])[0].reward == 1, text
