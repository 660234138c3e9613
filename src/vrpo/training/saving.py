"""What a trainer writes and goes on from: whole checkpoints in the official layout, which say what the run is.

What deliberately does not live here: what makes a checkpoint whole (checkpoints.py), what a run is (identity.py).
"""

import json
import shutil
from abc import ABC
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import has_length
from transformers.utils import logging

from vrpo.models.hf import HFDenoiser
from vrpo.store import as_umask, locked
from vrpo.training.checkpoints import checkpoint_of, manifest_of, rotate, seal
from vrpo.training.config import DiffusionConfig
from vrpo.training.finite import check_weights
from vrpo.training.given import load_alike
from vrpo.training.identity import check_same, model_record, rows_record, settings_of
from vrpo.training.processes import end_with_launcher

logger = logging.get_logger(__name__)
_HTTP_ERROR: Any = HfHubHTTPError.__base__  # of the library that the hub's client is made with, which changes


def check_hub(config: DiffusionConfig) -> None:
    """
    Raises:
        ValueError: the hub cannot be reached, or does not know who asks.
    """
    try:
        HfApi().whoami(token=config.hub_token)
    except (OSError, _HTTP_ERROR) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"push_to_hub: {reason}. Log in with `hf auth login`, or leave it out") from error


class SavingTrainer(Trainer, ABC):
    """transformers.Trainer whose checkpoints are whole or not at all, and which goes on only as the run that it was."""

    args: DiffusionConfig
    denoiser: HFDenoiser
    about: dict[str, str]  # what the run is besides its settings and rows: made before the model is sharded or trained
    changes: list[str]  # what `resume_with_changes` let change, and at which step
    record: dict[str, Any]  # all of it, once training begins
    gone_on_from: str | None = None
    unproven: Path | None = None  # a checkpoint from which no step was made yet

    def remember(self, model: HFDenoiser, references: str | None = None) -> None:
        """Take down what the run is about, before anything of it is sharded or trained."""
        self.about, self.changes = model_record(model), []
        if references is not None:
            self.about["references"] = references

    def prepare(self) -> None:
        """What is to be done before training, and before weights are loaded from a checkpoint."""

    def save_beside(self, checkpoint: Path) -> None:
        """What a checkpoint has besides transformers' files."""

    def tokenized(self, dataset: Any) -> Any:
        """Rows as examples of token ids; examples as they are."""
        return dataset

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """As transformers', with one line where the hub cannot be reached."""
        try:
            super().init_hf_repo(*args, **kwargs)
        except (OSError, _HTTP_ERROR) as error:
            raise ValueError(f"push_to_hub: {' '.join(str(error).split())}. Log in, or leave it out") from error

    # Training --------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; go on from a checkpoint where one is named: a folder, `True` (the last of output_dir that is whole) or
        "auto" (the same, if there is one).

        Raises:
            ValueError: the checkpoint is not whole, or of another run; another process writes to output_dir.
        """
        with self.alone():
            self.train_dataset = self.tokenized(self.train_dataset)  # where it was exchanged
            self.prepare()
            self.record = self.run_record()
            checkpoint = self._checkpoint(resume_from_checkpoint)
            done = super().train(checkpoint, *args, **kwargs)
            self.remove_older()
            return done

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this holds, no other run writes to output_dir."""
        end_with_launcher()
        with written(self.args.folder) if self.is_world_process_zero() else nullcontext():
            yield

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """transformers' numbers of epochs and steps.

        Raises:
            ValueError: there is no step to make: the model would be saved as it is.
        """
        if has_length(dataloader) and not len(dataloader):
            size = self.args.train_batch_size * self.args.world_size
            dropped = "dataloader_drop_last drops them all. " if self.args.dataloader_drop_last else ""
            raise ValueError(
                f"no step to make: there are fewer training rows than the {size} of a batch. {dropped}Give more rows "
                "or a smaller per_device_train_batch_size"
            )
        found = super().set_initial_training_values(args, dataloader)
        if found[-1] < 1:
            raise ValueError(f"no step to make: num_train_epochs {args.num_train_epochs}, max_steps {args.max_steps}")
        return found

    def _checkpoint(self, given: str | bool | None) -> str | None:
        """Where the run goes on from, the same on all processes, once it is known to be this run."""
        found: list[Any] = [None, None]
        if self.is_world_process_zero():
            try:
                found[0] = checkpoint_of(given, self.args.folder)
            except ValueError as error:
                found[1] = str(error)
        broadcast_object_list(found)
        checkpoint, refused = found
        if refused is not None:
            raise ValueError(refused)
        self.gone_on_from = None if checkpoint is None else str(checkpoint)
        if checkpoint is None:
            return None
        manifest, changes = manifest_of(checkpoint), self.args.resume_with_changes
        changed = check_same(manifest["run"], self.record, str(checkpoint), changes=changes)
        self.changes = [*manifest["changes"], *(f"{checkpoint.name}: {change}" for change in changed)]
        if changed:
            logger.warning(f"{checkpoint} is gone on from with changes: {'; '.join(changed)}")
        if self.is_world_process_zero() and checkpoint.parent == self.args.folder:
            rotate(self.args, checkpoint)
        return self.gone_on_from

    def run_record(self) -> dict[str, Any]:
        """What the run is: settings, rows, model and references, by content, as JSON values."""
        rows = {"training rows": rows_record(self.train_dataset), "evaluation rows": rows_record(self.eval_dataset)}
        return dict(json.loads(json.dumps({**settings_of(self.args), **rows, **self.about})))

    # Checkpoints: official names, converted by the loader; beside them what others wrote, as it was -------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As transformers', sealed; older ones are removed later."""
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if str(folder) == self.gone_on_from:  # there was nothing left to do
            return
        limit = self.args.save_total_limit
        with _saying(folder):
            if self.args.should_save and folder.exists():  # half of one, of a run that was killed
                shutil.rmtree(folder)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.save_beside(folder)
            self.args.save_total_limit = None  # transformers would remove others before this one is whole
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            if not self.args.push_to_hub:
                self._seal(folder)
        self.unproven = folder

    def remove_older(self) -> None:
        """Make room for the last checkpoint, once a step from its weights on was finite: they are good. With
        save_total_limit=1 transformers removes it at the end, in favour of the best one."""
        if self.unproven is not None and self.unproven.is_dir() and self.args.should_save:
            rotate(self.args, self.unproven)
        self.unproven = None

    def _seal(self, folder: Path) -> None:
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(folder, self.record, self.changes)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.args.stop_at_non_finite and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            assert self.model is not None
            check_weights(self.model, f"step {self.state.global_step}: nothing is saved. The model that was trained")
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        beside = self.denoiser.side_files()  # before anything is written: it may be the folder that they come from
        with self._without_tokenizer():
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = self.args.folder if output_dir is None else Path(output_dir)
            beside.write(folder)
            for weights in folder.glob("*.safetensors"):
                as_umask(weights)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._seal(Path(checkpoint_folder))
        if self.is_world_process_zero():
            self.denoiser.side_files().write(self.args.folder)
        with self._without_tokenizer():
            super()._push_from_checkpoint(checkpoint_folder)

    @contextmanager
    def _without_tokenizer(self) -> Iterator[None]:
        """transformers would write its own version of the tokenizer's files."""
        tokenizer, self.processing_class = self.processing_class, None
        try:
            yield
        finally:
            self.processing_class = tokenizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        module: Any = self.model if model is None else model
        if self.is_fsdp_enabled or self.denoiser.adapted:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = load_alike(resume_from_checkpoint, self.denoiser, next(module.parameters()).dtype)
        module.load_state_dict(saved.module.state_dict(), strict=True)
        return None

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """A loss that is not known is not the best.

        Raises:
            ValueError: there is no such metric.
        """
        wanted = self.args.metric_for_best_model
        name = wanted if wanted is None or wanted.startswith("eval_") else f"eval_{wanted}"
        if name is None or name in metrics:
            return super()._determine_best_metric(metrics, trial)
        if name != "eval_loss":
            raise ValueError(f"metric_for_best_model: {name} is not among {', '.join(sorted(metrics))}")
        return False

    def _load_best_model(self) -> None:
        if self.denoiser.adapted or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        assert self.state.best_model_checkpoint is not None
        return self._load_from_checkpoint(self.state.best_model_checkpoint)


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """An output_dir that can be written, and that no other run writes to.

    Raises:
        ValueError: it cannot, or another one does.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
        except OSError as error:
            raise ValueError(f"output_dir: {folder} cannot be written: {error.strerror}. Give another one") from error
        yield


@contextmanager
def _saying(folder: Path) -> Iterator[None]:
    """What the file system refuses, in one line."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        by_torch = isinstance(error, RuntimeError)
        if by_torch and not any(word in str(error) for word in ("PytorchStreamWriter", "inline_container")):
            raise
        raise ValueError(
            f"{folder} cannot be saved: {' '.join(str(error).split())}. Make room, or give another output_dir; earlier "
            "checkpoints are whole, and --resume_from_checkpoint auto goes on from the last one"
        ) from error
