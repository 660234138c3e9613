"""References: where the second argument of an objective comes from.

A reference is a function of (tokens, draws), because sharing noise with the policy MEANS receiving the same draws.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vrpo.draws import rekeyed
from vrpo.estimator import ENGINE, Engine, elbo
from vrpo.plans import Exact
from vrpo.types import AnyDraws, AnyTokens, Denoiser, Plan, Structure


@runtime_checkable
class Reference(Protocol):
    """Terms of R references for the given rows, without a graph. R may be 0."""

    def __call__(
        self, tokens: AnyTokens, draws: AnyDraws, structure: Structure, engine: Engine = ENGINE
    ) -> Float[Tensor, "N R J"]: ...


@dataclass(frozen=True)
class FrozenReference:
    """A model that is not trained, on the SAME draws as the policy: common random numbers ("antithetic" in the paper).

    Args:
        denoiser: a frozen copy; or the policy itself, if `frozen` turns its adapter off.
        frozen: context manager factory to evaluate under, such as peft's `disable_adapter`.
    """

    denoiser: Denoiser
    frozen: Callable[[], AbstractContextManager[object]] = nullcontext

    def __call__(
        self, tokens: AnyTokens, draws: AnyDraws, structure: Structure, engine: Engine = ENGINE
    ) -> Float[Tensor, "N 1 K"]:
        with torch.no_grad(), self.frozen():
            return elbo(self.denoiser, tokens, draws, engine).terms[:, None]


@dataclass(frozen=True)
class ExactReference:
    """A causal language model, whose log-likelihood needs no draws: log p(y | x) / K as the term of each of K draws.

    So it stands beside references with draws, and leaving whole groups of draws out leaves it what it is. Its noise
    cannot cancel the policy's, having none.

    Args:
        around: context manager factory to evaluate under, such as an autocast.
    """

    denoiser: Denoiser
    around: Callable[[], AbstractContextManager[object]] = nullcontext

    def __call__(
        self, tokens: Any, draws: AnyDraws, structure: Structure, engine: Engine = ENGINE
    ) -> Float[Tensor, "N 1 K"]:
        asked = Exact()(tokens).only(draws.in_use.any(-1, keepdim=True))
        with torch.no_grad(), self.around():
            found = elbo(self.denoiser, tokens, asked, engine)
        return spread(found.value, draws)[:, None]


def spread(value: Float[Tensor, " N"], draws: AnyDraws) -> Float[Tensor, "N K"]:
    """A known value as equal terms of a plan's draws, whichever of them are asked for now (`Draws.only`)."""
    planned = draws.group >= 0
    return value[:, None] * planned / planned.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Several:
    """References side by side on the same draws, for objectives that pool them."""

    references: tuple[Reference, ...]

    def __call__(
        self, tokens: AnyTokens, draws: AnyDraws, structure: Structure, engine: Engine = ENGINE
    ) -> Float[Tensor, "N R J"]:
        found = [each(tokens, draws, structure, engine) for each in self.references]
        return torch.cat(found, 1)


@dataclass(frozen=True)
class IndependentReference:
    """The same reference on draws of its own, independent of the policy's: `share_draws=False`, for comparison only."""

    reference: Reference
    plan: Plan

    def __call__(
        self, tokens: Any, draws: AnyDraws, structure: Structure, engine: Engine = ENGINE
    ) -> Float[Tensor, "N R J"]:
        own = self.plan(rekeyed(tokens), structure)
        return self.reference(tokens, own, structure, engine)


@dataclass(frozen=True)
class GivenReference:
    """Terms computed before, with these very draws: valid only for the rows and draws they came from."""

    terms: Float[Tensor, "N R K"]

    def __call__(
        self, tokens: AnyTokens, draws: AnyDraws, structure: Structure, engine: Engine = ENGINE
    ) -> Float[Tensor, "N R K"]:
        if (self.terms.shape[0], self.terms.shape[2]) != tuple(draws.group.shape):
            raise ValueError(f"reference terms of shape {tuple(self.terms.shape)} do not fit draws of another shape")
        return self.terms


@dataclass(frozen=True)
class NoReference:
    """R = 0: for objectives without a reference, such as SFT."""

    def __call__(
        self, tokens: AnyTokens, draws: AnyDraws, structure: Structure, engine: Engine = ENGINE
    ) -> Float[Tensor, "N 0 K"]:
        return torch.zeros(len(draws.group), 0, draws.group.shape[1], dtype=torch.float64, device=draws.group.device)
