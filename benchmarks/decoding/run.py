"""How fast is each way to decode, and what does it cost in accuracy?

`speed`: tokens per second on a 124M LLaDA shape with random weights, against the official loop, written here as one
would write it down: the padded batch, logits of the whole vocabulary at every position and step. Prompts are
UltraFeedback's; what is compared alternates on the same prompts. `accuracy`: small trained models of 4x4 Sudoku, on a
canvas as long as the answer and on one of 64 tokens that end-of-text fills; groups of puzzles alternate between the
ways in an order of chance.
"""

import random
from dataclasses import dataclass
from functools import cache
from statistics import mean
from typing import Any

import torch
from torch.nn.functional import softmax

import vrpo
from benchmarks.harness.machine import seconds
from benchmarks.harness.models import MASK_ID, PAD_ID, llada, sudoku_base
from benchmarks.harness.picture import panels
from benchmarks.harness.study import Options, Part, Row, Run, Study, option
from benchmarks.harness.tables import grouped, interval, show, spread, table
from benchmarks.harness.tasks import SUDOKU, pair_ids, puzzles
from vrpo.models.load import adapt
from vrpo.rewards.judges import verifier
from vrpo.rewards.verdict import Answer

OFFICIAL = "one token a pass (official)"
WAYS: dict[str, Row] = {
    OFFICIAL: {},
    "by margin": {"remasking": "margin"},
    "by entropy": {"remasking": "entropy"},
    "in random order": {"remasking": "random"},
    "2 tokens a pass": {"tokens": 2},
    "4 tokens a pass": {"tokens": 4},
    **{f"threshold {at}": {"threshold": at} for at in (0.99, 0.98, 0.95, 0.9, 0.8)},
    "prefix cache": {"cache": "prefix"},
    "dual cache": {"cache": "dual"},
    "dual cache, again every 4": {"cache": "dual", "refresh": 4},
}
LONG: dict[str, Row] = {
    "stop at the end token": {"stop_at_end": True},
    **{f"threshold {at}, stop": {"threshold": at, "stop_at_end": True} for at in (0.99, 0.985, 0.98, 0.95, 0.9)},
    "threshold 0.99, stop, dual cache": {"threshold": 0.99, "stop_at_end": True, "cache": "dual"},
}
SPEED: dict[str, Row] = {
    "the same calls": {},
    "prefix cache": {"cache": "prefix"},
    "dual cache": {"cache": "dual"},
    "dual cache, computed again every 8 steps": {"cache": "dual", "refresh": 8},
}
CANVAS, BLOCK = 64, 32


@dataclass
class Decoding(Options):
    shape: str = option("125M", "Shape of the model whose speed is measured.")
    rows: int = option(4, "Prompts at a time, for speed.")
    rounds: int = option(3, "Batches of prompts, for speed.")
    new_tokens: int = option(64, "Tokens of an answer, for speed.")
    block_size: int = option(32, "Block size, for speed.")
    puzzles: int = option(1000, "Puzzles that are answered.")
    group: int = option(100, "Puzzles at a time.")


