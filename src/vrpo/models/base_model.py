"""Which model an adapter was trained on, kept beside it by content: on another one it writes nonsense without an error.

Weights are compared as bfloat16 holds them, a part of each large tensor, so that the same model in another type, in
other shards or from another place is the same. What does not live here: how it was run (conventions.py).
"""

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from vrpo.models.folder import fields_of, source_folder
from vrpo.models.tokenizer import load_tokenizer

FILE = "base_model.json"
_PARTS, _PART = 64, 1024  # elements of a tensor that are read: so many parts of so many
_TYPES = (torch.float64, torch.float32, torch.bfloat16)  # of one weight they give one bfloat16

logger = logging.get_logger(__name__)


def identity_of(module: Any, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """What names a model without an adapter by content; None stands for what cannot be known here.

    `unquantised` is of embedding, norms and biases alone, which are the same in 4 bits.
    """
    named = list(module.named_parameters())
    here = all(len(each) and not each.is_meta for _, each in named if each.dim())  # not split by ZeRO-3, not on a disk
    embedding = module.get_input_embeddings().weight
    small = [(name, each) for name, each in named if each.dim() == 1 or each is embedding]
    return {
        "architecture": type(module).__name__,
        "tokens": None if tokenizer is None else _vocabulary(tokenizer),
        "weights": _digest(named) if here else None,
        "unquantised": _digest(small) if here else None,
    }


def check_base(adapter: str, here: dict[str, Any], name: str, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Whether an adapter was trained on the model of this identity and name. One of other tools says at most the name
    and the vocabulary.

    Raises:
        ValueError: it was trained on other weights, or with another vocabulary.
    """
    folder = source_folder(adapter)
    kept = {} if folder is None or not (folder / FILE).is_file() else fields_of(folder, FILE)
    if not kept:
        _check_name(adapter, name)
        own = None if folder is None or tokenizer is None else load_tokenizer(folder)
        kept = {} if own is None else {"tokens": _vocabulary(own)}
    compared = {
        "architecture": "as another architecture",
        "tokens": "with another vocabulary",
        "weights" if kept.get("weights") and here["weights"] else "unquantised": "on other weights",
    }
    for field, what in compared.items():
        if kept.get(field) and here[field] and kept[field] != here[field]:
            raise ValueError(
                f"{adapter} is no adapter of this model: it was trained {what} than {name} has. "
                "Load it on the model that it was trained on"
            )


def _check_name(adapter: str, here: str) -> None:
    trained = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if trained and here and Path(trained).name != Path(here).name:
        logger.warning(f"{adapter} says that it was trained on {trained}, and is put on {here}")


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    known = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return blake2b(json.dumps(known).encode(), digest_size=8).hexdigest()


def _digest(named: list[tuple[str, Tensor]]) -> str | None:
    if any(each.dtype not in _TYPES for _, each in named):
        return None
    digest = blake2b(digest_size=8)
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        read = torch.cat(list(_parts(tensor.detach().reshape(-1)))).to(torch.bfloat16)
        digest.update(read.cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _parts(flat: Tensor) -> Iterator[Tensor]:
    for start in range(0, max(1, len(flat)), max(_PART, len(flat) // _PARTS)):
        yield flat[start : start + _PART]
