"""What the trainers share: a transformers.Trainer whose step is ours and whose checkpoints have the official layout.

Everything else (loop, optimizer, schedule, accelerate, FSDP, DeepSpeed, loggers, hub) is transformers'.
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from datasets import Dataset
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase, TrainerCallback

from vrpo.data.account import DataReport, RowsWarning, summary
from vrpo.data.collate import counted, tokens_of, with_counted
from vrpo.models.attention import check_attention_trains
from vrpo.models.compiled import compile_blocks
from vrpo.models.hf import HFDenoiser
from vrpo.models.routing import routers_of
from vrpo.training.balance import balance, token_counts
from vrpo.training.card import model_card
from vrpo.training.config import DiffusionConfig
from vrpo.training.finite import Watch, check_weights, finite, stopped
from vrpo.training.given import check_reached, check_trainable
from vrpo.training.logs import JSONLogCallback, RowsCallback
from vrpo.training.metrics import Columns, GradientNoise, Window, as_some, mean_and_error, sums_of
from vrpo.training.readable import examples_of
from vrpo.training.recipe import Recipe
from vrpo.training.samples import SampleCallback
from vrpo.training.saving import SavingTrainer
from vrpo.training.sharding import set_up_fsdp
from vrpo.types import Denoiser, Tokens

EVAL_EPOCH = -1  # evaluation draws: one fixed key set at every evaluation
Batch = Mapping[str, Tensor]


class DiffusionTrainer(SavingTrainer):
    """transformers.Trainer for language models. Subclasses say what a step and an evaluation of a batch are."""

    args: DiffusionConfig
    method: str  # for the model card
    example_columns: tuple[str, ...]  # of a dataset that is tokenised already, the prompt's and an answer's first
    token_columns: tuple[str, ...] = ()  # whose tokens the model reads, once for each mention
    items_per_example: int = 1  # an example of a data set may be several

    def __init__(self, model: HFDenoiser, args: DiffusionConfig, callbacks: list[TrainerCallback], **kwargs: Any):
        check_trainable(model.module)
        if args.stop_at_non_finite:
            check_weights(model.module, f"the model {model.module.config.name_or_path}".rstrip())
        check_attention_trains(model.module.config._attn_implementation, args.device.type)
        if args.n_gpu > 1:
            raise ValueError("several GPUs, one process: start with `accelerate launch -m vrpo ...`, or show one GPU")
        self.denoiser, self.args = model, args
        self.recipe = self.make_recipe()
        self.routers = routers_of(model.module)
        if args.router_aux_loss_coef and self.routers is None:
            raise ValueError(
                "router_aux_loss_coef: the model has no routers that are balanced here, as LLaDA-MoE has; leave it out"
            )
        self.reports: list[DataReport] = []  # of the rows that were tokenised
        with warnings.catch_warnings(action="ignore", category=RowsWarning):  # one table says it
            kwargs["train_dataset"] = self.tokenized(kwargs["train_dataset"])
            names = ["train"] * len(self.reports)
            kwargs["eval_dataset"] = self.tokenized(kwargs["eval_dataset"])
        super().__init__(model=model.module, args=args, processing_class=model.tokenizer, callbacks=callbacks, **kwargs)
        if args.torch_compile:
            compile_blocks(model.module, args)
        self.add_callback(JSONLogCallback(args.folder / "log.jsonl"))
        self.add_callback(RowsCallback(summary([*names, *["eval"] * (len(self.reports) - len(names))], self.reports)))
        self.window, self.gradient_noise = Window(), GradientNoise()
        self.watch = Watch()
        self.model_accepts_loss_kwargs = False
        if self.is_fsdp_enabled:
            set_up_fsdp(self.accelerator.state.fsdp_plugin, quantized=model.quantized)
        if args.sample_steps is not None:
            if not isinstance(kwargs["eval_dataset"], Dataset):
                raise ValueError(
                    "sample_steps takes its prompts from the evaluation set: give eval_dataset, or eval_fraction"
                )
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("sample_steps: a sharded model cannot answer in one process; leave it out")
            prompts = kwargs["eval_dataset"][: args.num_samples]["prompt_ids"]
            self.add_callback(SampleCallback(self.denoiser, prompts, args))

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Without torch_compile, which here is of blocks: accelerate would compile, and wrap, the whole model."""
        given = super()._build_accelerator_args(**kwargs)
        return {name: value for name, value in given.items() if name != "dynamo_plugin"}

    def make_recipe(self) -> Recipe:
        """What the run is: plans and objectives, made here once."""
        return self.args.make_recipe(self.denoiser.block_size)

    # What subclasses define ------------------------------------------------------------------------------------------

    @abstractmethod
    def tokenize(self, rows: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, DataReport]:
        """Rows of text as examples of token ids, and what became of them."""

    @abstractmethod
    def items_in(self, batch: Batch) -> int:
        """How many items (pairs, rows) the loss of this batch is a mean over."""

    @abstractmethod
    def batch_backward(self, policy: Denoiser, batch: Batch, scale: float) -> Float[Tensor, ""]:
        """Accumulate scale * gradient; return the loss of the batch; add to `self.window`."""

    @abstractmethod
    def batch_metrics(self, policy: Denoiser, batch: Batch) -> Columns:
        """Per-item metrics of an evaluation batch, `loss` among them."""

    def tokenized(self, dataset: Any) -> Any:
        """Rows of text as examples of token ids; examples and None as they are; a dict part by part."""
        if isinstance(dataset, dict):
            return {name: self.tokenized(part) for name, part in dataset.items()}
        if dataset is None:
            return None
        return examples_of(dataset, self.example_columns, self.denoiser, self.args, self._counted)

    def _counted(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        examples, report = self.tokenize(rows, tokenizer)
        self.reports.append(report)
        return examples

    # Training --------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """transformers' loader; in random order, the examples of each step are balanced over processes."""
        loader = super().get_train_dataloader()
        wanted = self.args.balance_batches and self.args.train_sampling_strategy == "random"
        alone = self.args.world_size * self.args.gradient_accumulation_steps == 1
        if wanted and not alone and isinstance(self.train_dataset, Dataset):
            balance(loader, self.token_counts(self.train_dataset), self.args.gradient_accumulation_steps)
        return loader

    def token_counts(self, examples: Dataset) -> list[int]:
        """Tokens that the model reads of each example."""
        return token_counts(examples, self.token_columns)

    @property
    def draw_epoch(self) -> int:
        """The epoch that enters the keys of the draws."""
        return math.floor(self.state.epoch or 0.0)

    def tokens(self, batch: Batch, *, epoch: int) -> Tokens:
        assert self.args.draw_seed is not None
        return tokens_of(batch, seed=self.args.draw_seed, epoch=epoch)

    def agree(self, packs: int) -> int:
        """The largest number of packs of any process, for calls of a sharded model must match; at least 1, for a step
        without a backward would leave the gradients of earlier micro-batches unsynchronised, and DeepSpeed without its
        step."""
        if self.args.world_size == 1 and not self.is_deepspeed_enabled:
            return packs
        count = torch.tensor(max(packs, 1), device=self.args.device)
        return int(self.accelerator.gather(count.reshape(1)).max())

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The micro-batches of an optimizer step, and how many items they have over all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        if batches and not self.args.dataloader_drop_last:
            batches[-1] = self._filled(batches[-1], self.train_dataset)
        return batches, self._get_num_items_in_batch(batches, device)

    def _filled(self, batch: Batch, dataset: Any) -> Batch:
        """A batch that says which of its examples only fill it up, of the last one of an epoch: those beyond the data
        set's, counted from process to process."""
        world, each = self.args.world_size, self.items_in(batch) // self.items_per_example
        last = world > 1 and self.accelerator.gradient_state.end_of_dataloader and isinstance(dataset, Sized)
        left = len(dataset) % (each * world) if last else 0
        return with_counted(batch, each, min(max(left - self.args.process_index * each, 0), each)) if left else batch

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor:
        """Items of one optimizer step over its micro-batches and all processes, so that each item weighs the same."""
        count = torch.tensor(sum(self.items_in(counted(batch)) for batch in batch_samples), device=device)
        return self.accelerator.gather(count.reshape(1)).sum()

    def _prepare_input(self, data: Any) -> Any:
        """On the device. transformers would cast rewards and weights, which no model reads, to DeepSpeed's type."""
        return data.to(self.args.device) if isinstance(data, Tensor) else super()._prepare_input(data)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch: its share of the gradient of the mean loss over the step's items, and of that loss.

        Each call of a model has an autocast of its own (accelerate's, in the prepared forward). One around all of them
        would keep the weights that it cast without a graph, for the values, and use them in the pass with a graph:
        before torch 2.10 that loses their gradients.
        """
        assert num_items_in_batch is not None
        model.train()  # gradient checkpointing asks for it; `check_trainable` has refused dropout
        batch = self._prepare_inputs(inputs)
        share = self.items_in(counted(batch)) * self.args.world_size / int(num_items_in_batch)
        loss = self.batch_backward(model, batch, share)
        if self.routers is not None:
            self.routers.rate = 0.0
        if self.accelerator.gradient_state.sync_gradients:
            self.on_gradient()
        return (loss * share).detach().to(torch.float32)

    def weigh_routers(self, tokens: Tokens, graphs: Bool[Tensor, "N K"], scale: float) -> None:
        """Let the passes with a graph that follow, of these draws, add scale * router_aux_loss_coef * gradient of the
        mean of the routers' loss over their tokens: each pack by its share of the real ones."""
        if self.args.router_aux_loss_coef:
            assert self.routers is not None
            total = int((graphs.sum(-1) * tokens.attention.sum(-1)).sum())
            self.routers.rate = scale * self.args.router_aux_loss_coef / max(total, 1)

    def router_metrics(self) -> dict[str, float]:
        """What routers did in the passes with a graph since the last log; empty for a model that has none."""
        seen = None if self.routers is None else self.routers.taken()
        if seen is None:
            return {}
        return seen.metrics(self.accelerator.reduce(seen.sums().to(self.args.device), reduction="sum"))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """A run that goes on from the checkpoint of its last step, in the middle of an epoch, has no step to make;
        transformers looks whether it should stop only after one."""
        if self.state.global_step >= self.state.max_steps:
            kwargs["num_update_steps_per_epoch"] = 0
        return super()._run_epoch(*args, **kwargs)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        """`eval_on_start` means the start of the run, not where it goes on; only that asks to skip the scheduler."""
        if skip_scheduler and self.state.global_step > 0:
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def check_reached(self) -> None:
        """At the last backward of a step, before which FSDP keeps gradients elsewhere; as DeepSpeed always does."""
        if self.accelerator.gradient_state.sync_gradients and not self.is_deepspeed_enabled:
            check_reached(self.denoiser.module)

    def on_gradient(self) -> None:
        """Called once per optimizer step, when its gradient is complete: added up over micro-batches and processes."""
        whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.fp16)  # sharded; scaled
        if self.args.log_gradient_snr and whole:
            assert self.model is not None
            self.gradient_noise.add(p.grad for p in self.model.parameters() if p.requires_grad)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """transformers asks for it once per optimizer step, before the weights are touched.

        Raises:
            ValueError: the loss of a row, of any process, or the norm is not finite; of fp16, whose scaler skips steps
                to find its scale, only the loss.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        watch, self.watch = self.watch, Watch()
        if not self.args.stop_at_non_finite:
            self.remove_older()
            return norm
        broken = int(self.accelerator.reduce(torch.tensor(len(watch.broken), device=self.args.device)))
        infinite = norm is not None and not math.isfinite(norm) and not self.args.fp16
        if broken or infinite:
            what = "the loss is not finite" if broken else f"the norm of the gradient is {float(norm)}"
            rows = gather_object(watch.broken if broken else watch.seen)
            raise stopped(self.state.global_step + 1, what, rows, self.args.folder)
        self.remove_older()
        return norm

    def around(self, model: nn.Module) -> Callable[[bool], AbstractContextManager[None]]:
        """Synchronise gradients, and let DeepSpeed step, at the last backward of a step only."""

        @contextmanager
        def context(last: bool) -> Iterator[None]:
            state = self.accelerator.gradient_state
            due = state.sync_gradients
            if last or not due or state.plugin_kwargs.get("sync_each_batch", False):
                yield
                return
            state._set_sync_gradients(False)
            try:
                if self.accelerator.distributed_type == DistributedType.DEEPSPEED:  # ZeRO-2 and 3 have no no_sync
                    yield
                else:
                    with self.accelerator.no_sync(model):
                        yield
            finally:
                state._set_sync_gradients(due)

        return context

    def backward(self, scalar: Float[Tensor, ""]) -> None:
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.accelerator.backward(scalar, scale_wrt_gas=False)
        else:
            self.accelerator.backward(scalar)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """All examples: dataloader_drop_last is about training."""
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drops

    # Evaluation and logging ------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Means over the evaluation set, on the same draws at every call, each with its standard error over items.

        A dict of datasets is evaluated part by part, as by transformers.
        """
        given = self.tokenized(self.eval_dataset if eval_dataset is None else eval_dataset)
        if isinstance(given, dict):
            parts = [self.evaluate(part, None, f"{metric_key_prefix}_{name}") for name, part in given.items()]
            return {name: value for part in parts for name, value in part.items()}
        assert self.model is not None
        model = self.model_wrapped if self.is_deepspeed_enabled else self._wrap_model(self.model, training=False)
        model.eval()
        tables = []
        with torch.no_grad(), self.accelerator.autocast():
            for inputs in self.get_eval_dataloader(given):
                batch: Any = self._filled(inputs, given)
                columns = self.batch_metrics(model, self._prepare_inputs(batch))
                tables.append(self._gathered(columns, self.items_in(inputs)))
        values, there = (torch.cat(parts) for parts in zip(*tables, strict=True))
        self._check_evaluation(values[:, list(columns).index("loss")], given, metric_key_prefix)
        sums = sums_of(values, there)
        mean, error = mean_and_error(sums)
        found = {name: i for i, name in enumerate(columns) if sums[i, 2]}  # no item may have it
        metrics = {f"{metric_key_prefix}_{name}": float(mean[i]) for name, i in found.items()}
        metrics |= {f"{metric_key_prefix}_{name}_stderr": float(error[i]) for name, i in found.items()}
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in self.ratios(columns, sums).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _check_evaluation(self, losses: Float[Tensor, " P"], rows: Any, prefix: str) -> None:
        """
        Raises:
            ValueError: the loss of an item is not finite.
        """
        broken = (~losses.isfinite()).nonzero()[:, 0] // self.items_per_example
        if self.args.stop_at_non_finite and len(broken):
            ids = [rows[int(row)]["example_id"] for row in broken.cpu()]
            raise stopped(self.state.global_step, f"{prefix}_loss is not finite", ids, self.args.folder)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: a row has no logits to give back, only what a draw hides of it."""
        raise ValueError("predict: use evaluate(dataset) for metrics of a data set, or vrpo.generate for answers")

    def _gathered(self, columns: Columns, items: int) -> tuple[Float[Tensor, "P M"], Bool[Tensor, "P M"]]:
        """Metrics of a batch's items from all processes and which are there; a process may have fewer than `items`."""
        parts = [as_some(column) for column in columns.values()]
        both = torch.stack([*(part.values for part in parts), *(part.there.double() for part in parts)], -1)
        padded = pad(both.to(self.args.device), (0, 0, 0, items - len(both)))
        values, there = self.accelerator.gather(padded).chunk(2, -1)
        return values, there > 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.window.total and "loss" in logs:
            sums = self.accelerator.reduce(self.window.sums(self.args.device), reduction="sum")
            mean, error = mean_and_error(sums)
            found = {name: i for i, name in enumerate(self.window.total) if sums[i, 2]}  # no item may have had it
            logs |= {name: float(mean[i]) for name, i in found.items()}
            logs |= self.ratios(self.window.total, sums) | self.gradient_noise.metrics()
            logs |= self.router_metrics()
            self.on_window({name: (float(mean[i]), float(error[i])) for name, i in found.items()})
            self.window, self.gradient_noise = Window(), GradientNoise()
        for name in logs.keys() - finite(logs).keys():  # in place: the caller returns it, and writes it elsewhere
            del logs[name]
        super().log(logs, start_time)

    def ratios(self, names: Iterable[str], sums: Float[Tensor, "M 3"]) -> dict[str, float]:
        """Further metrics from the totals, squares and counts of the per-item ones."""
        return {}

    def on_window(self, statistics: dict[str, tuple[float, float]]) -> None:
        """Called with mean and standard error of each metric of a logging window."""

    # The card --------------------------------------------------------------------------------------------------------

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        if self.is_world_process_zero():
            base = self.denoiser.module.config.name_or_path
            base = None if Path(base).exists() else base  # the hub refuses a card that names a local folder
            adapted, history = self.denoiser.adapted, self.state.log_history
            card = model_card(self.method, self.args, self.recipe.plan, base, adapted, history, self.changes)
            (self.args.folder / "README.md").write_text(card)
