"""Has a step become slower? Its FLOPs over its seconds, as a share of the machine's matrix-product speed of the same
minute, against the share that is committed in check.json: a ratio of ratios, so that another machine can ask too.

    python benchmarks/step_cost/check.py            # half a minute; exit code 1 if a share fell by more than a quarter
    python benchmarks/step_cost/check.py --write    # keeps the shares found

Lengths are drawn, not real ones: no data is needed. Run it on an otherwise quiet machine.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from common import PAD_ID, counted, matmul_speed, seconds, trainer, training_step

from vrpo.data.collate import PreferenceCollator

FILE = Path(__file__).parent / "check.json"
ALLOWED = 0.75
REPEATS = 3


def share(adapter: bool) -> float:
    """The largest of some steps' shares: what the machine can do when nothing else runs."""
    bits = torch.Generator().manual_seed(0)
    lengths = torch.randint(40, 300, (2, 2), generator=bits).tolist()
    ids = torch.randint(0, PAD_ID, (400,), generator=bits).tolist()
    rows = [
        {"prompt_ids": ids[:60], "chosen_ids": ids[:chosen], "rejected_ids": ids[:rejected], "example_id": number}
        for number, (chosen, rejected) in enumerate(lengths)
    ]
    made = trainer("25M", rows, tempfile.mkdtemp(prefix="step_check_"), adapter=adapter, bf16=False, num_draws=4)
    batch = PreferenceCollator(PAD_ID)(rows)
    flops = counted(training_step, made, batch, 2)
    best = min(seconds(training_step, made, batch, 2) for _ in range(REPEATS))
    return flops / best / max(matmul_speed(None) for _ in range(REPEATS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(2)
    found = {"LoRA": share(adapter=True), "full": share(adapter=False)}
    if given.write:
        FILE.write_text(json.dumps({"torch": torch.__version__, "float32": found}, indent=1) + "\n")
    before = json.loads(FILE.read_text())["float32"]
    slower = [mode for mode, value in found.items() if value < ALLOWED * before[mode]]
    for mode, value in found.items():
        print(f"{mode}: {100 * value:.0f} % of the matrix-product speed, committed {100 * before[mode]:.0f} %")
    if slower:
        sys.exit(f"slower than committed: {', '.join(slower)}")


if __name__ == "__main__":
    main()
