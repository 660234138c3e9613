"""`vrpo rounds`: on-policy rounds. In each the model answers prompts, the answers are judged and paired, and
the model is trained on the pairs; then the next one begins from there.

Each stage is a function of its own, with its fields in a mapping of the configuration, its result on disk, and its own
way of going on after a stop. What deliberately does not live here: what the stages do.
"""

import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from xxhash import xxh3_128

from vrpo.answering.prompts import Prompt
from vrpo.answering.run import GenerateArguments, generate_command
from vrpo.answering.run import checked as check_generation
from vrpo.diagnostics.report import table
from vrpo.evals.run import checked as check_evaluation
from vrpo.evals.run import evaluate
from vrpo.evals.wanted import EvalArguments
from vrpo.fields.parser import made_of
from vrpo.models.fingerprint import files_fingerprint
from vrpo.models.load import load
from vrpo.pairs.judges import is_verifier, verifier_of
from vrpo.pairs.run import PairsArguments, pairs
from vrpo.pairs.run import checked as check_pairing
from vrpo.rewards.judges import check_truth
from vrpo.rewards.verdict import Answer
from vrpo.store import differences, write_whole, write_whole_folder
from vrpo.training.arguments import ModelArguments, PreferenceDataArguments
from vrpo.training.identity import settings_of
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.run import check_run, train_on, writing

_MOST = 1 << 20
_SAID = {  # what the rounds themselves say to a stage
    "generate": ("model_name_or_path", "output", "seed"),
    "pairs": ("samples", "output", "report"),
    "evaluate": ("models", "output_dir"),
}


@dataclass(kw_only=True)
class RoundArguments:
    """How many rounds, and the fields of each stage."""

    rounds: int = field(
        metadata={"help": "Number of times to generate, judge, pair and train, into output_dir/round_1, ..."}
    )
    generate: dict[str, Any] = field(
        metadata={"help": "Fields of `vrpo generate` as a mapping: prompts, num_samples, ..."}
    )
    pairs: dict[str, Any] = field(metadata={"help": "Fields of `vrpo pairs`, as a mapping: judge, rule."})
    evaluate: dict[str, Any] | None = field(
        default=None, metadata={"help": "Fields of `vrpo eval`, as a mapping; before and after, at the end."}
    )
    refresh_reference: bool = field(
        default=False, metadata={"help": "The reference is the model of the round before, not the first one."}
    )
    prompts_per_round: int | None = field(
        default=None,
        metadata={"help": "Prompts of a round, which later ones do not see again. None: all, in every round."},
    )

    def __post_init__(self) -> None:
        for name in ("rounds", "prompts_per_round"):
            if getattr(self, name) is not None and not 1 <= getattr(self, name) <= _MOST:
                raise ValueError(f"{name} must be from 1 to {_MOST:,}, not {getattr(self, name)}")
        for stage, said in _SAID.items():
            taken = [name for name in said if name in (getattr(self, stage) or {})]
            if taken:
                raise ValueError(f"{stage}: {taken[0]} is what the rounds themselves say, leave it out")


def rounds(data: PreferenceDataArguments, model: ModelArguments, loop: RoundArguments, config: VRPOConfig) -> None:
    """All rounds that are not done, and the evaluation. What later stages are told is checked before the first one.

    Raises:
        ValueError: fields that rounds do not go with; what a stage refuses; a finished round of other settings.
    """
    with writing(config):
        _check(data, model, config)
        check_run(data, model, config)
        assert model.model_name_or_path is not None
        prompts = _checked_stages(loop, config, model.model_name_or_path)
        try:
            last = _all_rounds(loop, data, model, config, prompts)
            if loop.evaluate is not None:
                _say(f"evaluation: before, and after round {loop.rounds}")
                evaluate(_evaluation(loop, config, model.model_name_or_path, last))
        except KeyboardInterrupt:
            _say(f"interrupted: what is done is kept in {config.folder}; the same command goes on")
            raise SystemExit(130) from None


