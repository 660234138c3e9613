"""What test_distributed.py runs in one process and, through torchrun, in two: `python -m tests.training.worker FOLDER`.

Scenarios have a global batch; each process takes its share. Process 0 writes FOLDER/name.pt.
"""

import gc
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from tests.causal import causal, tokenizer
from tests.training.runs import answers, labelled, log_lines, lora, pairs, ranked, sft_config, tiny, train, vrpo_config
from vrpo.data.collate import PreferenceCollator, pairs_of, tokens_of
from vrpo.draws import FixedCount
from vrpo.estimator import Engine
from vrpo.losses.pairwise import DPO
from vrpo.models.causal import as_causal
from vrpo.plans import Exact
from vrpo.preference import backward_by_draw
from vrpo.reference import FrozenReference
from vrpo.training.preference import VRPOTrainer
from vrpo.training.references import frozen_copy
from vrpo.training.sft import SFTTrainer

Result = dict[str, Any]


def trained(folder: Path, world: int, *, adapter: bool = False, rows: Any = None, **fields: Any) -> Result:
    """A preference run: trajectory and one evaluation, on 5 pairs, which two processes cannot share evenly."""
    batch = {"per_device_train_batch_size": fields.pop("batch", 4) // world}
    held_out = fields.pop("held_out", None) or pairs(5)
    config = vrpo_config(folder, **batch, per_device_eval_batch_size=2, **fields)
    options: dict[str, Any] = {"peft_config": lora()} if adapter else {}
    if config.plan == "exact":
        options["denoiser"] = as_causal(causal(), tokenizer())
    rows = pairs(8) if rows is None else rows
    trainer, trajectory = train(VRPOTrainer, config, rows, eval_dataset=held_out, **options)
    evaluation = trainer.evaluate()
    assert trainer.evaluate() == evaluation
    return {"trajectory": trajectory, "evaluation": evaluation}


def supervised(folder: Path, world: int, **fields: Any) -> Result:
    rows = fields.pop("rows", None) or answers(8)
    config = sft_config(folder, per_device_train_batch_size=4 // world, per_device_eval_batch_size=2, **fields)
    trainer, trajectory = train(SFTTrainer, config, rows, eval_dataset=answers(5))
    return {"trajectory": trajectory, "evaluation": trainer.evaluate()}


def unequal(folder: Path, world: int, **fields: Any) -> Result:
    """Short pairs for one process, long ones for the other, in packs of at most 30 tokens."""
    fields = {"train_sampling_strategy": "sequential", "batch": 2, "max_tokens_per_forward": 30, **fields}
    return trained(folder, world, rows=pairs(8, lengths=(2, 2, 25, 1, 1, 24)), **fields)


def labels(folder: Path, world: int, **fields: Any) -> Result:
    """KTO with a last batch that two processes fill up; evaluated in batches of 4 in all."""
    rows = fields.pop("rows")
    given = {"loss_type": "kto", "per_device_train_batch_size": 4 // world, "per_device_eval_batch_size": 4 // world}
    config = vrpo_config(folder, train_sampling_strategy="sequential", **given, **fields)
    trainer, trajectory = train(VRPOTrainer, config, rows, eval_dataset=labelled(7))
    return {"trajectory": trajectory, "evaluation": trainer.evaluate()}


def sharded(folder: Path, world: int, *, once: bool = False, max_tokens: int = 30, exact: bool = False) -> Result:
    """Gradients of one step of backward_by_draw through FSDP2; as many packs on each process as on the busiest one.

    `once`: gradients are reduced at the last pack only, as `DiffusionTrainer.around` has it, not at every pack.
    `max_tokens`: 30 keeps one graph, 70 several, 1000 all. `exact`: of a causal language model.
    """
    policy = as_causal(causal(seed=1), tokenizer()) if exact else tiny(seed=1)
    reference = frozen_copy(as_causal(causal(), None) if exact else tiny())
    module: nn.Module = policy.module
    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        for layer in module.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
    rows = list(pairs(4, lengths=(2, 2, 25, 1, 1, 24)))
    mine = rows[dist.get_rank() :: world] if world > 1 else rows
    batch = PreferenceCollator(policy.pad_id)(mine)
    tokens, structure = tokens_of(batch, seed=0, epoch=0), pairs_of(batch)
    counts: list[int] = []

    def around(last: bool) -> AbstractContextManager[None]:
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last or not once)
        return nullcontext()

    step = backward_by_draw(
        replace(policy, module=module),
        FrozenReference(reference),
        tokens,
        structure,
        (Exact() if exact else FixedCount(2))(tokens),
        DPO(1.0),
        Engine(max_tokens, agree=agreed(world, counts), around=around),
    )
    gradient = {
        name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for name, p in module.named_parameters()
    }
    return {"gradient": gradient, "loss": mean_over(world, step.loss), "packs": counts}


def agreed(world: int, counts: list[int]) -> Callable[[int], int]:
    """The maximum over processes; `counts` keeps what this process asked for."""

    def agree(packs: int) -> int:
        counts.append(packs)
        count = torch.tensor(max(packs, 1) if world > 1 else packs)  # as `DiffusionTrainer.agree`
        if world > 1:
            dist.all_reduce(count, op=dist.ReduceOp.MAX)
        return int(count)

    return agree


def mean_over(world: int, value: torch.Tensor) -> torch.Tensor:
    if world > 1:
        dist.all_reduce(value)
    return value / world


SCENARIOS: dict[str, Callable[[Path, int], Result]] = {
    "full": lambda folder, world: trained(folder, world),
    "lora": lambda folder, world: trained(folder, world, adapter=True),
    "accumulated": lambda folder, world: trained(folder, world, batch=2, gradient_accumulation_steps=3),
    "checkpointed": lambda folder, world: trained(folder, world, gradient_checkpointing=True, sft_coef=0.1),
    "independent": lambda folder, world: trained(folder, world, share_draws=False),
    "unequal": lambda folder, world: unequal(folder, world),
    "unequal_lora": lambda folder, world: unequal(folder, world, adapter=True, gradient_accumulation_steps=2),
    "one_pass": lambda folder, world: unequal(folder, world, gradient_passes="one", sft_coef=0.1),
    "one_pass_lora": lambda folder, world: trained(folder, world, adapter=True, gradient_passes="one", num_times=3),
    "precomputed": lambda folder, world: trained(
        folder, world, rows=pairs(200), batch=20, precompute_ref_log_probs=True
    ),
    "apart": lambda folder, world: trained(folder, world, loss_type="kto"),
    "labels": lambda folder, world: labels(folder, world, rows=labelled(5)),
    "batch_mean": lambda folder, world: labels(folder, world, rows=labelled(6), loss_kwargs={"baseline": "batch_mean"}),
    "ranked": lambda folder, world: trained(folder, world, rows=ranked(8), held_out=ranked(5)),
    "sft": lambda folder, world: supervised(folder, world),
    "filled": lambda folder, world: trained(folder, world, rows=pairs(11), batch=2),
    "filled_up": lambda folder, world: trained(
        folder, world, rows=pairs(9), gradient_accumulation_steps=2, adapter=True
    ),
    "filled_one_pass": lambda folder, world: trained(folder, world, rows=pairs(9), gradient_passes="one"),
    "filled_ranked": lambda folder, world: trained(folder, world, rows=ranked(9), held_out=ranked(5)),
    "filled_precomputed": lambda folder, world: trained(folder, world, rows=pairs(9), precompute_ref_log_probs=True),
    "filled_sft": lambda folder, world: supervised(folder, world, rows=answers(9)),
    "sft_packed": lambda folder, world: supervised(folder, world, max_tokens_per_forward=20),
    "sharded": sharded,
    "sharded_once": lambda folder, world: sharded(folder, world, once=True),
    "sharded_kept": lambda folder, world: sharded(folder, world, once=True, max_tokens=70),
    "sharded_whole": lambda folder, world: sharded(folder, world, once=True, max_tokens=1000),
    "kept_lora": lambda folder, world: unequal(folder, world, adapter=True, max_tokens_per_forward=60),
    "kept": lambda folder, world: unequal(folder, world, max_tokens_per_forward=70),
    "exact": lambda folder, world: trained(folder, world, plan="exact", max_tokens_per_forward=30),
    "exact_lora": lambda folder, world: trained(folder, world, plan="exact", adapter=True),
    "sharded_exact": lambda folder, world: sharded(folder, world, exact=True),
    "whole": lambda folder, world: unequal(folder, world, max_tokens_per_forward=1000),
}


def run_all(folder: Path, world: int) -> None:
    for name, scenario in SCENARIOS.items():
        result = scenario(folder / name, world)
        if "trajectory" in result and world > 1:
            ends = [None] * world
            dist.all_gather_object(ends, {n: p.sum().item() for n, p in result["trajectory"][-1].items()})
            result["equal_on_all"] = all(end == ends[0] for end in ends)
        if world == 1 or dist.get_rank() == 0:
            if (folder / name).exists():
                result["log"] = log_lines(folder / name)
            torch.save(result, folder / f"{name}.pt")


def main() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # each run collects garbage, see conftest.py
    dist.init_process_group("gloo")
    run_all(Path(sys.argv[1]), dist.get_world_size())
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is written; the interpreter's own end sometimes aborts on a thread of gloo's that still runs


if __name__ == "__main__":
    main()
