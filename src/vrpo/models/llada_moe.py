"""LLaDA-MoE-7B-A1B: transformers' Qwen3-MoE, bidirectional, under the official names.

Only what differs: field names of config.json, names of the experts' tensors, and the router, which may have a bias.
What routers say about themselves is in routing.py; how experts are computed, in experts.py.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, no_type_check

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock, Qwen3MoeTopKRouter

from vrpo.models.experts import IMPLEMENTATIONS
from vrpo.models.facts import LLADA_MOE
from vrpo.models.hf import MaskedDiffusion
from vrpo.models.official import OfficialConfig
from vrpo.models.routing import Routed, Routers, Routing

_SAME = (  # of the same name in transformers
    "attention_bias",
    "attention_dropout",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "mask_token_id",
    "max_position_embeddings",
    "moe_router_enable_expert_bias",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
)
_TENSORS = (  # of an expert in the checkpoint, of all experts of a layer in transformers
    (["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"], "mlp.experts.gate_up_proj", True),
    (["mlp.experts.*.down_proj.weight"], "mlp.experts.down_proj", False),
)


@no_type_check
class LLaDAMoEConfig(OfficialConfig, Qwen3MoeConfig):
    """LLaDA-MoE's config.json. `model_type` is LLaDA's too; and it does not say what its mask token is.

    Not read, because the official code does not: norm_topk_prob (the chosen experts' weights are never renormalised),
    moe_router_score_function (it is softmax), routed_scaling_factor, router_num_group, router_topk_group.
    """

    model_type = "llada"
    architecture: ClassVar[str] = "LLaDAMoEModelLM"
    fields: ClassVar[Mapping[str, str]] = {name: name for name in _SAME} | {
        "dense_intermediate_size": "intermediate_size",
        "expert_intermediate_size": "moe_intermediate_size",
    }
    fixed: ClassVar[Mapping[str, Any]] = {
        "clip_qkv": None,
        "partial_rotary_factor": 1,
        "qk_layernorm": True,
        "rope_scaling": None,
        "shared_expert_intermediate_size": None,
    }
    presentation: ClassVar[Mapping[str, Any]] = {
        "moe_router_score_function": "softmax",
        "norm_topk_prob": None,
        "output_router_logits": False,
        "routed_scaling_factor": 1,
        "router_aux_loss_coef": 0.01,
        "router_num_group": None,
        "router_topk_group": None,
        "use_cache": False,
    }
    required: ClassVar[tuple[str, ...]] = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "num_experts",
        "num_experts_per_tok",
        "expert_intermediate_size",
        "moe_layer_freq",
        "vocab_size",
        "rms_norm_eps",
        "rope_theta",
    )
    official: dict[str, Any] | None = None
    mask_token_id: int | None = None
    moe_router_enable_expert_bias: bool = False
    is_causal: bool = False
    shift_logits: bool = False

    @classmethod
    def read(cls, official: dict[str, Any]) -> dict[str, Any]:
        """Layers are dense where `moe_layer_freq` has a 0."""
        frequency, layers = official["moe_layer_freq"], official["num_hidden_layers"]
        if not isinstance(frequency, list) or len(frequency) != layers:
            raise ValueError(f"config.json: moe_layer_freq = {frequency} must be a list of {layers} numbers, 0: dense")
        dense = [index for index, often in enumerate(frequency) if often == 0]
        known = {"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": dense}
        return {**super().read(official), **known}

    def write(self) -> dict[str, Any]:
        dense: Any = self.mlp_only_layers
        frequency = [int(layer not in dense) for layer in range(self.num_hidden_layers)]
        if self.official is not None and self.read(self.official)["mlp_only_layers"] == dense:
            frequency = self.official["moe_layer_freq"]
        return {**super().write(), "moe_layer_freq": frequency}


class Router(Qwen3MoeTopKRouter):
    """Softmax over all experts, the largest k of probability plus bias, with these sums as weights: the bias, where
    there is one, both selects and weighs. It is a buffer: nothing trains it."""

    def __init__(self, config: Any, routers: Routers):
        super().__init__(config)
        self.routers = routers
        if config.moe_router_enable_expert_bias:
            self.register_buffer("expert_bias", torch.zeros(config.num_experts))
        else:
            self.expert_bias = None

    def forward(
        self, hidden_states: Float[Tensor, "*T D"]
    ) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N k"], Int[Tensor, "N k"]]:
        """Logits of all experts, weights and numbers of the chosen ones."""
        logits = torch.nn.functional.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        value = torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
        if self.expert_bias is not None:
            value = value + self.expert_bias
        weight, chosen = value.topk(self.top_k, -1)
        self.routers.hear(Routing(logits, chosen))
        return logits, weight.to(logits.dtype), chosen


class LLaDAMoE(MaskedDiffusion, Qwen3MoeForCausalLM, Routed):
    """LLaDA-MoE as a transformers model: bidirectional Qwen3-MoE with the masked-diffusion forward."""

    config_class = LLaDAMoEConfig
    lora_targets = LLADA_MOE.lora_targets

    def __init__(self, config: Any):
        if config._experts_implementation is None:
            config._experts_implementation = "auto"
        if config._experts_implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"experts_implementation must be one of {', '.join(IMPLEMENTATIONS)}, "
                f"not {config._experts_implementation!r}"
            )
        super().__init__(config)
        self.routers = Routers()
        for layer in self.model.layers:
            if isinstance(layer.mlp, Qwen3MoeSparseMoeBlock):
                layer.mlp.gate = Router(config, self.routers)
        self.init_weights()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """transformers looks for it in the source of the class, which here is its base's."""
        return True

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
        scored: Bool[Tensor, "B L"],
        output: Literal["logp", "logits"] = "logp",
        **unused: Any,
    ) -> Float[Tensor, " S"] | Float[Tensor, "S V"]:
        """`MaskedDiffusion.forward`, while the routers are heard."""
        with self.routers.listening() as heard:
            found = super().forward(input_ids, attention_mask, masked, scored, output, **unused)
        return self.routers.attached(found, heard, self.real_tokens(attention_mask, heard)) if heard else found

    def real_tokens(self, attention_mask: Bool[Tensor, "B L"], heard: list[Routing]) -> Bool[Tensor, " T"]:
        """Which of the tokens that routers saw are real: without padding, all but what fills up the last block."""
        if self.config._attn_implementation != "flex_attention":
            return attention_mask.flatten()
        return torch.arange(len(heard[0].logits), device=attention_mask.device) < attention_mask.sum()


register_checkpoint_conversion_mapping(
    LLaDAMoE.__name__,
    [
        WeightRenaming(source_patterns=r"mlp.expert_bias", target_patterns=r"mlp.gate.expert_bias"),
        *(
            WeightConverter(
                source_patterns=theirs,
                target_patterns=ours,
                operations=[MergeModulelist(dim=0), *([Concatenate(dim=1)] if several else [])],
            )
            for theirs, ours, several in _TENSORS
        ),
    ],
    overwrite=True,
)
