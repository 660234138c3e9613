"""A preference step: backward by draw IS the gradient of the loss, at the memory of one pack."""

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import exact
from tests.build import draws_of, make_tokens, two_pairs
from tests.loops import each
from tests.objectives import CASES, Case, every_case
from tests.objectives import TOKENS as SIX_ROWS
from tests.test_estimator import Recorder
from vrpo.draws import FixedCount
from vrpo.estimator import Engine
from vrpo.kept_graphs import backward_keeping_graphs
from vrpo.losses.corrections import CrossFit, Jackknife
from vrpo.losses.objective import WeightedSum
from vrpo.losses.pairwise import DPO
from vrpo.losses.setwise import SFT
from vrpo.one_pass import OnePass
from vrpo.preference import backward_by_draw, preference_loss
from vrpo.reference import FrozenReference, IndependentReference, NoReference, Reference, Several
from vrpo.structures import Rankings
from vrpo.types import Pairs, Terms

pytestmark = pytest.mark.usefixtures("no_global_randomness")
ROWS, PAIRS = two_pairs()
TOKENS = make_tokens(ROWS, left=1, right=1)


def reference_of(share_draws: bool, plan: FixedCount) -> Reference:
    frozen = FrozenReference(exact.Table(seed=9))
    return frozen if share_draws else IndependentReference(frozen, plan)


def references_of(case: Case) -> Reference:
    """As many as the objective takes, on common draws."""
    frozen = tuple(FrozenReference(exact.Table(seed=9 + k)) for k in range(case.references))
    return Several(frozen) if frozen else NoReference()


by_draw_both = each("engine", [backward_by_draw, backward_keeping_graphs])
some = every_case(lambda case: case is CASES["dpo"] or case is CASES["dpo-sharp"] or case is CASES["vrpo"])


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Relative to the largest entry: 1e-12."""
    assert float((actual - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


@some
@each(("num_times", "num_masks"), [(1, 1), (4, 1), (2, 3)])
@each("max_tokens", [None, 1, 13, 30, 1000])  # one graph kept, or several, or all
@each("share_draws", [True, False])
@by_draw_both
def test_backward_by_draw_is_the_gradient_of_the_loss(
    engine: Any, case: Case, num_times: int, num_masks: int, max_tokens: int | None, share_draws: bool
) -> None:
    """In float64 to 1e-12, with the same loss and terms.

    Kills: slope of wrong sign; 1 / K applied twice; scale ignored; a pack skipped or counted twice; the reference on
    other draws in one of the two.
    """
    plan = FixedCount(num_times, num_masks)
    draws = plan(TOKENS, PAIRS)
    reference = reference_of(share_draws, plan)
    whole, parts = exact.Table(), exact.Table()
    step = preference_loss(whole, reference, TOKENS, PAIRS, draws, case.objective)
    (3.0 * step.loss).backward()
    by_draw = engine(parts, reference, TOKENS, PAIRS, draws, case.objective, Engine(max_tokens, scale=3.0))
    assert_close(parts.table.grad, whole.table.grad)
    assert torch.equal(by_draw.terms.policy, step.terms.policy.detach())
    assert torch.equal(by_draw.terms.reference, step.terms.reference)
    assert float(by_draw.loss) == pytest.approx(float(step.loss.detach()), abs=1e-14)
    assert not by_draw.loss.requires_grad
    assert not by_draw.terms.policy.requires_grad


@every_case()
@each("max_tokens", [None, 30])
@each("wrapped", [False, True])
@by_draw_both
def test_backward_by_draw_of_every_objective(engine: Any, case: Case, max_tokens: int | None, wrapped: bool) -> None:
    """On pairs, lists, labels and rows, with none to three references, as it is and with its bias corrected.

    Kills: an engine that knows pairs only; a structure's index lost between passes; a second reference on other draws.
    """
    draws = FixedCount(2)(SIX_ROWS, case.structure)
    objective = Jackknife(case.objective, 2) if wrapped else case.objective
    whole, parts, reference = exact.Table(), exact.Table(), references_of(case)
    step = preference_loss(whole, reference, SIX_ROWS, case.structure, draws, objective)
    step.loss.backward()
    by_draw = engine(parts, reference, SIX_ROWS, case.structure, draws, objective, Engine(max_tokens))
    assert_close(parts.table.grad, whole.table.grad)
    assert float(by_draw.loss) == pytest.approx(float(step.loss.detach()), rel=1e-13)


def test_gradients_accumulate() -> None:
    """Two micro-batches scaled by a half each are the mean, like any backward. Kills: .grad overwritten."""
    draws, reference = FixedCount(2)(TOKENS, PAIRS), FrozenReference(exact.Table(seed=9))
    once, twice = exact.Table(), exact.Table()
    backward_by_draw(once, reference, TOKENS, PAIRS, draws, DPO())
    for _ in range(2):
        backward_by_draw(twice, reference, TOKENS, PAIRS, draws, DPO(), Engine(scale=0.5))
    assert_close(twice.table.grad, once.table.grad)


def test_the_gradient_by_finite_differences() -> None:
    """An oracle that is not autograd: the loss moves along the gradient as the gradient says (central differences).

    Kills: slope of wrong sign in both engines alike; terms detached.
    """
    draws = FixedCount(2)(TOKENS, PAIRS)
    policy, reference, objective = exact.Table(), FrozenReference(exact.Table(seed=9)), CASES["vrpo"].objective
    backward_by_draw(policy, reference, TOKENS, PAIRS, draws, objective)
    direction, start = policy.table.grad, policy.table.detach().clone()
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            policy.table.copy_(start + sign * 1e-5 * direction)
            losses.append(float(preference_loss(policy, reference, TOKENS, PAIRS, draws, objective).loss))
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float(direction.square().sum()), rel=1e-8)


# Memory ---------------------------------------------------------------------------------------------------------------


class Held:
    """A saved tensor that can be watched."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


