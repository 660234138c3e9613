"""Batches balanced over processes: the examples of an optimizer step, dealt so that no process waits for another.

Which examples a step sees does not change, and so neither does its gradient; only which process computes which of them
when. What deliberately does not live here: the order of the data, which is the sampler's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, SeedableRandomSampler
from datasets import Dataset
from torch.utils.data import Sampler


def balanced(order: Sequence[int], sizes: Sequence[int], world: int, batch: int, accumulation: int) -> list[int]:
    """The order, permuted inside every window of `world * batch * accumulation` examples: those of one optimizer step.

    A window is sorted by size, largest first. A micro-step takes the next `world * batch` of it, hence examples of
    similar size, and deals them out in rounds of `world`: the largest of a round goes to the process that has had the
    least in this window. So the totals of two processes never differ by more than the sizes of one round do. A batch
    keeps the order in which the sampler had its examples: with one process and no accumulation nothing changes.

    Batch i is the one of process i modulo `world`, as accelerate has it. What is left over for an incomplete micro-step
    is the smallest examples, and is not dealt out.

    Args:
        sizes: of example i of the dataset; ties go by position in `order`.
    """
    step = world * batch * accumulation
    windows = (order[start : start + step] for start in range(0, len(order), step))
    return [example for window in windows for example in _dealt(window, sizes, world, batch)]


def _dealt(window: Sequence[int], sizes: Sequence[int], world: int, batch: int) -> Iterator[int]:
    place = sorted(range(len(window)), key=lambda at: -sizes[window[at]])  # stable
    total = [0] * world
    for start in range(0, len(place), world * batch):
        micro = place[start : start + world * batch]
        hands = [micro]
        if len(micro) == world * batch:
            hands = [[] for _ in range(world)]
            for deal in range(0, len(micro), world):
                poorest = sorted(range(world), key=total.__getitem__)
                for rank, at in zip(poorest, micro[deal : deal + world], strict=True):
                    hands[rank].append(at)
                    total[rank] += sizes[window[at]]
        for hand in hands:
            yield from (window[at] for at in sorted(hand))


@dataclass(frozen=True)
class BalancedSampler(Sampler[int]):
    """A sampler's order, balanced.

    Where the last micro-step is dropped, this happens here, before anything is permuted: else other examples would be.
    Where accelerate fills it up, what it fills in comes last (`collate.counted`).
    """

    sampler: SeedableRandomSampler
    sizes: Sequence[int]
    world: int
    batch: int
    accumulation: int
    drop_last: bool

    def __iter__(self) -> Iterator[int]:
        order = list(self.sampler)[: len(self)]
        return iter(balanced(order, self.sizes, self.world, self.batch, self.accumulation))

    def __len__(self) -> int:
        given = len(self.sampler)
        return given - given % (self.world * self.batch) if self.drop_last else given

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)


def balance(loader: Any, sizes: Sequence[int], accumulation: int) -> None:
    """Put a balanced sampler into a loader that accelerate has prepared, in place of its seeded random one.

    After accelerate, and not before it: accelerate gives a seed to a plain random sampler only, and tells a resumed
    loader of several processes its epoch only through the sampler that it has set itself. A loader with another sampler
    or none (data that have no length), or one whose batches process 0 hands out, stays as it is.
    """
    if not isinstance(loader, DataLoaderShard) or not isinstance(loader.get_sampler(), SeedableRandomSampler):
        return
    sampler, batches = loader.get_sampler(), loader.batch_sampler
    world, batch = 1, batches.batch_size
    if isinstance(batches, BatchSamplerShard):
        world = batches.num_processes
        batch = batch // world if batches.split_batches else batch
    loader.set_sampler(BalancedSampler(sampler, sizes, world, batch, accumulation, batches.drop_last))


def token_counts(dataset: Dataset, columns: Sequence[str]) -> list[int]:
    """Tokens of every example: the lengths of its lists in these columns, a column named twice counting twice."""
    tables = dataset.select_columns(sorted(set(columns))).with_format("arrow").iter(batch_size=1000)
    counts = [sum(pc.list_value_length(table[name]).to_numpy() for name in columns) for table in tables]
    return np.concatenate(counts).tolist() if counts else []


def answer_token_counts(dataset: Dataset, prompt: str, answers: str, *, longest: bool = False) -> list[int]:
    """Tokens of every example that has a list of answers, the prompt being read with each of them; or of the prompt
    with its longest one."""
    counts = []
    for table in dataset.select_columns([prompt, answers]).with_format("arrow").iter(batch_size=1000):
        lists = table[answers].combine_chunks()
        example, length = pc.list_parent_indices(lists).to_numpy(), pc.list_value_length(pc.list_flatten(lists))
        size = length.to_numpy() + pc.list_value_length(table[prompt]).to_numpy()[example]
        total = np.zeros(len(lists), np.int64)
        (np.maximum if longest else np.add).at(total, example, size)
        counts.append(total)
    return np.concatenate(counts).tolist() if counts else []
