"""What sharded training needs of accelerate's settings."""

import dataclasses
from typing import Any

import torch


def set_up_fsdp(plugin: Any, *, quantized: bool) -> None:
    """FSDP2 with log-probabilities left in float32 (accelerate's policy casts outputs) and reduced in float32.

    Raises:
        ValueError: another version of FSDP, or quantised weights.
    """
    if plugin.fsdp_version != 2:
        raise ValueError("FSDP needs fsdp_version: 2 (see recipes/accelerate/fsdp2.yaml)")
    if quantized:
        raise ValueError("FSDP with quantised weights is not offered: plain data parallelism, or no quantisation")
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, output_dtype=None, reduce_dtype=torch.float32
        )
