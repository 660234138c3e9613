"""Fields of the training commands that are no field of a trainer's configuration: rows, models, a new model."""

from dataclasses import dataclass, field
from typing import Any, Literal

from vrpo.fields.options import BLOCK_HELP, MASK_HELP, SHIFT_HELP
from vrpo.models.precision import weights_dtype
from vrpo.models.shape import check_sizes

POLICY = "policy"  # in a list of references: the initial policy


@dataclass
class DataArguments:
    """Where rows come from."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id, folder, or .jsonl(.gz), .json(.gz), .parquet file."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split (or file of a folder) to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split (or file of a folder) to evaluate on."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "A separate source of evaluation rows."})
    eval_fraction: float | None = field(
        default=None, metadata={"help": "Hold out this share of the training split (whole prompts) for evaluation."}
    )

    @property
    def source(self) -> str:
        """
        Raises:
            ValueError: there is none, which only rounds can do without.
        """
        if self.dataset_name is None:
            raise ValueError("--dataset_name is missing")
        return self.dataset_name


@dataclass
class PreferenceDataArguments(DataArguments):
    """The same, for preferences."""

    reward_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Hub name or folder of a sequence-classification model (safetensors) that rewards pairs without "
            "rewards, once before training, for temperature=reward_scaling."
        },
    )
    reward_model_form: Literal["chat", "text", "pair"] | None = field(
        default=None,
        metadata={
            "help": "How it reads: chat, text (the answer behind the prompt) or pair (two segments). None: chat if it "
            "has a template, else text."
        },
    )
    reward_model_label: int | None = field(
        default=None, metadata={"help": "Which of its logits is the reward, if it has several."}
    )


@dataclass
class SFTDataArguments(DataArguments):
    """The same, for supervised rows."""

    completion_column: str = field(
        default="completion", metadata={"help": "The answer to imitate: chosen, for preference data."}
    )


@dataclass
class ModelArguments:
    """Which model, and whether to train an adapter on it."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Hub name or folder, official layout."})
    ref_model_name_or_path: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reference of preference training, or several (ref_pool); policy: the initial policy. None: that, "
            "or only causal ones."
        },
    )
    causal_ref_model_name_or_path: list[str] | None = field(
        default=None,
        metadata={"help": "Causal language models as further references, by exact likelihood; same vocabulary."},
    )
    dtype: str | None = field(
        default=None,
        metadata={"help": "Of the weights. None: float32 if trained, as stored under an adapter."},
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flex_attention."})
    experts_implementation: str | None = field(
        default=None, metadata={"help": "Of a mixture of experts: auto, eager, batched_mm, grouped_mm."}
    )
    mask_token_id: int | None = field(default=None, metadata={"help": MASK_HELP})
    shift_logits: bool | None = field(default=None, metadata={"help": SHIFT_HELP})
    block_size: int | None = field(default=None, metadata={"help": BLOCK_HELP})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter; reference = adapter off."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter, divided by its rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Must stay 0: the same draw is evaluated twice."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Module names. None: all linear layers of the blocks."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Quantise the frozen linear layers to 4 bits (vrpo[quant]); needs use_peft."}
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "The same to 8 bits."})
    bnb_4bit_quant_type: str = field(default="nf4", metadata={"help": "Which 4 bits: nf4 or fp4."})
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Quantise the scales of 4-bit weights too."})

    @property
    def loading(self) -> dict[str, Any]:
        """What `load` is told, of policy and reference alike."""
        return {
            "dtype": weights_dtype("adapter" if self.use_peft else "training", self.dtype),
            "attn_implementation": self.attn_implementation,
            "experts_implementation": self.experts_implementation,
            "mask_token_id": self.mask_token_id,
            "shift_logits": self.shift_logits,
            "block_size": self.block_size,
        }

    def __post_init__(self) -> None:
        for name in ("lora_r", "lora_alpha"):
            if not 1 <= getattr(self, name) <= 1 << 16:
                raise ValueError(f"{name} must be from 1 to {1 << 16:,}, not {getattr(self, name)}")
        if self.lora_dropout:
            raise ValueError(f"lora_dropout must stay 0, not {self.lora_dropout}: the same draw is evaluated twice")
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other")
        if (self.load_in_4bit or self.load_in_8bit) and not self.use_peft:
            raise ValueError("quantised weights cannot be trained: add --use_peft")
        if self.bnb_4bit_quant_type not in ("nf4", "fp4"):
            raise ValueError(f"bnb_4bit_quant_type must be nf4 or fp4, not {self.bnb_4bit_quant_type!r}")
        if not self.load_in_4bit and (self.bnb_4bit_quant_type != "nf4" or self.use_bnb_nested_quant):
            raise ValueError("bnb_4bit_quant_type and use_bnb_nested_quant go with load_in_4bit, which is off")


@dataclass
class ScratchArguments:
    """A new model instead of a stored one (vrpo sft --from_scratch)."""

    from_scratch: bool = field(
        default=False, metadata={"help": "Train a BPE tokenizer on the training rows, and a new model."}
    )
    architecture: str = field(
        default="LLaDAModelLM",
        metadata={"help": "Layout of the new model, as config.json names it: LLaDAModelLM, DreamModel, ..."},
    )
    vocab_size: int = field(
        default=4096, metadata={"help": "Size of the tokenizer, at most. 262: bytes and special tokens, none merged."}
    )
    hidden_size: int = field(default=256, metadata={"help": "Width of the new model."})
    num_layers: int = field(default=6, metadata={"help": "Layers of the new model."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads of the new model."})
    num_kv_heads: int | None = field(default=None, metadata={"help": "Its grouped keys and values. None: as many."})
    intermediate_size: int = field(default=768, metadata={"help": "Width of the new model's MLP."})
    tie_embeddings: bool = field(default=False, metadata={"help": "Share embedding and head weights."})

    def __post_init__(self) -> None:
        if self.from_scratch:
            check_sizes(
                vocab_size=self.vocab_size,
                hidden_size=self.hidden_size,
                num_layers=self.num_layers,
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                intermediate_size=self.intermediate_size,
            )
