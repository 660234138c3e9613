"""Fingerprints of weights and files: are these what something stored was computed with? All bytes are hashed."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig
from xxhash import xxh3_128

from vrpo.models.hf import is_quantized

_CHUNK = 1 << 24  # bytes of a file, or of a tensor, at a time


def frozen_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights without those of an adapter. Quantised ones come with what they are read by (scales, code books),
    which are no parameters, and without which weights that differ by a factor would be the same."""
    prefix = str(module.base_model.prefix) if isinstance(module, PeftModel) else None
    for name, tensor in all_weights(module):
        if prefix is None or (prefix not in name and ".modules_to_save." not in name):
            yield name, tensor


def all_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The same with those of an adapter."""
    parameters = dict(module.named_parameters())
    quantized = module.state_dict() if is_quantized(module) else {}
    yield from (quantized | parameters).items()


def config_fingerprint(config: PreTrainedConfig) -> str:
    """A hash of the numbers without which equal weights compute something else: of heads, experts, RoPE and norms."""
    numbers = {
        name: value
        for name, value in config.to_dict().items()
        if name == "rope_parameters" or name.startswith("num_") or name.endswith("_eps")
    }
    return str(xxh3_128(json.dumps(numbers, sort_keys=True, default=str).encode()).hexdigest())


def weights_fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of the names, shapes, types and all elements of weights."""
    digest = xxh3_128()
    for name, tensor in named:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        _update(digest, tensor)
    return str(digest.hexdigest())


def digest_of(tensors: Iterable[Tensor]) -> str:
    """A hash of the contents of tensors."""
    digest = xxh3_128()
    for tensor in tensors:
        _update(digest, tensor)
    return str(digest.hexdigest())


def file_digest(path: Path) -> str:
    """A hash of a file's bytes."""
    digest = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return str(digest.hexdigest())


def _update(digest: xxh3_128, tensor: Tensor) -> None:
    elements = tensor.detach().reshape(-1)
    for part in elements.split(_CHUNK):  # one of an accelerator is copied piece by piece
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy())


_OF_TRAINING = ("trainer_state.json", "training_args.bin", "manifest.json")  # beside a trained model: when, where


def files_fingerprint(path: str | None) -> str | None:
    """A hash of a folder's weights and configuration; of a hub name, the name."""
    if path is None or not Path(path).is_dir():
        return path
    found = xxh3_128()
    for file in sorted(Path(path).iterdir()):
        wanted = file.suffix in (".safetensors", ".bin", ".json") and file.name not in _OF_TRAINING
        if wanted and file.is_file():
            found.update(f"{file.name} {file_digest(file)} ".encode())
    return str(found.hexdigest())
