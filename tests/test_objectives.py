"""The contract battery: what holds of every objective, on every structure that it takes. New ones enter by passing."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.objectives import CASES, Case, Structures, every_case, of, terms
from vrpo.losses.corrections import CrossFit, Jackknife
from vrpo.losses.objective import Mixture, Objective, WeightedSum
from vrpo.losses.pools import Confidence, Pooled
from vrpo.losses.setwise import KTO, SFT
from vrpo.structures import Labels, Rankings, Rows
from vrpo.types import Pairs, Terms

pytestmark = pytest.mark.usefixtures("no_global_randomness")


def value_and_slope(objective: Objective, policy: Tensor, reference: Tensor, structure: Structures) -> list[Tensor]:
    leaf = policy.clone().requires_grad_()
    loss = objective(of(leaf, reference), structure)
    return [loss.detach(), torch.autograd.grad(loss, leaf)[0]]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    for found, expected in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def num_items(structure: Structures) -> int:
    return {Pairs: 3, Rankings: 2, Labels: 3, Rows: 6}[type(structure)]


# Values and slopes ----------------------------------------------------------------------------------------------------


@every_case()
def test_a_loss_is_a_number_and_the_mean_of_its_items(case: Case) -> None:
    """One float64 scalar; as many items as pairs, lists, labels or rows. Kills: a sum over items; items of another
    loss than is minimised; pairs of a list as items."""
    policy, reference = terms(case.references)
    loss = case.objective(of(policy, reference), case.structure)
    items = case.objective.items(of(policy, reference), case.structure)
    assert (loss.shape, loss.dtype) == (torch.Size([]), torch.float64)
    assert (len(items), items.dtype) == (num_items(case.structure), torch.float64)
    assert float(loss) == pytest.approx(float(items.mean()), rel=1e-14)


@every_case()
@pytest.mark.parametrize("seed", range(3))
def test_slopes_by_finite_differences(case: Case, seed: int) -> None:
    """In float64. Kills: a slope of wrong sign; anything detached that should not be; and KTO's baseline, which is
    detached, must be held fixed."""
    policy, reference = terms(case.references, seed)

    def loss(leaf: Tensor) -> Tensor:
        return held(case.objective, policy, reference, case.structure)(of(leaf, reference), case.structure)

    assert torch.autograd.gradcheck(loss, policy.clone().requires_grad_())


def held(objective: Objective, policy: Tensor, reference: Tensor, structure: Structures) -> Objective:
    """The objective with KTO's baseline as it is at these terms: a total of 2 z0, of two rows."""
    if isinstance(objective, KTO):
        z0 = objective.zero(objective.values(of(policy, reference), structure), structure)
        return replace(objective, over_processes=lambda own: torch.stack([2 * z0, 2 * torch.ones_like(z0)]))
    if isinstance(objective, WeightedSum):
        parts = tuple((weight, held(part, policy, reference, structure)) for weight, part in objective.parts)
        return replace(objective, parts=parts)
    if isinstance(objective, Mixture) and isinstance(objective.inner, KTO):
        alone = [held(objective.inner, policy, reference[:, k : k + 1], structure) for k in range(reference.shape[1])]

        def mixture(found: Terms, structure: Structures) -> Tensor:
            leaf, theirs = found.policy, found.reference
            each = [one(of(leaf, theirs[:, k : k + 1]), structure) for k, one in enumerate(alone)]
            return sum(weight * loss for weight, loss in zip(objective.weights.weights, each, strict=True))

        return mixture
    return objective


@every_case()
def test_every_draw_of_a_row_has_the_same_slope(case: Case) -> None:
    """What backward-by-draw rests on: the loss sees the SUM of a row's terms, so how a sum is split does not matter.
    Kills: nonlinearity before averaging."""
    policy, reference = terms(case.references)
    value, slope = value_and_slope(case.objective, policy, reference, case.structure)
    torch.testing.assert_close(slope, slope[:, :1].expand(6, 3), rtol=1e-13, atol=0)
    one = [value, slope[:, :1]]
    assert_same(value_and_slope(case.objective, policy.sum(1, True), reference.sum(2, True), case.structure), one)
    assert_same(value_and_slope(case.objective, policy.sum(1, True), reference, case.structure), one)


