"""Every family of models, tiny, as a folder in its official layout: what the contract battery runs over.

A new family is one line of FAMILIES: a fixture folder of tests/golden, or the fields of a configuration for random
weights. The line also says what is true of the family, for the battery not to believe the code that it tests.
"""

import copy
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.conftest import GOLDEN
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load, model_class

ORDINARY = range(10, 90)  # tokens that are nothing special in any family
_HOME = TemporaryDirectory(prefix="families")
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 96}
GROUPED = {**SHAPE, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
SPECIAL = {"eos_token_id": 94, "pad_token_id": 93, "bos_token_id": 92}


@dataclass(frozen=True)
class Family:
    """One line of the battery.

    Args:
        shift: the logits at a position are the next token's.
        asked: fields of config.json that loading changes, because it was asked to; `options`: of `load`.
        left_out: tensors of the file that saving leaves out: the head, where it is the embedding.
        block: positions that see each other in a block-causal model, which sees no later block; None: all do.
        caches: whether decoding can keep columns.
        tolerance: of float32 log-probabilities between two ways to compute the same.
    """

    name: str
    write: Callable[[Path], None]
    shift: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    block: int | None = None
    caches: bool = True
    tolerance: float = 5e-6

    @property
    def folder(self) -> Path:
        return _folder_of(self.name)

    def loaded(self, dtype: torch.dtype = torch.float32) -> HFDenoiser:
        """The model with frozen weights, the same object every time: not to be changed."""
        return _loaded(self.name, dtype)

    def fresh(self, dtype: torch.dtype = torch.float32) -> HFDenoiser:
        """A model of one's own, all of whose weights are trained."""
        shared = self.loaded(dtype)
        return replace(shared, module=copy.deepcopy(shared.module).requires_grad_(True))


@cache
def _folder_of(name: str) -> Path:
    folder = Path(_HOME.name) / name.replace(" ", "_")
    folder.mkdir()
    family(name).write(folder)
    return folder


@cache
def _loaded(name: str, dtype: torch.dtype) -> HFDenoiser:
    found = load(family(name).folder, dtype=dtype, **family(name).options)
    found.module.requires_grad_(False)
    return found


def family(name: str) -> Family:
    return next(each for each in FAMILIES if each.name == name)


def golden(name: str) -> Callable[[Path], None]:
    """A fixture made with the reference code."""

    def write(folder: Path) -> None:
        for file in ("config.json", "model.safetensors"):
            (folder / file).symlink_to(GOLDEN / name / file)

    return write


def new(architecture: str, **fields: Any) -> Callable[[Path], None]:
    """Random weights for the fields of an official config.json."""

    def write(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"architectures": [architecture], **fields}))
        built: Any = model_class(str(folder))
        _spread(built(built.config_class.from_pretrained(folder))).save_pretrained(folder)

    return write


def causal(config: Any, model: Any, **fields: Any) -> Callable[[Path], None]:
    """What transformers itself writes: a causal model with random weights."""

    def write(folder: Path) -> None:
        _spread(model(config(**{**GROUPED, **SPECIAL, **fields}))).save_pretrained(folder)

    return write


def _spread(module: Any) -> Any:
    """Weights so large that logits differ, the same every time."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if re.search(r"norm\.weight$", name) else 0.15 * noise)
    return module


def given(mask_id: int, shift: bool | None = None, block: int | None = None, **written: Any) -> dict[str, Any]:
    """Of a family whose folder does not say it: what `load` is told, and so writes into config.json."""
    told: dict[str, Any] = {"mask_token_id": mask_id} | ({} if shift is None else {"shift_logits": shift})
    told |= {} if block is None else {"block_size": block}
    return {"options": told, "asked": {**told, **written}, "shift": bool(shift), "block": block}


LLADA = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 48, "vocab_size": 96}
LLADA |= {"weight_tying": True, "mask_token_id": 95, "eos_token_id": 94, "rope_theta": 1e4}
TWO_WAY = {"is_causal": False}
FAMILIES = (
    Family("llada", golden("llada_dense")),
    Family("llada grouped tied", new("LLaDAModelLM", **LLADA)),
    Family("illada", golden("illada")),
    Family("llada_moe", golden("llada_moe"), **given(198)),
    Family("llada_moe bias", golden("llada_moe_bias"), **given(158)),
    Family("dream", golden("dream"), shift=True),
    Family("a2d_llama", golden("a2d_llama"), **given(158, **TWO_WAY)),
    Family("a2d_qwen3", golden("a2d_qwen3"), **given(158, **TWO_WAY)),
    Family("sdar", golden("sdar"), block=4),
    Family("sdar_moe", golden("sdar_moe"), **given(158, block=4)),
    Family("llada2", golden("llada2"), **given(158, block=4)),
    Family("llama", causal(LlamaConfig, LlamaForCausalLM), **given(95, **TWO_WAY)),
    Family("qwen2 next", causal(Qwen2Config, Qwen2ForCausalLM), **given(95, shift=True, **TWO_WAY)),
    Family(
        "qwen3 next tied",
        causal(Qwen3Config, Qwen3ForCausalLM, head_dim=16, tie_word_embeddings=True),
        **given(95, shift=True, **TWO_WAY),
    ),
)
