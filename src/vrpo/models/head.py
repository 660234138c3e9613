"""Log-probabilities of given tokens from hidden states; the logits of all positions never exist at once."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

HEAD_CHUNK = 256  # positions whose logits exist at a time
_CPU_BYTES = 2**25 - 2**20  # of a block that the C library keeps when freed; a larger one is mapped anew each time
_RESIDUAL_BYTES = 2**26  # of the residuals that share one product with the hidden states, for a trained head


def target_logp(
    head: nn.Module, hidden: Float[Tensor, "S D"], target: Int[Tensor, " S"], chunk: int | None = None
) -> Float[Tensor, " S"]:
    """log softmax(head(hidden))[target], a chunk of positions at a time; at least float32 whatever the model's dtype.

    A head that is trained, directly or by an adapter, computes its chunk again in the backward pass: four products of
    D x V per position. One that is not has its part of the gradient computed while the logits are there: two.
    """
    weight: Any = getattr(head, "weight", None)
    if chunk is None:
        chunk = chunk_size(HEAD_CHUNK if weight is None else len(weight), hidden.device)
    if not _plain(head):
        parts = zip(hidden.split(chunk), target.split(chunk), strict=True)
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(_logp, head, *part, use_reentrant=False) for part in parts])
        return torch.cat([_logp(head, *part) for part in parts])
    dtype = _compute_dtype(hidden)
    if not torch.is_grad_enabled():
        return _values(hidden.to(dtype), target, weight.to(dtype), chunk)
    function = _TrainedHead if weight.requires_grad else _FrozenHead
    return function.apply(hidden, target, weight, dtype, chunk)


def logits_of(head: nn.Module, hidden: Float[Tensor, "S D"]) -> Float[Tensor, "S V"]:
    """At least in float32."""
    return _wide(head(hidden))


def chunk_size(vocab: int, device: torch.device) -> int:
    """Positions whose logits exist at a time: on a CPU so few that their memory is used again and again."""
    if device.type != "cpu":
        return HEAD_CHUNK
    return max(1, min(HEAD_CHUNK, _CPU_BYTES // (4 * vocab)))


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _logp(head: nn.Module, hidden: Float[Tensor, "S D"], target: Int[Tensor, " S"]) -> Float[Tensor, " S"]:
    logits = logits_of(head, hidden)
    return -cross_entropy(logits, target.to(logits.device), reduction="none")


def _plain(head: Any) -> bool:
    """A linear map without bias, adapter, quantisation or hooks."""
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    brought = getattr(head, "_hf_hook", None) is not None  # accelerate's, of a device_map, which brings the weights in
    return not (brought or head._forward_hooks or head._forward_pre_hooks)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """What a linear layer would compute in here."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _values(hidden: Tensor, target: Tensor, weight: Tensor, size: int) -> Tensor:
    """The log-probabilities, for a weight in the dtype to compute in."""
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.cat(
            [
                -cross_entropy(_wide(linear(part, weight)), wanted, reduction="none")
                for part, wanted in zip(hidden.split(size), target.split(size), strict=True)
            ]
        )


class _FrozenHead(torch.autograd.Function):
    """d logp / d hidden = W^T (onehot - p), which is linear in what comes from above: kept in place of the logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, target: Tensor, weight: Tensor, dtype: torch.dtype, size: int) -> Tensor:
        weight = weight.to(dtype)
        found, slope = [], torch.empty_like(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), size):
                part = slice(start, start + size)
                everything = _wide(linear(hidden[part].to(dtype), weight)).log_softmax(-1)
                logp = everything.gather(1, target[part, None])  # bit for bit what `_logp` says
                residual = everything.exp_().neg_().scatter_add_(1, target[part, None], torch.ones_like(logp))
                slope[part] = residual.to(dtype) @ weight
                found.append(logp[:, 0])
        ctx.save_for_backward(slope)
        return torch.cat(found) if found else slope.new_zeros(0, dtype=torch.promote_types(dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (gradients[0][:, None] * slope).to(slope.dtype), None, None, None, None


class _TrainedHead(torch.autograd.Function):
    """The logits again in the backward pass, of a chunk; its residuals, slope * (onehot - p), meet weight and hidden
    states in one product each, and the weight's gradient adds up at least in float32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, target: Tensor, weight: Tensor, dtype: torch.dtype, size: int) -> Tensor:
        ctx.save_for_backward(hidden, target, weight)  # not what it is cast to, which graphs would hold one each
        ctx.dtype, ctx.size = dtype, size
        return _values(hidden.to(dtype), target, weight.to(dtype), size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        hidden, target, master = ctx.saved_tensors
        weight, size = master.to(ctx.dtype), ctx.size
        wide = torch.promote_types(weight.dtype, torch.float32)
        several = size * max(1, _RESIDUAL_BYTES // (size * len(weight) * weight.element_size()))
        found, total = torch.empty_like(hidden), weight.new_zeros(0, dtype=wide)
        residual = weight.new_empty(min(several, len(hidden)), len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, len(hidden), several):
                block = hidden[first : first + several].to(weight.dtype)
                for start in range(0, len(block), size):
                    share = _wide(linear(block[start : start + size], weight))
                    share = torch.softmax(share, -1, out=share)
                    at = slice(first + start, first + start + len(share))
                    share.scatter_add_(1, target[at, None], -torch.ones_like(share[:, :1]))
                    residual[start : start + len(share)] = share.mul_(-gradients[0][at, None])
                found[first : first + several] = residual[: len(block)] @ weight
                rows = residual[: len(block)].t()
                if first == 0:
                    total = (rows @ block).to(wide)
                else:
                    total = total.addmm_(rows, block) if wide == block.dtype else total.add_(rows @ block)
        total = total if len(hidden) else torch.zeros_like(weight)
        return found, None, total.to(master.dtype), None, None
