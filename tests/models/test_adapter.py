"""What an adapter's configuration may not say: peft passes over some of it, and some of it trains to NaN."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.loops import each
from tests.training.runs import tiny
from vrpo.models.adapter import with_adapter
from vrpo.models.load import load
from vrpo.training.given import check_trainable

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"target_modules": ["q_proj", "q_prj"]}, "target_modules names 'q_prj', which the model has not. Did you mean"),
    ({"modules_to_save": ["lm_hed"]}, "modules_to_save names 'lm_hed'"),
    ({"exclude_modules": ["nothing"]}, "exclude_modules names 'nothing'"),
    ({"target_parameters": ["q_proj.wait"]}, "target_parameters names 'q_proj.wait'"),
    ({"rank_pattern": {"k_prj": 3}}, "rank_pattern names 'k_prj'"),
    ({"rank_pattern": {"(": 3}}, "rank_pattern names '(', which is no pattern"),
    ({"alpha_pattern": {"k_prj": 3}}, "alpha_pattern names 'k_prj'"),
    ({"layers_to_transform": [0, 9]}, "layers_to_transform names 9, and layers are 0 to 1"),
    ({"lora_alpha": 0}, "q_proj is scaled by 0, whatever the adapter learns"),
    ({"alpha_pattern": {"q_proj": 0}}, "q_proj is scaled by 0, whatever the adapter learns"),
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


SAVED: list[tuple[dict[str, Any], str]] = [
    ({"lora_alpha": 0}, "lora_alpha or alpha_pattern is no scale: [0]"),
    ({"lora_alpha": float("nan")}, "lora_alpha or alpha_pattern is no scale: [nan]"),
    ({"lora_alpha": "8"}, "lora_alpha or alpha_pattern is no scale: ['8']"),
    ({"alpha_pattern": {"q_proj": None}}, "lora_alpha or alpha_pattern is no scale: [8, None]"),
    ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is ['q_proj'], and takes names of modules with a number each"),
    ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj'], and takes names"),
    ({"rank_pattern": {"q_proj": "2"}}, "r or rank_pattern is no rank: [2, '2']"),
    ({"r": 2.0}, "r or rank_pattern is no rank: [2.0]"),
    ({"use_rslora": "false"}, "use_rslora is 'false', and takes true or false"),
    ({"fan_in_fan_out": 1}, "fan_in_fan_out is 1, and takes true or false"),
    ({"target_modules": 3}, "is no adapter of this model"),
    ({"trainable_token_indices": [1]}, "is no adapter of this model"),
    ({"init_lora_weights": "nothing"}, "is no adapter of this model"),
    ({"monteclora_config": {"a": 1}}, "adapter_config.json that peft reads"),
]


@each(("fields", "said"), SAVED, ids=str)
def test_what_a_saved_adapter_says_of_itself(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Kills: a traceback of peft's, a word that switches a scale, an adapter that adds nothing."""
    base, adapter = str(tmp_path / "base"), tmp_path / "adapter"
    tiny().save_pretrained(base)
    with_adapter(load(base), LoraConfig(r=2, target_modules=["q_proj"]), 0).save_pretrained(str(adapter))
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"target_modules": ["q_proj", "gate_of_another"]}))
    load(base, adapter=str(adapter))  # peft passes over names that matched nothing, and so was it trained
    file.write_text(json.dumps(config | fields))
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        load(base, adapter=str(adapter))
    assert "\n" not in str(caught.value)


def test_an_adapter_made_by_hand() -> None:
    """Kills: a PeftModel that learns nothing because its scale is 0."""
    module = get_peft_model(tiny().module, LoraConfig(r=2, lora_alpha=0, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="is scaled by 0"):
        check_trainable(module)