def _all_rounds(
    loop: RoundArguments,
    data: PreferenceDataArguments,
    model: ModelArguments,
    config: VRPOConfig,
    prompts: list[Prompt],
) -> str:
    """The model after the last round."""
    first = current = model.model_name_or_path
    assert current is not None
    for number in range(1, loop.rounds + 1):
        folder = config.folder / f"round_{number}"
        reference = None if loop.refresh_reference or number == 1 else first
        made_with = {"policy": current, "reference": reference, **_settings(loop, model, config)}
        made_with |= {"weights": files_fingerprint(current), "prompts read": _digest(_of_round(loop, prompts, number))}
        if not _is_done(folder, made_with):
            _say(f"round {number} of {loop.rounds}: {current} answers")
            _collect(loop, folder, current, config, number, prompts)
            _say(f"round {number} of {loop.rounds}: training on the pairs")
            given = None if reference is None else [reference]
            policy = replace(model, model_name_or_path=current, ref_model_name_or_path=given)
            _train(folder, data, policy, config)
            _once(partial(_write, folder / "done.json", json.dumps(made_with, indent=1)))
        current = str(folder / "model")
        _once(partial(_account, config.folder, number))
    return current


def _is_done(folder: Path, made_with: Mapping[str, Any]) -> bool:
    """
    Raises:
        ValueError: it is, and with other settings.
    """
    if not (folder / "done.json").is_file() or not (folder / "model" / "config.json").is_file():
        return False
    found, now = json.loads((folder / "done.json").read_text()), json.loads(json.dumps(made_with))
    changed = differences(found, now)
    if changed:
        raise ValueError(
            f"{folder} was made with other settings: {'; '.join(changed)}. Give another --output_dir, or delete "
            f"{folder} and the rounds after it"
        )
    return True


def _settings(loop: RoundArguments, model: ModelArguments, config: VRPOConfig) -> dict[str, Any]:
    """What a round depends on, besides where it begins."""
    ours = {"generate": loop.generate, "pairs": loop.pairs, "prompts_per_round": loop.prompts_per_round}
    theirs = {name: value for name, value in asdict(model).items() if "name_or_path" not in name}
    return {**ours, **theirs, **settings_of(config)}


def _digest(prompts: list[Prompt]) -> str:
    text = json.dumps([[one.content, one.row] for one in prompts], sort_keys=True)
    return str(xxh3_128(text.encode(errors="surrogatepass")).hexdigest())


def _of_round(loop: RoundArguments, prompts: list[Prompt], number: int) -> list[Prompt]:
    """The prompts that a round answers."""
    if loop.prompts_per_round is None:
        return prompts
    last = number * loop.prompts_per_round
    return prompts[last - loop.prompts_per_round : last]


def _check(data: PreferenceDataArguments, model: ModelArguments, config: VRPOConfig) -> None:
    if model.model_name_or_path is None:
        raise ValueError("--model_name_or_path is missing")
    if config.plan == "exact":
        raise ValueError("rounds write their answers with masks, which plan=exact has not: make the pairs yourself")
    if data.dataset_name is not None:
        raise ValueError("dataset_name: rounds make their pairs themselves, leave it out")
    if data.reward_model_name_or_path is not None:
        raise ValueError("reward_model_name_or_path: the pairs of rounds have the rewards of their judge, leave it out")
    for name in ("ref_model_name_or_path", "causal_ref_model_name_or_path"):
        if getattr(model, name) is not None:
            raise ValueError(f"{name}: rounds have the first model as the one reference, or refresh_reference")
    if config.structure == "rankings":
        raise ValueError("loss_type plackett_luce takes ranked lists, and rounds make pairs: take a loss of pairs")
    if config.resume_from_checkpoint is not None:
        raise ValueError("resume_from_checkpoint: rounds go on by themselves where they were stopped, leave it out")
    evaluated = [name for name in ("eval_strategy", "sample_steps") if getattr(config, name) not in ("no", None)]
    if evaluated and data.eval_dataset_name is None and data.eval_fraction is None:
        raise ValueError(f"{evaluated[0]} in rounds needs pairs to hold out: eval_fraction, or eval_dataset_name")


def _checked_stages(loop: RoundArguments, config: VRPOConfig, first: str) -> list[Prompt]:
    """The prompts. Each stage reads its fields, and what it needs of files, before any has begun.

    Raises:
        ValueError: naming the mapping, and the field or the line.
    """
    folder = config.folder / "round_1"
    args = _generation(loop, folder, first, config, 1)
    with _named("generate"):
        prompts = check_generation(args)
        if loop.prompts_per_round is not None and args.prompts is None:
            raise ValueError("prompts_per_round goes with prompts, a file")
        needed = loop.rounds * (loop.prompts_per_round or 0)
        if needed > len(prompts):
            raise ValueError(
                f"{loop.rounds} rounds of prompts_per_round {loop.prompts_per_round} need {needed} prompts: "
                f"{args.prompts} has {len(prompts)}"
            )
    pairing = _pairing(loop, folder)
    with _named("pairs"):
        check_pairing(pairing)
        if is_verifier(pairing):
            asked = [(prompt.origin, Answer(prompt.content, "", prompt.row)) for prompt in prompts]
            check_truth(pairing.judge, verifier_of(pairing), asked)
    if loop.evaluate is not None:
        evaluation = _evaluation(loop, config, first, first)
        with _named("evaluate"):
            check_evaluation(evaluation)
    return prompts


