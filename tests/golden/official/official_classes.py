"""The published classes, from files that a person fetched and read, with stand-ins for what a CPU lacks.

Each stand-in is named in the README.json of what it helped to compute. Not here: any model code, theirs or ours.
"""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

Edits = tuple[tuple[str, str], ...]


def rms_norm_fn(x: Tensor, weight: Tensor, bias: None, eps: float) -> Tensor:
    """flash_attn's Triton RMSNorm, as we understand it: float32, scaled by the weight before it is rounded."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def flash_attn_func(query: Tensor, key: Tensor, value: Tensor, causal: bool, softmax_scale: float) -> Tensor:
    """flash_attn's attention over [batch, length, heads, size], which the published code calls when all may see all."""
    parts = (part.transpose(1, 2) for part in (query, key, value))
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(*parts, is_causal=causal, scale=softmax_scale, enable_gqa=True).transpose(1, 2)


class ILLaDAConfig(transformers.PretrainedConfig):
    """Ours: the official configuration class is in no public source that we know; it must only hold the fields."""

    model_type = "illada"


def provide(name: str, **contents: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)  # transformers asks for it
    module.__dict__.update(contents)
    sys.modules[name] = module


def stand_ins() -> None:
    """Modules that the published files import and a CPU does not have."""
    for name in ("flash_attn.ops", "flash_attn.ops.triton"):
        provide(name)
    provide("flash_attn.ops.triton.layer_norm", rms_norm_fn=rms_norm_fn)
    provide("flash_attn.bert_padding", index_first_axis=None, pad_input=None, unpad_input=None)
    provide("flash_attn", flash_attn_func=flash_attn_func, flash_attn_varlen_func=None)
    provide("sdar.fused_linear_diffusion_cross_entropy", FusedLinearDiffusionCrossEntropyLoss=None)
    provide("illada.configuration_illada", ILLaDAConfig=ILLaDAConfig)


def published(code: Path, package: str, file: str, edits: Edits) -> types.ModuleType:
    """A fetched file as a module, after replacing literals (each must occur once)."""
    name = f"{package}.{file}"
    if name in sys.modules:
        return sys.modules[name]
    if package not in sys.modules:
        provide(package, __path__=[str(code / package)])
    path = code / package / f"{file}.py"
    text = path.read_text(encoding="utf-8")
    for old, new in edits if file.startswith("modeling") else ():
        assert text.count(old) == 1, (path, old)
        text = text.replace(old, new)
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__package__, module.__file__ = package, str(path)
    sys.modules[name] = module
    exec(compile(text, str(path), "exec"), module.__dict__)  # the reader has read it
    return module
