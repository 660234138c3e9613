"""A task of our own and a model: rows -> prompts -> answers -> verdicts, each kept on disk as it is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vrpo.decoding.text import prompt_ids
from vrpo.evals.answers import max_length_of, written
from vrpo.evals.kept import ALONE, Crew, Row, rows_of
from vrpo.evals.own import OwnTask
from vrpo.models.hf import HFDenoiser
from vrpo.rewards.verdict import Answer, Judge
from vrpo.store import digest


@dataclass(frozen=True)
class OwnRun:
    """What answers of one model to one task depend on.

    Answers are in folder/answers.jsonl, and with their verdicts in folder/samples.jsonl; an interrupted run repeats at
    most `part_size` of them.

    Args:
        sampling: arguments of `vrpo.generate`, max_new_tokens among them.
        settings: what else answers depend on: the model.
        chat: whether a prompt is put through the chat template, as a user's turn.
    """

    task: OwnTask
    rows: Sequence[Row]
    folder: Path
    sampling: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int
    chat: bool
    batch_size: int
    part_size: int
    crew: Crew = ALONE

    def samples(self, denoiser: Callable[[], HFDenoiser], judge: Callable[[], Judge]) -> list[Row]:
        """Answers with their verdicts. Model and judge are called for only if something is missing."""
        answers = self.answers(denoiser)

        def make(items: Sequence[Row], first: int) -> list[Row]:
            return judged(items, self.rows[first : first + len(items)], judge())

        settings = {**self._settings, "judge": self.task.judged_by or self.task.judge, "rows_digest": digest(self.rows)}
        return self._kept("samples", answers, make, settings)

    def answers(self, denoiser: Callable[[], HFDenoiser]) -> list[Row]:
        """Answers alone."""

        def make(items: Sequence[Any], first: int) -> list[Row]:
            return self._answered(denoiser(), items, first)

        return self._kept("answers", [self.task.prompt(row) for row in self.rows], make, self._settings)

    @property
    def _settings(self) -> dict[str, Any]:
        about = {"task": self.task.name, "seed": self.seed, "chat": self.chat, "sampling": dict(self.sampling)}
        return {**self.settings, **about}

    def _kept(self, name: str, items: Sequence[Any], make: Any, settings: Mapping[str, Any]) -> list[Row]:
        output, label = self.folder / f"{name}.jsonl", f"{self.settings['model']}, {self.task.name}: {name}"
        return rows_of(items, make, output=output, settings=settings, size=self.part_size, label=label, crew=self.crew)

    def _answered(self, denoiser: HFDenoiser, prompts: Sequence[Any], first: int) -> list[Row]:
        given = [_turn(prompt) if self.chat and isinstance(prompt, str) else prompt for prompt in prompts]
        answers = written(
            denoiser,
            prompt_ids(denoiser.tokenizer, given, denoiser.mask_id),
            [f"{self.task.name}, row {first + place}" for place in range(len(prompts))],
            self.sampling,
            max_length=max_length_of(denoiser),
            seed=self.seed,
            first=first,
            batch_size=self.batch_size,
        )
        return [
            {"item": first + place, "prompt": prompt, "answer": one.text, **_facts(one), "seed": self.seed}
            for place, (prompt, one) in enumerate(zip(prompts, answers, strict=True))
        ]


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def judged(answers: Sequence[Row], rows: Sequence[Row], judge: Judge) -> list[Row]:
    """The answers' rows with their verdicts.

    Raises:
        ValueError: the judge does not find the truth in a row.
    """
    given = [Answer(one["prompt"], one["answer"], row) for one, row in zip(answers, rows, strict=True)]
    verdicts = judge(given)
    assert len(verdicts) == len(given)
    return [{**one, **asdict(verdict)} for one, verdict in zip(answers, verdicts, strict=True)]


def _facts(one: Any) -> Row:
    return {name: value for name, value in asdict(one).items() if name != "text"}
