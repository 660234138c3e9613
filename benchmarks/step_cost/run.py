"""What a preference step costs, against its floor, a straightforward implementation, and TRL's DPOTrainer.

Steps are the trainer's own, on shuffled batches of UltraFeedback; what is compared alternates on the same batches in
one process. Nothing else should run on the machine. The part `check` needs no data: it asks whether a step has become
slower, as a share of the machine's matrix-product speed of the same minute. `trl` needs `pip install trl==1.16.0`.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import vrpo
from benchmarks.harness.machine import ALLOCATOR, in_fresh_process, peak_bytes, product_flops, reset_peak, resident
from benchmarks.harness.machine import seconds as timed
from benchmarks.harness.models import PAD_ID, SHAPES, VOCAB, llada, lora
from benchmarks.harness.study import Options, Part, Row, Run, Study, option
from benchmarks.harness.tables import grouped, spread, table
from benchmarks.harness.tasks import pair_ids
from benchmarks.step_cost.straightforward import PAIRS, Batch, Straightforward, as_trl, base_dtype, dpo_trainer
from vrpo.data.collate import PreferenceCollator, pairs_of, tokens_of
from vrpo.estimator import Engine, plan_packs
from vrpo.kept_graphs import kept_packs

MAX_LENGTH, MAX_TOKENS = 1024, 4096
ALLOWED = 0.75  # of the share that is committed in check.json
CHECK = Path(__file__).parent / "check.json"


@dataclass
class StepCost(Options):
    threads: int = option(2, "Threads of torch.")
    shape: str = option("25M", "Shape of the model.")
    floor_shape: str = option("125M", "Shape of the model whose share of the floor is measured.")
    draws: list[int] = option([1, 4, 8, 16], "Draws n.")
    repeats: int = option(3, "Batches of each case.")
    precisions: list[str] = option(["bf16", "float32"], "Precisions.")


@cache
def rows(data: str | None, tiny: bool, limit: int) -> list[Row]:
    return pair_ids(data, tiny, limit, PAD_ID, MAX_LENGTH)


def batches(run: Run, count: int, pairs: int = PAIRS, seed: int = 0) -> list[Batch]:
    """Shuffled batches, as a trainer would see them."""
    every = rows(run.options.data, run.options.tiny, 64 if run.options.tiny else 100_000)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)).tolist()
    collate = PreferenceCollator(PAD_ID)
    return [collate([every[i] for i in order[pairs * b : pairs * (b + 1)]]) for b in range(count)]


def first(batch: Batch, pairs: int) -> Batch:
    """The first pairs of a batch, padded as in the batch."""
    index = torch.arange(pairs)
    kept = torch.cat([batch["chosen"][:pairs], batch["rejected"][:pairs]])
    part = {name: batch[name][kept] for name in ("ids", "response", "attention", "example_id", "side")}
    return {**part, "chosen": index, "rejected": index + pairs}


def trainer(shape: str, examples: list[Row], *, adapter: bool, bf16: bool, num_draws: int, **fields: Any) -> Any:
    """Ours, as a user has it."""
    args = vrpo.VRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="step_cost_"),
        plan="fixed_count",
        num_times=num_draws,
        bf16=bf16,
        use_cpu=True,
        learning_rate=1e-6,
        per_device_train_batch_size=PAIRS,
        max_tokens_per_forward=MAX_TOKENS,
        report_to="none",
        **fields,
    )
    options = {"peft_config": lora()} if adapter else {}
    base = llada(shape, base_dtype(adapter, bf16))
    made = vrpo.VRPOTrainer(base, args=args, train_dataset=Dataset.from_list(examples), **options)
    made.create_optimizer()
    made.model_wrapped = made.accelerator.prepare_model(made.model)
    return made


def training_step(made: Any, batch: Batch, pairs: int = PAIRS) -> None:
    """One optimizer step of a transformers Trainer, ours or TRL's, on one batch."""
    made.accelerator.gradient_state._set_sync_gradients(True)
    made.training_step(made.model_wrapped, batch, torch.tensor(pairs))
    made.optimizer.step()
    made.optimizer.zero_grad()


def ours(run: Run, case: Row, shape: str, **fields: Any) -> Any:
    options = {"adapter": case["mode"] == "LoRA", "bf16": case["precision"] == "bf16", "num_draws": case["n"]}
    return trainer(shape, rows(run.options.data, run.options.tiny, 16), **options, **fields)


