"""What is measured of a policy on pairs, held out or trained on: margins, the noise of the score, and what is left of a
loss's slope.

Terms are taken under draws that are the same for every run: a task's `replicates` times the paper's plan with n = 8, of
which the draws one by one are eight times as many estimates with n = 1. Nothing here trains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vrpo import elbo
from vrpo.data.collate import PreferenceCollator, pairs_of, tokens_of
from vrpo.data.tokenize import tokenize_preferences
from vrpo.models.hf import HFDenoiser
from vrpo.types import Pairs, Plan

FIRST = -2  # epoch in the keys of the draws; -1 is that of evaluations
Objective = Callable[[Tensor, Tensor, Pairs], Tensor]


@dataclass(frozen=True)
class Held:
    """Pairs as a batch."""

    batch: dict[str, Tensor]
    max_tokens: int

    @classmethod
    def of(cls, denoiser: HFDenoiser, rows: Any, fields: dict[str, Any]) -> "Held":
        cut = {"max_length": fields["max_length"], "max_prompt_length": fields.get("max_prompt_length")}
        common = {"truncation_mode": "keep_end", "eos_padding": None, "on_bad_rows": "drop", "strings_as_chat": False}
        examples, _ = tokenize_preferences(rows, denoiser.tokenizer, **cut, **common, mask_id=denoiser.mask_id)
        return cls(PreferenceCollator(denoiser.pad_id)(list(examples)), fields["max_tokens_per_forward"])

    @torch.no_grad()
    def terms(self, denoiser: HFDenoiser, plan: Plan, replicates: int) -> Tensor:
        """Terms [R, N, K] of the rows under R sets of draws."""
        denoiser.module.eval()
        found = []
        for replicate in range(replicates):
            tokens = tokens_of(self.batch, seed=0, epoch=FIRST - replicate)
            draws = plan(tokens, pairs_of(self.batch))
            found.append(elbo(denoiser, tokens, draws, max_tokens=self.max_tokens).terms)
        return torch.stack(found)


def margins(change: Tensor, pairs: Pairs) -> Tensor:
    """h [R, P], from changes of the bounds [R, N]."""
    return change[:, pairs.chosen] - change[:, pairs.rejected]


def margin_figures(policy: Tensor, reference: Tensor, pairs: Pairs) -> dict[str, Any]:
    """Means over pairs, of margins in nats; `ordered`: a 1 for each pair whose mean margin is positive."""
    change = (policy - reference).sum(-1)
    margin = margins(change, pairs).mean(0)
    return {
        "ordered": "".join(str(int(value > 0)) for value in margin.tolist()),
        "margin": float(margin.mean()),
        "chosen_change": float(change[:, pairs.chosen].mean()),
        "rejected_change": float(change[:, pairs.rejected].mean()),
        "tokens": float(pairs.length.double().mean()),
    }


def noise(policy: Tensor, reference: Tensor, pairs: Pairs) -> dict[str, float]:
    """Variances of h over replicates, mean over pairs: with the reference on the same draws, and without one."""
    shared, alone = margins((policy - reference).sum(-1), pairs), margins(policy.sum(-1), pairs)
    return {"variance": float(shared.var(0).mean()), "variance_alone": float(alone.var(0).mean())}


def slope(objective: Objective, policy: Tensor, reference: Tensor, pairs: Pairs) -> float:
    """- d loss / d D(chosen), mean over pairs and replicates: how hard the loss pushes."""
    total = 0.0
    for own, other in zip(policy, reference, strict=True):
        leaf = own.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(leaf, other[:, None], pairs), leaf)
        # all terms of a row have one slope, the derivative by their sum
        total += float(gradient[pairs.chosen].mean(-1).sum())
    return -total / len(policy)


def singles(terms: Tensor) -> Tensor:
    """[R, N, K] of K independent draws to [R * K, N, 1], each an estimate with one draw."""
    return (terms * terms.shape[-1]).permute(0, 2, 1).flatten(0, 1)[..., None]


def together(terms: Tensor) -> Tensor:
    """[R, N, K] to [1, N, R * K], one estimate of all draws."""
    return (terms / len(terms)).permute(1, 0, 2).flatten(1)[None]


def figures(policy: Tensor, reference: Tensor, pairs: Pairs, objective: Objective | None) -> dict[str, Any]:
    """Everything about a policy under the paper's plan. `objective`: None where slopes of pairs are not defined."""
    result = margin_figures(policy, reference, pairs)
    for name, view in (("n1", singles), ("n8", lambda terms: terms), ("all", together)):
        own, other = view(policy), view(reference)
        if len(own) > 1:
            result |= {f"{figure}_{name}": value for figure, value in noise(own, other, pairs).items()}
        if objective is not None:
            result[f"slope_{name}"] = slope(objective, own, other, pairs)
    return result
