"""How the experts of a layer are computed: `experts_implementation`, by transformers' names, and "auto", ours.

transformers' "eager" (one expert after the other), "batched_mm" (the weights copied for every token) and "grouped_mm"
stay what they are. What does not live here: which expert a token goes to (llada_moe.py, routing.py).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

IMPLEMENTATIONS = ("auto", "eager", "batched_mm", "grouped_mm")
_ALIGNED = 16  # bytes, of a row, in torch's grouped product
_AMPERE = (8, 0)
_GROUPED_MM: Any = getattr(torch.nn.functional, "grouped_mm", None)  # since torch 2.10


def auto(
    experts: Any,
    hidden_states: Float[Tensor, "T D"],
    top_k_index: Int[Tensor, "T k"],
    top_k_weights: Float[Tensor, "T k"],
) -> Float[Tensor, "T D"]:
    """Sum over a token's k experts of weight * expert(token): tokens sorted by expert, then a product per expert.

    All products of a layer are one call (torch's grouped_mm) where this can do them, else one after the other. There is
    no threshold: at 32, 512 and 8192 tokens no other choice wins on the whole, in float32 on a CPU and in bfloat16 on a
    GPU, and "eager" loses by far where experts are trained (benchmarks/model_matrix: experts.md, gpu.md). Under
    autocast they are computed in its precision, unlike transformers' "grouped_mm", which there follows the weights and
    so computes float32 masters in float32. The sum over experts has one order: the same bits at every run.
    """
    dtype = _precision(hidden_states)
    flat = top_k_index.flatten()
    order = flat.argsort(stable=True)
    count = flat.new_zeros(experts.num_experts).index_add(0, flat, torch.ones_like(flat))
    first, second = experts.gate_up_proj, experts.down_proj  # once: an adapter on them computes them here
    product = _together if _grouped_fits(first, dtype) else _one_by_one
    into = hidden_states.to(dtype)[order // top_k_index.shape[1]]
    inner = experts._apply_gate(product(into, first, count))
    out = product(inner, second, count)
    weighted = (out * top_k_weights.flatten()[order, None])[order.argsort()]
    return weighted.view(*top_k_index.shape, -1).sum(1).to(hidden_states.dtype)


def _precision(hidden_states: Tensor) -> torch.dtype:
    device = hidden_states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype


def _grouped_fits(weight: Float[Tensor, "E O I"], dtype: torch.dtype) -> bool:
    """Whether torch's grouped product takes these weights: no float64, rows of whole 16 bytes, a GPU since Ampere."""
    if _GROUPED_MM is None or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    new_enough = weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) >= _AMPERE
    return new_enough and all(width * dtype.itemsize % _ALIGNED == 0 for width in weight.shape[1:])


def _together(into: Float[Tensor, "S I"], weight: Float[Tensor, "E O I"], count: Int[Tensor, " E"]) -> Tensor:
    found: Tensor = _GROUPED_MM(into, weight.to(into.dtype).transpose(1, 2), offs=count.cumsum(0, dtype=torch.int32))
    return found


def _one_by_one(into: Float[Tensor, "S I"], weight: Float[Tensor, "E O I"], count: Int[Tensor, " E"]) -> Tensor:
    """`unbind`, not an index for each expert, whose gradients would each be as large as all experts."""
    parts = zip(into.split(count.tolist()), weight.unbind(), strict=True)
    return torch.cat([linear(part, one.to(into.dtype)) for part, one in parts if len(part)])


ALL_EXPERTS_FUNCTIONS.register("auto", auto)
