"""A training step with its real shapes and without its numbers: what `vrpo estimate` records and charges.

The modules are the real ones, built under FakeTensorMode from config.json; a call of the model is the backbone and the
head's `target_logp`, as in models/hf.py; passes are those of preference.py. Nothing is loaded.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Trainer

from vrpo.diagnostics.cost import KINDS, Machine, Recorder
from vrpo.models.adapter import is_small, with_adapter
from vrpo.models.head import target_logp
from vrpo.models.load import adapt
from vrpo.training.preference_config import VRPOConfig

BITS = {4: 4 + 32 / 64, 8: 8.0}  # of a quantised weight: in NF4 with an absolute maximum per 64 in float32
PASSES = ("reference", "values", "gradient")


@dataclass(frozen=True)
class Call:
    """One call of the model: `items` rows padded to `width` tokens, `scored` of all of them scored."""

    items: int
    width: int
    scored: int

    @property
    def tokens(self) -> int:
        return self.items * self.width

    @property
    def features(self) -> tuple[float, float, float, float]:
        """What the cost of a call is linear in: calls, tokens, attended pairs of tokens, scored positions."""
        return 1.0, float(self.tokens), float(self.tokens * self.width), float(self.scored)


@dataclass(frozen=True)
class Setup:
    """What the cost of a call depends on besides its size."""

    model_class: Any
    config: Any  # of transformers
    dtype: torch.dtype
    adapter: LoraConfig | None
    args: VRPOConfig
    one_pass: bool
    copied_reference: bool
    accumulates: bool  # a gradient is there before the last backward of an optimizer step
    bits: int | None = None  # of quantised linear layers
    head_chunk: int | None = None  # positions whose logits exist at a time; None: the CPU's

    @property
    def small(self) -> bool:
        """Whether what is trained is a small adapter."""
        return is_small(_on_meta(self, self.adapter))


@dataclass(frozen=True)
class Simulation:
    """Bytes that stay, by component; the highest total of each part of a step; what a call of each pass executes."""

    held: dict[str, float]
    peak: dict[str, float]
    recorder: Recorder
    points: Sequence[Call]
    vocab: int
    trained: int  # parameters
    root: float  # bytes of embedding and head

    @property
    def highest(self) -> float:
        return max(self.peak.values())

    def call_seconds(self, name: str, machine: Machine) -> Tensor:
        """[features, kinds]: coefficients of the seconds of a call in its features, by kind of operation."""
        table = [self.recorder.seconds(f"{name} {index}", machine, self.vocab) for index in range(len(self.points))]
        features = torch.tensor([point.features for point in self.points], dtype=torch.float64)
        scale = features.max(0).values
        seconds = torch.tensor([[row[kind] for kind in KINDS] for row in table], dtype=torch.float64)
        return torch.linalg.lstsq(features / scale, seconds, driver="gelsd").solution / scale[:, None]


def points_of(calls: Sequence[Call]) -> list[Call]:
    """A few calls among those of a step whose costs tell those of all: the largest first, for memory."""
    largest = max(calls, key=lambda call: (call.tokens, call.scored))
    by_width = sorted(calls, key=lambda call: (call.width, call.items, call.scored))
    chosen = [largest, by_width[0], by_width[-1], by_width[len(by_width) // 2], min(calls, key=lambda c: c.tokens)]
    halves = [replace(largest, scored=max(1, largest.scored // 2)), replace(largest, items=max(1, largest.items // 2))]
    return list(dict.fromkeys([*chosen, *(half for half in halves if half.scored <= half.tokens)]))


def simulate(setup: Setup, points: Sequence[Call], kept: Sequence[Call] = ()) -> Simulation:
    """Two optimizer steps on the largest call, so that gradients and optimizer states are there, then every point; and
    the calls whose graphs are alive at once."""
    recorder = Recorder()
    held = {}
    policy = _on_meta(setup, setup.adapter)
    copied = _on_meta(setup, None).requires_grad_(False) if setup.copied_reference else None
    with FakeTensorMode(), recorder:
        policy = _faked(policy)
        held["weights"] = recorder.live - _saved(setup, policy)
        before = recorder.live
        copied = None if copied is None else _faked(copied)
        held["reference copy"] = 0.0 if copied is None else recorder.live - before - _saved(setup, copied)
        recorder.live = held["weights"] + held["reference copy"]
        step = _FakeStep(setup, policy, copied)
        before = recorder.live
        step.gradient(points[0])
        gradients = {id(p.grad): p.grad.untyped_storage().nbytes() for p in step.trained if p.grad is not None}
        held["gradients"] = float(sum(gradients.values()))
        step.gradient(points[0])
        held["buffers of rows"] = recorder.live - before - held["gradients"]
        before = recorder.live
        step.optimizer.step()
        held["optimizer states"] = recorder.live - before
        for index, call in enumerate(points):
            step.start(setup.accumulates)
            for name in PASSES:
                with recorder.part(f"{name} {index}"):
                    getattr(step, name)(call)
        step.start(setup.accumulates)
        with recorder.part("gradient of the graphs kept"):
            if kept and not setup.one_pass:
                step.gradient(*kept)
        with recorder.part("optimizer"):
            step.optimizer.step()
    alone = [part for part in recorder.peak if part.endswith(" 0") or part[-1].isalpha()]
    peak = {part: recorder.peak[part] for part in alone}
    trained = sum(parameter.numel() for parameter in step.trained)
    ends = {each.weight for each in (step.base.lm_head, step.base.model.embed_tokens)}
    root = sum(float(each.numel() * each.element_size()) for each in ends)
    return Simulation(held, peak, recorder, points, setup.config.vocab_size, trained, root)


class _FakeStep:
    """The modules of a step and its passes; only ever under FakeTensorMode."""

    def __init__(self, setup: Setup, module: Any, copied: Any):
        self.setup, self.module, self.copied = setup, module, copied
        module.train()
        if setup.args.gradient_checkpointing:
            self.base.gradient_checkpointing_enable(setup.args.gradient_checkpointing_kwargs)
            if setup.adapter is not None:
                self.base.enable_input_require_grads()
        self.trained = [p for p in module.parameters() if p.requires_grad]
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(setup.args, module)
        if not optimizer.__module__.startswith("torch.optim"):
            raise ValueError(f"optim: {setup.args.optim} is no optimizer of torch's, which alone are estimated")
        self.optimizer = optimizer(self.trained, **options)
        self._buffers: list[Any] = []

    @property
    def base(self) -> Any:
        return self.module.get_base_model() if isinstance(self.module, PeftModel) else self.module

    def start(self, accumulates: bool) -> None:
        if not accumulates:
            self.optimizer.zero_grad()

    def reference(self, call: Call) -> None:
        if self.copied is not None:
            with torch.no_grad():
                self._call(self.copied, call)
        elif isinstance(self.module, PeftModel) and not self.setup.args.precompute_ref_log_probs:
            with torch.no_grad(), self.module.disable_adapter():
                self._call(self.base, call)

    def values(self, call: Call) -> None:
        if not self.setup.one_pass:
            with torch.no_grad():
                self._call(self.base, call)

    def gradient(self, *calls: Call) -> None:
        """Of one call; or of several whose graphs are alive at once."""
        with self._autocast() if len(calls) > 1 else nullcontext():
            logp = torch.cat([self._call(self.base, call) for call in calls])
        if not self.setup.one_pass:
            logp.sum().backward()
            return
        found = torch.autograd.grad(logp.sum(), self.trained, allow_unused=True)
        self._buffers = [*self._buffers[-1:], found]  # of the other row of the pair, and of this one so far
        for parameter, part in zip(self.trained, found, strict=True):
            parameter.grad = part * 0.5 if parameter.grad is None else parameter.grad.add_(part, alpha=0.5)

    def _call(self, module: Any, call: Call) -> Tensor:
        ids = torch.zeros(call.items, call.width, dtype=torch.int64)
        mask = torch.ones(call.items, 1, call.width, call.width, dtype=torch.bool)
        scored = torch.zeros(call.scored, dtype=torch.int64)
        with self._autocast():
            hidden = module.model(input_ids=ids, attention_mask=mask, use_cache=False)[0].flatten(0, 1)
            return target_logp(module.lm_head, hidden[scored], scored, self.setup.head_chunk)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = torch.bfloat16 if self.setup.args.bf16 else torch.float16 if self.setup.args.fp16 else None
        return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def _on_meta(setup: Setup, adapter: LoraConfig | None) -> Any:
    """The model, without storage."""
    with torch.device("meta"):
        config = copy.deepcopy(setup.config)
        made = setup.model_class._from_config(config, dtype=setup.dtype, attn_implementation="sdpa")
        return made if adapter is None else with_adapter(adapt(made, None), adapter, 0).module


def _saved(setup: Setup, module: Any) -> float:
    """Bytes by which quantised weights are smaller: of the linear layers without the head."""
    if setup.bits is None:
        return 0.0
    base: Any = module.get_base_model() if isinstance(module, PeftModel) else module
    named = base.model.named_modules()
    weights = [each.weight for name, each in named if isinstance(each, torch.nn.Linear) and "lora_" not in name]
    return sum(weight.numel() * (weight.element_size() - BITS[setup.bits] / 8) for weight in weights)


def _faked(module: Any) -> Any:
    """The module with fake parameters and buffers in place of those on the meta device."""
    made: dict[int, Any] = {}  # tied ones stay tied
    for part in module.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                new = torch.nn.Parameter(torch.empty(tensor.shape, dtype=tensor.dtype), tensor.requires_grad)
                part._parameters[name] = made.setdefault(id(tensor), new)
        for name, tensor in part._buffers.items():
            if tensor is not None:
                part._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
    return module


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the warnings of a model that nothing will be loaded into."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
