"""Tasks of our own: rows, prompts, answers, verdicts."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from vrpo import generate
from vrpo.evals.answers import cut_left, until, written
from vrpo.evals.own import OWN
from vrpo.evals.own_run import OwnRun, judged
from vrpo.models.hf import HFDenoiser
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


@pytest.mark.parametrize("name", OWN)
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
    with pytest.raises(ValueError, match="row 1 has no field 'question', which gsm8k needs"):
        OWN["gsm8k"].rows(path)
    path.write_bytes(gzip.compress(json.dumps(ROWS["gsm8k"]).encode() + b"\nnonsense"))
    with pytest.raises(ValueError, match=r"test\.jsonl\.gz:2 is not a JSON object"):
        OWN["gsm8k"].rows(path)
    with pytest.raises(ValueError, match=r"gsm8k: no such file: nowhere\.jsonl"):
        OWN["gsm8k"].rows(Path("nowhere.jsonl"))
    table = tmp_path / "test.csv"
    table.write_text("Puzzle,Solution\n3102200002100320,3142243142131324\n")
    assert OWN["sudoku"].rows(table) == [ROWS["sudoku"]]


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
