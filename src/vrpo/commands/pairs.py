"""`vrpo pairs`: sampled answers in, preference pairs out, with an account of everything in between."""

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from vrpo.commands.arguments import check_device
from vrpo.commands.config_file import Parser, arguments_of, with_config
from vrpo.commands.pairs_judges import (
    JUDGES,
    check_fields,
    check_judge,
    is_verifier,
    judge_settings,
    judging,
    template_of,
    verdict_of,
)
from vrpo.commands.pairs_samples import Group, Reader
from vrpo.commands.stopped import keeping
from vrpo.data.json_rows import read_records
from vrpo.decoding.visible import visible
from vrpo.diagnostics.pair_plots import length_picture
from vrpo.diagnostics.pair_statistics import pair_report, pair_statistics
from vrpo.diagnostics.plots import figure_class
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
from vrpo.store import Parts, check_writable, known, locked

_RULES: dict[str, Callable[..., Rule]] = {
    "best_worst": BestWorst,
    "margin": Margin,
    "all": Different,
    "length_matched": LengthMatched,
}
_MAPPINGS = ("judge_arguments", "endpoint_extra")
_RULE_FIELDS = ("margin", "max_ratio", "every_pair")


def pairs(argv: Sequence[str]) -> None:
    """Judge sampled answers and make preference pairs of them, for `vrpo train`."""
    args, rule = checked(argv)
    state = PartialState(cpu=not torch.cuda.is_available())  # else processes without GPUs do not know of each other
    with ExitStack() as held:
        if state.is_main_process:
            held.enter_context(locked(args.output))
            held.enter_context(locked(args.report))
        _made(args, rule, state)


def _made(args: argparse.Namespace, rule: Rule, state: PartialState) -> None:
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


def checked(argv: Sequence[str]) -> tuple[argparse.Namespace, Rule]:
    """Arguments and rule, as far as they can be checked without samples.

    Raises:
        ValueError: naming the field.
    """
    args = _parsed(argv)
    rule = rule_of(args)
    figure_class()  # refuses now, not after an hour, if there is no matplotlib
    check_judge(args)
    check_writable(args.output, "--output")
    check_writable(args.report, "--report", folder=True)
    return args, rule


def rule_of(args: argparse.Namespace) -> Rule:
    """The rule with its parameters.

    Raises:
        ValueError: a parameter is missing, out of its range, or another rule's.
    """
    kind: Any = _RULES[args.rule]
    takes = {field.name for field in fields(kind)}
    given = _given(args, _RULE_FIELDS)
    for name in given.keys() - takes:
        raise ValueError(f"--rule {args.rule} has no --{name}")
    if "margin" in takes - given.keys():
        raise ValueError(f"--rule {args.rule} needs --margin")
    rule: Rule = kind(**given)
    return rule if args.max_pairs is None else AtMost(rule, args.max_pairs)


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None and value is not False}  # 0 is given


def _settings(args: argparse.Namespace) -> dict[str, Any]:
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


