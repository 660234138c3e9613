"""A reward model: any sequence-classification model of the hub, as a judge. Reads safetensors, runs no remote code.

What deliberately does not live here: training one; language models that are asked for an opinion (rewards/endpoint.py).
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from vrpo.models.folder import check_folder
from vrpo.models.tokenizer import check_templates
from vrpo.rewards.verdict import Answer, Verdict

Form = Literal["chat", "text", "pair"]
Encoded = dict[str, list[int]]  # what a tokenizer gives for one text
_NO_LIMIT = 1 << 31  # a tokenizer that knows none says 1e30


@dataclass(frozen=True)
class RewardModel:
    """One logit of a classifier as the reward of an answer. Does not depend on the answers beside it, up to rounding.

    Args:
        form: how prompt and answer are put together: "chat", through the tokenizer's chat template (a string prompt is
            the user's turn); "text", the answer behind the prompt as one text; "pair", as the tokenizer's two segments.
        label: index of the logit; None for a model that has one only.
        max_length: tokens that the model can read.
        too_long: of an answer that is longer, with its prompt: "error", or "unjudged", a verdict whose reward is not a
            number. Nothing is ever cut.
    """

    module: Any
    tokenizer: PreTrainedTokenizerBase
    form: Form
    label: int | None = None
    batch_size: int = 8
    max_length: int | None = None
    too_long: Literal["error", "unjudged"] = "error"

    def __post_init__(self) -> None:
        count = self.module.config.num_labels
        if self.label is None and count != 1:
            raise ValueError(f"the reward model has {count} labels, {self.module.config.id2label}: choose one")
        if self.label is not None and not 0 <= self.label < count:
            raise ValueError(f"the reward model has no label {self.label}, but {self.module.config.id2label}")
        if self.form == "chat" and self.tokenizer.chat_template is None:
            raise ValueError("the reward model's tokenizer has no chat template: put answers behind prompts as text")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        """A verdict for each answer; batches are made of answers of similar length.

        Raises:
            ValueError: an answer is too long, unless that is to be recorded; or its reward is not finite.
        """
        encoded = [self.encode(answer) for answer in answers]
        fitting = [row for row, item in enumerate(encoded) if self._fits(item)]
        rewards = [math.nan] * len(answers)
        for rows in self._batches(fitting, encoded):
            for row, reward in zip(rows, self._rewards([encoded[row] for row in rows]).tolist(), strict=True):
                if not math.isfinite(reward):
                    raise ValueError(f"the reward model gives answer {row} the reward {reward}: try another dtype")
                rewards[row] = reward
        judged = set(fitting)
        return [
            Verdict(reward, None, None if row in judged else f"longer than {self.max_length} tokens")
            for row, reward in enumerate(rewards)
        ]

    def encode(self, answer: Answer) -> Encoded:
        """Token ids, and what else this model is called with, of one prompt and its answer."""
        given: Mapping[str, Any]
        if self.form == "chat":
            turn = {"role": "user", "content": answer.prompt}
            turns = [turn] if isinstance(answer.prompt, str) else [dict(each) for each in answer.prompt]
            turns.append({"role": "assistant", "content": answer.text})
            text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))
            given = self.tokenizer(text, add_special_tokens=False, verbose=False)  # the template wrote them
        elif self.form == "text":
            given = self.tokenizer(_text(answer.prompt) + answer.text, verbose=False)
        else:
            given = self.tokenizer(_text(answer.prompt), answer.text, verbose=False)
        names = ["input_ids", *(name for name in ("token_type_ids",) if name in self._read and name in given)]
        return {name: list(given[name]) for name in names}

    @property
    def _read(self) -> Mapping[str, Any]:
        """What the model can be called with: tokenizers also give what it does not read."""
        return inspect.signature(self.module.forward).parameters

    def _fits(self, item: Encoded) -> bool:
        length = len(item["input_ids"])
        if self.max_length is None or length <= self.max_length:
            return True
        if self.too_long == "unjudged":
            return False
        raise ValueError(
            f"an answer and its prompt have {length} tokens, and the reward model reads {self.max_length}: leave such "
            "answers unjudged (too_long), or sample shorter ones"
        )

    def _batches(self, rows: Sequence[int], encoded: Sequence[Encoded]) -> Iterator[list[int]]:
        """Longest first, so that what does not fit into memory fails at once. One by one without a padding token: the
        model then reads the last position, whatever stands there."""
        size = self.batch_size if self._pad_id() is not None else 1
        ordered = sorted(rows, key=lambda row: (-len(encoded[row]["input_ids"]), row))
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]

    def _pad_id(self) -> int | None:
        """The model's, by which it finds the last token of a text; the tokenizer's may be another one."""
        found = self.module.config.get_text_config().pad_token_id
        return None if found is None else int(found)

    @torch.inference_mode()
    def _rewards(self, items: Sequence[Encoded]) -> Float[Tensor, " N"]:
        """The chosen logits, rows padded on the right."""
        device, longest = self.module.device, max(len(item["input_ids"]) for item in items)
        pads = {"input_ids": self._pad_id() or 0, "token_type_ids": 0, "attention_mask": 0}
        real = [{**item, "attention_mask": [1] * len(item["input_ids"])} for item in items]
        padded = {name: [item[name] + [pads[name]] * (longest - len(item[name])) for item in real] for name in real[0]}
        batch = {name: torch.tensor(rows, device=device) for name, rows in padded.items()}
        logits = self.module(**batch).logits
        return logits[:, 0 if self.label is None else self.label].float()


def load_reward_model(
    name_or_path: str,
    *,
    form: Form | None = None,
    label: int | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    too_long: Literal["error", "unjudged"] = "error",
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
) -> RewardModel:
    """A reward model from the hub or a folder, in evaluation mode.

    Args:
        form: None: "chat" if the tokenizer has a chat template, else "text".
        max_length: None: what configuration and tokenizer say.

    Raises:
        ValueError: there is no such model, it is not in safetensors, or it has no head for classification.
    """
    check_folder(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        check_templates(tokenizer, name_or_path)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            name_or_path,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are named below
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ValueError(
            f"{name_or_path} gives no reward model (in safetensors, without remote code): "
            f"{' '.join(str(error).split())}"
        ) from error
    module, info = loaded
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:  # a head that is not there would be random numbers
            raise ValueError(f"{name_or_path}: {problem.replace('_', ' ')}: {sorted(map(str, info[problem]))[:5]}")
    form = form or ("text" if tokenizer.chat_template is None else "chat")
    limit = _longest(module, tokenizer) if max_length is None else max_length
    return RewardModel(module.eval().to(device), tokenizer, form, label, batch_size, limit, too_long)


def _longest(module: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens that the configuration and the tokenizer both allow."""
    positions = getattr(module.config.get_text_config(), "max_position_embeddings", None)  # GPT-2 has it as an alias
    limits = (
        [positions, int(tokenizer.model_max_length)] if isinstance(positions, int) else [tokenizer.model_max_length]
    )
    return min((limit for limit in limits if 0 < limit < _NO_LIMIT), default=None)


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(str(turn["content"]) for turn in prompt)
