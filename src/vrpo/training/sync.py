"""`sync_ref_model`: a reference that is moved towards the policy every so many steps (TR-DPO, arXiv 2404.09656)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vrpo.models.hf import HFDenoiser
from vrpo.store import write_whole
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.references import References

FILE = "reference.safetensors"  # in a checkpoint: where the reference was


class MovingReference(TrainerCallback):
    """After every `ref_model_sync_steps` optimizer steps: reference = alpha * policy + (1 - alpha) * reference, of the
    parameters, in place. A checkpoint holds the reference as it was (`FILE`), so that a resumed run goes on with it.

    Args:
        whole: whether the weights are whole on this process.
        moved: called after each move: what was kept of the reference is no longer true.

    Raises:
        ValueError: the reference has no weights of its own, or they are others than the policy's, or they are held in a
            precision in which a small alpha rounds to nothing.
    """

    def __init__(
        self, policy: HFDenoiser, references: References, args: VRPOConfig, whole: bool, moved: Callable[[], None]
    ):
        if not whole:
            raise ValueError("sync_ref_model: FSDP and DeepSpeed shard the weights; it is not offered with them")
        assert len(references) == len(references.models) == 1
        self.alpha, self.every, self.moved = args.ref_model_mixup_alpha, args.ref_model_sync_steps, moved
        ours, theirs = (dict(each.module.named_parameters()) for each in (policy, references.models[0]))
        shapes = [{name: part.shape for name, part in named.items()} for named in (ours, theirs)]
        if shapes[0] != shapes[1]:
            different = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
            raise ValueError(f"sync_ref_model: {different[0]} of policy and reference differ; give one like the other")
        low = [name for name, part in theirs.items() if part.dtype in (torch.bfloat16, torch.float16)]
        if low:
            raise ValueError(
                f"sync_ref_model moves {low[0]} of the reference, which is {theirs[low[0]].dtype}: small moves would "
                "round to nothing; load it in float32"
            )
        self.pairs = {name: (part, theirs[name]) for name, part in ours.items()}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.move()

    @torch.no_grad()
    def move(self) -> None:
        for policy, reference in self.pairs.values():
            reference.lerp_(policy.detach().to(reference.dtype), self.alpha)
        self.moved()

    @property
    def _named(self) -> dict[str, Tensor]:
        return {name: reference.detach() for name, (_, reference) in self.pairs.items()}

    def save(self, checkpoint: Path) -> None:
        """Write the reference beside what the checkpoint will hold."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        named = {name: part.cpu().contiguous() for name, part in self._named.items()}
        write_whole(checkpoint / FILE, lambda part: save_file(named, part))

    def load(self, checkpoint: Path) -> None:
        """Put the reference where it was.

        Raises:
            ValueError: the file is about other weights.
        """
        saved, named = load_file(checkpoint / FILE), self._named
        if {name: part.shape for name, part in saved.items()} != {name: part.shape for name, part in named.items()}:
            raise ValueError(f"{checkpoint / FILE} holds other weights than the reference's: it is of another run")
        for name, part in named.items():
            part.copy_(saved[name])
        self.moved()


def check_moved(checkpoint: Path, *, moving: bool) -> None:
    """
    Raises:
        ValueError: the run is to go on with a reference that moves, and the checkpoint has none, or the other way.
    """
    there = (checkpoint / FILE).is_file()
    if moving and not there:
        raise ValueError(
            f"{checkpoint / FILE} is missing: where the reference was is not known. The checkpoint was made without "
            "sync_ref_model, or the file was removed"
        )
    if there and not moving:
        raise ValueError(f"{checkpoint / FILE}: the reference was moved by sync_ref_model, which is off now: set it")
