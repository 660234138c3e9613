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
        end_of_text: text and id of the token that ends a text; `pad`: of the one that fills rows.
        end_of_turn: text of the token that ends a chat turn, if it is another one.
        alignment: "same": the logits at a position are that token's; "next": the following token's.
        max_length: tokens the model was trained for.
        padding: what the published code does with an attention mask that marks padding. Here padding is never attended.
    """

    architecture: str
    models: tuple[str, ...]
    mask_token: str | None
    mask_id: int | None
    end_of_text: tuple[str, int] | None
    pad: tuple[str, int] | None
    end_of_turn: tuple[str, ...]
    alignment: Literal["same", "next"]
    max_length: int | None
    padding: str


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
)
ILLADA = Facts(
    architecture="ILLaDAForCausalLM",
    models=("GSAI-ML/iLLaDA-8B-Base", "GSAI-ML/iLLaDA-8B-Instruct"),
    mask_token="<[MASK]>",
    mask_id=5,
    end_of_text=("</s>", 2),
    pad=("<pad>", 1),
    end_of_turn=(),
    alignment="same",
    max_length=8192,
    padding="honoured",
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
    max_length=2048,
    padding="honoured",
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
)
SDAR_MOE = replace(SDAR, architecture="SDARMoeForCausalLM", models=("JetLM/SDAR-30B-A3B-Chat",))
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
        alignment="same",
        max_length=None,
        padding="honoured",
    )
    for architecture in ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
)
TABLE = (LLADA, ILLADA, LLADA_MOE, DREAM, SDAR, SDAR_MOE, LLADA2, *CAUSAL)


def facts_of(architecture: str) -> Facts:
    """The entry of an architecture that has an adapter."""
    return next(entry for entry in TABLE if entry.architecture == architecture)