@contextlib.contextmanager
def watching() -> Iterator[list[int]]:
    """The largest number of elements saved for backward at any one time within the context, in a list of one."""
    live: weakref.WeakSet[Held] = weakref.WeakSet()
    peak = [0]

    def pack(tensor: Tensor) -> Held:
        held = Held(tensor)
        live.add(held)
        peak[0] = max(peak[0], sum(other.tensor.numel() for other in live))
        return held

    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        yield peak


@by_draw_both
def test_memory_does_not_grow_with_the_number_of_draws(engine: Any) -> None:
    """Peak of saved tensors: constant in K by draw, proportional to K with all graphs, smaller with smaller packs.

    Kills: all graphs kept alive (a loss summed over packs before one backward).
    """
    peaks: dict[str, list[int]] = {"draw": [], "small": [], "all": []}
    reference = FrozenReference(exact.Table(seed=9))
    for num_times in (6, 24):  # everything masked in every draw, so that draws are equal work
        draws = draws_of(TOKENS, [torch.ones(num_times, len(row.response)) for row in ROWS])
        for name, max_tokens in (("draw", None), ("small", 1)):
            with watching() as peak:
                engine(exact.Table(), reference, TOKENS, PAIRS, draws, DPO(), Engine(max_tokens))
            peaks[name].append(peak[0])
        with watching() as peak:
            preference_loss(exact.Table(), reference, TOKENS, PAIRS, draws, DPO()).loss.backward()
        peaks["all"].append(peak[0])
    assert peaks["small"][0] == peaks["small"][1] > 0
    assert peaks["draw"][1] <= 1.1 * peaks["draw"][0]
    assert peaks["small"][0] < peaks["draw"][0] / 2
    assert peaks["all"][1] > 3 * peaks["all"][0] > 3 * peaks["draw"][0]


# What is called, and how ----------------------------------------------------------------------------------------------


def rows_called(recorder: Recorder, with_graph: bool) -> int:
    pairs = zip(recorder.calls, recorder.with_graph, strict=True)
    return sum(len(call["input_ids"]) for call, graph in pairs if graph == with_graph)


def test_items_without_slope_are_not_run_again() -> None:
    """SFT on pairs imitates the chosen rows: rejected rows have slope 0, and a graph only in the first pack."""
    recorder = Recorder(exact.Table())
    draws = FixedCount(3)(TOKENS, PAIRS)
    backward_keeping_graphs(recorder, NoReference(), TOKENS, PAIRS, draws, SFT())
    assert rows_called(recorder, with_graph=False) == 4 * 2
    assert rows_called(recorder, with_graph=True) < 4 * 3


@each(("max_tokens", "extra"), [(None, 4 * 2), (1, 4 * 3 - 1), (1000, 0)])
def test_the_first_pack_runs_once(max_tokens: int | None, extra: int) -> None:
    """Every item has one pass with a graph, and those of all packs but the first one without. Kills: a second pass for
    all; a graph that is kept and not used."""
    recorder = Recorder(exact.Table())
    draws = FixedCount(3)(TOKENS, PAIRS)
    reference = FrozenReference(exact.Table(seed=9))
    backward_keeping_graphs(recorder, reference, TOKENS, PAIRS, draws, DPO(), Engine(max_tokens))
    assert rows_called(recorder, with_graph=True) == 4 * 3
    assert rows_called(recorder, with_graph=False) == extra


