"""`vrpo pairs`: sampled answers in, preference pairs out, with an account of everything in between."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from tqdm import tqdm

from vrpo.data.json_rows import read_records
from vrpo.decoding.visible import visible
from vrpo.diagnostics.pair_plots import length_picture
from vrpo.diagnostics.pair_statistics import pair_report, pair_statistics
from vrpo.diagnostics.plots import figure_class
from vrpo.fields.options import JUDGES, JudgeOptions
from vrpo.fields.parser import made_of
from vrpo.pairs.judges import (
    check_fields,
    check_judge,
    is_verifier,
    judge_settings,
    judging,
    template_of,
    verdict_of,
)
from vrpo.pairs.samples import Group, Reader
from vrpo.rewards.judges import VERIFIERS
from vrpo.rewards.pairing import (
    AtMost,
    BestWorst,
    Candidate,
    Couple,
    Different,
    LengthMatched,
    Margin,
    Outcome,
    Rule,
    paired,
)
from vrpo.store import Parts, check_writable, keeping, known, locked

_RULES: dict[str, Callable[..., Rule]] = {
    "best_worst": BestWorst,
    "margin": Margin,
    "all": Different,
    "length_matched": LengthMatched,
}
_RULE_FIELDS = ("margin", "max_ratio", "every_pair")


@dataclass(kw_only=True)
class PairsArguments(JudgeOptions):
    """Which answers are judged, by whom, and which become pairs."""

    samples: Path = field(metadata={"help": "What `vrpo generate --num_samples k --output FILE` wrote."})
    output: Path = field(metadata={"help": "The pairs, as JSON lines that `vrpo train` reads."})
    report: Path = field(
        metadata={
            "help": "Folder of verdicts, statistics and picture; with the same folder another --rule costs no new "
            "judgement, and a stopped run goes on."
        }
    )
    prompts_per_part: int = field(default=64, metadata={"help": "Prompts after which verdicts are kept."})
    rule: Literal["best_worst", "margin", "all", "length_matched"] = field(
        default="best_worst",
        metadata={
            "help": "Which answers become a pair: the best and the worst; those whose rewards differ by --margin; all "
            "of different reward; of different reward and of the most similar length."
        },
    )
    margin: float | None = field(default=None, metadata={"help": "Least difference of rewards, of --rule margin."})
    max_ratio: float | None = field(
        default=None, metadata={"help": "Longer answer over shorter one, at most, of --rule length_matched."}
    )
    every_pair: bool = field(
        default=False, metadata={"help": "Of margin and length_matched: not only the widest or closest pair."}
    )
    max_pairs: int | None = field(
        default=None, metadata={"help": "Pairs per prompt, at most; the first of the rule's order."}
    )
    end_ids: list[int] | None = field(
        default=None, metadata={"help": "End tokens. None: those of the model in the samples' settings."}
    )
    length_in: Literal["characters", "tokens"] = field(
        default="characters", metadata={"help": "Unit of lengths; tokens: before the end token."}
    )

    def __post_init__(self) -> None:
        self.check_counts("prompts_per_part")
        check_fields(self)


def pairs(args: PairsArguments) -> None:
    """Judge sampled answers and make preference pairs of them, for `vrpo train`."""
    rule = checked(args)
    state = PartialState(cpu=not torch.cuda.is_available())  # else processes without GPUs do not know of each other
    with ExitStack() as held:
        if state.is_main_process:
            held.enter_context(locked(args.output))
            held.enter_context(locked(args.report))
        _made(args, rule, state)


def _made(args: PairsArguments, rule: Rule, state: PartialState) -> None:
    ends = None if args.end_ids is None else frozenset(args.end_ids)
    groups = Reader(args.length_in, args.unfinished != "keep", ends).read(args.samples)
    settings = _settings(args)
    with state.main_process_first():
        args.report.mkdir(parents=True, exist_ok=True)
        made, verdicts = _parts(args, settings, len(groups), state.is_main_process)
    with keeping(args.output.parent):
        _judge(args, groups, verdicts, state)
    if state.is_main_process:
        outcomes = _outcomes(args, groups, verdicts.output, rule)
        if made.missing():  # only now: nothing is begun where a judge has failed
            made.write(0, [row for each in zip(groups, outcomes, strict=True) for row in _rows(*each, settings)])
        made.join()
        _report(args, outcomes, settings)


def checked(args: PairsArguments) -> Rule:
    """The rule; and all that can be checked without samples.

    Raises:
        ValueError: naming the field.
    """
    rule = rule_of(args)
    figure_class()  # refuses now, not after an hour, if there is no matplotlib
    check_judge(args)
    check_writable(args.output, "--output")
    check_writable(args.report, "--report", folder=True)
    return rule


def rule_of(args: PairsArguments) -> Rule:
    """The rule with its parameters.

    Raises:
        ValueError: a parameter is missing, out of its range, or another rule's.
    """
    kind: Any = _RULES[args.rule]
    takes = {each.name for each in fields(kind)}
    given = _given(args, _RULE_FIELDS)
    for name in given.keys() - takes:
        raise ValueError(f"--rule {args.rule} has no --{name}")
    if "margin" in takes - given.keys():
        raise ValueError(f"--rule {args.rule} needs --margin")
    rule: Rule = kind(**given)
    return rule if args.max_pairs is None else AtMost(rule, args.max_pairs)


def _given(args: PairsArguments, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None and value is not False}  # 0 is given


def _settings(args: PairsArguments) -> dict[str, Any]:
    """All that the pairs depend on."""
    return {
        "samples": args.samples.name,
        "samples_sha256": sha256(args.samples.read_bytes()).hexdigest(),
        "judge": judge_settings(args),
        "unfinished": args.unfinished,
        "end_ids": args.end_ids,
        "length_in": args.length_in,
        "rule": {"name": args.rule, **_given(args, (*_RULE_FIELDS, "max_pairs"))},
        "seed": args.seed,
    }


def _parts(args: PairsArguments, settings: dict[str, Any], prompts: int, first: bool) -> tuple[Parts, Parts]:
    """The file of pairs, in one part, and the file of verdicts, in parts of prompts, both checked.

    Verdicts depend on fewer settings, and on whether unfinished answers are judged at all. What a run began that came
    to no verdict binds nobody. `first`: this process may clear it away.
    """
    made = Parts(args.output, settings, 1)
    if made.output.exists():
        made.missing()
    of_verdicts = {name: settings[name] for name in ("samples", "samples_sha256", "judge")}
    dropped = {"unfinished": "drop", "end_ids": args.end_ids} if args.unfinished == "drop" else {"unfinished": "judged"}
    size = args.prompts_per_part
    of_verdicts |= dropped | {"prompts_per_part": size}
    found = Parts(args.report / "verdicts.jsonl", of_verdicts, -(-prompts // size), "--report")
    if first and found.folder.is_dir() and not list(found.folder.glob("*.jsonl")):
        shutil.rmtree(found.folder)
    found.missing()
    return made, found


def _judge(args: PairsArguments, groups: list[Group], parts: Parts, state: PartialState) -> None:
    """Part after part, each process its own; whoever finds all of them puts them together."""
    missing = parts.missing()
    state.wait_for_everyone()
    missing = missing[state.process_index :: state.num_processes]
    if missing:
        judge = judging(args, str(state.device), args.report / "replies.jsonl")
        size = args.prompts_per_part
        for part in tqdm(missing, desc="judging", unit="part", disable=not state.is_main_process):
            parts.write(part, judge(groups[part * size : (part + 1) * size]))
    state.wait_for_everyone()
    if state.is_main_process:
        assert parts.join()


def _outcomes(args: PairsArguments, groups: Sequence[Group], verdicts: Path, rule: Rule) -> list[Outcome]:
    """Pairs of every prompt, from the verdicts on disk."""
    rows = [record.fields for record in read_records(verdicts, verdicts.name)]
    outcomes = []
    for group, row in zip(groups, rows, strict=True):
        samples = group.judged(args.unfinished == "drop")
        candidates = []
        for sample, found in zip(samples, row["verdicts"], strict=True):
            assert found["sample_index"] == sample.index, f"{verdicts}: not the verdicts of these samples"
            may_win = args.unfinished == "keep" or sample.finished is not False
            candidates.append(Candidate(sample, verdict_of(found), may_win))
        outcomes.append(paired(group.prompt_index, group.samples, candidates, rule, args.seed))
    return outcomes


def _rows(group: Group, outcome: Outcome, settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [_row(group, couple, settings) for couple in outcome.couples]


def _row(group: Group, couple: Couple, settings: dict[str, Any]) -> dict[str, Any]:
    sides = {"chosen": couple.chosen, "rejected": couple.rejected}
    about = {
        "sample": lambda each: each.sample.index,
        "copies": lambda each: list(each.sample.copies),
        "reward": lambda each: each.reward,
        "extracted": lambda each: each.verdict.extracted,
        "reason": lambda each: each.verdict.reason,
        "length": lambda each: each.sample.length,
        "finished": lambda each: each.sample.finished,
    }
    facts = {f"{side}_{name}": of(each) for name, of in about.items() for side, each in sides.items()}
    texts = group.texts(couple.chosen.sample.text, couple.rejected.sample.text)
    return {**texts, "prompt_index": group.prompt_index, **facts, "settings": settings}


def _report(args: PairsArguments, outcomes: Sequence[Outcome], settings: dict[str, Any]) -> None:
    """pairs.json, pairs.md and length_bias.png in the folder of the report, and a few words on the terminal."""
    found = pair_statistics(outcomes, verified=is_verifier(args))
    numbers = known({"settings": settings, **asdict(found)})
    if args.judge == "endpoint":
        (args.report / "question.txt").write_text(template_of(args))
    (args.report / "pairs.json").write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    (args.report / "pairs.md").write_text(visible(pair_report(found, settings, args.length_in)), encoding="utf-8")
    length_picture(args.report / "length_bias.png", outcomes, args.length_in)
    unused = "; ".join(f"{count}: {reason}" for reason, count in found.unused.items())
    print(f"{found.pairs} pairs from {found.used} of {found.prompts} prompts in {args.output}; report in {args.report}")
    print(visible(f"prompts without a pair: {unused or 'none'}"))


def judge_of(name: str, arguments: Mapping[str, Any] | None, seed: int) -> JudgeOptions:
    """A judge and its fields, as `vrpo pairs` has them, given as a mapping.

    Args:
        arguments: of a verifier its parameters, of another judge its fields.

    Raises:
        ValueError: what the command line of `vrpo pairs` refuses.
    """
    if name not in JUDGES:
        raise ValueError(f"--judge {name}: there is {', '.join(JUDGES)}")
    given: dict[str, Any] = {"judge": name, "unfinished": "keep", "seed": seed}
    if arguments:
        given |= {"judge_arguments": dict(arguments)} if name in VERIFIERS else arguments
    args = made_of(JudgeOptions, given, "--judge_arguments")
    args.check_counts()
    check_fields(args)
    check_judge(args)
    return args
