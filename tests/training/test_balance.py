"""Balanced batches: the same examples in every optimizer step, dealt evenly; also through accelerate's own loaders."""

import math
from collections.abc import Callable
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from accelerate.state import PartialState
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from tests.loops import each
from tests.training.runs import answers, distance, moved, numbers, pairs, sft_config, tiny, train, vrpo_config
from vrpo.training.balance import balance, balanced, token_counts
from vrpo.training.preference import VRPOTrainer
from vrpo.training.preference_data import PreferenceData
from vrpo.training.sft import SFTTrainer

small = st.integers(1, 4)


def lognormal(count: int, seed: int = 0) -> list[int]:
    """Lengths like those of preference pairs: median 800 tokens, a factor of 1.8 for one sigma, cut at 2048."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator) * 0.6 + math.log(800)).exp().clamp(8, 2048).int().tolist()


def loads(order: list[int], sizes: list[int], world: int, batch: int, accumulation: int) -> torch.Tensor:
    """Tokens [step, micro-step, process] of whole windows."""
    grid = torch.tensor([sizes[example] for example in order], dtype=torch.float64)
    return grid.reshape(-1, accumulation, world, batch).sum(-1)


@given(st.data(), small, small, small)
def test_balanced_permutes_inside_windows(data: st.DataObject, world: int, batch: int, accumulation: int) -> None:
    """Whatever is left over. Kills: a window that forgets a factor; an example twice or never; a lost last window."""
    sizes = data.draw(st.lists(st.integers(0, 9), max_size=70))
    order = data.draw(st.permutations(range(len(sizes))))
    found, step = balanced(order, sizes, world, batch, accumulation), world * batch * accumulation
    assert len(found) == len(order)
    for start in range(0, len(order), step):
        assert sorted(found[start : start + step]) == sorted(order[start : start + step])
    if world * accumulation == 1:
        assert found == order


@given(st.data(), small, small, small)
def test_micro_steps_are_alike_and_totals_close(data: st.DataObject, world: int, batch: int, accumulation: int) -> None:
    """No example of a later micro-step is larger than one of an earlier one, and the totals of two processes differ by
    no more than one round of the deal does. Kills: a deal always in the same direction, whose differences add up; a
    total that starts anew in every micro-step; an ascending order."""
    count = world * batch * accumulation
    sizes = data.draw(st.lists(st.integers(0, 50), min_size=count, max_size=count))
    found = balanced(data.draw(st.permutations(range(count))), sizes, world, batch, accumulation)
    micro = [sorted(sizes[i] for i in found[at : at + world * batch]) for at in range(0, count, world * batch)]
    assert all(later[-1] <= earlier[0] for earlier, later in pairwise(micro))
    ranked = sorted(sizes, reverse=True)
    spread = max(ranked[at] - ranked[at + world - 1] for at in range(0, count, world))
    totals = loads(found, sizes, world, batch, accumulation).sum(1)
    assert totals.max() - totals.min() <= spread


@each(("batch", "accumulation", "most"), [(1, 8, 1.03), (8, 1, 1.03), (2, 4, 1.03), (1, 1, 2.5)])
@each("world", [2, 8])
def test_imbalance_of_realistic_lengths(world: int, batch: int, accumulation: int, most: float) -> None:
    """The busiest process of a step over the mean, over 100 steps: close to 1, and far closer than in random order,
    unless every process has one example. Kills: balance that is none."""
    shape = (world, batch, accumulation)
    sizes = lognormal(100 * math.prod(shape))
    order = list(range(len(sizes)))
    busiest = []
    for one in (order, balanced(order, sizes, *shape)):
        totals = loads(one, sizes, *shape).sum(1)
        busiest.append(float((totals.max(-1).values / totals.mean(-1)).mean()))
    assert busiest[1] <= most
    if batch * accumulation > 1:
        assert busiest[1] - 1 < 0.2 * (busiest[0] - 1)
    else:
        assert busiest[1] == pytest.approx(busiest[0])


def test_micro_steps_wait_less() -> None:
    """8 processes with one pair each, 8 micro-steps, a barrier after each of them, as FSDP has it."""
    sizes = lognormal(6400)
    order = list(range(6400))
    waits = []
    for one in (order, balanced(order, sizes, 8, 1, 8)):
        steps = loads(one, sizes, 8, 1, 8)
        waits.append(float((steps.max(-1).values.sum(-1) / steps.mean(-1).sum(-1)).mean()))
    assert waits[1] < 1.2 < 1.6 < waits[0]


# Through accelerate ---------------------------------------------------------------------------------------------------


def loaders(count: int, world: int, batch: int, sampler: Callable[..., Any] = RandomSampler, **options: Any) -> Any:
    """What each process gets from accelerate for a dataset of the numbers up to `count`."""
    PartialState(cpu=True)
    found = []
    for rank in range(world):
        data, drop = list(range(count)), options.get("drop_last", False)
        plain = DataLoader(data, batch, sampler=sampler(data), collate_fn=list, drop_last=drop)
        more = {name: value for name, value in options.items() if name != "drop_last"}
        options_of_rank = {"num_processes": world, "process_index": rank, "data_seed": 5, "use_seedable_sampler": True}
        found.append(prepare_data_loader(plain, **{**options_of_rank, **more}))
    return found


def steps_of(each: Any, accumulation: int) -> list[list[list[int]]]:
    """[step][process] of the examples that loaders give in one epoch."""
    given = [list(loader) for loader in each]
    assert len({len(batches) for batches in given}) == 1
    starts = range(0, len(given[0]), accumulation)
    return [[list(chain(*batches[at : at + accumulation])) for batches in given] for at in starts]


def counted(each: Any, accumulation: int, left: int) -> list[list[int]]:
    """[step] of the examples that count: what fills up comes last, from process to process."""
    micro = [list(chain(*parts)) for parts in zip(*map(list, each), strict=True)]
    steps = [list(chain(*micro[at : at + accumulation])) for at in range(0, len(micro), accumulation)]
    before = accumulate(map(len, steps), initial=0)
    return [sorted(step[: max(left - seen, 0)]) for step, seen in zip(steps, before, strict=False)]


@each("count", [48, 45, 41, 3])
@each("options", [{}, {"drop_last": True}, {"split_batches": True}], ids=["", "drop", "split"])
@each(("world", "batch", "accumulation"), [(2, 2, 3), (1, 2, 3), (2, 4, 1)])
def test_steps_keep_their_examples(
    count: int, options: dict[str, Any], world: int, batch: int, accumulation: int
) -> None:
    """In three epochs, the third one resumed after its first step, each by loaders of its own, as a resumed process has
    them. Kills: windows out of step with accelerate's batches; other examples than before in a last window; an example
    that counts behind one that fills up; an epoch that is not forwarded, also to the sampler of a resumed loader of two
    processes."""
    sizes = numbers(3, count, 90)
    seen, left = [], count
    for epoch in range(3):
        plain, dealt = (loaders(count, world, batch, **options) for _ in range(2))
        for loader in dealt:
            balance(loader, sizes, accumulation)
        assert [len(loader) for loader in dealt] == [len(loader) for loader in plain]
        if epoch == 2 and len(plain[0]) > accumulation:
            left -= accumulation * batch * (1 if "split_batches" in options else world)
            plain, dealt = ([skip_first_batches(one, accumulation) for one in each] for each in (plain, dealt))
        for loader in (*plain, *dealt):
            loader.set_epoch(epoch)
        expected, found = (counted(each, accumulation, left) for each in (plain, dealt))
        assert found == expected
        seen.append(found)
    assert count < 40 or seen[0] != seen[1]


def test_processes_get_equal_shares() -> None:
    """What reaches two processes, not what a list says. Kills: a deal to other processes than accelerate's."""
    sizes = lognormal(64)
    share = []
    for wanted in (False, True):
        each = loaders(64, 2, 2)
        for loader in each * wanted:
            balance(loader, sizes, 4)
        totals = [[sum(sizes[i] for i in mine) for mine in step] for step in steps_of(each, 4)]
        share.append(max(2 * max(step) / sum(step) for step in totals))
    assert share[1] < 1.03 < 1.08 < share[0]