def test_as_many_graphs_are_kept_as_fit() -> None:
    """Rows of sizes 5, 5, 4 and 2 in packs of [5, 5], [4] and [2]: the first two fit into a budget of 14 together.
    Where another process can keep only one, so does this one. Kills: one pack's graph only; graphs beyond the budget;
    processes that call the model unequally often."""
    draws = FixedCount(1)(TOKENS, PAIRS)
    reference = FrozenReference(exact.Table(seed=9))
    found = []
    for more in (0, 1):
        recorder = Recorder(exact.Table())
        backward_keeping_graphs(
            recorder,
            reference,
            TOKENS,
            PAIRS,
            draws,
            DPO(),
            Engine(14, agree=lambda packs, more=more: packs + more * (packs < 3)),
        )
        found.append((rows_called(recorder, with_graph=False), rows_called(recorder, with_graph=True)))
    assert found == [(1, 4), (2, 5)]  # at last with an empty pack


def test_surplus_draws_are_never_run() -> None:
    masks = [torch.ones(1 + n, len(row.response)) for n, row in enumerate(ROWS)]
    recorder = Recorder(exact.Table())
    backward_keeping_graphs(
        recorder, FrozenReference(exact.Table(seed=9)), TOKENS, PAIRS, draws_of(TOKENS, masks), DPO()
    )
    assert rows_called(recorder, with_graph=True) == 1 + 2 + 3 + 4
    assert rows_called(recorder, with_graph=False) < 1 + 2 + 3 + 4


def test_nothing_to_learn_is_no_second_pass_and_no_gradient() -> None:
    recorder = Recorder(exact.Table())
    nothing = WeightedSum(((0.0, SFT()),))
    backward_keeping_graphs(recorder, NoReference(), TOKENS, PAIRS, FixedCount(2)(TOKENS), nothing)
    assert rows_called(recorder, with_graph=True) + rows_called(recorder, with_graph=False) == 4 * 2
    assert not recorder.inner.table.grad.any()


def test_processes_agree_on_the_number_of_calls() -> None:
    """With `agree`, every phase makes as many calls as asked, empty packs included, and the gradient is unchanged."""
    draws = FixedCount(2)(TOKENS, PAIRS)
    gradients, calls = [], []
    for busiest in (0, 5):  # packs of another process
        policy, reference = Recorder(exact.Table()), Recorder(exact.Table(seed=9))
        backward_keeping_graphs(
            policy,
            FrozenReference(reference),
            TOKENS,
            PAIRS,
            draws,
            DPO(),
            Engine(20, agree=lambda packs, busiest=busiest: max(packs, busiest)),
        )
        gradients.append(policy.inner.table.grad)
        calls.append((policy.with_graph.count(False), policy.with_graph.count(True), len(reference.calls)))
    assert torch.equal(*gradients)
    assert max(calls[0]) < 5
    assert calls[1] == (4, 1 + 5, 5)  # one pack keeps its graph, the other process keeping only one


def test_trainers_supply_backward_and_context() -> None:
    """`backward` replaces Tensor.backward; `around` wraps each pack's forward and backward, told which is the last."""
    events: list[object] = []

    @contextlib.contextmanager
    def around(last: bool) -> Iterator[None]:
        events.append(("enter", last))
        yield
        events.append(("exit", last))

    def backward(scalar: Tensor) -> None:
        events.append("backward")
        (2 * scalar).backward()

    policy, plain = Recorder(exact.Table()), exact.Table()
    reference, draws = FrozenReference(exact.Table(seed=9)), FixedCount(2)(TOKENS, PAIRS)
    backward_keeping_graphs(
        policy, reference, TOKENS, PAIRS, draws, DPO(), Engine(25, backward=backward, around=around)
    )
    backward_keeping_graphs(plain, reference, TOKENS, PAIRS, draws, DPO())
    packs = policy.with_graph.count(True)
    assert packs > 1
    assert [event[1] for event in events if event[0] == "enter"] == [False] * (packs - 1) + [True]
    assert events[:3] == [("enter", False), "backward", ("exit", False)]
    assert_close(policy.inner.table.grad, 2 * plain.table.grad)


