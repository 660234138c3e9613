"""The recorder against counts that are known, and machines against their own definition."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from vrpo.diagnostics.cost import GPUS, Measured, Operation, Recorder, Roofline, Shape

SLOW = Roofline("slow", {torch.float32: 1e6, torch.bfloat16: 4e6}, 1e3, 1e9)


def test_live_bytes_are_those_of_living_storages() -> None:
    """Kills: freed storages counted; a view counted twice; a peak of the wrong part; tensors given but not held."""
    with FakeTensorMode():
        given = torch.empty(1000)
        recorder = Recorder()
        with recorder:
            recorder.hold([given, given.view(10, 100)])
            assert recorder.live == 4000
            with recorder.part("up"):
                twice = given * 2
                view = twice.view(10, 100)
                more = view + 1
                del more
            with recorder.part("down"):
                del twice
                assert recorder.live == 8000  # the view keeps it
                del view
                half = given.to(torch.bfloat16)
            assert recorder.live == 4000 + 2000
    assert recorder.peak == {"up": 12000.0, "down": 8000.0}
    assert half.shape == (1000,)


def test_operations_are_counted_by_part_and_kind() -> None:
    """A linear layer, a head of 64 tokens and attention, forward and backward. Kills: attention that the counter of
    torch does not know counted as none; views charged; the backward in another part."""
    recorder = Recorder()
    with FakeTensorMode(), recorder:
        weight, head = torch.empty(8, 16, requires_grad=True), torch.empty(64, 16)
        x = torch.empty(2, 3, 10, 8)
        with recorder.part("forward"):
            hidden = scaled_dot_product_attention(x, x, x) @ weight
            logits = hidden @ head.T
        with recorder.part("backward"):
            logits.sum().backward()
        with recorder.part("attention backward"):
            y = torch.empty(2, 3, 10, 8, requires_grad=True)
            scaled_dot_product_attention(y, y, y).sum().backward()
    rows = 2 * 3 * 10
    attention = 4 * rows * 10 * 8
    assert recorder.flops("forward") == attention + 2 * rows * 8 * 16 + 2 * rows * 16 * 64
    assert recorder.flops("backward") == 2 * rows * 16 * 64 + 2 * rows * 8 * 16
    assert recorder.flops("attention backward") == attention + 5 * attention / 2
    seconds = recorder.seconds("forward", SLOW, vocab=64)
    assert all(seconds[kind] > 0 for kind in ("attention", "head", "linear layers"))
    assert recorder.seconds("backward", SLOW, vocab=64)["attention"] == 0
    assert not {"aten.t.default", "aten.view.default"} & {str(each.operator) for each in recorder.details.values()}


def product(size: int, dtype: torch.dtype) -> Operation:
    shape = Shape((size, size), (size, 1), dtype)
    return Operation(torch.ops.aten.mm.default, (shape, shape), {}, (shape,), 2.0 * size**3)


def test_a_roofline_is_the_longer_of_arithmetic_and_traffic() -> None:
    """Kills: their sum; the speed of another dtype; traffic without what is written, or of broadcast elements."""
    compute, memory = 2 * 4**3 / 1e6, 3 * 16 * 4 / 1e3
    assert SLOW.seconds(product(4, torch.float32), 1) == pytest.approx(max(compute, memory)) == memory
    big = Roofline("wide", SLOW.matmul, 1e12, 1e9)
    assert big.seconds(product(4, torch.float32), 1) == pytest.approx(compute)
    assert big.seconds(product(4, torch.bfloat16), 1) == pytest.approx(compute / 4)
    assert Shape((10, 5), (0, 1), torch.float32).bytes == 20
    assert all(gpu.matmul[torch.bfloat16] > gpu.matmul[torch.float32] for gpu in GPUS.values())


def test_each_operation_is_measured_once() -> None:
    """Kills: a machine that runs every call, or that takes one product for another."""
    machine = Measured("here", 1e9)
    for size in (2, 400):
        assert machine.seconds(product(size, torch.float32), 1) > 0
    assert len(machine.known) == 2
    small, large = (later for _, later in machine.known.values())
    assert large > small
    once = machine.seconds(product(400, torch.float32), 1)
    assert machine.seconds(product(400, torch.float32), 1) == once


def test_the_first_call_of_a_shape_is_charged_what_it_took() -> None:
    """Kills: all calls at the first one's price, or none."""
    machine = Measured("here", 1e9)
    machine.known[repr(product(2, torch.float32))] = 5.0, 1.0
    assert machine.seconds(product(2, torch.float32), 4) == 5 + 3
    assert SLOW.seconds(product(2, torch.float32), 4) == 4 * SLOW.seconds(product(2, torch.float32), 1)


def test_operands_are_noise_or_legal_indices() -> None:
    """Kills: zeros in place of activations, on which kernels are slower or faster; indices out of range; expanded
    operands that cannot be written."""
    assert Shape((3, 4), (0, 1), torch.float32).filled().std() > 0
    assert Shape((3, 4), (0, 1), torch.float32).filled().stride() == (0, 1)
    assert not Shape((3,), (1,), torch.int64).filled().any()
