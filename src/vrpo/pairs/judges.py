"""The judges of `vrpo pairs`: what they are called, which fields they take, how their verdicts stand in a file.

Verdicts do not depend on how pairs are made of them: another rule costs no new judgement.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vrpo.fields.options import JudgeOptions
from vrpo.pairs.samples import Group
from vrpo.rewards.comparisons import Comparison, schedule, win_rates
from vrpo.rewards.endpoint import TEMPLATE, Endpoint, EndpointJudge, Memory, NoMemory
from vrpo.rewards.judges import VERIFIERS, verifier
from vrpo.rewards.pairing import Key, Sample
from vrpo.rewards.verdict import Answer, Judge, Verdict
from vrpo.store import Ledger

_REWARD_MODEL = {  # field -> argument of load_reward_model
    "reward_model": "name_or_path",
    "reward_form": "form",
    "reward_label": "label",
    "batch_size": "batch_size",
    "max_length": "max_length",
    "too_long": "too_long",
    "dtype": "dtype",
    "device": "device",
}
_ENDPOINT = {  # field -> argument of Endpoint
    "endpoint_url": "url",
    "endpoint_model": "model",
    "endpoint_key_variable": "key_variable",
    "endpoint_extra": "extra",
    "timeout": "timeout",
    "retries": "retries",
}
_COMPARING = ("endpoint_template", "unreadable", "refused", "concurrency", "comparisons")
_NOT_OF_THE_VERDICTS = ("device", "timeout", "retries", "concurrency", "endpoint_key_variable")


@runtime_checkable
class Judging(Protocol):
    """Judges the different answers of some prompts; a row of the file of verdicts for each prompt."""

    def __call__(self, groups: Sequence[Group]) -> list[dict[str, Any]]: ...


def is_verifier(args: JudgeOptions) -> bool:
    return args.judge in VERIFIERS


def check_fields(args: JudgeOptions) -> None:
    """No field of another judge is given, and none that this one needs is missing."""
    own = {"reward_model": set(_REWARD_MODEL), "endpoint": {*_ENDPOINT, *_COMPARING}}
    owner = {name: judge for judge, names in own.items() for name in names} | {"judge_arguments": "a verifier"}
    for name, judge in owner.items():
        if getattr(args, name) is not None and judge != ("a verifier" if is_verifier(args) else args.judge):
            raise ValueError(f"--{name} goes with --judge {judge}, not with {args.judge}")
    needed = {"reward_model": ("reward_model",), "endpoint": ("endpoint_url", "endpoint_model")}
    for name in needed.get(args.judge, ()):
        if getattr(args, name) is None:
            raise ValueError(f"--judge {args.judge} needs --{name}")


def check_judge(args: JudgeOptions) -> None:
    """A verifier can be had; an endpoint's question, address and key make sense. Nothing is loaded and nobody asked.

    Raises:
        ValueError: naming what is wrong.
    """
    if is_verifier(args):
        verifier_of(args)
    if args.judge == "endpoint":
        _endpoint_judge(args, NoMemory())


def judge_settings(args: JudgeOptions) -> dict[str, Any]:
    """The judge's name and all that its verdicts depend on, as plain JSON values."""
    if is_verifier(args):
        judge: Any = verifier_of(args)
        own = {field.name: getattr(judge, field.name) for field in fields(judge)} if is_dataclass(judge) else {}
        return {"name": args.judge, "class": ".".join(VERIFIERS[args.judge]), **_plain(own)}
    names = _REWARD_MODEL if args.judge == "reward_model" else (*_ENDPOINT, *_COMPARING)
    given = _given(args, names)
    if args.judge == "endpoint":
        given["endpoint_template"] = f"sha256 {sha256(template_of(args).encode()).hexdigest()}"
        given |= {} if args.comparisons is None else {"seed": args.seed}  # of which answers are compared
    return {"name": args.judge, **{name: value for name, value in given.items() if name not in _NOT_OF_THE_VERDICTS}}


def judging(args: JudgeOptions, device: str, memory: Path) -> Judging:
    """The judge, loaded. `device`: where a reward model runs unless --device says otherwise. `memory`: the file of an
    endpoint's replies."""
    if is_verifier(args):
        return ByItself(verifier_of(args), args.unfinished == "drop")
    if args.judge == "reward_model":
        from vrpo.models.reward_model import load_reward_model

        given = {_REWARD_MODEL[name]: value for name, value in _given(args, _REWARD_MODEL).items()}
        model = load_reward_model(**{"device": device, **given})
        return ByItself(model, args.unfinished == "drop")
    return AgainstOthers(_endpoint_judge(args, Ledger(memory)), args.unfinished == "drop", args.comparisons, args.seed)


