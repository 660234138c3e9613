"""Fingerprints of weights: are these the weights that something stored was computed with?"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

from torch import Tensor, nn

from vrpo.models.hf import is_quantized

_SAMPLED = 256  # elements of each tensor that are read


def frozen_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights without those of an adapter. Quantised ones come with what they are read by (scales, code books),
    which are no parameters, and without which weights that differ by a factor would be the same."""
    parameters = dict(module.named_parameters())
    quantized = module.state_dict() if is_quantized(module) else {}
    for name, tensor in (quantized | parameters).items():
        if "lora_" not in name:
            yield name, tensor


def weights_fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of the names, shapes and types of weights and of a sample of each one's elements: training changes it."""
    digest = blake2b(digest_size=8)
    for name, tensor in named:
        flat = tensor.detach().reshape(-1)
        step = max(1, len(flat) // _SAMPLED)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {digest_of([flat[::step].double()])}".encode())
    return digest.hexdigest()


def digest_of(tensors: Iterable[Tensor]) -> str:
    """A hash of the contents of tensors."""
    digest = blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
