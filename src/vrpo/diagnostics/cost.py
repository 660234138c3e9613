"""What a computation will cost, without doing it: its operations are recorded under torch's FakeTensorMode, whose
tensors have a shape and no memory. Every storage counts while it lives; every operation is charged what a machine says.

What deliberately does not live here: what a training step is (planning/step.py).
"""

import statistics
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_SDPA = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_SDPA_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
KINDS = ("attention", "head", "linear layers", "elementwise")
_BEYOND_CACHES = 2**22  # numbers in float32, 16 MiB: more than a core's own caches hold


@dataclass(frozen=True)
class Shape:
    """All of a tensor that its cost depends on."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> "Shape":
        return Shape(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    @property
    def bytes(self) -> int:
        elements = 1
        for size, stride in zip(self.size, self.stride, strict=True):
            elements *= size if stride else 1
        return elements * self.dtype.itemsize

    def filled(self) -> Tensor:
        """Some tensor of this shape: small values of all kinds, as activations are, or zeros, which are legal indices.

        Values are the fractional parts of multiples of the golden ratio: kernels differ in speed on constants.
        """
        once = [size if stride else 1 for size, stride in zip(self.size, self.stride, strict=True)]
        made = torch.empty_strided(once, self.stride, dtype=self.dtype)
        if not self.dtype.is_floating_point:
            return made.zero_().expand(self.size)
        values = torch.arange(made.numel(), dtype=torch.float32).mul_(0.6180339887).frac_().sub_(0.5).mul_(0.1)
        return made.copy_(values.view(once)).expand(self.size)


@dataclass(frozen=True)
class Operation:
    """A call of an ATen operator, tensors replaced by their shapes."""

    operator: Any
    args: Any
    kwargs: Any
    made: tuple[Shape, ...]
    flops: float

    @property
    def shapes(self) -> list[Shape]:
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Shape)]

    @property
    def traffic(self) -> int:
        """Bytes read and written if nothing is cached."""
        return sum(shape.bytes for shape in (*self.shapes, *self.made))

    @property
    def dtype(self) -> torch.dtype:
        return next((shape.dtype for shape in self.shapes if shape.dtype.is_floating_point), torch.float32)

    def kind(self, vocab: int) -> str:
        """One of KINDS; what has the vocabulary for a dimension is the head's."""
        if self.operator.overloadpacket in (_SDPA, _SDPA_BACKWARD):
            return "attention"
        if any(vocab in shape.size for shape in (*self.shapes, *self.made)):
            return "head"
        return "linear layers" if self.flops else "elementwise"


@runtime_checkable
class Machine(Protocol):
    """Says how long an operation takes."""

    @property
    def name(self) -> str: ...

    @property
    def memory(self) -> float:
        """Bytes that a run may use."""

    def seconds(self, operation: Operation, count: int) -> float:
        """Of so many calls, the first of which meets a new shape."""


@dataclass(frozen=True)
class Roofline:
    """A device by its data sheet: an operation takes its arithmetic at peak or its traffic at full bandwidth, whichever
    is longer (Williams, Waterman, Patterson 2009). A floor: kernels do not reach it.

    `matmul`: dense FLOP/s by dtype; `bandwidth`: bytes/s.
    """

    name: str
    matmul: dict[torch.dtype, float]
    bandwidth: float
    memory: float

    def seconds(self, operation: Operation, count: int) -> float:
        speed = self.matmul[torch.float32 if operation.dtype == torch.float64 else operation.dtype]
        return count * max(operation.flops / speed, operation.traffic / self.bandwidth)


def _gpu(name: str, bf16: float, float32: float, bandwidth: float, memory: float) -> Roofline:
    """TFLOP/s, TFLOP/s, GB/s and GB, as data sheets have them."""
    speeds = {torch.bfloat16: bf16 * 1e12, torch.float16: bf16 * 1e12, torch.float32: float32 * 1e12}
    return Roofline(name, speeds, bandwidth * 1e9, memory * 1e9)