def _parts(args: argparse.Namespace, settings: dict[str, Any], prompts: int, first: bool) -> tuple[Parts, Parts]:
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
    found = Parts(args.report / "verdicts.jsonl", of_verdicts, -(-prompts // size))
    if first and found.folder.is_dir() and not list(found.folder.glob("*.jsonl")):
        shutil.rmtree(found.folder)
    try:
        found.missing()
    except ValueError as error:
        raise ValueError(str(error).replace("another --output", "another --report")) from error
    return made, found


def _judge(args: argparse.Namespace, groups: list[Group], parts: Parts, state: PartialState) -> None:
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


def _outcomes(args: argparse.Namespace, groups: Sequence[Group], verdicts: Path, rule: Rule) -> list[Outcome]:
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


def _report(args: argparse.Namespace, outcomes: Sequence[Outcome], settings: dict[str, Any]) -> None:
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


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = flags()
    args = parser.parse_args(with_config(parser, argv, mappings=_MAPPINGS))
    _check_counts(args, "prompts_per_part")
    check_fields(args)
    check_device(args.device)
    return args


def judge_of(name: str, arguments: Mapping[str, Any] | None, seed: int) -> argparse.Namespace:
    """A judge and its fields, as `vrpo pairs` has them, given as a mapping.

    Args:
        arguments: of a verifier its parameters, of another judge its fields.

    Raises:
        ValueError: what the command line of `vrpo pairs` refuses.
    """
    if name not in JUDGES:
        raise ValueError(f"--judge {name}: there is {', '.join(JUDGES)}")
    parser = Parser(add_help=False, allow_abbrev=False)
    _add_judge(parser.add_argument)
    given: dict[str, Any] = {"judge": name}
    if arguments:
        given |= {"judge_arguments": dict(arguments)} if name in VERIFIERS else arguments
    args = parser.parse_args(arguments_of(parser, given, "--judge_arguments", _MAPPINGS))
    args.unfinished, args.seed = "keep", seed
    _check_counts(args)
    check_fields(args)
    check_judge(args)
    return args


def _check_counts(args: argparse.Namespace, *others: str) -> None:
    for name in (*others, "batch_size", "max_length", "concurrency", "comparisons"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, not {value}")


def json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def flags() -> Parser:
    parser = Parser(prog="vrpo pairs", allow_abbrev=False)
    add = parser.add_argument
    add("--config", help="YAML file of these fields; the command line overrides it.")
    add("--samples", type=Path, required=True, help="What `vrpo generate --num_samples k --output FILE` wrote.")
    add("--output", type=Path, required=True, help="The pairs, as JSON lines that `vrpo train` reads.")
    add("--report", type=Path, required=True, help="Folder of verdicts, statistics and picture; with the same folder "
        "another --rule costs no new judgement, and a stopped run goes on.")  # fmt: skip
    _add_judge(add)
    add("--prompts_per_part", type=int, default=64, help="Prompts after which verdicts are kept (default 64).")
    _add_rules(add)
    return parser


def _add_judge(add: Callable[..., Any]) -> None:
    add("--judge", required=True, choices=JUDGES, help="Who judges answers.")
    add("--judge_arguments", type=json_object, help="Parameters of a verifier, as JSON or as a mapping in YAML.")
    _add_reward_model(add)
    _add_endpoint(add)


def _add_rules(add: Callable[..., Any]) -> None:
    add("--rule", choices=list(_RULES), default="best_worst", help="Which answers become a pair (default best_worst): "
        "the best and the worst; those whose rewards differ by --margin; all of different reward; of different reward "
        "and of the most similar length.")  # fmt: skip
    add("--margin", type=float, help="Least difference of rewards, of --rule margin.")
    add("--max_ratio", type=float, help="Longer answer over shorter one, at most, of --rule length_matched.")
    add("--every_pair", action="store_true", help="Of margin and length_matched: not only the widest or closest pair.")
    add("--max_pairs", type=int, help="Pairs per prompt, at most; the first of the rule's order.")
    add("--unfinished", choices=["reject", "keep", "drop"], default="reject", help="Answers without an end token: may "
        "only be rejected (default), are like others, or are left out.")  # fmt: skip
    add("--end_ids", type=int, nargs="+", help="End tokens (default: those of the model in the samples' settings).")
    add("--length_in", choices=["characters", "tokens"], default="characters", help="Unit of lengths (default "
        "characters); tokens: before the end token.")  # fmt: skip
    add("--seed", type=int, default=0, help="Of choices among equals; they depend on the seed and the prompt's index.")


def _add_reward_model(add: Callable[..., Any]) -> None:
    add("--reward_model", help="Hub name or folder of a sequence-classification model (safetensors).")
    add("--reward_form", choices=["chat", "text", "pair"], help="How it reads: through its chat template, the answer "
        "behind the prompt, or as two segments (default: chat if it has a template, else text).")  # fmt: skip
    add("--reward_label", type=int, help="Which logit is the reward, of a model with several.")
    add("--batch_size", type=int, help="Answers per call of the reward model (default 8).")
    add("--max_length", type=int, help="Tokens that the reward model reads (default: what it says).")
    add("--too_long", choices=["error", "unjudged"], help="What becomes of longer ones (default error).")
    add("--dtype", help="Of the reward model: float32, bfloat16; auto: as stored (default).")
    add("--device", help="Where the reward model runs (default: cuda if there is one, else cpu).")


def _add_endpoint(add: Callable[..., Any]) -> None:
    add("--endpoint_url", help="OpenAI-compatible endpoint, such as https://host/v1.")
    add("--endpoint_model", help="The model that is asked there.")
    add("--endpoint_key_variable", help="Name of the environment variable that holds the key (default: no key).")
    add("--endpoint_extra", type=json_object, help="More fields of a request, as JSON; null leaves a field out.")
    add("--endpoint_template", type=Path, help="File with the question; slots {prompt}, {first}, {second}.")
    add("--unreadable", choices=["error", "tie"], help="A reply without a verdict: the comparison has no result and "
        "that is recorded (default), or it counts as a tie.")  # fmt: skip
    add("--refused", choices=["error", "unjudged"], help="A question that the endpoint does not take, such as a too "
        "long one: stop (default), or the comparison has no result and that is recorded.")  # fmt: skip
    add("--comparisons", type=int, help="Comparisons per prompt, at most (default: all pairs of answers).")
    add("--concurrency", type=int, help="Requests at a time (default 8).")
    add("--timeout", type=float, help="Seconds to wait for the endpoint (default 120).")
    add("--retries", type=int, help="Retries of a request that may pass (default 6).")
