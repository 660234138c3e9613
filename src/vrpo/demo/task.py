"""The demo's task: the complementary DNA strand, learnt from careless students.

Every base has its partner: A-T and C-G. A careless student copies a base seven times out of ten instead of writing its
partner. A model that imitates students imitates the mistake: it knows the partner, and mostly writes the copy. A
verifier that counts right bases can tell which of two answers is better, even when neither is right. That is what
preferences are made of, and more than the preferred answers themselves contain.

All numbers are keyed hashes (draws.py), so a problem is a function of (seed, index).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vrpo.draws import fold, uniform

BASES = "ACGT"
LENGTH = 8
CARELESS = 0.7  # probability that a student copies a base
_STRAND, _STUDENT = 1, 2


def problems(seed: int, count: int) -> list[str]:
    """`count` random strands of LENGTH bases, as prompts."""
    letters = (_uniform(seed, count, _STRAND) * len(BASES)).long()
    return ["".join(BASES[letter] for letter in row) + "=" for row in letters.tolist()]


def student_answers(prompts: list[str], seed: int) -> list[str]:
    """What careless students write below each strand."""
    careless = (_uniform(seed, len(prompts), _STUDENT) < CARELESS).tolist()
    return [
        "".join(base if copies else partner(base) for base, copies in zip(strand[:-1], row, strict=True))
        for strand, row in zip(prompts, careless, strict=True)
    ]


def partner(base: str) -> str:
    return BASES[len(BASES) - 1 - BASES.index(base)]  # A-T, C-G


def right_bases(prompt: str, answer: str) -> int:
    """The verifier: how many bases of the answer are the partners of the strand's; LENGTH means the answer is right."""
    strand = prompt[:-1]
    if len(answer) != len(strand):
        return 0
    return sum(given == partner(base) for given, base in zip(answer, strand, strict=True))


def _uniform(seed: int, count: int, purpose: int) -> Float[Tensor, "N L"]:
    key = fold(fold(torch.full((count,), seed), purpose), torch.arange(count))
    return uniform(fold(key[:, None], torch.arange(LENGTH)))
