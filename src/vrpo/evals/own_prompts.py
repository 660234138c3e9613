"""`vrpo eval --prompts`: a file of one's own, judged by any judge of `vrpo pairs`.

Verifiers and reward models judge each answer by itself. An endpoint compares the models' answers to the same prompt:
what counts is how often a model's answer is the better one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vrpo.answering.prompts import read_prompts
from vrpo.data.json_rows import Record
from vrpo.evals.kept import Crew, Row, rows_of
from vrpo.evals.own import OwnTask
from vrpo.fields.options import JudgeOptions
from vrpo.pairs.judges import AgainstOthers, ByItself, is_verifier, judge_settings, judging, verifier_of
from vrpo.pairs.run import judge_of
from vrpo.rewards.comparisons import Comparison, schedule, win_rates
from vrpo.rewards.endpoint import EndpointJudge
from vrpo.rewards.pairing import Key
from vrpo.rewards.verdict import Answer, Judge

NAME = "prompts"
RUN_CODE = ("humaneval", "mbpp")


def own_prompts(
    path: str, judge: str, arguments: Mapping[str, Any] | None, seed: int, limit: int | None
) -> tuple[OwnTask, list[Row], JudgeOptions]:
    """The task that a file is, its rows, and its judge as `vrpo pairs` has it. A verifier is tried on every row.

    Raises:
        ValueError: naming the field, or the line that cannot be used.
    """
    asked = judge_of(judge, arguments, seed)
    task = OwnTask(
        NAME, path, lambda row: row["prompt"], judge, _records, (), judge in RUN_CODE, judged_by=judge_settings(asked)
    )
    return task, task.rows(Path(path), verifier_of(asked) if is_verifier(asked) else None)[:limit], asked


def _records(path: Path) -> list[Record]:
    return [Record(one.origin, {**one.row, "prompt": one.content}) for one in read_prompts(path)]


def loader(asked: JudgeOptions, device: str) -> Callable[[], Judge]:
    """A reward model, loaded when it is first called for."""

    @cache
    def load() -> Judge:
        found = judging(asked, device, Path())
        assert isinstance(found, ByItself)
        return found.judge

    return load


def compared(
    asked: JudgeOptions,
    rows: Sequence[Row],
    answers: Mapping[str, Sequence[Row]],
    folder: Path,
    part_size: int,
    crew: Crew,
) -> dict[str, dict[str, float]]:
    """By model and item: the share of the comparisons with other models' answers that its answer won. Kept in
    folder/comparisons.jsonl, the endpoint's replies in folder/replies.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    found = judging(asked, "cpu", folder / "replies.jsonl")
    assert isinstance(found, AgainstOthers)
    judge, models = found.judge, list(answers)
    items = [[rows[at], *(answers[model][at]["answer"] for model in models)] for at in range(len(rows))]

    def make(chosen: Sequence[Any], first: int) -> list[Row]:
        sides, numbers = range(len(models)), range(first, first + len(chosen))
        plans = [schedule(sides, asked.comparisons, Key(asked.seed, number)) for number in numbers]
        results = _results(judge, chosen, plans)
        return [
            {
                "item": number,
                "rewards": [one.reward for one in win_rates(sides, plan, own)],
                "comparisons": [
                    {"models": [models[side] for side in pair], "replies": list(one.replies), "error": one.error}
                    for pair, one in zip(plan, own, strict=True)
                ],
            }
            for number, plan, own in zip(numbers, plans, results, strict=True)
        ]

    settings = {"judge": judge_settings(asked), "models": models}
    output = folder / "comparisons.jsonl"
    made = rows_of(items, make, output=output, settings=settings, size=part_size, label="comparing", crew=crew)
    return {
        model: {str(row["item"]): math.nan if row["rewards"][at] is None else row["rewards"][at] for row in made}
        for at, model in enumerate(models)
    }


def _results(
    judge: EndpointJudge, items: Sequence[Any], plans: Sequence[Sequence[tuple[int, int]]]
) -> list[list[Comparison]]:
    """Equal answers are a tie that nobody is asked about."""
    pairs = [
        [(Answer(row["prompt"], texts[one], row), Answer(row["prompt"], texts[other], row)) for one, other in plan]
        for (row, *texts), plan in zip(items, plans, strict=True)
    ]
    asked = [pair for own in pairs for pair in own if pair[0].text.strip() != pair[1].text.strip()]
    replies = iter(judge.compare(asked))
    return [
        [Comparison((0.5, 0.5)) if pair[0].text.strip() == pair[1].text.strip() else next(replies) for pair in own]
        for own in pairs
    ]


def of_all(rewards: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, dict[str, float]], str | None]:
    """The items that every model has a reward for, and what to say of the others."""
    every = list(next(iter(rewards.values())))
    judged = [item for item in every if all(math.isfinite(each[item]) for each in rewards.values())]
    left = len(every) - len(judged)
    note = f"{left} of {len(every)} items are left out, which were not judged for every model" if left else None
    return {model: {item: found[item] for item in judged} for model, found in rewards.items()}, note
