"""Answers generated while training, to look at: one JSON object per prompt and step in output_dir/samples.jsonl."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vrpo.decoding.decode import generate
from vrpo.models.hf import HFDenoiser
from vrpo.store import write_whole
from vrpo.training.config import DiffusionConfig


@dataclass
class SampleCallback(TrainerCallback):
    """Generates greedily for the first prompts of the evaluation set, at step 0 and every `sample_steps` steps.

    Not for sharded models (FSDP, ZeRO-3), which cannot be called by one process alone.
    """

    denoiser: HFDenoiser
    prompts: Sequence[Sequence[int]]
    config: DiffusionConfig

    @property
    def path(self) -> Path:
        return self.config.folder / "samples.jsonl"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:  # what came after the checkpoint, or of a run that begins again, comes again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_text().split("\n") if self.path.is_file() and state.global_step else []
            write_whole(self.path, lambda part: part.write_text("".join(_until(state.global_step, lines))))
        if state.global_step == 0:
            self._write(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.config.sample_steps is not None
        if state.global_step % self.config.sample_steps == 0:
            self._write(state)

    def _write(self, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        training = self.denoiser.module.training
        self.denoiser.module.eval()
        with torch.no_grad():
            answers = generate(
                self.denoiser,
                [list(prompt) for prompt in self.prompts],
                max_new_tokens=self.config.sample_max_new_tokens,
            )
        self.denoiser.module.train(training)
        with self.path.open("a") as file:
            for index, answer in enumerate(answers):
                line = {"step": state.global_step, "prompt": self._text(answer.prompt_ids), "answer": answer.text}
                file.write(json.dumps({**line, "index": index, "answer_ids": list(answer.ids)}) + "\n")

    def _text(self, ids: Sequence[int]) -> str:
        return "" if self.denoiser.tokenizer is None else str(self.denoiser.tokenizer.decode(list(ids)))


def _until(step: int, lines: Sequence[str]) -> Iterator[str]:
    """Lines of no later step; one that was cut off by a kill is of a later one."""
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                yield line + "\n"
        except ValueError:
            continue
