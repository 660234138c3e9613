"""Causal language models with their exact likelihood: `vrpo.load_causal`, what plan=exact trains.

Nothing is masked and everything is scored, so one draw says log p of a whole answer, without noise. One mixin serves
every class that AutoModelForCausalLM loads: backbone, head and all files that are written are transformers'. What
deliberately does not live here: causal models turned bidirectional (bidirectional.py), sampling of text.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from vrpo.models.adapter_names import with_saved_adapter
from vrpo.models.attention import check_attention
from vrpo.models.base_model import check_base, identity_of
from vrpo.models.conventions import FILE, Conventions
from vrpo.models.facts import CAUSAL, TABLE
from vrpo.models.head import target_logp
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import base_of, check_loaded, config_fields, parts_of, require_bitsandbytes
from vrpo.models.precision import weights_dtype
from vrpo.models.side_files import Origin, origin_of
from vrpo.models.tokenizer import load_tokenizer

NO_TOKEN = -1  # the mask token of a model that has none: no text holds it
_DIFFUSION = {entry.architecture for entry in TABLE} - {entry.architecture for entry in CAUSAL}
_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")
_NO_MASKS = "a causal language model has no masks to fill in: write answers with transformers' generate"


class CausalLikelihood:
    """Mixin that gives a causal-LM class of transformers the forward of a denoiser; put it first among the bases.

    Called without `scored`, it is the class's own forward.
    """

    config: Any
    base_model: Any
    plain: bool  # whether logits are the head's of what the backbone returns, and nothing more
    kept: dict[str, Any]  # what config.json says where the trainer writes something else into the configuration

    @property
    def block_size(self) -> None:
        """There are no blocks."""
        return None

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The linear layers of its blocks."""
        named = self.base_model.named_modules()
        return tuple(sorted({name.rpartition(".")[2] for name, each in named if isinstance(each, nn.Linear | Conv1D)}))

    def forward(
        self,
        *args: Any,
        masked: Bool[Tensor, "B L"] | None = None,
        scored: Bool[Tensor, "B L"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """log p(input_ids_i | those before i) at the `scored` positions, row-major, at least float32.

        Takes `input_ids` and `attention_mask`; with `scored`, all by keyword.

        Raises:
            ValueError: something is masked; or a row's first token is scored, which nothing stands before.
        """
        if scored is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        given = {name: value for name, value in kwargs.items() if value is not None}
        ids, attention = given.pop("input_ids"), given.pop("attention_mask")
        if given or args:
            raise TypeError(f"a causal language model is scored without {', '.join(given) or 'positions'}")
        if masked is not None and bool(masked.any()):
            raise ValueError(
                "nothing is masked where a causal language model says each token from all before: plan=exact"
            )
        return self._scored(ids, attention.bool(), scored)

    def _scored(
        self, ids: Int[Tensor, "B L"], attention: Bool[Tensor, "B L"], scored: Bool[Tensor, "B L"]
    ) -> Float[Tensor, " S"]:
        """Rows are moved to the left edge: some models number positions from there, whatever is attended."""
        row, column = scored.nonzero().unbind(1)
        before = (attention.cumsum(1) - 1)[row, column] - 1
        if bool((before < 0).any()):
            raise ValueError(f"row {int(row[before < 0][0])} has no prompt: nothing says its first token")
        order = (~attention).to(torch.uint8).argsort(dim=1, stable=True)
        rows = {"input_ids": ids.gather(1, order), "attention_mask": attention.gather(1, order).long()}
        head = self.get_output_embeddings()  # type: ignore[attr-defined]
        if self.plain:
            hidden = self.base_model(**rows, use_cache=False)[0]
            return target_logp(head, hidden.to(row.device)[row, before], ids[scored])
        return target_logp(nn.Identity(), self._own_logits(head, rows, row, before), ids[scored])

    def _own_logits(
        self, head: nn.Module, rows: dict[str, Tensor], row: Int[Tensor, " S"], column: Int[Tensor, " S"]
    ) -> Float[Tensor, "S V"]:
        """The logits of the class's own forward, with whatever it does before and after its head, whose input is cut to
        these positions."""
        handle = head.register_forward_pre_hook(lambda _, given: (given[0][row, column][None], *given[1:]))
        try:
            return super().forward(**rows, use_cache=False).logits[0]  # type: ignore[misc]
        finally:
            handle.remove()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers does, with what config.json said of special tokens: one that pads has no gradient."""
        now = {name: getattr(self.config, name) for name in self.kept}
        try:
            self._say(self.kept)
            return super().save_pretrained(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._say(now)

    def _say(self, fields: dict[str, Any]) -> None:
        for name, value in fields.items():
            setattr(self.config, name, value)


@dataclass(frozen=True)
class CausalDenoiser(HFDenoiser):
    """A loaded causal language model. What `vrpo.load_causal` returns; trained with plan=exact, and nothing else."""

    @property
    def conventions(self) -> Conventions | None:
        """There are none: an adapter's folder says nothing of masks."""
        return None

    def logits(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        wanted: Bool[Tensor, "B L"],
    ) -> NoReturn:
        raise ValueError(_NO_MASKS)

    def _base_for_columns(self) -> NoReturn:
        raise ValueError(_NO_MASKS)


def load_causal(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    adapter: str | Path | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
) -> CausalDenoiser:
    """Load a causal language model that transformers knows, from the hub or a folder, in evaluation mode.

    A folder with an adapter_config.json loads its base model and the adapter on it. Arguments are those of `load`.
    Dropout is off, also in training.

    Raises:
        ValueError: it is a diffusion language model, or none that transformers runs without its authors' code.
    """
    name_or_path = str(name_or_path)
    check_attention(attn_implementation)
    if isinstance(quantization_config, BitsAndBytesConfig):
        require_bitsandbytes()
    name_or_path, adapter = parts_of(name_or_path, adapter)
    check_causal(name_or_path, adapter)
    placed = {} if quantization_config is None else {"quantization_config": quantization_config}
    if placed and device is not None:
        placed |= {"device_map": {"": device}}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are named below
            trust_remote_code=False,
            dtype=weights_dtype("inference", dtype),
            attn_implementation=attn_implementation,
            **placed,
        )
    except (OSError, ValueError, StrictDataclassError) as error:  # no safetensors; no class, or one of the authors
        why = " ".join(str(error).split())
        raise ValueError(f"{name_or_path} is no causal language model that transformers loads: {why}") from error
    module, info = loaded
    check_loaded(name_or_path, info)
    module.generation_config = GenerationConfig.from_model_config(module.config)  # as in `load`
    tokenizer = load_tokenizer(name_or_path)
    found = as_causal(module if placed else module.to(device), tokenizer, origin_of(name_or_path, tokenizer))
    if adapter is None:
        return found
    base = identity_of(found.module, tokenizer)
    check_base(adapter, base, found.module.config.name_or_path, tokenizer)
    return replace(found, module=with_saved_adapter(found.module, adapter).eval(), base=base)


def as_causal(module: Any, tokenizer: PreTrainedTokenizerBase | None, origin: Origin | None = None) -> CausalDenoiser:
    """A denoiser of a causal-LM module of transformers, which itself gets a denoiser's forward; or of a peft wrapper.

    Raises:
        ValueError: there is no end-of-text token, or its forward is of another kind.
    """
    base: Any = module.get_base_model() if isinstance(module, PeftModel) else module
    if not isinstance(base, CausalLikelihood):
        klass: Any = type(base)  # transformers' own
        base.__class__ = _with_likelihood(klass)
        base.kept = {name: value for name, value in vars(base.config).items() if name in _KEPT}
        base.eval()
        _drop_nothing(base)
        base.plain = _is_plain(base)
    ends = getattr(base.config, "eos_token_id", None) if tokenizer is None else tokenizer.eos_token_id
    if not isinstance(ends, int):
        raise ValueError("neither config.json nor a tokenizer has an eos_token_id, which ends an answer")
    pad_id = getattr(base.config, "pad_token_id", None)
    known = {} if tokenizer is None else tokenizer.get_vocab()
    turn = next((known[text] for text in CAUSAL[0].end_of_turn if text in known), None)
    return CausalDenoiser(module, tokenizer, NO_TOKEN, ends, ends if pad_id is None else pad_id, turn, origin)


def check_causal(name_or_path: str, adapter: str | Path | None = None) -> None:
    """Refuse a diffusion model, before its weights are read.

    Raises:
        ValueError: config.json, or what lies beside an adapter, says that it is one.
    """
    if (Path(name_or_path) / "adapter_config.json").is_file():
        adapter, name_or_path = name_or_path, base_of(name_or_path)
    if adapter is not None and (Path(adapter) / FILE).is_file():
        raise ValueError(
            f"{adapter} is an adapter of a diffusion language model ({FILE}), which plan=exact cannot train"
        )
    fields = config_fields(name_or_path)
    architecture = (fields.get("architectures") or [None])[0]
    turned = fields.get("mask_token_id") is not None or fields.get("is_causal") is False
    if architecture in _DIFFUSION or turned:
        raise ValueError(
            f"{name_or_path} is a diffusion language model ({architecture}{', turned bidirectional' if turned else ''})"
            ": plan=exact is for causal ones, whose likelihood is exact; take another plan"
        )


@cache
def _with_likelihood(klass: type) -> type:
    """The class with a denoiser's forward, under its own name, which transformers and peft write into files."""
    return type(klass.__name__, (CausalLikelihood, klass), {"__module__": klass.__module__, "__doc__": klass.__doc__})


def _drop_nothing(module: Any) -> None:
    """Turn dropout off, as TRL does.

    Raises:
        ValueError: it still drops out in training.
    """
    if not all(len(parameter) for parameter in module.parameters() if parameter.dim()):
        raise ValueError("plan=exact looks at the model before it is trained, and ZeRO-3 has split it: take FSDP2")
    for each in module.modules():
        if isinstance(each, nn.Dropout):
            each.p = 0.0
    steady = _probed(module)
    module.train()
    same = torch.equal(_probed(module), steady)
    module.eval()
    if not same:
        raise ValueError(
            "the model drops out in training: set its dropout to 0 in config.json (attention_dropout, ...)"
        )


@torch.no_grad()
def _is_plain(module: Any) -> bool:
    """Whether the head on top of the backbone says what the model says, bit for bit: some scale or bound their logits.

    Raises:
        ValueError: and if not, its own forward does not either, with its head cut to some positions.
    """
    whole = _probed(module)
    ids, head = _probe(module), module.get_output_embeddings()
    if module.base_model is not module:
        hidden = module.base_model(input_ids=ids, use_cache=False)[0]
        if torch.equal(head(hidden).double(), whole):
            return True
    row, column = torch.zeros_like(ids[0, 1:]), torch.arange(1, ids.shape[1], device=ids.device)
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not torch.allclose(module._own_logits(head, rows, row, column).double(), whole[0, 1:], rtol=0.02, atol=0.02):
        raise ValueError(f"{type(module).__name__} does not apply its head as other causal language models do")
    return False


def _probe(module: Any) -> Int[Tensor, "1 L"]:
    return torch.arange(5, device=module.device)[None]


@torch.no_grad()
def _probed(module: Any) -> Float[Tensor, "1 L V"]:
    return module(input_ids=_probe(module), use_cache=False).logits.double()