def test_other_orders_are_left_alone() -> None:
    """Kills: a sampler that accelerate has not seeded, or has synchronised itself, replaced."""
    for fields in ({"sampler": SequentialSampler}, {"use_seedable_sampler": False}):
        (loader,) = loaders(8, 1, 2, **fields)
        before = loader.get_sampler()
        balance(loader, list(range(8)), 2)
        assert loader.get_sampler() is before


# In the trainers ------------------------------------------------------------------------------------------------------


def test_tokens_are_counted_in_the_rows_that_are_there(tmp_path: Path) -> None:
    """Chunked columns; a filtered and shuffled dataset; more rows than one batch. Kills: lengths of the table behind
    the indices; a prompt counted once where two rows hold it."""
    counted = PreferenceData(vrpo_config(tmp_path), "pairs").token_counts
    rows = pairs(2100).map(lambda row: row, batched=True, batch_size=700, load_from_cache_file=False)
    for some in (rows, rows.filter(lambda row: row["example_id"] % 3 > 0).shuffle(seed=1), rows.select([])):
        expected = [2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in some]
        assert counted(some) == expected
        assert counted(some.with_format("torch")) == expected
    assert token_counts(answers(3), SFTTrainer.token_columns) == [
        len(r["prompt_ids"]) + len(r["response_ids"]) for r in answers(3)
    ]


def recorded(folder: Path, **fields: Any) -> tuple[list[list[int]], Any]:
    """Example ids of each micro-step, and the trajectory."""
    seen: list[list[int]] = []

    class Recording(VRPOTrainer):
        def batch_backward(self, policy: Any, batch: Any, scale: float) -> Any:
            seen.append(batch["example_id"][: len(batch["chosen"])].tolist())
            return super().batch_backward(policy, batch, scale)

    _, trajectory = train(Recording, vrpo_config(folder, **fields), pairs(14))
    assert moved(trajectory) > 1e-3
    return seen, trajectory


@each(("batch", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_balanced_is_not_balanced(tmp_path: Path, batch: int, accumulation: int) -> None:
    """The same trajectory in float64 to 1e-9, with a short last window; micro-steps from long to short, and a no-op in
    one process that does not accumulate. Kills: other examples in a step; a field that does nothing."""
    fields = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    plain, expected = recorded(tmp_path / "a", **fields, balance_batches=False)
    found, trajectory = recorded(tmp_path / "b", **fields)
    assert (found == plain) == (accumulation == 1)
    assert distance(expected, trajectory) < 1e-9
    sizes = PreferenceData(vrpo_config(tmp_path), "pairs").token_counts(pairs(14))
    longest = [max(sizes[i] for i in ids) for ids in found[:accumulation]]
    assert longest == sorted(longest, reverse=True)


def test_a_chosen_order_stays(tmp_path: Path) -> None:
    fields = {"gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential"}
    args = sft_config(tmp_path, per_device_train_batch_size=1, **fields)
    trainer = SFTTrainer(tiny(), args=args, train_dataset=answers(8))
    sampler = trainer.get_train_dataloader().get_sampler()
    assert type(sampler).__module__.startswith(("torch", "transformers"))