def seconds(function: Any, *args: Any) -> float:
    return timed(function, *args)[0]


def counted(function: Any, *args: Any) -> float:
    """FLOPs of matrix products and attention that a function executes, the CPU's attention among them."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *a, out_shape=None, **kw: sdpa_flop_count(
            q, k, v
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *a, out_shape=None, **kw: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        function(*args)
    return float(counter.get_total_flops())


def matmul_speed(precision: str, tiny: bool = False) -> float:
    size = 256 if tiny else 2048
    return product_flops(size, size, size, torch.bfloat16 if precision == "bf16" else torch.float32)


def kinds(run: Run, draws: Sequence[int]) -> list[Row]:
    return [
        {"precision": p, "mode": mode, "n": n}
        for p in run.options.precisions
        for mode in ("LoRA", "full")
        for n in draws
    ]


def ratio(run: Run, case: Row) -> Row:
    """Seconds per pair, ours and the straightforward implementation. That one does 2 of the 8 pairs, padded as in the
    batch (each pair costs it the same); of its optimizer's seconds the part that 8 pairs share is taken off."""
    shape, repeats = run.options.shape, run.options.repeats
    options = {"adapter": case["mode"] == "LoRA", "bf16": case["precision"] == "bf16", "num_draws": case["n"]}
    made, theirs = ours(run, case, shape), Straightforward.of(shape, pairs_at_a_time=1, **options)
    *shuffled, warm = batches(run, repeats + 1)
    training_step(made, first(warm, 1), 1)
    theirs.step(first(warm, 1))
    for parameter in theirs.optimizer.param_groups[0]["params"]:
        parameter.grad = parameter.detach().clone()
    step = min(seconds(theirs.optimizer.step) for _ in range(3))
    theirs.optimizer.zero_grad()
    found: Row = {"ours": [], "straightforward": []}
    for batch in shuffled:
        found["ours"].append(seconds(training_step, made, batch) / PAIRS)
        found["straightforward"].append(seconds(theirs.step, first(batch, 2)) / 2 - step * (1 / 2 - 1 / PAIRS))
    flops = {"ours": counted(training_step, made, warm) / PAIRS}
    flops["straightforward"] = case["n"] * counted(replace(theirs, num_draws=1).step, first(warm, 1))
    return {**found, "flops": flops}


def trl(run: Run, case: Row) -> Row:
    """Seconds per pair at n = 1, alternating."""
    options = {"adapter": case["mode"] == "LoRA", "bf16": case["precision"] == "bf16"}
    made = ours(run, case, run.options.shape)
    theirs = dpo_trainer(run.options.shape, tempfile.mkdtemp(prefix="step_cost_"), **options)
    *shuffled, warm = batches(run, run.options.repeats + 1, seed=1)
    training_step(made, first(warm, 1), 1)
    training_step(theirs, as_trl(first(warm, 1)), 1)
    found: Row = {"ours": [], "trl": []}
    for batch in shuffled:
        found["ours"].append(seconds(training_step, made, batch) / PAIRS)
        found["trl"].append(seconds(training_step, theirs, as_trl(batch)) / PAIRS)
    flops = {"ours": counted(training_step, made, warm), "trl": counted(training_step, theirs, as_trl(warm))}
    return {**found, "flops": flops}


def passes(run: Run, case: Row) -> Row:
    """Seconds per pair of a step with an adapter, in one pass and in two, alternating."""
    pairs = PAIRS if case["n"] == 1 else 2
    made = {each: ours(run, case, run.options.shape, gradient_passes=each) for each in ("one", "two")}
    *shuffled, warm = batches(run, run.options.repeats + 1, pairs=pairs, seed=4)
    found: Row = {name: [] for name in made}
    for each in made.values():
        training_step(each, first(warm, 1), 1)
    for batch in shuffled:
        for name, each in made.items():
            found[name].append(seconds(training_step, each, batch, pairs) / pairs)
    return found


