"""Russian roulette on slopes: unbiased by enumeration of its coins, coupled where draws are, replayable."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from math import prod
from unittest import mock

import pytest
import torch
from torch import Tensor

import vrpo.roulette
from tests import exact
from tests.build import make_tokens, two_pairs
from tests.stat import assert_law
from vrpo.draws import FixedCount
from vrpo.losses import DPO, SFT, WeightedSum
from vrpo.preference import backward_by_draw
from vrpo.reference import FrozenReference
from vrpo.roulette import Roulette
from vrpo.types import Pairs

pytestmark = pytest.mark.usefixtures("no_global_randomness")
ROWS, PAIRS = two_pairs()
TOKENS = make_tokens(ROWS)
GROUP = torch.tensor([[0, 0, 1]]).expand(4, 3).clone()
SLOPE = torch.tensor([[0.1, 0.1, 0.2], [-0.4, -0.4, -0.4], [0.3, 0.3, 0.3], [0.0, 0.0, 0.0]], dtype=torch.float64)
ROULETTE = Roulette(threshold=1.0)  # pairs are rows (2, 0) and (1, 3): pi = 2 * 0.3 and 2 * 0.4
PROBABILITY = torch.tensor([0.6, 0.8], dtype=torch.float64)


def kept_at(start: Tensor, probability: Tensor, groups: int) -> Tensor:
    """Which groups a pair keeps: (start + g pi) mod 1 < pi."""
    return (start[:, None] + torch.arange(groups) * probability[:, None]) % 1 < probability[:, None]


def every_pattern(probability: Tensor, groups: int) -> Iterator[tuple[Tensor, float]]:
    """Starts [P] in every part of [0, 1) in which no group changes sides, and the chance of that part."""
    cells = []
    for pi in probability.tolist():
        steps = [(-g * pi) % 1 for g in range(groups)] + [(pi - g * pi) % 1 for g in range(groups)]
        edges = sorted({0.0, 1.0, *steps})
        cells.append([((a + b) / 2, b - a) for a, b in pairwise(edges) if b - a > 1e-12])
    for parts in product(*cells):
        yield torch.tensor([point for point, _ in parts], dtype=torch.float64), prod(size for _, size in parts)


def fed(start: Tensor) -> object:
    """Within the context the coins of the pairs start here."""
    return mock.patch.object(vrpo.roulette, "uniform", return_value=start)


def test_unbiased_over_all_coins() -> None:
    """The mean over every start of the coins, each part with its chance, is the slope: an equality.

    Kills: no division by pi; a pi that is not the chance of the coin; pi above 1.
    """
    for threshold in (1.0, 0.7):  # at 0.7 one pair is always kept
        roulette = Roulette(threshold)
        mean = torch.zeros_like(SLOPE)
        for coins, chance in every_pattern(roulette.probability(SLOPE, PAIRS), 3):
            with fed(coins):
                mean += chance * roulette(SLOPE, PAIRS, TOKENS.key, GROUP)
        torch.testing.assert_close(mean, SLOPE, rtol=1e-12, atol=0)


def test_a_pair_keeps_its_share_of_groups_up_to_one() -> None:
    """pi = 0.6 of two groups: one or both, never none. Kills: coins of a pair independent; one coin for all groups."""
    numbers = {int(kept_at(start, PROBABILITY, 2)[0].sum()) for start, _ in every_pattern(PROBABILITY, 2)}
    seen = torch.stack([kept(TOKENS.key + 100 * trial)[2, [0, 2]].sum() for trial in range(60)])
    assert set(seen.tolist()) == numbers == {1, 2}


def test_the_gradient_is_unbiased() -> None:
    """The same through the engine: the mean of parameter gradients is the plain gradient, in float64 to 1e-12, with an
    SFT term, by which rejected rows have smaller slopes than chosen ones.

    Kills: `thin` after the items were chosen; draws run with the slope from before; kept draws of slope 0 run.
    """
    draws, reference = FixedCount(2)(TOKENS, PAIRS), FrozenReference(exact.Table(seed=9))
    objective = WeightedSum(((1.0, DPO(2.0)), (0.5, SFT())))
    arguments = (reference, TOKENS, PAIRS, draws, objective)
    plain, slopes = exact.Table(), []
    backward_by_draw(plain, *arguments, thin=lambda slope: slopes.append(slope) or slope)
    roulette, mean = Roulette(3.0), torch.zeros_like(plain.table)
    probability = roulette.probability(slopes[0], PAIRS)
    assert 0 < float(probability.min()) < float(probability.max()) < 1
    for coins, chance in every_pattern(probability, 2):
        policy = exact.Table()
        with fed(coins):
            step = backward_by_draw(
                policy, *arguments, thin=lambda slope: roulette(slope, PAIRS, TOKENS.key, draws.group)
            )
        assert torch.equal(step.graphs, expected_graphs(kept_at(coins, probability, 2)))
        if policy.table.grad is not None:
            mean += chance * policy.table.grad
    assert float((mean - plain.table.grad).abs().max()) < 1e-12 * float(plain.table.grad.abs().max())


def expected_graphs(keeps: Tensor) -> Tensor:
    """Which draws of the four rows run for the gradient, every draw being a group of its own."""
    graphs = torch.zeros(4, keeps.shape[1], dtype=torch.bool)
    for pair, rows in enumerate(((2, 0), (1, 3))):
        for row in rows:
            graphs[row] = keeps[pair]
    return graphs


def kept(key: Tensor) -> Tensor:
    """Which slopes of `SLOPE` are left, for keys of the four rows."""
    return ROULETTE(SLOPE.where(SLOPE != 0, 1e-9), PAIRS, key, GROUP) != 0


def test_what_is_coupled_is_kept_together() -> None:
    """Both rows of a pair, and all draws of a group, share a coin; pairs and groups do not.

    Kills: a coin per row; a coin per draw; one coin for a pair, or for the batch.
    """
    seen = torch.stack([kept(TOKENS.key + 100 * trial) for trial in range(60)])
    assert torch.equal(seen[:, 2], seen[:, 0])
    assert torch.equal(seen[:, 1], seen[:, 3])
    assert torch.equal(seen[..., 0], seen[..., 1])
    assert (seen[:, 2, 0] != seen[:, 2, 2]).any()
    assert (seen[:, 2, 0] != seen[:, 1, 0]).any()


def test_coins_are_fair() -> None:
    """A pair's two groups are kept with probability pi each, as rarely together as that allows; independently of the
    other pair's first.

    Kills: a coin that is used twice; a pi that is not the law of the coin.
    """
    count = 20_000
    start = 4 * torch.arange(count)
    many = Pairs(
        *((start[:, None] + rows).flatten() for rows in (PAIRS.chosen, PAIRS.rejected)), PAIRS.length.repeat(count)
    )
    slope, group = SLOPE.repeat(count, 1), GROUP.repeat(count, 1)
    thinned = Roulette(ROULETTE.threshold * count)(slope, many, torch.arange(4 * count), group).unflatten(0, (count, 4))
    patterns = thinned[:, [2, 2, 1], [0, 2, 0]] != 0
    code = (patterns * torch.tensor([4, 2, 1])).sum(-1)
    law = [both * other for both in (0.0, 0.4, 0.4, 0.2) for other in (0.2, 0.8)]
    assert_law(code.bincount(minlength=8), torch.tensor(law), resolution=0.05)


def test_coins_replay_whatever_the_batch() -> None:
    """The second pair alone, with the slopes of a mean over one pair, has the same coin and factor.

    Kills: coins from a generator's state or the place in the batch; a |slope| that depends on the size of the batch.
    """
    alone = Pairs(torch.tensor([0]), torch.tensor([1]), PAIRS.length[[1, 3]])
    for trial in range(20):
        key = TOKENS.key + trial
        both = ROULETTE(SLOPE, PAIRS, key, GROUP)
        assert torch.equal(both, ROULETTE(SLOPE, PAIRS, key, GROUP))
        one = ROULETTE(2 * SLOPE[[1, 3]], alone, key[[1, 3]], GROUP[:2])
        torch.testing.assert_close(one, 2 * both[[1, 3]], rtol=1e-14, atol=0)


def test_probability() -> None:
    """The largest |slope| of the pair over the threshold, at most 1. Kills: the chosen row's alone; a cap left out."""
    torch.testing.assert_close(ROULETTE.probability(SLOPE, PAIRS), PROBABILITY)
    assert torch.equal(Roulette(0.1).probability(SLOPE, PAIRS), torch.ones(2, dtype=torch.float64))
    swapped = replace(PAIRS, chosen=PAIRS.rejected, rejected=PAIRS.chosen)
    torch.testing.assert_close(ROULETTE.probability(SLOPE, swapped), PROBABILITY)


