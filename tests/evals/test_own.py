"""Tasks of our own: rows, prompts, answers, verdicts."""

import gzip
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loops import each
from tests.rewards.machine import WITHOUT
from vrpo import generate
from vrpo.evals.answers import cut_left, until, written
from vrpo.evals.own import OWN
from vrpo.evals.own_run import OwnRun, judged
from vrpo.models.hf import HFDenoiser
from vrpo.rewards.countdown import value_of
from vrpo.rewards.judges import verifier
from vrpo.rewards.sandbox import SandboxUnavailable
from vrpo.rewards.verdict import Answer, Verdict

ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "How many ducks?", "answer": "Two and one. #### 3"},
    "math500": {"problem": "What is $1+1$?", "answer": "2", "solution": "It is the SOLUTION."},
    "humaneval": {"prompt": "def f(x):\n    '''Double.'''\n", "canonical_solution": "SOLUTION", "test": "HIDDEN"},
    "mbpp": {"prompt": "Write f.", "code": "SOLUTION", "test_list": ["assert f(1) == 2", "assert f(2) == 4"]},
    "ifeval": {"prompt": "Use no commas.", "instruction_id_list": [], "kwargs": []},
    "countdown": {"input": "30,100,93", "output": "23"},
    "sudoku": {"Puzzle": "3102200002100320", "Solution": "3142243142131324"},
}


