"""Fingerprints of weights: are these the weights that something stored was computed with?"""

from collections.abc import Iterable
from hashlib import blake2b

from torch import Tensor

_SAMPLED = 256  # elements of each tensor that are read


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
