"""From comparisons of two answers to a reward for each: which answers of a prompt are compared, and win rates.

What deliberately does not live here: who compares (endpoint.py), pair selection (pairing.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from vrpo.rewards.pairing import Key
from vrpo.rewards.verdict import Verdict


@dataclass(frozen=True)
class Comparison:
    """One answer against another, asked in both orders. `replies`: what was read out of the two replies, of the
    second one as seen from the first answer: 1 the first is better, 0 the second, 1/2 a tie, None unreadable.
    `error`: why there is no result, or what was taken for a tie."""

    replies: tuple[float | None, float | None]
    unreadable_is_tie: bool = False
    error: str | None = None

    @property
    def value(self) -> float:
        """Mean over both orders, hence a tie if a judge only likes a position; nan if a reply is unreadable, unless
        that counts as a tie."""
        read = [0.5 if reply is None and self.unreadable_is_tie else reply for reply in self.replies]
        return sum(math.nan if reply is None else reply for reply in read) / 2


def schedule(samples: Sequence[int], budget: int | None, key: Key) -> list[tuple[int, int]]:
    """Which answers are compared: all pairs, or `budget` of them, so chosen that every answer is in about as many.

    The answers stand on a circle in an order of chance; first each is compared with its neighbour, then with the one
    after that, and so on. With a budget of at least one less than the answers, everything is connected; with as many
    as answers, each is in two comparisons. Does not depend on the order of `samples`.
    """
    if budget is not None and budget < 1:
        raise ValueError(f"the number of comparisons must be at least 1, not {budget}")
    everything = list(combinations(sorted(samples), 2))
    if budget is None or budget >= len(everything):
        return everything
    circle = sorted(samples, key=key.rank)
    found: dict[tuple[int, int], None] = {}
    for distance in range(1, len(circle) // 2 + 1):
        for at, one in enumerate(circle):
            other = circle[(at + distance) % len(circle)]
            found.setdefault((min(one, other), max(one, other)))
    return sorted(list(found)[:budget])


def win_rates(
    samples: Sequence[int], compared: Sequence[tuple[int, int]], results: Sequence[Comparison]
) -> list[Verdict]:
    """For each sample the mean of its results, a tie being half a win; nan for one without a result."""
    won: dict[int, list[float]] = {sample: [] for sample in samples}
    for (first, second), result in zip(compared, results, strict=True):
        if not math.isnan(result.value):
            won[first].append(result.value)
            won[second].append(1 - result.value)
    return [_verdict(won[sample]) for sample in samples]


def _verdict(results: Sequence[float]) -> Verdict:
    if not results:
        return Verdict(math.nan, None, "no comparison has a result")
    rate = math.fsum(results) / len(results)
    return Verdict(rate, None, None if rate == 1 else f"won {math.fsum(results):g} of {len(results)} comparisons")
