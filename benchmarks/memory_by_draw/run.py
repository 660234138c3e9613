"""Peak memory of a training step against the number of draws: by-draw backward against all graphs at once.

Every figure comes from a fresh process: the model is loaded and the optimizer's state made by one small step; then the
resident peak counter is reset, one full step (values, reference, backward, AdamW) runs, and the peak above what was
resident is read (VmHWM of /proc, so Linux). The C library's allocator gives freed tensors back at once.
"""

import copy
import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch

import vrpo
from benchmarks.harness.machine import ALLOCATOR, in_fresh_process, peak_bytes, reset_peak, resident
from benchmarks.harness.study import Options, Part, Row, Run, Study, option
from benchmarks.harness.tables import grouped, table
from vrpo.models.tiny import from_config, train_tokenizer


@dataclass
class Memory(Options):
    draws: list[int] = option([1, 2, 4, 8, 16, 64], "Draws of the by-draw backward.")
    all_graphs: list[int] = option([1, 8], "Draws where all graphs are kept.")
    repeats: int = option(3, "Processes of each case.")
    width: int = option(256, "Width of the model.")
    length: int = option(512, "Tokens of a row.")


def one_step(mode: str, draws: int, width: int, length: int, seed: int) -> float:
    """MiB above what is resident before, of one step on one pair in this process."""
    torch.set_num_threads(1)
    shape = {"hidden_size": width, "num_layers": 6, "num_heads": 4, "intermediate_size": 3 * width}
    denoiser = from_config(train_tokenizer(["a"], 300), **shape)
    denoiser.module.resize_token_embeddings(4096)
    reference = vrpo.FrozenReference(replace(denoiser, module=copy.deepcopy(denoiser.module)))
    optimizer = torch.optim.AdamW(denoiser.module.parameters(), lr=1e-4)
    ids = torch.randint(300, 4000, (2, length), generator=torch.Generator().manual_seed(seed))

    def step(ids: torch.Tensor, draws: int) -> None:
        response = torch.arange(ids.shape[1]).expand(2, -1) >= ids.shape[1] // 4
        tokens = vrpo.Tokens(ids, response, torch.ones_like(response), torch.arange(2))
        pairs = vrpo.Pairs(torch.tensor([0]), torch.tensor([1]), tokens.length)
        given: Any = (denoiser, reference, tokens, pairs, vrpo.FixedCount(draws)(tokens), vrpo.DPO(0.2))
        if mode == "by_draw":
            vrpo.backward_by_draw(*given)
        else:
            vrpo.preference_loss(*given).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step(ids[:, :16], 1)
    reset_peak()
    before = resident()
    step(ids, draws)
    return (peak_bytes() - before) / 2**20


def cases(run: Run) -> list[Row]:
    options = run.options
    kinds = [("by_draw", n) for n in options.draws] + [("all_graphs", n) for n in options.all_graphs]
    return [{"mode": mode, "draws": n, "repeat": each} for each in range(options.repeats) for mode, n in kinds]


def measure(run: Run, case: Row) -> Row:
    options = run.options
    shape = {"width": options.width, "length": options.length, "seed": options.seed}
    given = {"mode": case["mode"], "draws": case["draws"], **shape}
    return {"above": in_fresh_process(one_step, {**ALLOCATOR, "OMP_NUM_THREADS": "1"}, **given)}


def report(run: Run) -> str:
    found = {key: [row["above"] for row in rows] for key, rows in grouped(run.rows("memory"), "mode", "draws").items()}
    lines = []
    for (mode, n), values in found.items():
        first, middle = statistics.median(found[mode, 1]), statistics.median(values)
        lines.append([mode, n, f"{middle:.0f}", f"{min(values):.0f} to {max(values):.0f}", f"{middle / first:.2f}"])
    return table(["backward", "draws n", "peak above resident, MiB (median)", "range", "against n = 1"], lines)


def check(run: Run) -> None:
    """Kills: graphs of all draws kept by the by-draw backward."""
    growth = {}
    for mode, most in (("by_draw", max(run.options.draws)), ("all_graphs", max(run.options.all_graphs))):
        above = [statistics.median(row["above"] for row in run.rows("memory", mode=mode, draws=n)) for n in (1, most)]
        growth[mode] = above[1] / above[0]
    assert growth["by_draw"] < 1.5 < growth["all_graphs"], growth


TINY = {"draws": [1, 8], "all_graphs": [1, 8], "repeats": 1, "width": 64, "length": 256}
STUDY = Study({"memory": Part(cases, measure)}, report, TINY, Memory, check=check)
