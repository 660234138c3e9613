"""The published shapes, a family an entry: its class and what its configuration says beyond a Shape."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_8b.cost import Shape
from vrpo.models.dream import Dream
from vrpo.models.illada import ILLaDA
from vrpo.models.llada import LLaDA
from vrpo.models.llada_moe import LLaDAMoE

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
LENGTH = 8192  # positions: the longest row of any part


@dataclass(frozen=True)
class Family:
    """One published architecture at its published size.

    Args:
        golden: folders of small checkpoints whose logits the official code computed, each with the key in its
            golden.safetensors of the logits where padding on the left is not attended, and the mask token where the
            folder does not say it.
    """

    name: str
    module: Any
    shape: Shape
    fields: dict[str, Any]
    golden: tuple[tuple[str, str, int | None], ...]

    def config(self, shape: Shape, attention: str) -> Any:
        """Its configuration at a shape, which may be smaller than the published one. The last two ids are special."""
        inner = "moe_intermediate_size" if shape.experts else "intermediate_size"
        routed = {"num_experts": shape.experts, "num_experts_per_tok": shape.active} if shape.experts else {}
        return self.module.config_class(
            **{inner: shape.inner},
            **routed,
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_heads,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=shape.tied,
            mask_token_id=shape.vocabulary - 1,
            bos_token_id=None,
            eos_token_id=shape.vocabulary - 2,
            pad_token_id=shape.vocabulary - 2,
            use_cache=False,
            attn_implementation=attention,
            **self.fields,
        )

    def tiny(self, width: int = 64) -> Shape:
        """Two layers, for a tiny run."""
        routed = {"experts": 8, "active": 2} if self.shape.experts else {}
        keys = 4 if self.shape.key_heads == self.shape.heads else 2
        small = replace(self.shape, layers=2, width=width, inner=3 * width // 2, vocabulary=512, rank=4)
        return replace(small, heads=4, key_heads=keys, head_width=width // 4, **routed)


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


# LLaDA, Dream, LLaDA-MoE: published configurations. iLLaDA: 32 layers, 4096, 8 key heads, tied, 155136 tokens; an inner
# width of 14336 makes it the 7.6 billion weights that are stated.
FAMILIES = (
    Family(
        "LLaDA-MoE-7B-A1B",
        LLaDAMoE,
        Shape(layers=16, width=2048, inner=1024, vocabulary=157184, heads=16, key_heads=16, experts=64, active=8),
        {**_rope(5e4), "rms_norm_eps": 1e-5},
        (("llada_moe", "left_logits_mask_honoured", 198), ("llada_moe_bias", "left_logits", 158)),
    ),
    Family(
        "Dream-7B",
        Dream,
        Shape(layers=28, width=3584, inner=18944, vocabulary=152064, heads=28, key_heads=4),
        {**_rope(1e6), "rms_norm_eps": 1e-6},
        (("dream", "left_logits", None),),
    ),
    Family(
        "iLLaDA-8B",
        ILLaDA,
        Shape(layers=32, width=4096, inner=14336, vocabulary=155136, key_heads=8, tied=True),
        {**_rope(5e5), "rms_norm_eps": 1e-5},
        (("illada", "left_logits", None),),
    ),
    Family("LLaDA-8B", LLaDA, Shape(), {**_rope(5e5), "rms_norm_eps": 1e-5}, (("llada_dense", "left_logits", None),)),
)
