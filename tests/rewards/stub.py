"""Judges to test with: they are called through the table of verifiers."""

from collections.abc import Sequence
from dataclasses import dataclass

from vrpo.rewards.verdict import Answer, Verdict

JUDGED: list[str] = []  # texts, in the order in which they were judged


@dataclass(frozen=True)
class Exact:
    """1 for the text in a field of the row."""

    field: str = "truth"

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        for answer in answers:
            if self.field not in answer.row:
                raise ValueError(f"the row has no field '{self.field}'")
        JUDGED.extend(answer.text for answer in answers)
        return [self._verdict(answer.text.strip(), str(answer.row[self.field])) for answer in answers]

    @staticmethod
    def _verdict(text: str, truth: str) -> Verdict:
        return Verdict(float(text == truth), text, None if text == truth else "differs")


@dataclass(frozen=True)
class Vowels:
    """Number of vowels; an answer with a question mark cannot be judged."""

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        JUDGED.extend(answer.text for answer in answers)
        return [
            Verdict(float("nan"), None, "a question")
            if "?" in answer.text
            else Verdict(float(sum(letter in "aeiou" for letter in answer.text)), answer.text)
            for answer in answers
        ]