@contextmanager
def _named(stage: str) -> Iterator[None]:
    """What a stage refuses is said of its mapping, which is what the user wrote."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{stage}: {error}") from error


def _generation(
    loop: RoundArguments, folder: Path, policy: str, config: VRPOConfig, number: int, **prompts: str
) -> GenerateArguments:
    given = {**loop.generate, **({"device": "cpu"} if config.use_cpu else {}), **prompts}
    given |= {"model_name_or_path": policy, "output": str(folder / "samples.jsonl"), "seed": config.seed + number}
    return made_of(GenerateArguments, given, "generate")


def _pairing(loop: RoundArguments, folder: Path) -> PairsArguments:
    places = {"samples": "samples.jsonl", "output": "pairs.jsonl", "report": "pairs"}
    given = {**loop.pairs, **{name: str(folder / file) for name, file in places.items()}}
    return made_of(PairsArguments, given, "pairs")


def _evaluation(loop: RoundArguments, config: VRPOConfig, first: str, last: str) -> EvalArguments:
    given = {**(loop.evaluate or {}), **({"device": "cpu"} if config.use_cpu else {})}
    given["models"] = [f"before={first}", f"after_round_{loop.rounds}={last}"]
    return made_of(EvalArguments, {**given, "output_dir": str(config.folder / "evaluation")}, "evaluate")


def _collect(
    loop: RoundArguments, folder: Path, policy: str, config: VRPOConfig, number: int, prompts: list[Prompt]
) -> None:
    """Answers and pairs of a round.

    Raises:
        ValueError: there are no pairs.
    """
    given = {}
    if loop.prompts_per_round is not None:
        part = [{"prompt": one.content, **one.row} for one in _of_round(loop, prompts, number)]
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in part)
        _once(partial(_write, folder / "prompts.jsonl", text))
        given = {"prompts": str(folder / "prompts.jsonl")}
    generate_command(_generation(loop, folder, policy, config, number, **given))
    pairs(_pairing(loop, folder))
    PartialState().wait_for_everyone()
    if not (folder / "pairs.jsonl").stat().st_size:
        raise ValueError(
            f"no pairs in round {number}, the reasons are in {folder / 'pairs' / 'pairs.md'}: more samples of a prompt "
            "(num_samples), another temperature or easier prompts give answers of different reward"
        )


def _train(folder: Path, data: PreferenceDataArguments, model: ModelArguments, config: VRPOConfig) -> None:
    """Train on the pairs of a round; an adapter is merged, so that the next round can begin with a new one."""
    own = copy.copy(config)
    into = folder / ("adapter" if model.use_peft else "model")
    own.output_dir, own.hub_token = str(into), config.hub_token  # a copy has no secrets
    own.resume_from_checkpoint = "auto"
    train_on(replace(data, dataset_name=str(folder / "pairs.jsonl")), model, own)
    if model.use_peft:
        _once(lambda: write_whole_folder(folder / "model", load(into).merged().save_pretrained))


def _account(folder: Path, rounds: int) -> None:
    """rounds.md: what the answers of each round so far were like."""
    rows = []
    for each in range(1, rounds + 1):
        found = json.loads((folder / f"round_{each}" / "pairs" / "pairs.json").read_text())
        counts = (found["samples"], found["prompts"], found["used"], found["pairs"])
        rows.append([str(each), *map(str, counts), f"{found['rewards']['mean']:.3g}"])
    head = ["round", "answers", "prompts", "prompts with a pair", "pairs", "mean reward of the answers"]
    note = "The answers of a round are those of the model that it began with."
    _write(folder / "rounds.md", f"{table(head, rows)}\n\n{note}")


def _say(text: str) -> None:
    if PartialState().is_main_process:
        print(f"== {text}", file=sys.stderr, flush=True)


def _once(work: Callable[[], Any]) -> None:
    """On the main process, while the others wait."""
    state = PartialState()
    if state.is_main_process:
        work()
    state.wait_for_everyone()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda part: part.write_text(text.rstrip("\n") + "\n"))