class ByLength:
    """A judge for tests: right if the answer has an even number of characters. Remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[Answer] = []

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        self.seen += answers
        return [Verdict(float(len(one.text) % 2 == 0), one.text[:3] or None, "odd") for one in answers]


@each("name", OWN)
def test_prompts_ask_and_do_not_tell(name: str) -> None:
    """The question is in the prompt, the solution is not."""
    prompt = OWN[name].prompt(ROWS[name])
    question = {
        "gsm8k": "How many ducks?",
        "math500": "What is $1+1$?",
        "humaneval": "def f(x):\n    '''Double.'''",
        "mbpp": "f(2) == 4",
        "ifeval": "Use no commas.",
        "countdown": "30, 100, 93",
        "sudoku": "3102200002100320",
    }
    assert question[name] in prompt
    for secret in ("SOLUTION", "HIDDEN", "####", "3142243142131324"):
        assert secret not in prompt


def test_rows_that_bring_a_prompt_keep_it() -> None:
    messages = [{"role": "user", "content": "Solve it."}]
    assert OWN["countdown"].prompt({"prompt": messages}) == "Solve it."
    assert OWN["sudoku"].prompt({"prompt": "Solve it."}) == "Solve it."


def test_files_are_read_and_mistakes_named(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROWS["gsm8k"]).encode() + b"\n\n" + json.dumps({"answer": "3"}).encode()))
    with pytest.raises(ValueError, match=r"test\.jsonl\.gz:3 has no field 'question', which gsm8k needs"):
        OWN["gsm8k"].rows(path)
    path.write_bytes(gzip.compress(json.dumps(ROWS["gsm8k"]).encode() + b"\nnonsense"))
    with pytest.raises(ValueError, match=r"test\.jsonl\.gz:2 is not a JSON object"):
        OWN["gsm8k"].rows(path)
    with pytest.raises(ValueError, match=r"gsm8k: no such file: nowhere\.jsonl"):
        OWN["gsm8k"].rows(Path("nowhere.jsonl"))
    table = tmp_path / "test.csv"
    table.write_text("Puzzle,Solution\n3102200002100320,3142243142131324\n")
    assert OWN["sudoku"].rows(table) == [ROWS["sudoku"]]


@each(
    ("name", "row", "message"),
    [
        ("gsm8k", {"question": None, "answer": "3"}, "has no field 'question', which gsm8k needs"),
        ("gsm8k", {"question": "How many?"}, "has no field 'answer', which gsm8k needs"),
        ("gsm8k", {"question": "How many?", "answer": "many"}, "cannot be judged: no number in its row's field"),
        ("humaneval", {"prompt": "def f(x):", "entry_point": "f"}, "has no field 'test', which humaneval needs"),
        ("countdown", {"input": "1;2", "output": "3"}, "cannot be judged: its row is no Countdown problem"),
        ("countdown", {"input": [1, 2], "output": "3"}, "is no row of countdown"),
        ("countdown", {"input": "1,2"}, "has no field 'output', which countdown needs"),
        ("sudoku", {"Puzzle": "3102", "Solution": "3142"}, "cannot be judged: its row is no 4x4 Sudoku"),
        ("ifeval", {"prompt": "x", "instruction_id_list": ["a:b"], "kwargs": [{}]}, "unknown instruction 'a:b'"),
    ],
)
def test_rows_that_cannot_be_judged_are_refused(name: str, row: dict[str, Any], message: str, tmp_path: Path) -> None:
    """By line, before anything is answered. Kills: hours of answers to questions without a truth."""
    path = tmp_path / "test.jsonl"
    good = {**ROWS[name], "entry_point": "f", "test": "x", "instruction_id_list": ["punctuation:no_comma"]}
    good["kwargs"] = [{}]
    path.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=r"test\.jsonl:2 ") as error:
        OWN[name].rows(path, verifier(OWN[name].judge) if name != "humaneval" else ByLength())
    assert message in str(error.value)


def test_a_machine_without_a_sandbox_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(without: Any) -> None:
        raise SandboxUnavailable("no Landlock here")

    monkeypatch.setattr("vrpo.rewards.sandbox._check_machine", refuse)
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({**ROWS["humaneval"], "entry_point": "f"}) + "\n")
    with pytest.raises(ValueError, match="cannot be judged: no Landlock here"):
        OWN["humaneval"].rows(path, verifier("humaneval"))


def test_tables_may_be_a_spreadsheets(tmp_path: Path) -> None:
    """With its mark at the beginning; a line that ends early is named. Kills: 'no field Puzzle' of a good file."""
    path = tmp_path / "test.csv"
    path.write_bytes(b"\xef\xbb\xbfPuzzle,Solution\r\n3102200002100320,3142243142131324\r\n")
    assert OWN["sudoku"].rows(path, verifier("sudoku")) == [ROWS["sudoku"]]
    path.write_text("Puzzle,Solution\n3102200002100320,3142243142131324\n3102200002100320\n")
    with pytest.raises(ValueError, match=r"test\.csv:3 cannot be judged"):
        OWN["sudoku"].rows(path, verifier("sudoku"))


def test_countdown_leaves_out_what_is_trained_on(tmp_path: Path) -> None:
    """By numbers in any order and target. Kills: rows of another target left out, order of numbers seen."""
    train = {"reward_model": {"ground_truth": "23"}, "extra_info": {"numbers": "[93, 30, 100]"}}
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(json.dumps(train).encode()))
    test = tmp_path / "test.jsonl"
    rows = [ROWS["countdown"], {"input": "30,100,93", "output": "24"}]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert OWN["countdown"].rows(test) == rows[1:]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gsm8k", 1319),
        ("math500", 500),
        ("humaneval", 164),
        ("mbpp", 427),
        ("ifeval", 541),
        ("countdown", 252),
        ("sudoku", 500),
    ],
)
def test_real_files(name: str, count: int, vrpo_data: Callable[[str], Path]) -> None:
    """256 rows of Countdown, of which four are in its training set."""
    rows = OWN[name].rows(vrpo_data(OWN[name].file))
    assert len(rows) == count
    assert all(OWN[name].prompt(row).strip() for row in rows)


def _solved(row: dict[str, Any]) -> str:
    """An expression for a Countdown row, by trying all of them."""
    target = Fraction(row["output"])
    for a, b, c in permutations(row["input"].split(",")):
        for first, second in product("+-*/", repeat=2):
            for text in (f"({a}{first}{b}){second}{c}", f"{a}{first}({b}{second}{c})"):
                with suppress(ValueError):
                    if value_of(text)[0] == target:
                        return text
    raise AssertionError(row)


PERFECT: dict[str, Callable[[dict[str, Any]], str]] = {
    "gsm8k": lambda row: f"So it is\n\\boxed{{{row['answer'].rpartition('#### ')[2]}}}",
    "math500": lambda row: f"It is \\boxed{{{row['answer']}}}.",
    "humaneval": lambda row: f"Here:\n```python\n{row['prompt']}{row['canonical_solution']}\n```\nDone.",
    "mbpp": lambda row: f"```python\n{row['code']}\n```",
    "countdown": lambda row: f"<answer>{_solved(row)}</answer>",
    "sudoku": lambda row: f"<answer>{row['Solution']}</answer>",
}


@pytest.mark.parametrize("name", PERFECT)
def test_perfect_answers_are_right(name: str, vrpo_data: Callable[[str], Path]) -> None:
    """In the form that the prompt asks for, on the real files, by the real judges (of programs every 40th): all right,
    and the question itself for an answer never is. Kills: a judge that looks elsewhere than the prompt says."""
    if OWN[name].runs_code and WITHOUT:
        pytest.skip(WITHOUT)
    judge = verifier(OWN[name].judge)
    rows = OWN[name].rows(vrpo_data(OWN[name].file), judge)[:: 40 if OWN[name].runs_code else 1]
    answers = [{"prompt": OWN[name].prompt(row), "answer": PERFECT[name](row)} for row in rows]
    found = judged(answers, rows, judge)
    assert [one for one in found if one["reward"] != 1] == []
    asked = judged([{**one, "answer": one["prompt"]} for one in answers[:20]], rows[:20], judge)
    assert sum(one["reward"] for one in asked) <= 1


def test_judges_see_prompt_answer_and_row() -> None:
    """In order. Kills: rows of another part given to the judge."""
    judge = ByLength()
    answers = [{"item": i, "prompt": f"p{i}", "answer": "x" * i} for i in range(3)]
    rows = [{"truth": i} for i in range(3)]
    found = judged(answers, rows, judge)
    assert [(one.prompt, one.text, one.row) for one in judge.seen] == [
        (f"p{i}", "x" * i, {"truth": i}) for i in range(3)
    ]
    assert found[1] == {**answers[1], "reward": 0.0, "extracted": "x", "reason": "odd"}
    assert [row["reward"] for row in found] == [1.0, 0.0, 1.0]


def _run(folder: Path, **changes: Any) -> OwnRun:
    rows = [{"question": f"How many are {i}?"} for i in range(7)]
    fields: dict[str, Any] = {
        "task": OWN["gsm8k"],
        "rows": rows,
        "folder": folder,
        "sampling": {"max_new_tokens": 8, "block_size": 4, "temperature": 0.8},
        "settings": {"model": "tiny"},
        "seed": 4,
        "chat": False,
        "batch_size": 2,
        "part_size": 3,
    }
    return OwnRun(**fields | changes)


def test_answers_are_those_of_the_library(model: HFDenoiser, tmp_path: Path) -> None:
    """With randomness, in parts of three and batches of two. Kills: the number of a part's first row lost, settings not
    passed on, the seed ignored."""
    judge = ByLength()
    run = _run(tmp_path)
    samples = run.samples(lambda: model, lambda: judge)
    expected = generate(
        model,
        [OWN["gsm8k"].prompt(row) for row in run.rows],
        max_new_tokens=8,
        block_size=4,
        temperature=0.8,
        generator=torch.Generator().manual_seed(4),
    )
    assert [row["answer"] for row in samples] == [one.text for one in expected]
    assert [one.row for one in judge.seen] == list(run.rows)
    ends = {model.eos_id, model.eot_id}
    assert [row["finished"] for row in samples] == [bool(ends & set(one.ids)) for one in expected]
    assert [row["reward"] for row in samples] == [float(len(one.text or "") % 2 == 0) for one in expected]
    assert {row["seed"] for row in samples} == {4}


def test_a_finished_task_needs_neither_model_nor_judge(model: HFDenoiser, tmp_path: Path) -> None:
    def nobody() -> Any:
        raise AssertionError("asked for")

    first = _run(tmp_path).samples(lambda: model, ByLength)
    assert _run(tmp_path).samples(nobody, nobody) == first
    with pytest.raises(ValueError, match="seed was 4 and is 5"):
        _run(tmp_path, seed=5).samples(nobody, nobody)


def test_chat_puts_prompts_through_the_template(model: HFDenoiser, tmp_path: Path) -> None:
    greedy = {"max_new_tokens": 4}
    samples = _run(tmp_path, chat=True, sampling=greedy).samples(lambda: model, ByLength)
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in samples]
    assert [row["answer"] for row in samples] == [one.text for one in generate(model, prompts, max_new_tokens=4)]
    assert not samples[0]["prompt"].startswith("<|")


def test_long_prompts_lose_their_beginning_with_a_warning(model: HFDenoiser) -> None:
    """Kills: cut on the right, no room left for the answer, silence."""
    with pytest.warns(UserWarning, match="gsm8k, row 3: 2 of 5 prompt tokens are cut off on the left, 3 fit"):
        assert cut_left([1, 2, 3, 4, 5], 3, "gsm8k, row 3") == [3, 4, 5]
    assert cut_left([1, 2], 2, "x") == [1, 2]
    options = {"max_length": 10, "seed": 0, "first": 0, "batch_size": 1}
    with pytest.warns(UserWarning, match="the row: 3 of 9"):
        (one,) = written(model, [list(range(20, 29))], ["the row"], {"max_new_tokens": 4}, **options)
    (expected,) = generate(model, [list(range(23, 29))], max_new_tokens=4)
    assert (one.text, one.cut) == (expected.text, 3)
    with pytest.raises(ValueError, match="leaves no room for a prompt in 10"):
        written(model, [[20]], ["the row"], {"max_new_tokens": 10}, **options)


def test_stop_strings_cut_at_the_first() -> None:
    """Kills: only the first stop string in the list used, the stop string kept, an empty one that splits everything."""
    assert until("one\n\ntwo END three", ["END", "\n\n", ""]) == "one"
    assert until("one", []) == "one"