def floor(run: Run, case: Row) -> Row:
    """FLOPs that the real tokens need, over the time and the matrix-product speed of the same minute."""
    shape, speed = run.options.floor_shape, partial(matmul_speed, case["precision"], run.options.tiny)
    made, found = ours(run, case, shape), {"seconds": [], "product": [], "share": []}
    *shuffled, warm = batches(run, run.options.repeats + 1, pairs=2, seed=2)
    training_step(made, first(warm, 1), 1)
    for batch in shuffled:
        before = speed()
        took = seconds(training_step, made, batch, 2)
        best = max(before, speed())
        share = needed(shape, case["mode"], batch, case["n"]) / took / best
        for name, value in (("seconds", took), ("product", best), ("share", share)):
            found[name].append(value)
    return found


def needed(shape: str, mode: str, batch: Batch, n: int) -> float:
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
    packs = plan_packs(tokens, draws, draws.in_use, Engine(MAX_TOKENS))

    def parts(items: torch.Tensor) -> torch.Tensor:
        size = tokens.size[items[:, 0]].double()
        scored = draws.scored[items[:, 0], items[:, 1]].sum()
        return torch.stack([2 * blocks * size.sum(), 4 * d * layers * size.square().sum(), 2.0 * d * VOCAB * scored])

    every = sum(parts(pack) for pack in packs)
    if mode == "LoRA":
        return float((every * torch.tensor([3.0, 4.0, 3.0])).sum())
    kept = sum(parts(pack) for pack in packs[: kept_packs(packs, tokens, Engine(MAX_TOKENS))])
    return float(5 * every.sum() - kept.sum())


def memory(run: Run, case: Row) -> Row:
    """Peak memory of one step above what is resident before it, in a process of its own."""
    options = run.options
    shared = {"data": options.data, "tiny": options.tiny, "shape": options.shape, "threads": options.threads}
    return {"above": in_fresh_process(one_step, ALLOCATOR, case=case, **shared)}


def one_step(case: Row, data: str | None, tiny: bool, shape: str, threads: int) -> float:
    """MiB."""
    run = Run("step_cost", StepCost(tiny=tiny, data=data, shape=shape, threads=threads), CHECK, {})
    torch.set_num_threads(threads)
    batch = first(batches(run, 1)[0], case["pairs"])
    small = {name: part[:, :8] if part.dim() == 2 else part for name, part in first(batch, 1).items()}
    small["response"], small["attention"] = (small[name] | True for name in ("response", "attention"))
    if case["who"] == "ours":
        step: Any = partial(training_step, ours(run, case, shape), pairs=case["pairs"])
    else:
        options = {"adapter": case["mode"] == "LoRA", "bf16": case["precision"] == "bf16", "num_draws": case["n"]}
        step = Straightforward.of(shape, pairs_at_a_time=case["pairs"], **options).step
    step(small)  # optimizer states
    reset_peak()
    before = resident()
    step(batch)
    return (peak_bytes() - before) / 2**20


def memory_cases(run: Run) -> list[Row]:
    every = [("ours", PAIRS, n) for n in run.options.draws]
    every += [("straightforward", 1, n) for n in run.options.draws if n <= 8]  # more do not fit
    of = {"precision": run.options.precisions[0]}
    return [{**of, "mode": mode, "who": w, "pairs": p, "n": n} for mode in ("LoRA", "full") for w, p, n in every]


def packing(run: Run, case: Row) -> Row:
    """Share of computed tokens that are no padding, two passes; in one pass every call holds draws of a single row."""
    real = computed = alone = 0
    for batch in batches(run, 8 if run.options.tiny else 120):
        tokens = tokens_of(batch, seed=0, epoch=0)
        draws = vrpo.FixedCount(case["n"])(tokens, pairs_of(batch))
        for pack in plan_packs(tokens, draws, draws.in_use, Engine(case["max_tokens"])):
            size = tokens.size[pack[:, 0]]
            real, computed = real + int(size.sum()), computed + len(pack) * int(size.max())
        alone += case["n"] * tokens.ids.numel()
    return {"real": real / computed, "rectangle": real / alone}


def slower(run: Run, case: Row) -> Row:
    """The largest of some steps' shares of the product speed: what the machine can do when nothing else runs."""
    bits = torch.Generator().manual_seed(0)
    lengths = torch.randint(40, 300, (2, 2), generator=bits).tolist()
    ids = torch.randint(0, PAD_ID, (400,), generator=bits).tolist()
    examples = [
        {
            "prompt_ids": ids[:60],
            "chosen_ids": ids[60:][:chosen],
            "rejected_ids": ids[60:][:rejected],
            "example_id": number,
        }
        for number, (chosen, rejected) in enumerate(lengths)
    ]
    made = trainer(run.options.shape, examples, adapter=case["mode"] == "LoRA", bf16=False, num_draws=4)
    batch = PreferenceCollator(PAD_ID)(examples)
    flops = counted(training_step, made, batch, 2)
    best = min(seconds(training_step, made, batch, 2) for _ in range(run.options.repeats))
    share = flops / best / max(matmul_speed("float32", run.options.tiny) for _ in range(3))
    return {"share": share, "committed": json.loads(CHECK.read_text())["float32"][case["mode"]]}


