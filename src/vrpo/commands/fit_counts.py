"""`vrpo train --fit_counts`: the law of masked counts, fitted to the model before its training starts."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from tqdm import tqdm

from vrpo.data.collate import tokens_of
from vrpo.diagnostics.counts import CountLaw, fit_counts
from vrpo.training.checkpoints import checkpoint_of
from vrpo.training.preference import VRPOTrainer
from vrpo.training.preference_config import VRPOConfig

_EPOCH = -3  # of the draws' keys: no draws of training or evaluation
_FILE = "count_law.json"


def check_fit(num_pairs: int, config: VRPOConfig) -> None:
    """Refuse what the configuration alone shows to be impossible, before anything is loaded.

    Raises:
        ValueError: the plan has no such law, or it is given already.
    """
    if num_pairs < 1:
        raise ValueError(f"fit_counts must be at least 1, not {num_pairs}")
    if config.count_exponent is not None:
        raise ValueError(f"fit_counts fits what count_exponent = {config.count_exponent} gives: leave one of them out")
    if not config.has_levels:
        raise ValueError(f"fit_counts fits count_exponent, which plan={config.plan} has not")


def fit_exponent(trainer: VRPOTrainer, num_pairs: int) -> None:
    """Set the trainer's count_exponent to the one that suits its model, and leave the law in count_law.json.

    On the first training pairs and the model before its first step. A resumed run takes the law that it finds in
    output_dir, so that it goes on under the same one. All processes take the first one's.

    Raises:
        ValueError: fewer pairs than asked for; a model in shards, of which no process has a gradient; a resumed run
            without its law.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "fit_counts needs whole gradients, which FSDP and DeepSpeed have not: run `vrpo variance` on one device "
            "and give its count_exponent"
        )
    if trainer.denoiser.block_size is not None:
        raise ValueError(
            "fit_counts fits a law of counts to whole answers, and a block diffusion model masks each block by "
            "itself: give count_exponent"
        )
    args = trainer.args
    if checkpoint_of(args.resume_from_checkpoint, args.folder) is not None:
        args.count_exponent = _fitted_before(args.folder / _FILE)
        return
    model: Any = trainer.model
    examples: Any = trainer.train_dataset
    assert args.draw_seed is not None
    if len(examples) < num_pairs:
        raise ValueError(f"fit_counts = {num_pairs}, but there are {len(examples)} training pairs")
    pairs = [
        tokens_of(trainer.data_collator([examples[row]]), seed=args.draw_seed, epoch=_EPOCH).to(args.device)
        for row in range(num_pairs)
    ]
    model.train()
    if args.gradient_checkpointing:  # transformers turns it on when training starts
        model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    bar = tqdm(total=32 * num_pairs, desc="fitting masked counts", unit="pass", disable=args.disable_tqdm)
    with bar, trainer.accelerator.autocast():
        law = fit_counts(
            model,
            pairs,
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            max_tokens=args.max_tokens_per_forward or 4096,
            progress=bar.update,
        )
    exponent = broadcast(torch.tensor(law.exponent, dtype=torch.float64, device=args.device))
    args.count_exponent = round(float(exponent), 2)
    if trainer.is_world_process_zero():
        _write(law, num_pairs, trainer)


def _fitted_before(path: Path) -> float:
    if not path.is_file():
        raise ValueError(
            f"fit_counts: {path} is not there, so this run's law is unknown: give its count_exponent instead"
        )
    return float(json.loads(path.read_text())["exponent"])


def _write(law: CountLaw, num_pairs: int, trainer: VRPOTrainer) -> None:
    found = {"pairs": num_pairs, **asdict(law)}
    trainer.args.folder.mkdir(parents=True, exist_ok=True)
    (trainer.args.folder / _FILE).write_text(json.dumps(found, indent=1) + "\n")
    reduction = law.reduction
    print(
        f"count_exponent {law.exponent:g}, fitted on {num_pairs} pairs: it leaves {reduction.value:.2f} "
        f"[{reduction.low:.2f}, {reduction.high:.2f}] of the second moment of a draw's gradient under uniform counts",
        file=sys.stderr,
    )