def test_the_textbook_runs_everything_twice_and_says_what_first() -> None:
    """Values without a graph, then the items with a slope with one; `told` hears of these before any of them runs.
    Kills: a graph that is kept; items without slope; told afterwards."""
    recorder, told = Recorder(exact.Table()), []
    draws = FixedCount(3)(TOKENS, PAIRS)

    def hear(again: Tensor) -> None:
        told.append((again, rows_called(recorder, with_graph=True)))

    step = backward_by_draw(recorder, NoReference(), TOKENS, PAIRS, draws, SFT(), Engine(20), hear)
    (again, before), chosen = told[0], torch.zeros(4, dtype=torch.bool).index_fill(0, PAIRS.chosen, True)
    assert before == 0
    assert torch.equal(again, chosen[:, None].expand(4, 3))
    assert torch.equal(step.graphs, again)
    assert rows_called(recorder, with_graph=False) == 4 * 3
    assert rows_called(recorder, with_graph=True) == 2 * 3


# One pass -------------------------------------------------------------------------------------------------------------


@some
@each(("num_times", "num_masks"), [(1, 1), (4, 1), (2, 3)])
@each("max_tokens", [None, 1])
@each("by_group", [False, True])
def test_one_pass_is_the_gradient_of_the_loss(
    case: Case, num_times: int, num_masks: int, max_tokens: int | None, by_group: bool
) -> None:
    """In float64 to 1e-12, with the same loss and terms, added to what .grad holds.

    Kills: a slope of another row; draws of a row counted twice; buffers that are not emptied; scale ignored; .grad
    overwritten.
    """
    plan = FixedCount(num_times, num_masks)
    draws, reference = plan(TOKENS, PAIRS), FrozenReference(exact.Table(seed=9))
    whole, once = exact.Table(), exact.Table()
    step = preference_loss(whole, reference, TOKENS, PAIRS, draws, case.objective)
    (3.0 * step.loss).backward()
    for _ in range(2):
        found = OnePass([once.table], by_group=by_group)(
            once, reference, TOKENS, PAIRS, draws, case.objective, Engine(max_tokens, scale=1.5)
        )
    assert_close(once.table.grad, whole.table.grad)
    torch.testing.assert_close(found.terms.policy, step.terms.policy.detach(), rtol=1e-13, atol=1e-13)
    assert float(found.loss) == pytest.approx(float(step.loss.detach()), abs=1e-13)
    assert not found.loss.requires_grad


@every_case(lambda case: isinstance(case.structure, Pairs | Rankings))
def test_one_pass_of_every_objective_on_pairs_and_lists(case: Case) -> None:
    """A list is a family. Kills: families of neighbouring rows; slopes taken before a list is complete."""
    assert isinstance(case.structure, Pairs | Rankings)
    draws, reference = FixedCount(2)(SIX_ROWS, case.structure), references_of(case)
    whole, once = exact.Table(), exact.Table()
    step = preference_loss(whole, reference, SIX_ROWS, case.structure, draws, case.objective)
    step.loss.backward()
    OnePass([once.table])(once, reference, SIX_ROWS, case.structure, draws, case.objective)
    assert_close(once.table.grad, whole.table.grad)


@each("kind", [CrossFit, Jackknife])
def test_one_pass_with_a_slope_for_each_group(kind: type[CrossFit | Jackknife]) -> None:
    """Slopes that differ inside a row need a buffer each, and are noticed without. Kills: one slope for all draws."""
    draws, reference = FixedCount(3)(TOKENS, PAIRS), FrozenReference(exact.Table(seed=9))
    objective = kind(DPO(1.0), 3)
    once, by_draw = exact.Table(), exact.Table()
    backward_by_draw(by_draw, reference, TOKENS, PAIRS, draws, objective)
    OnePass([once.table], by_group=True)(once, reference, TOKENS, PAIRS, draws, objective)
    assert_close(once.table.grad, by_draw.table.grad)
    with pytest.raises(ValueError, match="slopes of one row's draws differ"):
        OnePass([once.table])(once, reference, TOKENS, PAIRS, draws, objective)


def test_one_pass_refuses_an_objective_that_couples_families() -> None:
    """Kills: slopes taken before the terms they depend on were known."""

    def coupled(terms: Terms, structure: Pairs) -> Tensor:
        return terms.policy.sum().square()

    once, draws = exact.Table(), FixedCount(2)(TOKENS, PAIRS)
    with pytest.raises(ValueError, match="couples rows of different families"):
        OnePass([once.table])(once, NoReference(), TOKENS, PAIRS, draws, coupled)


def test_one_pass_is_one_pass() -> None:
    """Every item once, with a graph; and none of them longer than a family. Kills: a second pass; all graphs kept."""
    recorder = Recorder(exact.Table())
    draws, reference = FixedCount(3)(TOKENS, PAIRS), FrozenReference(exact.Table(seed=9))
    OnePass([recorder.inner.table])(recorder, reference, TOKENS, PAIRS, draws, DPO())
    assert rows_called(recorder, with_graph=False) == 0
    assert rows_called(recorder, with_graph=True) == 4 * 3