def quotients(found: list[Row], one: str, other: str) -> list[list[Any]]:
    """A line for each row: both times, their quotient, that of FLOPs."""
    lines = []
    for row in found:
        each = [a / b for a, b in zip(row[one], row[other], strict=True)]
        flops = f"{row['flops'][one] / row['flops'][other]:.2f}" if "flops" in row else ""
        lines.append(
            [row["precision"], row["mode"], row["n"], spread(row[one]), spread(row[other]), spread(each), flops]
        )
    return lines


def report(run: Run) -> str:
    head, parts = ["precision", "mode", "n"], []
    for part, one, other, title in (
        ("ratio", "straightforward", "ours", "Seconds per pair, batches of 8 shuffled pairs"),
        ("trl", "ours", "trl", "Seconds per pair at n = 1 against TRL's DPOTrainer on a Llama of the same shape"),
        ("passes", "one", "two", "Seconds per pair with an adapter: `gradient_passes` one against two"),
    ):
        parts.append(
            table([*head, one, other, f"{one} / {other}", "of FLOPs"], quotients(run.rows(part), one, other), title)
        )
    floors = [
        [
            row["precision"],
            row["mode"],
            row["n"],
            spread([each / 1e9 for each in row["product"]], ".0f"),
            spread(row["share"]),
        ]
        for row in run.rows("floor")
    ]
    parts.append(
        table([*head, "product, GFLOP/s", "share of the floor"], floors, "Needed FLOPs over time x product speed")
    )
    found = grouped(run.rows("memory"), "mode", "who", "pairs").items()
    lines = [[*key, ", ".join(f"{row['n']}: {row['above']:,.0f}" for row in same)] for key, same in found]
    parts.append(table(["mode", "who", "pairs at a time", "n: MiB"], lines, "Peak memory of a step above resident"))
    lines = [
        [row["n"], row["max_tokens"], f"{row['real']:.3f}", f"{row['rectangle']:.3f}"] for row in run.rows("packing")
    ]
    parts.append(
        table(["n", "tokens per call", "packed", "as one rectangle"], lines, "Share of real tokens, two passes")
    )
    lines = [[row["mode"], f"{row['share']:.2f}", f"{row['committed']:.2f}"] for row in run.rows("check")]
    parts.append(table(["mode", "share of product speed", "committed"], lines, "Has a step become slower?"))
    return "\n".join(parts)


def check(run: Run) -> None:
    """Kills: a step that has become slower; more FLOPs than the straightforward step needs."""
    for row in run.rows("check") if not run.options.tiny else []:
        assert row["share"] >= ALLOWED * row["committed"], f"slower than committed: {row}"
    for row in run.rows("ratio"):
        assert row["flops"]["ours"] < row["flops"]["straightforward"], row
    for row in run.rows("packing"):
        assert row["rectangle"] <= row["real"] <= 1, row


def both(run: Run) -> list[Row]:
    return [{"mode": mode} for mode in ("LoRA", "full")]


def adapters(run: Run) -> list[Row]:
    return [row for row in kinds(run, run.options.draws) if row["mode"] == "LoRA" and row["n"] <= 8]


PARTS = {
    "check": Part(both, slower),
    "packing": Part(lambda run: [{"n": n, "max_tokens": most} for n in (1, 8) for most in (2048, 4096)], packing),
    "ratio": Part(lambda run: kinds(run, run.options.draws), ratio),
    "passes": Part(adapters, passes),
    "floor": Part(lambda run: kinds(run, [8]), floor),
    "memory": Part(memory_cases, memory),
    "trl": Part(lambda run: kinds(run, [1]), trl),
}
TINY = {"threads": 1, "shape": "tiny", "floor_shape": "tiny", "draws": [2], "repeats": 1, "precisions": ["float32"]}
STUDY = Study(PARTS, report, TINY, StepCost, check=check)
