"""The demo's task: the complementary DNA strand, learnt from careless students.

Every base has its partner: A-T and C-G. A careless student copies a base seven times out of ten instead of writing its
partner. A model that imitates students imitates the mistake: it knows the partner, and mostly writes the copy. A
verifier that counts right bases can tell which of two answers is better, even when neither is right. That is what
preferences are made of, and more than the preferred answers themselves contain.

All numbers are keyed hashes (draws.py), so a problem is a function of its part and index.
"""

import torch

from vrpo.draws import fold, uniform

BASES = "ACGT"
LENGTH = 8
CARELESS = 0.7  # probability that a student copies a base
_STRAND, _STUDENT = 1, 2


PARTS = {"students": 49152, "collect": 8192, "test": 4096, "validate": 4096}  # how many of all strands each use has


def problems(part: str, count: int) -> list[str]:
    """The first `count` strands of a part, as prompts. Parts are disjoint: slices of one random order of all strands.

    Raises:
        ValueError: the part has fewer strands.
    """
    if count > PARTS[part]:
        raise ValueError(f"{count} problems for {part!r}: there are {PARTS[part]}")
    first = sum(size for name, size in PARTS.items() if list(PARTS).index(name) < list(PARTS).index(part))
    order = fold(torch.tensor(_STRAND), torch.arange(len(BASES) ** LENGTH)).argsort()
    digits = order[first : first + count, None] // len(BASES) ** torch.arange(LENGTH) % len(BASES)
    return ["".join(BASES[digit] for digit in row) + "=" for row in digits.tolist()]


def student_answers(prompts: list[str], seed: int) -> list[str]:
    """What careless students write below each strand."""
    key = fold(fold(torch.full((len(prompts),), seed), _STUDENT), torch.arange(len(prompts)))
    careless = (uniform(fold(key[:, None], torch.arange(LENGTH))) < CARELESS).tolist()
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
