"""`vrpo train --rounds r`: on-policy rounds. In each the model answers prompts, the answers are judged and paired, and
the model is trained on the pairs; then the next one begins from there.

Each stage is a command of its own, with its fields in a mapping of the configuration, its result on disk, and its own
way of going on after a stop. What deliberately does not live here: what the stages do.
"""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from vrpo.commands.arguments import ModelArguments, PreferenceDataArguments
from vrpo.commands.evaluate import evaluate
from vrpo.commands.generate import generate_command
from vrpo.commands.pairs import pairs
from vrpo.data.whole import write_whole
from vrpo.models.load import load
from vrpo.training.config import VRPOConfig

_OURS = {  # what a round itself says to a stage
    "generate": ("model_name_or_path", "output", "seed"),
    "pairs": ("samples", "output", "report"),
    "evaluate": ("models", "output_dir"),
}
TrainOnce = Callable[[PreferenceDataArguments, ModelArguments, VRPOConfig], None]


@dataclass
class RoundArguments:
    """On-policy rounds, instead of a dataset."""

    rounds: int | None = field(
        default=None, metadata={"help": "Generate, judge, pair and train so many times, into output_dir/round_1, ..."}
    )
    generate: dict[str, Any] | None = field(
        default=None, metadata={"help": "Rounds: fields of `vrpo generate` as a mapping: prompts, num_samples, ..."}
    )
    pairs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Rounds: fields of `vrpo pairs`, as a mapping: judge, rule."}
    )
    evaluate: dict[str, Any] | None = field(
        default=None, metadata={"help": "Rounds: fields of `vrpo eval`, as a mapping; before and after, at the end."}
    )
    refresh_reference: bool = field(
        default=False, metadata={"help": "Rounds: the reference is the model of the round before, not the first one."}
    )

    def __post_init__(self) -> None:
        given = [name for name in ("generate", "pairs", "evaluate") if getattr(self, name) is not None]
        if self.rounds is None and (given or self.refresh_reference):
            raise ValueError(f"{(given or ['refresh_reference'])[0]} goes with rounds, which is not given")
        if self.rounds is None:
            return
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {self.rounds}")
        for name in ("generate", "pairs"):
            if getattr(self, name) is None:
                raise ValueError(f"rounds needs a mapping {name}: the fields of `vrpo {name}`")
        for name in given:
            taken = [each for each in _OURS[name] if each in getattr(self, name)]
            if taken:
                raise ValueError(f"{name}: {taken[0]} is what the rounds themselves say, leave it out")


def rounds(
    loop: RoundArguments,
    data: PreferenceDataArguments,
    model: ModelArguments,
    config: VRPOConfig,
    train_once: TrainOnce,
) -> None:
    """All rounds that are not done, and the evaluation.

    Raises:
        ValueError: fields that rounds do not go with.
    """
    assert loop.rounds is not None
    _check(data, model, config)
    assert model.model_name_or_path is not None
    first = current = model.model_name_or_path
    for number in range(1, loop.rounds + 1):
        folder = config.folder / f"round_{number}"
        reference = None if loop.refresh_reference or number == 1 else first
        if not (folder / "done.json").is_file():
            _collect(loop, folder, current, config.seed + number)
            policy = replace(model, model_name_or_path=current, ref_model_name_or_path=reference)
            _train(folder, data, policy, config, train_once)
            _once(partial(_write, folder / "done.json", json.dumps({"policy": current, "reference": reference})))
        current = str(folder / "model")
    if loop.evaluate is not None:
        path = _written(config.folder / "evaluate.yaml", loop.evaluate)
        models = ["--models", f"before={first}", f"after={current}"]
        evaluate(["--config", path, *models, "--output_dir", str(config.folder / "evaluation")])


def _check(data: PreferenceDataArguments, model: ModelArguments, config: VRPOConfig) -> None:
    if model.model_name_or_path is None:
        raise ValueError("--model_name_or_path is missing")
    if data.dataset_name is not None:
        raise ValueError("dataset_name: rounds make their pairs themselves, leave it out")
    if model.ref_model_name_or_path is not None:
        raise ValueError("ref_model_name_or_path: rounds have the first model as reference, or refresh_reference")
    if config.resume_from_checkpoint is not None:
        raise ValueError("resume_from_checkpoint: rounds go on by themselves where they were stopped, leave it out")


def _collect(loop: RoundArguments, folder: Path, policy: str, seed: int) -> None:
    """Answers and pairs of a round."""
    assert loop.generate is not None
    assert loop.pairs is not None
    samples, made = str(folder / "samples.jsonl"), str(folder / "pairs.jsonl")
    path = _written(folder / "generate.yaml", loop.generate)
    generate_command(["--config", path, "--model_name_or_path", policy, "--output", samples, "--seed", str(seed)])
    path = _written(folder / "pairs.yaml", loop.pairs)
    pairs(["--config", path, "--samples", samples, "--output", made, "--report", str(folder / "pairs")])
    PartialState().wait_for_everyone()


def _train(
    folder: Path, data: PreferenceDataArguments, model: ModelArguments, config: VRPOConfig, train_once: TrainOnce
) -> None:
    """Train on the pairs of a round; an adapter is merged, so that the next round can begin with a new one."""
    own = copy.copy(config)
    into = folder / ("adapter" if model.use_peft else "model")
    own.output_dir = str(into)
    own.resume_from_checkpoint = "auto"
    train_once(replace(data, dataset_name=str(folder / "pairs.jsonl")), model, own)
    if model.use_peft:
        _once(lambda: load(into).merged().save_pretrained(folder / "model"))


def _once(work: Callable[[], Any]) -> None:
    """On the main process, while the others wait."""
    state = PartialState()
    if state.is_main_process:
        work()
    state.wait_for_everyone()


def _written(path: Path, fields: Mapping[str, Any]) -> str:
    _once(partial(_write, path, yaml.safe_dump(dict(fields))))
    return str(path)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda part: part.write_text(text.rstrip("\n") + "\n"))