@every_case()
def test_the_average_is_inside_the_loss(case: Case) -> None:
    """The loss of the mean is not the mean of the losses of single draws, but for imitation, which is linear. Kills:
    losses averaged over draws; imitation that is not linear."""
    policy, reference = terms(case.references)
    single = [(3 * policy[:, k : k + 1], 3 * reference[..., k : k + 1]) for k in range(3)]
    outside = torch.stack([case.objective(of(*one), case.structure) for one in single]).mean()
    difference = abs(float(outside - case.objective(of(policy, reference), case.structure)))
    assert difference < 1e-14 if isinstance(case.objective, SFT) else difference > 1e-4


# Invariances ----------------------------------------------------------------------------------------------------------


def relabelled(structure: Structures, to: Tensor) -> Structures:
    """The structure when row n has become row to[n]."""
    place = torch.argsort(to)
    facts = {"length": structure.length[place]}
    if not isinstance(structure, Labels | Rows) and structure.reward is not None:
        facts["reward"] = structure.reward[place]
    match structure:
        case Pairs():
            return replace(structure, chosen=to[structure.chosen], rejected=to[structure.rejected], **facts)
        case Rankings():
            order = torch.where(structure.order >= 0, to[structure.order], -1)
            return replace(structure, order=order, **facts)
        case Labels():
            return replace(structure, row=to[structure.row], mismatched=to[structure.mismatched], **facts)
    return replace(structure, **facts)


@every_case()
def test_rows_have_no_order(case: Case) -> None:
    """Rows moved, the structure with them: the same loss, slopes moved. Kills: a row taken by its place."""
    policy, reference = terms(case.references)
    value, slope = value_and_slope(case.objective, policy, reference, case.structure)
    to = torch.tensor([3, 0, 5, 1, 2, 4])
    place = torch.argsort(to)
    moved = value_and_slope(case.objective, policy[place], reference[place], relabelled(case.structure, to))
    assert_same(moved, [value, slope[place]])


def picked(structure: Structures, places: Tensor) -> Structures:
    """The items at these places; rows, rewards and mismatched rows as they are."""
    own = {
        Pairs: ("chosen", "rejected", "weight"),
        Rankings: ("order", "weight"),
        Labels: ("row", "desirable", "weight"),
    }
    facts = {name: getattr(structure, name) for name in own[type(structure)]}
    return replace(structure, **{name: value[places] for name, value in facts.items() if value is not None})


def has_places(case: Case) -> bool:
    """Whether items can be picked: not where they are rows, a function counts them, or rows are of one pair each."""
    pools = [getattr(case.objective, "pool", None)]
    named = next(name for name, other in CASES.items() if other is case)
    confident = any(isinstance(pool, Pooled) and isinstance(pool.weights, Confidence) for pool in pools)
    return not (isinstance(case.structure, Rows) or "own" in named or confident)


@every_case(has_places)
def test_items_have_no_order_and_count_alike(case: Case) -> None:
    """Reordered, items are reordered; all of them twice is the same loss; and the first with the last is the loss of
    those, but for KTO, whose baseline looks at all. Kills: a sum over items; weights by place; neighbours."""
    policy, reference = terms(case.references)
    count = num_items(case.structure)
    items = case.objective.items(of(policy, reference), case.structure)
    backwards = torch.arange(count - 1, -1, -1)
    torch.testing.assert_close(
        case.objective.items(of(policy, reference), picked(case.structure, backwards)),
        items[backwards],
        rtol=1e-13,
        atol=0,
    )
    twice = picked(case.structure, torch.arange(count).repeat(2))
    plain = value_and_slope(case.objective, policy, reference, case.structure)
    assert_same(value_and_slope(case.objective, policy, reference, twice), plain)
    if not isinstance(case.structure, Labels):
        ends = torch.tensor([0, count - 1])
        found = case.objective.items(of(policy, reference), picked(case.structure, ends))
        torch.testing.assert_close(found, items[ends], rtol=1e-13, atol=0)


@every_case(lambda case: not isinstance(case.structure, Rows))
def test_weights_are_factors(case: Case) -> None:
    """On each item's loss, its imitation included: nothing at 0, everything else as it was. Kills: weights that are
    normalised, ignored or squared; a part of the loss without them."""
    policy, reference = terms(case.references)
    count = num_items(case.structure)
    plain = case.objective.items(of(policy, reference), replace(case.structure, weight=None))
    weight = torch.tensor([0.0, 2.5, 0.7][:count], dtype=torch.float64)
    found = case.objective.items(of(policy, reference), replace(case.structure, weight=weight))
    torch.testing.assert_close(found, weight * plain, rtol=1e-13, atol=1e-15)


