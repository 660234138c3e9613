"""What a preference step costs, against its floor, a straightforward implementation, and TRL's DPOTrainer.

    python benchmarks/step_cost/run.py --data FOLDER [--stages packing,ratio,trl,...]

Stages are independent; each writes its part of result.json and README's tables are made again. `trl` needs
`pip install trl==1.16.0`. Nothing else should run on the machine. Linux (memory is read from /proc).
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DRAWS = (1, 4, 8, 16)
REPEATS = {1: 3, 4: 2, 8: 3, 16: 1}  # batches, of ratio
MODES = ("LoRA", "full")
THREADS = 2


def ratio(data: Path) -> list[dict[str, Any]]:
    """Seconds per pair, ours and the straightforward implementation alternating on the same batches of 8 pairs.

    The straightforward one does 2 of the 8 pairs, padded as in the batch: each pair costs it the same.
    """
    from common import PAIRS, Straightforward, batches, counted, examples, first, seconds, trainer, training_step

    rows, found = examples(data), []
    for precision, sizes in (("bf16", DRAWS), ("float32", (1, 8))):
        for mode in MODES:
            for n in sizes:
                options = {"adapter": mode == "LoRA", "bf16": precision == "bf16", "num_draws": n}
                ours = trainer("25M", rows[:64], scratch(), **options)
                theirs = Straightforward.of("25M", pairs_at_a_time=1, **options)
                single = dataclasses.replace(theirs, num_draws=1)
                shuffled = batches(rows, 4)
                training_step(ours, first(shuffled[3], 1), 1)  # warm
                theirs.step(first(shuffled[3], 1))
                for batch in shuffled[: REPEATS[n] if precision == "bf16" else 2]:
                    row = {"precision": precision, "mode": mode, "n": n}
                    row["ours"] = seconds(training_step, ours, batch) / PAIRS
                    row["straightforward"] = seconds(theirs.step, first(batch, 2)) / 2
                    found.append(row)
                    say(row)
                if precision == "bf16" and n in (1, 8):  # whatever the precision
                    counts = {"ours": counted(training_step, ours, shuffled[0]) / PAIRS}
                    counts["straightforward"] = n * counted(single.step, first(shuffled[0], 1))
                    found.append({"mode": mode, "n": n, "flops": counts})
                    say(found[-1])
    return found


def optimizer(data: Path) -> list[dict[str, Any]]:
    """Seconds of the straightforward implementation's optimizer step, which `ratio` has it do for 2 pairs, not 8."""
    import statistics

    from common import Straightforward, batches, examples, first, seconds

    found = []
    for mode in MODES:
        made = Straightforward.of("25M", adapter=mode == "LoRA", bf16=False, num_draws=1, pairs_at_a_time=1)
        made.step(first(batches(examples(data, 8), 1)[0], 1))
        for parameter in made.optimizer.param_groups[0]["params"]:
            parameter.grad = parameter.detach().clone()
        found.append({"mode": mode, "seconds": statistics.median(seconds(made.optimizer.step) for _ in range(7))})
        say(found[-1])
    return found


def faults(data: Path) -> list[dict[str, Any]]:
    """How much of a step's processor time the kernel takes, mostly to map fresh memory: bf16, LoRA, two pairs."""
    from common import Straightforward, batches, examples, first, trainer, training_step

    rows, found = examples(data, 64), []
    batch = first(batches(rows, 1)[0], 2)
    for n in (1, 8):
        options = {"adapter": True, "bf16": True, "num_draws": n}
        ours = partial(training_step, trainer("25M", rows[:16], scratch(), **options), batch, 2)
        theirs = partial(Straightforward.of("25M", pairs_at_a_time=1, **options).step, batch)
        for who, step in (("ours", ours), ("straightforward", theirs)):
            step()
            before = resource.getrusage(resource.RUSAGE_SELF)
            step()
            after = resource.getrusage(resource.RUSAGE_SELF)
            system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
            found.append({"who": who, "n": n, "system": system / 2, "user": user / 2})
            found[-1]["faults"] = (after.ru_minflt - before.ru_minflt) / 2
            say(found[-1])
    return found


