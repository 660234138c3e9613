"""What judging is: answers in, verdicts out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Answer:
    """An answer to be judged, with its prompt (text or messages) and the other fields of the prompt's row, among which
    a verifier finds the truth."""

    prompt: Any
    text: str
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """`reward`: 0 or 1, or a share, from a verifier; any real number from a reward model. `extracted`: what was taken
    from the answer to be compared, None if nothing was found. `reason`: in a few words, why not the full reward."""

    reward: float
    extracted: str | None = None
    reason: str | None = None


@runtime_checkable
class Judge(Protocol):
    """Judges each answer by itself: a verifier or a reward model.

    Raises:
        ValueError: a row lacks what the judge needs; names the field.
    """

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]: ...


@runtime_checkable
class PairwiseJudge(Protocol):
    """Says which of two answers to the same prompt is better: a value in [0, 1], 1 for the first, 1/2 for a tie."""

    def __call__(self, pairs: Sequence[tuple[Answer, Answer]]) -> list[float]: ...