def test_nothing_is_hidden() -> None:
    """A NaN stays one; a slope of 0 stays 0; a draw not in use stays what it is. Kills: a NaN dropped in silence."""
    broken = SLOPE.clone()
    broken[2] = float("nan")
    thinned = ROULETTE(broken, PAIRS, TOKENS.key, GROUP)
    assert thinned[2].isnan().all()
    assert not ROULETTE(torch.zeros_like(SLOPE), PAIRS, TOKENS.key, GROUP).any()
    surplus = GROUP.clone()
    surplus[:, 2] = -1
    assert ROULETTE(SLOPE, PAIRS, TOKENS.key, surplus).isfinite().all()


def test_rows_in_no_pair_are_kept_and_none_is_in_two() -> None:
    one = Pairs(PAIRS.chosen[:1], PAIRS.rejected[:1], PAIRS.length)
    assert torch.equal(ROULETTE(SLOPE, one, TOKENS.key, GROUP)[[1, 3]], SLOPE[[1, 3]])
    twice = Pairs(torch.tensor([2, 2]), torch.tensor([0, 3]), PAIRS.length)
    with pytest.raises(ValueError, match="without a row in common"):
        ROULETTE(SLOPE, twice, TOKENS.key, GROUP)


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_threshold_is_positive(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be positive"):
        Roulette(threshold)
