"""What the published checkpoints of each architecture have in common: the one table of special tokens and conventions.

No other file knows a token id. What a folder says itself (config.json, tokenizer) comes first; `mask_id` and the texts
below say what it leaves out. docs/models.md shows this table, with hub names and licences.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Facts:
    """One architecture.

    Args:
        architecture: `architectures[0]` in config.json; `model_type` is not enough (LLaDA and LLaDA-MoE share one).
        mask_token: its text, in tokenizers that do not name a mask token.
        mask_id: of the published vocabulary; None: there is no published model of this kind.
        end_of_text: text (None: not known to us) and id of what ends a text; `pad`: of what fills rows.
        end_of_turn: text of the token that ends a chat turn, if it is another one.
        alignment: "same": the logits at a position are that token's; "next": the following token's.
        max_length: tokens of a row that the published config.json allows.
        padding: what the published code does with an attention mask that marks padding. Here padding is never attended.
        lora_targets: modules of a block that an adapter goes on if none are named, by our names.
        template: the chat template to use where the published one appends the assistant's header unasked; None: it
            honours add_generation_prompt, or is not known.
        block_size: tokens of a block of published block diffusion models; None: a row is one block.
    """

    architecture: str
    models: tuple[str, ...]
    mask_token: str | None
    mask_id: int | None
    end_of_text: tuple[str | None, int] | None
    pad: tuple[str | None, int] | None
    end_of_turn: tuple[str, ...]
    alignment: Literal["same", "next"]
    max_length: int | None
    padding: str
    lora_targets: tuple[str, ...]
    template: str | None = None
    block_size: int | None = None


BYTE_PAIR_CLASSES = ("DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast")  # one tokenizer, under three names
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_LINEAR = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")
_LLADA_TEMPLATE = (  # the published text, but for the condition on the header
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

LLADA = Facts(
    architecture="LLaDAModelLM",
    models=("GSAI-ML/LLaDA-8B-Base", "GSAI-ML/LLaDA-8B-Instruct", "GSAI-ML/LLaDA-1.5"),
    mask_token="<|mdm_mask|>",
    mask_id=126336,
    end_of_text=("<|endoftext|>", 126081),
    pad=("<|endoftext|>", 126081),
    end_of_turn=("<|eot_id|>",),
    alignment="same",
    max_length=4096,
    padding="ignored before 2025-10-21, honoured since; some copies turn causal",
    lora_targets=_LINEAR,
    template=_LLADA_TEMPLATE,
)
ILLADA = Facts(
    architecture="ILLaDAForCausalLM",
    models=("GSAI-ML/iLLaDA-8B-Base", "GSAI-ML/iLLaDA-8B-Instruct"),
    mask_token="<[MASK]>",
    mask_id=5,
    end_of_text=(None, 2),
    pad=(None, 1),
    end_of_turn=(),
    alignment="same",
    max_length=8192,
    padding="honoured",
    lora_targets=_LINEAR,
)
LLADA_MOE = Facts(
    architecture="LLaDAMoEModelLM",
    models=("inclusionAI/LLaDA-MoE-7B-A1B-Base", "inclusionAI/LLaDA-MoE-7B-A1B-Instruct"),
    mask_token="<|mask|>",
    mask_id=156895,
    end_of_text=("<|endoftext|>", 156892),
    pad=("<|endoftext|>", 156892),
    end_of_turn=("<|role_end|>",),
    alignment="same",
    max_length=8192,
    padding="ignored",
    lora_targets=_ATTENTION,
)
DREAM = Facts(
    architecture="DreamModel",
    models=("Dream-org/Dream-v0-Base-7B", "Dream-org/Dream-v0-Instruct-7B", "apple/DiffuCoder-7B-Instruct"),
    mask_token="<|mask|>",
    mask_id=151666,
    end_of_text=("<|endoftext|>", 151643),
    pad=("<|endoftext|>", 151643),
    end_of_turn=("<|im_end|>",),
    alignment="next",
    max_length=131072,
    padding="honoured",
    lora_targets=_LINEAR,
)
SDAR = Facts(
    architecture="SDARForCausalLM",
    models=("JetLM/SDAR-1.7B-Chat", "JetLM/SDAR-4B-Chat", "JetLM/SDAR-8B-Chat", "Gen-Verse/TraDo-8B-Instruct"),
    mask_token="<|MASK|>",
    mask_id=151669,
    end_of_text=("<|endoftext|>", 151643),
    pad=("<|endoftext|>", 151643),
    end_of_turn=("<|im_end|>",),
    alignment="same",
    max_length=32768,
    padding="has no notion of it",
    lora_targets=_LINEAR,
    block_size=4,
)
SDAR_MOE = replace(
    SDAR, architecture="SDARMoeForCausalLM", models=("JetLM/SDAR-30B-A3B-Chat",), lora_targets=_ATTENTION
)
LLADA2 = Facts(
    architecture="LLaDA2MoeModelLM",
    models=("inclusionAI/LLaDA2.0-mini", "inclusionAI/LLaDA2.1-mini"),
    mask_token="<|mask|>",
    mask_id=156895,
    end_of_text=("<|endoftext|>", 156892),
    pad=("<|endoftext|>", 156892),
    end_of_turn=("<|role_end|>",),
    alignment="same",
    max_length=32768,
    padding="turns causal",
    lora_targets=_LINEAR,
    block_size=32,
)
CAUSAL = tuple(
    Facts(
        architecture=architecture,
        models=(),
        mask_token=None,
        mask_id=None,
        end_of_text=None,
        pad=None,
        end_of_turn=("<|im_end|>", "<|eot_id|>"),
        alignment="same",  # unless shift_logits is set
        max_length=None,
        padding="honoured",
        lora_targets=_LINEAR,
    )
    for architecture in ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
)
TABLE = (LLADA, ILLADA, LLADA_MOE, DREAM, SDAR, SDAR_MOE, LLADA2, *CAUSAL)


def facts_of(architecture: str) -> Facts:
    """The entry of an architecture that has an adapter."""
    return next(entry for entry in TABLE if entry.architecture == architecture)


def table_for_readers(*, short: bool = False) -> str:
    """TABLE in Markdown, as docs/models.md shows it; `short`: as README.md does."""
    columns = ("architecture", "models", "mask token", "logits at a position are", "blocks", "longest")
    more = (
        "end of text",
        "padding token",
        "end of turn",
        "padding, in published code",
        "LoRA goes on",
        "chat template",
    )
    names = columns if short else (*columns, *more)
    rows = [[cell.replace("|", "\\|") for cell in _cells(entry)[: len(names)]] for entry in TABLE]
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, ("---",) * len(names), *rows))


def _cells(entry: Facts) -> tuple[str, ...]:
    def token(known: tuple[str | None, int] | None) -> str:
        if known is None:
            return "the folder says"
        return str(known[1]) if known[0] is None else f"`{known[0]}` {known[1]}"

    mask = None if entry.mask_token is None or entry.mask_id is None else (entry.mask_token, entry.mask_id)
    return (
        f"`{entry.architecture}`",
        ", ".join(entry.models) or "any folder with a mask token",
        token(mask),
        "its own" if entry.alignment == "same" else "the next one's",
        "one, both ways" if entry.block_size is None else f"of {entry.block_size}",
        "the folder says" if entry.max_length is None else f"{entry.max_length} tokens",
        token(entry.end_of_text),
        token(entry.pad),
        ", ".join(f"`{text}`" for text in entry.end_of_turn) or "not known",
        entry.padding,
        " ".join(f"`{name}`" for name in entry.lora_targets),
        "the folder's" if entry.template is None else "corrected in memory: its header comes only when it is asked for",
    )
