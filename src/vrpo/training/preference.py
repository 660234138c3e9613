"""`VRPOTrainer`: preference optimisation on likelihood bounds, one draw's memory at a time."""

import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from vrpo.data.account import DataReport
from vrpo.data.collate import counted
from vrpo.draws import FixedCount
from vrpo.estimator import Engine
from vrpo.kept_graphs import all_graphs_fit, backward_keeping_graphs
from vrpo.models.adapter import is_small
from vrpo.models.compiled import compile_blocks
from vrpo.models.hf import HFDenoiser
from vrpo.one_pass import OnePass
from vrpo.plans import Exact
from vrpo.preference import Step, backward_by_draw, preference_loss
from vrpo.reference import GivenReference, IndependentReference, Reference
from vrpo.structures import Labels, Rankings
from vrpo.training.base import EVAL_EPOCH, Batch, DiffusionTrainer
from vrpo.training.finite import check_weights
from vrpo.training.given import check_parts, config_of, policy_of
from vrpo.training.initial import check_begins_at
from vrpo.training.metrics import Columns, label_metrics, pair_metrics, per_list, relative_error
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.preference_data import PreferenceData
from vrpo.training.readable import check_known, check_prompts
from vrpo.training.recipe import Recipe
from vrpo.training.reference_terms import KnownTerms, Shards, TermStore, entry_names
from vrpo.training.references import Given, check_references, listed, references_of
from vrpo.training.sync import MovingReference, check_moved
from vrpo.types import Denoiser, Draws, Pairs, Plan, Tokens

Preferences = Pairs | Rankings | Labels


