"""The demo: its task and verifier, its intervals, and all its stages at a size of seconds."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.stat import assert_mean
from vrpo.demo.report import paired_difference, wilson
from vrpo.demo.run import Settings, run
from vrpo.demo.task import BASES, CARELESS, LENGTH, PARTS, partner, problems, right_bases, student_answers


def test_partners_are_watson_and_crick() -> None:
    assert {base: partner(base) for base in BASES} == {"A": "T", "T": "A", "C": "G", "G": "C"}


def test_the_verifier_counts_right_bases() -> None:
    """Kills: counting copies, or the prompt's equals sign; an answer of another length is worth nothing."""
    strand = "ACGTACGT"
    truth = "".join(map(partner, strand))
    assert right_bases(strand + "=", truth) == LENGTH
    assert right_bases(strand + "=", strand) == 0
    assert right_bases(strand + "=", truth[:-1] + strand[-1]) == LENGTH - 1
    assert right_bases(strand + "=", truth + "A") == right_bases(strand + "=", truth[:-1]) == 0


def test_students_are_careless_as_often_as_stated() -> None:
    """Kills: the error rate inverted or applied to whole answers. False-alarm rate 1e-6."""
    prompts = problems("students", 2000)
    assert prompts == problems("students", 3000)[:2000]
    answers = student_answers(prompts, 0)
    copies = [
        float(given == base)
        for text, answer in zip(prompts, answers, strict=True)
        for given, base in zip(answer, text, strict=False)
    ]
    assert_mean(torch.tensor(copies), CARELESS, 0.0, 1.0, resolution=0.05)
    assert any(0 < right_bases(text, answer) < LENGTH for text, answer in zip(prompts, answers, strict=True))


def test_wilson_interval() -> None:
    """Against the textbook value for 8 of 10 (Wilson 1927; Brown, Cai, DasGupta 2001): 0.490 to 0.943."""
    value = wilson([True] * 8 + [False] * 2)
    assert math.isclose(value["low"], 0.4902, abs_tol=1e-4)
    assert math.isclose(value["high"], 0.9433, abs_tol=1e-4)
    for n in range(1, 1000, 7):  # the interval holds its mean exactly: a plot refuses a negative error bar
        assert wilson([False] * n)["low"] == 0.0
        assert wilson([True] * n)["high"] == 1.0


def test_paired_difference_uses_pairing() -> None:
    """Kills: an unpaired interval. Identical answers have a difference of exactly 0, without any width."""
    one = [True, False] * 50
    assert paired_difference(one, one) == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 100}
    value = paired_difference([True] * 100, one)
    half = 1.959964 * math.sqrt(0.25 * 100 / 99 / 100)
    assert value["mean"] == 0.5
    assert value["high"] - value["low"] == pytest.approx(2 * half)


def test_parts_are_disjoint_and_all_strands() -> None:
    """Kills: test problems that the model has seen in training."""
    parts = [problems(part, size) for part, size in PARTS.items()]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(BASES) ** LENGTH
    with pytest.raises(ValueError, match="there are 4096"):
        problems("test", 4097)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    run(Settings(pretrain_steps=30, pretrain_batch=32, collect=60, evaluate=20), folder)
    return folder


def test_the_demo_leaves_what_it_promises(demo: Path) -> None:
    results = json.loads((demo / "results.json").read_text())
    assert results["forward_passes"]["vrpo"] == results["forward_passes"]["sft_control"] == results["pairs"] * 24
    assert (demo / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "VRPO minus control" in (demo / "results.md").read_text()
    for name in ("base", "sft_control", "vrpo"):
        assert (demo / name / "model.safetensors").is_file()
        assert len((demo / f"answers_{name}.jsonl").read_text().strip().split("\n")) == 20


def test_the_demo_prefers_what_the_verifier_prefers(demo: Path) -> None:
    """Kills: chosen and rejected swapped, ties kept."""
    pairs = [json.loads(line) for line in (demo / "pairs.jsonl").read_text().strip().split("\n")]
    assert pairs
    for pair in pairs:
        chosen, rejected = (right_bases(pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        assert (chosen, rejected) == (pair["chosen_right_bases"], pair["rejected_right_bases"])
        assert chosen > rejected