GPUS = {  # dense tensor-core rates without sparsity; float32 without TF32, as torch multiplies by default
    gpu.name: gpu
    for gpu in (
        _gpu("rtx3090", 71.0, 35.6, 936.0, 24.0),
        _gpu("rtx4090", 165.0, 82.6, 1008.0, 24.0),
        _gpu("l40s", 362.0, 91.6, 864.0, 48.0),
        _gpu("a100-40gb", 312.0, 19.5, 1555.0, 40.0),
        _gpu("a100-80gb", 312.0, 19.5, 2039.0, 80.0),
        _gpu("h100", 989.0, 66.9, 3350.0, 80.0),
        _gpu("h200", 989.0, 66.9, 4800.0, 141.0),
    )
}


@dataclass
class Measured:
    """The CPU at hand: each distinct operation is run a few times and remembered. (Not a GPU at hand: what is recorded
    are a CPU's operators, and attention has others there.)

    Before each run a block of memory is written, so that operands come from where a training step would find them,
    beyond the nearest caches. The first run of a product is kept apart: oneDNN compiles a kernel for each new shape.
    """

    name: str
    memory: float
    known: dict[str, tuple[float, float]] = field(default_factory=dict)  # a first run with a new shape; a later one

    def seconds(self, operation: Operation, count: int) -> float:
        key = repr(operation)
        if key not in self.known:
            runs = self._runs(operation)
            first, again = next(runs), next(runs)
            repeats = min(7, max(2, int(0.02 / max(again, 1e-9))))
            later = statistics.median([again, *islice(runs, repeats)])
            self.known[key] = max(first, later) if operation.flops else later, later
        first, later = self.known[key]
        return first + (count - 1) * later

    def _runs(self, operation: Operation) -> Iterator[float]:
        """Seconds of one run after the other; operands that a run changes are made anew."""
        operands: Any = None
        while True:
            if operands is None or operation.operator._schema.is_mutable:
                operands = tree_map_only(Shape, Shape.filled, (operation.args, operation.kwargs))
            torch.ones(_BEYOND_CACHES)
            start = time.perf_counter()
            made = operation.operator(*operands[0], **operands[1])
            took = time.perf_counter() - start
            del made
            yield took


@dataclass(eq=False)
class Recorder(TorchDispatchMode):
    """Records while it is entered: the operations of each part of a computation, and the live bytes of each part.

    Storages that were there before are not known; give them to `hold`.
    """

    operations: dict[str, Counter[str]] = field(default_factory=dict)
    details: dict[str, Operation] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    live: float = 0.0

    def __post_init__(self) -> None:
        super().__init__()
        self._known: set[int] = set()
        self._part = ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Everything inside is counted under this name."""
        self._part = name
        self.operations.setdefault(name, Counter())
        self.peak[name] = max(self.peak.get(name, 0.0), self.live)
        try:
            yield
        finally:
            self._part = ""

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of these tensors as live, each once, until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        if self._part:
            self.peak[self._part] = max(self.peak[self._part], self.live)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def seconds(self, part: str, machine: Machine, vocab: int) -> dict[str, float]:
        """Of a part, by kind of operation."""
        total = dict.fromkeys(KINDS, 0.0)
        for key, count in self.operations[part].items():
            operation = self.details[key]
            total[operation.kind(vocab)] += machine.seconds(operation, count)
        return total

    def flops(self, part: str) -> float:
        return sum(count * self.details[key].flops for key, count in self.operations[part].items())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.hold(made)
        before = {tensor.untyped_storage()._cdata for tensor in given}
        view = not func._schema.is_mutable and all(tensor.untyped_storage()._cdata in before for tensor in made)
        if not view and self._part:
            described: Any = tree_map_only(Tensor, Shape.of, (args, kwargs))
            key = repr((func, described))
            if key not in self.details:
                flops = _flops(func, args, kwargs, result)
                self.details[key] = Operation(func, described[0], described[1], tuple(map(Shape.of, made)), flops)
            self.operations[self._part][key] += 1
        return result


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> float:
    if func.overloadpacket == _SDPA:
        return float(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    if func.overloadpacket == _SDPA_BACKWARD:
        return float(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])))
    if func.overloadpacket in flop_registry:
        return float(flop_registry[func.overloadpacket](*args, **kwargs, out_val=result))
    return 0.0
