"""The values of the core check what a caller can get wrong, where they are made."""

from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch

from tests.build import make_tokens, two_pairs
from tests.exact import Table
from tests.loops import each
from vrpo.draws import FixedCount
from vrpo.estimator import elbo
from vrpo.structures import Labels, Rankings, Rows
from vrpo.types import Draws, Pairs, Tokens

ROWS, PAIRS = two_pairs()
TOKENS = make_tokens(ROWS)
DRAWS = FixedCount(2)(TOKENS)
TWO = torch.tensor([0, 1])


def tokens(**changes: torch.Tensor) -> Tokens:
    return Tokens(**{**{name: getattr(TOKENS, name) for name in ("ids", "response", "attention", "key")}, **changes})


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the type checker of tests, which would say it first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


SHORT, LONG = TOKENS.attention[:, 1:], DRAWS.masked.long()
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "ids that are numbers": (lambda: tokens(ids=TOKENS.ids.float()), "Tokens.ids: must be int of shape"),
    "a response of integers": (
        lambda: tokens(response=TOKENS.response.long()),
        "Tokens.response: must be bool of shape",
    ),
    "attention of another length": (
        lambda: tokens(attention=TOKENS.attention[:, 1:]),
        "Tokens.attention: must be bool of shape",
    ),
    "keys of fewer rows": (lambda: tokens(key=TOKENS.key[1:]), "Tokens.key: must be int of shape"),
    "weights of integers": (
        lambda: Draws(DRAWS.masked, LONG, DRAWS.group),
        "Draws.weight: must be float of shape",
    ),
    "groups of rows": (
        lambda: Draws(DRAWS.masked, DRAWS.weight, DRAWS.group[:, 0]),
        "Draws.group: must be int of shape",
    ),
    "more rejected than chosen": (
        lambda: Pairs(TWO, TWO[:1], TOKENS.length),
        "Pairs.rejected: must be int of shape",
    ),
    "rewards of pairs": (
        lambda: Pairs(TWO, TWO, TOKENS.length, None, torch.ones(2)),
        "Pairs.reward: must be float of shape",
    ),
    "a list": (lambda: Rows([1, 2]), "Rows.length: must be int of shape"),  # type: ignore[arg-type]
    "one list": (lambda: Rankings(TWO, TOKENS.length), "Rankings.order: must be int of shape"),
    "labels of integers": (
        lambda: Labels(TWO, TWO, TWO[:0], TOKENS.length),
        "Labels.desirable: must be bool of shape",
    ),
}


@each("name", WRONG)
def test_a_field_that_cannot_be_is_named(unchecked: None, name: str) -> None:
    """Kills: an error of torch, far away."""
    make, said = WRONG[name]
    with pytest.raises(ValueError, match=said):
        make()


def test_weights_may_be_in_any_precision() -> None:
    """Kept in float64. Kills: "Index put requires the source and destination dtypes match"."""
    single = Draws(DRAWS.masked, DRAWS.weight.float(), DRAWS.group)
    assert single.weight.dtype == torch.float64
    torch.testing.assert_close(
        elbo(Table(), TOKENS, single).value, elbo(Table(), TOKENS, DRAWS).value, rtol=1e-6, atol=0
    )


def test_rows_move_with_all_their_fields() -> None:
    """Kills: a slot that stays behind."""
    slot = TOKENS.response.cumsum(-1)
    moved = tokens(slot=slot).to("cpu")
    assert torch.equal(moved.slot, slot)
    assert TOKENS.to("cpu").slot is None