def official(module: Any, prompts: list[list[int]], length: int, block_size: int) -> list[list[int]]:
    """Low-confidence remasking at temperature 0, one token a step."""
    start = max(map(len, prompts))
    x = torch.full((len(prompts), start + length), MASK_ID)
    attention = torch.ones_like(x, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        x[row, : start - len(prompt)] = PAD_ID
        x[row, start - len(prompt) : start] = torch.tensor(prompt)
        attention[row, : start - len(prompt)] = False
    for block in range(length // block_size):
        end = start + (block + 1) * block_size
        for _ in range(block_size):
            mask = x == MASK_ID
            logits = module.lm_head(module.model(input_ids=x, attention_mask=attention, use_cache=False)[0])
            x0 = logits.argmax(-1)
            confidence = softmax(logits.float(), -1).gather(-1, x0[..., None])[..., 0]
            confidence[:, end:] = -torch.inf
            x0 = torch.where(mask, x0, x)
            confidence = torch.where(mask, confidence, -torch.inf)
            for row in range(len(x)):
                best = confidence[row].topk(1).indices
                x[row, best] = x0[row, best]
    return x[:, start:].tolist()


def speed(run: Run, case: Row) -> Row:
    """One batch of prompts in every way: seconds, and the share of tokens that are the official loop's."""
    options, length = run.options, run.options.new_tokens
    module = llada(options.shape, torch.float32 if case["precision"] == "float32" else torch.bfloat16).eval()
    first = options.rows * case["round"]
    every = pair_ids(options.data, options.tiny, options.rows * options.rounds, PAD_ID, 1024)
    prompts = [row["prompt_ids"][-256:] for row in every[first : first + options.rows]]
    with torch.no_grad():
        took, truth = seconds(official, module, prompts, length, options.block_size)
    found: Row = {"official loop": {"seconds": took, "same": 1.0}}
    for name, fields in SPEED.items():
        given = {"max_new_tokens": length, "block_size": options.block_size, "progress": False, **fields}
        took, out = seconds(vrpo.generate, adapt(module, None), prompts, **given)
        pairs = [pair for row, ids in zip(out, truth, strict=True) for pair in zip(row.ids, ids, strict=True)]
        found[name] = {"seconds": took, "same": mean(float(one == other) for one, other in pairs)}
    return {"ways": found}


@cache
def model_of(run: Run, canvas: int) -> Any:
    denoiser = vrpo.load(sudoku_base(run, canvas), dtype=torch.float32)
    denoiser.module.eval()
    return denoiser


def accuracy(run: Run, case: Row) -> Row:
    """A group of puzzles in every way: marks, passes and seconds."""
    options, canvas = run.options, case["canvas"]
    rows = [row for part in ("test", "validate", "pairs") for row in puzzles(options.data, options.tiny, part)]
    group = rows[: options.puzzles][case["first"] : case["first"] + options.group]
    ways, found = (WAYS if canvas == SUDOKU else WAYS | LONG), {}
    order = random.Random(f"{options.seed} {case['first']}").sample(list(ways), len(ways))
    for way in order:
        fields = dict(ways[way])
        steps = None if "threshold" in fields else -(-canvas // fields.pop("tokens", 1))
        given = {"max_new_tokens": canvas, "block_size": min(canvas, BLOCK), "batch_size": len(group), "steps": steps}
        given |= {"generator": torch.Generator().manual_seed(options.seed), "progress": False, **fields}
        prompts = [row["prompt"] for row in group]
        took, out = seconds(vrpo.generate, model_of(run, canvas), prompts, **given)
        answers = [Answer(row["prompt"], one.text or "", row) for row, one in zip(group, out, strict=True)]
        marks = "".join(str(int(verdict.reward)) for verdict in verifier("sudoku")(answers))
        found[way] = {"marks": marks, "passes": [one.nfe for one in out], "seconds": took}
    return {"ways": {way: found[way] for way in ways}}


def marks(rows: list[Row], way: str) -> list[int]:
    return [int(mark) for row in rows for mark in row["ways"][way]["marks"]]


def passes(rows: list[Row], way: str) -> float:
    return mean(each for row in rows for each in row["ways"][way]["passes"])


def times(rows: list[Row], way: str, base: str) -> str:
    return spread(row["ways"][base]["seconds"] / row["ways"][way]["seconds"] for row in rows)


def report(run: Run) -> str:
    parts = []
    for canvas, rows in grouped(run.rows("accuracy"), "canvas").items():
        lines = []
        for way in rows[0]["ways"]:
            right, base = marks(rows, way), marks(rows, OFFICIAL)
            minus = interval([100.0 * (a - b) for a, b in zip(right, base, strict=True)])
            fewer = passes(rows, OFFICIAL) / passes(rows, way)
            cells = [f"{mean(right):.3f}", show(minus, "+.1f"), f"{passes(rows, way):.1f}", f"{fewer:.1f}"]
            lines.append([way, *cells, times(rows, way, OFFICIAL)])
        head = ["way", "right", "minus official, points [95 %]", "passes", "times fewer", "times as fast [range]"]
        parts.append(
            table(head, lines, f"4x4 Sudoku, {len(marks(rows, OFFICIAL))} puzzles, a canvas of {canvas} tokens")
        )
    lines = []
    for precision, rows in grouped(run.rows("speed"), "precision").items():
        for way in rows[0]["ways"]:
            same = mean(row["ways"][way]["same"] for row in rows)
            lines.append([precision, way, times(rows, way, "official loop"), f"{same:.1%}"])
    parts.append(table(["precision", "way", "times the official loop [range]", "same tokens"], lines, "Speed"))
    return "\n".join(parts)


def draw(run: Run) -> Any:
    found = grouped(run.rows("accuracy"), "canvas")
    titles = [f"4x4 Sudoku, canvas of {canvas}" for canvas in found] or ["nothing measured"]
    figure, axes = panels(titles, x="forward passes per answer", y="right answers", log="x")
    for axis, rows in zip(axes, found.values(), strict=False):
        for number, way in enumerate(rows[0]["ways"]):
            axis.plot([passes(rows, way)], [mean(marks(rows, way))], "osD^v<>P*Xhp"[number % 12], label=way)
        axis.legend(ncols=2)
    return figure


def check(run: Run) -> None:
    """Kills: an exact way whose tokens are not those of the official loop; a way that makes more passes."""
    for row in run.rows("speed", precision="float32"):
        assert row["ways"]["the same calls"]["same"] == 1, row
    for row in run.rows("accuracy"):
        most = row["ways"][OFFICIAL]["passes"]
        assert all(sum(way["passes"]) <= sum(most) for name, way in row["ways"].items() if "every" not in name), row


def groups(run: Run) -> list[Row]:
    firsts = range(0, run.options.puzzles, run.options.group)
    return [{"canvas": canvas, "first": first} for canvas in (SUDOKU, CANVAS) for first in firsts]


def rounds(run: Run) -> list[Row]:
    return [{"precision": p, "round": n} for p in ("float32", "bf16") for n in range(run.options.rounds)]


TINY = {"shape": "tiny", "rows": 2, "rounds": 1, "new_tokens": 8, "block_size": 4, "puzzles": 4, "group": 2}
STUDY = Study({"speed": Part(rounds, speed), "accuracy": Part(groups, accuracy)}, report, TINY, Decoding, draw, check)
