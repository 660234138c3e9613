"""What a preference step costs on paper: floating-point operations and bytes, from shapes and lengths alone.

No torch, no measurement: `run.py` divides these by seconds. One multiply and one add are two operations; norms,
softmax, rotations and optimizer are left out, being far below one percent.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A model of Llama's kind, LLaDA-8B unless said otherwise; LoRA on the linear maps of its blocks, not on experts.

    Biases, and norms of single heads, are left out: less than one in a thousand weights.
    """

    layers: int = 32
    width: int = 4096
    inner: int = 12288  # of the SwiGLU, or of one expert
    vocabulary: int = 126464
    rank: int = 16
    heads: int = 32
    key_heads: int = 32
    head_width: int = 128
    tied: bool = False  # embeddings and head are one matrix
    experts: int = 0  # in a block; 0: one SwiGLU that is not routed
    active: int = 0  # experts that a token goes through

    @property
    def attention_weights(self) -> int:
        """Of the four maps of a block: queries, keys, values, output."""
        return 2 * self.width * self.head_width * (self.heads + self.key_heads)

    @property
    def expert_weights(self) -> int:
        """Of one SwiGLU."""
        return 3 * self.width * self.inner

    @property
    def block_weights(self) -> int:
        """That a token goes through, of all linear maps of all blocks: 4 D^2 + 3 D I each, were all heads alike."""
        router = self.width * self.experts
        return self.layers * (self.attention_weights + max(self.active, 1) * self.expert_weights + router)

    @property
    def head_weights(self) -> int:
        return self.width * self.vocabulary

    @property
    def weights(self) -> int:
        """Blocks with all experts, embeddings, head and norms."""
        idle = self.layers * (max(self.experts, 1) - max(self.active, 1)) * self.expert_weights
        ends = (1 if self.tied else 2) * self.head_weights
        return self.block_weights + idle + ends + (2 * self.layers + 1) * self.width

    @property
    def adapter_weights(self) -> int:
        """r (in + out) for each linear map of each block."""
        heads = 2 * (self.heads + self.key_heads) * self.head_width
        swiglu = 0 if self.experts else 3 * (self.width + self.inner)
        return self.layers * self.rank * (4 * self.width + heads + swiglu)


@dataclass(frozen=True)
class Work:
    """What all draws of some answers ask of one pass: tokens, squared row lengths (attention), scored positions."""

    tokens: float
    squares: float
    scored: float


@dataclass(frozen=True)
class Parts:
    """Operations of ONE forward pass over the real tokens: W = 2 block weights per token; A = 4 D L^2 per layer and row
    (queries with keys, weights with values, in both directions), D being all heads; H = 2 D V per scored position;
    R = 2 adapter weights per token."""

    blocks: float
    attention: float
    head: float
    adapter: float


def parts(shape: Shape, work: Work) -> Parts:
    return Parts(
        blocks=2 * shape.block_weights * work.tokens,
        attention=4 * shape.heads * shape.head_width * shape.layers * work.squares,
        head=2 * shape.head_weights * work.scored,
        adapter=2 * shape.adapter_weights * work.tokens,
    )


def lora_flops(shape: Shape, work: Work) -> float:
    """Operations that a LoRA step on these draws NEEDS: 3 W + 4 A + 3 H + 3 R.

    Policy forward W + A + H + R; backward W (activations only: the weights are frozen) + 2 A + H + 2 R; reference
    forward W + A + H. Neither what checkpointing computes again nor what a second pass for the values adds.
    """
    one = parts(shape, work)
    return 3 * one.blocks + 4 * one.attention + 3 * one.head + 3 * one.adapter


def again_flops(shape: Shape, work: Work, *, checkpointed: bool, value_share: float) -> float:
    """Operations that a LoRA step does on top: with gradient checkpointing the blocks' forward again; for the share of
    draws that has a pass of its own for its values, a forward."""
    one = parts(shape, work)
    blocks = one.blocks + one.attention + one.adapter
    return blocks * checkpointed + value_share * (blocks + one.head)


def kept_bytes(shape: Shape) -> int:
    """Bytes per token that a block keeps for its backward under bf16 autocast with an adapter: 28 D + 8 I.

    In bf16 ten values of width D (inputs of norms and linear maps, queries, keys, values, what attention returns) and
    four of width I (gate, its activation, up, their product); in float32 two of width D (norms). The adapter's r values
    and the norms' scales, about one percent, are left out. A test counts them.
    """
    return 28 * shape.width + 8 * shape.inner


def lora_memory(shape: Shape, tokens: int, *, checkpointed: bool, chunk: int = 256) -> dict[str, float]:
    """Bytes on the device at the peak of a one-pass LoRA step with packs of so many tokens, by component.

    bf16 base; float32 adapter with gradient, two AdamW moments, and a buffer for each answer of a pair with one being
    added to it. Activations: what one block keeps for its backward, and gradients in flight beside it, 8 D + 8 I bytes
    per token by a rough count; with checkpointing the input of every other block, 2 D bytes, instead of all it keeps.
    In the head, five float32 copies of a chunk of logits, also a rough count.
    """
    in_flight = (8 * shape.width + 8 * shape.inner) * tokens
    kept, inputs = kept_bytes(shape) * tokens, 2 * shape.width * tokens
    others = (shape.layers - 1) * (inputs if checkpointed else kept)
    return {
        "base, bf16": 2 * shape.weights,
        "adapter, gradient, AdamW": 16 * shape.adapter_weights,
        "one-pass buffers": 12 * shape.adapter_weights,
        "activations": others + inputs + kept + in_flight if checkpointed else others + kept + in_flight,
        "head chunk": 5 * 4 * chunk * shape.vocabulary,
    }
