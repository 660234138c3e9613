"""Measurements on disk: made once, under one set of settings, for these very tokens and plans."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.diagnostics.laws import SKETCH, pair, tables
from vrpo.diagnostics.designs import allocations, merged
from vrpo.diagnostics.measure import Meter, Store, fingerprint, measured
from vrpo.draws import FixedCount
from vrpo.models.fingerprint import weights_fingerprint
from vrpo.reference import FrozenReference

pytestmark = pytest.mark.usefixtures("no_global_randomness")
SETTINGS = {"policy": "abc", "seed": 0}
DESIGNS = allocations([1, 2, 4])


@pytest.fixture
def meter() -> Meter:
    policy, reference = tables()
    return Meter(policy, FrozenReference(reference), list(policy.parameters()), 3, SKETCH, 64)


def test_allocations() -> None:
    """Every n_t x n_y within the budget from one design per n_y. Kills: budgets that n_y does not divide."""
    assert [(d.draws, d.per_group, d.budgets) for d in DESIGNS] == [(4, 1, (1, 2, 4)), (4, 2, (2, 4)), (4, 4, (4,))]
    assert [d.single for d in DESIGNS] == [True, False, False]
    assert [d.groups(4) for d in DESIGNS] == [4, 2, 1]
    assert [d.per_group for d in allocations([1, 2, 4, 8, 16])] == [1, 2, 4, 8]
    assert [d.plan for d in allocations([6])] == [FixedCount(6, 1), FixedCount(3, 2)]
    again = replace(DESIGNS[0], num_masks=0, budgets=(3,))
    assert merged([*DESIGNS, again])[0] == replace(DESIGNS[0], budgets=(1, 2, 3, 4))
    assert len(merged([*DESIGNS, again])) == 3
    with pytest.raises(ValueError, match=r"\[3\] do not divide the largest one, 4"):
        allocations([3, 4])
    with pytest.raises(ValueError, match="at least 1"):
        allocations([0])


def test_a_pair_is_measured_once(meter: Meter, tmp_path: Path) -> None:
    """What comes from disk is what was measured, bit by bit, and costs no pass of the model; progress is complete.

    Kills: measurements that are not kept, kept under one name for all designs, or in another precision.
    """
    store, done = Store.open(tmp_path, SETTINGS), []
    first = measured(meter, store, pair(), 7, DESIGNS, done.append)
    assert sum(done) == meter.passes(DESIGNS) == 2 * 3 * 12

    def refuse(**arguments: object) -> torch.Tensor:
        raise AssertionError("the model was called again")

    deaf = replace(meter, policy=refuse, reference=FrozenReference(refuse))
    done.clear()
    second = measured(deaf, Store.open(tmp_path, SETTINGS), pair(), 7, DESIGNS, done.append)
    assert sum(done) == 2 * 3 * 12
    for one, other, design in zip(first, second, DESIGNS, strict=True):
        direct = meter(pair(), design, lambda count: None)
        for name in ("policy", "reference", "gradient"):
            assert torch.equal(getattr(one, name), getattr(other, name))
            assert torch.equal(getattr(one, name), getattr(direct, name))
    assert len(list((tmp_path / "pairs").iterdir())) == 3


def test_other_settings_are_refused(tmp_path: Path) -> None:
    """Naming what differs. Kills: a store that takes any settings, or forgets them."""
    Store.open(tmp_path, SETTINGS)
    Store.open(tmp_path, dict(SETTINGS))
    with pytest.raises(ValueError, match=r"other settings: seed is now 1 and was 0\. Use") as error:
        Store.open(tmp_path, {**SETTINGS, "seed": 1})
    assert "policy" not in str(error.value)
    with pytest.raises(ValueError, match="other settings"):
        Store.open(tmp_path, {"policy": "abc"})


def test_other_tokens_and_plans_are_refused(meter: Meter, tmp_path: Path) -> None:
    """Kills: a pair named by its row alone, when the data have changed; a plan by its name, when its fields have."""
    store = Store.open(tmp_path, SETTINGS)
    measured(meter, store, pair(), 7, DESIGNS, lambda count: None)
    changed = replace(pair(), ids=pair().ids.flip(1))
    with pytest.raises(ValueError, match=r"7-fixed_count-4x1\.safetensors was measured on other tokens"):
        store.load(7, DESIGNS[0], changed)
    with pytest.raises(ValueError, match="was measured under FixedCount"):
        store.load(7, replace(DESIGNS[0], plan=FixedCount(2)), pair())
    assert store.load(8, DESIGNS[0], pair()) is None
    named = replace(DESIGNS[0], num_masks=0)
    store.save(meter(pair(), named, lambda count: None), 9, named, pair())
    assert store.load(9, named, pair()) is not None
    assert fingerprint(pair()) == fingerprint(pair()) != fingerprint(changed)


def test_weights_have_fingerprints() -> None:
    """Kills: a hash of shapes, or of the first tensor only."""
    weights = {"a": torch.zeros(1000), "b": torch.ones(2, 3)}
    before = weights_fingerprint(weights.items())
    assert weights_fingerprint(weights.items()) == before
    weights["b"][1, 2] += 1e-3
    assert weights_fingerprint(weights.items()) != before
    assert weights_fingerprint([("a", torch.zeros(3))]) != weights_fingerprint([("b", torch.zeros(3))])
