"""The only place that adapts a transformers module to a diffusion language model.

The adaptation is a forward: corrupt, run the backbone in both directions, apply the head where something is scored. It
happens inside the module's own forward, so every wrapper (DDP, FSDP, DeepSpeed, peft) sees ordinary calls.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from vrpo.models.base_model import FILE as BASE
from vrpo.models.conventions import FILE, Conventions
from vrpo.models.head import logits_of, target_logp
from vrpo.models.key_values import KeyValues, hidden_and_columns, hidden_of_columns, positions
from vrpo.models.side_files import Origin, SideFiles

PACK_MULTIPLE = 128  # FlexAttention's block; and so that few lengths are compiled for


class MaskedDiffusion:
    """Mixin that turns a causal-LM class of transformers into a masked diffusion model; put it first among the bases.

    The class it is mixed into supplies `model` (backbone), `lm_head` and a config with `mask_token_id`,
    `is_causal = False` and `shift_logits` (models/official.py).
    """

    config: Any
    model: Any
    lm_head: Any

    @property
    def block_size(self) -> int | None:
        """Tokens per block of a model that sees blocks one after the other; None: it sees all at once."""
        return None

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
        scored: Bool[Tensor, "B L"],
        output: Literal["logp", "logits"] = "logp",
        **unused: Any,
    ) -> Float[Tensor, " S"] | Float[Tensor, "S V"]:
        """Log-probabilities of `input_ids` (or logits) at the `scored` positions, the `masked` ones being hidden.

        With flex_attention the rows are run as one sequence without their padding; otherwise as a rectangle, which on a
        CPU is faster, if rows of similar length share a call (`estimator.plan_packs`).
        Only hidden states at scored positions reach the head, a chunk of them at a time (models/head.py): memory does
        not depend on the vocabulary times the length. At least float32. `unused` takes the None arguments that peft's
        task wrappers pass along.
        """
        given = [name for name, value in unused.items() if value is not None]
        if given:
            raise TypeError(f"a masked diffusion model takes no {', '.join(given)}")
        hidden = self.hidden_at(input_ids, attention_mask, masked, scored)
        if output == "logits":
            return logits_of(self.lm_head, hidden)
        return target_logp(self.lm_head, hidden, input_ids[scored])

    def hidden_at(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
        scored: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "S D"]:
        """The hidden states that say the tokens at the scored positions, row-major, everything visible being seen."""
        corrupted = torch.where(masked, self.config.mask_token_id, input_ids)
        row, column = said_at(scored, attention_mask, self.config.shift_logits)
        if self.config._attn_implementation == "flex_attention":
            place = attention_mask.flatten().cumsum(0).view_as(input_ids) - 1  # where a token is without padding
            return self._without_padding(corrupted, attention_mask).to(row.device)[place[row, column]]
        hidden = self.model(input_ids=corrupted, attention_mask=attention_mask, use_cache=False)[0]
        return hidden.to(row.device)[row, column]  # the last layer may be elsewhere (device_map)

    def _without_padding(self, ids: Int[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"]) -> Float[Tensor, "T D"]:
        """Hidden states of the T attended tokens, row-major: all rows behind each other as one sequence, whose parts do
        not see each other. Positions restart (small angles are exact ones); what separates rows is the mask alone."""
        row = attention_mask.nonzero()[:, 0]
        position = (attention_mask.cumsum(-1) - 1)[attention_mask]
        surplus = -len(row) % PACK_MULTIPLE
        row = pad(row, (0, surplus), value=len(attention_mask))
        hidden = self.model(
            input_ids=pad(ids[attention_mask], (0, surplus))[None],
            attention_mask=self._apart(row),
            position_ids=pad(position, (0, surplus))[None],
            use_cache=False,
        )[0][0]
        return hidden[: len(row) - surplus]

    def _apart(self, row: Int[Tensor, " T"]) -> Any:
        """The mask under which tokens of one row see each other, and no others; blocks without any are not computed."""
        return create_block_mask(
            lambda b, h, query, key: row[query] == row[key], None, None, len(row), len(row), device=str(row.device)
        )


def said_at(
    wanted: Bool[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"], shift: bool
) -> tuple[Int[Tensor, " S"], Int[Tensor, " S"]]:
    """Row and column whose hidden state says what the token at each wanted position is, row-major.

    The position itself, or if the logits are shifted the one before; a row's first token, which has none before it,
    speaks for itself, as in the official sampler. There it is the first column, which of a row padded on the left is
    padding: here it is the row's first token, so that padding changes nothing.
    """
    row, column = wanted.nonzero().unbind(1)
    if not shift:
        return row, column
    before = (column - 1).clamp(min=0)
    return row, torch.where(attention_mask[row, before], before, column)


@dataclass(frozen=True)
class HFDenoiser:
    """A loaded diffusion language model: the module, its tokenizer and its special tokens. What `vrpo.load` returns.

    Callable as `types.Denoiser`; `logits` is what decoding needs. `module` is a transformers PreTrainedModel, or a peft
    wrapper of one.
    """

    module: Any  # a PreTrainedModel of ours, or a wrapper of one
    tokenizer: PreTrainedTokenizerBase | None
    mask_id: int
    eos_id: int
    pad_id: int
    eot_id: int | None
    origin: Origin | None = None  # None: made here, not loaded
    base: Mapping[str, Any] | None = None  # of an adapter: which model it is on (base_model.py); None: not known

    def __call__(
        self,
        *,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
        scored: Bool[Tensor, "B L"],
    ) -> Float[Tensor, " S"]:
        return self.module(input_ids=input_ids, attention_mask=attention_mask, masked=masked, scored=scored)

    def logits(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        wanted: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "S V"]:
        """Logits at the wanted positions, row-major, of ids that may contain the mask token."""
        return self.module(
            input_ids=input_ids,
            attention_mask=attention_mask,
            masked=torch.zeros_like(wanted),
            scored=wanted,
            output="logits",
        )

    def logits_and_columns(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        wanted: Bool[Tensor, "B L"],
    ) -> tuple[Float[Tensor, "S V"], KeyValues]:
        """`logits`, and the keys and values of all columns, for `logits_of_columns`.

        Raises:
            ValueError: attention is neither sdpa nor eager: others take no mask of this kind.
        """
        base = self._base_for_columns()
        hidden, columns = hidden_and_columns(base.model, input_ids, attention_mask, self._blocks(attention_mask))
        said = said_at(wanted, attention_mask, base.config.shift_logits)
        return logits_of(base.lm_head, hidden[said]), columns

    def logits_of_columns(
        self,
        input_ids: Int[Tensor, "B C"],
        column: Int[Tensor, "B C"],
        attention_mask: Bool[Tensor, "B L"],
        wanted: Bool[Tensor, "B C"],
        kept: KeyValues,
    ) -> Float[Tensor, "S V"]:
        """Logits at the wanted ones of these columns, which see all others as they were when they were kept."""
        base = self._base_for_columns()
        hidden = hidden_of_columns(base.model, input_ids, column, attention_mask, self._blocks(attention_mask), kept)
        if not base.config.shift_logits:
            return logits_of(base.lm_head, hidden[wanted])
        everywhere = kept.hidden_with(column, hidden)  # the one before a column may not be among those computed again
        position = torch.zeros_like(attention_mask).scatter(1, column, wanted)
        return logits_of(base.lm_head, everywhere[said_at(position, attention_mask, True)])

    def _blocks(self, attention_mask: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """The block of each column; all in one for a model that sees everything at once."""
        position = positions(attention_mask)
        return torch.zeros_like(position) if self.block_size is None else position // self.block_size

    def _base_for_columns(self) -> Any:
        base = self._base
        if is_spread(base):
            raise ValueError("a cache needs the whole model on one device: leave device_map or the cache out")
        attention = base.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ValueError(f"a cache needs attn_implementation sdpa or eager, not {attention}")
        return base

    @property
    def block_size(self) -> int | None:
        """Tokens per block of a block diffusion model (models/block.py); None: it sees everything at once."""
        return self.module.block_size

    @property
    def quantized(self) -> bool:
        """Whether the weights, without an adapter's, are quantised: they cannot be trained, nor saved."""
        return is_quantized(self.module)

    @property
    def adapted(self) -> bool:
        """Whether an adapter is on the model."""
        return isinstance(self.module, PeftModel)

    @property
    def _base(self) -> Any:
        """The module without an adapter's wrapper."""
        return self.module.get_base_model() if self.adapted else self.module

    @property
    def device(self) -> torch.device:
        """Where inputs go; of a model that a device_map has spread, the first device that computes."""
        if is_spread(self._base):
            places = [place for place in self._base.hf_device_map.values() if place not in ("cpu", "disk")]
            return torch.device(places[0] if places else "cpu")
        return next(self.module.parameters()).device

    def merged(self) -> "HFDenoiser":
        """The denoiser with its adapter merged into the weights, which can be trained; the adapter is used up.

        Where head and embedding are one tensor and the adapter is on one of them, they are two from then on.

        Raises:
            ValueError: there is no adapter.
        """
        if not self.adapted:
            raise ValueError("there is no adapter to merge")
        _untie(self._base)
        module: Any = self.module.merge_and_unload()
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return dataclasses.replace(self, module=module, base=None)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write weights (official names), config.json (official fields) and the files beside them; an adapter if peft.

        Tokenizer, chat template, generation_config.json and modelling code are those of the folder that the model was
        loaded from, byte for byte. An adapter's folder has the tokenizer, and what config.json would say of masks,
        alignment and blocks (models/conventions.py).

        Raises:
            ValueError: the weights are quantised, which the official layout has no fields for.
        """
        if self.quantized and not self.adapted:
            raise ValueError("quantised weights have no official layout to be saved in: load them without quantisation")
        beside = self.side_files()
        self.module.save_pretrained(str(folder), **kwargs)
        beside.write(Path(folder))

    def side_files(self) -> SideFiles:
        """What belongs beside these weights, or this adapter, when they are saved."""
        if self.origin is None:
            found = SideFiles({}, self.tokenizer)
        else:
            found = self.origin.side_files(self.tokenizer, of_weights=not self.adapted)
        if not self.adapted:
            return found
        told = {} if self.conventions is None else {FILE: self.conventions.written()}
        base = {} if self.base is None else {BASE: (json.dumps(self.base, indent=1) + "\n").encode()}
        return dataclasses.replace(found, contents={**found.contents, **told, **base})

    @property
    def conventions(self) -> Conventions | None:
        """What config.json would say of masks, alignment and blocks; None: nothing."""
        return Conventions(self.mask_id, self._base.config.shift_logits, self.block_size)


def _untie(base: Any) -> None:
    """Give the head weights of its own, where an adapter makes it another matrix than the embedding: merged into the
    one, it would change the other."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    on = any(isinstance(each, BaseTunerLayer | AuxiliaryTrainingWrapper) for each in (embedding, head))
    if not on or not base.config.get_text_config().tie_word_embeddings:
        return
    shared = {id(parameter) for parameter in embedding.parameters()}
    for module in head.modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) in shared:
                setattr(module, name, torch.nn.Parameter(weight.detach().clone(), weight.requires_grad))
    base.all_tied_weights_keys = {}
    base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False


def is_spread(module: Any) -> bool:
    """Whether a device_map has put parts of the module, which is no wrapper, on different devices."""
    return len(set(getattr(module, "hf_device_map", {}).values())) > 1


def is_quantized(module: Any) -> bool:
    """Whether transformers quantised the module, or the base that an adapter is on, when it was loaded."""
    return getattr(module, "hf_quantizer", None) is not None
