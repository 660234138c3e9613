"""The demo's task: addition, learnt from careless pupils.

A pupil adds two numbers of DIGITS digits column by column and forgets three carries out of four. A model that imitates
pupils imitates the mistake: it knows where carries are due, and mostly leaves them out. A verifier that counts right
digits can tell which of two answers is better, even when neither is right. That is what preferences are made of.

All numbers are keyed hashes (draws.py), so a problem is a function of (seed, index).
"""

import torch
from jaxtyping import Int
from torch import Tensor

from vrpo.draws import fold, uniform

DIGITS = 4
FORGOTTEN = 0.75  # probability that a pupil forgets a carry
_FIRST, _SECOND, _CARRY = 1, 2, 3


def problems(seed: int, count: int) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """`count` problems (a, b), uniform on numbers of at most DIGITS digits."""
    key = fold(torch.full((count,), seed), torch.arange(count))
    first, second = ((uniform(fold(key, part)) * 10**DIGITS).long() for part in (_FIRST, _SECOND))
    return first, second


def pupil_answers(first: Int[Tensor, " N"], second: Int[Tensor, " N"], seed: int) -> list[str]:
    """What careless pupils write: DIGITS + 1 digits, with forgotten carries."""
    key = fold(fold(torch.full_like(first, seed), _CARRY), torch.arange(len(first)))
    carry, total = torch.zeros_like(first), torch.zeros_like(first)
    for place in range(DIGITS):
        column = first // 10**place % 10 + second // 10**place % 10 + carry
        total = total + column % 10 * 10**place
        carry = ((column >= 10) & (uniform(fold(key, place)) >= FORGOTTEN)).long()
    total = total + carry * 10**DIGITS
    return [f"{number:0{DIGITS + 1}d}" for number in total.tolist()]


def prompt(first: int, second: int) -> str:
    return f"{first:0{DIGITS}d}+{second:0{DIGITS}d}="


def right_digits(first: int, second: int, answer: str) -> int:
    """The verifier: how many digits of the answer are those of the sum; DIGITS + 1 means the answer is right."""
    truth = f"{first + second:0{DIGITS + 1}d}"
    if len(answer) != len(truth):
        return 0
    return sum(given == true for given, true in zip(answer, truth, strict=True))
