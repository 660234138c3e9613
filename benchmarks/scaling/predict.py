"""Operations, bytes and seconds of an optimizer step at so many GPUs, from shapes, lengths and assumed speeds."""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "gpu_8b"
sys.path.insert(0, str(FOLDER))

from cost import Shape, again_flops, full_flops, lora_flops, mean_work  # noqa: E402

LENGTHS: list[list[int]] = json.loads((FOLDER / "lengths.json").read_text())
SHAPE = Shape()
GPUS = (1, 8, 64, 512)
LORA, FULL = "LoRA, one pass, DDP", "all weights, two passes, FSDP2"


@dataclass(frozen=True)
class Inputs:
    """Everything that is not arithmetic."""

    pairs: int = 350_000
    batch: int = 64
    draws: int = 8
    pack: int = 4096
    peak: float = 989e12  # operations per second
    utilisation: float = 0.5  # of the peak, by what is executed, recomputation included
    utilisation_source: str = "ASSUMED; no GPU was at hand"
    hbm: float = 3.35e12  # bytes per second, as all below
    nvlink: float = 450e9
    network: float = 50e9  # per GPU
    node: int = 8

    @property
    def speed(self) -> float:
        return self.peak * self.utilisation

    def bandwidth(self, gpus: int) -> tuple[float, float]:
        """Bytes per second that a ring moves through each GPU: at best, every link of a node carries its share of the
        rings that leave it; at worst, all of a ring goes through one link."""
        if gpus <= self.node:
            return self.nvlink, self.nvlink
        return min(self.nvlink, self.node * self.network), self.network


SIMILAR = 0.8  # vrpo.estimator.SIMILAR


@dataclass(frozen=True)
class Pair:
    """What one pair costs: executed operations of both modes, packs in two passes and, row by row, in one."""

    lora: float
    full: float
    packs: int
    row_packs: int


def packs(pair: list[int], draws: int, budget: int) -> list[int]:
    """Tokens of each pack, longest items first, as many as fit by the longest and are as long as SIMILAR of it:
    `vrpo.estimator.plan_packs`."""
    prompt, *answers = pair
    items = sorted((prompt + answer for answer in answers for _ in range(draws)), reverse=True)
    found, start = [], 0
    while start < len(items):
        end = start + max(1, budget // items[start])
        pack = [item for item in items[start:end] if item >= SIMILAR * items[start]]
        found.append(sum(pack))
        start += len(pack)
    return found


def cost(pair: list[int], given: Inputs) -> Pair:
    work, sizes = mean_work([pair], given.draws), packs(pair, given.draws, given.pack)
    again = again_flops(SHAPE, work, checkpointed=True, value_share=0.0, lora=True)
    second = again_flops(SHAPE, work, checkpointed=True, value_share=1 - sizes[0] / work.tokens, lora=False)
    rows = [packs([pair[0], answer], given.draws, given.pack) for answer in pair[1:]]
    return Pair(lora_flops(SHAPE, work) + again, full_flops(SHAPE, work) + second, len(sizes), sum(map(len, rows)))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def largest(values: list[float], ranks: int) -> float:
    """Expected maximum of so many independent draws from the values, exactly: sum of x_(i) ((i/N)^G - ((i-1)/N)^G)."""
    ordered, size = sorted(values), len(values)
    return sum(x * ((i / size) ** ranks - ((i - 1) / size) ** ranks) for i, x in enumerate(ordered, 1))


def largest_of_sums(values: list[float], ranks: int, each: int, tries: int = 1000) -> float:
    """Expected maximum over ranks of sums of `each` random values, by seeded simulation."""
    rng = random.Random(0)
    return mean([max(sum(rng.choices(values, k=each)) for _ in range(ranks)) for _ in range(tries)])


@dataclass(frozen=True)
class Scheme:
    """How often a micro-batch of one pair gathers all weights in bf16; what is reduced, and when."""

    name: str
    gathers: tuple[int, int]  # so many for each pack, and so many more
    reduced: float  # bytes of the gradient
    at_every_pack: bool = False
    all_reduce: bool = False

    def bytes(self, packs_per_pair: float, micro_batches: float, gpus: int) -> float:
        """Received by each GPU per optimizer step, by ring algorithms: (G - 1) / G of what is gathered or reduced."""
        per_pack, once = self.gathers
        gathered = (per_pack * packs_per_pair + once) * micro_batches * 2 * SHAPE.weights
        times = packs_per_pair * micro_batches if self.at_every_pack else 1
        return (gathered + times * self.reduced * (2 if self.all_reduce else 1)) * (gpus - 1) / gpus


DDP_LORA = Scheme("LoRA, DDP", (0, 0), 4 * SHAPE.adapter_weights, all_reduce=True)
FSDP = Scheme("all weights, FSDP2", (4, -1), 4 * SHAPE.weights)
SCHEMES = (
    DDP_LORA,
    FSDP,
    replace(FSDP, name="all weights, FSDP2, `sync_each_batch`", at_every_pack=True),
    Scheme("LoRA, ZeRO-3", (4, -1), 2 * SHAPE.adapter_weights, at_every_pack=True),
    Scheme("all weights, ZeRO-3, precomputed reference", (3, -1), 2 * SHAPE.weights, at_every_pack=True),
)


@dataclass(frozen=True)
class Prediction:
    """One optimizer step. Seconds: `compute` if work were split evenly; `slowest` with random pairs on each rank, which
    wait for each other at every micro-batch of one pair (two passes: they agree on the number of packs) or at the end
    of the step (one pass); `network`, at best and at worst."""

    mode: str
    gpus: int
    batch: int
    compute: float
    slowest: float
    network: tuple[float, float]
    pairs: int

    @property
    def hours(self) -> tuple[float, float, float]:
        """For all pairs: balanced and hidden network; waiting and hidden; waiting and nothing hidden, worst network."""
        best, worst = self.network
        seconds = (max(self.compute, best), max(self.slowest, best), self.slowest + worst)
        balanced, waiting, exposed = (self.pairs / self.batch * each / 3600 for each in seconds)
        return balanced, waiting, exposed


def predict(given: Inputs, mode: str, gpus: int) -> Prediction:
    """With the paper's batch while there is a pair for every GPU; then with one pair each."""
    costs = [cost(pair, given) for pair in LENGTHS]
    work = [each.lora if mode == LORA else each.full for each in costs]
    batch = max(given.batch, gpus)
    micro = batch // gpus
    calls = largest([float(each.packs) for each in costs], gpus)  # agreed on across ranks
    moved = (DDP_LORA if mode == LORA else FSDP).bytes(calls, micro, gpus)
    best, worst = (moved / speed for speed in given.bandwidth(gpus))
    return Prediction(
        mode=mode,
        gpus=gpus,
        batch=batch,
        compute=micro * mean(work) / given.speed,
        slowest=(largest_of_sums(work, gpus, micro) if mode == LORA else micro * largest(work, gpus)) / given.speed,
        network=(best, worst),
        pairs=given.pairs,
    )
