"""What an adapter's configuration may not say: peft passes over some of it, and some of it trains to NaN."""

import re
from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.loops import each
from tests.training.runs import tiny
from vrpo.models.adapter import with_adapter

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"target_modules": ["q_proj", "q_prj"]}, "target_modules names 'q_prj', which the model has not. Did you mean"),
    ({"modules_to_save": ["lm_hed"]}, "modules_to_save names 'lm_hed'"),
    ({"exclude_modules": ["nothing"]}, "exclude_modules names 'nothing'"),
    ({"target_parameters": ["q_proj.wait"]}, "target_parameters names 'q_proj.wait'"),
    ({"rank_pattern": {"k_prj": 3}}, "rank_pattern names 'k_prj'"),
    ({"rank_pattern": {"(": 3}}, "rank_pattern names '(', which is no pattern"),
    ({"alpha_pattern": {"k_prj": 3}}, "alpha_pattern names 'k_prj'"),
    ({"layers_to_transform": [0, 9]}, "layers_to_transform names 9, and layers are 0 to 1"),
    ({"lora_alpha": 0}, "a lora_alpha of 0 adds nothing"),
    ({"alpha_pattern": {"q_proj": 0}}, "a lora_alpha of 0 adds nothing"),
    ({"init_lora_weights": "eva"}, "begins from data"),
]


@each(("fields", "said"), REFUSED, ids=str)
def test_what_the_model_has_not_or_would_not_learn(fields: dict[str, Any], said: str) -> None:
    """Kills: names passed over where others are found, so that less is trained than was asked for."""
    with pytest.raises(ValueError, match=re.escape(f"peft_config: {said}" if "names" in said else said)):
        with_adapter(tiny(), LoraConfig(r=2, **fields), 0)


def test_names_that_the_model_has() -> None:
    """Kills: a full name, a pattern, peft's word for all, or an index refused."""
    for fields in (
        {"target_modules": ["model.layers.0.self_attn.q_proj", "k_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.1.*q_proj"},
        {"rank_pattern": {r"layers\.0.*q_proj": 3, "k_proj": 1}, "modules_to_save": ["lm_head"]},
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"use_dora": True},
    ):
        with_adapter(tiny(), LoraConfig(r=2, **fields), 0)


def test_dora_on_a_row_of_zeros() -> None:
    """Kills: a loss that is not a number, of which nobody says why."""
    denoiser = tiny()
    with torch.no_grad():
        denoiser.module.lm_head.weight[3] = 0
    with_adapter(denoiser, LoraConfig(r=2, use_dora=True), 0)
    with pytest.raises(ValueError, match=r"lm_head has a row of zeros"):
        with_adapter(denoiser, LoraConfig(r=2, use_dora=True, target_modules=["lm_head"]), 0)
