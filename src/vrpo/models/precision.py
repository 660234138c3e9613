"""The one place that says in which type weights are loaded, and what a base in few bits computes in.

Log-probabilities are float32 at least, whatever the weights are (models/head.py); terms are float64 (types.py).
"""

from typing import Literal

import torch

Use = Literal["training", "adapter", "inference", "measuring"]

_WEIGHTS: dict[Use, torch.dtype | str] = {
    "training": torch.float32,  # masters: a step of 5e-7 rounds away in less; bf16=true computes in bfloat16
    "adapter": "auto",  # a frozen base stays as it is stored, also where it is quantised; the adapter is float32
    "inference": "auto",  # as stored
    "measuring": torch.float32,  # noise is measured without that of rounding
}
_NAMES = ("float64", "float32", "bfloat16", "float16")


def weights_dtype(use: Use, given: torch.dtype | str | None = None) -> torch.dtype | str:
    """The type to load weights in; "auto": as config.json says. What is given counts, else what the use says.

    Raises:
        ValueError: not the name of such a type.
    """
    if given is None:
        return _WEIGHTS[use]
    if isinstance(given, torch.dtype) or given == "auto":
        return given
    name = given.removeprefix("torch.")
    if name not in _NAMES:
        raise ValueError(f"dtype {given!r} is none of auto, {', '.join(_NAMES)}")
    return getattr(torch, name)


def compute_dtype(*, bf16: bool, fp16: bool) -> torch.dtype:
    """What products with 4-bit weights are computed in: the precision of training."""
    return torch.bfloat16 if bf16 else torch.float16 if fp16 else torch.float32
