"""What `vrpo.load` computes against what the official code computed (official.py), in float32 on a CPU.

    python benchmarks/model_matrix/parity.py --reference FOLDER          # writes parity.json and README.md's table

FOLDER holds one folder per checkpoint: config.json, model.safetensors, reference.safetensors, README.json. Compared are
logits at all real positions, without padding and padded on either side. Of block diffusion: logits of the block-causal
forward, and log-probabilities of what was hidden in the training forward, [noised | clean] in one pass.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from tables import write_table
from torch import Tensor

import vrpo

HERE = Path(__file__).parent


def differences(folder: Path, about: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """What was compared, and the differences."""
    denoiser = vrpo.load(folder, mask_token_id=about["mask_token_id"])
    given, config = load_file(folder / "reference.safetensors"), denoiser.module.config
    if denoiser.block_size is not None:
        yield from block_differences(denoiser, given)
        return
    for side in ("", "left_", "right_"):
        if f"{side}logits" not in given:
            continue
        ids = given[f"{side}input_ids"]
        real = given[f"{side}attention_mask"].bool() if side else torch.ones_like(ids, dtype=torch.bool)
        expected = given[f"{side}logits"]
        if config.shift_logits:  # as the official sampler shifts them; a row's first token speaks for itself
            before = torch.cat([expected[:, :1], expected[:, :-1]], dim=1)
            first = real & (real.cumsum(1) == 1)
            expected = torch.where(first[..., None], expected, before)
        yield f"{side}logits", denoiser.logits(ids, real, real) - expected[real]


def block_differences(denoiser: Any, given: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    ids = given["block_input_ids"]
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    found = denoiser.logits(ids, everywhere, everywhere)
    yield "block_logits", found - given["block_logits"][everywhere]
    if "train_logits" not in given:
        return
    clean, masked = given["train_clean_ids"], given["train_noised_ids"] != given["train_clean_ids"]
    expected = given["train_logits"][masked].log_softmax(-1).gather(1, clean[masked][:, None])[:, 0]
    seen = torch.ones_like(masked)
    yield "train_logp", denoiser(input_ids=clean, attention_mask=seen, masked=masked, scored=masked) - expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="What official.py wrote.")
    parser.add_argument("--output", type=Path, default=HERE, help="Folder of parity.json and README.md.")
    args = parser.parse_args()
    result: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__, "rows": []}
    for folder in sorted(path for path in args.reference.iterdir() if (path / "README.json").exists()):
        about = json.loads((folder / "README.json").read_text())
        with torch.no_grad():
            checks = {name: float(found.abs().max()) for name, found in differences(folder, about)}
        row = {"folder": folder.name, "code": about["source"], "parameters": about["parameters"], "checks": checks}
        result["rows"].append(row | {"difference": max(checks.values())})
        print(json.dumps(result["rows"][-1]), flush=True)
    (args.output / "parity.json").write_text(json.dumps(result, indent=1) + "\n")
    write_table(args.output)


if __name__ == "__main__":
    main()
