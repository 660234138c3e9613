"""Where the time of a step goes, and what part of the floor it reaches."""

import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import (
    MAX_TOKENS,
    SHAPES,
    VOCAB,
    batches,
    examples,
    first,
    matmul_speed,
    seconds,
    trainer,
    training_step,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import vrpo
from vrpo.data.collate import pairs_of, tokens_of
from vrpo.diagnostics.cost import Operation, Shape
from vrpo.estimator import plan_packs
from vrpo.kept_graphs import kept_packs

CASES = [(precision, mode) for precision in ("bf16", "float32") for mode in ("LoRA", "full")]


def floor(data: Path) -> list[dict[str, Any]]:
    """FLOPs that the real tokens need, over the time and the matrix-product speed of the same minute; n = 8."""
    rows, found, shape = examples(data), [], "125M"
    for precision, mode in CASES:
        made = of(shape, rows, precision, mode, n=8)
        shuffled = batches(rows, 4, pairs=2, seed=2)
        training_step(made, first(shuffled[3], 1), 1)
        for batch in shuffled[:2]:
            speed = matmul_speed(dtype(precision))
            took = seconds(training_step, made, batch, 2)
            speed = max(speed, matmul_speed(dtype(precision)))
            needs = needed(shape, mode, batch, n=8)
            row = {"shape": shape, "precision": precision, "mode": mode, "seconds": took, "needed": needs}
            found.append({**row, "matmul": speed, "share": needs / took / speed})
            print(found[-1], flush=True)
    return found


def of(shape: str, rows: Any, precision: str, mode: str, n: int) -> vrpo.VRPOTrainer:
    folder = tempfile.mkdtemp(prefix="step_cost_")
    return trainer(shape, rows[:16], folder, adapter=mode == "LoRA", bf16=precision == "bf16", num_draws=n)


def dtype(precision: str) -> torch.dtype | None:
    return torch.bfloat16 if precision == "bf16" else None


def needed(shape: str, mode: str, batch: Any, n: int) -> float:
    """FLOPs of matrix products and attention on real tokens and scored positions.

    A forward F is 2 per weight of the blocks and token, 4 D L^2 per row of L tokens and layer, and 2 D V per scored
    position. LoRA, one pass: F of the policy, its backward (weights frozen: F for products, twice for attention), F of
    the reference; the adapter's own are left out. Full, two passes: F of the values for packs whose graphs are not
    kept, F, 2 F and F.
    """
    fields = SHAPES[shape]
    d, layers = fields["hidden_size"], fields["num_hidden_layers"]
    blocks = layers * (4 * d * d + 3 * d * fields["intermediate_size"])
    tokens = tokens_of(batch, seed=0, epoch=0)
    draws = vrpo.FixedCount(n)(tokens, pairs_of(batch))
    packs = plan_packs(tokens, draws, draws.in_use, MAX_TOKENS)

    def parts(items: torch.Tensor) -> torch.Tensor:
        size = tokens.size[items[:, 0]].double()
        scored = draws.scored[items[:, 0], items[:, 1]].sum()
        return torch.stack([2 * blocks * size.sum(), 4 * d * layers * size.square().sum(), 2.0 * d * VOCAB * scored])

    every = sum(parts(pack) for pack in packs)
    if mode == "LoRA":
        return float((every * torch.tensor([3.0, 4.0, 3.0])).sum())
    kept = sum(parts(pack) for pack in packs[: kept_packs(packs, tokens, MAX_TOKENS)])
    return float(5 * every.sum() - kept.sum())


def profile(data: Path) -> list[dict[str, Any]]:
    """Seconds of a step by part and kind of operation: each operation timed as it runs (a few microseconds each are the
    timer's own)."""
    rows, found = examples(data), []
    batch = batches(rows, 1, pairs=2, seed=3)[0]
    for shape in SHAPES:
        for precision, mode in CASES:
            made = of(shape, rows, precision, mode, n=2)
            training_step(made, first(batch, 1), 1)
            whole = seconds(training_step, made, batch, 2)
            timed = Timed()
            reference = made.reference
            made.reference = lambda policy, call=reference, timed=timed: timed.around("reference", call(policy))
            start = time.perf_counter()
            with timed:
                made.training_step(made.model_wrapped, batch, torch.tensor(2))
                with timed.part("optimizer"):
                    made.optimizer.step()
                    made.optimizer.zero_grad()
            total = time.perf_counter() - start
            row = {"shape": shape, "precision": precision, "mode": mode, "seconds": whole, "timed": total}
            found.append({**row, "parts": {part: dict(kinds) for part, kinds in timed.seconds.items()}})
            print(found[-1], flush=True)
    return found


class Timed(TorchDispatchMode):
    """Seconds by part and kind of operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.name = "policy"

    @contextmanager
    def part(self, name: str) -> Any:
        before, self.name = self.name, name
        yield
        self.name = before

    def around(self, name: str, call: Any) -> Any:
        def named(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return call(*args, **kwargs)

        return named

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        took = time.perf_counter() - start
        shapes = tree_map_only(torch.Tensor, Shape.of, (args, kwargs or {}))
        made = tuple(Shape.of(leaf) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        products = func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)
        kind = Operation(func, *shapes, made, float(products)).kind(VOCAB)
        self.seconds[self.name][kind] += took
        return result