def passes(data: Path) -> list[dict[str, Any]]:
    """Seconds per pair of the trainer's step with an adapter, in one pass and in two, alternating."""
    from common import batches, examples, first, seconds, trainer, training_step

    rows, found = examples(data), []
    for bf16 in (True, False):
        for n, pairs in ((1, 8), (4, 2), (8, 2)):
            options = {"adapter": True, "bf16": bf16, "num_draws": n}
            made = {
                each: trainer("25M", rows[:16], scratch(), gradient_passes=each, **options) for each in ("one", "two")
            }
            shuffled = batches(rows, 4, pairs=pairs, seed=4)
            for each in made.values():
                training_step(each, first(shuffled[-1], 1), 1)
            for batch in shuffled[:3]:
                row = {name: seconds(training_step, each, batch, pairs) / pairs for name, each in made.items()}
                found.append({"precision": "bf16" if bf16 else "float32", "n": n, **row})
                say(found[-1])
    return found


def memory(data: Path) -> list[dict[str, Any]]:
    """Peak memory of one step above what is resident before it, each in a process of its own; bf16."""
    found = []
    for mode in MODES:
        cases = (
            [("ours", 8, n) for n in DRAWS] + [("straightforward", 1, n) for n in DRAWS] + [("straightforward", 8, 1)]
        )
        for who, pairs, n in cases:
            row = {"mode": mode, "who": who, "pairs": pairs, "n": n}
            if who == "straightforward":
                row["predicted"] = predicted(found, mode, pairs, n)
                if row["predicted"] is not None and row["predicted"] > 0.85 * available():
                    found.append({**row, "skipped": "would not fit"})
                    say(found[-1])
                    continue
            found.append({**row, "above": one_step(data, mode, who, pairs, n)})
            say(found[-1])
    return found


def kernels(data: Path) -> list[dict[str, Any]]:
    """Ours again, LoRA, with one compiled kernel kept by oneDNN instead of 1,024: what of the memory is theirs."""
    found = []
    for n in (4, 8):  # compiling anew at every call makes n = 16 a matter of a quarter of an hour
        row = {"n": n, "above": one_step(data, "LoRA", "ours", 8, n, ONEDNN_PRIMITIVE_CACHE_CAPACITY="1")}
        found.append(row)
        say(row)
    return found


def predicted(found: list[dict[str, Any]], mode: str, pairs: int, n: int) -> float | None:
    """MiB that the straightforward implementation will need, from a single draw of a single pair."""
    same = [
        row
        for row in found
        if (row["mode"], row["who"], row["pairs"]) == (mode, "straightforward", 1) and "above" in row
    ]
    return same[0]["above"] * pairs * n if same else None


def available() -> float:
    lines = Path("/proc/meminfo").read_text().split("\n")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))


