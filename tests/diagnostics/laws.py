"""What the diagnostics are tested on: a pair under two table models, and replicates with gradients given by hand."""

import torch
from torch import Tensor

from tests import exact
from tests.build import Row, make_tokens
from vrpo.diagnostics.replicates import Replicates, replicate
from vrpo.reference import FrozenReference
from vrpo.sketch import Sketch
from vrpo.types import Plan, Tokens

CHOSEN, REJECTED = Row((2, 0), (1, 2), 5), Row((2, 0), (0, 1), 6)
SKETCH = Sketch(64)


def tables() -> tuple[exact.Table, exact.Table]:
    """Policy and reference over sequences of four tokens; not close to each other."""
    return exact.Table(length=4, seed=2), exact.Table(length=4, seed=3)


def pair() -> Tokens:
    return make_tokens([CHOSEN, REJECTED])


def replicates(plan: Plan, count: int) -> Replicates:
    policy, reference = tables()
    return replicate(
        policy,
        FrozenReference(reference),
        pair(),
        plan,
        parameters=list(policy.parameters()),
        num_replicates=count,
        sketch=SKETCH,
        max_tokens=64,
    )


def with_gradients(gradient: Tensor) -> Replicates:
    """[B, D] gradients of estimates whose score is 0, so that the loss gradient is -beta / 2 times each."""
    zeros = torch.zeros(len(gradient), 2, 1, dtype=torch.float64)
    return Replicates(zeros, zeros, gradient.double()[:, None])