def _endpoint_judge(args: JudgeOptions, memory: Memory) -> EndpointJudge:
    endpoint = Endpoint(**{_ENDPOINT[name]: value for name, value in _given(args, _ENDPOINT).items()})
    options = _given(args, ("unreadable", "refused", "concurrency"))
    return EndpointJudge(endpoint, template_of(args), memory=memory, **options)


def _given(args: JudgeOptions, names: Any) -> dict[str, Any]:
    """The fields among these that have a value; the others have the defaults of what they are passed to."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(values, default=lambda value: type(value).__name__))
    return plain


def verifier_of(args: JudgeOptions) -> Judge:
    """The verifier with its parameters.

    Raises:
        ValueError: it takes no such parameter, or needs a package.
    """
    return verifier(args.judge, **(args.judge_arguments or {}))


def template_of(args: JudgeOptions) -> str:
    if args.endpoint_template is None:
        return TEMPLATE
    if not args.endpoint_template.is_file():
        raise ValueError(f"--endpoint_template {args.endpoint_template}: no such file")
    try:
        text: str = args.endpoint_template.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--endpoint_template {args.endpoint_template}: is not text in UTF-8: {error}") from error
    return text


@dataclass(frozen=True)
class ByItself:
    """Each answer is judged by itself."""

    judge: Judge
    drop_unfinished: bool

    def __call__(self, groups: Sequence[Group]) -> list[dict[str, Any]]:
        samples = [group.judged(self.drop_unfinished) for group in groups]
        answers = [_answer(group, sample) for group, part in zip(groups, samples, strict=True) for sample in part]
        try:
            verdicts = iter(_checked(self.judge, answers))
        except ValueError as error:
            self._find(groups, error)
            raise
        return [_row(group, part, [next(verdicts) for _ in part]) for group, part in zip(groups, samples, strict=True)]

    def _find(self, groups: Sequence[Group], error: ValueError) -> None:
        """Raise the error again with the line of the first prompt that it is about."""
        for group in groups:
            try:
                self.judge([_answer(group, sample) for sample in group.judged(self.drop_unfinished)])
            except ValueError as own:
                raise ValueError(f"{group.origin}: {own}") from error


@dataclass(frozen=True)
class AgainstOthers:
    """Answers are compared with each other; the reward is the win rate."""

    judge: EndpointJudge
    drop_unfinished: bool
    budget: int | None
    seed: int

    def __call__(self, groups: Sequence[Group]) -> list[dict[str, Any]]:
        samples = [group.judged(self.drop_unfinished) for group in groups]
        plans = [self._plan(group, part) for group, part in zip(groups, samples, strict=True)]
        questions = [
            (_answer(group, by_index[first]), _answer(group, by_index[second]))
            for group, part, plan in zip(groups, samples, plans, strict=True)
            for by_index in [{sample.index: sample for sample in part}]
            for first, second in plan
        ]
        results = iter(self.judge.compare(questions))
        rows = []
        for group, part, plan in zip(groups, samples, plans, strict=True):
            own = [next(results) for _ in plan]
            verdicts = win_rates([sample.index for sample in part], plan, own)
            rows.append(_row(group, part, verdicts) | {"comparisons": _compared(plan, own)})
        return rows

    def _plan(self, group: Group, samples: Sequence[Sample]) -> list[tuple[int, int]]:
        return schedule([sample.index for sample in samples], self.budget, Key(self.seed, group.prompt_index))


def _answer(group: Group, sample: Sample) -> Answer:
    return Answer(group.prompt, sample.text, group.row)


def _checked(judge: Judge, answers: Sequence[Answer]) -> list[Verdict]:
    verdicts = judge(answers) if answers else []
    assert len(verdicts) == len(answers), f"{type(judge).__name__}: {len(verdicts)} verdicts for {len(answers)} answers"
    return verdicts


def _row(group: Group, samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "prompt_index": group.prompt_index,
        "verdicts": [
            {
                "sample_index": sample.index,
                "copies": list(sample.copies),
                "reward": None if math.isnan(verdict.reward) else float(verdict.reward),
                "extracted": verdict.extracted,
                "reason": verdict.reason,
            }
            for sample, verdict in zip(samples, verdicts, strict=True)
        ],
    }


def _compared(plan: Sequence[tuple[int, int]], results: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [
        {
            "samples": [first, second],
            "replies": list(result.replies),
            "value": None if math.isnan(result.value) else result.value,
            "error": result.error,
        }
        for (first, second), result in zip(plan, results, strict=True)
    ]


def verdict_of(found: Mapping[str, Any]) -> Verdict:
    """A verdict as it was written."""
    reward = math.nan if found["reward"] is None else found["reward"]
    return Verdict(reward, found["extracted"], found["reason"])
