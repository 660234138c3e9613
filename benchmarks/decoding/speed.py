"""Tokens per second of each way to decode, on a 124M LLaDA shape with random weights, against the official loop.

    python benchmarks/decoding/speed.py --data FOLDER

The official loop is written here as one would write it down: the padded batch, logits of the whole vocabulary at every
position and step. Prompts are UltraFeedback's. Rounds alternate; quotients are of the same round. Where a way is exact,
token ids are compared. Nothing else should run on the machine.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "step_cost"))

ROWS, LENGTH, BLOCK, LONGEST, ROUNDS, THREADS = 4, 64, 32, 256, 3, 2
WAYS: dict[str, dict[str, Any]] = {
    "ours, the same calls": {},
    "prefix cache": {"cache": "prefix"},
    "dual cache": {"cache": "dual"},
    "dual cache, computed again every 8 steps": {"cache": "dual", "refresh": 8},
}


def official(module: Any, prompts: list[list[int]], mask_id: int, pad_id: int) -> list[list[int]]:
    """Low-confidence remasking at temperature 0, one token a step."""
    import torch
    from torch.nn.functional import softmax

    start = max(map(len, prompts))
    x = torch.full((len(prompts), start + LENGTH), mask_id)
    attention = torch.ones_like(x, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        x[row, : start - len(prompt)] = pad_id
        x[row, start - len(prompt) : start] = torch.tensor(prompt)
        attention[row, : start - len(prompt)] = False
    for block in range(LENGTH // BLOCK):
        end = start + (block + 1) * BLOCK
        for _ in range(BLOCK):
            mask = x == mask_id
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


def measured(data: Path, precision: str) -> list[dict[str, Any]]:
    import torch
    from common import MASK_ID, PAD_ID, examples, model

    import vrpo
    from vrpo.models.load import adapt

    module = model("125M", torch.float32 if precision == "float32" else torch.bfloat16).eval()
    denoiser = adapt(module, None)
    prompts = [row["prompt_ids"][-LONGEST:] for row in examples(data, 64)]
    found: list[dict[str, Any]] = []
    for number in range(ROUNDS):
        batch = prompts[ROWS * number : ROWS * (number + 1)]
        with torch.no_grad():
            truth, seconds = timed(official, module, batch, MASK_ID, PAD_ID)
        found.append({"precision": precision, "way": "official loop", "round": number, "seconds": seconds})
        for name, options in WAYS.items():
            out, seconds = timed(vrpo.generate, denoiser, batch, max_new_tokens=LENGTH, block_size=BLOCK, **options)
            pairs = [pair for row, ids in zip(out, truth, strict=True) for pair in zip(row.ids, ids, strict=True)]
            same = sum(one == other for one, other in pairs)
            row = {"precision": precision, "way": name, "round": number, "seconds": seconds}
            found.append({**row, "same": same / (ROWS * LENGTH)})
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def timed(function: Any, *args: Any, **options: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    made = function(*args, **options)
    return made, time.perf_counter() - start


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "| precision | way | tokens/s | times the official loop [lowest, highest] | same tokens |",
        "|---|---|---|---|---|",
    ]
    base = {(row["precision"], row["round"]): row["seconds"] for row in found if row["way"] == "official loop"}
    for precision, way in dict.fromkeys((row["precision"], row["way"]) for row in found):
        rows = [row for row in found if (row["precision"], row["way"]) == (precision, way)]
        speed = statistics.median(ROWS * LENGTH / row["seconds"] for row in rows)
        times = [base[precision, row["round"]] / row["seconds"] for row in rows]
        same = "" if way == "official loop" else f"{100 * statistics.mean(row['same'] for row in rows):.1f} %"
        spread = f"{statistics.median(times):.2f} [{min(times):.2f}, {max(times):.2f}]"
        lines.append(f"| {precision} | {way} | {speed:.1f} | {spread} | {same} |")
    return "\n".join(lines)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("VRPO_DATA"), required="VRPO_DATA" not in os.environ
    )
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    found = [row for precision in ("float32", "bf16") for row in measured(given.data, precision)]
    (HERE / "speed.json").write_text(json.dumps(found, indent=1) + "\n")
    head = (HERE / "README.md").read_text().split("<!-- speed")[0]
    (HERE / "README.md").write_text(head + "<!-- speed: generated by speed.py -->\n\n" + table(found) + "\n")


if __name__ == "__main__":
    main()