def one_step(data: Path, mode: str, who: str, pairs: int, n: int, **more: str) -> float:
    """MiB; freed blocks are given back at once (MALLOC_*), so that the peak is that of live tensors."""
    command = [sys.executable, __file__, "--data", str(data), "--one_step", mode, who, str(pairs), str(n)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", **more}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.strip().split("\n")[-1])


def in_this_process(data: Path, mode: str, who: str, pairs: int, n: int) -> float:
    from common import Straightforward, batches, examples, first, trainer, training_step

    rows = examples(data, 200)
    options = {"adapter": mode == "LoRA", "bf16": True, "num_draws": n}
    batch = first(batches(rows, 1)[0], pairs)
    tiny = {name: part[:, :8] if part.dim() == 2 else part for name, part in first(batch, 1).items()}
    tiny["response"], tiny["attention"] = (tiny[name] | True for name in ("response", "attention"))
    if who == "ours":
        made = trainer("25M", rows[:16], scratch(), **options)
        step: Callable[[Any], None] = partial(training_step, made, pairs=pairs)
    else:
        step = Straightforward.of("25M", pairs_at_a_time=pairs, **options).step
    step(tiny)  # optimizer states
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    step(batch)
    return resident("VmHWM") - before


def resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def packing(data: Path) -> list[dict[str, Any]]:
    """Share of computed tokens that are no padding: shuffled batches of 8 pairs of UltraFeedback."""
    import torch
    from common import batches, examples

    import vrpo
    from vrpo import estimator
    from vrpo.data.collate import pairs_of, tokens_of
    from vrpo.estimator import SIMILAR, plan_packs

    rows, found = examples(data), []
    for n in (1, 8):
        for budget, similar in ((2048, SIMILAR), (4096, SIMILAR), (4096, 0.0), (None, 0.0)):
            estimator.SIMILAR = similar
            real = computed = alone = 0
            for batch in batches(rows, len(rows) // 8):
                tokens = tokens_of(batch, seed=0, epoch=0)
                draws = vrpo.FixedCount(n)(tokens, pairs_of(batch))
                for pack in plan_packs(tokens, draws, draws.in_use, budget):
                    size = tokens.size[pack[:, 0]]
                    real, computed = real + int(size.sum()), computed + len(pack) * int(size.max())
                alone += n * int(torch.ones_like(tokens.ids).sum())
            row = {"n": n, "max_tokens": budget, "similar": similar}
            found.append({**row, "real": real / computed, "rectangle": real / alone})
            say(found[-1])
    estimator.SIMILAR = SIMILAR
    return found


def loader(data: Path) -> list[dict[str, Any]]:
    """Seconds to get a batch from the trainer's own loader, against seconds of its step."""
    from common import examples, seconds, trainer, training_step

    rows = examples(data)
    made = trainer("25M", rows, scratch(), adapter=True, bf16=True, num_draws=1)
    stream = iter(made.get_train_dataloader())
    batch = next(stream)
    waits = [seconds(next, stream) for _ in range(100)]
    row = {"batch": sorted(waits)[50], "slowest": max(waits), "step": seconds(training_step, made, batch)}
    say(row)
    return [row]


def say(row: dict[str, Any]) -> None:
    print(json.dumps(row), file=sys.stderr, flush=True)


def scratch() -> str:
    return tempfile.mkdtemp(prefix="step_cost_")


def main() -> None:
    import torch

    sys.path.insert(0, str(HERE))
    from peers import trl, trl_profile, trl_small
    from profiles import floor, profile
    from report import write

    stages = {"packing": packing, "loader": loader, "trl": trl, "floor": floor, "profile": profile, "memory": memory}
    stages |= {"trl_small": trl_small, "trl_profile": trl_profile, "ratio": ratio, "optimizer": optimizer}
    stages |= {"passes": passes, "faults": faults, "kernels": kernels}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("VRPO_DATA"), required="VRPO_DATA" not in os.environ
    )
    parser.add_argument("--stages", default=",".join(stages))
    parser.add_argument("--one_step", nargs=4)
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    if given.one_step:
        mode, who, pairs, n = given.one_step
        print(in_this_process(given.data, mode, who, int(pairs), int(n)))
        return
    path = HERE / "result.json"
    for name in given.stages.split(","):
        result = json.loads(path.read_text()) if path.exists() else {}
        result["machine"] = {"threads": THREADS, "torch": torch.__version__, "cpu": cpu_name()}
        result[name] = stages[name](given.data)
        path.write_text(json.dumps(result, indent=1) + "\n")
        write(result, HERE / "README.md")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().split("\n")
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return model + (", AMX" if "amx_bf16" in Path("/proc/cpuinfo").read_text() else "")


if __name__ == "__main__":
    main()
