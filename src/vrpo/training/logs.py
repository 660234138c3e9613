"""Log lines: every one is JSON, in output_dir/log.jsonl too. A number that is not finite is none: it is left out."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vrpo.training.finite import finite


@dataclass
class JSONLogCallback(TrainerCallback):
    """Every log line as one JSON object in output_dir/log.jsonl. A resumed run continues the file where it resumes; its
    state comes from a checkpoint, where names are sorted, and so they are here."""

    path: Path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(map(_line, state.log_history)))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(_line(state.log_history[-1]))


@dataclass
class RowsCallback(TrainerCallback):
    """What became of the rows of a run, on the terminal when it starts, or when its model is evaluated."""

    table: str

    def _tell(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.table:
            tqdm.write(self.table, file=sys.stderr)  # beside a bar, not behind it
        self.table = ""

    on_train_begin = on_evaluate = _tell

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **kwargs: Any
    ) -> None:
        self._tell(args, state, control)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(finite(entry), sort_keys=True, allow_nan=False) + "\n"