class VRPOTrainer(DiffusionTrainer):
    """Trains a masked diffusion language model on preferences, or with plan=exact a causal one. Used like TRL's
    DPOTrainer, whose arguments stand in the same order.

    Datasets are of pairs, ranked lists or labelled answers, in TRL's formats (docs/data.md), or already tokenised by
    `data.tokenize_preferences`, `tokenize_ranked` or `tokenize_unpaired`. Draws come from (draw_seed, example id, side,
    epoch): a resumed, re-batched or distributed run sees the same ones.

    Args:
        model: a denoiser from `vrpo.load` (of plan=exact, `vrpo.load_causal`), or a name or folder.
        ref_model: another one as the reference, or several (`ref_pool`). None, also in a list: the policy as it is now,
            with its adapter turned off or as a frozen copy.
        causal_ref_model: causal language models as further references, by their exact likelihoods.
        peft_config: trains an adapter of this kind; target modules default to the architecture's linear layers.
    """

    args: VRPOConfig
    method = "VRPO"

    def __init__(
        self,
        model: HFDenoiser | nn.Module | str | Path | Any,
        ref_model: Given | Sequence[Given | None] | None = None,
        args: VRPOConfig | Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | Any = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | Any = None,
        optimizers: Any = (None, None),
        peft_config: Any = None,
        causal_ref_model: Given | Sequence[Given] = (),
        **others: Any,
    ):
        others |= {"data_collator": data_collator, "compute_metrics": compute_metrics}
        args = config_of(args, VRPOConfig, others)
        check_parts(processing_class, peft_config, callbacks, train_dataset, eval_dataset)
        given, causal = listed(ref_model), listed(causal_ref_model)
        check_references(args, len(given), len(causal), adapted=peft_config is not None)
        self.preference_data = data = PreferenceData.of(args, train_dataset, eval_dataset)
        self.example_columns, self.items_per_example = data.example_columns, data.items_per_example
        denoiser = policy_of(model, processing_class, peft_config, args)
        self.small = is_small(denoiser.module)
        self.references = references_of(denoiser, given, causal, args)
        self.moving: MovingReference | None = None
        self._warned = self._begun = False
        self._known: dict[int, KnownTerms] = {}  # by epoch
        self._eval_reference: dict[tuple[Any, ...], Float[Tensor, "N R J"]] = {}  # by plan and rows
        super().__init__(
            model=denoiser,
            args=args,
            callbacks=callbacks or [],
            data_collator=data.collator(denoiser.pad_id),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            optimizers=optimizers,
        )
        if args.stop_at_non_finite:
            for each in self.references.models:
                check_weights(each.module, f"the reference {each.module.config.name_or_path}".rstrip())
        data.check_baseline(args.world_size, self.train_dataset, self.eval_dataset)
        whole = not self.is_deepspeed_enabled and not self.is_fsdp_enabled
        self.references.begin(denoiser, Exact() if args.plan == "exact" else FixedCount(), whole=whole)
        self.remember(denoiser, self.references.fingerprints(denoiser))
        self.references.place(
            self.accelerator, args.device, deepspeed=self.is_deepspeed_enabled, sharded=self.is_fsdp_enabled
        )
        if args.torch_compile:
            for each in self.references.models:
                compile_blocks(each.module, args)
        if args.sync_ref_model:
            self.moving = MovingReference(denoiser, self.references, args, whole, self._eval_reference.clear)
            self.add_callback(self.moving)

    def tokenize(self, rows: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, DataReport]:
        return self.preference_data.tokenized(rows, tokenizer, self.denoiser.mask_id)

    def tokenized(self, dataset: Any) -> Any:
        examples = super().tokenized(dataset)
        if not isinstance(examples, Dataset):
            return examples
        if self.args.plan == "exact" or self.references.exact:
            check_prompts(examples)
        check_known(examples, self.references.unknown_to(self.denoiser.tokenizer))
        return self.preference_data.completed(examples)

    def token_counts(self, examples: Dataset) -> list[int]:
        return self.preference_data.token_counts(examples)

    def make_recipe(self) -> Recipe:
        """As in `DiffusionTrainer`, for rows of the kind at hand."""
        over_processes = None if self.args.world_size == 1 else self.added_up
        return self.args.make_recipe(self.denoiser.block_size, self.preference_data.structure, over_processes)

    @property
    def ref_model(self) -> HFDenoiser | None:
        """The first reference that is a model of its own."""
        return next(iter(self.references.models), None)

    def save_beside(self, checkpoint: Path) -> None:
        if self.moving is not None:
            self.moving.save(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        check_moved(Path(resume_from_checkpoint), moving=self.moving is not None)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.moving is not None:
            self.moving.load(Path(resume_from_checkpoint))

    def prepare(self) -> None:
        self._precompute()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._precompute()
        return super().evaluate(*args, **kwargs)

    @property
    def draw_epoch(self) -> int:
        """With precomputed reference terms 0, whose draws they belong to."""
        return 0 if self.args.precompute_ref_log_probs else super().draw_epoch

    def _precompute(self) -> None:
        """The references' terms of training and evaluation sets, if asked for and not yet there; then the models that
        they came from are not needed."""
        if not self.args.precompute_ref_log_probs or self._known:
            return
        evaluated = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        parts = {
            "train": (0, self.recipe.plan, [self.train_dataset]),
            "eval": (EVAL_EPOCH, self.recipe.eval_plan, list(evaluated)),
        }
        known = {}
        for name, (epoch, plan, datasets) in parts.items():
            store = TermStore(self.args.terms_folder / name, self._terms_settings(plan))
            given = [dataset for dataset in datasets if dataset is not None]
            shards = Shards(given, partial(self._rows, epoch=epoch))
            mine = shards.of(self.args.process_index, self.args.world_size)
            quiet, main = self.args.disable_tqdm, self.is_world_process_zero()
            store.complete(mine, partial(self._terms, plan), quiet=quiet, main=main)
            self.accelerator.wait_for_everyone()
            known[epoch] = store.load(shards.of(0, 1))
        self._known = known
        self.references.release()

    def _terms_settings(self, plan: Plan) -> dict[str, str]:
        """What terms depend on, besides keys and tokens."""
        precision = "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "as stored"
        tf32 = " and tf32" if self.args.tf32 else ""
        return {"references": self.about["references"], "plan": repr(plan), "precision": precision + tf32}

    def _rows(self, examples: list[Any], epoch: int) -> tuple[Tokens, Preferences]:
        batch = {name: part.to(self.args.device) for name, part in self.data_collator(examples).items()}
        return self.tokens(batch, epoch=epoch), self.preference_data.read(batch)

    def _terms(self, plan: Plan, tokens: Tokens, rows: Preferences) -> Float[Tensor, "N R K"]:
        """The references' terms of rows under their draws by a plan."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"{self.args.terms_folder} lacks reference terms, and FSDP and DeepSpeed cannot compute them once the "
                "model is sharded: run without them first, then reuse ref_terms_dir"
            )
        policy: Any = self.model
        policy.eval()
        with self.accelerator.autocast():
            return self.reference(policy)(tokens, plan(tokens, rows), rows, Engine(self.args.max_tokens_per_forward))

    def reference(self, policy: Denoiser) -> Reference:
        """All references of the run, on the policy's draws."""
        return self.references.of(policy, self.accelerator)

    def items_in(self, batch: Batch) -> int:
        return self.preference_data.items_in(batch)

    def added_up(self, sums: Float[Tensor, " 2"]) -> Float[Tensor, " 2"]:
        """Over processes."""
        return self.accelerator.reduce(sums, reduction="sum")

    def batch_backward(self, policy: Denoiser, batch: Batch, scale: float) -> Float[Tensor, ""]:
        tokens, every = self.tokens(batch, epoch=self.draw_epoch), self.preference_data.read(batch)
        structure = self.preference_data.read(counted(batch))
        draws = self.recipe.plan(tokens, every)
        reference: Reference = self._known[0](tokens, every) if self._known else self.reference(policy)
        if not self.args.share_draws:
            reference = IndependentReference(reference, self.recipe.plan)
        most, around = self.args.max_tokens_per_forward, self.around(self.model_wrapped)
        objective = self.recipe.objective
        given = (policy, reference, tokens, structure, draws, objective)
        together = self.accelerator.autocast
        alone = Engine(most, around=lambda last: around(False), together=together, scale=scale)
        if not self.one_pass:
            engine = Engine(most, self.agree, around, together, self.backward, scale)
            if self.args.router_aux_loss_coef:
                step = backward_by_draw(*given, engine, partial(self.weigh_routers, tokens, scale=scale))
            else:
                step = backward_keeping_graphs(*given, engine)
        elif self.args.gradient_passes == "auto" and all_graphs_fit(tokens, draws, alone):
            step = backward_keeping_graphs(*given, alone)
        else:
            assert not isinstance(structure, Labels)
            one = OnePass(self.trained, by_group=self.args.slope != "plain")
            step = one(policy, reference, tokens, structure, draws, objective, alone)
        if bool(step.graphs.any()):
            self.check_reached()
        self._check_begins(step)
        if self.one_pass:
            self._synchronise()
        self.watch.add(step, batch["example_id"])
        self.window.add(self.metrics_of(step, structure, draws, common=self.args.share_draws))
        return step.loss

    def _check_begins(self, step: Step) -> None:
        """Before anything is learnt, a reference that is the initial policy has the policy's terms."""
        place, begun = self.references.initial, self._begun
        self._begun = True
        if begun or self.state.global_step or place is None or not self.args.share_draws:
            return
        if step.loss.isfinite():  # else it is said at the end of the step
            reference = step.terms.reference[:, place]
            check_begins_at(step.terms.policy.detach(), reference, self.denoiser.module, self.args.computes_in)

    def metrics_of(self, step: Step, structure: Preferences, draws: Draws, *, common: bool) -> Columns:
        """Metrics of the pairs or lists of a batch, or of its labelled answers."""
        judged = self.recipe.judged
        if isinstance(structure, Labels):
            return label_metrics(step, structure, draws, judged)
        pairs = structure.pairs
        columns = pair_metrics(step, structure, draws, judged, common=common)
        return columns if pairs.item is None else per_list(columns, pairs)

    @property
    def trained(self) -> list[nn.Parameter]:
        assert self.model is not None
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @cached_property
    def one_pass(self) -> bool:
        """Whether gradients are summed over processes by us, so that each process can push rows back as they come, or
        keep the graphs of a small batch.

        Raises:
            ValueError: it is asked for and not possible.
        """
        wrapped = self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.fp16
        wrapped |= self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        if wrapped and self.args.gradient_passes == "one":
            raise ValueError(
                "gradient_passes=one: FSDP, DeepSpeed, fp16 and sync_each_batch need their own backward; leave it out"
            )
        return not wrapped and self.args.one_pass(small=self.small)

    def _synchronise(self) -> None:
        """Mean of the accumulated gradients over processes, when a step's last micro-batch is done."""
        if self.args.world_size == 1 or not self.accelerator.gradient_state.sync_gradients:
            return
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in self.trained]
        whole = self.accelerator.reduce(torch.cat([each.flatten() for each in gradients]), reduction="mean")
        for parameter, part in zip(self.trained, whole.split([each.numel() for each in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)

    def ratios(self, names: Iterable[str], sums: Float[Tensor, "M 3"]) -> dict[str, float]:
        return relative_error(names, sums)

    def batch_metrics(self, policy: Denoiser, batch: Batch) -> Columns:
        tokens, every = self.tokens(batch, epoch=EVAL_EPOCH), self.preference_data.read(batch)
        structure = self.preference_data.read(counted(batch))
        draws = self.recipe.eval_plan(tokens, every)
        step = self._evaluated(policy, tokens, every, structure, draws)
        columns = self.metrics_of(step, structure, draws, common=True)
        items = self.recipe.plain.items(step.terms, structure)
        return {"loss": items, **columns}

    def _evaluated(self, policy: Denoiser, tokens: Tokens, rows: Preferences, asked: Preferences, draws: Draws) -> Step:
        """Evaluation draws are the same every time, hence so are a frozen reference's terms: computed once for each
        batch, which is known by what is in it."""
        engine = Engine(self.args.max_tokens_per_forward, self.agree)
        reference: Reference = self._known[EVAL_EPOCH](tokens, rows) if self._known else self.reference(policy)
        if not self._known:
            key = (repr(self.recipe.eval_plan), *entry_names(tokens, rows).tolist())
            if self.agree(1 + (key not in self._eval_reference)) > 1:  # processes run a sharded model together
                self._eval_reference[key] = reference(tokens, draws, rows, engine)
            reference = GivenReference(self._eval_reference[key])
        return preference_loss(policy, reference, tokens, asked, draws, self.recipe.plain, engine)

    def on_window(self, statistics: dict[str, tuple[float, float]]) -> None:
        mean, error = statistics.get("elbo/chosen_change", (0.0, 0.0))  # there is none without a reference
        asked = self.args.warn_displacement and self.references.first_has_bounds  # likelihoods are above any bound
        if asked and not self._warned and mean + 4 * error < 0 and self.is_world_process_zero():
            self._warned = True
            warnings.warn(
                f"likelihood displacement at step {self.state.global_step}: the bound of the chosen answers has fallen "
                f"{-mean:.2g} (+- {error:.1g}) nats below the reference. The margin may grow because rejected answers "
                "fall faster, while the policy gets worse at the chosen ones. Raise beta, set or raise sft_coef, lower "
                "the learning rate or stop earlier; watch elbo/chosen_change and elbo/rejected_change",
                stacklevel=2,
            )