FAMILY = torch.tensor([0, 1, 0, 1, 2, 2])  # the pair of each row
LIST = torch.tensor([0, 1, 0, 1, 0, 0])


@every_case(lambda case: case.shift != "none")
def test_what_both_answers_share_does_not_matter(case: Case) -> None:
    """A constant per prompt on the bounds of policy and references; for losses of the margin, on the policy's alone.

    Kills: a ratio without its reference; a reference of one of the answers only; log-probabilities where ratios belong.
    """
    policy, reference = terms(case.references)
    plain = value_and_slope(case.objective, policy, reference, case.structure)
    amount = torch.tensor([-1.5, 0.7, -4.0], dtype=torch.float64)
    amount = amount[LIST if isinstance(case.structure, Rankings) else FAMILY][:, None] / 3
    shifted = value_and_slope(case.objective, policy + amount, reference + amount[:, None], case.structure)
    assert_same(shifted, plain)
    if case.shift == "policy":
        assert_same(value_and_slope(case.objective, policy + amount, reference, case.structure), plain)
    else:
        moved = value_and_slope(case.objective, policy + amount, reference, case.structure)
        assert abs(float(moved[0] - plain[0])) > 1e-4


# Numbers --------------------------------------------------------------------------------------------------------------


@every_case()
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_margins(case: Case, size: float) -> None:
    """Bounds 1e4 nats apart, the better answer's above or below: finite values and slopes. Kills: log 0; 0 * inf; exp
    of 1e4."""
    policy, reference = terms(case.references)
    higher = torch.tensor([0, 1, 1, 0, 0, 1])[:, None] if size > 0 else torch.tensor([1, 0, 0, 1, 1, 0])[:, None]
    found = value_and_slope(case.objective, policy + (higher - 1) * abs(size), reference, case.structure)
    assert all(part.isfinite().all() for part in found)


@every_case()
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.2)])
def test_terms_of_low_precision(case: Case, dtype: torch.dtype, close: float) -> None:
    """Terms rounded to float32 or bf16 are what they are, and everything after them is float64: bit for bit the loss of
    the rounded terms. Kills: a type that cannot hold the padding of a list; sums in the terms' precision."""
    policy, reference = terms(case.references)
    rounded = [part.to(dtype) for part in (policy, reference)]
    double = [part.double() for part in rounded]
    value, slope = value_and_slope(case.objective, *rounded, case.structure)
    exact = value_and_slope(case.objective, *double, case.structure)
    assert value.dtype == torch.float64
    assert torch.equal(value, exact[0])
    torch.testing.assert_close(slope, exact[1].to(dtype))
    wrapped = Jackknife(case.objective, 3)
    assert torch.equal(wrapped(of(*rounded), case.structure), wrapped(of(*double), case.structure))
    assert float(value) == pytest.approx(float(case.objective(of(policy, reference), case.structure)), abs=close)


# Wrapped --------------------------------------------------------------------------------------------------------------


@every_case()
@pytest.mark.parametrize("num_groups", [2, 3, 6])
def test_wrapped_in_a_correction_of_noise(case: Case, num_groups: int) -> None:
    """CrossFit has the value of what it wraps, and the slopes of the other groups; without noise, groups being equal,
    both wrappers are what they wrap. Kills: a wrapper that knows pairs only."""
    policy, reference = terms(case.references, draws=6)
    value, _ = value_and_slope(case.objective, policy, reference, case.structure)
    crossed = value_and_slope(CrossFit(case.objective, num_groups), policy, reference, case.structure)
    torch.testing.assert_close(crossed[0], value, rtol=0, atol=0)
    size = 6 // num_groups
    for group in range(num_groups):
        rest = torch.ones(6, dtype=torch.bool)
        rest[group * size : (group + 1) * size] = False
        factor = num_groups / (num_groups - 1)
        others = value_and_slope(
            case.objective, factor * policy[:, rest], factor * reference[..., rest], case.structure
        )
        expected = others[1][:, :1].expand(6, size)
        torch.testing.assert_close(crossed[1][:, ~rest], expected, rtol=1e-11, atol=1e-14)
    quiet = [part.mean(-1, True).expand_as(part).contiguous() for part in (policy, reference)]
    plain = value_and_slope(case.objective, *quiet, case.structure)
    for wrapper in (CrossFit, Jackknife):
        assert_same(value_and_slope(wrapper(case.objective, num_groups), *quiet, case.structure), plain)
