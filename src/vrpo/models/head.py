"""Log-probabilities of given tokens from hidden states; the logits of all positions never exist at once."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

HEAD_CHUNK = 256  # positions whose logits exist at a time


def target_logp(head: nn.Module, hidden: Float[Tensor, "S D"], target: Int[Tensor, " S"]) -> Float[Tensor, " S"]:
    """log softmax(head(hidden))[target], HEAD_CHUNK positions at a time; at least float32 whatever the model's dtype.

    A head that is trained, directly or by an adapter, computes its chunk again in the backward pass: four products of
    D x V per position. One that is not has its part of the gradient computed while the logits are there: two.
    """
    parts = zip(hidden.split(HEAD_CHUNK), target.split(HEAD_CHUNK), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_logp(head, *part) for part in parts])
    if _plain_and_frozen(head):
        weight = head.weight.to(_compute_dtype(hidden))  # once, and not for every chunk
        return torch.cat([_FrozenHead.apply(*part, weight) for part in parts])
    return torch.cat([checkpoint(_logp, head, *part, use_reentrant=False) for part in parts])


def logits_of(head: nn.Module, hidden: Float[Tensor, "S D"]) -> Float[Tensor, "S V"]:
    """At least in float32."""
    return _wide(head(hidden))


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _logp(head: nn.Module, hidden: Float[Tensor, "S D"], target: Int[Tensor, " S"]) -> Float[Tensor, " S"]:
    return -cross_entropy(logits_of(head, hidden), target, reduction="none")


def _plain_and_frozen(head: Any) -> bool:
    """A linear map without bias, adapter, quantisation or hooks, whose weight is not trained."""
    hooked = head._forward_hooks or head._forward_pre_hooks
    return type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad and not hooked


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """What a linear layer would compute in here."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _FrozenHead(torch.autograd.Function):
    """d logp / d hidden = W^T (onehot - p), which is linear in what comes from above: kept in place of the logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            everything = _wide(linear(hidden.to(weight.dtype), weight)).log_softmax(-1)
            logp = everything.gather(1, target[:, None])[:, 0]  # bit for bit what `_logp` says
            residual = everything.exp_().neg_()
            residual.scatter_add_(1, target[:, None], torch.ones_like(logp)[:, None])
            ctx.save_for_backward((residual.to(weight.dtype) @ weight).to(hidden.dtype))
        return logp

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (gradients[0][:, None] * slope).to(slope.dtype), None, None
