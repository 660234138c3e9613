"""Sketches of gradients: linear, replayable, and unbiased for inner products over their seeds."""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from jaxtyping import config
from torch import Tensor

import vrpo.sketch
from tests.loops import each
from tests.stat import assert_law, assert_mean
from vrpo.sketch import Sketch

pytestmark = pytest.mark.usefixtures("no_global_randomness")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Thousands of tiny sketches, whose run-time type checks would take most of the time."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def tensors(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_linear() -> None:
    """S(2x - y) = 2 Sx - Sy. Kills: signs or buckets that depend on the values, such as skipping zeros."""
    x, y = tensors(0, (70, 3), (5,)), tensors(1, (70, 3), (5,))
    x[0][3] = 0
    both = [2 * a - b for a, b in zip(x, y, strict=True)]
    sketch = Sketch(size=16)
    torch.testing.assert_close(sketch(both), 2 * sketch(x) - sketch(y), rtol=0, atol=1e-13)


@each("size", [1, 7, 64, 100])
def test_every_element_is_in_one_bucket(size: int) -> None:
    """S of a unit vector is +-1 in one bucket and 0 elsewhere, and the buckets take turns. Kills: the last, incomplete
    row of buckets dropped; a tensor folded wrongly; elements weighed."""
    count = 130
    images = torch.stack([Sketch(size)([row]) for row in torch.eye(count, dtype=torch.float64)])
    assert torch.equal(images.abs().sum(-1), torch.ones(count, dtype=torch.float64))
    bucket = images.abs().argmax(-1)
    assert torch.equal(bucket, (bucket[0] + torch.arange(count)) % size)


@pytest.mark.usefixtures("unchecked")
def test_inner_products_are_unbiased() -> None:
    """E |Sx|^2 = |x|^2 and E <Sx, Sy> = <x, y> over seeds, for vectors of two tensors that crowd into two buckets.

    Kills: a sketch scaled by the number of buckets; all signs +1; one sign for all tensors, or for all elements of a
    bucket; a seed that does nothing.
    """
    x = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0])]
    y = [torch.tensor([1.0, -1.0, 0.0]), torch.tensor([1.0, 1.0])]
    sketches = [(Sketch(2, seed)(x), Sketch(2, seed)(y)) for seed in range(5000)]
    square = torch.stack([sx.square().sum() for sx, _ in sketches])
    product = torch.stack([sx @ sy for sx, sy in sketches])
    assert_mean(square, 5.0, 0.0, 25.0, resolution=1.1)
    assert_mean(product, 2.0, -20.0, 20.0, resolution=1.5)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@each("places", [((0, 0), (1, 0)), ((0, 0), (0, 1)), ((0, 5), (0, 69)), ((0, 64), (0, 128))])
def test_signs_are_fair_and_pairwise_independent(places: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """Two elements, (tensor, position): the four patterns of their signs are equally likely over seeds.

    Kills: tensors that share their signs; one word of 64 signs used over and over; a bit used twice.
    """
    counts = torch.zeros(4)
    for seed in range(4000):
        shaped = [torch.zeros(2, 130) for _ in places]
        for row, (tensor, position) in enumerate(places):
            shaped[tensor][row, position] = 1
        first, second = (float(Sketch(1, seed)([part[row] for part in shaped])) for row in range(2))
        counts[int(first > 0) * 2 + int(second > 0)] += 1
    assert_law(counts, torch.full((4,), 0.25), resolution=0.1)


def test_slices_and_shapes_do_not_matter() -> None:
    """Slices of 128 elements or one of all; a transposed copy in memory. Kills: signs or buckets that start anew at a
    slice; elements in the order of memory."""
    x = tensors(2, (50, 20), (3,))
    whole = Sketch(size=64)(x)
    with mock.patch.object(vrpo.sketch, "_SLICE", 128):
        sliced = Sketch(size=64)(x)
    torch.testing.assert_close(sliced, whole, rtol=0, atol=1e-13)
    turned = [x[0].t().contiguous().t(), x[1]]
    assert torch.equal(Sketch(size=64)(turned), whole)


def test_no_gradient_is_zero_and_keeps_its_place() -> None:
    """Kills: the tensors after a missing one moved up, so that sketches of two steps do not fit together."""
    x, y = tensors(3, (40,), (40,))
    assert torch.equal(Sketch()([None, y]), Sketch()([torch.zeros_like(x), y]))
    assert not torch.equal(Sketch()([None, y]), Sketch()([y]))
    assert torch.equal(Sketch(8)([]), torch.zeros(8, dtype=torch.float64))


@each("dtype", [torch.bfloat16, torch.float32])
def test_sums_are_float64(dtype: torch.dtype) -> None:
    """Kills: a sum in the gradient's precision, which loses the small elements."""
    x = tensors(4, (1000,))[0].to(dtype)
    torch.testing.assert_close(Sketch(8)([x]), Sketch(8)([x.double()]), rtol=0, atol=1e-13)
    assert not Sketch(8)([x.requires_grad_()]).requires_grad


def test_size_is_positive() -> None:
    with pytest.raises(ValueError, match="size must be at least 1, not 0"):
        Sketch(size=0)
